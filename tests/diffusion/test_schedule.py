"""Schedules: the recorded ones to 1e-12, their algebra, and what is refused."""

import dataclasses

import numpy as np
import pytest

from pdrec_jax.diffusion.schedule import (
    FIRST_BETA,
    MAX_BETA,
    SCHEDULES,
    Schedule,
    make_betas,
    make_schedule,
)
from pdrec_jax.errors import UserError

KINDS = {
    "toy": "linear-var",
    "book": "linear-var",
    "tidefault": "linear-var",
    "toy5": "linear-var",
    "toy_betafree": "linear-var",
    "linear_toy": "linear",
    "linear_default": "linear",
    "cosine10": "cosine",
    "cosine5": "cosine",
    "binomial10": "binomial",
    "binomial5": "binomial",
}
ARRAYS = {
    "betas": "betas",
    "alphas_cumprod": "alpha_bars",
    "alphas_cumprod_prev": "alpha_bars_previous",
    "sqrt_alphas_cumprod": "signal_scale",
    "sqrt_one_minus_alphas_cumprod": "noise_scale",
    "sqrt_recip_alphas_cumprod": "x0_from_xt",
    "sqrt_recipm1_alphas_cumprod": "x0_from_noise",
    "posterior_variance": "posterior_variance",
    "posterior_log_variance_clipped": "posterior_log_variance",
    "posterior_mean_coef1": "posterior_x0",
    "posterior_mean_coef2": "posterior_xt",
    "snr": "snr",
}


def noise(scale: float = 0.01, low: float = 0.0005, high: float = 0.005) -> dict[str, float]:
    return {"noise_scale": scale, "noise_min": low, "noise_max": high}


def random_schedule(seed: int, steps: int) -> Schedule:
    return Schedule(np.random.default_rng(seed).uniform(1e-4, 0.3, steps))


class TestGoldens:
    def test_every_recorded_setting_is_compared(self, goldens):
        assert {key.split("/")[0] for key in goldens("schedules")} == set(KINDS)

    @pytest.mark.parametrize("name", KINDS)
    def test_schedule(self, goldens, name):
        golden = goldens("schedules")
        *levels, steps = golden[f"{name}/settings"]
        schedule = make_schedule(
            KINDS[name], int(steps), **noise(*levels), fix_first_beta=name != "toy_betafree"
        )
        assert schedule.steps == steps
        for theirs, ours in ARRAYS.items():
            value = getattr(schedule, ours)
            assert value.dtype == np.float64
            np.testing.assert_allclose(
                value, golden[f"{name}/{theirs}"], rtol=1e-12, atol=0, err_msg=theirs
            )
        for target, theirs in (("x0", "weight_x0"), ("epsilon", "weight_eps")):
            np.testing.assert_allclose(
                schedule.loss_weights(target), golden[f"{name}/{theirs}"], rtol=1e-12, atol=0
            )


