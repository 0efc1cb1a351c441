"""AdamW on a table of embeddings at a cost of the rows that a step reads, not of the table.

A row without a gradient still moves under Adam (Kingma and Ba, 2015), by what is left of its first
moment, and under decoupled weight decay (Loshchilov and Hutter, 2019). After a step s with moments
m and v, k steps without a gradient take its value p to

    q p - sum_{j=1..k} q_j rate_{s+j} b1^j m / (1 - b1^{s+j}) / sqrt(b2^j v / (1 - b2^{s+j}))
      = q p - m / sqrt(v) (q G_s - r^k G_{s+k}),    r = b1 / sqrt(b2),

with d the decay, q the product of all k factors (1 - rate d), q_j that of the factors after step
s + j, and

    G_n = sum_{j>=1} r^j rate_{n+j} sqrt(1 - b2^{n+j}) / (1 - b1^{n+j}) / Q_{n,j},
    Q_{n,j} = product of (1 - rate_{n+i} d) over i = 1 .. j,

which depends on n alone. So a row may be left as it is until it is read, and is then brought up to
date in one go. Equal to AdamW on the whole table, but for its epsilon, which counts once and not in
each of the k steps, and for rounding.

Letters: I rows, D width, n rows read by a step, some of them more than once.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

_BLOCK = 4096  # rows
_TAIL = 400  # r^400 is below 1e-16 for the usual betas


@dataclasses.dataclass(frozen=True)
class AdamW:
    """The constants of AdamW; static under jit.

    Attributes:
      b1: decay of the first moment.
      b2: decay of the second moment, above b1 squared.
      epsilon: added to the root of the second moment.
      decay: d, of the weights.
    """

    b1: float = 0.9
    b2: float = 0.999
    epsilon: float = 1e-8
    decay: float = 0.0

    @property
    def ratio(self) -> float:
        """r, what a step leaves of the first moment over the root of the second."""
        return self.b1 / self.b2**0.5


class Tails(NamedTuple):
    """What rows that wait have missed, by the number of steps done, [N + 1] float32 each.

    Attributes:
      sums: G_0 .. G_N.
      shrinkage: logarithm of the product of the factors (1 - rate d) so far.
    """

    sums: Array | np.ndarray
    shrinkage: Array | np.ndarray


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


def tails(adam: AdamW, rates: np.ndarray) -> Tails:
    """Computes the tails of a run, in float64 on the host.

    Args:
      adam: its constants.
      rates: [N] learning rates of steps 1 .. N; the last one is taken to go on.
    """
    rates = np.asarray(rates, np.float64)
    count = len(rates)
    steps = np.arange(1, count + _TAIL + 1)
    rates = np.concatenate([rates, np.full(_TAIL, rates[-1])])
    terms = rates * np.sqrt(1 - adam.b2**steps) / (1 - adam.b1**steps)
    factors = 1 - rates * adam.decay
    sums, tail = np.empty(len(terms) + 1), 0.0
    for number in range(len(terms), -1, -1):
        sums[number] = tail
        if number:
            tail = adam.ratio / factors[number - 1] * (terms[number - 1] + tail)
    shrinkage = np.concatenate([[0.0], np.cumsum(np.log(factors))])
    return Tails(sums[: count + 1].astype(np.float32), shrinkage[: count + 1].astype(np.float32))


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


def _catch_up(adam: AdamW, read: Read, age: Array, step: Array, tail: Tails) -> Read:
    missed = (step - age)[:, None].astype(jnp.float32)
    shrunk = jnp.exp(tail.shrinkage[step] - tail.shrinkage[age])[:, None]
    way = shrunk * tail.sums[age][:, None] - adam.ratio**missed * tail.sums[step]
    # A row that never had a gradient has moments of 0 and only decays.
    root = jnp.sqrt(read.second) + adam.epsilon
    values = shrunk * read.values - way * read.first / root
    return Read(read.ids, values, read.first * adam.b1**missed, read.second * adam.b2**missed)


def read_rows(adam: AdamW, table: Table, ids: Array, step: Array, tail: Tails) -> Read:
    """Reads rows as they are after a step.

    Args:
      adam: its constants.
      table: of which rows may be behind.
      ids: [n] int32.
      step: [] int32, steps done.
      tail: of ``tails``.
    """
    read = Read(ids, table.values[ids], table.first[ids], table.second[ids])
    return _catch_up(adam, read, table.age[ids], step, tail)


def write_rows(
    adam: AdamW,
    table: Table,
    read: Read,
    gradient: Array,
    step: Array,
    rate: Array,
    share: Array | None = None,
    most: int = 1,
) -> Table:
    """Takes a step with the gradient of the rows read.

    Where part of a row's gradient is seen in one of n steps only and counts n times then, its
    square would be n times too large on average, and Adam slow. With S the row's gradient in which
    everything counts once and G the one in which it counts as it should, the second moment gets
    ``S^2 + (G - S)^2 / (n - 1)``: its mean is that of a gradient seen whole in every step, but for
    the product of the two parts.

    Args:
      adam: its constants.
      table: that they were read from.
      read: [n] rows after step ``step - 1``; each row with a gradient must be among them.
      gradient: [n, D]; those of one row add up.
      step: [] int32, from 1.
      rate: [] learning rate.
      share: [n], 1 or ``most``: how often an entry's gradient counts; None for once.
      most: n of the formula.
    """
    count, rows = len(read.ids), table.values.shape[0]
    order = jnp.arange(count, dtype=jnp.int32)
    # Of the entries of a row one stands for all: the one whose number its place holds. What other
    # rows' places hold is left over from earlier steps and never looked at.
    place = table.place.at[read.ids].set(order)
    chosen = place[read.ids]
    total = jnp.zeros_like(gradient).at[chosen].add(gradient)
    square = jnp.square(total)
    if share is not None and most > 1:
        once = jnp.zeros_like(gradient).at[chosen].add(gradient / share[:, None])
        square = jnp.square(once) + jnp.square(total - once) / (most - 1)
    first = adam.b1 * read.first + (1 - adam.b1) * total
    second = adam.b2 * read.second + (1 - adam.b2) * square
    unbiased = [-jnp.expm1(step.astype(jnp.float32) * np.log(b)) for b in (adam.b1, adam.b2)]
    scaled = jnp.sqrt(second / unbiased[1]) + adam.epsilon
    update = first / unbiased[0] / scaled + adam.decay * read.values
    values = read.values - rate * update
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


def close_table(adam: AdamW, table: Table, step: Array, tail: Tails) -> tuple[Array, Array, Array]:
    """Brings all rows up to date with a step; returns values and both moments, [I, D] each."""
    rows = table.age.shape[0]
    block = min(rows, _BLOCK)

    def close(number: Array, table: Table) -> Table:
        # In blocks, in place. The last one begins early enough to be whole: what it sees twice is
        # up to date by then.
        begin = jnp.minimum(number * block, rows - block)
        part = Table(*(jax.lax.dynamic_slice_in_dim(leaf, begin, block) for leaf in table))
        read = _catch_up(adam, Read(part.place, *part[:3]), part.age, step, tail)
        done = (*read[1:], jnp.full(block, step, jnp.int32))
        new = Table(*done, part.place)
        return jax.tree.map(
            lambda leaf, rows: jax.lax.dynamic_update_slice_in_dim(leaf, rows, begin, 0), table, new
        )

    return jax.lax.fori_loop(0, -(-rows // block), close, table)[:3]
