"""What the diffusion stage passes to the encoder stage (docs/design.md, "Preferences").

All items are scored for a block of users at a time; kept are M candidates for DPA, R negatives for
NNS and the scores of the observed items for HBR: O(U (M + R) + E) numbers instead of [U, I]. Where
negatives are to be drawn anew, the pools they are from are kept too, a bit an item. Where source
items are not learnt (``Split.learns_source``), both pools are of the target's alone.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from pdrec_jax.checkpoints import Store
from pdrec_jax.data import scratch
from pdrec_jax.data.batches import blocks
from pdrec_jax.data.splits import Split
from pdrec_jax.diffusion.redraw import words
from pdrec_jax.diffusion.selection import (
    MASKED,
    draw_subset,
    nth_true,
    pack_bits,
    rank_threshold,
    sortable,
    top,
)
from pdrec_jax.diffusion.sharded_pools import cut_block_on, joined_parts
from pdrec_jax.errors import UserError
from pdrec_jax.evaluation.ranking import common_width, distinct_rows
from pdrec_jax.rows import by_rows, count_true
from pdrec_jax.sharding import DATA, axis, round_up

_T = TypeVar("_T")
# From users [B] to scores [B, >= I + 1], column i for item i.
ScoreBlocks = Callable[[np.ndarray], Array]


@dataclasses.dataclass(frozen=True, eq=False)
class Preferences:
    """The preferences of U users, aligned with a ``Split``.

    Attributes:
      users: [U] bool, who has them; rows of the others are zero.
      candidates: [U, M] int32, the items ranked highest, best first.
      negatives: [U, R] int32, drawn from the low ranks without replacement.
      observed: [E] float32, score of each training event's item.
      padding: [U] float32, score of slot 0, which ``plugins.hbr`` needs for its shifted floor.
      pools: [U, W] uint32, all that the negatives were drawn from, item i in bit i - 1, see
        ``redraw``; None where they are drawn once.
    """

    users: np.ndarray
    candidates: np.ndarray
    negatives: np.ndarray
    observed: np.ndarray
    padding: np.ndarray
    pools: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class PoolRules:
    """How the pools are cut out of a ranking.

    Attributes:
      candidates: M.
      candidates_unobserved: M of the unobserved items, or of all (the public code).
      negatives: R.
      first_fraction: omega_m, the share of the ranking that is too likely to be negative.
      last_fraction: where the pool would end if nothing of it were excluded. An item that is
        makes room for one that ranks lower, so that every user's pool is as large. 0.99 in the
        public code.
      ranks_among_all: the fractions are of all I items (the public code), or of the unobserved
        ones (Eq. 3).
      whole_pools: keep the pools of negatives themselves as well, U I / 8 bytes.
    """

    candidates: int
    candidates_unobserved: bool
    negatives: int
    first_fraction: float
    last_fraction: float
    ranks_among_all: bool
    whole_pools: bool = False


def cut_pools(
    scores: Array, seen: Array, excluded: Array, keys: Array, rules: PoolRules, num_items: int
) -> tuple[Array, Array, Array, Array]:
    """Cuts the pools of a block of users.

    Args:
      scores: [B, >= I + 1], column i for item i; those behind I take no part.
      seen: [B, K] int32, distinct observed items of 1..I, 0 where there are fewer.
      excluded: [B, K'] int32, distinct items that cannot be negatives, likewise.
      keys: [B] jax keys, of each user's draw.
      rules: static.
      num_items: I.

    Returns:
      candidates [B, M] and negatives [B, R], item ids, int32; sizes [B] int32 of the pools that the
      negatives were drawn from, and these pools [B, W] uint32, see ``Preferences``. Negatives of an
      empty pool mean nothing.
    """

    def cut(scores: Array, seen: Array, excluded: Array) -> tuple[Array, Array, Array]:
        # Here, where a row is in the cache, and not of the whole block.
        scores = scores[1 : num_items + 1]
        pool = pack_bits(negative_pool(scores, excluded, rules)[0])
        if rules.candidates_unobserved:
            place = jnp.where(seen > 0, seen - 1, num_items)
            scores = scores.at[place].set(-jnp.inf, mode="drop")
        size = jnp.sum(jax.lax.population_count(pool).astype(jnp.int32))
        return pool, size, top(scores, rules.candidates) + 1

    pools, sizes, candidates = by_rows(cut, scores, seen, excluded)
    ordinals = draw_subset(keys, jnp.maximum(sizes, 1), rules.negatives, num_items)
    return candidates, nth_true(pools, ordinals) + 1, sizes, pools


def negative_pool(scores: Array, excluded: Array, rules: PoolRules) -> tuple[Array, Array]:
    """Marks a user's items that are safely negative (PDRec, 2024, Eq. 3).

    Args:
      scores: [I] of items 1..I.
      excluded: [K'], see ``cut_pools``.
      rules: static.

    Returns:
      a mask [I] and its sum [] int32.
    """
    num_items = scores.shape[0]
    keys = sortable(scores)
    columns = jnp.arange(num_items, dtype=jnp.int32)
    place = jnp.where(excluded > 0, excluded - 1, num_items)
    open_keys = keys.at[place].set(MASKED, mode="drop")
    left = num_items - jnp.sum(excluded > 0, dtype=jnp.int32)
    if rules.ranks_among_all:
        begin = int(num_items * rules.first_fraction)
        width = -int(-num_items * rules.last_fraction // 1) - begin
        cut = rank_threshold(keys, jnp.int32(begin), jnp.int32(num_items))
        taken = keys[jnp.minimum(place, num_items - 1)]
        ahead = jnp.sum((excluded > 0) & cut.before(taken, place), dtype=jnp.int32)
        end = jnp.minimum(begin - ahead + width, left)
    else:
        share = left.astype(jnp.float32)
        first = (share * rules.first_fraction).astype(jnp.int32)
        end = jnp.ceil(share * rules.last_fraction).astype(jnp.int32)
        cut = rank_threshold(open_keys, jnp.minimum(first, left - 1), left)
    after = ~cut.before(keys, columns) & (open_keys != MASKED)
    if rules.last_fraction < 1:
        stop = rank_threshold(open_keys, jnp.minimum(end, left - 1), left)
        after = after & (stop.before(open_keys, columns) | (end >= left))
    return after, count_true(after)


@functools.partial(jax.jit, static_argnums=(6, 7))
def _cut_block(
    scores: Array,
    events: Array,
    seen: Array,
    excluded: Array,
    key: Array,
    users: Array,
    rules: PoolRules,
    num_items: int,
) -> tuple[Array, ...]:
    """Cuts the pools and picks the scores that stay: of the events [B, K] and of slot 0 [B].

    The pools themselves come last, without a column where they do not stay.
    """
    observed = jnp.take_along_axis(scores, events, axis=1)
    keys = jax.vmap(lambda user: jax.random.fold_in(key, user))(users)
    *cut, pools = cut_pools(scores, seen, excluded, keys, rules, num_items)
    return (*cut, observed, scores[:, 0], pools if rules.whole_pools else pools[:, :0])


def require_room(
    split: Split, users: np.ndarray, rules: PoolRules, *, exclude_heldout: bool = False
) -> None:
    """Checks that a catalogue holds M items that a user has not seen, for every user.

    Where the candidates are of all items, one for the negatives is enough.

    Args:
      split: the data.
      users: [U] bool, who gets preferences.
      rules: how the pools are cut.
      exclude_heldout: negatives leave out the validation and test item too.

    Raises:
      UserError: it is too small.
    """
    train, num_items = split.train, split.num_learnt_items
    wanted = rules.candidates if rules.candidates_unobserved else 0

    def too_small(field: str, need: str, user: np.intp, seen: int) -> UserError:
        return UserError(
            f"config.{field}: {need}, but user {train.user_ids[user]} has seen {seen} of "
            f"{num_items} items"
        )

    # A log may repeat items, so only of long histories is it counted how many there are.
    for user in np.flatnonzero(users & (train.lengths + 2 > num_items - max(wanted, 1))):
        own = train.items[train.offsets[user] : train.offsets[user + 1]]
        seen = np.unique(own[own <= num_items])
        if num_items - len(seen) < wanted:
            need = f"{wanted} candidates are wanted"
            raise too_small("dpa.coarse", need, user, len(seen))
        if exclude_heldout:
            seen = np.union1d(seen, [split.valid_items[user], split.test_items[user]])
        if len(seen) == num_items:
            raise too_small("nns.first_fraction", "a negative is wanted", user, len(seen))
    if rules.candidates > num_items:
        raise UserError(
            f"config.dpa.coarse: {rules.candidates} candidates are wanted of {num_items} items"
        )


def compute_preferences(
    score_blocks: ScoreBlocks,
    split: Split,
    users: np.ndarray,
    rules: PoolRules,
    *,
    exclude_heldout: bool,
    seed: int,
    block: int,
    advance: Callable[[int], Any] = lambda count: None,
    mesh: Mesh | None = None,
) -> Preferences:
    """Scores all items for the given users, block by block, and keeps what the plugins need.

    Args:
      score_blocks: scores of a block of users; anything that ranks a catalogue will do.
      split: the data.
      users: [U] bool.
      rules: how the pools are cut.
      exclude_heldout: negatives leave out the validation and test item too.
      seed: of the draws.
      block: users at a time; every block has this size.
      advance: called with the number of users done.
      mesh: that the scores lie on, users on ``data`` and items on ``model``; None for one device.

    Raises:
      UserError: the catalogue is too small for M, a user's pool of negatives is empty, or a score
        is not finite.
    """
    train = split.train
    num_items, index = split.num_learnt_items, np.flatnonzero(users)
    require_room(split, users, rules, exclude_heldout=exclude_heldout)
    zeros = scratch.zeros if train.mapped else np.zeros
    pools = None
    if rules.whole_pools:
        width = words(num_items)
        pools = zeros(train.num_users * width, np.uint32).reshape(train.num_users, width)
    out = Preferences(
        np.array(users, bool),
        np.zeros((train.num_users, rules.candidates), np.int32),
        np.zeros((train.num_users, rules.negatives), np.int32),
        zeros(train.num_events, np.float32),
        np.zeros(train.num_users, np.float32),
        pools,
    )
    width = common_width(train.offsets, index)
    key = jax.random.key(seed)
    block = round_up(block, axis(mesh, DATA))
    cut = _cut_block if mesh is None else functools.partial(cut_block_on, mesh)

    def dispatched() -> Iterator[tuple[np.ndarray, int, tuple[Array, ...]]]:
        for number, rows in enumerate(blocks(index, block)):
            events = _event_rows(train.offsets, train.items, rows, width)
            seen = distinct_rows(train.offsets, train.items, rows, width)
            seen = np.where(seen <= num_items, seen, 0)
            excluded = seen
            if exclude_heldout:
                held = np.stack([split.valid_items[rows], split.test_items[rows]], axis=1)
                excluded = _add_distinct(seen, held)
            scores = score_blocks(rows)
            parts = cut(scores, events, seen, excluded, key, rows, rules, num_items)
            columns = scores.shape[1]
            del scores  # before the next block's are made
            yield index[number * block :][:block], columns, parts

    for real, columns, parts in _one_ahead(dispatched()):
        candidates, negatives, sizes, observed, padding, whole = (
            part[: len(real)] for part in jax.device_get(parts)
        )
        if not sizes.all():
            raise UserError(
                f"config.nns.first_fraction: {rules.first_fraction:g} leaves user "
                f"{train.user_ids[real[np.argmin(sizes)]]} no item of {num_items:,} that is safely "
                "negative"
            )
        if not np.isfinite(observed).all():
            raise UserError("preferences: a score is not finite, the model behind them diverged")
        out.candidates[real], out.negatives[real] = candidates, negatives
        out.padding[real] = padding
        if pools is not None:
            if mesh is not None:
                whole = joined_parts(whole, columns, mesh, num_items)
            pools[real] = whole
        lengths = train.offsets[real + 1] - train.offsets[real]
        within = np.arange(width)[None, :] < lengths[:, None]
        target = (train.offsets[:-1][real][:, None] + np.arange(width)[None, :])[within]
        out.observed[target] = observed[within]
        advance(len(real))
    return out


def _one_ahead(made: Iterator[_T]) -> Iterator[_T]:
    """Yields each when the next is made too: the device works on that one meanwhile."""
    waiting: list[_T] = []
    for one in made:
        waiting.append(one)
        if len(waiting) > 1:
            yield waiting.pop(0)
    yield from waiting


def _event_rows(
    offsets: np.ndarray, items: np.ndarray, users: np.ndarray, width: int
) -> np.ndarray:
    """The training events of some users in log order, [B, width], padded with 0."""
    index = offsets[:-1][users][:, None] + np.arange(width)[None, :]
    inside = index < offsets[1:][users][:, None]
    return np.where(inside, items[np.minimum(index, max(len(items) - 1, 0))], 0).astype(np.int32)


def _add_distinct(table: np.ndarray, more: np.ndarray) -> np.ndarray:
    """Appends the columns of ``more`` [B, 2] to the distinct ids of ``table``, 0 where known."""
    for column in range(more.shape[1]):
        value = more[:, column : column + 1]
        known = (table == value).any(axis=1, keepdims=True)
        table = np.concatenate([table, np.where(known, 0, value).astype(np.int32)], axis=1)
    return table


def save_preferences(store: Store, preferences: Preferences, meta: dict[str, Any]) -> None:
    """Saves preferences; ``meta`` says what they were computed from."""
    store.save("preferences", 1, _tree(preferences), meta)


def load_preferences(store: Store, split: Split, rules: PoolRules) -> Preferences:
    """Loads preferences of a split.

    Raises:
      UserError: none saved, or those of other data or other pool sizes.
    """
    users, events = split.train.num_users, split.train.num_events
    like = {
        "users": jax.ShapeDtypeStruct((users,), np.bool_),
        "candidates": jax.ShapeDtypeStruct((users, rules.candidates), np.int32),
        "negatives": jax.ShapeDtypeStruct((users, rules.negatives), np.int32),
        "observed": jax.ShapeDtypeStruct((events,), np.float32),
        "padding": jax.ShapeDtypeStruct((users,), np.float32),
    }
    if rules.whole_pools:
        like["pools"] = jax.ShapeDtypeStruct((users, words(split.num_learnt_items)), np.uint32)
    tree, _ = store.restore("preferences", like, on_host=True)
    return Preferences(**tree)


def identity(preferences: Preferences) -> str:
    """Tells preferences from others by what is in them, wherever and whenever they were saved."""
    digest = hashlib.sha256()
    for name, array in _tree(preferences).items():
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _tree(preferences: Preferences) -> dict[str, np.ndarray]:
    found = {f.name: getattr(preferences, f.name) for f in dataclasses.fields(preferences)}
    return {name: array for name, array in found.items() if array is not None}
