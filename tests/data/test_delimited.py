"""Delimited text: what is accepted, and what is said about bad input."""

import csv
import gzip
import re

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pdrec_jax.data import delimited
from pdrec_jax.data.readers import SUFFIXES, read_log
from pdrec_jax.errors import UserError

HEADER = "user_id:token\titem_id:token\ttimestamp:float\n"
ROWS = "1\t7\t10\n1\t5\t20\n2\t7\t5\n"
EXPECTED = [(1, 7, 10.0), (1, 5, 20.0), (2, 7, 5.0)]


class TestFormats:
    @pytest.mark.parametrize("suffix", [s for s in SUFFIXES if s != ".parquet"])
    def test_text(self, write, events, suffix):
        text = HEADER + ROWS
        if not suffix.startswith(".inter"):
            text = re.sub(r":\w+", "", text)
        if suffix.startswith(".csv"):
            text = text.replace("\t", ",")
        log = read_log(write(f"log{suffix}", text))
        assert events(log) == EXPECTED
        assert log.user_ids.dtype == np.int64
        assert log.item_ids.tolist() == [0, 5, 7]

    def test_suffix_in_capitals(self, write, events):
        assert events(read_log(write("LOG.INTER", HEADER + ROWS))) == EXPECTED

    @pytest.mark.parametrize(
        "change",
        [
            lambda text: text.removesuffix("\n"),
            lambda text: text.replace("\n", "\r\n"),
            lambda text: text.replace("\n", "\r"),
            lambda text: text.replace("\n", "\n\n"),
            lambda text: "\ufeff" + text,
            lambda text: text.replace("\t7", "\t 7 ").replace("\t20", "\t 2e1 "),
            lambda text: text.replace("\t7", "\t07"),
        ],
        ids=["no newline at end", "CRLF", "CR", "blank lines", "BOM", "blanks", "leading zero"],
    )
    def test_harmless_variations(self, write, events, change):
        assert (
            events(read_log(write("log.inter", change(HEADER + ROWS)), ids="integer")) == EXPECTED
        )

    def test_reordered_and_extra_columns(self, write, events):
        header = "rating:float\titem_id:token\ttags:token_seq\tuser_id:token\ttimestamp:float\n"
        rows = '5.0\t7\ta b\t1\t10\n\t5\t"\t1\t20\n1\t7\t\t2\t5\n'
        assert events(read_log(write("log.inter", header + rows))) == EXPECTED

    def test_csv_with_quotes_newlines_and_own_names(self, write, events):
        text = 'title,when,"who, really",what\n"a ""b"", c",10,1,7\n"two\nlines",20,1,5\n,5,2,"7"\n'
        path = write("log.csv", text)
        log = read_log(path, user="who, really", item="what", time="when")
        assert events(log) == EXPECTED

    def test_columns_that_repeat_but_are_not_wanted(self, write, events):
        text = "x,user_id,x,item_id,timestamp\na,1,b,7,10\na,1,b,5,20\na,2,b,7,5\n"
        assert events(read_log(write("log.csv", text))) == EXPECTED

    def test_without_times(self, write, events):
        path = write("log.csv", "user_id,item_id\nb,9\na,3\nb,1\n")
        log = read_log(path, time=None)
        assert log.times is None
        assert events(log) == [("a", 3, None), ("b", 9, None), ("b", 1, None)]

    def test_text_ids(self, write, events):
        log = read_log(write("log.csv", "user_id,item_id,timestamp\nzoë,B0,2\nal,B1,1\nzoë,A,1\n"))
        assert events(log) == [("al", "B1", 1.0), ("zoë", "A", 1.0), ("zoë", "B0", 2.0)]

    @pytest.mark.parametrize(
        ("ids", "expected"),
        [
            (["10", "9", "-3", "0"], [-3, 0, 9, 10]),
            (["10", "9", "x"], ["10", "9", "x"]),
            (["10", "010"], ["010", "10"]),
            (["10", "9" * 19], ["10", "9" * 19]),
            (["1.0", "2"], ["1.0", "2"]),
        ],
    )
    def test_ids_are_numbers_only_where_all_are_written_so(self, write, ids, expected):
        rows = "".join(f"{user}\t1\t0\n" for user in ids)
        assert read_log(write("log.inter", HEADER + rows)).user_ids.tolist() == expected

    def test_ties_keep_the_order_of_the_log(self, write, events):
        rows = "2\t9\t5\n1\t3\t5\n1\t1\t5\n2\t4\t1\n1\t2\t5\n"
        log = read_log(write("log.inter", HEADER + rows))
        assert [item for _, item, _ in events(log)] == [3, 1, 2, 4, 9]

    @given(rows=st.lists(st.tuples(*[st.integers(1, 10**15)] * 3), min_size=1, max_size=20))
    @settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
    def test_what_is_written_is_read(self, write, events, rows):
        text = "".join(f"{user}\t{item}\t{time}\n" for user, item, time in rows)
        log = read_log(write("log.inter", HEADER + text), ids="integer")
        assert sorted(events(log)) == sorted((user, item, float(time)) for user, item, time in rows)

    @given(names=st.lists(st.text("a1 \t,;\"'é漢😀", min_size=1).filter(str.strip), min_size=1))
    @settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
    def test_any_text_is_an_id(self, tmp_path, names):
        path = tmp_path / "log.csv"
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([["user_id", "item_id"], *([name, "x"] for name in names)])
        users = read_log(path, time=None).user_ids
        assert len(users) == len({name.strip() for name in names})

    def test_many_blocks(self, write):
        # More than one block of the parser, each with a dictionary of its own.
        users = np.repeat(np.arange(1, 60_001), 5)
        items = np.arange(users.size) % 977 + 1
        pad = "x" * 60
        rows = "".join(f"{u}\t{i}\t0\t{pad}\n" for u, i in zip(users, items, strict=True))
        log = read_log(write("log.inter", HEADER.strip() + "\tpad:token\n" + rows), ids="integer")
        assert np.array_equal(log.item_ids[log.items], items)
        assert (log.lengths == 5).all()


