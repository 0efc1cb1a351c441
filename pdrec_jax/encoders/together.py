"""An epoch of several seeds of one encoder in one program.

A small encoder leaves an accelerator idle between its many small operations. With a leading axis
for the seeds (``jax.vmap``), the same operations serve S seeds at once. A seed draws what it draws
alone: its key, its users and its layout are its own.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pdrec_jax.encoders.model import Batch, EncoderModel, TrainingData
from pdrec_jax.encoders.step import step_keys, train_step
from pdrec_jax.training import epoch_values

Trained = tuple[dict[str, Any], dict[str, float]]


class Trainable(Protocol):
    """What is asked of a task, see ``task.EncoderTask``."""

    config: Any
    model: EncoderModel
    data: TrainingData

    def data_of(self, epoch: int) -> TrainingData:
        """The data of an epoch."""

    def layout(self, epoch: int) -> Batch:
        """The batches of an epoch."""

    def pack_ahead(self, epoch: int) -> None:
        """Packs the batches of the epoch after one, while the device works on that."""

    def clock(self, epoch: int) -> tuple[np.ndarray, float]:
        """The numbers of an epoch's steps and its learning rate."""

    def by_rows(self, state: dict[str, Any]) -> bool:
        """Whether the optimiser goes row by row."""

    def run_epoch(self, state: dict[str, Any], epoch: int, advance: Any) -> Trained:
        """Trains one epoch."""


def run_epochs(
    tasks: Sequence[Trainable], states: Sequence[dict[str, Any]], epoch: int
) -> list[Trained]:
    """Trains one epoch of each task, those together whose batches have one shape.

    A batch that needs spare rows draws for their cells too, so rows are never padded to match: a
    rare epoch of another shape goes alone, and draws what it would draw in a run of its own.

    Args:
      tasks: of one encoder and variant, a seed each.
      states: of the tasks, donated.
      epoch: from 1.

    Returns:
      new state and values of each task, see ``training.Task``.
    """
    layouts = [task.layout(epoch) for task in tasks]
    groups: dict[Any, list[int]] = {}
    for index, layout in enumerate(layouts):
        alone = index if tasks[index].by_rows(states[index]) else None
        shape = tuple(np.shape(leaf) for leaf in jax.tree.leaves(layout))
        groups.setdefault((alone, shape), []).append(index)
    trained: dict[int, Trained] = {}
    for members in groups.values():
        if len(members) == 1:
            (index,) = members
            trained[index] = tasks[index].run_epoch(states[index], epoch, lambda _: None)
            continue
        first = tasks[members[0]]
        numbers, rate = first.clock(epoch)
        stacked = jax.tree.map(
            lambda *leaves: np.stack(leaves, axis=1), *(layouts[index] for index in members)
        )
        new, losses = _train_epochs(
            [states[index] for index in members],
            first.data,
            [_own(tasks[index].data_of(epoch)) for index in members],
            stacked,
            numbers,
            rate,
            first.model,
            np.array([tasks[index].config.seed for index in members], np.int32),
        )
        for index in members:
            tasks[index].pack_ahead(epoch)
        for index, state, loss in zip(members, new, np.asarray(losses).T, strict=True):
            trained[index] = state, epoch_values(loss, rate)
    return [trained[index] for index in range(len(tasks))]


def seeds_that_fit(state: dict[str, Any], data: TrainingData) -> int:
    """How many seeds the accelerator's free memory holds at once, at least 1.

    Args:
      state: of one seed, or its shapes. A seed needs it about six times: as it is, before and after
        the epoch, stacked before and after, and once for gradients, the best parameters and the
        step's own arrays.
      data: of one seed, which needs it about three times: as it is, stacked, and once for what the
        epochs are evaluated on.
    """
    device = jax.local_devices()[0]
    stats = device.memory_stats() or {}
    if "bytes_limit" not in stats:
        return 1
    free = stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    return max(1, int(free // (6 * _size(state) + 3 * _size(data))))


def _size(tree: Any) -> int:
    """Bytes of arrays, or of their shapes."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _own(data: TrainingData) -> tuple[Array, Array, Array]:
    """What a seed's preferences decide; the rest of the data is the log's, the same for all."""
    return data.weights, data.pools, data.candidates


@functools.partial(jax.jit, static_argnums=6, donate_argnums=0)
def _train_epochs(
    states: list[dict[str, Any]],
    shared: TrainingData,
    own: list[tuple[Array, Array, Array]],
    batches: Batch,
    numbers: Array,
    rate: float,
    model: EncoderModel,
    seeds: Array,
) -> tuple[list[dict[str, Any]], Array]:
    """Scans the steps of an epoch for S seeds; returns their states and losses [steps, S].

    ``batches`` has arrays of [steps, S, ...].
    """

    def stack(trees: list[Any]) -> Any:
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)

    parts, keys = stack(own), jax.vmap(jax.random.key)(seeds)

    def one(
        state: dict[str, Any],
        part: tuple[Array, Array, Array],
        batch: Batch,
        key: Array,
        number: Array,
    ) -> tuple[dict[str, Any], Array]:
        weights, pools, candidates = part
        data = dataclasses.replace(shared, weights=weights, pools=pools, candidates=candidates)
        return train_step(state, data, batch, step_keys(key, number, batch), rate, model)

    def step(state: Any, inputs: tuple[Batch, Array]) -> tuple[Any, Array]:
        batch, number = inputs
        return jax.vmap(one, in_axes=(0, 0, 0, 0, None))(state, parts, batch, keys, number)

    state, losses = jax.lax.scan(step, stack(states), (batches, numbers))
    split = [jax.tree.map(operator.itemgetter(i), state) for i in range(len(states))]
    return split, losses
