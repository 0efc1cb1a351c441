"""Steps that move the rows they read, against AdamW on whole tables with the same draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdrec_jax.diffusion.optimise import make_optimiser, train_steps, train_steps_by_rows
from pdrec_jax.diffusion.timesteps import empty_history
from pdrec_jax.row_adam import AdamW, tails

STEPS, BATCH, DECAY, RATE = 7, 6, 0.5, 0.01


@pytest.mark.loose_jax("dtypes")
@pytest.mark.parametrize(
    ("hidden", "noise", "error"), [((8,), 0.25, 0.25), ((5, 7), 0.5, 1.0), ((8,), 1.0, 0.2)]
)
def test_by_rows_equals_whole_tables(random_model, random_vectors, sparse, hidden, noise, error):
    model, start = random_model(
        0, slots=61, hidden=hidden, noise_fraction=noise, error_fraction=error
    )
    batches = [sparse(random_vectors(seed, BATCH, 61)) for seed in range(STEPS)]
    tokens = max(len(batch.slots) for batch in batches)

    def padded(batch):
        spare = (0, tokens - len(batch.slots))
        return type(batch)(
            np.pad(batch.slots, spare),
            np.pad(batch.rows, spare, constant_values=BATCH),
            np.pad(batch.weights, spare),
        )

    stacked = jax.tree.map(lambda *rows: np.stack(rows), *map(padded, batches))
    rates = RATE * 0.9 ** np.arange(2)
    tail = tails(AdamW(decay=DECAY), np.repeat(rates, STEPS))

    def run(by_rows):
        params = jax.tree.map(jnp.array, start)
        state = {
            "params": params,
            "optimiser": make_optimiser(DECAY).init(params),
            "history": empty_history(10),
        }
        losses = []
        for epoch, rate in enumerate(rates):
            numbers = np.arange(epoch * STEPS, (epoch + 1) * STEPS)
            static = model, DECAY, 0, BATCH
            if by_rows:
                state, loss = train_steps_by_rows(state, stacked, numbers, rate, tail, *static)
            else:
                state, loss = train_steps(state, stacked, numbers, rate, *static)
            losses.append(loss)
        return state, np.concatenate(losses)

    (found, loss), (expected, expected_loss) = run(True), run(False)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-4)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), expected["params"], start)
    assert min(jax.tree.leaves(moved)) > 0.01

    def close(path, a, b):
        np.testing.assert_allclose(
            a, b, rtol=1e-3, atol=2e-5 * max(np.abs(b).max(), 1e-6), err_msg=str(path)
        )

    jax.tree_util.tree_map_with_path(close, found, expected)
