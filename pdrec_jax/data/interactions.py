"""Immutable interaction logs in CSR form: one flat array of events and one offset a user.

Letters: U users, I items, E events.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pdrec_jax.data.compressed import gathered, offsets_of
from pdrec_jax.data.scratch import EVENTS_A_BLOCK, counts, is_mapped, user_blocks
from pdrec_jax.errors import UserError

TARGET, SOURCE = 0, 1

# The dtype of a field is part of the contract; None leaves it as it is (ids are int64 or text).
_DTYPES = {
    "offsets": np.int64,
    "items": np.int32,
    "times": np.float64,
    "domains": np.int8,
    "user_ids": None,
    "item_ids": None,
}


@dataclasses.dataclass(frozen=True, eq=False)
class Interactions:
    """The events of all users, grouped by user and in order of time within each.

    One flat array instead of a list a user keeps a log of millions of events in a few contiguous
    blocks. All arrays are read-only, so a log can be shared between stages without a copy. They may
    be mapped from files: then nothing as long as the log need be in memory, and what is checked or
    counted here goes by blocks.

    Attributes:
        offsets: `[U+1]` int64; user `u` owns the events `offsets[u]:offsets[u+1]`.
        items: `[E]` int32 in `1..num_items`; 0 is the padding id and never occurs.
        times: `[E]` float64 Unix seconds, non-decreasing within a user; None when the log has none.
        domains: `[E]` int8, 0 target and 1 source; None when every event is of the target domain.
        user_ids: `[U]` external ids, int64 or text.
        item_ids: `[I+1]` external ids, int64 or text; entry 0 fills the place of the padding id.
        num_target_items: items `1..num_target_items` are of the target domain, the others of the
            source domain.

    Raises:
        UserError: an invariant above does not hold.
    """

    offsets: NDArray[np.int64]
    items: NDArray[np.int32]
    times: NDArray[np.float64] | None
    domains: NDArray[np.int8] | None
    user_ids: NDArray
    item_ids: NDArray
    num_target_items: int

    def __post_init__(self) -> None:
        for name, dtype in _DTYPES.items():
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, frozen(name, value, dtype))
        self._check_shapes()
        self._check_items()
        self._check_times()

    def _check_shapes(self) -> None:
        for name in ("times", "domains"):
            value = getattr(self, name)
            _require(
                value is None or value.shape == self.items.shape,
                f"{name}: one value an event is expected",
            )
        offsets = self.offsets
        _require(offsets.size == self.user_ids.size + 1, "offsets: one more than users is expected")
        ends_fit = offsets[0] == 0 and offsets[-1] == self.items.size
        _require(
            bool(ends_fit and (np.diff(offsets) >= 0).all()),
            "offsets: a non-decreasing row from 0 to the number of events is expected",
        )

    def _check_items(self) -> None:
        _require(self.item_ids.size >= 1, "item_ids: entry 0 (the padding item) is missing")
        _require(
            0 <= self.num_target_items <= self.num_items,
            f"num_target_items: 0..{self.num_items} is expected, not {self.num_target_items}",
        )
        if self.items.size:
            low, high = int(self.items.min()), int(self.items.max())
            _require(
                low >= 1 and high <= self.num_items,
                f"items: ids 1..{self.num_items} are expected, found {low}..{high}",
            )
        if self.domains is None:
            _require(
                self.num_target_items == self.num_items,
                "num_target_items: without domains every item is of the target domain",
            )
        else:
            for some in self._slices():
                _require(
                    np.array_equal(self.domains[some], self.items[some] > self.num_target_items),
                    "domains: 0 up to item num_target_items and 1 above it is expected",
                )

    def _check_times(self) -> None:
        if self.times is None:
            return
        for some in self._slices():
            # One more than the block, so that its last event is held against the next.
            times = self.times[some.start : some.stop + 1]
            _require(bool(np.isfinite(times).all()), "times: finite numbers are expected")
            later = times[1:] >= times[:-1]
            between = np.searchsorted(self.offsets, [some.start, some.stop], side="right")
            starts = self.offsets[slice(*between)]
            later[starts[starts < self.num_events] - some.start - 1] = True
            _require(bool(later.all()), "times: non-decreasing times within a user are expected")

    def _slices(self) -> Iterator[slice]:
        """The events in blocks, of which a copy may be made."""
        for begin in range(0, self.num_events, EVENTS_A_BLOCK):
            yield slice(begin, min(begin + EVENTS_A_BLOCK, self.num_events))

    @property
    def num_users(self) -> int:
        """`U`, users without events included."""
        return self.user_ids.size

    @property
    def num_items(self) -> int:
        """`I`, items of both domains; the padding item does not count."""
        return self.item_ids.size - 1

    @property
    def num_events(self) -> int:
        """`E`."""
        return self.items.size

    @property
    def lengths(self) -> NDArray[np.int64]:
        """`[U]` int64, events of each user."""
        return np.diff(self.offsets)

    @property
    def target_lengths(self) -> NDArray[np.int64]:
        """`[U]` int64, target events of each user."""
        if self.domains is None:
            return self.lengths
        before = np.concatenate([[0], np.cumsum(self.domains == TARGET)])
        return np.diff(before[self.offsets])

    @property
    def popularity(self) -> NDArray[np.int64]:
        """`[I+1]` int64, events of each item; 0 for the padding item."""
        return counts(self.items, self.num_items + 1)

    @property
    def mapped(self) -> bool:
        """Whether the events lie in files that are mapped, and not in memory."""
        return is_mapped(self.items)

    def blocks(self) -> Iterator[Interactions]:
        """The log in blocks of users, each a view with all items; see `user_blocks`."""
        for begin, end in user_blocks(self.offsets):
            first, last = self.offsets[[begin, end]]
            yield dataclasses.replace(
                self,
                offsets=self.offsets[begin : end + 1] - first,
                items=self.items[first:last],
                times=None if self.times is None else self.times[first:last],
                domains=None if self.domains is None else self.domains[first:last],
                user_ids=self.user_ids[begin:end],
            )

    @property
    def event_users(self) -> NDArray[np.int64]:
        """`[E]` int64, the user (its index, not its external id) of each event."""
        return np.repeat(np.arange(self.num_users), self.lengths)

    def select(self, users: ArrayLike) -> Interactions:
        """Keeps some users; item ids stay as they are.

        Args:
            users: `[U]` bool mask, or integer indices `[U']`, whose order is kept.

        Returns:
            The log of those users alone.

        Raises:
            UserError: the mask has another length, or an index is out of range.
        """
        chosen = np.asarray(users)
        if chosen.dtype == bool:
            _require(chosen.shape == (self.num_users,), "select: one bool a user is expected")
            chosen = np.flatnonzero(chosen)
        _require(
            chosen.ndim == 1
            and (chosen.dtype.kind in "iu" or chosen.size == 0)
            and bool(((chosen >= 0) & (chosen < self.num_users)).all()),
            f"select: a mask or user indices 0..{self.num_users - 1} are expected",
        )
        chosen = chosen.astype(np.int64)
        lengths = self.lengths[chosen]
        offsets, events = gathered(self.offsets[chosen], lengths)
        return self._with_events(events, offsets, self.user_ids[chosen])

    def take(self, events: ArrayLike) -> Interactions:
        """Keeps some events; all users stay, if need be without events.

        Args:
            events: `[E]` bool mask.

        Returns:
            The log of those events alone.

        Raises:
            UserError: the mask is not one bool an event.
        """
        mask = np.asarray(events)
        _require(
            mask.dtype == bool and mask.shape == self.items.shape,
            "take: one bool an event is expected",
        )
        kept_before = np.concatenate([[0], np.cumsum(mask)])
        return self._with_events(np.flatnonzero(mask), kept_before[self.offsets], self.user_ids)

    def _with_events(self, events: NDArray, offsets: NDArray, user_ids: NDArray) -> Interactions:
        return dataclasses.replace(
            self,
            offsets=offsets,
            items=self.items[events],
            times=None if self.times is None else self.times[events],
            domains=None if self.domains is None else self.domains[events],
            user_ids=user_ids,
        )


def from_events(
    users: ArrayLike,
    items: ArrayLike,
    times: ArrayLike | None = None,
    *,
    user_ids: ArrayLike | None = None,
    item_ids: ArrayLike | None = None,
) -> Interactions:
    """Groups columns of events into a log of one domain.

    External ids become indices in sorted order (integers as numbers, text by code point). Within a
    user events are sorted by time with a stable sort, because times of day resolution tie often and
    the order of the log is then all there is; without times the order of the log is kept.

    Args:
        users: `[E]` external user ids, integers or text.
        items: `[E]` external item ids, integers or text.
        times: `[E]` finite Unix seconds, or None.
        user_ids: when given, `users` holds positions in this list of external ids instead. It may
            name users without events; ids that are repeated in it are the same user.
        item_ids: the same for `items`; this is how a catalogue keeps items that nobody chose.

    Returns:
        The log, `domains` None.

    Raises:
        UserError: columns of different lengths, ids of another kind, a time that is not finite.
    """
    user_codes, user_vocabulary = _internalise("users", users, user_ids)
    item_codes, item_vocabulary = _internalise("items", items, item_ids)
    _require(user_codes.size == item_codes.size, "users, items: columns of one length are expected")
    if times is not None:
        times = np.asarray(times)
        _require(times.dtype.kind in "iuf" or times.size == 0, "times: numbers are expected")
        times = times.astype(np.float64)
        _require(times.shape == user_codes.shape, "times: one value an event is expected")
        finite = np.isfinite(times)
        if not finite.all():
            event = int(np.argmin(finite))
            raise UserError(f"times: event {event + 1} has {times[event]}, not a finite number")
    order = _order(user_codes, times)
    filler = np.zeros(1, item_vocabulary.dtype)
    return Interactions(
        offsets=offsets_of(np.bincount(user_codes, minlength=user_vocabulary.size)),
        items=(item_codes[order] + 1).astype(np.int32),
        times=None if times is None else times[order],
        domains=None,
        user_ids=user_vocabulary,
        item_ids=np.concatenate([filler, item_vocabulary]),
        num_target_items=item_vocabulary.size,
    )


def frozen(name: str, value: ArrayLike, dtype: type | None = None) -> NDArray:
    """A read-only one-dimensional array, copied only where somebody could still write to it.

    Args:
        name: field to name in an error.
        value: `[n]` values.
        dtype: dtype of the result, or None for that of `value`.

    Returns:
        `[n]` array of that dtype, not writeable.

    Raises:
        UserError: more than one dimension, or values that the dtype cannot hold.
    """
    array = np.asarray(value)
    _require(array.ndim == 1, f"{name}: one dimension is expected, not {array.ndim}")
    if dtype is not None and array.dtype != dtype:
        with np.errstate(invalid="ignore"):
            converted: NDArray = array.astype(dtype)
        _require(
            array.dtype.kind in "biuf" and bool(np.array_equal(converted, array, equal_nan=True)),
            f"{name}: values of type {np.dtype(dtype).name} are expected",
        )
        array = converted
    owner = array
    while isinstance(owner.base, np.ndarray) and not owner.flags.writeable:
        owner = owner.base
    if owner.flags.writeable:
        array = array.copy()
        array.flags.writeable = False
    return array


def _internalise(
    name: str, column: ArrayLike, vocabulary: ArrayLike | None
) -> tuple[NDArray[np.int64], NDArray]:
    """Positions `[E]` in the sorted ids, and those ids."""
    if vocabulary is None:
        ids, codes = np.unique(_ids(name, column), return_inverse=True)
        return codes.astype(np.int64, copy=False), ids
    ids, renumber = np.unique(_ids(name, vocabulary), return_inverse=True)
    codes = np.asarray(column)
    _require(
        codes.ndim == 1 and (codes.dtype.kind in "iu" or codes.size == 0),
        f"{name}: a column of positions in the list of ids is expected",
    )
    codes = codes.astype(np.int64)
    _require(
        bool(((codes >= 0) & (codes < renumber.size)).all()),
        f"{name}: positions 0..{renumber.size - 1} in the list of ids are expected",
    )
    return renumber[codes].astype(np.int64, copy=False), ids


def _ids(name: str, column: ArrayLike) -> NDArray:
    """`column` as int64 or as text; floats and mixtures would make ids that nobody wrote."""
    ids = np.asarray(column)
    _require(ids.ndim == 1, f"{name}: one column of ids is expected")
    if ids.dtype.kind == "O" and all(isinstance(value, str) for value in ids):
        ids = ids.astype(str)
    if ids.size == 0 and ids.dtype.kind != "U":
        ids = ids.astype(np.int64)
    _require(
        ids.dtype.kind in "iUT" or (ids.dtype.kind == "u" and bool((ids <= 2**63 - 1).all())),
        f"{name}: ids must be integers or text, not {ids.dtype}",
    )
    return ids.astype(np.int64 if ids.dtype.kind in "iu" else str)


def _order(users: NDArray, times: NDArray | None) -> NDArray[np.intp] | slice:
    in_order = users[1:] > users[:-1]
    same_user = users[1:] == users[:-1]
    in_order |= same_user if times is None else same_user & (times[1:] >= times[:-1])
    # A log on disk is mostly in order already, and looking is far cheaper than sorting.
    if bool(in_order.all()):
        return slice(None)
    return np.argsort(users, kind="stable") if times is None else np.lexsort((times, users))


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise UserError(message)
