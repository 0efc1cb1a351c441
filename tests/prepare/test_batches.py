"""Any format becomes columns; rows that cannot be cut are counted, broken files are refused."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pdrec_jax.data.columns import Columns
from pdrec_jax.errors import UserError
from pdrec_jax.prepare import batches, streams
from pdrec_jax.prepare.batches import Skipped, read_batches

WANTED = Columns("user", "item", "time")
ROWS = [("a", "x", 1), ("b", "y", 2), ("a", "z", 3)]
CSV = "other,time,user,item\n" + "".join(f"o,{t},{u},{i}\n" for u, i, t in ROWS)


def packed(content: bytes, name: str) -> bytes:
    if name.endswith(".gz"):
        return gzip.compress(content)
    if name.endswith((".zst", ".zstd")):
        return pa.Codec("zstd").compress(content, asbytes=True)
    return content


@pytest.fixture
def write(tmp_path) -> Callable[[str, str | bytes], Path]:
    def write(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(packed(content.encode() if isinstance(content, str) else content, name))
        return path

    return write


def plain(value) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def read(path: Path, wanted: Columns = WANTED, positions=None) -> tuple[list, Skipped]:
    skipped = Skipped()
    told: list[int] = []
    rows = []
    for batch in read_batches(path, wanted, skipped, told.append, positions):
        columns = [batch[name].to_pylist() for name in wanted.names]
        rows += [tuple(map(plain, row)) for row in zip(*columns, strict=True)]
    assert sum(told) == path.stat().st_size
    return rows, skipped


def complaint(path: Path, wanted: Columns = WANTED) -> str:
    with pytest.raises(UserError) as caught:
        read(path, wanted)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    assert len(message) < 500
    return message.removeprefix(f"{path}: ")


EXPECTED = [(u, i, str(t)) for u, i, t in ROWS]


@pytest.mark.parametrize("packing", ["", ".gz", ".zst", ".zstd"])
class TestFormats:
    def test_csv(self, write, packing) -> None:
        assert read(write(f"log.csv{packing}", CSV)) == (EXPECTED, Skipped())

    def test_tsv(self, write, packing) -> None:
        path = write(f"log.TSV{packing}", CSV.replace(",", "\t"))
        assert read(path) == (EXPECTED, Skipped())

    def test_inter(self, write, packing) -> None:
        text = "user:token\titem:token\ttime:float\n" + "".join(
            f"{u}\t{i}\t{t}\n" for u, i, t in ROWS
        )
        assert read(write(f"log.inter{packing}", text)) == (EXPECTED, Skipped())

    @pytest.mark.parametrize("suffix", ["jsonl", "ndjson", "json"])
    def test_json_lines(self, write, packing, suffix) -> None:
        lines = [json.dumps({"user": u, "item": i, "text": "..", "time": t}) for u, i, t in ROWS]
        rows, skipped = read(write(f"log.{suffix}{packing}", "\n".join(lines)))
        assert [(u, i, float(t)) for u, i, t in rows] == [(u, i, t) for u, i, t in ROWS]
        assert not skipped


def test_parquet(tmp_path) -> None:
    table = {"item": ["x", "y", "z"], "time": [1, 2, 3], "user": ["a", "b", "a"], "no": [0, 0, 0]}
    pq.write_table(pa.table(table), tmp_path / "log.parquet", row_group_size=2)
    assert read(tmp_path / "log.parquet") == (EXPECTED, Skipped())


def test_ids_of_json_lines_that_are_floats(write) -> None:
    lines = [
        '{"user": 3, "item": 7, "time": 1.5}',
        '{"user": 3.0, "item": 7e0, "time": 2.5}',
        '{"user": 3.5, "item": 7, "time": 3.5}',
        '{"user": 3, "item": NaN, "time": 3.5}',
        '{"user": 3, "item": -Infinity, "time": 3.5}',
    ]
    for first in (lines, lines[1:] + lines[:1]):
        rows, skipped = read(write("log.jsonl", "\n".join(first)))
        assert sorted(rows) == [("3", "7", "1.5"), ("3", "7", "2.5")]
        assert skipped == {
            "field 'user': neither integer nor text": 1,
            "field 'item': neither integer nor text": 2,
        }


class TestText:
    def test_quotes_line_ends_and_a_byte_order_mark(self, write) -> None:
        text = '\ufeffuser,item,time\r\n"a, b","x ""y""",1\r\n"two\nlines",z,2\r\n\r\n'
        rows = [("a, b", 'x "y"', "1"), ("two\nlines", "z", "2")]
        assert read(write("log.csv", text)) == (rows, Skipped())

    def test_quotes_mean_nothing_in_atomic_files(self, write) -> None:
        text = 'user:token\titem:token\ttime:float\n"a\tx"\t1\n'
        assert read(write("log.inter", text))[0] == [('"a', 'x"', "1")]

    def test_rows_of_another_width_are_counted(self, write) -> None:
        text = "user,item,time\na,x,1\na,x\n1,2,3,4\nb,y,2\n\n"
        rows, skipped = read(write("log.csv", text))
        assert rows == [("a", "x", "1"), ("b", "y", "2")]
        assert skipped == {"another number of fields": 2}

    def test_no_header(self, write) -> None:
        rows, _ = read(
            write("log.csv", "x,a,5.0,1\ny,b,1.0,2\n"),
            positions={"user": 1, "item": 0, "time": 3},
        )
        assert rows == EXPECTED[:2]

    def test_several_blocks(self, write, monkeypatch) -> None:
        monkeypatch.setattr(batches, "_BLOCK", 100)
        rows = [(f"u{n % 7}", f"i{n % 5}", str(n)) for n in range(200)]
        text = "user,item,time\n" + "".join(f"{u},{i},{t}\n" for u, i, t in rows)
        assert read(write("log.csv", text))[0] == rows
        lines = "".join(json.dumps({"user": u, "item": i, "time": t}) + "\n" for u, i, t in rows)
        assert read(write("log.jsonl", lines))[0] == rows

    def test_header_alone(self, write) -> None:
        assert read(write("log.csv", "user,item,time\n"))[0] == []
        assert read(write("log.csv", "user,item,time"))[0] == []

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("log.csv", b"", "empty file, a header and rows are expected"),
            ("log.csv", b"\n\n", "empty file, a header and rows are expected"),
            ("log.csv", b"a,b\n1,2\n", "row 1 (header): no column 'user', found 'a', 'b'"),
            ("log.csv", b"user,user,item,time\n", "row 1 (header): more than one column 'user'"),
            ("log.tsv", b"user,item,time\n", "row 1 (header): no column 'user', found 'user,item"),
            ("log.csv", b"\xff\xfe\n1,2", "row 1 (header): not UTF-8 text"),
            ("log.csv", b"x" * (1 << 20), "row 1 (header): longer than 1 MiB, no text table"),
            ("log.csv", b'user,item,time\n"a,x,1\n' + b"b,y,2\n" * 9, "row 2: a quote that is not"),
            (
                "log.csv.gz",
                b"user,item,time\n" + b"b,y,2\n" * 9 + b'a,x,"1\n' + b"b,y,2\n" * 9,
                "row 11: a quote that is not closed; one within a field is expected doubled",
            ),
        ],
    )
    def test_broken(self, write, name, content, message) -> None:
        assert complaint(write(name, content)).startswith(message)

    def test_quotes_that_open_nothing(self, write) -> None:
        text = 'user,item,time\na,5" disc,1\n"b ""\n""",y,2\n'
        rows = [("a", '5" disc', "1"), ('b "\n"', "y", "2")]
        assert read(write("log.csv", text)) == (rows, Skipped())

    def test_rows_behind_an_open_quote_are_counted_by_lines(self, write) -> None:
        text = 'user,item,time\na,x,1\n"b,y,2\nc,z,3\nd,v,4",w\ne,u,5\n'
        rows, skipped = read(write("log.csv", text))
        assert rows == [("a", "x", "1"), ("e", "u", "5")]
        assert skipped == {"another number of fields": 3}

    @pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
    @pytest.mark.parametrize("name", ["log.tsv", "log.tsv.gz"])
    def test_stray_quotes_that_close_each_other(self, write, name, end) -> None:
        """The rows between them would be one field of a column that nobody asks for."""
        rows = [f"u{n}\ti{n}\t{n}\t" + '"' * (n in (98, 298)) + "Weird Al" for n in range(300)]
        path = write(name, end.join(["user\titem\ttime\tartist", *rows, ""]))
        expected = "row 100: a quote that is not closed; one within a field is expected doubled"
        assert complaint(path) == expected
        path = write(name, end.join(["user\titem\ttime\tartist", *rows[:99], rows[298]]))
        assert complaint(path) == expected

    def test_stray_quotes_that_hide_more_than_a_block(self, write, monkeypatch) -> None:
        monkeypatch.setattr(batches, "_BLOCK", 1000)
        rows = "".join(f"u{n},i{n},{n},{chr(34) * (n in (3, 298))}x\n" for n in range(300))
        path = write("log.csv", "user,item,time,artist\n" + rows)
        assert complaint(path).startswith("row 5: a quote that is not closed")

    def test_quotes_that_are_as_they_should_be(self, write) -> None:
        text = 'user,item,time,note\na,x,1,"two\nlines, ""so"""\n\nb,y,2,"one" line\nc,z,3,""\n'
        assert len(read(write("log.csv", text))[0]) == 3
        long = "\n".join(["word " * 9] * 5000)  # longer than csv.reader takes
        assert len(read(write("log.csv", text + f'd,z,4,"{long}"\n'))[0]) == 4

    def test_names_that_are_no_paths_for_arrow(self, tmp_path, write, monkeypatch) -> None:
        monkeypatch.chdir(tmp_path)
        Path("s3:a").mkdir()
        table = pa.table({"item": ["x"], "time": [1], "user": ["a"]})
        pq.write_table(table, tmp_path / "log.parquet")
        for name in ("s3:a/log.parquet", "~.parquet", "\udce9.parquet"):
            Path(name).write_bytes((tmp_path / "log.parquet").read_bytes())
            assert read(Path(name))[0] == [("a", "x", "1")]
        assert read(write("\udce9.csv", CSV))[0] == EXPECTED

    def test_a_row_without_an_end(self, write, monkeypatch) -> None:
        monkeypatch.setattr(batches, "_BLOCK", 1000)
        path = write("log.csv", "user,item,time\na,x,1\n" + "y" * 5000)
        assert "straddling object" in complaint(path)
        path = write("log.jsonl", '{"user": 1, "item": 2, "time": 3}\n' + "y" * 5000)
        assert complaint(path).startswith("a line of more than")


