"""The leave-one-out split: its rules, and the partition of the public code on the real logs."""

import dataclasses
import hashlib
import itertools

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pdrec_jax.data.batches import extend_train
from pdrec_jax.data.domains import merge_domains
from pdrec_jax.data.interactions import Interactions, from_events
from pdrec_jax.data.readers import read_log
from pdrec_jax.data.splits import Split, leave_one_out, with_source_events
from pdrec_jax.errors import UserError

EVENTS = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 5), st.integers(0, 4)), min_size=6, max_size=40
)


def log_of(events) -> Interactions:
    users, items, times = zip(*events, strict=True)
    return from_events(users, items, np.array(times, float))


def histories(log: Interactions) -> list:
    return [log.items[begin:end].tolist() for begin, end in itertools.pairwise(log.offsets)]


class TestOneDomain:
    def test_last_two_events(self):
        log = from_events([1] * 4 + [2] * 2 + [3] * 3, [1, 2, 3, 4, 5, 6, 4, 4, 1], np.arange(9.0))
        split = leave_one_out(log)
        assert histories(split.train) == [[1, 2], [4]]
        assert split.valid_items.tolist() == [3, 4]
        assert split.test_items.tolist() == [4, 1]
        assert split.valid_times.tolist() == [2.0, 7.0]
        assert split.test_times.tolist() == [3.0, 8.0]
        assert split.dropped_users == 1
        assert split.train.user_ids.tolist() == [1, 3]
        assert split.train.num_items == 6
        assert split.mixed is None
        assert split.num_source_items == 0
        assert split.source_lengths.tolist() == [0, 0]

    def test_without_times(self):
        split = leave_one_out(from_events([1, 1, 1, 2, 2, 2], [3, 2, 1, 1, 2, 3]))
        assert split.test_items.tolist() == [1, 3]
        assert split.valid_times is None
        assert split.test_times is None
        assert split.train.times is None

    @pytest.mark.parametrize("lengths", [[3], [2, 2], [3, 2], [1, 1, 1]])
    def test_needs_two_users_with_three_events(self, lengths):
        users = np.repeat(np.arange(len(lengths)), lengths)
        kept = sum(length >= 3 for length in lengths)
        message = f"^{kept} of {len(lengths)} users have 3 or more target events, at least 2"
        with pytest.raises(UserError, match=message):
            leave_one_out(from_events(users, np.ones_like(users)))

    def test_arrays_are_read_only(self):
        split = leave_one_out(from_events([1, 1, 1, 2, 2, 2], [3, 2, 1, 1, 2, 3]))
        with pytest.raises(ValueError, match="read-only"):
            split.test_items[0] = 1

    def test_fields_must_align(self):
        train = from_events([1, 2], [1, 1])
        with pytest.raises(UserError, match=r"^valid_items: one value a user"):
            Split(train, None, np.array([1]), None, np.array([1, 1]), None, 0, np.zeros(2, int))


class TestTwoDomains:
    def test_cut_after_the_last_target_event(self):
        target = log_of(
            [
                (user, item, time)
                for user in (1, 2)
                for item, time in ((1, 0), (2, 2), (3, 4), (4, 6))
            ]
        )
        source = log_of([(1, 10, 1), (1, 11, 5), (1, 12, 6), (1, 13, 7), (2, 10, 9)])
        split = leave_one_out(merge_domains(target, source))
        # Source items are 5 (10), 6 (11), ..: 11 lies between validation and test and stays, 12
        # ties with the test event and comes after it, 13 is later.
        assert histories(split.mixed) == [[1, 5, 2, 6], [1, 2]]
        assert histories(split.train) == [[1, 2], [1, 2]]
        assert split.valid_items.tolist() == [3, 3]
        assert split.test_items.tolist() == [4, 4]
        assert split.source_lengths.tolist() == [2, 0]
        assert split.num_source_items == 4
        assert split.train.num_items == 4
        assert split.train.domains is None

    def test_needs_two_users_with_three_target_events(self):
        target = log_of([(1, 1, 0), (1, 2, 2), (2, 1, 0), (2, 2, 2), (2, 3, 4)])
        source = log_of([(user, item, 1) for user in (1, 2) for item in (10, 11, 12)])
        with pytest.raises(UserError, match=r"^1 of 2 users have 3 or more target events"):
            leave_one_out(merge_domains(target, source))

    @given(EVENTS, EVENTS)
    def test_against_plain_python(self, events, source_events):
        counts = [sum(user == other for other, _, _ in events) for user in range(4)]
        assume(sum(count >= 3 for count in counts) >= 2)
        assume({user for user, _, _ in events} & {user for user, _, _ in source_events})
        log = merge_domains(log_of(events), log_of(source_events))
        split = leave_one_out(log)
        kept = [
            row
            for row in zip(histories(log), log.user_ids, strict=True)
            if sum(item <= log.num_target_items for item in row[0]) >= 3
        ]
        assert split.train.user_ids.tolist() == [user for _, user in kept]
        assert split.dropped_users == log.num_users - len(kept)
        dropped = log.select(log.target_lengths < 3)
        assert split.dropped_popularity.tolist() == [
            sum(item == other for row in histories(dropped) for other in row)
            for item in range(log.num_target_items + 1)
        ]
        for user, (history, _) in enumerate(kept):
            targets = [place for place, item in enumerate(history) if item <= log.num_target_items]
            before = [
                item
                for place, item in enumerate(history)
                if place < targets[-1] and place != targets[-2]
            ]
            assert histories(split.mixed)[user] == before
            assert histories(split.train)[user] == [history[place] for place in targets[:-2]]
            assert split.valid_items[user] == history[targets[-2]]
            assert split.test_items[user] == history[targets[-1]]

    @given(EVENTS)
    def test_a_source_without_effect(self, events):
        counts = [sum(user == other for other, _, _ in events) for user in range(4)]
        assume(sum(count >= 3 for count in counts) >= 2)
        alone = leave_one_out(log_of(events))
        later = [(user, item, time + 10) for user, item, time in events]
        mixed = leave_one_out(merge_domains(log_of(events), log_of(later)))
        assert histories(mixed.train) == histories(alone.train) == histories(mixed.mixed)
        assert mixed.test_items.tolist() == alone.test_items.tolist()
        assert mixed.test_times.tolist() == alone.test_times.tolist()
        assert not mixed.source_lengths.any()


