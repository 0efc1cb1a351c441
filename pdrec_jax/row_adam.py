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
date in one go. Equal to AdamW on the whole table, but for its epsilon, which counts in all k steps
as it does in the first of them, and for rounding.

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


class Rows(NamedTuple):
    """Rows of a table.

    Attributes:
      values: [n, D].
      first: [n, D], first moment.
      second: [n, D], second moment.
    """

    values: Array
    first: Array
    second: Array


class Late(NamedTuple):
    """What a step has changed and not yet written.

    Attributes:
      rows: [n, D], as they are after the step.
      target: [n] int32, where they belong; I for those that belong nowhere.
      step: [] int32.
    """

    rows: Rows
    target: Array
    step: Array


class Table(NamedTuple):
    """A table within an epoch.

    A step's rows are written as the next one begins (``settle``). Writing them at once, three
    arrays each of which depends on the old rows of all, would have the compiler copy whole tables.

    Attributes:
      values: [I, D].
      first: [I, D], first moment.
      second: [I, D], second moment.
      age: [I] int32, the step that a row is up to date with.
      place: [I] int32, scratch.
      late: of the last step.
    """

    values: Array
    first: Array
    second: Array
    age: Array
    place: Array
    late: Late


def tails(adam: AdamW, rates: np.ndarray) -> Tails:
    """Computes the tails of a run, in float64 on the host.

    Args:
      adam: its constants.
      rates: [N] learning rates of steps 1 .. N, their product with the decay well below 0.0996,
        from where the sums diverge; the last one is taken to go on.
    """
    rates = np.asarray(rates, np.float64)
    count = len(rates)
    steps = np.arange(1, count + _TAIL + 1)
    rates = np.concatenate([rates, np.full(_TAIL, rates[-1])])
    terms = rates * np.sqrt(1 - adam.b2**steps) / (1 - adam.b1**steps)
    factors = 1 - rates * adam.decay
    # The tail before a step is an affine function of the one after it: slope (term + tail). Spans
    # of such steps are composed, each twice as long as the last, for there may be millions.
    slopes = adam.ratio / factors
    sums, span = np.append(slopes * terms, 0.0), 1
    while span < len(terms):
        sums[: -span - 1] += slopes[:-span] * sums[span:-1]
        slopes[:-span] *= slopes[span:]
        span *= 2
    shrinkage = np.concatenate([[0.0], np.cumsum(np.log(factors))])
    return Tails(sums[: count + 1].astype(np.float32), shrinkage[: count + 1].astype(np.float32))


def open_table(rows: Rows, age: Array, count: int) -> Table:
    """Starts from a table [I, D].

    Args:
      rows: the whole table.
      age: [I] or [] int32, the steps that the rows are up to date with.
      count: n, rows that each step will write.
    """
    size, width = rows.values.shape
    age = jnp.broadcast_to(jnp.asarray(age, jnp.int32), size)
    none = jnp.zeros((count, width))
    late = Late(Rows(none, none, none), jnp.full(count, size, jnp.int32), jnp.int32(0))
    return Table(*rows, age, jnp.zeros(size, jnp.int32), late)


def settle(table: Table) -> Table:
    """Writes what the last step changed; before anything else of a step."""
    rows, target, step = table.late

    def put(part: Array, new: Array) -> Array:
        return part.at[target].set(new, mode="drop")

    age = put(table.age, jnp.full(target.shape[0], step, jnp.int32))
    values, first, second = (put(part, new) for part, new in zip(table[:3], rows, strict=True))
    return table._replace(values=values, first=first, second=second, age=age)


def caught_up(adam: AdamW, rows: Rows, age: Array, step: Array, tail: Tails) -> Rows:
    """Returns rows as they are after a step that they had no gradient in.

    Args:
      adam: its constants.
      rows: as they were left.
      age: [n] int32, the steps that they are up to date with.
      step: [] int32, steps done.
      tail: of ``tails``.
    """
    missed = step - age
    shrunk = jnp.exp(tail.shrinkage[step] - tail.shrinkage[age])[:, None]
    way = shrunk * tail.sums[age][:, None] - _power(adam.ratio, missed) * tail.sums[step]
    # Adam adds epsilon to the root of the moment whose bias is corrected, and G has the correction.
    bias = -jnp.expm1((age + 1).astype(jnp.float32) * np.log(adam.b2)) / adam.b2
    epsilon = (adam.epsilon * jnp.sqrt(bias))[:, None]
    # A row that never had a gradient has moments of 0 and only decays.
    values = shrunk * rows.values - way * rows.first / (jnp.sqrt(rows.second) + epsilon)
    return Rows(values, rows.first * _power(adam.b1, missed), rows.second * _power(adam.b2, missed))


def _power(base: float, missed: Array) -> Array:
    """A decay over missed steps [n], [n, 1]."""
    return (base ** missed.astype(jnp.float32))[:, None]


