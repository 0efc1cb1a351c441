"""The objective, against the public code's numbers and the equations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdrec_jax.encoders.losses import cosine_logits, drawn_loss, sequence_loss, total_loss
from pdrec_jax.plugins.hbr import behaviour_weights


def bce(logits: np.ndarray, label: int) -> np.ndarray:
    chance = 1 / (1 + np.exp(-logits.astype(np.float64)))
    return -np.log(chance if label else 1 - chance)


def logits(*shape: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 3, shape).astype(np.float32)


@pytest.mark.parametrize("case", range(5))
def test_golden(goldens, case):
    arrays = goldens("hbr_loss")
    rank_weight, clip, scale, fine, share = arrays["loss/cases"][case]
    pos = arrays["pos"]
    table = arrays["diff_matrix"][arrays["u"]]
    # The rows go left-padded into HBR too: a target is a target in any column.
    weights = behaviour_weights(
        jnp.asarray(np.take_along_axis(table, pos, axis=1)),
        jnp.asarray(pos > 0),
        rank_weight=float(rank_weight),
        clip=float(clip),
        scale=float(scale),
        floor="shifted",
        padding=jnp.asarray(table[:, 0]),
        max_length=pos.shape[1],
    )
    found = total_loss(
        jnp.asarray(arrays["loss/pos_logits"]),
        [jnp.asarray(arrays[f"loss/neg_logits_{k}"]) for k in (0, 1)],
        jnp.asarray(pos > 0),
        weights,
        jnp.asarray(arrays["loss/soft_logits"]),
        fine=int(fine),
        augmentation_weight=float(share),
    )
    np.testing.assert_allclose(found, arrays["loss/total"][case], rtol=0, atol=1e-4)


@pytest.mark.parametrize("negatives", [1, 2, 3])
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("balance", [1.0, 2.5])
def test_sequence_loss(negatives, weighted, balance):
    positive, valid = logits(4, 6, seed=0), logits(4, 6, seed=1) > 0
    others = [logits(4, 6, seed=2 + k) for k in range(negatives)]
    weights = np.abs(logits(4, 6, seed=9))
    wanted = balance * (bce(positive, 1) * (weights if weighted else 1))[valid].mean()
    wanted += np.mean([bce(other, 0)[valid].mean() for other in others])
    given = jnp.asarray(weights) if weighted else None
    found = sequence_loss(positive, others, valid, given, balance)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_positions_without_a_next_item_do_not_count():
    valid = jnp.asarray([[True, False, True]])

    def loss(positive, negative, weights):
        return sequence_loss(positive, [negative], valid, weights)

    arguments = [jnp.asarray(logits(1, 3, seed=seed)) for seed in (0, 1, 2)]
    gradients = jax.grad(loss, argnums=(0, 1, 2))(*arguments)
    for gradient in gradients:
        assert gradient[0, 1] == 0
        assert (gradient[0, (0, 2)] != 0).all()


def test_a_batch_without_any_target_is_zero():
    zeros = jnp.zeros((2, 3))
    assert sequence_loss(zeros, [zeros], jnp.zeros((2, 3), bool), None) == 0


def test_large_logits_stay_finite():
    large = jnp.asarray([[-1e4, 1e4]])
    value, gradient = jax.value_and_grad(
        lambda x: sequence_loss(x, [x], jnp.ones((1, 2), bool), None)
    )(large)
    assert value == 1e4
    np.testing.assert_allclose(gradient, [[-0.5, 0.5]])


@pytest.mark.parametrize("fine", [1, 3, 7])
def test_augmentation(fine):
    positive, soft = logits(4, 6, seed=0), logits(5, 7, seed=1)
    valid = np.ones((4, 6), bool)
    base = sequence_loss(positive, [positive], valid, None)
    arguments = (positive, [positive], valid, None)
    assert total_loss(*arguments, None) == base
    picks = np.sort(soft, axis=1)[:, -fine:]
    found = total_loss(*arguments, jnp.asarray(soft), fine=fine, augmentation_weight=0.3)
    np.testing.assert_allclose(found, base + 0.3 * bce(picks, 1).mean(), rtol=1e-5)


def test_cosine_logits():
    states, items = logits(2, 3, 8, seed=0), logits(2, 3, 8, seed=1)
    wanted = 5 * (states.astype(np.float64) * items).sum(-1)
    np.testing.assert_allclose(cosine_logits(states, items, 5.0), wanted, rtol=1e-4)


@pytest.mark.parametrize("drawn", [1, 3])
def test_loss_of_drawn_candidates(drawn):
    """Mean of -log sigmoid over the positions that count and what each has drawn."""
    logits = np.random.default_rng(1).normal(0, 40, (drawn, 5, 8)).astype(np.float32)
    valid = np.random.default_rng(2).random((5, 8)) < 0.5
    expected = np.mean(np.logaddexp(0, -logits.astype(np.float64))[:, valid])
    found = drawn_loss([jnp.asarray(one) for one in logits], jnp.asarray(valid))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_no_position_that_counts():
    gradient = jax.grad(lambda x: drawn_loss([x], jnp.zeros((5, 8), bool)))(jnp.ones((5, 8)))
    np.testing.assert_array_equal(gradient, np.zeros((5, 8)))
