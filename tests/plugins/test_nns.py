"""NNS, and DPA where it draws: draws from each user's pool."""

import jax
import numpy as np
import pytest

from pdrec_jax.plugins.dpa import draw_positives
from pdrec_jax.plugins.nns import draw_negatives


@pytest.mark.parametrize("draw", [draw_negatives, draw_positives])
def test_draws_are_uniform_over_the_own_pool(draw):
    """Chi-square with 6 degrees of freedom: 40 is exceeded once in two million seeds."""
    jit_draw = jax.jit(draw)
    pools = np.arange(1, 22, dtype=np.int32).reshape(3, 7)
    users = np.tile(np.array([2, 0, 1, 0], np.int32), (5000, 2, 1))
    drawn, same, other = (jit_draw(jax.random.key(seed), pools, users) for seed in (0, 0, 1))
    np.testing.assert_array_equal(drawn, same)
    assert (drawn != other).mean() > 0.5
    assert drawn.shape == users.shape
    assert drawn.dtype == np.int32
    for user, pool in enumerate(pools):
        items, counts = np.unique(drawn[users == user], return_counts=True)
        np.testing.assert_array_equal(items, pool)
        expected = counts.sum() / 7
        assert np.sum((counts - expected) ** 2 / expected) < 40
