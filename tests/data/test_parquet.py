"""Parquet: types of columns, and what is said about bad input."""

import datetime

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pdrec_jax.data import parquet
from pdrec_jax.data.readers import read_log
from pdrec_jax.errors import UserError

EXPECTED = [(1, 7, 10.0), (1, 5, 20.0), (2, 7, 5.0)]


class TestParquet:
    @pytest.mark.parametrize("kind", [pa.int64(), pa.int32(), pa.uint64(), pa.string()])
    def test_ids(self, write_parquet, events, kind):
        ids = pa.array([1, 1, 2], pa.int64()).cast(kind)
        path = write_parquet(item_id=[7, 5, 7], user_id=ids, timestamp=[10.0, 20.0, 5.0], other=ids)
        assert events(read_log(path)) == EXPECTED

    @pytest.mark.parametrize(
        "kind", [pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())]
    )
    def test_text_ids(self, write_parquet, events, kind):
        users = pa.array(["b", "a", "b"]).cast(kind)
        log = read_log(write_parquet(user_id=users, item_id=[1, 2, 3]), time=None)
        assert events(log) == [("a", 2, None), ("b", 1, None), ("b", 3, None)]

    def test_ids_beyond_int64(self, write_parquet, events, complaint):
        ids = pa.array([2**64 - 1, 7, 2**63], pa.uint64())
        path = write_parquet(user_id=[1, 1, 1], item_id=ids, timestamp=[0, 1, 2])
        found = [(1, str(2**64 - 1), 0.0), (1, "7", 1.0), (1, str(2**63), 2.0)]
        assert events(read_log(path)) == found
        expected = f"row 1, field 'item_id': '{2**64 - 1}' is not an integer from 1"
        assert complaint(path, ids="integer") == expected

    @pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
    def test_timestamps(self, write_parquet, unit):
        moment = datetime.datetime(2018, 10, 2, 12, tzinfo=datetime.UTC)
        times = pa.array([moment]).cast(pa.timestamp(unit, "UTC"))
        log = read_log(write_parquet(user_id=[1], item_id=[1], timestamp=times))
        assert log.times.tolist() == [moment.timestamp()]

    @pytest.mark.parametrize(
        ("times", "seconds"),
        [
            (pa.array([2], pa.date32()), 172_800.0),
            (pa.array([86_400_000], pa.date64()), 86_400.0),
            (pa.array([7], pa.int16()), 7.0),
            (pa.array([1_600_000_000_123_456_789], pa.int64()), 1_600_000_000_123_456_789.0),
            (pa.array([2**64 - 1], pa.uint64()), 2.0**64),
            (pa.array([1.5], pa.float32()), 1.5),
            (pa.array([7], pa.int64()).cast(pa.decimal128(20, 1)), 7.0),
        ],
    )
    def test_other_times(self, write_parquet, times, seconds):
        log = read_log(write_parquet(user_id=[1], item_id=[1], timestamp=times))
        assert log.times.tolist() == [seconds]

    @pytest.mark.parametrize(
        ("columns", "message"),
        [
            ({"user_id": [1], "item_id": [1]}, "no column 'timestamp', found 'user_id', 'item_id'"),
            ({"user_id": [1, None]}, "row 2, field 'user_id': the value is missing"),
            ({"timestamp": [None, 1.0]}, "row 1, field 'timestamp': the value is missing"),
            ({"timestamp": [0.0, np.nan]}, "row 2, field 'timestamp': nan is not a finite number"),
            ({"timestamp": [np.inf, 0]}, "row 1, field 'timestamp': inf is not a finite number"),
            (
                {"timestamp": ["now", "1"]},
                "field 'timestamp': numbers, timestamps or dates are expected, found string",
            ),
            (
                {"user_id": [1.0, 2.0]},
                "field 'user_id': integers or text are expected, found double",
            ),
            ({"item_id": ["a", " "]}, "row 2, field 'item_id': empty, an id is expected"),
            (
                {
                    "user_id": pa.array([], pa.int64()),
                    "item_id": pa.array([], pa.int64()),
                    "timestamp": pa.array([], pa.float64()),
                },
                "no rows",
            ),
        ],
    )
    def test_bad_columns(self, write_parquet, complaint, columns, message):
        if len(columns) == 1:
            columns = {"user_id": [1, 2], "item_id": [1, 2], "timestamp": [0.0, 1.0], **columns}
        assert complaint(write_parquet(**columns)) == message

    def test_integers_from_1(self, write_parquet, complaint):
        path = write_parquet(user_id=[3, 0], item_id=["1", "-2"], timestamp=[0.0, 0.0])
        expected = "row 2, field 'user_id': '0' is not an integer from 1"
        assert complaint(path, ids="integer") == expected
        path = write_parquet(user_id=[3, 1], item_id=["1", "-2"], timestamp=[0.0, 0.0])
        expected = "row 2, field 'item_id': '-2' is not an integer from 1"
        assert complaint(path, ids="integer") == expected

    @pytest.mark.parametrize(
        "content", [b"PAR1", b"no table at all", b"PAR1" + bytes(40) + b"PAR1"]
    )
    def test_not_parquet(self, write, complaint, content):
        message = complaint(write("log.parquet", content))
        assert message.startswith("not a readable Parquet file (")

    def test_empty_file(self, write, complaint):
        assert complaint(write("log.parquet", b"")) == "empty file, a table is expected"


@pytest.mark.parametrize("name", ["HARMLESS", "_FEW_ROWS"])
def test_a_file_that_would_fill_the_memory_is_refused(tmp_path, monkeypatch, name) -> None:
    """By its bytes (long texts that pack well) or its rows (which take no bytes where equal)."""
    monkeypatch.setattr(parquet, name, 1 << 10)
    monkeypatch.setattr(parquet, "LARGEST_RATIO", 5)
    rows = 100 if name == "HARMLESS" else 100_000
    ids = pa.array(["x" * 10_000 + str(n % 3) for n in range(rows)]) if rows == 100 else None
    columns = {"user_id": pa.repeat(1, rows) if ids is None else ids}
    columns |= {"item_id": pa.repeat(1, rows), "timestamp": pa.repeat(1.0, rows)}
    path = tmp_path / "log.parquet"
    pq.write_table(pa.table(columns), path, compression="zstd", use_dictionary=rows != 100)
    with pytest.raises(UserError, match=r"log\.parquet: unpacks to more than \d+ times its size; "):
        read_log(path)
