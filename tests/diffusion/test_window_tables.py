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
@pytest.mark.parametrize("times", [1, 4])
def test_like_a_whole_table(adam, times):
    """Far slots repeat, fall into the window, or wait; the window covers slots of the head."""
    rng = np.random.default_rng(times)
    start = start_of(rng)
    begins = rng.integers(0, ROWS - WINDOW + 1, STEPS)
    far = rng.choice(OTHERS[:6], (STEPS, FAR)).astype(np.int32)
    gradients = [
        TableRows(
            *(rng.normal(size=(count, WIDTH)).astype(np.float32) for count in (3, WINDOW, FAR))
        )
        for _ in range(STEPS)
    ]
    for begin, gradient in zip(begins, gradients, strict=True):
        # What a step says of the head in its window is that it has no gradient there.
        gradient.window[HEAD.inside[begin : begin + WINDOW]] = 0
    rates = np.full(STEPS, 0.01)
    tail = jax.tree.map(jnp.asarray, tails(adam, rates))
    table = open_window_table(Rows(*map(jnp.asarray, start)), HEAD, jnp.int32(0), WINDOW, FAR)

    @jax.jit
    def step(table, number, begin, far, gradient):
        table = settle_window_table(table)
        seen = read_window_table(adam, table, begin, WINDOW, far, number, tail)
        new = write_window_table(
            adam, table, begin, far, gradient, number + 1, jnp.float32(0.01), tail, times=times
        )
        return new, seen

    values, first, second = (part.astype(np.float64) for part in start)
    for number in range(STEPS):
        begin, ids, gradient = int(begins[number]), far[number], gradients[number]
        table, seen = step(table, jnp.int32(number), jnp.int32(begin), ids, gradient)
        inside = ~HEAD.inside[begin : begin + WINDOW]
        for found, expected in (
            (seen.head, values[HEAD.slots]),
            (seen.window[inside], values[begin : begin + WINDOW][inside]),
            (seen.far, values[ids]),
        ):
            np.testing.assert_allclose(found, expected, atol=5e-6)
        # The rare part counts n times when it is seen: its square is to be that of every n-th.
        rare, steady = np.zeros_like(values), np.zeros_like(values)
        rare[begin : begin + WINDOW] = gradient.window
        steady[HEAD.slots] += gradient.head
        np.add.at(steady, ids, gradient.far)
        whole = rare + steady
        square = (steady + rare / times) ** 2 + (times - 1) * (rare / times) ** 2
        first = adam.b1 * first + (1 - adam.b1) * whole
        second = adam.b2 * second + (1 - adam.b2) * square
        root = np.sqrt(second / (1 - adam.b2 ** (number + 1))) + adam.epsilon
        change = first / (1 - adam.b1 ** (number + 1)) / root + adam.decay * values
        values = values - 0.01 * change
    found = close_window_table(adam, table, HEAD, jnp.int32(STEPS), tail)
    np.testing.assert_allclose(found.values, values, atol=5e-6)
    np.testing.assert_allclose(found.first, first, atol=1e-6)
    np.testing.assert_allclose(found.second, second, rtol=1e-5, atol=1e-9)
