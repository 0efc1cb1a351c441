"""One step of training: its loss, and Adam on the whole table of items."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from pdrec_jax.encoders.layers import Rows, normalise
from pdrec_jax.encoders.losses import cosine_logits, total_loss
from pdrec_jax.encoders.model import (
    Batch,
    EncoderModel,
    Params,
    TrainingData,
    embed_all,
    encode_rows,
    ends_of,
    flat_cells,
)
from pdrec_jax.encoders.step_inputs import StepInputs, stack, step_inputs
from pdrec_jax.row_adam import AdamW

# Adam without the learning rate, which changes by the epoch; betas of the reference.
ADAM = AdamW(b1=0.9, b2=0.98)
OPTIMISER = optax.scale_by_adam(b1=ADAM.b1, b2=ADAM.b2)


def loss_of_vectors(
    params: Params,
    model: EncoderModel,
    data: TrainingData,
    inputs: StepInputs,
    vectors: dict[str, Array],
) -> tuple[Array, Array | None]:
    """The loss of a step from what it looked up.

    Args:
      params: of the encoder; its table of items is not read.
      model: static.
      data: all users.
      inputs: of the step.
      vectors: embeddings of ``inputs.ids``, [..., D] each; on a mesh rows as ``embed_rows`` has.

    Returns:
      the loss []; logits of the candidates that DPA picks from [B, M], None where it does not.
    """
    encoder = model.encoder(params)
    rows = [stack(*parts) for parts in inputs.groups]
    given = [vectors[f"rows{number}"] for number in range(len(rows))]
    others = len(inputs.groups[0]) - 1
    ends = None
    if others and (encoder.reads_ends or others == (model.dpa_fine > 0)):
        ends = [
            ends_of(len(parts[0].items), group, others * len(inputs.owner))
            for parts, group in zip(inputs.groups, rows, strict=True)
        ]
    states = encode_rows(encoder, model, given, rows, inputs.key, ends, len(inputs.owner))
    own, *more = by_part(states, inputs.groups)
    final, views = (more[0], more[1:]) if model.dpa_fine else (None, more)
    view_rows = rows_by_part(inputs.groups)[len(inputs.groups[0]) - len(views) :]
    hidden = normalise(own)

    def logits(name: str) -> Array:
        return cosine_logits(hidden, normalise(vectors[name]), model.temperature)

    soft = None
    if final is not None:
        last = normalise(final[inputs.last])[:, None, :]
        soft = cosine_logits(last, normalise(vectors["soft"]), model.temperature)
    likely = [logits(name) for name in vectors if name.startswith("likely")]
    loss = total_loss(
        logits("positive"),
        [logits(name) for name in vectors if name.startswith(("uniform", "safe"))],
        inputs.valid,
        data.weights[inputs.target] if model.hbr else None,
        soft,
        likely,
        fine=model.dpa_fine,
        augmentation_weight=model.dpa_weight,
        positive_weight=model.positive_weight,
        history=logits("history") if "history" in vectors else None,
        history_weight=model.history_weight,
    )
    return loss + encoder.own_loss(views, view_rows, inputs.owner), soft


def training_loss(
    params: Params,
    model: EncoderModel,
    data: TrainingData,
    batch: Batch,
    key: Array,
    drawn: Array | None = None,
) -> Array:
    """The loss of one step, [].

    Args:
      params: of the encoder.
      model: static.
      data: all users.
      batch: users and layout.
      key: of this step.
      drawn: see ``step_inputs``.
    """
    inputs = step_inputs(params, model, data, batch, key, drawn)
    vectors = embed_all(params, model, inputs.ids)
    return loss_of_vectors(params, model, data, inputs, vectors)[0]


def by_part(states: Sequence[Array], groups: Sequence[tuple[Rows, ...]]) -> list[Array]:
    """Cuts the states of stacked rows, a group each, into those of each part, [C, D]."""
    out: list[list[Array]] = [[] for _ in groups[0]]
    for encoded, parts in zip(states, groups, strict=True):
        ends = np.cumsum([len(part.items) for part in parts])[:-1]
        for number, part in enumerate(jnp.split(encoded, ends)):
            out[number].append(flat_cells(part))
    return [jnp.concatenate(cells) for cells in out]


def rows_by_part(groups: Sequence[tuple[Rows, ...]]) -> list[Rows]:
    """Lays the rows of each part of all groups end to end, [C] each."""

    def end_to_end(*cells: Array) -> Array:
        return jnp.concatenate([flat_cells(some) for some in cells])

    return [jax.tree.map(end_to_end, *part) for part in zip(*groups, strict=True)]


def step_keys(base: Array, number: Array, batch: Batch) -> tuple[Array, Array | None]:
    """Returns the key of a step and, of a batch that may come again, that of what is drawn with it.

    Args:
      base: of the run.
      number: [] int32, of the step.
      batch: of the step.
    """
    key = jax.random.fold_in(base, number)
    return key, None if batch.again is None else jax.random.fold_in(base, number - batch.again)


def train_step(
    state: dict[str, Any],
    data: TrainingData,
    batch: Batch,
    keys: tuple[Array, Array | None],
    rate: Array | float,
    model: EncoderModel,
) -> tuple[dict[str, Any], Array]:
    """Takes one step of Adam on all parameters.

    Args:
      state: ``params``, ``optimiser`` and, of a large table, ``row_age``, see
        ``EncoderTask.initial``; all rows up to date.
      data: all users.
      batch: users and layout.
      keys: of ``step_keys``.
      rate: learning rate.
      model: static.

    Returns:
      the new state and the loss [].
    """
    loss, gradient = jax.value_and_grad(training_loss)(state["params"], model, data, batch, *keys)
    updates, optimiser = OPTIMISER.update(gradient, state["optimiser"])
    params = jax.tree.map(lambda p, u: p - rate * u, state["params"], updates)
    new = {"params": params, "optimiser": optimiser}
    if "row_age" in state:
        new["row_age"] = jnp.full_like(state["row_age"], optimiser.count)
    return new, loss