@pytest.fixture(scope="module")
def logs(real_data) -> dict:
    return {
        name: read_log(real_data / f"amazon_{name}.inter.gz", ids="integer")
        for name in ("toy", "game")
    }


@pytest.fixture(scope="module")
def splits(logs) -> dict:
    return {
        "toy": leave_one_out(merge_domains(logs["toy"], logs["game"])),
        "game": leave_one_out(merge_domains(logs["game"], logs["toy"], source_first=True)),
    }


class TestRealLogs:
    def test_partition_of_the_public_code(self, splits, goldens):
        golden, split = goldens("partition_toy"), splits["toy"]
        source = split.mixed.take(split.mixed.domains == 1)
        ones = np.arange(split.train.num_users + 1)
        parts = {
            "train_mix": (split.mixed.offsets, split.mixed.items),
            "train_source": (source.offsets, source.items),
            "train_target": (split.train.offsets, split.train.items),
            "valid_target": (ones, split.valid_items),
            "test_target": (ones, split.test_items),
            "ti_mix": (split.mixed.offsets, split.mixed.times),
            "ti_source": (source.offsets, source.times),
            "ti_target": (split.train.offsets, split.train.times),
            "ti_valid": (ones, split.valid_times),
            "ti_test": (ones, split.test_times),
        }
        assert split.dropped_users == 0
        assert split.train.num_users == golden["usernum"]
        assert split.mixed.num_items == golden["itemnum"]
        assert split.train.num_items == golden["interval"]
        sample = golden["train_mix/sample_users"] - 1
        for name, (offsets, values) in parts.items():
            values = values.astype(np.int64)
            rows = [values[begin:end].tolist() for begin, end in itertools.pairwise(offsets)]
            assert [len(row) for row in rows] == golden[f"{name}/len"].tolist(), name
            sampled = list(itertools.chain(*(rows[user] for user in sample)))
            assert sampled == golden[f"{name}/sample_flat"].tolist(), name
            lines = (f"{user}:{','.join(map(str, row))}" for user, row in enumerate(rows, start=1))
            digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
            assert digest == str(golden[f"{name}/sha256"]), name

    def test_users_of_the_public_evaluation(self, splits, goldens):
        split = splits["toy"]
        passing = (split.train.lengths >= 2) & (split.source_lengths >= 1)
        passing[-1] = False
        users = split.train.user_ids[passing]
        assert users.tolist() == goldens("partition_toy")["eval_user_list"].tolist()

    @pytest.mark.parametrize(
        ("name", "counts"), [("toy", (7262, 7159, 7160, 6903)), ("game", (7718, 7614, 7615, 7430))]
    )
    def test_users_passing(self, splits, name, counts):
        split = splits[name]
        train, source, mixed = split.train.lengths, split.source_lengths, split.mixed.lengths
        evaluated = (train >= 2) & (source >= 1)
        assert counts == (
            ((train >= 1) & (source >= 1)).sum(),
            evaluated[:-1].sum(),
            evaluated.sum(),
            ((train >= 2) & (source >= 2) & (mixed >= 2)).sum(),
        )

    @pytest.mark.parametrize(
        ("name", "train_mean", "source_mean", "one_event"),
        [("toy", 12.32, 8.22, 119), ("game", 8.36, 11.73, 122)],
    )
    def test_training_lengths(self, splits, name, train_mean, source_mean, one_event):
        split = splits[name]
        assert split.train.lengths.mean() == pytest.approx(train_mean, abs=0.005)
        assert split.source_lengths.mean() == pytest.approx(source_mean, abs=0.005)
        assert split.train.lengths.min() == 1
        assert (split.train.lengths == 1).sum() == one_event

    @pytest.mark.parametrize(
        ("name", "in_history", "as_validation", "unseen"),
        [("toy", 151, 138, 2256), ("game", 142, 122, 670)],
    )
    def test_test_items(self, splits, name, in_history, as_validation, unseen):
        split = splits[name]
        test = split.test_items
        events = split.train.items == test[split.train.event_users]
        repeated = np.bincount(split.train.event_users[events], minlength=test.size) > 0
        repeated |= split.valid_items == test
        assert repeated.sum() == in_history
        assert (split.valid_items == test).sum() == as_validation
        assert (~np.isin(test, split.train.items)).sum() == unseen


