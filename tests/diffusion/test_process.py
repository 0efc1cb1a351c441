"""The forward process and the loss against the recorded ones; normals out of random words."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from pdrec_jax.diffusion.optimise import make_optimiser
from pdrec_jax.diffusion.process import (
    coefficients,
    denoising_loss,
    normal_from_bits,
    posterior_mean,
    predict_x0,
    q_sample,
)

TARGETS = ("x0", "epsilon")
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(autouse=True)
def quick_compilation() -> None:
    """None: held against the reference as a run is compiled."""


def int32(values) -> jax.Array:
    return jnp.asarray(values, jnp.int32)


def training_losses(params, mask, tiny):
    """Losses of the recorded batch, the input multiplied by `mask`."""
    denoiser, c = tiny.model.denoiser(params), tiny.model.coefficients()
    x_0, noise, t = (
        jnp.asarray(tiny["tl/x_start"]),
        jnp.asarray(tiny["tl/noise"]),
        int32(tiny["tl/ts"]),
    )
    x_t = q_sample(c, x_0, t, noise)
    output = denoiser(x_t * mask, t)
    return denoising_loss(c, tiny.model.target, output, x_0, x_t, noise, t)


def mean_loss(params, mask, tiny):
    losses = training_losses(params, mask, tiny)
    return jnp.mean(losses), losses


differentiate = jax.jit(jax.grad(mean_loss, has_aux=True), static_argnums=2)


@pytest.mark.parametrize("target", TARGETS)
class TestGoldens:
    def test_q_sample(self, tiny, target):
        tiny = tiny(target)
        x, noise = tiny.golden["x_start"], tiny.golden["q_noise"]
        x_t = q_sample(tiny.model.coefficients(), x, int32(tiny["q_sample_t"]), noise)
        np.testing.assert_allclose(x_t, tiny["q_sample"], **CLOSE)

    def test_posterior(self, tiny, target):
        tiny = tiny(target)
        c, x_t = tiny.model.coefficients(), jnp.asarray(tiny.golden["x_t"])
        t = int32(tiny.golden["t"])
        output = jnp.asarray(tiny.golden["out"])
        x_0 = output if target == "x0" else predict_x0(c, x_t, t, output)
        np.testing.assert_allclose(x_0, tiny["p_mean_variance/pred_xstart"], **CLOSE)
        mean = posterior_mean(c, x_0, x_t, t)
        np.testing.assert_allclose(mean, tiny["p_mean_variance/mean"], **CLOSE)
        for ours, theirs in (
            (c.posterior_variance, "variance"),
            (c.posterior_log_variance, "log_variance"),
        ):
            golden = tiny[f"p_mean_variance/{theirs}"]
            np.testing.assert_allclose(
                np.broadcast_to(ours[t][:, None], golden.shape), golden, rtol=1e-5, atol=0
            )

    def test_losses_with_input_dropout(self, tiny, target):
        tiny = tiny(target)
        mask = jnp.asarray(2 * tiny["tl/dropmask"])
        _, losses = differentiate(tiny.params, mask, tiny)
        np.testing.assert_allclose(losses, tiny["tl/loss_dropmask"], rtol=1e-5, atol=0)

    @pytest.mark.loose_jax("dtypes")
    def test_losses_gradient_and_step_of_adamw(self, tiny, target):
        tiny = tiny(target)
        gradient, losses = differentiate(tiny.params, jnp.ones((14, 23)), tiny)
        assert losses.dtype == jnp.float32
        np.testing.assert_allclose(losses, tiny["tl/loss"], rtol=1e-5, atol=0)
        expected = tiny.layers("tl/grad")
        largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected))
        assert jax.tree.structure(gradient) == jax.tree.structure(expected)
        jax.tree.map(
            lambda g, e: np.testing.assert_allclose(g, e, rtol=1e-5, atol=1e-5 * largest),
            gradient,
            expected,
        )
        optimiser = make_optimiser(0.5)
        start = optimiser.init(tiny.params)
        updates, _ = jax.jit(optimiser.update)(gradient, start, tiny.params)
        params = jax.tree.map(lambda p, u: p - 5e-5 * u, tiny.params, updates)
        jax.tree.map(
            lambda p, e: np.testing.assert_allclose(p, e, **CLOSE),
            params,
            tiny.layers("tl/adamw1"),
        )
        moved = jax.tree.map(lambda p, q: float(jnp.abs(p - q).max()), params, tiny.params)
        assert min(jax.tree.leaves(moved)) > 2e-5


class TestLoss:
    @pytest.mark.parametrize("target", TARGETS)
    def test_no_reweighting(self, tiny, target):
        schedule = tiny(target).model.schedule
        weighted = coefficients(schedule, target)
        plain = coefficients(schedule, target, reweight=False)
        np.testing.assert_array_equal(plain.loss_weight, np.ones(10, np.float32))
        assert weighted.loss_weight[1] > 100 * weighted.loss_weight[0]
        for ours, theirs in zip(plain[:-1], weighted[:-1], strict=True):
            np.testing.assert_array_equal(ours, theirs)

    def test_perfect_output(self, tiny):
        tiny = tiny("epsilon")
        c, x_0, noise = tiny.model.coefficients(), tiny.golden["x_start"], tiny.golden["q_noise"]
        t = int32([0, 1, 2, 3, 4, 9])
        x_t = q_sample(c, x_0, t, noise)
        losses = denoising_loss(c, "epsilon", jnp.asarray(noise), x_0, x_t, noise, t)
        np.testing.assert_allclose(losses, np.zeros(6), atol=1e-12)
        losses = denoising_loss(c, "x0", jnp.asarray(x_0), x_0, x_t, noise, t)
        np.testing.assert_array_equal(losses, np.zeros(6))


class TestNormals:
    def test_quantiles(self):
        bits = np.linspace(0, 2**32 - 1, 1001).astype(np.uint32)
        uniform = ((bits >> 9).astype(np.float64) + 0.5) / 2**23
        normal = normal_from_bits(jnp.asarray(bits))
        assert normal.dtype == jnp.float32
        np.testing.assert_allclose(normal, scipy.special.ndtri(uniform), rtol=2e-4, atol=1e-6)
        assert (np.diff(normal) > 0).all()

    def test_of_the_inverse_error_function(self):
        """Every 23-bit uniform of a stretch in the middle, and of both tails."""
        upper = np.concatenate([np.arange(n, n + 30_000) for n in (0, 2**22 - 9, 2**23 - 30_000)])
        uniform = ((upper + np.float32(0.5)) * np.float32(2.0 / 2**23) - np.float32(1)).astype(
            np.float32
        )
        normal = jax.jit(normal_from_bits)(jnp.asarray(upper << 9, jnp.uint32))
        exact = np.sqrt(2) * scipy.special.erfinv(uniform.astype(np.float64))
        np.testing.assert_allclose(normal, exact, rtol=1e-5)

    def test_low_bits_are_free(self):
        bits = jnp.asarray([0, 511, 512, 2**32 - 512, 2**32 - 1], jnp.uint32)
        normal = np.asarray(normal_from_bits(bits))
        assert normal[0] == normal[1] < normal[2]
        assert normal[3] == normal[4]
        assert np.isfinite(normal).all()
        assert normal[0] == -normal[-1]
        assert 5 < normal[-1] < 5.6
