"""What the encoder stage does otherwise on a mesh: each step is handed its own users' data.

On one device the whole log, and the pools of all users, lie beside the model. On a mesh nothing as
long as the users does: of each batch the host cuts out what it reads, as if its B users were all
there are. Draws depend on shapes and places alone, so they are those of one device. A log that is
mapped, and so need not fit in memory, is trained on in the same way on one device.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
from jax import Array

from pdrec_jax.data.compressed import gathered
from pdrec_jax.data.negatives import ComplementTable
from pdrec_jax.encoders.model import Batch, EncoderModel, TrainingData
from pdrec_jax.encoders.step import step_keys, train_step
from pdrec_jax.sharding import constrain, round_up, spread

EVENT_STEP = 256


def event_budget(offsets: np.ndarray, users: np.ndarray) -> int:
    """Returns how many events the users of each of some batches [..., B] have at most, rounded."""
    lengths = offsets[users + 1] - offsets[users]
    return round_up(int(lengths.sum(axis=-1).max(initial=1)), EVENT_STEP)


def cut_out(
    offsets: np.ndarray, users: np.ndarray, budget: int, *arrays: np.ndarray
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Takes the rows of some users out of compressed rows.

    Args:
      offsets: [U+1].
      users: [B], repeated ones get a row each.
      budget: E'.
      arrays: [E] each.

    Returns:
      offsets [B+1] int32; of each array the users' entries [E'], followed by zeros.
    """
    own, index = gathered(offsets[users], offsets[users + 1] - offsets[users])
    return own.astype(np.int32), [np.pad(a[index], (0, budget - len(index))) for a in arrays]


def as_the_only(batch: Batch, offsets: np.ndarray) -> Batch:
    """Renames a batch's users 0 .. B - 1, and its events as ``cut_out`` lays them out."""
    users = np.asarray(batch.users)
    lengths = offsets[users + 1] - offsets[users]
    shift = np.append(np.cumsum(lengths) - lengths - offsets[users], 0)
    events = tuple(
        np.where(segment < len(users), event + shift[segment], 0).astype(np.int32)
        for event, segment in zip(batch.event, batch.segment, strict=True)
    )
    return dataclasses.replace(batch, users=np.arange(len(users), dtype=np.int32), event=events)


def of_steps(data: TrainingData, batches: Batch, budget: int) -> tuple[TrainingData, Batch]:
    """Cuts out what each of some steps reads.

    Args:
      data: of all users, on the host.
      batches: [steps, ...] each.
      budget: events of a batch at most.

    Returns:
      data and batches of users that have been renamed, [steps, ...] each.
    """
    offsets, outside = np.asarray(data.offsets), data.outside
    keys_offsets = np.asarray(outside.offsets)
    weighted = len(data.weights) > 1
    parts = []
    for number, users in enumerate(np.asarray(batches.users)):
        batch = jax.tree.map(lambda leaf, number=number: leaf[number], batches)
        arrays = [data.items, data.weights] if weighted else [data.items]
        own: Any
        own_keys: Any
        cut: Any
        keys: Any
        own, cut = cut_out(offsets, users, budget, *map(np.asarray, arrays))
        own_keys, (keys,) = cut_out(keys_offsets, users, budget, np.asarray(outside.keys))
        some = TrainingData(
            own,
            cut[0],
            ComplementTable(own_keys, keys, outside.num_items, outside.steps),
            cut[1] if weighted else data.weights,
            data.pools[users] if len(data.pools) > 1 else data.pools,
            data.candidates[users] if len(data.candidates) > 1 else data.candidates,
        )
        parts.append((some, as_the_only(batch, offsets)))
    return jax.tree.map(lambda *leaves: np.stack(leaves), *parts)


@functools.partial(jax.jit, static_argnums=5, donate_argnums=0)
def train_steps_on(
    state: dict[str, Any],
    data: TrainingData,
    batches: Batch,
    numbers: Array,
    rate: float,
    model: EncoderModel,
    seed: int,
) -> tuple[dict[str, Any], Array]:
    """Scans steps on the model's mesh or device; returns the state and the loss of each step.

    Args:
      state: ``params`` and ``optimiser``.
      data: from ``of_steps``.
      batches: likewise.
      numbers: [steps] of the steps.
      rate: learning rate.
      model: static.
      seed: of the run.
    """
    base = jax.random.key(seed)

    def step(state: dict[str, Any], inputs: Any) -> tuple[dict[str, Any], Array]:
        some, batch, number = inputs
        return train_step(state, some, batch, step_keys(base, number, batch), rate, model)

    state, losses = jax.lax.scan(step, state, (data, batches, numbers))
    return constrain(state, model.mesh), spread(losses, model.mesh)
