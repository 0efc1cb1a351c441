"""An encoder at work on packed batches: what it is given, its states, and scores."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.sharding import Mesh, PartitionSpec

from pdrec_jax.data.batches import PACKED, Layout
from pdrec_jax.data.negatives import ComplementTable
from pdrec_jax.encoders.encoder import Encoder
from pdrec_jax.encoders.ends import Ends
from pdrec_jax.encoders.layers import Rows, normalise
from pdrec_jax.encoders.losses import cosine_logits
from pdrec_jax.sharding import DATA, MODEL, axis, lookup, spread

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
      dpa_by_rank: whether likelier ones are drawn oftener, see ``plugins.dpa.draw_positives``.
      dpa_weight: omega_d.
      negatives: uniform ones a position.
      positive_weight: of the observed items in the loss.
      history_weight: of an item of the history that each position draws; 0 draws none.
      num_learnt: items up to this one are targets where they come next; 0 for all.
      reads_table: whether the encoder reads the table of items beside the vectors it is handed.
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
    dpa_by_rank: bool = False
    dpa_weight: float = 0.0
    negatives: int = 1
    positive_weight: float = 1.0
    history_weight: float = 0.0
    num_learnt: int = 0
    reads_table: bool = False
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
      offsets: [U+1] CSR of the training events, int32, on the host int64.
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


def placed_rows(
    items: Array, event: Indices, segment: Indices, length: Array, end: Array, most: int
) -> Rows:
    """Places events so that the last one of a history, ``end - 1``, has position ``most - 1``."""
    position = jnp.clip(most - end + event, 0, most - 1)
    return Rows(items, jnp.asarray(segment), position, most - length)


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


def embed_rows(params: Params, model: EncoderModel, ids: Array) -> Array:
    """Looks up the items [R, L] of rows for ``encode_rows``, [R', L, D].

    Shared rows that ``data`` does not divide get empty ones behind them, R' in all: the compiler
    would gather all of them at each layer otherwise, and permute them.
    """
    return embed(params, model, _filled(model, ids, 0))


def _filled(model: EncoderModel, cells: Array, value: int) -> Array:
    """Appends rows of a value to shared rows [R, L], so that ``data`` divides them, [R', L]."""
    if model.mesh is None or not model.layout.shared:
        return cells
    more = -len(cells) % axis(model.mesh, DATA)
    cells = jnp.pad(cells, ((0, more), (0, 0)), constant_values=value)
    return spread(cells, model.mesh, DATA)


def embed_all(params: Params, model: EncoderModel, ids: dict[str, Array]) -> dict[str, Array]:
    """Looks up all that a training step reads of the table, [..., D] each.

    In one lookup where every device has the whole table, so that its gradient is one scatter, and
    on a mesh summed up over ``data`` once, and not for each array of ids.

    Args:
      params: of the encoder.
      model: static.
      ids: int32; those of rows, whose names begin so, come back as of ``embed_rows``.
    """
    table, mesh = params["item_embedding"], model.mesh
    if mesh is None:
        return split_lookup(table[flat_ids(ids)], ids)
    filled = {
        name: _filled(model, some, 0) if name.startswith("rows") else some
        for name, some in ids.items()
    }
    found = {}
    # A table that is split is cheaper without: vectors cross the network, and no part of it.
    if model.layout.shared and axis(mesh, MODEL) == 1:
        places = axis(mesh, DATA)
        divided = {name: some for name, some in filled.items() if len(some) % places == 0}
        found = _lookup_each(table, divided, mesh)
    return {
        name: found[name] if name in found else embed(params, model, some)
        for name, some in filled.items()
    }


def _lookup_each(table: Array, ids: dict[str, Array], mesh: Mesh) -> dict[str, Array]:
    """Looks up arrays of ids whose first axis ``data`` divides, each device those at its place."""

    def own(table: Array, ids: dict[str, Array]) -> dict[str, Array]:
        return split_lookup(table[flat_ids(ids)], ids)

    places = PartitionSpec(DATA)
    return jax.shard_map(own, mesh=mesh, in_specs=(PartitionSpec(), places), out_specs=places)(
        table, ids
    )


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


def encode_rows(
    encoder: Encoder,
    model: EncoderModel,
    vectors: list[Array],
    rows: list[Rows],
    key: Array | None,
    ends: list[Ends] | None,
    users: int,
) -> list[Array]:
    """Encodes rows, and of those in ``ends`` no more than is read where that is known to pay.

    Args:
      encoder: with its parameters.
      model: static.
      vectors: of each group [R, L, D], on a mesh those of ``embed_rows``.
      rows: of each group.
      key: for dropout, whose draws count the cells row by row: rows behind change none.
      ends: of each group, or None.
      users: B of the batch.

    Returns:
      states of each group, [R, L, D].
    """
    if ends is not None and stops_at_ends(model):
        return encoder.encode_to_ends(vectors, rows, key, ends)
    if model.mesh is None or not model.layout.shared:
        return encoder.encode(vectors, rows, key)
    # What is in a cell without an event; its position and padding are any.
    empty = (0, users, 0, 0)
    filled = [
        Rows(*(_filled(model, cells, value) for cells, value in zip(group, empty, strict=True)))
        for group in rows
    ]
    states = spread(encoder.encode(vectors, filled, key), model.mesh, DATA)
    return [found[: len(group.items)] for found, group in zip(states, rows, strict=True)]


def ends_of(first: int, rows: Rows, histories: int) -> Ends:
    """The rows of a group from ``first`` on, which have no more histories than cells."""
    return Ends(first, min(histories, rows.items[first:].size))


def stops_at_ends(model: EncoderModel) -> bool:
    """Whether an encoder is told where no more is read than the ends of histories, on one CPU.

    It then sums over the cells of a history. A GPU does so in any order, which would let two
    rankings by the same parameters differ; on a mesh a history's cells need not lie on one device.
    """
    return model.mesh is None and jax.default_backend() == "cpu"


def user_of(batch: Batch, segment: Indices) -> Array:
    """Index of each cell's user in the batch; any user for an empty cell."""
    return jnp.minimum(segment, batch.users.shape[0] - 1)


def flat_cells(cells: Array) -> Array:
    """Lays the cells of rows [R, L, ...] end to end."""
    return cells.reshape(-1, *cells.shape[2:])


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
        user = batch.users[user_of(batch, segment)]
        end = offsets[user + 1]
        length = jnp.minimum(end - offsets[user], model.max_length)
        ids = jnp.where(occupied, items[event], 0)
        rows.append(placed_rows(ids, event, segment, length, end, model.max_length))
    vectors, users = [embed_rows(params, model, group.items) for group in rows], len(batch.users)
    ends = [ends_of(0, group, users) for group in rows]
    states = encode_rows(model.encoder(params), model, vectors, rows, None, ends, users)
    return normalise(jnp.concatenate([flat_cells(group) for group in states])[batch.last])


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
