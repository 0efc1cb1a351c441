"""Figures against counts by hand, and the shuffle test on logs with an order and without."""

import numpy as np
import pytest

from pdrec_jax.data.readers import read_log
from pdrec_jax.data.simulator import simulate
from pdrec_jax.prepare.figures import measure, shuffle_test
from pdrec_jax.prepare.filters import Records


def records(log) -> Records:
    return Records(log.event_users.astype(np.int32), log.items - np.int32(1), log.times)


def shuffled(given: Records, seed: int) -> Records:
    order = np.lexsort((np.random.default_rng(seed).random(len(given)), given.users))
    return Records(given.users, given.items[order], given.times)


def walks(users: int, follow: float, repeats: tuple[int, int], tracks: int = 300) -> Records:
    """Listening: each track a few times in a row, then a neighbour of it or any other."""
    rng = np.random.default_rng(0)
    steps = np.where(rng.random((users, 12)) < 0.5, 1, -1)
    jumps = rng.random((users, 12)) >= follow
    steps[jumps] = rng.integers(0, tracks, jumps.sum())
    played = (np.cumsum(steps, 1) + rng.integers(0, tracks, (users, 1))) % tracks
    times = rng.integers(repeats[0], repeats[1] + 1, played.size)
    owners = np.repeat(np.arange(users, dtype=np.int32), 12)
    return Records(
        np.repeat(owners, times), np.repeat(played.ravel().astype(np.int32), times), None
    )


class TestMeasure:
    USERS = (0, 0, 0, 0, 1, 1, 1, 2, 2)
    ITEMS = (0, 1, 0, 2, 1, 0, 3, 4, 4)
    TIMES = (1, 1, 2, 3, 5, 7, 7, 9, 9)

    def figures(self, timed: bool = True):
        return measure(
            Records(
                np.array(self.USERS, np.int32),
                np.array(self.ITEMS, np.int32),
                np.array(self.TIMES, np.float64) if timed else None,
            )
        )

    def test_counts(self) -> None:
        found = self.figures()
        assert (found.users, found.items, found.records) == (3, 5, 9)
        assert found.density == 9 / 15
        assert (found.shortest, found.median, found.mean, found.longest) == (2, 3, 3, 4)
        assert found.widest == 3
        assert found.high == 4
        assert (found.short_users, found.lone_users) == (1, 1)
        assert (found.single_items, found.repeats) == (2, 2)
        assert (found.first_time, found.last_time) == (1, 9)
        # Users 0 and 1 are tested on items 2 and 3; what trains is 0, 1 and 1.
        assert found.cold_tests == 1
        assert found.ties == 3 / 9
        assert found.tied_ends == 1 / 2
        assert found.order is None

    def test_without_times(self) -> None:
        found = self.figures(timed=False)
        assert (found.first_time, found.last_time, found.ties, found.tied_ends) == (None,) * 4

    def test_real_log(self, real_data) -> None:
        # The counts of the log's own description.
        toy = measure(records(read_log(real_data / "amazon_toy.inter.gz", ids="integer")))
        assert (toy.users, toy.items, toy.records) == (7_996, 37_868, 114_487)
        assert (toy.shortest, toy.median, toy.longest) == (3, 8, 480)
        assert (toy.single_items, toy.repeats) == (17_400, 3_651)
        assert round(toy.cold_tests * 7_996) == 2_256
        assert round(toy.tied_ends * 7_996) == 3_508
        assert toy.order > 100


class TestShuffle:
    def test_an_order_that_means_something(self) -> None:
        assert shuffle_test(records(simulate(600, 800, seed=0).log)) > 6

    @pytest.mark.parametrize("seed", range(5))
    def test_one_that_does_not(self, seed) -> None:
        # 20 shuffles give the spread to within a sixth or so: 5 of them is far beyond chance.
        given = shuffled(records(simulate(600, 800, seed=0).log), seed)
        assert abs(shuffle_test(given)) < 5

    @pytest.mark.parametrize(("follow", "repeats"), [(0.8, (3, 6)), (0.8, (1, 1)), (0.3, (1, 20))])
    def test_runs_of_an_item_hide_no_order(self, follow, repeats) -> None:
        assert shuffle_test(walks(300, follow, repeats)) > 6

    @pytest.mark.parametrize("tracks", [30, 300])
    @pytest.mark.parametrize("repeats", [(1, 1), (3, 6), (1, 20)])
    def test_runs_and_returns_feign_no_order(self, repeats, tracks) -> None:
        assert abs(shuffle_test(walks(300, 0.0, repeats, tracks))) < 5
        given = walks(300, 0.8, repeats, tracks)
        assert abs(shuffle_test(shuffled(given, 3))) < 5

    def test_neighbours_that_users_avoid(self, monkeypatch) -> None:
        # Every pair once among the users: fewer in common than chance has.
        steps = np.arange(40)
        zigzag = np.where(steps % 2, -(steps + 1) // 2, steps // 2) % 40
        items = (zigzag + np.arange(40)[:, None]) % 40
        given = Records(
            np.repeat(np.arange(20, dtype=np.int32), 40), items[:20].ravel().astype(np.int32), None
        )
        monkeypatch.setattr("pdrec_jax.prepare.figures._PAIRS_ENOUGH", 100)
        assert shuffle_test(given) < -3

    def test_one_user_over_and_over(self) -> None:
        users = np.repeat(np.arange(50, dtype=np.int32), 100)
        assert shuffle_test(Records(users, users, None)) is None

    def test_a_sample_is_enough(self, monkeypatch) -> None:
        given = records(simulate(1500, 1500, seed=1).log)
        monkeypatch.setattr("pdrec_jax.prepare.figures._SAMPLE", 10_000)
        assert shuffle_test(given) > 4

    def test_a_heavy_user_does_not_end_the_sample(self, monkeypatch) -> None:
        light = records(simulate(600, 800, seed=0).log)
        users, items = int(light.users.max()) + 1, int(light.items.max()) + 1
        monkeypatch.setattr("pdrec_jax.prepare.figures._SAMPLE", len(light))
        heavy = np.repeat(np.arange(users, 2 * users, dtype=np.int32), len(light))[: 9 * len(light)]
        given = Records(
            np.concatenate([light.users, heavy]),
            np.concatenate([light.items, np.arange(heavy.size, dtype=np.int32) % items]),
            None,
        )
        for seed in range(3):
            assert shuffle_test(given, seed) > 4

    def test_too_little_to_tell(self) -> None:
        assert shuffle_test(records(simulate(20, 200, seed=0).log)) is None

    def test_the_seed_settles_it(self) -> None:
        given = records(simulate(300, 400, seed=0).log)
        assert shuffle_test(given, 1) == shuffle_test(given, 1)
