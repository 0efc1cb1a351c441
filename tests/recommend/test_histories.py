"""Histories from lists and from a log: grouped, in order, and what is unknown is counted."""

from pathlib import Path

import numpy as np
import pytest

from pdrec_jax.data.catalogue import Catalogue
from pdrec_jax.data.interactions import from_events
from pdrec_jax.errors import UserError
from pdrec_jax.recommend.histories import Faults, Histories, UsersOfLog, from_ids, read_ids

ITEMS = Catalogue(np.array([0, 10, 20, 30]), 3, 0, np.zeros(4, np.int64), ())


def rows(histories: Histories) -> list[list[int]]:
    return [
        histories.items[begin:end].tolist()
        for begin, end in zip(histories.offsets[:-1], histories.offsets[1:], strict=True)
    ]


class TestLists:
    def test_order_and_what_is_unknown(self) -> None:
        faults = Faults()
        made = from_ids(np.array(["a", "b", "c"]), [[30, "10", 99], [], ["x"]], None, ITEMS, faults)
        assert rows(made) == [[3, 1], [], []]
        assert made.times is None
        assert (faults.items.count, faults.items.example) == (2, "99")

    def test_times_put_in_order_and_ties_stay(self) -> None:
        given = [[10, 20, 30, 10], [20, 10]], [[5, 1, 5, 0], [2, 2]]
        made = from_ids(np.array(["a", "b"]), *given, ITEMS, Faults())
        assert rows(made) == [[1, 2, 1, 3], [2, 1]]
        assert made.times is not None
        assert made.times.tolist() == [0, 1, 5, 5, 2, 2]

    def test_what_is_unknown_takes_its_time_along(self) -> None:
        given = [[10, 99, 30, 20]], [[5, 1, 4, 0]]
        made = from_ids(np.array(["a"]), *given, ITEMS, Faults())
        assert rows(made) == [[2, 3, 1]]
        assert made.times is not None
        assert made.times.tolist() == [0, 4, 5]

    @pytest.mark.parametrize("times", [[[1]], [[1, 2, 3]], [[1, 2], []], [[1, float("nan")]]])
    def test_times_that_do_not_fit(self, times) -> None:
        with pytest.raises(UserError, match="times: "):
            from_ids(np.array(["a"]), [[10, 20]], times, ITEMS, Faults())

    def test_select(self) -> None:
        made = from_ids(np.array(["a", "b", "c"]), [[10], [], [30, 20]], None, ITEMS, Faults())
        some = made.select(np.array([2, 0, 2]))
        assert some.users.tolist() == ["c", "a", "c"]
        assert rows(some) == [[3, 2], [1], [3, 2]]


class TestLog:
    def test_users_by_id_in_any_order(self) -> None:
        log = from_events([7, 5, 7, 6], [10, 30, 20, 10], [3, 1, 2, 0])
        faults = Faults()
        found = UsersOfLog(log).histories(np.array(["7", "x", "5", "7", "1"]), faults)
        assert rows(found) == [[2, 1], [], [3], [2, 1], []]
        assert found.users.tolist() == ["7", "x", "5", "7", "1"]
        assert found.times is not None
        assert found.times.tolist() == [2, 3, 1, 2, 3]
        assert (faults.users.count, faults.users.example) == (2, "x")

    def test_all_users(self) -> None:
        log = UsersOfLog(from_events([7, 5, 6], [1, 2, 3]))
        assert [ids.tolist() for ids in log.all(2)] == [["5", "6"], ["7"]]


class TestList:
    def read(self, folder: Path, content: bytes, block: int = 2) -> list[list[str]]:
        (folder / "ids.txt").write_bytes(content)
        return [ids.tolist() for ids in read_ids(folder / "ids.txt", block)]

    def test_blanks_and_line_ends(self, tmp_path) -> None:
        content = "\ufeffa\r\n\n  b c \nä\nd".encode()
        assert self.read(tmp_path, content) == [["a", "b c"], ["ä", "d"]]
        assert self.read(tmp_path, b"x" * 255 + b"\n") == [["x" * 255]]

    @pytest.mark.parametrize(
        ("content", "complaint"),
        [
            (b"", "no ids, one a line"),
            (b"\n  \n", "no ids, one a line"),
            (b"a\n\xff\xfe\n", "row 2: .*not UTF-8"),
            (b"a\nb\0c\n", "row 2: .*not UTF-8"),
            (b"a\n" + b"x" * 256, "row 2: longer than 255"),
            (b"a\n\n" + b"x" * 100_000, "row 3: longer than 255"),
        ],
    )
    def test_bad_files(self, tmp_path, content, complaint) -> None:
        with pytest.raises(UserError, match=complaint):
            self.read(tmp_path, content)

    def test_no_file(self, tmp_path) -> None:
        with pytest.raises(UserError, match="no such file"):
            list(read_ids(tmp_path / "none", 2))
        with pytest.raises(UserError, match="is a directory"):
            list(read_ids(tmp_path, 2))
