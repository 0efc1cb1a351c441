"""DPA: the picks of the encoder, their loss and its gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdrec_jax.plugins.dpa import augmentation_loss, pick

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
