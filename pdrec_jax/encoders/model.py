"""An encoder at work on packed batches: the training loss of a step, and scores."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.sharding import Mesh

from pdrec_jax.data.batches import PACKED, Layout
from pdrec_jax.data.negatives import ComplementTable, draw_outside
from pdrec_jax.encoders.encoder import Encoder
from pdrec_jax.encoders.ends import Ends
from pdrec_jax.encoders.layers import Rows, normalise
from pdrec_jax.encoders.losses import cosine_logits, total_loss
from pdrec_jax.plugins.dpa import draw_positives
from pdrec_jax.plugins.nns import draw_negatives
from pdrec_jax.sharding import DATA, MODEL, lookup, spread

_POSITIVES = 1 << 16  # what keys of drawn positives differ by from those of negatives

Params = dict[str, Any]
Indices = Array | np.ndarray  # a layout is made on the host


@dataclasses.dataclass(frozen=True)
class EncoderModel:
    """Everything about an encoder but its parameters; static under jit.

    Attributes:
      graph: structure of the Flax module.
      max_length: L, events of a history that are used.
      temperature: of the cosine scores.
      layout: that the encoder wants.
      hbr: weight the positives.
      nns: safe negatives a position beside the uniform ones, 0 without NNS.
      dpa_fine: N, 0 without DPA or where its positives are drawn.
      dpa_drawn: DPA's positives a position that are drawn, 0 without.
      dpa_weight: omega_d.
      negatives: uniform ones a position.
      positive_weight: of the observed items in the loss.
      history_weight: of an item of the history that each position draws; 0 draws none.
      num_learnt: items up to this one are targets where they come next; 0 for all.
      mesh: of the devices; None for one device. On a mesh the item table's rows are padded.
    """

    graph: Any
    max_length: int
    temperature: float
    layout: Layout = PACKED
    hbr: bool = False
    nns: int = 0
    dpa_fine: int = 0
    dpa_drawn: int = 0
    dpa_weight: float = 0.0
    negatives: int = 1
    positive_weight: float = 1.0
    history_weight: float = 0.0
    num_learnt: int = 0
    mesh: Mesh | None = None

    @property
    def dpa(self) -> bool:
        """Whether DPA is on, in either form."""
        return self.dpa_fine > 0 or self.dpa_drawn > 0

    def without_training(self) -> EncoderModel:
        """Returns the model without plugins and negatives, which is the same for all variants."""
        return EncoderModel(
            self.graph, self.max_length, self.temperature, self.layout, mesh=self.mesh
        )

    def encoder(self, params: Params) -> Encoder:
        """Returns the encoder with its parameters."""
        return nnx.merge(self.graph, params)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainingData:
    """What every step reads, resident on the device; on a mesh cut out of arrays on the host.

    Attributes:
      offsets: [U+1] int32, CSR of the training events.
      items: [E] int32.
      outside: table for uniform negatives.
      weights: [E] float32, HBR's weight of each event as a target.
      pools: [U, R] int32, NNS.
      candidates: [U, M] int32, DPA.
    """

    offsets: Array
    items: Array
    outside: ComplementTable
    weights: Array
    pools: Array
    candidates: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """One packed batch, see ``data.batches.PackedRows``.

    Attributes:
      users: [B] int32.
      event: a group each, [R, L] int32.
      segment: a group each, [R, L] int32, B in an empty cell.
      last: [B] int32, among the cells of all groups laid end to end.
      owner: [B] int32 in training, None elsewhere: who ``users`` are, also where these have been
        renamed; equal numbers are one user.
      again: [] int32, how often the batch has been delivered just before, negatives and all; None
        where batches do not come again.
    """

    users: Indices
    event: tuple[Indices, ...]
    segment: tuple[Indices, ...]
    last: Indices
    owner: Indices | None = None
    again: Indices | None = None


def _rows(
    items: Array, event: Indices, segment: Indices, length: Array, end: Array, most: int
) -> Rows:
    """Places events so that the last one of a history, ``end - 1``, has position ``most - 1``."""
    position = jnp.clip(most - end + event, 0, most - 1)
    return Rows(items, jnp.asarray(segment), position, most - length)


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
    inputs = _rows(
        jnp.where(paired, data.items[jnp.maximum(earlier, 0)], 0),
        earlier,
        segment,
        jnp.minimum(total - 1, most),
        end - 1,
        most,
    )
    whole = _rows(
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
    owner = jnp.concatenate([_flat(batch.users[_user(batch, s)]) for s in batch.segment])
    target = jnp.concatenate([_flat(following) for _, following, _ in groups])
    valid = jnp.concatenate([_flat(inputs.items) > 0 for inputs, _, _ in groups])
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
        ids[f"likely{number or ''}"] = draw_positives(key, data.candidates, owner)
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
      vectors: embeddings of ``inputs.ids``, [..., D] each.

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
            _ends(len(parts[0].items), group, others * len(inputs.owner))
            for parts, group in zip(inputs.groups, rows, strict=True)
        ]
    states = _encode(encoder, model, given, rows, inputs.key, ends)
    own, *more = _by_part(states, inputs.groups)
    final, views = (more[0], more[1:]) if model.dpa_fine else (None, more)
    view_rows = [
        jax.tree.map(lambda *cells: jnp.concatenate([_flat(c) for c in cells]), *view)
        for view in list(zip(*inputs.groups, strict=True))[len(inputs.groups[0]) - len(views) :]
    ]
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
    if model.mesh is None:
        # One lookup for everything, so that the table's gradient is one scatter.
        vectors = split_lookup(params["item_embedding"][flat_ids(inputs.ids)], inputs.ids)
    else:
        vectors = {name: embed(params, model, ids) for name, ids in inputs.ids.items()}
    return loss_of_vectors(params, model, data, inputs, vectors)[0]


def embed(params: Params, model: EncoderModel, ids: Array, *, cells: bool = True) -> Array:
    """Looks up items [...]; on a mesh the first axis then lies on ``data``.

    Args:
      params: of the encoder.
      model: static.
      ids: int32.
      cells: whether they are what the encoder runs over. Where histories have rows of their own,
        a recurrence takes them all along at once, and each place on ``data`` runs all.
    """
    if model.mesh is None:
        return params["item_embedding"][ids]
    where = (DATA,) if model.layout.shared or not cells else ()
    vectors = lookup(params["item_embedding"], spread(ids, model.mesh, *where), model.mesh)
    return spread(vectors, model.mesh, *where)


def flat_ids(ids: dict[str, Array]) -> Array:
    """Lays several arrays of ids end to end, [n] int32."""
    return jnp.concatenate([some.reshape(-1) for some in ids.values()])


def split_lookup(vectors: Array, ids: dict[str, Array]) -> dict[str, Array]:
    """Cuts the vectors [n, D] of ``flat_ids`` into those of each array of ids, [..., D]."""
    out, begin = {}, 0
    for name, some in ids.items():
        out[name] = vectors[begin : begin + some.size].reshape(*some.shape, vectors.shape[-1])
        begin += some.size
    return out


def _encode(
    encoder: Encoder,
    model: EncoderModel,
    vectors: list[Array],
    rows: list[Rows],
    key: Array | None,
    ends: list[Ends] | None,
) -> list[Array]:
    """Encodes rows, and of those in ``ends`` no more than is read where that is known to pay."""
    if ends is None or not stops_at_ends(model):
        return encoder.encode(vectors, rows, key)
    return encoder.encode_to_ends(vectors, rows, key, ends)


def _ends(first: int, rows: Rows, histories: int) -> Ends:
    """The rows of a group from ``first`` on, which have no more histories than cells."""
    return Ends(first, min(histories, rows.items[first:].size))


def stops_at_ends(model: EncoderModel) -> bool:
    """Whether an encoder is told where no more is read than the ends of histories, on one CPU.

    It then sums over the cells of a history. A GPU does so in any order, which would let two
    rankings by the same parameters differ; on a mesh a history's cells need not lie on one device.
    """
    return model.mesh is None and jax.default_backend() == "cpu"


def _user(batch: Batch, segment: Indices) -> Array:
    """Index of each cell's user in the batch; any user for an empty cell."""
    return jnp.minimum(segment, batch.users.shape[0] - 1)


