"""The reverse loop, dense and factored, against the recorded one in every variant."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdrec_jax.diffusion import reverse
from pdrec_jax.diffusion.schedule import make_schedule

TARGETS = ("x0", "epsilon")
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(autouse=True)
def quick_compilation() -> None:
    """None: held against the reference as a run is compiled."""


def dense(tiny, x, step_noise=None) -> jax.Array:
    """The dense loop on recorded inputs; step_noise [T, B, I] in the order of the loop."""
    model = tiny.model
    denoiser, (a, c) = model.denoiser(tiny.params), model.schedule.affine(model.target)
    log_variance = model.coefficients().posterior_log_variance

    def one(x, noise):
        def denoise(x, t):
            return denoiser(x[None, :], t[None])[0]

        given = None if noise is None else lambda t: noise[len(a) - 1 - t]
        return reverse.reverse_dense(denoise, a, c, x, noise=given, log_variance=log_variance)

    return jax.jit(jax.vmap(one, in_axes=(0, None if step_noise is None else 1)))(x, step_noise)


def factored(tiny, x) -> jax.Array:
    """The loop in H dimensions, read out for every slot."""
    model = tiny.model
    output = tiny.params["output"]

    @jax.jit
    def run(x):
        denoiser = model.denoiser(tiny.params)
        coupled = reverse.couple(tiny.params["item_kernel"], output["kernel"], output["bias"])
        a, c = model.schedule.affine(model.target)
        out = reverse.reverse_hidden(denoiser.trunk, *coupled, a, c, denoiser.project(x))
        return out.s @ output["kernel"].T + out.r * output["bias"][None, :] + out.k * x

    return run(x)


@pytest.mark.parametrize("target", TARGETS)
class TestGoldens:
    @pytest.mark.parametrize("form", [dense, factored])
    def test_every_start(self, tiny, form, target):
        """From the vectors themselves and from noisy ones, in one batch of loops."""
        tiny = tiny(target)
        c = tiny.model.coefficients()
        x, noise = (jnp.asarray(tiny.golden[key]) for key in ("x_start", "q_noise"))
        starts = {
            "s0": x,
            "s4": reverse.start(c, 4, x, noise),
            "s10": reverse.start(c, 10, x, noise),
            "s10_zeronoise": reverse.start(c, 10, x, jnp.zeros_like(x)),
        }
        ends = jnp.split(form(tiny, jnp.concatenate(list(starts.values()))), len(starts))
        for name, end in zip(starts, ends, strict=True):
            np.testing.assert_allclose(end, tiny[f"p_sample_{name}"], **CLOSE, err_msg=name)

    def test_sampling_noise(self, tiny, target):
        tiny = tiny(target)
        x, noise = (jnp.asarray(tiny.golden[key]) for key in ("x_start", "step_noise"))
        noisy = dense(tiny, x, noise)
        np.testing.assert_allclose(noisy, tiny["p_sample_s0_noisy"], **CLOSE)
        assert np.abs(noisy - tiny["p_sample_s0"]).max() > 1e-4


@pytest.mark.parametrize("form", [dense, factored])
def test_golden_without_noise_at_all(tiny, form):
    """Nothing is left then that the target could change."""
    schedule = make_schedule("linear-var", 10, noise_scale=0, noise_min=0.0005, noise_max=0.005)
    for_x0, for_noise = (tiny(target, schedule=schedule) for target in TARGETS)
    end = form(for_x0, jnp.asarray(for_x0.golden["x_start"]))
    for target in (for_x0, for_noise):
        np.testing.assert_allclose(end, target["p_sample_noise_scale0"], **CLOSE)
    for ours, theirs in zip(schedule.affine("x0"), schedule.affine("epsilon"), strict=True):
        np.testing.assert_array_equal(ours, theirs)


class TestReadout:
    def test_x0_prediction_forgets_the_start(self, tiny):
        """k is exactly 0 and r exactly 1, so scores are dot products plus the output bias."""
        schedule = tiny("x0").model.schedule
        a, c = schedule.affine("x0")
        out = reverse.reverse_hidden(
            lambda z, t: jnp.tanh(z), jnp.eye(3), jnp.zeros(3), a, c, jnp.ones((2, 3))
        )
        assert out.k == 0
        np.testing.assert_allclose(out.r, 1, rtol=1e-7)
        assert out.s.shape == (2, 3)

    def test_start(self, tiny):
        c = tiny("x0").model.coefficients()
        x, noise = jnp.ones((2, 3)), jnp.full((2, 3), 2.0)
        np.testing.assert_array_equal(reverse.start(c, 0, x, noise), x)
        expected = c.signal_scale[6] + 2 * c.noise_scale[6]
        np.testing.assert_allclose(reverse.start(c, 7, x, noise), np.full((2, 3), expected))
