"""Tables of which a step moves a head, a window and a few rows, against whole tables."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdrec_jax.diffusion.window_tables import (
    close_window_table,
    open_window_table,
    read_window_table,
    settle_window_table,
    write_window_table,
)
from pdrec_jax.diffusion.windows import TableRows, choose_head
from pdrec_jax.row_adam import AdamW, Rows, tails

ROWS, WIDTH, WINDOW, FAR, STEPS = 13, 3, 4, 5, 30
HEAD = choose_head(np.isin(np.arange(ROWS), (2, 3, 12)).astype(int), 3)
OTHERS = np.flatnonzero(~HEAD.inside)


def start_of(rng):
    return [rng.random((ROWS, WIDTH)).astype(np.float32) for _ in range(3)]


@pytest.mark.parametrize("adam", [AdamW(b2=0.98), AdamW(decay=3.0)])
@pytest.mark.parametrize(("times", "part"), [(1, False), (4, False), (4, True)])
def test_like_a_whole_table(adam, times, part):
    """Far slots repeat, fall into the window, or wait; the window covers slots of the head.

    A part of a mesh: windows have some of their rows, the head has a place too many, and some far
    slots are another's.
    """
    rng = np.random.default_rng(times)
    start = start_of(rng)
    head = HEAD._replace(slots=np.append(HEAD.slots, ROWS)) if part else HEAD
    places = len(head.slots)
    held = rng.random((STEPS, WINDOW)) < 0.5
    begins = rng.integers(0, ROWS - WINDOW + 1, STEPS)
    far = rng.choice(OTHERS[:6], (STEPS, FAR)).astype(np.int32)
    gradients = [
        TableRows(
            *(rng.normal(size=(count, WIDTH)).astype(np.float32) for count in (places, WINDOW, FAR))
        )
        for _ in range(STEPS)
    ]
    for number, (begin, gradient) in enumerate(zip(begins, gradients, strict=True)):
        # What a step says of the head in its window is that it has no gradient there.
        gradient.window[HEAD.inside[begin : begin + WINDOW]] = 0
        if part:
            gradient.window[~held[number]] = 0
            gradient.head[3:] = 0
            gradient.far[number % FAR], far[number, number % FAR] = 0, ROWS
    rates = np.full(STEPS, 0.01)
    tail = jax.tree.map(jnp.asarray, tails(adam, rates))
    rows = Rows(*map(jnp.asarray, start))
    table = open_window_table(rows, head, jnp.int32(0), WINDOW, FAR, part=part)

    @jax.jit
    def step(table, number, begin, far, gradient, held):
        table = settle_window_table(table)
        there = jnp.minimum(far, ROWS - 1)
        seen = read_window_table(adam, table, begin, WINDOW, there, number, tail)
        given = far, gradient, number + 1, jnp.float32(0.01), tail
        options = {"times": times, "held": held if part else None}
        return write_window_table(adam, table, begin, *given, **options), seen

    values, first, second = (part.astype(np.float64) for part in start)
    for number in range(STEPS):
        if number == STEPS // 2:  # as at the end of an epoch
            done = jnp.int32(number)
            rows = close_window_table(adam, table, head, done, tail)
            table = open_window_table(rows, head, done, WINDOW, FAR, part=part)
        begin, ids, gradient = int(begins[number]), far[number], gradients[number]
        table, seen = step(table, jnp.int32(number), jnp.int32(begin), ids, gradient, held[number])
        inside = ~HEAD.inside[begin : begin + WINDOW]
        for found, expected in (
            (seen.head[:3], values[HEAD.slots]),
            (seen.window[inside], values[begin : begin + WINDOW][inside]),
            (seen.far[ids < ROWS], values[ids[ids < ROWS]]),
        ):
            np.testing.assert_allclose(found, expected, atol=5e-6)
        # The rare part counts n times when it is seen: its square is to be that of every n-th.
        rare, steady = np.zeros_like(values), np.zeros_like(values)
        rare[begin : begin + WINDOW] = gradient.window
        steady[HEAD.slots] += gradient.head[:3]
        np.add.at(steady, ids[ids < ROWS], gradient.far[ids < ROWS])
        whole = rare + steady
        square = (steady + rare / times) ** 2 + (times - 1) * (rare / times) ** 2
        first = adam.b1 * first + (1 - adam.b1) * whole
        second = adam.b2 * second + (1 - adam.b2) * square
        root = np.sqrt(second / (1 - adam.b2 ** (number + 1))) + adam.epsilon
        change = first / (1 - adam.b1 ** (number + 1)) / root + adam.decay * values
        values = values - 0.01 * change
    found = close_window_table(adam, table, head, jnp.int32(STEPS), tail)
    np.testing.assert_allclose(found.values, values, atol=5e-6)
    np.testing.assert_allclose(found.first, first, atol=1e-6)
    np.testing.assert_allclose(found.second, second, rtol=1e-5, atol=1e-9)
