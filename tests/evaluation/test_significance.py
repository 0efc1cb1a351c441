"""Paired tests: against closed forms, SciPy's own, and what they promise on simulated draws."""

import math

import numpy as np
import pytest

from pdrec_jax.evaluation import significance
from pdrec_jax.evaluation.significance import (
    bootstrap_interval,
    compare,
    holm,
    paired_t,
)


class TestPairedT:
    def test_two_differences_have_a_closed_form(self) -> None:
        # With one degree of freedom Student's t is Cauchy's distribution.
        t, p = paired_t(np.array([1.0, 3.0]))
        assert t == pytest.approx(2.0)
        assert p == pytest.approx(1 - 2 * math.atan(2.0) / math.pi, rel=1e-12)

    def test_three_differences_have_one_too(self) -> None:
        t, p = paired_t(np.array([0.0, 1.0, 5.0]))
        assert p == pytest.approx(1 - t / math.sqrt(2 + t * t), rel=1e-12)

    @pytest.mark.parametrize("count", [2, 5, 30, 7000])
    def test_scipy(self, count) -> None:
        stats = pytest.importorskip("scipy.stats")
        values = np.random.default_rng(count).normal(0.1, 1, (2, count))
        expected = stats.ttest_rel(values[0], values[1])
        found = paired_t(values[0] - values[1])
        assert found == pytest.approx((expected.statistic, expected.pvalue), rel=1e-9)

    def test_without_a_spread(self) -> None:
        assert paired_t(np.zeros(4)) == (0.0, 1.0)
        assert paired_t(np.full(4, -0.25)) == (-math.inf, 0.0)

    def test_of_one(self) -> None:
        assert np.isnan(paired_t(np.ones(1))).all()

    def test_level(self) -> None:
        rng = np.random.default_rng(0)
        rejected = np.mean([paired_t(rng.normal(size=6))[1] < 0.05 for _ in range(4000)])
        # Five standard errors of a share of 0.05 in 4,000.
        assert rejected == pytest.approx(0.05, abs=5 * math.sqrt(0.05 * 0.95 / 4000))


class TestBootstrap:
    def test_one_user_or_all_alike(self) -> None:
        assert bootstrap_interval(np.full((3, 1), 0.5)) == pytest.approx((0.5, 0.5), rel=1e-12)
        assert bootstrap_interval(np.full((1, 9), 0.25)) == pytest.approx((0.25, 0.25), rel=1e-12)

    def test_nobody(self) -> None:
        assert np.isnan(bootstrap_interval(np.zeros((2, 0)))).all()

    def test_repeats(self) -> None:
        values = np.random.default_rng(0).normal(size=(2, 50))
        assert bootstrap_interval(values) == bootstrap_interval(values)
        assert bootstrap_interval(values, seed=1) != bootstrap_interval(values)

    def test_several_share_their_draws(self) -> None:
        values = np.random.default_rng(0).normal(size=(3, 2, 50))
        low, high = bootstrap_interval(values, draws=200)
        for each, ends in zip(values, zip(low, high, strict=True), strict=True):
            assert bootstrap_interval(each, draws=200) == pytest.approx(ends, rel=1e-9)

    def test_width_over_users(self) -> None:
        values = np.random.default_rng(1).normal(0, 1, (1, 2000))
        low, high = bootstrap_interval(values, draws=4000)
        error = values.std() / math.sqrt(2000)
        # The quantiles of 4,000 draws are known to about 3 % of the width.
        assert high - low == pytest.approx(2 * 1.96 * error, rel=0.1)
        assert (low + high) / 2 == pytest.approx(values.mean(), abs=0.2 * error)

    def test_width_over_seeds_and_users(self) -> None:
        rng = np.random.default_rng(2)
        values = rng.normal(0, 1, (400, 1)) + rng.normal(0, 1, (1, 400))
        low, high = bootstrap_interval(values, draws=4000)
        error = math.sqrt(values.mean(axis=1).var() / 400 + values.mean(axis=0).var() / 400)
        assert high - low == pytest.approx(2 * 1.96 * error, rel=0.1)

    @pytest.mark.parametrize("group", [1, 7, 50, 400])
    def test_width_is_that_of_any_group_of_users(self, group, monkeypatch) -> None:
        rng = np.random.default_rng(2)
        values = rng.normal(0, 1, (2, 3, 1)) + rng.normal(0, 1, (2, 1, 400))
        values[:, :, ::7] += 5  # so that groups differ
        whole = np.array(bootstrap_interval(values, draws=4000))
        monkeypatch.setattr(significance, "_GROUP", group)
        grouped = np.array(bootstrap_interval(values, draws=4000))
        width = whole[1] - whole[0]
        np.testing.assert_allclose(grouped[1] - grouped[0], width, rtol=0.1)
        np.testing.assert_allclose(
            grouped.mean(axis=0), whole.mean(axis=0), atol=0.05 * width.max()
        )

    def test_a_short_last_group_counts_by_its_users(self, monkeypatch) -> None:
        """Two groups of 300 and 100 users, who are all hit in the one and never in the other."""
        monkeypatch.setattr(significance, "_GROUP", 300)
        low, high = bootstrap_interval((np.arange(400) >= 300).astype(float)[None], draws=500)
        error = math.sqrt(0.25 * 0.75 / 400)
        assert (low, high) == pytest.approx((0.25 - 1.96 * error, 0.25 + 1.96 * error), abs=0.015)

    def test_coverage(self) -> None:
        rng = np.random.default_rng(3)
        inside = 0
        for trial in range(200):
            values = rng.exponential(1, (1, 150))
            low, high = bootstrap_interval(values, seed=trial, draws=300)
            inside += low <= 1 <= high
        # A percentile interval of 150 skewed values covers a little less than it says.
        assert 0.88 <= inside / 200 <= 0.99


