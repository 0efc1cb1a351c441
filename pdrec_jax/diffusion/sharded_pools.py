"""The pools of ``preferences`` cut from scores that are split over a mesh.

Items of a user are ordered as ``selection`` orders them. A device sees its part of the catalogue
alone: what crosses the network is counts, M candidates of each part, and ids.

Letters: b users and i items a device.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, PartitionSpec

from pdrec_jax.diffusion.redraw import packed, unpacked
from pdrec_jax.diffusion.selection import (
    MASKED,
    draw_subset,
    nth_true,
    pack_bits,
    sortable,
    top,
)
from pdrec_jax.sharding import DATA, MODEL, axis, held_columns, spread

if TYPE_CHECKING:
    from pdrec_jax.diffusion.preferences import PoolRules

KEY_BITS = 32


class _Cut(NamedTuple):
    """``selection.Threshold`` of several rows: [b] each, ``key`` uint32."""

    key: Array
    column: Array

    def before(self, keys: Array, columns: Array) -> Array:
        """Whether items rank before the cut; arrays [b, ...]."""
        key, column = self.key[:, None], self.column[:, None]
        return (keys > key) | ((keys == key) & (columns < column))


def _ordered(scores: Array) -> Array:
    """Maps scores to uint32 that order in the same way; 0 is below every finite score."""
    return jax.lax.bitcast_convert_type(sortable(scores) ^ MASKED, jnp.uint32)


def _count(marks: Array) -> Array:
    """Counts the true entries of rows over all parts, [b] int32."""
    return jax.lax.psum(jnp.sum(marks, axis=1, dtype=jnp.int32), MODEL)


def rank_cut(keys: Array, columns: Array, rank: Array, total: int) -> _Cut:
    """Within ``shard_map``: the cut of rows that has ``rank`` [b] items before it.

    Bit by bit, the largest key is found that more than ``rank`` keys reach; among those equal to
    it, the column.

    Args:
      keys: [b, i] uint32, 0 for what takes no part.
      columns: [i] int32, of the whole row.
      rank: [b] int32, below a row's number of keys that are not 0.
      total: above every column.
    """

    def narrow(step: Array, found: Array) -> Array:
        guess = found | (jnp.uint32(1) << (KEY_BITS - 1 - step).astype(jnp.uint32))
        return jnp.where(_count(keys >= guess[:, None]) > rank, guess, found)

    key = jax.lax.fori_loop(0, KEY_BITS, narrow, jnp.zeros(rank.shape, jnp.uint32))
    skip = rank - _count(keys > key[:, None])
    equal, bits = keys == key[:, None], total.bit_length()

    def forward(step: Array, found: Array) -> Array:
        guess = found + (1 << (bits - 1 - step))
        fewer = _count(equal & (columns[None, :] < guess[:, None])) <= skip
        return jnp.where(fewer, guess, found)

    return _Cut(key, jax.lax.fori_loop(0, bits, forward, jnp.zeros_like(rank)))


def _mask(keys: Array, items: Array, first: Array, value: Array | float) -> Array:
    """Writes a value at items [b, K] of parts [b, i] that begin with the item ``first``."""
    width = keys.shape[1]
    place = items - first
    place = jnp.where((items > 0) & (place >= 0) & (place < width), place, width)
    return keys.at[jnp.arange(len(keys))[:, None], place].set(value, mode="drop")


def _pool(
    keys: Array, columns: Array, first: Array, excluded: Array, rules: PoolRules, num_items: int
) -> Array:
    """``preferences.negative_pool`` of a part: marks [b, i]."""
    open_keys = _mask(keys, excluded, first, jnp.uint32(0))
    left = num_items - jnp.sum(excluded > 0, axis=1, dtype=jnp.int32)
    total = num_items + 1
    if rules.ranks_among_all:
        begin = int(num_items * rules.first_fraction)
        width = -int(-num_items * rules.last_fraction // 1) - begin
        cut = rank_cut(keys, columns, jnp.full_like(left, begin), total)
        # One device holds the key of an item, the others add 0.
        taken = jax.lax.psum(held_columns(keys, excluded), MODEL)
        ahead = jnp.sum((excluded > 0) & cut.before(taken, excluded), axis=1, dtype=jnp.int32)
        end = jnp.minimum(begin - ahead + width, left)
    else:
        share = left.astype(jnp.float32)
        safe = (share * rules.first_fraction).astype(jnp.int32)
        end = jnp.ceil(share * rules.last_fraction).astype(jnp.int32)
        cut = rank_cut(open_keys, columns, jnp.minimum(safe, left - 1), total)
    after = ~cut.before(keys, columns[None, :]) & (open_keys > 0)
    if rules.last_fraction < 1:
        stop = rank_cut(open_keys, columns, jnp.minimum(end, left - 1), total)
        after = after & (stop.before(open_keys, columns[None, :]) | (end >= left)[:, None])
    return after


def _top(scores: Array, first: Array, count: int) -> Array:
    """The ids of the ``count`` highest scores over all parts, best first, [b, count] int32."""
    scores = jnp.where(scores == 0, 0.0, scores)  # -0 is no lower
    own = jax.vmap(lambda row: top(row, min(count, scores.shape[1])))(scores)
    values = jnp.take_along_axis(scores, own, axis=1)
    # The parts lie in the order of ids, so that of equal scores the lower id comes first.
    values, ids = (
        jax.lax.all_gather(part, MODEL, axis=1, tiled=True) for part in (values, first + own)
    )
    _, place = jax.lax.top_k(values, count)
    return jnp.take_along_axis(ids, place, axis=1)


def _nth(marks: Array, first: Array, ordinals: Array) -> Array:
    """The ids of the n-th marks [b, R] over all parts."""
    own = jnp.sum(marks, axis=1, dtype=jnp.int32)
    counts = jax.lax.all_gather(own, MODEL)
    earlier = jnp.arange(len(counts)) < jax.lax.axis_index(MODEL)
    left = ordinals - jnp.sum(jnp.where(earlier[:, None], counts, 0), axis=0)[:, None]
    mine = (left >= 0) & (left < own[:, None])
    found = first + nth_true(jax.vmap(pack_bits)(marks), jnp.where(mine, left, 0))
    return jax.lax.psum(jnp.where(mine, found, 0), MODEL)


@functools.partial(jax.jit, static_argnums=(0, 7, 8))
def cut_block_on(
    mesh: Mesh,
    scores: Array,
    events: Array,
    seen: Array,
    excluded: Array,
    key: Array,
    users: Array,
    rules: PoolRules,
    num_items: int,
) -> tuple[Array, ...]:
    """Cuts the pools of a block of users, and picks the scores that stay.

    Args:
      mesh: of the devices.
      scores: [B, >= I + 1], column i for item i, on both axes.
      events: [B, K] int32, whose scores are wanted.
      seen: see ``preferences.cut_pools``.
      excluded: see there.
      key: of the draws.
      users: [B] int32; a draw depends on the key and the user.
      rules: static.
      num_items: I.

    Returns:
      candidates, negatives and sizes as ``preferences.cut_pools``, then scores of the events [B, K]
      and of slot 0 [B], and the pools for ``joined_parts``, without a column where they do not
      stay; the same on every device.
    """

    def own(
        scores: Array, events: Array, seen: Array, excluded: Array, key_data: Array
    ) -> tuple[Array, ...]:
        width = scores.shape[1]
        first = jax.lax.axis_index(MODEL).astype(jnp.int32) * width
        columns = first + jnp.arange(width, dtype=jnp.int32)
        is_item = ((columns >= 1) & (columns <= num_items))[None, :]
        keys = jnp.where(is_item, _ordered(scores), jnp.uint32(0))
        marks = _pool(keys, columns, first, excluded, rules, num_items)
        sizes = _count(marks)
        draws = jax.random.wrap_key_data(key_data)
        ordinals = draw_subset(draws, jnp.maximum(sizes, 1), rules.negatives, num_items)
        negatives = _nth(marks, first, ordinals)
        ranked = jnp.where(is_item, scores, -jnp.inf)
        if rules.candidates_unobserved:
            ranked = _mask(ranked, seen, first, -jnp.inf)
        observed = jax.lax.psum(held_columns(scores, events), MODEL)
        padding = jax.lax.psum(held_columns(scores, jnp.zeros_like(events[:, :1])), MODEL)
        pools = jnp.zeros((len(marks), 0), jnp.uint32)
        if rules.whole_pools:
            pools = jax.lax.all_gather(jax.vmap(pack_bits)(marks), MODEL, axis=1, tiled=True)
        candidates = _top(ranked, first, rules.candidates)
        return candidates, negatives, sizes, observed, padding[:, 0], pools

    keys = jax.random.key_data(jax.vmap(lambda user: jax.random.fold_in(key, user))(users))
    by_user = PartitionSpec(DATA)
    parts = jax.shard_map(
        own,
        mesh=mesh,
        in_specs=(PartitionSpec(DATA, MODEL), *[by_user] * 4),
        out_specs=(by_user,) * 6,
        check_vma=False,
    )(scores, events, seen, excluded, keys)
    candidates, negatives, sizes, observed, padding, pools = spread(parts, mesh)
    return candidates, negatives, sizes, observed, padding, pools


def joined_parts(pools: np.ndarray, columns: int, mesh: Mesh, num_items: int) -> np.ndarray:
    """Joins the pools that the devices along ``model`` have packed, each its own columns.

    Args:
      pools: [B, n W'] uint32, from ``cut_block_on``.
      columns: of the scores that were cut, on n devices.
      mesh: of the devices.
      num_items: I.

    Returns:
      [B, W] uint32, see ``preferences.Preferences``.
    """
    parts = axis(mesh, MODEL)
    width = columns // parts
    marks = [unpacked(part, width) for part in np.split(pools, parts, axis=1)]
    return packed(np.concatenate(marks, axis=1)[:, 1 : num_items + 1])
