"""Rows of which nothing is read but the state after each history's last event.

So it is in evaluation, for DPA's picks and for CL4SRec's views: what is above the keys and values
of an encoder's last block is then needed once a history and not once a cell.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array


class Ends(NamedTuple):
    """Which rows of a group these are; static.

    Attributes:
      first: the first such row, and all behind it are.
      histories: the most that these rows hold.
    """

    first: int
    histories: int


class Slots(NamedTuple):
    """A slot for each history of some rows, in the order in which they lie.

    Attributes:
      of_cell: [C] int32, S in an empty cell.
      last: [S] int32, the cell of a history's last event; 0 in a slot without a history.
    """

    of_cell: Array
    last: Array


def slots_of(segment: Array, occupied: Array, histories: int) -> Slots:
    """Numbers the histories of some rows.

    Args:
      segment: [R, L] int32, see ``layers.Rows``.
      occupied: [R, L] bool.
      histories: S, the most that the rows hold.
    """
    before = jnp.where(occupied, segment, -1)[:, :-1]
    before = jnp.pad(before, ((0, 0), (1, 0)), constant_values=-1)
    begins = occupied & (before != segment)
    number = jnp.cumsum(begins.reshape(-1), dtype=jnp.int32) - 1
    of_cell = jnp.where(occupied.reshape(-1), number, histories)
    cells = jnp.arange(of_cell.size, dtype=jnp.int32)
    last = jnp.zeros(histories, jnp.int32).at[of_cell].max(cells, mode="drop")
    return Slots(of_cell, last)


def to_cells(values: Array, slots: Slots) -> Array:
    """Gives each cell what its history has, [C, ...] from [S, ...]; an empty one any history's."""
    return values[jnp.minimum(slots.of_cell, len(values) - 1)]


def sum_of_cells(values: Array, slots: Slots) -> Array:
    """Sums over the cells of each history, [S, ...] from [C, ...]."""
    return jax.ops.segment_sum(values, slots.of_cell, len(slots.last))


def most_of_cells(values: Array, slots: Slots) -> Array:
    """Takes the largest over the cells of each history, [S, ...]; -inf where there is none."""
    return jax.ops.segment_max(values, slots.of_cell, len(slots.last))
