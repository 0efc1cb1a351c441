"""Histories from files: the same whether their rows fit the memory or go by the disk."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pdrec_jax.data.catalogue import Catalogue
from pdrec_jax.data.columns import Columns
from pdrec_jax.errors import UserError
from pdrec_jax.recommend.histories import Faults
from pdrec_jax.recommend.spool import from_files

NAMES = np.array(["", *(f"i{n}" for n in range(1, 30))])
ITEMS = Catalogue(NAMES, 29, 0, np.zeros(30, np.int64), ())
WITH_TIME, WITHOUT = Columns("user", "item", "time"), Columns("user", "item", None)


def read(paths: list[Path], wanted: Columns = WITHOUT, *, block: int = 3, in_memory: int = 1 << 20):
    """Items and times by user in order of appearance, and the faults."""
    faults, found = Faults(), {}
    folder = paths[0].parent
    for some in from_files(
        paths, wanted, ITEMS, faults, block=block, beside=folder, in_memory=in_memory
    ):
        assert 0 < len(some) <= block
        assert some.users.dtype.kind == "U"
        for n, user in enumerate(some.users.tolist()):
            part = slice(some.offsets[n], some.offsets[n + 1])
            assert user not in found
            times = None if some.times is None else some.times[part].tolist()
            found[user] = (some.items[part].tolist(), times)
    assert {path.suffix for path in folder.iterdir()}.isdisjoint({".tmp", ".arrow"})
    return found, faults


def scattered(folder: Path) -> Path:
    """A CSV of 200 events of 23 users in no order of users or times."""
    rng = np.random.default_rng(1)
    users, items, times = rng.integers(0, 23, 200), rng.integers(1, 35, 200), rng.permutation(200)
    lines = [f"u{u},i{i},{t}\n" for u, i, t in zip(users, items, times, strict=True)]
    (folder / "log.csv").write_text("user,item,time\n" + "".join(lines))
    return folder / "log.csv"


class TestGrouping:
    def test_order_of_users_rows_and_unknown_items(self, tmp_path) -> None:
        path = tmp_path / "log.csv"
        path.write_text("item,user\ni3,b\nzz,c\ni1, a\ni2,b\ni9,a \nyy,a\n")
        found, faults = read([path])
        assert list(found) == ["b", "c", "a"]
        assert found == {"b": ([3, 2], None), "c": ([], None), "a": ([1, 9], None)}
        assert (faults.items.count, faults.items.example) == (2, "zz")

    def test_times_decide(self, tmp_path) -> None:
        path = tmp_path / "log.csv"
        path.write_text("user,item,time\na,i1,2020-01-02\na,i2,2020-01-01\na,i3,2020-01-02\n")
        found, _ = read([path], WITH_TIME)
        assert found["a"][0] == [2, 1, 3]

    def test_several_files_are_one_log(self, tmp_path) -> None:
        for name, rows in (("a.csv", "u,i1\nv,i2\n"), ("b.csv", "u,i3\n")):
            (tmp_path / name).write_text(f"user,item\n{rows}")
        found, _ = read([tmp_path / "a.csv", tmp_path / "b.csv"])
        assert found == {"u": ([1, 3], None), "v": ([2], None)}

    def test_formats_agree(self, tmp_path) -> None:
        path = scattered(tmp_path)
        rows = [line.split(",") for line in path.read_text().split()[1:]]
        records = [{"user": u, "item": i, "time": int(t)} for u, i, t in rows]
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (tmp_path / "log.jsonl").write_text(lines)
        pq.write_table(pa.Table.from_pylist(records), tmp_path / "log.parquet")
        expected = read([path], WITH_TIME)[0]
        assert sum(len(items) for items, _ in expected.values()) > 100
        for name in ("log.jsonl", "log.parquet"):
            assert read([tmp_path / name], WITH_TIME)[0] == expected


class TestDisk:
    @pytest.mark.parametrize("wanted", [WITH_TIME, WITHOUT])
    def test_the_same_by_the_disk(self, tmp_path, wanted) -> None:
        path = scattered(tmp_path)
        in_memory, faults = read([path], wanted)
        by_disk, others = read([path], wanted, in_memory=10)
        assert by_disk == in_memory
        assert others == faults

    def test_several_batches(self, tmp_path) -> None:
        path = scattered(tmp_path)
        rows = path.read_text().split()
        (tmp_path / "a.csv").write_text("\n".join(rows[:120]))
        (tmp_path / "b.csv").write_text("\n".join([rows[0], *rows[120:]]))
        parts = [tmp_path / "a.csv", tmp_path / "b.csv"]
        whole = read([path], WITH_TIME)[0]
        assert read(parts, WITH_TIME, in_memory=150)[0] == whole

    def test_nothing_is_left_where_the_reader_stops(self, tmp_path) -> None:
        options = {"block": 3, "beside": tmp_path, "in_memory": 10}
        blocks = from_files([scattered(tmp_path)], WITHOUT, ITEMS, Faults(), **options)
        next(blocks)
        assert any(path.suffix == ".tmp" for path in tmp_path.iterdir())
        blocks.close()
        assert [path.name for path in tmp_path.iterdir()] == ["log.csv"]


class TestFaults:
    def test_rows_are_skipped_and_counted(self, tmp_path) -> None:
        path = tmp_path / "log.csv"
        path.write_text("user,item,time\na,i1,1\n,i2,2\nb,i3,soon\nb,i4,5,6\nb,i5,3\n")
        found, faults = read([path], WITH_TIME)
        assert found == {"a": ([1], [1.0]), "b": ([5], [3.0])}
        assert sum(faults.rows.values()) == 3

    @pytest.mark.parametrize(
        ("content", "complaint"),
        [
            ("", "empty file"),
            ("user,item\n", "no record that can be used"),
            ("user,item\n,i1\n", "no record that can be used"),
            ("user,thing\na,i1\n", "no column 'item'"),
        ],
    )
    def test_files_that_cannot_be_used(self, tmp_path, content, complaint) -> None:
        path = tmp_path / "log.csv"
        path.write_text(content)
        with pytest.raises(UserError, match=complaint):
            read([path])
