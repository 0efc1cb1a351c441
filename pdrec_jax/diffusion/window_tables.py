"""Tables of the denoiser within an epoch on windows: a step reads and moves some of their rows.

A step on ``windows`` reads the rows of the head, a window of neighbouring rows, and those of a few
items besides. The head's rows are kept in arrays of their own, which every step moves whole; of the
others a row waits until it is next read (``row_adam``).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from pdrec_jax.diffusion.windows import Head, TableRows, place_in
from pdrec_jax.row_adam import (
    AdamW,
    Rows,
    Table,
    Tails,
    caught_up,
    close_table,
    moved,
    open_table,
    read_rows,
    settle,
    write_rows,
)


class WindowTable(NamedTuple):
    """A table within an epoch.

    Attributes:
      head: its rows [K, H], up to date.
      rest: all rows; those of the head mean nothing.
      late: rows [W, H] of the last step's window that are not written yet, see ``row_adam.Table``.
      begin: [] int32, where that window begins.
      held: [W] bool, which of those rows the window had: on a mesh it may lie beside a device's
        part, or over its edge; None for all.
    """

    head: Rows
    rest: Table
    late: Rows
    begin: Array
    held: Array | None = None


def open_window_table(
    rows: Rows, head: Head, step: Array, width: int, count: int, *, part: bool = False
) -> WindowTable:
    """Starts from a table [I, H] that is up to date with a step.

    Args:
      rows: the whole table.
      head: its slots.
      step: [] int32, steps done.
      width: W, of the windows.
      count: F, far tokens of a step.
      part: whether windows may have fewer rows than W, see ``WindowTable.held``.
    """
    step = jnp.asarray(step, jnp.int32)
    rest = open_table(rows, step, count)
    # The late window is as old as the step, which ``settle_window_table`` writes down.
    rest = rest._replace(late=rest.late._replace(step=step))
    return WindowTable(
        Rows(*(one[head.slots] for one in rows)),
        rest,
        Rows(*(one[:width] for one in rows)),
        jnp.zeros((), jnp.int32),
        jnp.zeros(width, bool) if part else None,
    )


def settle_window_table(table: WindowTable) -> WindowTable:
    """Writes what the last step changed; before anything else of a step."""
    rest, width, held = settle(table.rest), table.late.values.shape[0], table.held

    def put(old: Array, rows: Array) -> Array:
        if held is not None:
            stay = jax.lax.dynamic_slice_in_dim(old, table.begin, width)
            rows = jnp.where(held.reshape(-1, *[1] * (rows.ndim - 1)), rows, stay)
        return jax.lax.dynamic_update_slice_in_dim(old, rows, table.begin, 0)

    values, first, second = (put(old, new) for old, new in zip(rest[:3], table.late, strict=True))
    age = put(rest.age, jnp.full(width, rest.late.step, jnp.int32))
    written = rest._replace(values=values, first=first, second=second, age=age)
    return table._replace(rest=written)


def _slice(table: Table, begin: Array, width: int) -> tuple[Rows, Array]:
    """A window's rows as they were left, and their ages."""
    *parts, age = (
        jax.lax.dynamic_slice_in_dim(part, begin, width)
        for part in (table.values, table.first, table.second, table.age)
    )
    return Rows(*parts), age


def read_window_table(
    adam: AdamW,
    table: WindowTable,
    begin: Array,
    width: int,
    far: Array,
    step: Array,
    tail: Tails,
) -> TableRows:
    """Reads what a step needs, as it is after a step.

    Args:
      adam: its constants.
      table: settled; rows of it may be behind.
      begin: [] int32, of the window.
      width: of the window.
      far: [F] int32.
      step: [] int32, steps done.
      tail: of ``row_adam.tails``.
    """
    window, age = _slice(table.rest, begin, width)
    return TableRows(
        table.head.values,
        caught_up(adam, window, age, step, tail).values,
        read_rows(adam, table.rest, far, step, tail).values,
    )


def write_window_table(
    adam: AdamW,
    table: WindowTable,
    begin: Array,
    far: Array,
    gradient: TableRows,
    step: Array,
    rate: Array,
    tail: Tails,
    *,
    times: int = 1,
    held: Array | None = None,
) -> WindowTable:
    """Takes a step with the gradient of the rows that were read.

    Where the window's gradient is seen in one of n steps only and counts n times then, its square
    would be n times too large on average, and Adam slow. With G a row's gradient and P the window's
    part of it, the second moment gets ``(G - P + P/n)^2 + (n - 1) (P/n)^2``: its mean is that of a
    gradient seen whole in every step, but for the product of the two parts.

    Args:
      adam: its constants.
      table: settled, after ``step - 1`` steps.
      begin: [] int32, of the window.
      far: [F] int32, slots; one may occur several times, and in the window too. I is
        none, with a gradient of 0.
      gradient: of all rows that were read; those of one row add up.
      step: [] int32, from 1.
      rate: [] learning rate.
      tail: of ``row_adam.tails``.
      times: n.
      held: see ``WindowTable``.
    """
    head = moved(adam, table.head, gradient.head, jnp.square(gradient.head), step, rate)
    width = gradient.window.shape[0]
    place = place_in(begin, width, far)
    if held is not None:
        place = jnp.where(held[jnp.minimum(place, width - 1)], place, width)
    total = gradient.window.at[place].add(gradient.far, mode="drop")
    square = jnp.square(total)
    if times > 1:
        part = gradient.window / times
        square = jnp.square(total - (times - 1) * part) + (times - 1) * jnp.square(part)
    window, age = _slice(table.rest, begin, width)
    late = moved(adam, caught_up(adam, window, age, step - 1, tail), total, square, step, rate)
    old = read_rows(adam, table.rest, far, step - 1, tail)
    inside = place < width
    rest = write_rows(adam, table.rest, far, old, gradient.far, step, rate, left_out=inside)
    return WindowTable(head, rest, late, begin, held)


def close_window_table(
    adam: AdamW, table: WindowTable, head: Head, step: Array, tail: Tails
) -> Rows:
    """Brings all rows up to date with a step, [I, H]."""
    rows = close_table(adam, settle_window_table(table).rest, step, tail)
    return Rows(*(part.at[head.slots].set(new) for part, new in zip(rows, table.head, strict=True)))
