"""Work on a few rows of a large matrix at a time, so that on a CPU they stay in the cache."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

_LANES = 128
_SECOND = 1 << 12  # what the second of two counts in one number counts by


def by_rows(function: Callable[..., Any], *arrays: Array) -> Any:
    """Applies a function of single rows to every row of some arrays.

    On a CPU row by row, since what is done several times to one row then finds it in the cache,
    with a loop for each half of the rows, which run side by side; elsewhere all rows at once.

    Args:
      function: from a row of each array to a tree of arrays.
      arrays: [B, ...] each.

    Returns:
      the tree, with a leading axis of B.
    """
    if jax.default_backend() != "cpu":
        return jax.vmap(function)(*arrays)
    rows = jnp.arange(arrays[0].shape[0], dtype=jnp.int32)
    half = len(rows) // 2
    # The arrays stay where they are: a loop over slices of them would copy them first.
    parts = [
        jax.lax.map(lambda row: function(*(array[row] for array in arrays)), some)
        for some in (rows[:half], rows[half:])
    ]
    return jax.tree.map(lambda *both: jnp.concatenate(both), *parts)


def by_blocks(function: Callable[..., Any], size: int, *arrays: Array) -> Any:
    """Applies a function of several rows to blocks of rows of some arrays.

    On a CPU block by block, so that what is computed of a block is used while it is in the cache;
    elsewhere all rows at once.

    Args:
      function: from [b, ...] of each array to a tree of arrays of b rows, whatever b.
      size: rows of a block.
      arrays: [B, ...] each.

    Returns:
      the tree, with B rows.
    """
    rows = arrays[0].shape[0]
    if jax.default_backend() != "cpu" or rows <= size:
        return function(*arrays)
    whole = rows // size * size
    cut = [array[:whole].reshape(-1, size, *array.shape[1:]) for array in arrays]
    found = jax.lax.map(lambda some: function(*some), cut)
    found = jax.tree.map(lambda part: part.reshape(whole, *part.shape[2:]), found)
    if whole == rows:
        return found
    rest = function(*(array[whole:] for array in arrays))
    return jax.tree.map(lambda *both: jnp.concatenate(both), found, rest)


def row_sums(table: Array) -> Array:
    """Sums each row of [N, K] float32, [N], exactly where no sum reaches 2^24.

    A product with ones: the form of a sum that a CPU is quickest at.
    """
    ones = jnp.ones(table.shape[1], jnp.float32)
    # Elsewhere than on a CPU a product may round its factors.
    return jnp.dot(table, ones, precision=jax.lax.Precision.HIGHEST)


def count_true(marks: Array) -> Array:
    """Counts the true entries of [N], [] int32."""
    whole = marks.shape[0] // _LANES * _LANES
    sums = row_sums(marks[:whole].reshape(-1, _LANES).astype(jnp.float32)).astype(jnp.int32)
    return jnp.sum(sums) + jnp.sum(marks[whole:], dtype=jnp.int32)


def count_both(first: Array, second: Array) -> Array:
    """Counts the true entries of two arrays [N] in one pass, [2] int32."""
    # Of a group of 128 each count has 8 bits, and both fit the 24 of a float.
    whole = first.shape[0] // _LANES * _LANES
    pairs = first.astype(jnp.float32) + second.astype(jnp.float32) * _SECOND
    sums = jnp.concatenate([row_sums(pairs[:whole].reshape(-1, _LANES)), pairs[whole:]])
    sums = sums.astype(jnp.int32)
    return jnp.stack([jnp.sum(sums % _SECOND), jnp.sum(sums // _SECOND)])


def draw_of_row(key: Array, table: Array, rows: Array) -> Array:
    """Draws an entry of a table's row for each of some rows, uniformly.

    Args:
      key: a jax key.
      table: [U, R].
      rows: [...] int32, indices of rows, which may repeat.

    Returns:
      [...], as the table has them.
    """
    place = jax.random.randint(key, rows.shape, 0, table.shape[1])
    return table[rows, place]