class TestWithSourceEvents:
    """Two users; capital letters are source items: a B c D e F g H and i J k l m."""

    ROWS = ((0, "aBcDeFgH"), (1, "iJklm"))

    @pytest.fixture
    def log(self) -> Interactions:
        names = sorted(c for _, row in self.ROWS for c in row if c.islower())
        source = sorted(c for _, row in self.ROWS for c in row if c.isupper())
        ids = ["", *names, *source]
        flat = [ids.index(c) for _, row in self.ROWS for c in row]
        return Interactions(
            offsets=np.array([0, 8, 13]),
            items=np.array(flat),
            times=np.array([*range(8), *range(5)], float),
            domains=np.array(flat) > len(names),
            user_ids=np.array([1, 2]),
            item_ids=np.array(ids),
            num_target_items=len(names),
        )

    @staticmethod
    def words(log: Interactions) -> list[str]:
        text = log.item_ids[log.items]
        ends = zip(log.offsets[:-1], log.offsets[1:], strict=True)
        return ["".join(text[a:b]) for a, b in ends]

    @pytest.mark.parametrize(
        ("between", "train"), [(False, ["aBcD", "iJk"]), (True, ["aBcDF", "iJk"])]
    )
    def test_parts(self, log, between, train) -> None:
        split = with_source_events(log, between=between)
        assert self.words(split.train) == train
        assert self.words(split.history) == ["aBcDeF", "iJkl"]
        assert log.item_ids[split.valid_items].tolist() == ["e", "l"]
        assert log.item_ids[split.test_items].tolist() == ["g", "m"]
        assert split.train.num_items == log.num_items
        assert split.train.target_lengths.tolist() == [2, 2]
        assert self.words(split.mixed) == ["aBcDF", "iJk"]

    def test_the_input_of_the_test_is_in_order(self, log) -> None:
        split = with_source_events(log, between=True)
        offsets, items, times = extend_train(split)
        assert log.item_ids[items[: offsets[1]]].tolist() == list("aBcDeF")
        assert times.tolist() == [0, 1, 2, 3, 4, 5, 0, 1, 2, 3]

    @pytest.mark.parametrize("between", [False, True])
    def test_nothing_that_is_held_out_is_trained_on(self, log, between) -> None:
        """Permuting the held-out items, and what comes after the test, changes nothing else."""
        before = with_source_events(log, between=between)
        items = log.items.copy()
        held = [4, 6, 11, 12]  # e, g, l, m
        items[held] = items[held[::-1]]
        items[7] = items[1]  # H becomes B
        after = with_source_events(dataclasses.replace(log, items=items), between=between)
        assert self.words(after.train) == self.words(before.train)
        assert after.valid_items.tolist() != before.valid_items.tolist()

    def test_short_users_go(self, log) -> None:
        short = log.take(np.arange(13) != 4)  # without e
        split = with_source_events(short, between=True)
        assert (split.dropped_users, self.words(split.train)) == (0, ["aBDF", "iJk"])
        three = dataclasses.replace(
            log, offsets=np.array([0, 2, 8, 13]), user_ids=np.array([1, 2, 3])
        )
        split = with_source_events(three, between=False)
        assert (split.dropped_users, self.words(split.train)) == (1, ["cD", "iJk"])

    def test_short_users_with_many_source_events_go_too(self, log) -> None:
        many = dataclasses.replace(
            log,
            offsets=np.array([0, 4, 9, 13]),
            items=log.items[[0, 1, 2, 3, 4, 2, 0, 5, 6, 8, 10, 11, 12]],
            times=np.array([*range(4), *range(5), *range(4)], float),
            domains=log.domains[[0, 1, 2, 3, 4, 2, 0, 5, 6, 8, 10, 11, 12]],
            user_ids=np.array([1, 2, 3]),
        )
        split = with_source_events(many, between=True)
        assert (split.dropped_users, self.words(split.train)) == (1, ["ecF", "ik"])

    def test_one_domain(self, log) -> None:
        with pytest.raises(UserError, match="a log of two domains is expected"):
            with_source_events(leave_one_out(log).train, between=True)
