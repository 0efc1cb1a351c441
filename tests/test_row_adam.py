"""Row-wise AdamW against the same on the whole table."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pdrec_jax import row_adam
from pdrec_jax.row_adam import (
    AdamW,
    Rows,
    close_table,
    open_table,
    read_rows,
    settle,
    tails,
    values_at,
    write_rows,
)

ROWS, WIDTH, READS, STEPS = 12, 3, 5, 40
# The encoders' constants, and the diffusion model's with a decay that shows.
ADAMS = (AdamW(b2=0.98), AdamW(decay=3.0))


def rates_of(epochs: int, steps: int) -> np.ndarray:
    return np.repeat(0.01 * 0.9 ** np.arange(epochs), steps)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch) -> None:
    """Closing takes the 12 rows in three blocks, the last of which overlaps the one before."""
    monkeypatch.setattr(row_adam, "_BLOCK", 5)


@functools.partial(jax.jit, static_argnums=(0, 5))
def run(adam, start, ids, gradients, rates, begin, tail):
    """Scans steps ``begin + 1 ..`` and closes the table; also what each step read."""
    table, seen = scan(adam, start, begin, ids, gradients, rates, begin, tail)
    return close_table(adam, table, jnp.int32(begin + len(ids)), tail), seen


@functools.partial(jax.jit, static_argnums=(0, 6))
def scan(adam, start, age, ids, gradients, rates, begin, tail):
    """Scans steps ``begin + 1 ..``; returns the table, settled, and what each step read."""
    table = open_table(Rows(*start), age, READS)

    def step(table, inputs):
        number, row_ids, gradient, rate = inputs
        table = settle(table)
        seen = read_rows(adam, table, row_ids, number - 1, tail)
        return write_rows(adam, table, row_ids, seen, gradient, number, rate), seen.values

    numbers = jnp.arange(begin + 1, begin + 1 + len(ids), dtype=jnp.int32)
    table, seen = jax.lax.scan(step, table, (numbers, ids, gradients, rates))
    return settle(table), seen


def dense_twin(adam, values, ids, gradients, rates):
    """Every row in every step, in float64."""
    values = values.astype(np.float64)
    first, second, seen = np.zeros_like(values), np.zeros_like(values), []
    for step, (row_ids, gradient, rate) in enumerate(zip(ids, gradients, rates, strict=True), 1):
        seen.append(values[row_ids])
        whole = np.zeros_like(values)
        np.add.at(whole, row_ids, gradient)
        first = adam.b1 * first + (1 - adam.b1) * whole
        second = adam.b2 * second + (1 - adam.b2) * whole**2
        root = np.sqrt(second / (1 - adam.b2**step)) + adam.epsilon
        values = values - rate * (first / (1 - adam.b1**step) / root + adam.decay * values)
    return values, first, second, np.stack(seen)


@pytest.mark.parametrize("adam", ADAMS)
@given(seed=st.integers(0, 2**31))
@settings(
    deadline=None, max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_equal_to_adam_on_the_whole_table(adam: AdamW, seed: int) -> None:
    """Rows are read anew at once, after long gaps, twice in a step, or never."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(ROWS, WIDTH)).astype(np.float32)
    ids = rng.integers(0, ROWS - 1, (STEPS, READS)).astype(np.int32)
    ids[5:30] = np.minimum(ids[5:30], 3)  # the others wait
    # Sums are 0 or at least 1/8: next to a gradient of 1e-4 the epsilon would show, which by design
    # counts once where Adam counts it in every step.
    signs = rng.choice([-1, 1], (STEPS, READS, WIDTH))
    gradients = (signs * rng.integers(1, 16, signs.shape) / 8).astype(np.float32)
    rates = rates_of(4, STEPS // 4).astype(np.float32)
    expected, mu, nu, read = dense_twin(adam, values, ids, gradients, rates)
    zero = np.zeros_like(values)
    (found, first, second), seen = run(
        adam, (values, zero, zero), ids, gradients, rates, 0, tails(adam, rates)
    )
    # float32 against float64: the decay rounds each value once more in each of the 40 steps.
    atol = 5e-6 if adam.decay else 2e-6
    np.testing.assert_allclose(seen, read, atol=atol)
    np.testing.assert_allclose(found, expected, atol=atol)
    np.testing.assert_allclose(first, mu, atol=1e-6)
    np.testing.assert_allclose(second, nu, rtol=1e-5, atol=1e-9)
    if not adam.decay:
        np.testing.assert_array_equal(found[ROWS - 1], values[ROWS - 1])


@pytest.mark.parametrize("adam", [AdamW(b2=0.98), AdamW()])
@pytest.mark.parametrize(
    ("size", "end", "rtol"), [(1e-6, STEPS, 0.1), (1e-7, STEPS, 0.1), (1e-8, 4, 1e-3)]
)
def test_epsilon_counts_as_it_does_in_the_first_step_of_a_gap(
    adam: AdamW, size: float, end: int, rtol: float
) -> None:
    """Next to small gradients, and early, where Adam's corrections for bias are largest.

    A gap of one step alone is exact.
    """
    start, steps = np.zeros((1, WIDTH), np.float32), 3
    gradients = np.full((end, 1, WIDTH), size, np.float32)
    ids = np.zeros((end, 1), np.int32)
    gradients[steps:] = 0  # and then the row waits
    rates = np.full(end, 0.01, np.float32)
    expected = dense_twin(adam, start, ids, gradients, rates)[0]
    begun = dense_twin(adam, start, ids[:steps], gradients[:steps], rates[:steps])
    rows = Rows(*(jnp.asarray(part, jnp.float32) for part in begun[:3]))
    age = jnp.full(1, steps, jnp.int32)
    tail = jax.tree.map(jnp.asarray, tails(adam, rates))
    found = values_at(adam, rows, age, jnp.int32(end), tail)
    moved = np.asarray(found) - begun[0]
    np.testing.assert_allclose(moved, expected - begun[0], rtol=rtol)


@pytest.mark.parametrize("adam", ADAMS)
def test_closing_between_epochs_changes_nothing(adam: AdamW) -> None:
    rng = np.random.default_rng(0)
    start = rng.normal(size=(ROWS, WIDTH)).astype(np.float32)
    zero = np.zeros_like(start)
    ids = rng.integers(0, ROWS, (STEPS, READS)).astype(np.int32)
    gradients = rng.normal(size=(STEPS, READS, WIDTH)).astype(np.float32)
    rates = rates_of(2, STEPS // 2).astype(np.float32)
    tail = tails(adam, rates)
    whole, _ = run(adam, (start, zero, zero), ids, gradients, rates, 0, tail)
    half = STEPS // 2
    parts, _ = run(adam, (start, zero, zero), ids[:half], gradients[:half], rates[:half], 0, tail)
    parts, _ = run(adam, parts, ids[half:], gradients[half:], rates[half:], half, tail)
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-6)


@pytest.mark.parametrize("adam", ADAMS)
def test_a_table_left_open_between_epochs_is_that_of_one_epoch(adam: AdamW) -> None:
    """To the last bit: what rows have missed is counted from the step that they are at."""
    rng = np.random.default_rng(0)
    start = [rng.random((ROWS, WIDTH), np.float32) for _ in range(3)]
    ids = rng.integers(0, ROWS, (STEPS, READS)).astype(np.int32)
    ids[:, :2] = 3  # some rows are read all the time, others seldom
    gradients = rng.normal(size=(STEPS, READS, WIDTH)).astype(np.float32)
    rates = rates_of(2, STEPS // 2).astype(np.float32)
    tail, half = jax.tree.map(jnp.asarray, tails(adam, rates)), STEPS // 2
    whole, _ = scan(adam, start, 0, ids, gradients, rates, 0, tail)
    first, _ = scan(adam, start, 0, ids[:half], gradients[:half], rates[:half], 0, tail)
    second = ids[half:], gradients[half:], rates[half:]
    table, _ = scan(adam, first[:3], first.age, *second, half, tail)
    assert first.age.min() < half
    for name in ("values", "first", "second", "age"):
        np.testing.assert_array_equal(getattr(table, name), getattr(whole, name))
    closed = close_table(adam, whole, jnp.int32(STEPS), tail)
    looked_at = values_at(adam, Rows(*table[:3]), table.age, jnp.int32(STEPS), tail)
    np.testing.assert_allclose(looked_at, closed.values, atol=1e-6)


@pytest.mark.parametrize("adam", ADAMS)
def test_tails_are_the_sums_that_they_stand_for(adam: AdamW) -> None:
    rates = rates_of(3, 7)
    steps = np.arange(1, 2001)
    long = np.concatenate([rates, np.full(2000 - len(rates), rates[-1])])
    terms = long * np.sqrt(1 - adam.b2**steps) / (1 - adam.b1**steps)
    factors = 1 - long * adam.decay
    found = tails(adam, rates)
    for done in range(len(rates) + 1):
        weights = adam.ratio ** np.arange(1, 2001 - done) / np.cumprod(factors[done:])
        np.testing.assert_allclose(found.sums[done], np.sum(weights * terms[done:]), rtol=1e-6)
        np.testing.assert_allclose(
            np.exp(found.shrinkage[done]), np.prod(factors[:done]), rtol=1e-6
        )


def test_entries_left_out_leave_their_rows() -> None:
    rng = np.random.default_rng(0)
    start = Rows(*(jnp.asarray(rng.random((4, WIDTH)), jnp.float32) for _ in range(3)))
    adam, step = AdamW(), jnp.int32(1)
    tail = jax.tree.map(jnp.asarray, tails(adam, np.full(3, 0.1)))
    ids, gradient = jnp.asarray([2, 0, 2]), jnp.ones((3, WIDTH))
    left_out = jnp.asarray([True, False, True])
    rate = jnp.float32(0.1)
    table = open_table(start, step - 1, 3)
    old = read_rows(adam, table, ids, step - 1, tail)
    table = write_rows(adam, table, ids, old, gradient, step, rate, left_out=left_out)
    found = close_table(adam, table, step, tail)
    idle = close_table(adam, open_table(start, step - 1, 3), step, tail)
    changed = [
        (np.asarray(a) != np.asarray(b)).any(axis=1) for a, b in zip(found, idle, strict=True)
    ]
    np.testing.assert_array_equal(changed, [[True, False, False, False]] * 3)