class TestPacked:
    @pytest.mark.parametrize("name", ["log.csv.gz", "log.csv.zst", "log.jsonl.gz"])
    def test_broken(self, write, name) -> None:
        path = write(name, CSV * 50)
        kind = "zstd" if name.endswith("zst") else "gzip"
        whole = path.read_bytes()
        for content in (whole[:-9], b"no packing", whole[: len(whole) // 2]):
            path.write_bytes(content)
            assert complaint(path).startswith(f"broken {kind} file (")

    def test_two_members(self, write) -> None:
        path = write("log.csv.gz", CSV)
        path.write_bytes(path.read_bytes() + gzip.compress(b"o,4,c,x\n"))
        assert read(path)[0] == [*EXPECTED, ("c", "x", "4")]

    @pytest.mark.parametrize("zeros", [1, 8, 512, 1 << 20])
    def test_zeros_behind_it(self, write, zeros) -> None:
        for name in ("log.csv.gz", "log.jsonl.gz"):
            path = write(name, CSV if "csv" in name else '{"user":"a","item":"x","time":1}')
            path.write_bytes(path.read_bytes() + bytes(zeros))
            assert [row[:2] for row in read(path)[0]][:1] == [("a", "x")]
            path.write_bytes(path.read_bytes() + b"more")
            assert complaint(path).startswith("broken gzip file (")

    def test_a_bomb(self, write, monkeypatch) -> None:
        monkeypatch.setattr(streams, "HARMLESS", 1 << 20)
        path = write("log.csv.gz", b"user,item,time\n" + b"1,1,1\n" * (1 << 20))
        assert complaint(path).startswith("unpacks to more than 200 times its size")


class TestJson:
    RECORD = '{"user": "a", "item": "x", "time": 1}\n'

    def test_what_is_no_object_is_counted(self, write) -> None:
        text = self.RECORD + '[1]\nno\n{"user": "b"\n\n"text"\n' + self.RECORD
        rows, skipped = read(write("log.jsonl", text))
        assert [row[:2] for row in rows] == [("a", "x")] * 2
        assert skipped == {"not a JSON object": 4}

    def test_fields_of_several_types(self, write) -> None:
        text = self.RECORD + '{"user": 5, "item": null, "time": "2020-01-01"}\n{"time": 2}\n'
        rows, skipped = read(write("log.jsonl", text))
        assert rows[1:] == [("5", "None", "2020-01-01"), ("None", "None", "2")]
        assert not skipped

    @pytest.mark.parametrize("value", ["true", "[1]", '{"a": 1}'])
    @pytest.mark.parametrize("first", [True, False])
    def test_what_is_neither_number_nor_text(self, write, value, first) -> None:
        odd = [
            f'{{"user": {value}, "item": {value}, "time": 1}}\n',
            f'{{"user": 1, "item": {value}, "time": 1}}\n',
            f'{{"user": 1, "item": 1, "time": {value}}}\n',
        ]
        text = "".join([*odd, self.RECORD] if first else [self.RECORD, *odd])
        rows, skipped = read(write("log.jsonl", text))
        assert rows == [("a", "x", "1")]
        assert skipped == {
            "field 'user': neither integer nor text": 1,
            "field 'item': neither integer nor text": 1,
            "field 'time': neither number nor text": 1,
        }

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "empty file, a JSON object a line is expected"),
            ("\n\n", "empty file, a JSON object a line is expected"),
            ("no\n", "no field 'user' with a value, found no JSON object"),
            ('{"user": 1, "time": 2}\n', "no field 'item' with a value, found 'user', "),
            ("[" * 100_000, "no field 'user' with a value, found no JSON object"),
        ],
    )
    def test_broken(self, write, text, message) -> None:
        assert complaint(write("log.jsonl", text)).startswith(message)

    def test_a_field_that_is_missing_at_first(self, write, monkeypatch) -> None:
        text = '{"user": null, "item": "x"}\n' * 500 + self.RECORD * 2
        path = write("log.jsonl", text)
        for block in (16 << 20, 2000):
            monkeypatch.setattr(batches, "_BLOCK", block)
            rows, skipped = read(path)
            assert rows[:500] == [("None", "x", "None")] * 500
            assert [(u, i, float(t)) for u, i, t in rows[500:]] == [("a", "x", 1)] * 2
            assert not skipped
        monkeypatch.setattr(batches, "_BLOCK", 1 << 20)
        monkeypatch.setattr(batches, "_UNTYPED_BLOCKS", 2)
        path = write("log.jsonl", '{"user": null, "item": "x"}\n' * 100_000)
        message = "no field 'user' with a value in the first 2 MiB, found 'user', 'item'"
        assert complaint(path) == message


