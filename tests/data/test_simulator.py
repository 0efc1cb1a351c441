"""The simulator: shape of its logs, and the truth about them that other tests rely on."""

import itertools
import re
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pdrec_jax.data.domains import merge_domains
from pdrec_jax.data.interactions import from_events
from pdrec_jax.data.simulator import Simulation, draw_lengths, simulate
from pdrec_jax.data.splits import leave_one_out
from pdrec_jax.errors import UserError


@pytest.fixture(scope="module")
def sim() -> Simulation:
    return simulate(2000, 3000, seed=1)


@pytest.fixture(scope="module")
def mixed() -> Simulation:
    return simulate(600, 800, seed=2, source_items=500)


def arrays(sim: Simulation) -> list:
    log = sim.log
    found = [log.offsets, log.items, log.times, log.item_ids, sim.accidental]
    return [*found, sim.affinity(np.arange(5))]


class TestShape:
    def test_lengths_like_toy(self):
        lengths = simulate(8000, 40_000, seed=0).log.lengths
        assert lengths.min() == 3
        assert abs(np.median(lengths) - 8) <= 1
        assert abs(lengths.mean() - 14.3) < 0.5
        assert 200 < lengths.max() < 1500

    @pytest.mark.parametrize("mean", [3, 5, 30.0])
    def test_mean_length(self, mean):
        lengths = simulate(5000, 10_000, seed=0, mean_length=mean).log.lengths
        assert lengths.min() >= 3
        assert lengths.mean() == pytest.approx(mean, rel=0.05)

    def test_given_lengths(self):
        """Histories of one length each, whatever the catalogue."""
        lengths = draw_lengths(np.random.default_rng(1), 400, 900, 12.0)
        for items in (900, 5000):
            log = simulate(400, items, seed=3, lengths=lengths).log
            np.testing.assert_array_equal(log.lengths, lengths)
            assert log.items.max() <= items

    def test_times(self, sim):
        log = sim.log
        assert not (log.times % 86_400).any()
        assert log.times.min() > 0
        assert log.times.max() < 1.54e9
        first = np.zeros(log.num_events, bool)
        first[log.offsets[:-1]] = True
        gaps = np.diff(log.times, prepend=0)[~first] / 86_400
        assert 0.35 < (gaps == 0).mean() < 0.55
        later = gaps[gaps > 0]
        assert 20 < np.median(later) < 80
        assert np.quantile(later, 0.95) > 300

    def test_popularity_is_a_power_law(self):
        sim = simulate(20_000, 2000, seed=0, popularity_exponent=1.0)
        popularity = np.sort(sim.catalogue.popularity[1:])[::-1]
        ranks = np.arange(1, 2001)
        assert popularity.sum() == pytest.approx(1)
        slope = np.polyfit(np.log(ranks + 10), np.log(popularity), 1)[0]
        assert slope == pytest.approx(-1)
        # The log follows: flatter at the top, because nobody chooses an item twice.
        counts = np.sort(np.bincount(sim.log.items, minlength=2001)[1:])[::-1]
        slope = np.polyfit(np.log(ranks[20:1000] + 10), np.log(counts[20:1000]), 1)[0]
        assert -1.1 < slope < -0.7

    def test_repeats_are_few(self, sim):
        log = sim.log
        pairs = log.event_users * (log.num_items + 1) + log.items
        assert log.num_events - np.unique(pairs).size < 0.06 * log.num_events

    def test_accidents(self, sim):
        assert sim.accidental.shape == sim.log.items.shape
        assert sim.accidental.mean() == pytest.approx(0.1, abs=0.01)
        assert not simulate(50, 100, seed=0, accidental_rate=0).accidental.any()
        assert simulate(50, 100, seed=0, accidental_rate=1).accidental.all()
        with pytest.raises(ValueError, match="read-only"):
            sim.accidental[0] = True

    def test_accidents_are_as_popular_as_choices(self, sim):
        counts = np.bincount(sim.log.items)[sim.log.items]
        ratio = counts[sim.accidental].mean() / counts[~sim.accidental].mean()
        assert 0.8 < ratio < 1.25

    @given(
        users=st.integers(1, 12),
        items=st.integers(3, 300),
        source_items=st.sampled_from([0, 3, 40]),
        seed=st.integers(0, 2**32),
        rate=st.floats(0, 1),
        drift=st.floats(0, 50),
        exponent=st.floats(0, 3),
    )
    @settings(max_examples=40)
    def test_any_size(self, users, items, source_items, seed, rate, drift, exponent):
        sim = simulate(
            users,
            items,
            seed=seed,
            source_items=source_items,
            accidental_rate=rate,
            drift=drift,
            popularity_exponent=exponent,
        )
        log = sim.log
        assert (log.num_users, log.num_target_items) == (users, items)
        assert log.num_items == items + source_items
        domains = np.zeros(log.num_events) if log.domains is None else log.domains
        assert (np.bincount(log.event_users[domains == 0], minlength=users) >= 3).all()
        affinity = sim.affinity(np.arange(users))
        assert affinity.dtype == np.float32
        assert affinity.shape == (users, items + 1)
        assert not affinity[:, 0].any()
        assert (affinity[:, 1:] > 0).all()
        assert affinity.sum(axis=1) == pytest.approx(np.ones(users), abs=1e-4)

    def test_seed_settles_everything(self):
        one, same, other = (simulate(50, 200, seed=seed, source_items=60) for seed in (3, 3, 4))
        for left, right in zip(arrays(one), arrays(same), strict=True):
            assert np.array_equal(left, right)
        assert not np.array_equal(one.log.items, other.log.items)

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("users", 0),
            ("items", 2),
            ("seed", -1),
            ("mean_length", 2.9),
            ("mean_length", np.nan),
            ("source_items", -1),
            ("source_mean_length", 0),
            ("accidental_rate", 1.1),
            ("accidental_rate", -0.1),
            ("drift", -1),
            ("popularity_exponent", np.inf),
        ],
    )
    def test_arguments_out_of_range(self, name, value):
        arguments = {"users": 10, "items": 20, "seed": 0, name: value}
        with pytest.raises(UserError, match=f"^{name}: a number from .* is expected, not {value}"):
            simulate(**arguments)

    def test_a_large_log_takes_seconds(self):
        begin = time.process_time()
        sim = simulate(100_000, 20_000, seed=0)
        assert sim.log.num_events > 1_300_000
        # Five times what it takes: this is to catch a loop over users, not a slow machine.
        assert time.process_time() - begin < 20


