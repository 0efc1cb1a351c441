"""Fields become ids and times, and every useless one has a reason."""

import datetime

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdrec_jax.errors import UserError
from pdrec_jax.prepare.fields import ID_FAULTS, TIME_FAULTS, parse_date, to_ids, to_times


def ids(values, kind=None) -> list:
    """Ids, or the reason that there is none."""
    array = values if isinstance(values, pa.Array) else pa.array(values, kind)
    found = to_ids(array, "log: field 'user'")
    assert len(found.encoded) == found.faults.size == len(array)
    pairs = zip(found.encoded.to_pylist(), found.faults, strict=True)
    return [(ID_FAULTS[fault],) if fault else value for value, fault in pairs]


def times(values, kind=None, dates=None) -> list:
    array = values if isinstance(values, pa.Array) else pa.array(values, kind)
    found = to_times(array, "log: field 'time'", dates)
    pairs = zip(found.values.tolist(), found.faults, strict=True)
    assert np.isfinite(found.values).all()
    return [(TIME_FAULTS[fault],) if fault else value for value, fault in pairs]


class TestIds:
    @pytest.mark.parametrize(
        "kind", [pa.string(), pa.large_string(), pa.binary(), pa.string_view()]
    )
    def test_text(self, kind) -> None:
        assert ids(["b", " a ", "b", "Ünï 🎲"], kind) == ["b", "a", "b", "Ünï 🎲"]

    def test_integers(self) -> None:
        for kind in (pa.int8(), pa.uint64(), pa.int64()):
            assert ids([3, 1, 3], kind) == ["3", "1", "3"]

    def test_faults(self) -> None:
        values = [b"a", None, b"", b" \t", b"\xff\xfe", b"a\0b", b"x" * 256, "é".encode() * 255]
        found = ids(values, pa.binary())
        assert found[0] == "a"
        assert found[1:7] == [
            ("empty",),
            ("empty",),
            ("empty",),
            ("not UTF-8 text or a NUL in it",),
            ("not UTF-8 text or a NUL in it",),
            ("longer than 255",),
        ]
        assert found[7] == "é" * 255

    @pytest.mark.parametrize("value", ["2024-1-3", "03/02/2024", "noon", "nan"])
    def test_neither_numbers_nor_dates(self, value) -> None:
        neither = ("neither a number nor an ISO date (YYYY-MM-DD..)",)
        assert times([value, "", value]) == [neither, ("empty",), neither]
        assert times([value, "5"]) == [("not a finite number",), 5]
        assert times([value], dates=False) == [("not a finite number",)]

    def test_nothing_at_all(self) -> None:
        assert ids([None, None], pa.null()) == [("empty",)] * 2
        assert ids([None, None], pa.int64()) == [("empty",)] * 2
        assert ids([], pa.string()) == []

    def test_dictionaries(self) -> None:
        array = pa.array([b"a", b"", b"a"], pa.binary()).dictionary_encode()
        assert ids(array) == ["a", ("empty",), "a"]

    @pytest.mark.parametrize("kind", [pa.float64(), pa.bool_(), pa.list_(pa.int64())])
    def test_other_types(self, kind) -> None:
        with pytest.raises(UserError, match=r"^log: field 'user': integers or text are expected"):
            ids(pa.nulls(1, kind))

    @given(st.lists(st.none() | st.text() | st.binary()))
    def test_any_bytes(self, values) -> None:
        raw = [v.encode("utf-8", "surrogatepass") if isinstance(v, str) else v for v in values]
        for value, found in zip(raw, ids(raw, pa.binary()), strict=True):
            if isinstance(found, str):
                assert value is not None
                assert value.decode().find(found) >= 0


