"""HBR's weights: the recorded ones in every setting, a plain NumPy twin, and the strict floor."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdrec_jax.errors import UserError
from pdrec_jax.plugins.hbr import behaviour_weights

MAX_LENGTH = 14


@functools.partial(jax.jit, static_argnames=("floor", "max_length"))
def weights_of(scores, observed, padding=None, **settings):
    return behaviour_weights(scores, observed, padding=padding, **settings)


def golden_weights(golden, pos, rank_weight, clip, scale):
    scores = golden["diff_matrix"][golden["u"][:, None], pos]
    return weights_of(
        scores,
        pos != 0,
        golden["diff_matrix"][golden["u"], 0],
        rank_weight=rank_weight,
        clip=clip,
        scale=scale,
        floor="shifted",
        max_length=MAX_LENGTH,
    )


class TestGoldens:
    @pytest.mark.parametrize("case", range(9))
    def test_cases(self, goldens, case):
        golden = goldens("hbr_loss")
        pos = golden["pos"]
        weights = np.asarray(golden_weights(golden, pos, *golden["cases"][case].tolist()))
        assert weights.dtype == np.float32
        close = {"rtol": 1e-5, "atol": 1e-5}
        np.testing.assert_allclose(weights, golden[f"case{case}/weights"], **close)
        flat = weights[pos != 0]
        np.testing.assert_allclose(flat, golden[f"case{case}/loss_reweight_flat"], **close)
        assert not weights[pos == 0].any()

    def test_ties(self, goldens):
        golden = goldens("hbr_loss")
        weights = golden_weights(golden, golden["ties/pos"], 0.1, 3.0, 2.0)
        np.testing.assert_allclose(weights, golden["ties/weights"], rtol=1e-5, atol=1e-5)

    def test_unclipped(self, goldens):
        golden = goldens("hbr_loss")
        weights = golden_weights(golden, golden["pos"], 0.0, np.inf, 1.0)
        np.testing.assert_allclose(weights, golden["unclipped_rw0"], rtol=1e-5, atol=1e-5)


def twin(scores, observed, rank_weight, clip, scale):
    """Eq. 2 for one user after the other, in float64."""
    weights = np.zeros(scores.shape)
    for row, line in enumerate(observed):
        cells = np.flatnonzero(line)
        if not len(cells):
            continue
        o = scores[row, cells].astype(np.float64)
        mixed = np.ones(len(o))
        if o.max() > o.min():
            share = (o - o.min()) / (o.max() - o.min())
            rank = np.empty(len(o))
            rank[np.argsort(o, kind="stable")] = np.arange(1, len(o) + 1)
            mixed = (1 - rank_weight) * share / share.mean() + rank_weight * rank / len(o)
        weights[row, cells] = np.clip(mixed, 0, clip) * scale
    return weights


@pytest.fixture
def inputs() -> tuple[np.ndarray, np.ndarray]:
    """Scores and which are observed: none in the first row, all in the last."""
    rng = np.random.default_rng(0)
    observed = rng.random((12, 9)) < np.linspace(0, 1, 12)[:, None]
    scores = rng.normal(size=(12, 9)).astype(np.float32)
    scores[7] = np.round(scores[7])
    scores[8] = 0.25
    return scores, observed


class TestObservedFloor:
    @pytest.mark.parametrize("setting", [(0.1, 3.0, 2.0), (0.0, np.inf, 1.0), (1.0, 0.6, 4.0)])
    def test_like_the_formula(self, inputs, setting):
        names = ("rank_weight", "clip", "scale")
        weights = weights_of(*inputs, **dict(zip(names, setting, strict=True)), floor="observed")
        np.testing.assert_allclose(weights, twin(*inputs, *setting), rtol=1e-5, atol=1e-6)

    def test_what_is_not_observed_does_not_matter(self, inputs):
        scores, observed = inputs
        setting = {"rank_weight": 0.3, "clip": 3.0, "scale": 2.0, "floor": "observed"}
        weights = weights_of(scores, observed, **setting)
        for filler in (1e30, -np.inf, np.nan):
            other = weights_of(np.where(observed, scores, np.float32(filler)), observed, **setting)
            np.testing.assert_array_equal(weights, other)
        assert np.isfinite(weights).all()

    def test_the_most_doubted_behaviour_has_no_weight(self, inputs):
        scores, observed = inputs
        setting = {"rank_weight": 0.0, "clip": 3.0, "scale": 2.0, "floor": "observed"}
        weights = np.asarray(weights_of(scores, observed, **setting))
        row = 10
        lowest = np.where(observed[row], scores[row], np.inf).argmin()
        assert weights[row, lowest] == 0
        assert weights[8][observed[8]] == pytest.approx(2.0)  # all scores equal


class TestErrors:
    def test_unknown_floor(self):
        with pytest.raises(UserError, match="'lowest'"):
            behaviour_weights(
                jnp.ones((1, 2)),
                jnp.ones((1, 2), bool),
                rank_weight=0.1,
                clip=3.0,
                scale=2.0,
                floor="lowest",
            )

    def test_shifted_floor_needs_the_padding_item(self):
        with pytest.raises(UserError, match="padding item's score"):
            behaviour_weights(
                jnp.ones((1, 2)),
                jnp.ones((1, 2), bool),
                rank_weight=0.1,
                clip=3.0,
                scale=2.0,
                floor="shifted",
            )
