"""Adam on a table of embeddings at a cost of the rows that a step reads, not of the table.

A row without a gradient still moves under Adam (Kingma and Ba, 2015), by what is left of its first
moment. After a step s with moments m and v, k steps without a gradient move it by

    sum_{j=1..k} rate_{s+j} b1^j m / (1 - b1^{s+j}) / sqrt(b2^j v / (1 - b2^{s+j}))
      = m / sqrt(v) (G_s - r^k G_{s+k}),    r = b1 / sqrt(b2),
    G_n = sum_{j>=1} r^j rate_{n+j} sqrt(1 - b2^{n+j}) / (1 - b1^{n+j}),

a sum that depends on s and k alone. So a row may be left as it is until it is read, and is then
brought up to date in one go. Equal to Adam on the whole table, but for its epsilon, which counts
once and not in each of the k steps, and for rounding.

Letters: I rows, D width, n rows read by a step, some of them more than once.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

B1, B2, EPSILON = 0.9, 0.98, 1e-8  # the public code's
_RATIO = B1 / B2**0.5
_TAIL = 400  # r^400 is 3e-17


class Table(NamedTuple):
    """A table within an epoch.

    Attributes:
      values: [I, D].
      first: [I, D], first moment.
      second: [I, D], second moment.
      age: [I] int32, the step that a row is up to date with.
      place: [I] int32, scratch.
    """

    values: Array
    first: Array
    second: Array
    age: Array
    place: Array


class Read(NamedTuple):
    """Rows of a table, up to date; one entry for each time that a row is asked for.

    Attributes:
      ids: [n] int32.
      values: [n, D].
      first: [n, D].
      second: [n, D].
    """

    ids: Array
    values: Array
    first: Array
    second: Array

    def take(self, index: Array) -> Read:
        """Returns some of the entries."""
        return Read(*(part[index] for part in self))

    def join(self, other: Read) -> Read:
        """Returns the entries of both."""
        return Read(*(jnp.concatenate(parts) for parts in zip(self, other, strict=True)))


def tails(rates: np.ndarray) -> np.ndarray:
    """Computes G_0 .. G_N, [N + 1] float32.

    Args:
      rates: [N] learning rates of steps 1 .. N; the last one is taken to go on.
    """
    rates = np.asarray(rates, np.float64)
    steps = np.arange(1, len(rates) + _TAIL + 1)
    rates = np.concatenate([rates, np.full(_TAIL, rates[-1])])
    terms = rates * np.sqrt(1 - B2**steps) / (1 - B1**steps)
    out, tail = np.empty(len(terms) + 1), 0.0
    for number in range(len(terms), -1, -1):
        out[number] = tail
        if number:
            tail = _RATIO * (terms[number - 1] + tail)
    return out[: len(terms) + 1 - _TAIL].astype(np.float32)


def open_table(values: Array, first: Array, second: Array, step: Array) -> Table:
    """Starts from a table that is up to date with a step.

    Args:
      values: [I, D].
      first: [I, D].
      second: [I, D].
      step: [] int32, steps done.
    """
    rows = values.shape[0]
    age = jnp.full(rows, step, jnp.int32)
    return Table(values, first, second, age, jnp.zeros(rows, jnp.int32))


def _catch_up(read: Read, age: Array, step: Array, tail: Array) -> Read:
    missed = (step - age)[:, None].astype(jnp.float32)
    way = tail[age][:, None] - _RATIO**missed * tail[step]
    # A row that never had a gradient has moments of 0 and stays.
    values = read.values - way * read.first / (jnp.sqrt(read.second) + EPSILON)
    return Read(read.ids, values, read.first * B1**missed, read.second * B2**missed)


def read_rows(table: Table, ids: Array, step: Array, tail: Array) -> Read:
    """Reads rows as they are after a step.

    Args:
      table: of which rows may be behind.
      ids: [n] int32.
      step: [] int32, steps done.
      tail: of ``tails``.
    """
    read = Read(ids, table.values[ids], table.first[ids], table.second[ids])
    return _catch_up(read, table.age[ids], step, tail)


def write_rows(table: Table, read: Read, gradient: Array, step: Array, rate: Array) -> Table:
    """Takes a step with the gradient of the rows read.

    Args:
      table: that they were read from.
      read: [n] rows after step ``step - 1``; each row with a gradient must be among them.
      gradient: [n, D]; those of one row add up.
      step: [] int32, from 1.
      rate: [] learning rate.
    """
    count, rows = len(read.ids), table.values.shape[0]
    order = jnp.arange(count, dtype=jnp.int32)
    # Of the entries of a row one stands for all: the one whose number its place holds. What other
    # rows' places hold is left over from earlier steps and never looked at.
    place = table.place.at[read.ids].set(order)
    chosen = place[read.ids]
    gradient = jnp.zeros_like(gradient).at[chosen].add(gradient)
    first = B1 * read.first + (1 - B1) * gradient
    second = B2 * read.second + (1 - B2) * jnp.square(gradient)
    power = step.astype(jnp.float32)
    scaled = jnp.sqrt(second / (1 - B2**power)) + EPSILON
    values = read.values - rate * first / (1 - B1**power) / scaled
    target = jnp.where(chosen == order, read.ids, rows)

    def put(part: Array, new: Array) -> Array:
        return part.at[target].set(new, mode="drop")

    return Table(
        put(table.values, values),
        put(table.first, first),
        put(table.second, second),
        put(table.age, jnp.full(count, step, jnp.int32)),
        place,
    )


def close_table(table: Table, step: Array, tail: Array) -> tuple[Array, Array, Array]:
    """Brings all rows up to date with a step; returns values and both moments, [I, D] each."""
    everything = Read(table.place, table.values, table.first, table.second)
    return _catch_up(everything, table.age, step, tail)[1:]