def _flat(cells: Array) -> Array:
    """Lays the cells of rows [R, L, ...] end to end."""
    return cells.reshape(-1, *cells.shape[2:])


def _by_part(states: list[Array], groups: tuple[tuple[Rows, ...], ...]) -> list[Array]:
    """Cuts the states of stacked rows, a group each, into those of each part, [C, D]."""
    out: list[list[Array]] = [[] for _ in groups[0]]
    for encoded, parts in zip(states, groups, strict=True):
        ends = np.cumsum([len(part.items) for part in parts])[:-1]
        for number, part in enumerate(jnp.split(encoded, ends)):
            out[number].append(_flat(part))
    return [jnp.concatenate(cells) for cells in out]


def final_states(
    params: Params, model: EncoderModel, offsets: Array, items: Array, batch: Batch
) -> Array:
    """The state after each user's last event, of length 1, [B, D].

    Args:
      params: of the encoder.
      model: static.
      offsets: [U+1] int32, CSR of the histories.
      items: [E] int32.
      batch: users and layout.
    """
    rows = []
    for event, segment in zip(batch.event, batch.segment, strict=True):
        occupied = segment < batch.users.shape[0]
        user = batch.users[_user(batch, segment)]
        end = offsets[user + 1]
        length = jnp.minimum(end - offsets[user], model.max_length)
        ids = jnp.where(occupied, items[event], 0)
        rows.append(_rows(ids, event, segment, length, end, model.max_length))
    vectors = [embed(params, model, group.items) for group in rows]
    ends = [_ends(0, group, batch.users.shape[0]) for group in rows]
    states = _encode(model.encoder(params), model, vectors, rows, None, ends)
    return normalise(jnp.concatenate([_flat(group) for group in states])[batch.last])


def score_items(params: Params, model: EncoderModel, states: Array, items: Array) -> Array:
    """Scores chosen items, [B, C], from normalised states [B, D] and ids [B, C]."""
    embeddings = normalise(embed(params, model, items, cells=False))
    return cosine_logits(states[:, None, :], embeddings, model.temperature)


def score_all(params: Params, model: EncoderModel, states: Array) -> Array:
    """Scores the whole catalogue, [B, I + 1] or more columns, from normalised states [B, D]."""
    return score_table(normalise(params["item_embedding"]), model, states)


def score_table(table: Array, model: EncoderModel, states: Array) -> Array:
    """Scores normalised items [I + 1, D], [B, I + 1], from normalised states [B, D]."""
    scores = model.temperature * jnp.dot(states, table.T)
    return spread(scores, model.mesh, DATA, MODEL)
