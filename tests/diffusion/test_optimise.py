"""Steps that move the rows they read, against AdamW on whole tables with the same draws."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdrec_jax.diffusion.optimise import (
    make_optimiser,
    train_steps,
    train_steps_by_rows,
    train_steps_on_windows,
)
from pdrec_jax.diffusion.step import training_loss
from pdrec_jax.diffusion.timesteps import empty_history
from pdrec_jax.diffusion.windows import SplitBatch, choose_head
from pdrec_jax.row_adam import AdamW, tails

STEPS, BATCH, DECAY, SLOTS = 7, 6, 0.5, 61
pytestmark = pytest.mark.loose_jax("dtypes")


HEAD = choose_head(np.isin(np.arange(SLOTS), (1, 4, 5, 60)).astype(int), 4)


@pytest.fixture
def run(random_vectors, split) -> Callable[..., tuple[Any, np.ndarray]]:
    """`run(model, start, rate, by_rows)` trains two epochs: the last state, and all losses."""
    batches = [split(random_vectors(seed, BATCH, SLOTS), HEAD) for seed in range(STEPS)]

    def stack(parts):
        tokens = max(len(part.slots) for part in parts)

        def padded(part):
            spare = (0, tokens - len(part.slots))
            return type(part)(
                np.pad(part.slots, spare),
                np.pad(part.rows, spare, constant_values=BATCH),
                np.pad(part.weights, spare),
            )

        return jax.tree.map(lambda *rows: np.stack(rows), *map(padded, parts))

    stacked = SplitBatch(stack([b.near for b in batches]), stack([b.far for b in batches]))

    def run(model, start, rate, by_rows):
        rates = rate * 0.9 ** np.arange(2)
        tail = tails(AdamW(decay=DECAY), np.repeat(rates, STEPS))
        params = jax.tree.map(jnp.array, start)
        state = {
            "params": params,
            "optimiser": make_optimiser(DECAY).init(params),
            "history": empty_history(10),
        }
        losses = []
        for epoch, epoch_rate in enumerate(rates):
            numbers = np.arange(epoch * STEPS, (epoch + 1) * STEPS)
            given = state, stacked, numbers, epoch_rate, HEAD
            static = model, DECAY, 0, BATCH
            if by_rows:
                state, loss = train_steps_by_rows(*given, tail, *static)
            else:
                state, loss = train_steps_on_windows(*given, *static)
            losses.append(loss)
        return state, np.concatenate(losses)

    return run


def assert_close(found, expected):
    def close(path, a, b):
        size = max(np.abs(b).max(), 1e-6)
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5 * size, err_msg=str(path))

    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree_util.tree_map_with_path(close, found, expected)


@pytest.mark.parametrize("hidden", [(8,), (5, 7)])
def test_by_rows_equals_whole_tables(random_model, run, hidden):
    model, start = random_model(0, slots=SLOTS, hidden=hidden, noise_fraction=0.25)
    (found, loss), (expected, expected_loss) = (
        run(model, start, 0.01, by_rows) for by_rows in (True, False)
    )
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-4)
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), expected["params"], start)
    assert min(jax.tree.leaves(moved)) > 0.01
    assert_close(found, expected)


def test_a_window_of_the_error_changes_the_second_moment_alone(random_model, run):
    """At a learning rate too small to move anything both see the same gradients."""
    model, start = random_model(0, slots=SLOTS, noise_fraction=0.5, error_fraction=0.2)
    (found, loss), (expected, expected_loss) = (
        run(model, start, 1e-12, by_rows) for by_rows in (True, False)
    )
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-5)
    (found, *_), (expected, *_) = found["optimiser"], expected["optimiser"]
    assert_close(found.mu, expected.mu)
    assert_close(found.nu["item_kernel"], expected.nu["item_kernel"])
    ratio = np.asarray(found.nu["output"]["kernel"] / expected.nu["output"]["kernel"])
    assert ratio.min() < 0.5
    # Rows of the head count as they are.
    np.testing.assert_allclose(ratio[HEAD.slots], 1, rtol=1e-3)


def test_a_steps_draws_are_those_of_seed_and_number(random_model, random_vectors, sparse):
    """Nothing moves at a rate of 0, and a history that is not full has no say in the timesteps."""
    model, params = random_model(0)
    batch, numbers = sparse(random_vectors(0, BATCH, 37)), np.array([3, 3, 5])
    state = {
        "params": jax.tree.map(jnp.array, params),
        "optimiser": make_optimiser(DECAY).init(params),
        "history": empty_history(10),
    }
    batches = jax.tree.map(lambda rows: np.stack([rows] * len(numbers)), batch)
    _, losses = train_steps(state, batches, numbers, 0.0, model, DECAY, 7, BATCH)

    def alone(number):
        key = jax.random.fold_in(jax.random.key(7), number)
        _, (_, mean) = training_loss(params, model, empty_history(10), batch, BATCH, key)
        return mean

    np.testing.assert_allclose(losses, [alone(number) for number in numbers], rtol=1e-5)
    assert abs(losses[2] - losses[0]) > 1e-3
