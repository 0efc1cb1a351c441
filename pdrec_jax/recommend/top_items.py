"""The exact top k of inner products, block by block over the items.

Letters: B users, I items, D width, C items of a block, K seen items, k wanted.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import Array

from pdrec_jax.diffusion.selection import top
from pdrec_jax.rows import by_rows

_BLOCK = 16_384
_ROUND = 64


def in_blocks(vectors: Array, block: int = _BLOCK) -> Array:
    """Cuts the vectors of all items into blocks of one size.

    Args:
      vectors: [I + 1, D], row 0 is the padding item's.
      block: C at most.

    Returns:
      [N, C, D], filled up with zeros behind the last item.
    """
    count, width = vectors.shape
    size = min(block, -(-count // _ROUND) * _ROUND)
    number = -(-count // size)
    return jnp.pad(vectors, ((0, number * size - count), (0, 0))).reshape(number, size, width)


@functools.partial(jax.jit, static_argnames=("count", "last_item"))
def top_items(
    users: Array, blocks: Array, seen: Array, *, count: int, last_item: int
) -> tuple[Array, Array]:
    """Returns each user's best items that are not left out.

    Of a block all scores are made, its best are merged with the best so far, and it is let go: what
    is in memory is [B, C], however many items there are, and nothing longer than a few thousand is
    sorted. Equal scores are ordered by id.

    Args:
      users: [B, D].
      blocks: [N, C, D] from ``in_blocks``.
      seen: [B, K] int32, items that are left out, in any order; 0 for none.
      count: k.
      last_item: items 1..last_item can be recommended.

    Returns:
      ids [B, k] int32, best first, 0 where fewer items are left; scores [B, k] float32.
    """
    size = blocks.shape[1]
    taken = min(count, size)

    def of_block(scores: Array, seen: Array, start: Array) -> tuple[Array, Array]:
        ids = start + jnp.arange(size, dtype=jnp.int32)
        scores = jnp.where((ids >= 1) & (ids <= last_item), scores, -jnp.inf)
        inside = (seen >= start) & (seen < start + size)
        place = jnp.where(inside, seen - start, size)  # a negative index would count from the end
        scores = scores.at[place].set(-jnp.inf, mode="drop")
        best = top(scores, taken)
        return ids[best], scores[best]

    def merge(kept: tuple[Array, Array], given: tuple[Array, Array]) -> tuple[tuple, None]:
        start, block = given
        # As many copies of the start as users, since a row's function sees rows alone.
        starts = jnp.broadcast_to(start, (users.shape[0],))
        found = by_rows(of_block, jnp.dot(users, block.T), seen, starts)
        # Those that are kept have lower ids, and stand first: so ties stay in order.
        ids, scores = (jnp.concatenate(pair, axis=1) for pair in zip(kept, found, strict=True))
        scores, place = jax.lax.top_k(scores, count)
        return (jnp.take_along_axis(ids, place, axis=1), scores), None

    nothing = (
        jnp.zeros((users.shape[0], count), jnp.int32),
        jnp.full((users.shape[0], count), -jnp.inf, jnp.float32),
    )
    starts = size * jnp.arange(blocks.shape[0], dtype=jnp.int32)
    (ids, scores), _ = jax.lax.scan(merge, nothing, (starts, blocks))
    return jnp.where(scores > -jnp.inf, ids, 0), scores
