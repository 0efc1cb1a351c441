"""Row-wise Adam against optax's on the whole table."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pdrec_jax.encoders import row_adam
from pdrec_jax.encoders.row_adam import close_table, open_table, read_rows, tails, write_rows

ROWS, WIDTH, READS, STEPS = 12, 3, 5, 40


def rates_of(epochs: int, steps: int) -> np.ndarray:
    return np.repeat(0.01 * 0.9 ** np.arange(epochs), steps)


@functools.partial(jax.jit, static_argnums=4)
def run(start, ids, gradients, rates, begin, tail):
    """Scans steps ``begin + 1 ..`` and closes the table; also what each step read."""
    table = open_table(*start, jnp.int32(begin))

    def step(table, inputs):
        number, row_ids, gradient, rate = inputs
        read = read_rows(table, row_ids, number - 1, tail)
        return write_rows(table, read, gradient, number, rate), read.values

    numbers = jnp.arange(begin + 1, begin + 1 + len(ids), dtype=jnp.int32)
    table, seen = jax.lax.scan(step, table, (numbers, ids, gradients, rates))
    return close_table(table, numbers[-1], tail), seen


def dense_twin(values, ids, gradients, rates):
    optimiser = optax.scale_by_adam(b1=row_adam.B1, b2=row_adam.B2)
    state, seen = optimiser.init(values), []
    for row_ids, gradient, rate in zip(ids, gradients, rates, strict=True):
        seen.append(values[row_ids])
        whole = jnp.zeros_like(values).at[row_ids].add(gradient)
        updates, state = optimiser.update(whole, state)
        values = values - np.float32(rate) * updates
    return values, state, np.stack(seen)


@pytest.mark.loose_jax("dtypes")
@given(seed=st.integers(0, 2**31))
@settings(deadline=None, max_examples=10)
def test_equal_to_adam_on_the_whole_table(seed: int) -> None:
    """Rows are read anew at once, after long gaps, twice in a step, or never."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(ROWS, WIDTH)).astype(np.float32)
    ids = rng.integers(0, ROWS - 1, (STEPS, READS)).astype(np.int32)
    ids[5:30] = np.minimum(ids[5:30], 3)  # the others wait
    gradients = rng.normal(size=(STEPS, READS, WIDTH)).astype(np.float32)
    rates = rates_of(4, STEPS // 4).astype(np.float32)
    expected, state, read = dense_twin(values, ids, gradients, rates)
    zero = np.zeros_like(values)
    (found, first, second), seen = run((values, zero, zero), ids, gradients, rates, 0, tails(rates))
    np.testing.assert_allclose(seen, read, atol=2e-6)
    np.testing.assert_allclose(found, expected, atol=2e-6)
    np.testing.assert_allclose(first, state.mu, atol=1e-6)
    np.testing.assert_allclose(second, state.nu, rtol=1e-5, atol=1e-9)
    np.testing.assert_array_equal(found[ROWS - 1], values[ROWS - 1])


def test_closing_between_epochs_changes_nothing() -> None:
    rng = np.random.default_rng(0)
    start = rng.normal(size=(ROWS, WIDTH)).astype(np.float32)
    zero = np.zeros_like(start)
    ids = rng.integers(0, ROWS, (STEPS, READS)).astype(np.int32)
    gradients = rng.normal(size=(STEPS, READS, WIDTH)).astype(np.float32)
    rates = rates_of(2, STEPS // 2).astype(np.float32)
    tail = tails(rates)
    whole, _ = run((start, zero, zero), ids, gradients, rates, 0, tail)
    half = STEPS // 2
    parts, _ = run((start, zero, zero), ids[:half], gradients[:half], rates[:half], 0, tail)
    parts, _ = run(parts, ids[half:], gradients[half:], rates[half:], half, tail)
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-6)


def test_tails_are_the_sums_that_they_stand_for() -> None:
    rates = rates_of(3, 7)
    steps = np.arange(1, 2001)
    long = np.concatenate([rates, np.full(2000 - len(rates), rates[-1])])
    terms = long * np.sqrt(1 - 0.98**steps) / (1 - 0.9**steps)
    ratio = 0.9 / 0.98**0.5
    expected = [np.sum(ratio ** np.arange(1, 2001 - n) * terms[n:]) for n in range(len(rates) + 1)]
    np.testing.assert_allclose(tails(rates), expected, rtol=1e-6)
