"""Leave-one-out split of a log: last target event to test, the one before it to validation.

Letters: U users, E events.
"""

from __future__ import annotations

import dataclasses
from typing import cast

import numpy as np
from numpy.typing import NDArray

from pdrec_jax.data.compressed import offsets_of
from pdrec_jax.data.interactions import SOURCE, TARGET, Interactions, frozen
from pdrec_jax.data.scratch import Column
from pdrec_jax.errors import UserError

MIN_EVENTS = 3  # one to train on, one to validate, one to test


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """What each stage may see of a log. All fields are aligned: user `u` is the same in each.

    Attributes:
        train: training part of the target domain; its items are the target's alone, `domains` None.
        mixed: training part of both domains, cut after the user's last target event, without the
            validation and test events; None when the log has one domain.
        valid_items: `[U]` int32, second last target item.
        valid_times: `[U]` float64, its time; None when the log has none.
        test_items: `[U]` int32, last target item.
        test_times: `[U]` float64, its time; None when the log has none.
        dropped_users: users with fewer than 3 target events, who are in none of the above.
        dropped_popularity: `[I+1]` int64, their target events of each of the I target items.
        history: what a user did before the test event, where that is more than `train` and the
            validation event after it, or is kept on the disk; None where it is just that.
        learns_source: whether source items of `train` are learnt, as positives, negatives and
            candidates; else they are input alone.
    """

    train: Interactions
    mixed: Interactions | None
    valid_items: NDArray[np.int32]
    valid_times: NDArray[np.float64] | None
    test_items: NDArray[np.int32]
    test_times: NDArray[np.float64] | None
    dropped_users: int
    dropped_popularity: NDArray[np.int64]
    history: Interactions | None = None
    learns_source: bool = True

    def __post_init__(self) -> None:
        for name, dtype in (
            ("valid_items", np.int32),
            ("valid_times", np.float64),
            ("test_items", np.int32),
            ("test_times", np.float64),
        ):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, frozen(name, value, dtype))
                if value.shape != (self.train.num_users,):
                    raise UserError(f"{name}: one value a user is expected")

    def before_test(self) -> Interactions:
        """What each user did before the test event: the input of the test."""
        if self.history is not None:
            return self.history
        train = self.train
        ends = train.offsets[1:]
        times = None
        if train.times is not None and self.valid_times is not None:
            times = np.insert(train.times, ends, self.valid_times)
        return dataclasses.replace(
            train,
            offsets=train.offsets + np.arange(train.num_users + 1),
            items=np.insert(train.items, ends, self.valid_items),
            times=times,
        )

    @property
    def source_lengths(self) -> NDArray[np.int64]:
        """`[U]` int64, source events of each user in `mixed`; 0 with one domain."""
        if self.mixed is None or self.mixed.domains is None:
            return np.zeros(self.train.num_users, np.int64)
        before = np.concatenate([[0], np.cumsum(self.mixed.domains == SOURCE)])
        return np.diff(before[self.mixed.offsets])

    @property
    def num_learnt_items(self) -> int:
        """Items 1 up to this one are learnt: all of `train`, or the target's."""
        return self.train.num_items if self.learns_source else self.train.num_target_items

    @property
    def num_source_items(self) -> int:
        """Items of the source domain; 0 with one domain."""
        return 0 if self.mixed is None else self.mixed.num_items - self.mixed.num_target_items


def leave_one_out(log: Interactions) -> Split:
    """Splits off each user's last two target events.

    Source events after the last target event are dropped, because they would tell the model what
    came after its test. Those between the last two target events stay: the reference keeps them.

    Args:
        log: of one domain, or of two from `merge_domains`.

    Returns:
        The split, over the users with at least 3 target events. That of a mapped log is mapped too:
        it is made in blocks of users, and all that is as long as the log lies on the disk.

    Raises:
        UserError: fewer than 2 users have that many.

    References:
        Ma et al., "Plug-in Diffusion Model for Sequential Recommendation", AAAI 2024, Sec. 5.1.
    """
    kept = int((log.target_lengths >= MIN_EVENTS).sum())
    if kept < 2:
        raise UserError(
            f"{kept} of {log.num_users} users have {MIN_EVENTS} or more target events, "
            "at least 2 such users are expected"
        )
    return _split_in_blocks(log) if log.mapped else _split(log)


