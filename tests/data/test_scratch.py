"""Columns on the disk: what is added comes back, in blocks of users."""

import errno
import itertools
import tempfile

import numpy as np
import pytest

from pdrec_jax.data import scratch
from pdrec_jax.errors import UserError


class TestColumn:
    def test_holds_what_was_added_and_is_mapped(self) -> None:
        column = scratch.Column(np.int32)
        for values in (np.arange(3), np.zeros(0, np.int64), np.arange(7, 9)[::-1]):
            column.add(values)
        found = column.finish()
        assert found.tolist() == [0, 1, 2, 8, 7]
        assert found.dtype == np.int32
        assert scratch.is_mapped(found)
        assert scratch.is_mapped(np.asarray(found)[1:])
        assert not found.flags.writeable

    def test_may_be_empty(self) -> None:
        assert scratch.Column(np.float64).finish().tolist() == []

    def test_leaves_no_file(self, tmp_path, monkeypatch) -> None:
        monkeypatch.setenv("TMPDIR", str(tmp_path))
        column = scratch.Column(np.int32)
        column.add(np.arange(5))
        assert column.finish().sum() == 10
        assert list(tmp_path.iterdir()) == []

    def test_a_full_disk_is_one_line(self, monkeypatch) -> None:
        class Full:
            def write(self, _: object) -> None:
                raise OSError(errno.ENOSPC, "No space left on device")

        column = scratch.Column(np.int32)
        monkeypatch.setattr(column, "_file", Full())
        with pytest.raises(UserError, match="disk full"):
            column.add(np.arange(5))

    def test_a_missing_directory_is_one_line(self, tmp_path, monkeypatch) -> None:
        """Python itself would take the next best place, without a word."""
        monkeypatch.setenv("TMPDIR", str(tmp_path / "gone"))
        for make in (lambda: scratch.Column(np.int32), lambda: scratch.zeros(3, np.int32)):
            with pytest.raises(UserError, match=r"^\$TMPDIR: .*gone is no directory$"):
                make()

    def test_no_directory_at_all_is_one_line(self, monkeypatch) -> None:
        def nowhere() -> str:
            raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

        monkeypatch.delenv("TMPDIR", raising=False)
        monkeypatch.setattr(tempfile, "gettempdir", nowhere)
        with pytest.raises(UserError, match="name one with TMPDIR=DIR"):
            scratch.Column(np.int32)


def test_zeros_can_be_written_to() -> None:
    found = scratch.zeros(4, np.float32)
    found[[1, 3]] = 2
    assert found.tolist() == [0, 2, 0, 2]
    assert scratch.is_mapped(found)


def test_zeros_claim_their_room_at_once(monkeypatch) -> None:
    """Written to later, a hole in a file on a full disk would end the process."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    assert scratch.zeros(0, np.int32).size == 0
    monkeypatch.setattr(scratch.os, "posix_fallocate", full)
    with pytest.raises(UserError, match="disk full"):
        scratch.zeros(4, np.int32)


def test_an_array_in_memory_is_not_mapped() -> None:
    assert not scratch.is_mapped(np.zeros(3)[1:])


@pytest.mark.parametrize("events", [1, 3, 4, 100])
def test_blocks_hold_whole_users_and_no_more_events_than_asked(events) -> None:
    lengths = np.array([2, 0, 1, 5, 3, 0, 0, 1, 0])
    offsets = np.append(0, np.cumsum(lengths))
    blocks = list(scratch.user_blocks(offsets, events))
    assert [first for first, _ in blocks] == [0, *(last for _, last in blocks[:-1])]
    assert blocks[-1][1] == len(lengths)
    for first, last in blocks:
        assert last - first == 1 or lengths[first:last].sum() <= events
    # None could take its neighbour too.
    for (first, last), (_, after) in itertools.pairwise(blocks):
        assert lengths[first : last + 1].sum() > events or after == last


def test_no_users_no_blocks() -> None:
    assert list(scratch.user_blocks(np.zeros(1, np.int64))) == []


def test_counts_in_blocks(monkeypatch) -> None:
    monkeypatch.setattr(scratch, "EVENTS_A_BLOCK", 3)
    values = np.array([1, 4, 4, 0, 2, 4, 1], np.int32)
    assert scratch.counts(values, 6).tolist() == np.bincount(values, minlength=6).tolist()