class TestParquet:
    def test_broken(self, write, tmp_path) -> None:
        for content in ("", "PAR1", "PAR1 no table PAR1"):
            path = write("log.parquet", content)
            assert complaint(path).startswith("not a readable Parquet file (")
        pq.write_table(pa.table({"user": [1]}), path)
        assert complaint(path) == "no column 'item', found 'user'"


def test_files_that_cannot_be_opened(tmp_path) -> None:
    for suffix in ("csv", "jsonl", "parquet"):
        assert complaint(tmp_path / f"none.{suffix}") == "no such file"
        (tmp_path / f"folder.{suffix}").mkdir()
        assert complaint(tmp_path / f"folder.{suffix}") == "is a directory, a file is expected"


def test_bytes_that_are_no_text_stay_in_their_row(write, monkeypatch) -> None:
    monkeypatch.setattr(batches, "_BLOCK", 50)
    text = "user,item,time\n" + "ä,ö€,1\n" * 40
    rows = [("ä", "ö€", "1")] * 40
    content = text.encode() + b"\xff\xe2\x82,x,2\n\xe4,x\n" + "ü,x,3\n".encode() + b"\xc3"
    found, skipped = read(write("log.csv", content))
    assert found == [*rows, ("\0\0\0", "x", "2"), ("ü", "x", "3")]
    assert skipped == {"another number of fields": 2}


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_record_that_is_null(tmp_path, place) -> None:
    """pyarrow 26 ends the process on one that comes first."""
    lines = [b'{"u": 1, "i": 2, "t": null}', b'{"u": 1, "i": 2, "t": 3}']
    lines.insert(place, b" null")
    path = tmp_path / "log.jsonl"
    path.write_bytes(b"\n".join(lines) + b"\n")
    skipped = Skipped()
    batches = list(read_batches(path, Columns("u", "i", "t"), skipped, lambda _: None))
    assert sum(len(batch["u"]) for batch in batches) == 2
    assert skipped == {"not a JSON object": 1}
