"""DPA: the picks of the encoder, their loss and its gradient; draws by rank."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdrec_jax.plugins.dpa import augmentation_loss, draw_positives, pick

LOGITS = np.random.default_rng(0).normal(size=(5, 8)).astype(np.float32)


@pytest.mark.parametrize("fine", [1, 3, 8])
def test_picks_are_the_highest(fine):
    picks = pick(jnp.asarray(LOGITS), fine)
    np.testing.assert_array_equal(picks, -np.sort(-LOGITS, axis=1)[:, :fine])


@pytest.mark.parametrize("fine", [1, 8])
def test_loss(fine):
    """Mean of -log sigmoid, large logits of either sign included."""
    logits = LOGITS * np.float32(40)
    picks = -np.sort(-logits.astype(np.float64), axis=1)[:, :fine]
    expected = np.mean(np.logaddexp(0, -picks))
    np.testing.assert_allclose(augmentation_loss(jnp.asarray(logits), fine), expected, rtol=1e-6)


def test_gradient_flows_through_the_picks_alone():
    gradient = np.asarray(jax.jit(jax.grad(lambda x: augmentation_loss(x, 3)))(LOGITS))
    picked = np.argsort(np.argsort(-LOGITS, axis=1), axis=1) < 3
    expected = np.where(picked, -1 / (1 + np.exp(LOGITS)) / 15, 0)
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("most", [1, 7, 500])
def test_draws_by_rank(most):
    """Rank r of M as often as log(1 + 1/r) / log(1 + M) says, of each user's own."""
    pools = np.arange(1, 3 * most + 1, dtype=np.int32).reshape(3, most)
    users = np.tile(np.array([2, 0, 1, 0], np.int32), (20_000, 1))
    drawn = np.asarray(jax.jit(draw_positives, static_argnames="by_rank")(
        jax.random.key(3), pools, users, by_rank=True
    ))  # fmt: skip
    assert drawn.shape == users.shape
    assert drawn.dtype == np.int32
    ranks = drawn - users * most
    counts = np.bincount(ranks.reshape(-1), minlength=most + 1)
    assert not counts[0]
    assert len(counts) == most + 1
    ranks = np.arange(1, most + 1)
    expected = np.log1p(1 / ranks) / np.log1p(most) * users.size
    assert expected.sum() == pytest.approx(users.size)
    # Chi-square: M - 1 degrees of freedom, with a standard deviation of sqrt(2 M).
    assert np.sum((counts[1:] - expected) ** 2 / expected) < most + 6 * np.sqrt(2 * most)