def _split(log: Interactions) -> Split:
    """`leave_one_out` of a log in memory, or of a block of users, however few are left."""
    counts = log.target_lengths
    long_enough = counts >= MIN_EVENTS
    dropped = log.num_users - int(long_enough.sum())
    left_out = _target_popularity(log.select(~long_enough))
    if dropped:
        log = log.select(long_enough)
    is_target = np.ones(log.num_events, bool) if log.domains is None else log.domains == TARGET
    events = np.flatnonzero(is_target)
    ends = np.cumsum(counts[long_enough])
    test, valid = events[ends - 1], events[ends - 2]

    in_training = np.arange(log.num_events) < np.repeat(test, log.lengths)
    in_training[valid] = False
    return Split(
        train=target_only(log.take(in_training & is_target)),
        mixed=None if log.domains is None else log.take(in_training),
        valid_items=log.items[valid],
        valid_times=None if log.times is None else log.times[valid],
        test_items=log.items[test],
        test_times=None if log.times is None else log.times[test],
        dropped_users=dropped,
        dropped_popularity=left_out,
    )


def _target_popularity(log: Interactions) -> NDArray[np.int64]:
    """Target events of each target item, `[I+1]`."""
    items = log.items if log.domains is None else log.items[log.domains == TARGET]
    return np.bincount(items, minlength=log.num_target_items + 1)


def _split_in_blocks(log: Interactions) -> Split:
    """`leave_one_out` of a mapped log, which is of one domain."""
    if log.domains is not None:
        raise ValueError("a mapped log of one domain is expected")
    train, history = _MappedLog(log), _MappedLog(log)
    heldout: dict[str, list[NDArray]] = {
        name: [] for name in ("valid_items", "valid_times", "test_items", "test_times")
    }
    dropped, left_out = 0, np.zeros(log.num_target_items + 1, np.int64)
    for block in log.blocks():
        part = _split(block)
        dropped += part.dropped_users
        left_out += part.dropped_popularity
        train.add(part.train)
        history.add(part.before_test())
        for name, values in heldout.items():
            if (found := getattr(part, name)) is not None:
                values.append(found)
    together = {name: np.concatenate(v) if v else None for name, v in heldout.items()}
    return Split(
        train=train.finish(),
        mixed=None,
        valid_items=cast(NDArray[np.int32], together["valid_items"]),
        valid_times=together["valid_times"],
        test_items=cast(NDArray[np.int32], together["test_items"]),
        test_times=together["test_times"],
        dropped_users=dropped,
        dropped_popularity=left_out,
        history=history.finish(),
    )


class _MappedLog:
    """A log that grows by blocks of users, its events on the disk.

    Args:
        like: has the same catalogue, and times if this one does.
    """

    def __init__(self, like: Interactions) -> None:
        self._like = like
        self._items, self._times = Column(np.int32), Column(np.float64)
        self._lengths: list[NDArray] = []
        self._user_ids: list[NDArray] = []

    def add(self, block: Interactions) -> None:
        self._items.add(block.items)
        if block.times is not None:
            self._times.add(block.times)
        self._lengths.append(block.lengths)
        self._user_ids.append(block.user_ids)

    def finish(self) -> Interactions:
        lengths = np.concatenate(self._lengths)
        return dataclasses.replace(
            self._like,
            offsets=offsets_of(lengths),
            items=self._items.finish(),
            times=None if self._like.times is None else self._times.finish(),
            user_ids=np.concatenate(self._user_ids),
        )


def with_source_events(log: Interactions, *, between: bool, learns_source: bool = True) -> Split:
    """Splits a mixed log for the paper's cross-domain task: source events are trained on as well.

    The held-out items are those of `leave_one_out`, and so of the target domain. The input of the
    test is all that the user did before it, in order, in both domains.

    Args:
        log: of two domains, from `merge_domains`.
        between: whether source events between the last two target events are trained on, as the
            reference does; else training ends before the validation event, so that nothing of its
            future is known when it is predicted.
        learns_source: see `Split`.

    Returns:
        The split; `train` and `history` hold both domains, with `domains`.

    Raises:
        UserError: a log of one domain, or fewer than 2 users with 3 target events.
    """
    if log.domains is None:
        raise UserError("a log of two domains is expected for the cross-domain task")
    split = leave_one_out(log)
    log = log.select(log.target_lengths >= MIN_EVENTS)
    assert log.domains is not None
    events = np.flatnonzero(log.domains == TARGET)
    ends = np.cumsum(log.target_lengths)
    test, valid = events[ends - 1], events[ends - 2]
    place = np.arange(log.num_events)
    before_test = place < np.repeat(test, log.lengths)
    trained = before_test & (place != np.repeat(valid, log.lengths))
    if not between:
        trained &= place < np.repeat(valid, log.lengths)
    return dataclasses.replace(
        split,
        train=log.take(trained),
        history=log.take(before_test),
        learns_source=learns_source,
    )


def target_only(log: Interactions) -> Interactions:
    """A log of two domains whose events are all of the target domain, as a log of that alone."""
    return dataclasses.replace(log, domains=None, item_ids=log.item_ids[: log.num_target_items + 1])
