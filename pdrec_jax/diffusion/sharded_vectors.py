"""Interaction vectors on a mesh: batches split by users, and what is looked up by their slots.

Users lie on the mesh's axis ``data`` and slots on ``model``. A batch's tokens are split by users on
the host, where each process gathers those of its own places alone.

Letters: d places on ``data``, b users and P tokens a place, i slots a place on ``model``.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, PartitionSpec

from pdrec_jax.diffusion.vectors import InteractionVectors, SparseBatch, gather_batch
from pdrec_jax.sharding import DATA, MODEL, axis, from_parts, held_columns, held_rows, round_up

TOKEN_STEP = 256
_BY_USER, _BY_SLOT, _BOTH = PartitionSpec(DATA), PartitionSpec(MODEL), PartitionSpec(DATA, MODEL)
_WHOLE = PartitionSpec()


def shares(users: np.ndarray, mesh: Mesh) -> np.ndarray:
    """Splits the users of batches by their place, [..., B] to [..., d, b], filled up with -1."""
    places = axis(mesh, DATA)
    size = users.shape[-1]
    filled = np.full((*users.shape[:-1], round_up(size, places)), -1, np.int64)
    filled[..., :size] = users
    return filled.reshape(*users.shape[:-1], places, -1)


def share_budget(vectors: InteractionVectors, users: np.ndarray) -> int:
    """Returns P: enough for each place of some batches, [..., d, b] from ``shares``, rounded up."""
    lengths = np.where(users < 0, 0, vectors.lengths_of(np.maximum(users, 0)))
    return round_up(int(lengths.sum(axis=-1).max(initial=1)), TOKEN_STEP)


def place_batch(
    mesh: Mesh, vectors: InteractionVectors, users: np.ndarray, tokens: int
) -> SparseBatch:
    """Collects the tokens of batches where they belong; a place's rows count from 0.

    Args:
      mesh: of the devices.
      vectors: all users.
      users: [..., d, b] from ``shares``, one leading axis at most.
      tokens: P.

    Returns:
      arrays [..., d, P]; a token that is not used has row b.
    """
    leading, (places, size) = users.shape[:-2], users.shape[-2:]
    made: dict[int, SparseBatch] = {}

    def of(place: int) -> SparseBatch:
        if place not in made:
            batches = []
            for some in users[..., place, :].reshape(-1, size):
                batch = gather_batch(vectors, some[some >= 0], tokens)
                rows = np.where(batch.rows < np.sum(some >= 0), batch.rows, size)
                batches.append(SparseBatch(batch.slots, rows.astype(np.int32), batch.weights))
            made[place] = jax.tree.map(
                lambda *parts: np.stack(parts).reshape(*leading, tokens), *batches
            )
        return made[place]

    def whole(name: str, dtype: type) -> Array:
        shape = (*leading, places, tokens)
        return from_parts(mesh, shape, dtype, len(leading), lambda place: getattr(of(place), name))

    return SparseBatch(
        whole("slots", np.int32), whole("rows", np.int32), whole("weights", np.float32)
    )


def held_vectors(batch: SparseBatch, rows: int, first: Array, width: int) -> Array:
    """Within ``shard_map``: the part of dense vectors that a device holds, [rows, width].

    Args:
      batch: of this place, [P] each.
      rows: b.
      first: [] int32, the first slot held.
      width: i.
    """
    slots = jnp.asarray(batch.slots) - first
    column = jnp.where((slots >= 0) & (slots < width), slots, width)
    dense = jnp.zeros((rows, width), jnp.float32)
    return dense.at[batch.rows, column].set(batch.weights, mode="drop")


def _rows_of(mesh: Mesh, size: int) -> int:
    return size // axis(mesh, DATA)


def _own(batch: SparseBatch) -> SparseBatch:
    return SparseBatch(batch.slots[0], batch.rows[0], batch.weights[0])


def dense_vectors(mesh: Mesh, batch: SparseBatch, size: int, width: int) -> Array:
    """Scatters a batch to dense vectors [B, width] that lie on both axes.

    Args:
      mesh: of the devices.
      batch: [d, P] each.
      size: B, which ``data`` divides.
      width: slots, which ``model`` divides.
    """
    part = width // axis(mesh, MODEL)

    def own(batch: SparseBatch) -> Array:
        first = jax.lax.axis_index(MODEL).astype(jnp.int32) * part
        return held_vectors(_own(batch), _rows_of(mesh, size), first, part)

    return jax.shard_map(own, mesh=mesh, in_specs=(_BY_USER,), out_specs=_BOTH, check_vma=False)(
        batch
    )


def sparse_product_on(mesh: Mesh, batch: SparseBatch, size: int, kernel: Array) -> Array:
    """``vectors.sparse_product`` with a split kernel: [B, H], users on ``data``.

    Args:
      mesh: of the devices.
      batch: [d, P] each.
      size: B, which ``data`` divides.
      kernel: [I, H], rows on ``model``.
    """

    def own(batch: SparseBatch, kernel: Array) -> Array:
        mine = _own(batch)
        terms = held_rows(kernel, jnp.asarray(mine.slots)) * mine.weights[:, None]
        sums = jax.ops.segment_sum(
            terms, mine.rows, num_segments=_rows_of(mesh, size), indices_are_sorted=True
        )
        return jax.lax.psum(sums, MODEL)

    return jax.shard_map(
        own, mesh=mesh, in_specs=(_BY_USER, _BY_SLOT), out_specs=_BY_USER, check_vma=False
    )(batch, kernel)


def chosen_scores(mesh: Mesh, states: Array, kernel: Array, bias: Array, items: Array) -> Array:
    """Scores some slots a user, ``states kernel^T + bias`` at ``items``, [B, C].

    Args:
      mesh: of the devices.
      states: [B, H], users on ``data``.
      kernel: [I, H], rows on ``model``.
      bias: [I], likewise.
      items: [B, C] int32.
    """

    def own(states: Array, kernel: Array, bias: Array, items: Array) -> Array:
        scores = jnp.einsum("bh,bch->bc", states, held_rows(kernel, items))
        return jax.lax.psum(scores + held_rows(bias, items), MODEL)

    return jax.shard_map(
        own,
        mesh=mesh,
        in_specs=(_BY_USER, _BY_SLOT, _BY_SLOT, _BY_USER),
        out_specs=_BY_USER,
        check_vma=False,
    )(states, kernel, bias, items)


def chosen_columns(mesh: Mesh, scores: Array, items: Array) -> Array:
    """Takes some columns a row, [B, C], of scores [B, I] that lie on both axes."""

    def own(scores: Array, items: Array) -> Array:
        return jax.lax.psum(held_columns(scores, items), MODEL)

    return jax.shard_map(
        own, mesh=mesh, in_specs=(_BOTH, _BY_USER), out_specs=_BY_USER, check_vma=False
    )(scores, items)
