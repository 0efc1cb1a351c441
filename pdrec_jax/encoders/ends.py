"""Rows of which nothing is read but the state after each history's last event.

So it is in evaluation, for DPA's picks and for CL4SRec's views: what is above the keys and values
of an encoder's last block is then needed once a history and not once a cell.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Ends:
    """Which rows of a group these are.

    Attributes:
      first: the first such row, and all behind it are.
      histories: the most that these rows hold.
    """

    first: int
    histories: int


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Slots:
    """A slot for each history of some rows, in the order in which they lie.

    Attributes:
      of_cell: [C] int32, S in an empty cell, above S where there are more histories than slots.
      last: [S] int32, the cell of a history's last event; 0 in a slot without a history.
      first: the row of the group with which they begin.
      length: L of a row.
    """

    of_cell: Array
    last: Array
    first: int = dataclasses.field(metadata={"static": True})
    length: int = dataclasses.field(metadata={"static": True})

    @property
    def cells(self) -> Array:
        """The cells of ``last`` among those of the whole group, [S] int32."""
        return self.first * self.length + self.last

    def weights_of(self, heads: int) -> tuple[Array, Array]:
        """Where the weights of the ends' attention lie among those of the whole group's.

        Args:
          heads: N.

        Returns:
          for each weight [C, N], by which an end attends to a cell, its row and its column in a
          table [R N L, L] of the weights of all cells.
        """
        cells = jnp.arange(self.of_cell.size, dtype=jnp.int32)
        rows = (self.first + cells // self.length)[:, None] * heads + jnp.arange(heads)[None, :]
        ends = to_cells(self.last % self.length, self)
        columns = jnp.broadcast_to((cells % self.length)[:, None], rows.shape)
        return rows * self.length + ends[:, None], columns


def slots_of(segment: Array, occupied: Array, ends: Ends) -> Slots:
    """Numbers the histories of the rows that are read at ends.

    Args:
      segment: [R, L] int32, of the whole group, see ``layers.Rows``.
      occupied: [R, L] bool.
      ends: which rows.
    """
    segment, occupied = segment[ends.first :], occupied[ends.first :]
    length = segment.shape[1]
    columns = jnp.broadcast_to(jnp.arange(1, length + 1, dtype=jnp.int32)[None, :], segment.shape)
    other = jnp.pad(segment[:, 1:] != segment[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    begin = jax.lax.cummax(jnp.where(other, columns, 0), axis=1)
    seen = jax.lax.cummax(jnp.where(occupied, columns, 0), axis=1)
    # The first occupied cell of a history: an own view may leave others before and behind it empty.
    first = occupied & (jnp.pad(seen[:, :-1], ((0, 0), (1, 0))) < begin)
    number = jnp.cumsum(first.reshape(-1), dtype=jnp.int32) - 1
    number = number + (number >= ends.histories).astype(jnp.int32)
    of_cell = jnp.where(occupied.reshape(-1), number, ends.histories)
    cells = jnp.arange(of_cell.size, dtype=jnp.int32)
    last = jnp.zeros(ends.histories, jnp.int32).at[of_cell].max(cells, mode="drop")
    return Slots(of_cell, last, ends.first, length)


def to_cells(values: Array, slots: Slots) -> Array:
    """Gives each cell what its history has, [C, ...] from [S, ...]; an empty one any history's."""
    return values[jnp.minimum(slots.of_cell, len(values) - 1)]


def sum_of_cells(values: Array, slots: Slots) -> Array:
    """Sums over the cells of each history, [S, ...] from [C, ...]."""
    return jax.ops.segment_sum(values, slots.of_cell, len(slots.last))


def most_of_cells(values: Array, slots: Slots) -> Array:
    """Takes the largest over the cells of each history, [S, ...]; -inf where there is none."""
    return jax.ops.segment_max(values, slots.of_cell, len(slots.last))