class TestTwoDomains:
    def test_is_a_merged_log(self, mixed):
        log = mixed.log
        parts = []
        for domain, ids in ((0, np.arange(801)), (1, np.arange(501))):
            part = log.take(log.domains == domain)
            items = log.item_ids[part.items]
            users = log.user_ids[part.event_users]
            parts.append(
                from_events(
                    users - 1, items, part.times, user_ids=log.user_ids, item_ids=ids.tolist()
                )
            )
        merged = merge_domains(*parts)
        assert merged.offsets.tolist() == log.offsets.tolist()
        assert merged.times.tolist() == log.times.tolist()
        assert merged.domains.tolist() == log.domains.tolist()
        assert merged.item_ids[merged.items].tolist() == log.item_ids[log.items].tolist()

    def test_lengths(self):
        log = simulate(4000, 9000, seed=0, source_items=9000, source_mean_length=6).log
        source = np.bincount(log.event_users[log.domains == 1], minlength=4000)
        assert source.min() >= 3
        assert source.mean() == pytest.approx(6, rel=0.05)
        assert (log.lengths - source).mean() == pytest.approx(14.3, rel=0.05)

    def test_source_events_lie_between_target_events(self, mixed):
        split = leave_one_out(mixed.log)
        assert split.source_lengths.mean() > 4
        assert split.num_source_items == 500

    def test_the_same_interests_drive_both(self):
        sim = simulate(3000, 600, seed=0, source_items=600, drift=0, accidental_rate=0)
        log = sim.log
        by_user = np.zeros((3000, 1201), np.float32)
        by_user[log.event_users, log.items] = 1
        target, source = by_user[:, 1:601], by_user[:, 601:]
        expected = np.outer(target.sum(0), source.sum(0)) / 3000
        lift = np.sort((target.T @ source / expected).ravel())
        # One topic in 20 is a source item's own: independent domains would give a lift of 1.
        assert lift[-lift.size // 40 :].mean() > 3


class TestTruth:
    def test_affinity_predicts_the_last_choice(self, sim):
        split = leave_one_out(sim.log)
        deliberate = ~sim.accidental[sim.log.offsets[1:] - 1]
        affinity = sim.affinity(np.arange(2000))[:, 1:]
        popularity = np.bincount(split.train.items, minlength=3001)[1:]
        chosen = split.test_items - 1

        def percentile(scores):
            mine = np.take_along_axis(scores, chosen[:, None], axis=1)
            return ((scores < mine).mean(axis=1) + (scores == mine).mean(axis=1) / 2)[:, None]

        by_affinity = percentile(affinity)
        by_popularity = percentile(np.broadcast_to(popularity, affinity.shape))
        assert by_affinity[deliberate].mean() > 0.95
        assert by_affinity[deliberate].mean() > by_popularity[deliberate].mean() + 0.2
        assert by_affinity[~deliberate].mean() == pytest.approx(
            by_popularity[~deliberate].mean(), abs=0.08
        )

    def test_affinity_is_the_frequency_of_choices(self):
        # Without drift the interests of the end are those of the first choice, which nothing that
        # was chosen before stands in the way of.
        sim = simulate(20_000, 500, seed=5, drift=0, accidental_rate=0, mean_length=3)
        expected = sim.affinity(np.arange(20_000)).sum(axis=0, dtype=np.float64)[1:]
        counts = np.bincount(sim.log.items[sim.log.offsets[:-1]], minlength=501)[1:]
        deviation = (counts - expected) / np.sqrt(expected)
        assert 0.85 < np.sqrt((deviation**2).mean()) < 1.15
        assert abs(deviation.mean()) < 0.15

    def test_interests_drift(self):
        sim = simulate(3000, 1000, seed=0, drift=0.5, accidental_rate=0)
        log = sim.log
        affinity = np.concatenate(
            [
                sim.affinity(block)[np.repeat(np.arange(block.size), log.lengths[block]), items]
                for block, items in zip(
                    np.array_split(np.arange(3000), 10),
                    np.split(log.items, log.offsets[300:3000:300]),
                    strict=True,
                )
            ]
        )
        age = (log.times[log.offsets[1:] - 1][log.event_users] - log.times) / 86_400
        liked = affinity > np.quantile(affinity, 0.2)
        years = [(0, 30), (200, 600), (1000, 2000), (3000, 5000)]
        shares = [liked[(age >= low) & (age <= high)].mean() for low, high in years]
        assert all(older < newer - 0.03 for newer, older in itertools.pairwise(shares))

    def test_without_drift_old_choices_are_as_telling(self):
        # Short histories, because a long one uses up what its owner likes best.
        sim = simulate(2000, 1000, seed=0, drift=0, accidental_rate=0, mean_length=3)
        log = sim.log
        affinity = sim.affinity(np.arange(2000))
        first, last = log.items[log.offsets[:-1]], log.items[log.offsets[1:] - 1]
        rows = np.arange(2000)
        ratio = np.log(affinity[rows, first]).mean() - np.log(affinity[rows, last]).mean()
        assert abs(ratio) < 0.3

    def test_accidents_go_against_affinity(self, sim):
        log = sim.log
        affinity = np.concatenate(
            [
                sim.affinity([user])[0, log.items[begin:end]]
                for user, (begin, end) in enumerate(itertools.pairwise(log.offsets))
            ]
        )
        order = np.argsort(np.argsort(affinity))
        accidents = int(sim.accidental.sum())
        deliberate = sim.accidental.size - accidents
        below = order[~sim.accidental].sum() - deliberate * (deliberate - 1) / 2
        assert below / (accidents * deliberate) > 0.8

    def test_a_collaborative_model_beats_popularity(self, sim):
        # What users choose together, the cheapest collaborative model there is.
        split = leave_one_out(sim.log)
        train = split.train
        chose = np.zeros((2000, 3001), np.float32)
        chose[train.event_users, train.items] = 1
        counts = chose.sum(axis=0)
        together = chose.T @ chose
        np.fill_diagonal(together, 0)
        together /= np.sqrt(np.outer(counts + 1, counts + 1))
        candidates = np.random.default_rng(0).integers(1, 3001, (2000, 100))
        candidates[:, 0] = split.test_items

        def ndcg(scores):
            scores = np.take_along_axis(scores, candidates, axis=1)
            higher = (scores[:, 1:] > scores[:, :1]).sum(axis=1)
            rank = higher + (scores[:, 1:] == scores[:, :1]).sum(axis=1) / 2
            return np.where(rank < 10, 1 / np.log2(rank + 2), 0).mean()

        by_popularity = ndcg(np.broadcast_to(counts, chose.shape))
        collaborative = ndcg(chose @ together + 1e-6 * counts)
        truth = ndcg(sim.affinity(np.arange(2000)))
        assert collaborative > 2 * by_popularity
        assert truth > 1.3 * collaborative


def test_errors_are_one_line():
    with pytest.raises(UserError) as caught:
        simulate(1, 1, seed=0)
    assert re.fullmatch(r"items: a number from 3 to \d+ is expected, not 1", str(caught.value))
