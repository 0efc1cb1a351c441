"""What a training step reads: its rows, and the items that it names and draws."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array

from pdrec_jax.data.negatives import draw_outside
from pdrec_jax.encoders.layers import Rows
from pdrec_jax.encoders.model import (
    Batch,
    EncoderModel,
    Indices,
    Params,
    TrainingData,
    flat_cells,
    placed_rows,
    user_of,
)
from pdrec_jax.plugins.dpa import draw_positives
from pdrec_jax.plugins.nns import draw_negatives

_POSITIVES = 1 << 16  # what keys of drawn positives differ by from those of negatives


def training_rows(
    data: TrainingData, users: Indices, event: Indices, segment: Indices, most: int
) -> tuple[Rows, Array, Rows]:
    """Builds the two inputs of a step from the layout of one group.

    A segment has ``min(n, L)`` cells of the user's n training events. The whole history fills them;
    its own input, which leaves out the last event, fills the same cells less the last one, or,
    where n > L, is the window one event earlier.

    Args:
      data: all users.
      users: [B] int32.
      event: [R, L'] int32, see ``Batch``.
      segment: [R, L'] int32.
      most: L.

    Returns:
      the rows whose positions have a next item; the event of that next item, [R, L'] int32, 0 where
      there is none; the rows of whole histories.
    """
    occupied = segment < users.shape[0]
    user = users[jnp.minimum(segment, users.shape[0] - 1)]
    begin, end = data.offsets[user], data.offsets[user + 1]
    total = end - begin
    earlier = event - (total > most).astype(jnp.int32)
    paired = occupied & (earlier + 1 < end)
    inputs = placed_rows(
        jnp.where(paired, data.items[jnp.maximum(earlier, 0)], 0),
        earlier,
        segment,
        jnp.minimum(total - 1, most),
        end - 1,
        most,
    )
    whole = placed_rows(
        jnp.where(occupied, data.items[event], 0),
        event,
        segment,
        jnp.minimum(total, most),
        end,
        most,
    )
    return inputs, jnp.where(paired, earlier + 1, 0), whole


def stack(*parts: Rows) -> Rows:
    """Puts the rows of several inputs below each other, so that one call encodes all."""
    return Rows(*(jnp.concatenate(arrays) for arrays in zip(*parts, strict=True)))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StepInputs:
    """All that a step reads but parameters and embeddings.

    Attributes:
      ids: items to embed, by what they are: ``positive``, ``uniform`` and ``safe`` [C] of the C
        cells of all groups laid end to end, as many more of both as there are, ``uniform1`` and
        ``safe1`` .., ``likely`` [C] and more of them, what DPA draws; ``history`` [C]; ``soft``
        [B, M], what DPA picks from; ``rows0`` .. [R, L] a group each.
      groups: of each group the rows that have a next item, where DPA picks those of whole
        histories, and the encoder's own views.
      target: [C] int32, event of the next item.
      valid: [C] bool, whether there is one.
      last: [B] int32, see ``Batch``.
      owner: [B] int32, see ``Batch``.
      key: for dropout.
    """

    ids: dict[str, Array]
    groups: tuple[tuple[Rows, ...], ...]
    target: Array
    valid: Array
    last: Indices
    owner: Array
    key: Array


def step_inputs(
    params: Params,
    model: EncoderModel,
    data: TrainingData,
    batch: Batch,
    key: Array,
    drawn: Array | None = None,
) -> StepInputs:
    """Lays out a step and draws its negatives and views.

    Args:
      params: of the encoder, for its views.
      model: static.
      data: all users.
      batch: users and layout.
      key: of this step.
      drawn: of the step that drew its negatives and positives; None for this one.
    """
    key_dropout, key_uniform, key_safe, key_views = jax.random.split(key, 4)
    if drawn is not None:
        _, key_uniform, key_safe, _ = jax.random.split(drawn, 4)
    groups = [
        training_rows(data, batch.users, event, segment, model.max_length)
        for event, segment in zip(batch.event, batch.segment, strict=True)
    ]
    owner = jnp.concatenate([flat_cells(batch.users[user_of(batch, s)]) for s in batch.segment])
    target = jnp.concatenate([flat_cells(following) for _, following, _ in groups])
    valid = jnp.concatenate([flat_cells(inputs.items) > 0 for inputs, _, _ in groups])
    ids = {"positive": data.items[target]}
    if model.num_learnt:
        valid = valid & (ids["positive"] <= model.num_learnt)
    ids["uniform"] = draw_outside(key_uniform, data.outside, owner)
    for number in range(1, model.negatives):
        key = jax.random.fold_in(key_uniform, number)
        ids[f"uniform{number}"] = draw_outside(key, data.outside, owner)
    for number in range(model.nns):
        key = jax.random.fold_in(key_safe, number) if number else key_safe
        ids[f"safe{number or ''}"] = draw_negatives(key, data.pools, owner)
    if model.history_weight:
        key = jax.random.fold_in(key_uniform, _POSITIVES)
        ids["history"] = _draw_own(key, data.offsets, data.items, owner)
    key_likely = jax.random.fold_in(key_safe, _POSITIVES)
    for number in range(model.dpa_drawn):
        key = jax.random.fold_in(key_likely, number)
        ids[f"likely{number or ''}"] = draw_positives(
            key, data.candidates, owner, by_rank=model.dpa_by_rank
        )
    if model.dpa_fine:
        ids["soft"] = data.candidates[batch.users]
    encoder, parts = model.encoder(params), []
    for number, (inputs, _, whole) in enumerate(groups):
        views = encoder.views(inputs, jax.random.fold_in(key_views, number))
        parts.append((inputs, *([whole] if model.dpa_fine else []), *views))
        ids[f"rows{number}"] = stack(*parts[-1]).items
    names = jnp.asarray(batch.users if batch.owner is None else batch.owner)
    return StepInputs(ids, tuple(parts), target, valid, batch.last, names, key_dropout)


def _draw_own(key: Array, offsets: Array, items: Array, users: Array) -> Array:
    """Draws an item of the own history for each user of [...], uniformly."""
    begin = offsets[users]
    place = jax.random.randint(key, users.shape, 0, jnp.maximum(offsets[users + 1] - begin, 1))
    return items[begin + place]
