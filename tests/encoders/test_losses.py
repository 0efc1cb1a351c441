"""The training objective: the recorded one in five settings, and its parts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdrec_jax.encoders.losses import cosine_logits, sequence_loss, total_loss
from pdrec_jax.plugins.hbr import behaviour_weights


@pytest.mark.parametrize("case", range(5))
def test_goldens(goldens, case):
    golden = goldens("hbr_loss")
    rank_weight, clip, scale, fine, augmentation_weight = golden["loss/cases"][case].tolist()
    pos, rows = golden["pos"], golden["diff_matrix"][golden["u"]]

    @jax.jit
    def loss():
        weights = behaviour_weights(
            np.take_along_axis(rows, pos, axis=1),
            pos != 0,
            rank_weight=rank_weight,
            clip=clip,
            scale=scale,
            floor="shifted",
            padding=rows[:, 0],
            max_length=14,
        )
        return total_loss(
            golden["loss/pos_logits"],
            [golden["loss/neg_logits_0"], golden["loss/neg_logits_1"]],
            pos != 0,
            weights,
            golden["loss/soft_logits"],
            fine=int(fine),
            augmentation_weight=augmentation_weight,
        )

    np.testing.assert_allclose(loss(), golden["loss/total"][case], rtol=1e-5)


class TestSequenceLoss:
    def test_means_over_valid_positions(self):
        rng = np.random.default_rng(0)
        positive, first, second = (30 * rng.normal(size=(3, 4, 6))).astype(np.float32)
        weights = rng.random((4, 6)).astype(np.float32)
        valid = rng.random((4, 6)) < 0.5
        hit = np.logaddexp(0, -positive.astype(np.float64))
        miss = (np.logaddexp(0, first) + np.logaddexp(0, second)) / 2
        loss = jax.jit(sequence_loss)
        found = loss(positive, [first, second], valid, weights)
        expected = (hit * weights)[valid].mean() + miss[valid].mean()
        np.testing.assert_allclose(found, expected, rtol=1e-5)
        found = loss(positive, [first], valid, None)
        expected = hit[valid].mean() + np.logaddexp(0, first)[valid].mean()
        np.testing.assert_allclose(found, expected, rtol=1e-5)

    def test_no_valid_position(self):
        logits = jnp.full((2, 3), jnp.nan)
        loss = total_loss(logits, [logits], jnp.zeros((2, 3), bool), None, None)
        assert loss == 0


def test_cosine_logits():
    states, embeddings = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    expected = 5 * (states * embeddings).sum(axis=-1)
    np.testing.assert_allclose(cosine_logits(states, embeddings, 5.0), expected, rtol=1e-5)