def read_rows(adam: AdamW, table: Table, ids: Array, step: Array, tail: Tails) -> Rows:
    """Reads rows as they are after a step, [n, D] each.

    Args:
      adam: its constants.
      table: settled; rows of it may be behind.
      ids: [n] int32.
      step: [] int32, steps done.
      tail: of ``tails``.
    """
    # Arithmetic that is fused with reading rows here and there goes one number at a time on a CPU.
    *rows, age = jax.lax.optimization_barrier(tuple(part[ids] for part in table[:4]))
    return caught_up(adam, Rows(*rows), age, step, tail)


def moved(
    adam: AdamW, rows: Rows, gradient: Array, square: Array, step: Array, rate: Array
) -> Rows:
    """Takes a step of AdamW.

    Args:
      adam: its constants.
      rows: up to date with the step before.
      gradient: [n, D].
      square: [n, D], what the second moment gets: the gradient's square, or what stands for it.
      step: [] int32, from 1.
      rate: [] learning rate.
    """
    first = adam.b1 * rows.first + (1 - adam.b1) * gradient
    second = adam.b2 * rows.second + (1 - adam.b2) * square
    unbiased = [-jnp.expm1(step.astype(jnp.float32) * np.log(b)) for b in (adam.b1, adam.b2)]
    scaled = jnp.sqrt(second / unbiased[1]) + adam.epsilon
    change = first / unbiased[0] / scaled + adam.decay * rows.values
    return Rows(rows.values - rate * change, first, second)


def write_rows(
    adam: AdamW,
    table: Table,
    ids: Array,
    old: Rows,
    gradient: Array,
    step: Array,
    rate: Array,
    *,
    left_out: Array | None = None,
) -> Table:
    """Takes a step with the gradient of some rows.

    Args:
      adam: its constants.
      table: settled, after ``step - 1`` steps.
      ids: [n] int32; each row with a gradient must be among them. I is no row: its gradient is 0.
      old: [n, D], what ``read_rows`` returns of them after ``step - 1`` steps.
      gradient: [n, D]; those of one row add up.
      step: [] int32, from 1.
      rate: [] learning rate.
      left_out: [n] bool, entries whose rows stay as they are.
    """
    count, rows = ids.shape[0], table.age.shape[0]
    order = jnp.arange(count, dtype=jnp.int32)
    # Of the entries of a row one stands for all: the one whose number its place holds. What other
    # rows' places hold is left over from earlier steps and never looked at.
    place = table.place.at[ids].set(order)
    chosen = place[ids]
    total = jnp.zeros_like(gradient).at[chosen].add(gradient)
    new = moved(adam, old, total, jnp.square(total), step, rate)
    stands = chosen == order if left_out is None else (chosen == order) & ~left_out
    late = Late(new, jnp.where(stands, ids, rows), step)
    return table._replace(place=place, late=late)


def close_table(adam: AdamW, table: Table, step: Array, tail: Tails) -> Rows:
    """Brings all rows up to date with a step, [I, D]."""
    table = settle(table)
    size = table.age.shape[0]
    block = min(size, _BLOCK)

    def caught(whole: Rows, begin: Array) -> Rows:
        """The rows of a block, brought up to date."""
        # Those before ``begin``'s own block, in the last one, are up to date already.
        number = -(-begin // block)
        done = begin + jnp.arange(block, dtype=jnp.int32) < number * block
        rows, age = (
            jax.tree.map(lambda part: jax.lax.dynamic_slice_in_dim(part, begin, block), parts)
            for parts in (whole, table.age)
        )
        return caught_up(adam, rows, jnp.where(done, step, age), step, tail)

    def write(whole: Rows, rows: Rows, begin: Array) -> Rows:
        return jax.tree.map(
            lambda part, new: jax.lax.dynamic_update_slice_in_dim(part, new, begin, 0), whole, rows
        )

    def one(number: Array, carried: tuple[Rows, Rows, Array]) -> tuple[Rows, Rows, Array]:
        # A block late, as in ``Table``.
        whole = write(*carried)
        begin = jnp.minimum(number * block, size - block)
        return whole, caught(whole, begin), begin

    whole, start = Rows(*table[:3]), jnp.zeros((), jnp.int32)
    carried = whole, caught(whole, start), start
    return write(*jax.lax.fori_loop(1, -(-size // block), one, carried))


def values_at(adam: AdamW, rows: Rows, age: Array, step: Array, tail: Tails) -> Array:
    """Returns the values of a whole table as they are after a step, [I, D]; it stays as it was.

    Args:
      adam: its constants.
      rows: [I, D] each, settled.
      age: [I] int32, the steps that they are up to date with.
      step: [] int32, steps done.
      tail: of ``tails``.
    """
    size = age.shape[0]
    block = min(size, _BLOCK)

    def one(number: Array, values: Array) -> Array:
        # The last block may overlap the one before: it is made twice from the same old rows.
        begin = jnp.minimum(number * block, size - block)
        *some, ages = (jax.lax.dynamic_slice_in_dim(part, begin, block) for part in (*rows, age))
        new = caught_up(adam, Rows(*some), ages, step, tail).values
        return jax.lax.dynamic_update_slice_in_dim(values, new, begin, 0)

    return jax.lax.fori_loop(0, -(-size // block), one, jnp.zeros_like(rows.values))
