"""Uniform negatives that avoid the user's own training items, without rejection.

If ``s_0 < s_1 < ...`` are the user's distinct items, the kept item of rank r is ``r + 1`` plus the
number of j with ``s_j - j - 1 <= r``. The keys ``s_j - j - 1`` do not decrease, so a binary search
over a CSR table of them draws exactly uniformly in a fixed number of steps.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pdrec_jax.data.compressed import offsets_of
from pdrec_jax.data.scratch import Column, is_mapped, user_blocks
from pdrec_jax.errors import UserError


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ComplementTable:
    """The keys of every user's items.

    Attributes:
      offsets: [U+1] CSR, int32, on the host int64.
      keys: [N] int32, non-decreasing within a user.
      num_items: I.
      steps: of the binary search, static.
    """

    offsets: Array
    keys: Array
    num_items: int = dataclasses.field(metadata={"static": True})
    steps: int = dataclasses.field(metadata={"static": True})


def complement_table(
    offsets: np.ndarray,
    items: np.ndarray,
    num_items: int,
    *,
    user_ids: Sequence[Any] | np.ndarray | None = None,
    on_host: bool = False,
) -> ComplementTable:
    """Builds the table on the host.

    Args:
      offsets: [U+1], CSR.
      items: [E] int32; those above I are none that could be drawn.
      num_items: I.
      user_ids: [U] by which the error names a user; None for the place, counted from 0.
      on_host: leave the arrays there; the keys of items that are mapped are mapped too.

    Raises:
      UserError: a user has interacted with all items, so there is nothing to draw.
    """
    if on_host and is_mapped(items):
        column, parts = Column(np.int32), []
        for first, last in user_blocks(offsets):
            events = slice(offsets[first], offsets[last])
            some, own = _keys(offsets[first : last + 1] - events.start, items[events], num_items)
            parts.append(some)
            column.add(own)
        counts, keys = np.concatenate(parts), column.finish()
    else:
        counts, keys = _keys(offsets, items, num_items)
    if counts.max(initial=0) >= num_items:
        user = int(counts.argmax())
        name = f"{user} (counted from 0)" if user_ids is None else user_ids[user]
        raise UserError(
            f"negatives: user {name} has interacted with all {num_items} items, "
            "so that no negative is left; a larger catalogue is needed"
        )
    starts = offsets_of(counts)
    array: Any = np.asarray if on_host else jnp.asarray
    return ComplementTable(
        # On the host there may be more events than 32 bits count.
        array(starts, np.int64 if on_host else np.int32),
        array(keys if len(keys) else np.zeros(1), np.int32),
        num_items,
        int(counts.max(initial=0)).bit_length(),
    )


def _keys(offsets: np.ndarray, items: np.ndarray, num_items: int) -> tuple[np.ndarray, np.ndarray]:
    """How many distinct items each user has, [U], and the keys of all of them, [N]."""
    users = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    if items.max(initial=0) > num_items:
        users, items = users[items <= num_items], items[items <= num_items]
    pairs = np.unique(users.astype(np.int64) * (num_items + 1) + items)
    users, items = pairs // (num_items + 1), pairs % (num_items + 1)
    counts = np.bincount(users, minlength=len(offsets) - 1)
    starts = np.cumsum(counts) - counts
    return counts, items - 1 - (np.arange(len(items)) - starts[users])


def _middle(low: Array, high: Array) -> Array:
    """Half way from `low` to `high`, whose sum may be beyond int32."""
    return low + (high - low) // 2


def draw_outside(key: Array, table: ComplementTable, users: Array) -> Array:
    """Draws one item for each position, uniform over what the user has not interacted with.

    Args:
      key: a jax key.
      table: see ``complement_table``.
      users: [...] int32.

    Returns:
      [...] int32 in 1..I.
    """
    begin, end = table.offsets[users], table.offsets[users + 1]
    rank = jax.random.randint(key, users.shape, 0, table.num_items - (end - begin))
    low, high = begin, end
    for _ in range(table.steps):
        middle = _middle(low, high)
        inside = (low < high) & (table.keys[jnp.minimum(middle, end - 1)] <= rank)
        low = jnp.where(inside, middle + 1, low)
        high = jnp.where(inside, high, middle)
    return rank + 1 + (low - begin)
