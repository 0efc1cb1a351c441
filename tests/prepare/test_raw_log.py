"""A log is collected from files of any format, with a reason for every row that is left out."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pdrec_jax.data.columns import Columns
from pdrec_jax.errors import UserError
from pdrec_jax.prepare import batches
from pdrec_jax.prepare.raw_log import RawLog, read_raw_log

WANTED = Columns("user", "item", "time")


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def ids(vocabulary) -> list:
    return [vocabulary.ids.to_pylist()[code] for code in vocabulary.codes]


def rows(log: RawLog) -> list:
    times = [None] * log.users.codes.size if log.times is None else log.times.tolist()
    return list(zip(ids(log.users), ids(log.items), times, strict=True))


def test_several_files_and_formats(tmp_path, capsys) -> None:
    paths = [
        write(tmp_path / "a.csv", "user,item,time\nb,x,1\na,y,2\n"),
        write(tmp_path / "b.jsonl", '{"user": "a", "item": "z", "time": 3.5}\n'),
        tmp_path / "c.parquet",
    ]
    pq.write_table(pa.table({"user": ["c"], "item": ["x"], "time": [4]}), paths[2])
    log = read_raw_log(paths, WANTED)
    assert rows(log) == [("b", "x", 1), ("a", "y", 2), ("a", "z", 3.5), ("c", "x", 4)]
    assert log.users.ids.to_pylist() == ["a", "b", "c"]
    assert (log.read, sum(log.skipped.values()), log.dates) == (4, 0, False)
    assert "read a.csv: 0/0 KiB, in 0:00" in capsys.readouterr().err


def test_integers_sort_as_numbers_unless_one_is_text(tmp_path) -> None:
    log = read_raw_log([write(tmp_path / "a.csv", "user,item,time\n10,9,1\n9,10,1\n")], WANTED)
    assert log.users.ids.to_pylist() == [9, 10]
    log = read_raw_log([write(tmp_path / "b.csv", "user,item,time\n10,09,1\n9,10,1\n")], WANTED)
    assert log.users.ids.to_pylist() == [9, 10]
    assert log.items.ids.to_pylist() == ["09", "10"]


def test_blanks_and_ids_of_bad_rows_make_no_ids(tmp_path) -> None:
    text = "user,item,time\na ,1,1\n a,1,1\na,2,1\nbad,9,never\n"
    log = read_raw_log([write(tmp_path / "a.csv", text)], WANTED)
    assert rows(log) == [("a", 1, 1), ("a", 1, 1), ("a", 2, 1)]
    assert log.users.ids.to_pylist() == ["a"]
    assert log.items.ids.to_pylist() == [1, 2]


def test_each_bad_row_counts_once(tmp_path) -> None:
    lines = [b"user,item,time", b"a,x,1", b",x,1", b",,never", b"a,,1", b"a,x,never", b"a,x,"]
    lines += [b"a,x", b"\xff,x,1", b"a\0,x,1", b"b" * 300 + b",x,1"]
    log = read_raw_log([write(tmp_path / "a.csv", b"\n".join(lines))], WANTED)
    assert rows(log) == [("a", "x", 1)]
    assert log.skipped == {
        "field 'user': empty": 2,
        "field 'item': empty": 1,
        "field 'time': not a finite number": 1,
        "field 'time': empty": 1,
        "another number of fields": 1,
        "field 'user': not UTF-8 text or a NUL in it": 2,
        "field 'user': longer than 255": 1,
    }
    assert log.read == 10


def test_without_times(tmp_path) -> None:
    path = write(tmp_path / "a.csv", "user,item\nb,x\na,x\n")
    log = read_raw_log([path], Columns("user", "item", None))
    assert rows(log) == [("b", "x", None), ("a", "x", None)]


def test_dates(tmp_path) -> None:
    path = write(tmp_path / "a.csv", "user,item,time\na,x,1970-01-02\na,y,\n")
    log = read_raw_log([path], WANTED)
    assert (log.dates, log.times.tolist()) == (True, [86_400.0])


@pytest.mark.parametrize("last", [".csv", ".jsonl", ".parquet"])
def test_dates_and_numbers_in_two_files(tmp_path, last) -> None:
    """Read as one, half of the times would be wrong by a factor of a thousand."""
    table = {"user": ["a"], "item": ["x"], "time": [1_500_000_000_000]}
    numbers, dates = tmp_path / f"numbers{last}", tmp_path / f"dates{last}"
    if last == ".csv":
        write(numbers, "user,item,time\na,x,1500000000000\n")
        write(dates, "user,item,time\nb,x,2017-07-14\n")
    elif last == ".jsonl":
        write(numbers, '{"user": "a", "item": "x", "time": 1500000000000}\n')
        write(dates, '{"user": "b", "item": "x", "time": "2017-07-14"}\n')
    else:
        pq.write_table(pa.table(table), numbers)
        stamps = pa.array(table["time"], pa.timestamp("ms"))
        pq.write_table(pa.table({**table, "time": stamps}), dates)
    with pytest.raises(UserError, match=r"field 'time': numbers, after dates; prepare them apart"):
        read_raw_log([dates, numbers], WANTED)
    with pytest.raises(UserError, match=r"dates, after numbers; prepare them apart"):
        read_raw_log([numbers, dates], WANTED)


def test_an_id_with_a_line_break(tmp_path) -> None:
    text = 'user,item,time\na,x,1\n"b\nc",x,1\n'
    log = read_raw_log([write(tmp_path / "a.csv", text)], WANTED)
    assert rows(log) == [("a", "x", 1)]
    reason = "field 'user': a line break in it, as behind a quote that is not closed"
    assert log.skipped == {reason: 1}


def test_many_batches(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(batches, "_BLOCK", 200)
    rng = np.random.default_rng(0)
    wanted = [
        (f"u{u}", int(i), float(t))
        for t, (u, i) in enumerate(zip(*rng.integers(0, 30, (2, 500)), strict=True))
    ]
    text = "user,item,time\n" + "".join(f"{u},{i},{t}\n" for u, i, t in wanted)
    log = read_raw_log([write(tmp_path / "a.csv", text)], WANTED)
    assert rows(log) == wanted
    assert log.users.ids.to_pylist() == sorted({row[0] for row in wanted})


def test_nothing_that_can_be_used(tmp_path) -> None:
    path = write(tmp_path / "a.csv", "user,item,time\na,x,never\n,x,1\n")
    with pytest.raises(UserError) as caught:
        read_raw_log([path], WANTED)
    assert str(caught.value) == (
        f"{path}: no record that can be used (1 rows with field 'user': empty, "
        "1 rows with field 'time': not a finite number)"
    )
    write(path, "user,item,time\na,x,2024-1-3\nb,x,2024-1-4\n")
    with pytest.raises(UserError) as caught:
        read_raw_log([path], WANTED)
    assert str(caught.value) == (
        f"{path}: no record that can be used (2 rows with field 'time': neither a number nor an "
        "ISO date (YYYY-MM-DD..))"
    )
    path = write(tmp_path / "b.csv", "user,item,time\n")
    with pytest.raises(UserError, match=r"no record that can be used \(no rows\)$"):
        read_raw_log([path], WANTED)
