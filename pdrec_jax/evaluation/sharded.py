"""Counting in the whole catalogue on a mesh: each device counts in its part of the scores."""

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh, PartitionSpec

from pdrec_jax.sharding import DATA, MODEL, held_columns, spread


def count_catalogue_on(
    mesh: Mesh, scores: Array, positive: Array, seen: Array, *, last_item: int
) -> tuple[Array, Array]:
    """``ranking.count_catalogue`` of scores that lie on both axes; padding never counts.

    Args:
      mesh: of the devices.
      scores: [B, I] over item ids, or with more columns behind.
      positive: [B] int32.
      seen: [B, K] int32.
      last_item: last id of the catalogue; the first is 1.

    Returns:
      above [B] and ties [B], int32, the same on every device; see there for what is not finite.
    """

    def own(scores: Array, positive: Array, seen: Array) -> tuple[Array, Array]:
        width = scores.shape[1]
        first = jax.lax.axis_index(MODEL).astype(jnp.int32) * width
        column = (first + jnp.arange(width, dtype=jnp.int32))[None, :]
        score = jax.lax.psum(held_columns(scores, positive[:, None]), MODEL)
        counted = (column >= 1) & (column <= last_item)
        place = seen - first
        left_out = (place >= 0) & (place < width) & (seen >= 1) & (seen <= last_item)
        left_out = left_out & (seen != positive[:, None])
        of_seen = held_columns(scores, seen)

        def count(beats: Array, seen_beats: Array) -> Array:
            found = jnp.sum(counted & beats, axis=1, dtype=jnp.int32)
            return found - jnp.sum(left_out & seen_beats, axis=1, dtype=jnp.int32)

        above = count(scores > score, of_seen > score)
        ties = count(scores == score, of_seen == score)
        # The relevant item itself ties with itself, once.
        ties = jax.lax.psum(ties, MODEL) - 1
        return jax.lax.psum(above, MODEL), jnp.where(jnp.isfinite(score[:, 0]), ties, -1)

    by_user = PartitionSpec(DATA)
    counts = jax.shard_map(
        own,
        mesh=mesh,
        in_specs=(PartitionSpec(DATA, MODEL), by_user, by_user),
        out_specs=(by_user, by_user),
        check_vma=False,
    )(scores, positive, seen)
    above, ties = spread(counts, mesh)
    return above, ties