class TestMakeSchedule:
    @pytest.mark.parametrize("name", SCHEDULES)
    @pytest.mark.parametrize("steps", [1, 2, 50])
    def test_first_beta_is_fixed_on_request(self, name, steps):
        free = make_schedule(name, steps, **noise(), fix_first_beta=False)
        fixed = make_schedule(name, steps, **noise())
        assert fixed.betas[0] == FIRST_BETA
        assert free.betas[0] != FIRST_BETA
        np.testing.assert_array_equal(fixed.betas[1:], free.betas[1:])
        assert ((free.betas > 0) & (free.betas <= 1)).all()

    def test_linear_variance_is_linear(self):
        schedule = make_schedule("linear-var", 6, **noise(0.1, 0.1, 0.5), fix_first_beta=False)
        np.testing.assert_allclose(1 - schedule.alpha_bars, np.linspace(0.01, 0.05, 6), rtol=1e-12)

    def test_without_noise(self):
        schedule = make_schedule("linear-var", 4, **noise(0))
        assert schedule.noise_free
        np.testing.assert_array_equal(schedule.signal_scale, np.ones(4))
        np.testing.assert_array_equal(schedule.noise_scale, np.zeros(4))
        np.testing.assert_array_equal(schedule.posterior_variance, np.zeros(4))
        np.testing.assert_array_equal(schedule.snr, np.full(4, np.inf))
        for target in ("x0", "epsilon"):
            np.testing.assert_array_equal(schedule.loss_weights(target), np.ones(4))
            a, c = schedule.affine(target)
            np.testing.assert_array_equal(a, np.ones(4))
            np.testing.assert_array_equal(c, np.zeros(4))

    @pytest.mark.parametrize("make", [make_schedule, make_betas])
    def test_unknown_name(self, make):
        with pytest.raises(UserError, match=r"one of .*'linear-var'.*, got 'quadratic'$"):
            make("quadratic", 5, **noise())

    @pytest.mark.parametrize(
        ("name", "levels"),
        [
            ("linear", (1, 0.5, 1.5)),  # a beta above 1
            ("linear-var", (1, 0.5, 0.1)),  # noise that falls
            ("linear-var", (1, 0.1, 3)),  # more variance than there is
            ("linear-var", (1, 0, 1.05)),  # in the last step alone
            ("linear-var", (1, 0, 2)),  # all that there is before the last step
            ("linear-var", (1, 0.1, 0.1)),  # noise that stays
        ],
    )
    def test_levels_that_make_no_schedule(self, name, levels):
        with pytest.raises(UserError, match=rf"noise_max: the {name} schedule leaves .* got "):
            make_schedule(name, 5, **noise(*levels))

    def test_equal_values_are_one_key_of_what_is_compiled(self):
        one, same, other = (
            make_schedule("linear", 5, noise_scale=1.0, noise_min=0.1, noise_max=most)
            for most in (0.2, 0.2, 0.3)
        )
        assert one == same
        assert hash(one) == hash(same)
        assert one != other
        assert one != dataclasses.replace(one, noise_free=True)
        assert one != one.betas.tobytes()

    def test_coefficients_that_nothing_reads_warn_of_nothing(self):
        """Where the last step keeps nothing of the data only epsilon needs its inverse."""
        schedule = make_schedule("linear", 5, **noise(1, 0.1, 1))
        assert schedule.x0_from_xt[-1] == np.inf
        a, c = schedule.affine("x0")
        assert np.isfinite([a, c]).all()

    def test_a_variance_of_1_leaves_next_to_nothing_in_the_last_step(self):
        schedule = make_schedule("linear-var", 4, **noise(1, 0.1, 1), fix_first_beta=False)
        variances = [0.1, 0.4, 0.7, 1 - 0.3 * (1 - MAX_BETA)]
        np.testing.assert_allclose(1 - schedule.alpha_bars, variances, rtol=1e-12)

    @pytest.mark.parametrize("variance", [0.5, 0.9995])
    def test_a_single_step_has_the_variance_of_the_lower_end(self, variance):
        """The upper end, whatever it is, belongs to later steps, and so does the largest beta."""
        schedule = make_schedule("linear-var", 1, **noise(1, variance, 2), fix_first_beta=False)
        np.testing.assert_allclose(schedule.betas, [variance], rtol=1e-12)

    @pytest.mark.parametrize("name", ["linear", "linear-var"])
    def test_a_first_beta_of_0_counts_where_it_is_kept(self, name):
        assert make_schedule(name, 5, **noise(1, 0, 0.5)).betas[0] == FIRST_BETA
        with pytest.raises(UserError, match=f"the {name} schedule leaves"):
            make_schedule(name, 5, **noise(1, 0, 0.5), fix_first_beta=False)

    @pytest.mark.parametrize("method", ["loss_weights", "affine"])
    def test_unknown_target(self, method):
        with pytest.raises(UserError, match="'v'"):
            getattr(random_schedule(0, 3), method)("v")


class TestAlgebra:
    @pytest.mark.parametrize("steps", [1, 2, 7])
    def test_posterior_is_bayes(self, steps):
        """The posterior's mean and variance follow from the two Gaussians that it comes from."""
        s = random_schedule(steps, steps)
        prior = 1 - s.alpha_bars_previous[1:]
        step, kept = s.betas[1:], 1 - s.betas[1:]
        precision = 1 / prior + kept / step
        np.testing.assert_allclose(s.posterior_variance[1:], 1 / precision, rtol=1e-9)
        from_x0 = np.sqrt(s.alpha_bars_previous[1:]) / prior / precision
        np.testing.assert_allclose(s.posterior_x0[1:], from_x0, rtol=1e-9)
        np.testing.assert_allclose(s.posterior_xt[1:], np.sqrt(kept) / step / precision, rtol=1e-9)
        assert s.posterior_variance[0] == 0

    def test_log_variance_borrows_the_second_value(self):
        s = random_schedule(3, 5)
        expected = np.log(np.append(s.posterior_variance[1], s.posterior_variance[1:]))
        np.testing.assert_array_equal(s.posterior_log_variance, expected)

    def test_log_variance_of_one_step(self):
        assert random_schedule(3, 1).posterior_log_variance == -np.inf

    @pytest.mark.parametrize("steps", [1, 2, 9])
    def test_affine_step(self, steps):
        s = random_schedule(steps, steps)
        f, x = np.random.default_rng(0).normal(size=(2, steps))
        a, c = s.affine("x0")
        np.testing.assert_allclose(a * f + c * x, s.posterior_x0 * f + s.posterior_xt * x)
        np.testing.assert_allclose(a[0], 1, rtol=1e-12)
        assert c[0] == 0
        a, c = s.affine("epsilon")
        x_0 = s.x0_from_xt * x - s.x0_from_noise * f
        np.testing.assert_allclose(a * f + c * x, s.posterior_x0 * x_0 + s.posterior_xt * x)

    def test_x0_recovers_from_noise(self):
        s = random_schedule(1, 6)
        x_0, noise = np.random.default_rng(0).normal(size=(2, 6))
        x_t = s.signal_scale * x_0 + s.noise_scale * noise
        np.testing.assert_allclose(s.x0_from_xt * x_t - s.x0_from_noise * noise, x_0, rtol=1e-9)