class TestTimes:
    @pytest.mark.parametrize("kind", [pa.int32(), pa.float32(), pa.uint64(), pa.decimal128(9)])
    def test_numbers(self, kind) -> None:
        assert times([5, 1, None], kind) == [5, 1, ("empty",)]

    def test_numbers_that_are_not_finite(self) -> None:
        assert times([1.5, float("nan"), float("inf")]) == [1.5] + [("not a finite number",)] * 2

    def test_numbers_as_text(self) -> None:
        assert times(["1", " 2.5 ", "1e3", "-7"]) == [1, 2.5, 1000, -7]
        values = ["+1", "noon", "", "1e999", "nan", "0x10", "1,5", "-.5", None]
        bad = ("not a finite number",)
        assert times(values) == [1, bad, ("empty",), bad, bad, bad, bad, -0.5, ("empty",)]

    @pytest.mark.parametrize("good", [b"5", b"1970-01-01T00:00:05Z"])
    def test_text_that_could_be_nothing(self, good) -> None:
        values = [good, b" ", b"\xff", b"5\x005", b"0" * 256, b"5\n5", None]
        assert times(values, pa.binary()) == [
            5,
            ("empty",),
            ("not UTF-8 text or a NUL in it",),
            ("not UTF-8 text or a NUL in it",),
            ("longer than 255",),
            ("a line break in it, as behind a quote that is not closed",),
            ("empty",),
        ]

    @pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
    def test_timestamps(self, unit) -> None:
        moment = datetime.datetime(2020, 1, 1, 12, tzinfo=datetime.UTC)
        kind = pa.timestamp(unit, "UTC")
        assert times([moment, None], kind) == [moment.timestamp(), ("empty",)]

    @pytest.mark.parametrize("kind", [pa.date32(), pa.date64()])
    def test_days(self, kind) -> None:
        assert times([datetime.date(1970, 1, 3)], kind) == [2 * 86_400]

    def test_dates_as_text(self) -> None:
        assert times(["1970-01-02", "1970-01-01 00:01", "1970-01-01T00:00:01.5"]) == [
            86_400,
            60,
            1.5,
        ]
        assert times(["1970-01-02T00:00:00Z", "1970-01-01T01:00:00+01:00"]) == [86_400, 0]
        mixed = ["1970-01-02T00:00:00Z", "1970-01-02 00:00", "1970-13-01", "", "5"]
        bad = ("not an ISO date (YYYY-MM-DD..)",)
        assert times(mixed) == [86_400, 86_400, bad, ("empty",), bad]

    def test_what_the_first_batch_was_the_next_must_be(self) -> None:
        assert times(["5"], dates=True) == [("not an ISO date (YYYY-MM-DD..)",)]
        assert times(["2020-01-01"], dates=False) == [("not a finite number",)]
        assert to_times(pa.array(["2020-01-01", "x", "2020-01-02"]), "", None).dates
        assert not to_times(pa.array(["5", "6", "2020-01-02"]), "", None).dates

    @pytest.mark.parametrize("first", ["NULL", "0", "0.00", "-", "0000"])
    def test_times_that_say_nothing_come_first(self, first) -> None:
        bad = ("not an ISO date (YYYY-MM-DD..)",)
        for rows in (3, 600, 5000):
            found = times([first] * rows + ["1970-01-02"] * 2000)
            assert found == [bad] * rows + [86_400] * 2000
        good = 0 if first.startswith("0") else ("not a finite number",)
        assert times([first] * 2000 + ["5"] * 3) == [good] * 2000 + [5] * 3

    def test_nothing_at_all(self) -> None:
        assert times([None], pa.null()) == [("empty",)]
        assert times([], pa.string()) == []

    @pytest.mark.parametrize("kind", [pa.bool_(), pa.list_(pa.int64()), pa.time32("s")])
    def test_other_types(self, kind) -> None:
        with pytest.raises(UserError, match="numbers, timestamps or dates are expected, found"):
            times(pa.nulls(1, kind))

    @given(st.lists(st.text() | st.floats().map(str) | st.datetimes().map(str)), st.booleans())
    def test_any_text(self, values, dates) -> None:
        raw = [value.encode("utf-8", "surrogatepass") for value in values]
        times(raw, pa.binary(), dates)

    @given(st.lists(st.datetimes(datetime.datetime(1, 1, 1)), min_size=1))
    def test_all_dates(self, moments) -> None:
        wanted = [
            m.replace(tzinfo=datetime.UTC) - datetime.datetime.fromtimestamp(0, datetime.UTC)
            for m in moments
        ]
        found = times([moment.isoformat() for moment in moments])
        assert found == pytest.approx([one.total_seconds() for one in wanted], abs=1e-4)


def test_parse_date() -> None:
    assert parse_date("1970-01-01T01:00:00+01:00") == 0
    assert parse_date("0001-01-01T00:00:00+23:59") == -62_135_596_800 - 23 * 3600 - 59 * 60
    assert parse_date("soon") is None