class TestHolm:
    def test_by_hand(self) -> None:
        found = holm(np.array([0.04, 0.01, 0.03]))
        np.testing.assert_allclose(found, [0.06, 0.03, 0.06], rtol=1e-12)

    def test_at_most_one_and_in_order(self) -> None:
        p = np.random.default_rng(0).uniform(size=40)
        found = holm(p)
        assert (found >= p).all()
        assert found.max() <= 1
        np.testing.assert_array_equal(
            np.argsort(found[np.argsort(p)], kind="stable"), np.arange(40)
        )

    def test_a_test_that_was_not_made_does_not_count(self) -> None:
        np.testing.assert_array_equal(holm(np.array([0.01, np.nan])), [0.01, np.nan])
        assert holm(np.zeros(0)).shape == (0,)

    def test_any_false_finding_is_rare(self) -> None:
        rng = np.random.default_rng(1)
        # Ten tests that share half of their variance: the family's level holds all the same.
        false = 0
        for _ in range(1000):
            values = rng.normal(size=(10, 8)) + rng.normal(size=(1, 8))
            false += (holm(np.array([paired_t(row)[1] for row in values])) < 0.05).any()
        assert false / 1000 <= 0.05 + 4 * math.sqrt(0.05 * 0.95 / 1000)


class TestCompare:
    def test_the_two_tests(self) -> None:
        rng = np.random.default_rng(4)
        base = rng.uniform(size=(2, 3, 80))
        model = base + rng.normal(0.1, 0.3, (2, 3, 80))
        for found, gain in zip(compare(model, base), model - base, strict=True):
            assert found.difference == pytest.approx(gain.mean())
            # Sums of another order differ in the last digits.
            assert found.p_users == pytest.approx(paired_t(gain.mean(axis=0))[1], rel=1e-9)
            assert found.p_seeds == pytest.approx(paired_t(gain.mean(axis=1))[1], rel=1e-9)
            assert found.low < found.difference < found.high

    def test_users_that_one_lacks_are_left_out(self) -> None:
        rng = np.random.default_rng(5)
        model, base = rng.uniform(size=(2, 1, 2, 30))
        kept = compare(model[:, :, 3:], base[:, :, 3:])
        model[0, 0, 0], base[0, 1, 1], base[0, 0, 2] = np.nan, np.nan, np.nan
        assert compare(model, base) == kept

    def test_one_seed_has_no_test_over_seeds(self) -> None:
        (found,) = compare(np.array([[[1.0, 0.0, 1.0]]]), np.zeros((1, 1, 3)))
        assert math.isnan(found.p_seeds)
        assert not math.isnan(found.p_users)

    def test_seeds_that_differ_alike_have_none_either(self) -> None:
        # Three users of ten more are hit under each seed, but others.
        base, model = np.zeros((1, 2, 10)), np.zeros((1, 2, 10))
        model[0, 0, :3] = model[0, 1, 4:7] = 1
        (found,) = compare(model, base)
        assert math.isnan(found.p_seeds)
        assert found.p_users < 0.05
        model[0, 1, 7] = 1
        assert compare(model, base)[0].p_seeds == pytest.approx(paired_t(np.array([0.3, 0.4]))[1])
        assert compare(base, base)[0].p_seeds == 1

    def test_shares_of_few_users_are_rarely_significant_by_chance(self) -> None:
        rng = np.random.default_rng(6)
        false = 0
        for _ in range(300):
            ranks = rng.integers(0, 100, (2, 2, 100))  # models, seeds, users
            hits = np.stack([(ranks < k).astype(float) for k in (1, 5, 10, 20, 50)], axis=1)
            p_values = [found.p_seeds for found in compare(hits[0], hits[1], draws=2)]
            false += bool((holm(np.array(p_values)) < 0.05).any())
        assert false / 300 <= 0.05 + 4 * math.sqrt(0.05 * 0.95 / 300)

    def test_nobody_in_common(self) -> None:
        (found,) = compare(np.full((1, 2, 3), np.nan), np.zeros((1, 2, 3)))
        assert math.isnan(found.difference)