class TestBadGzip:
    @pytest.mark.parametrize(
        "damage",
        [
            lambda data: data[: len(data) // 2],
            lambda data: data[:-4],
            lambda data: data[:-8] + bytes(8),
            lambda data: data[:12] + b"\xff\xff" + data[14:],
            lambda data: data + b"more",
            lambda data: HEADER.encode(),
        ],
        ids=["half", "no size", "wrong checksum", "wrong bits", "trailing bytes", "not gzip"],
    )
    def test_broken_gzip(self, tmp_path, complaint, damage):
        path = tmp_path / "log.inter.gz"
        path.write_bytes(damage(gzip.compress((HEADER + ROWS).encode())))
        assert complaint(path).startswith("broken gzip file (")

    def test_empty_gzip(self, tmp_path, complaint):
        path = tmp_path / "log.inter.gz"
        path.write_bytes(b"")
        assert complaint(path) == "empty file, a header and rows are expected"


class TestBadText:
    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "empty file, a header and rows are expected"),
            (" \n\n", "empty file, a header and rows are expected"),
            (HEADER, "a header and no rows"),
            (HEADER.strip(), "a header and no rows"),
            (HEADER + "\n \n", "a header and no rows"),
            (HEADER + "1\t7\n", "row 2: 2 fields, 3 are expected"),
            (HEADER + "1\n", "row 2: 1 field, 3 are expected"),
            (HEADER + ROWS + "1\t7\t1\t\n", "row 5: 4 fields, 3 are expected"),
            (HEADER + ROWS + "\n1\t7\n", "row 6: 2 fields, 3 are expected"),
            (
                HEADER + ROWS + "1\t7\tsoon\n",
                "row 5, field 'timestamp': 'soon' is not a finite number",
            ),
            (HEADER + "1\t7\t1_0\n", "row 2, field 'timestamp': '1_0' is not a finite number"),
            (HEADER + "1\t7\t0x1\n", "row 2, field 'timestamp': '0x1' is not a finite number"),
            (
                HEADER + ROWS + "1\t7\tnan\n",
                "row 5, field 'timestamp': 'nan' is not a finite number",
            ),
            (
                HEADER + "1\t7\tNaN\n" + ROWS,
                "row 2, field 'timestamp': 'NaN' is not a finite number",
            ),
            (HEADER + "1\t7\t-inf\n", "row 2, field 'timestamp': '-inf' is not a finite number"),
            (HEADER + "1\t7\t1e999\n", "row 2, field 'timestamp': '1e999' is not a finite number"),
            (
                HEADER + "1\t7\t\n",
                "row 2, field 'timestamp': an empty field is not a finite number",
            ),
            (HEADER + ROWS + "\t7\t1\n", "row 5, field 'user_id': empty, an id is expected"),
            (HEADER + ROWS + "1\t  \t1\n", "row 5, field 'item_id': empty, an id is expected"),
            (
                HEADER + "1\t7\t" + "z" * 99 + "\n",
                f"row 2, field 'timestamp': '{'z' * 37}...' is not a finite number",
            ),
            (HEADER + ROWS + "1\t7\t1\0\n", "row 5: NUL byte, text is expected"),
            (
                (HEADER + ROWS).encode() + b"1\t\xff\t1\n",
                "row 5: not UTF-8 text (invalid start byte)",
            ),
            ((HEADER + ROWS).encode("utf-16"), "row 1: NUL byte, text is expected"),
        ],
    )
    @pytest.mark.parametrize("name", ["log.inter", "log.inter.gz"])
    def test_rows(self, write, complaint, name, text, message):
        assert complaint(write(name, text)) == message

    @pytest.mark.parametrize("value", ["0", "-1", "x", "1.5", "9" * 19, "+1", "000"])
    def test_integers_from_1(self, write, complaint, value):
        path = write("log.inter", HEADER + ROWS + f"3\t{value}\t1\n")
        expected = f"row 5, field 'item_id': '{value}' is not an integer from 1"
        assert complaint(path, ids="integer") == expected
        assert read_log(path).num_items == 3

    def test_empty_integer(self, write, complaint):
        path = write("log.inter", HEADER + ROWS + "\t4\t1\n")
        expected = "row 5, field 'user_id': empty, an integer from 1 is expected"
        assert complaint(path, ids="integer") == expected

    def test_the_first_of_several_faults(self, write, complaint):
        path = write("log.inter", HEADER + ROWS + "1\t\t1\n1\t7\tx\n1\t7\n")
        assert complaint(path) == "row 5, field 'item_id': empty, an id is expected"

    @pytest.mark.parametrize(
        ("header", "message"),
        [
            ("user_id:token\titem_id:token", "no column 'timestamp', found 'user_id', 'item_id'"),
            ("user_id\titem_id\ttimestamp", "'user_id' is not name:type with a type of token,"),
            (
                "user_id:token,item_id:token,timestamp:float",
                "no column 'user_id', found 'user_id:to",
            ),
            (
                "user_id:token\titem_id:text\ttimestamp:float",
                "'item_id:text' is not name:type with",
            ),
            (
                "user_id:token\titem_id:float\ttimestamp:float",
                "type token is expected, found 'item_id:float'",
            ),
            (
                "user_id:token\titem_id:token\ttimestamp:token",
                "type float is expected, found 'timestamp:token'",
            ),
            (
                "user_id:token\titem_id:token\titem_id:token\ttimestamp:float",
                "more than one column 'item_id', found 'user_id', 'item_id', 'item_id'",
            ),
            ("1\t7\t10", "'1' is not name:type"),
        ],
    )
    def test_headers(self, write, complaint, header, message):
        told = complaint(write("log.inter", f"{header}\n{ROWS}"))
        assert told.startswith(f"row 1 (header): {message}")

    def test_csv_header(self, write, complaint):
        path = write("log.csv", "user,item_id,timestamp\n1,7,10\n")
        expected = "row 1 (header): no column 'user_id', found 'user', 'item_id', 'timestamp'"
        assert complaint(path) == expected

    def test_rows_of_quoted_text_are_lines(self, write, complaint):
        text = 'user_id,note,item_id,timestamp\n1,"two\nlines",7,10\n1,"and\nthree\n",7,ten\n'
        expected = "row 4, field 'timestamp': 'ten' is not a finite number"
        assert complaint(write("log.csv", text)) == expected

    def test_a_quote_that_never_ends(self, write, complaint):
        text = 'user_id,item_id,timestamp\n1,7,10\n1,"7,10\n2,7,10\n'
        expected = "row 3: a quote that is not closed; one within a field is expected doubled"
        assert complaint(write("log.csv", text)) == expected
        # What is wrong before it comes first.
        text = text.replace("1,7,10", "1,7", 1)
        assert complaint(write("log.csv", text)) == "row 2: 2 fields, 3 are expected"

    @pytest.mark.parametrize("rest", ["", "2,7,10\n" * 30])
    def test_a_quote_of_the_last_field_that_never_ends(self, write, complaint, rest):
        """All rows behind it would be one id, and silently be gone."""
        for name, delimiter in (("log.csv", ","), ("log.tsv.gz", "\t")):
            text = f'user_id,timestamp,item_id\n1,10,7\n1,10,"7\n{rest}'.replace(",", delimiter)
            expected = "row 3: a quote that is not closed; one within a field is expected doubled"
            assert complaint(write(name, text)) == expected

    def test_quotes_that_close_each_other(self, write, complaint):
        rows = [*['1,10,"7'], *["2,7,10"] * 5, '1,10,8"', "1,10,9"]
        text = "user_id,timestamp,item_id\n1,10,7\n" + "".join(f"{row}\n" for row in rows)
        told = complaint(write("log.csv", text))
        assert told.startswith("row 3, field 'item_id': '7\\n2,7,10\\n2,")
        assert told.endswith(" has a line break in it, as behind a quote that is not closed")

    def test_stray_quotes_of_a_column_that_is_not_read(self, write, complaint):
        rows = [f"{n}\t7\t10\t" + '"' * (n in (98, 298)) + "Weird Al" for n in range(1, 300)]
        text = "\n".join(["user_id\titem_id\ttimestamp\tartist", *rows])
        expected = "row 99: a quote that is not closed; one within a field is expected doubled"
        assert complaint(write("log.tsv", text)) == expected
        assert complaint(write("log.tsv.gz", text.replace("\n", "\r"))) == expected
        far = text.replace("299\t", "9" * 200_000 + "\t").replace("98\t7", "9" * 200_000 + "\t7")
        assert complaint(write("log.tsv", far)).startswith("row 99: a quote that is not closed")

    def test_quoted_fields_of_several_lines(self, write, events):
        text = 'user_id,title,item_id,timestamp\n1,"a\n""b""\n",7,10\n\n1,"x" y,5,20\n2,"",7,5\n'
        assert events(read_log(write("log.csv", text))) == EXPECTED

    def test_quotes_within_a_field_open_nothing(self, write, events):
        text = 'user_id,title,item_id,timestamp\n1,5" disc,7,10\n1,x,5,20\n2,y,7,5\n'
        assert events(read_log(write("log.csv", text))) == EXPECTED

    def test_an_id_without_end(self, write, complaint):
        path = write("log.csv", "user_id,item_id,timestamp\n1,7,10\n1," + "x" * 256 + ",1\n")
        expected = f"row 3, field 'item_id': {'x' * 37 + '...'!r} is longer than 255 characters"
        assert complaint(path) == expected

    @given(body=st.text("12x\t\t\n.- e", max_size=30), suffix=st.sampled_from([".inter", ".tsv"]))
    @settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_whatever_is_wrong_has_a_row(self, write, body, suffix):
        header = HEADER if suffix == ".inter" else re.sub(r":\w+", "", HEADER)
        path = write(f"log{suffix}", header + body)
        try:
            read_log(path)
        except UserError as error:
            message = str(error).removeprefix(f"{path}: ")
            assert re.match(r"row \d+(, field '\w+')?: |a header and no rows$", message)


def test_a_zip_bomb_is_refused_before_it_fills_the_memory(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(delimited, "HARMLESS", 1 << 16)
    path = tmp_path / "log.csv.gz"
    rows = b"user_id,item_id,timestamp\n" + b"1,1,1\n" * 200_000
    path.write_bytes(gzip.compress(rows))
    with pytest.raises(UserError, match=r"log\.csv\.gz: unpacks to more than 200 times its size; "):
        read_log(path)
