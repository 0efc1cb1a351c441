"""The command line: every mistake and every malformed file is one line, and leaves nothing."""

import gzip
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pdrec_jax.prepare.__main__ import main

ROOT = Path(__file__).resolve().parents[2]
FLAGS = ("--user=user", "--item=item", "--time=time")


@pytest.fixture
def call(tmp_path, monkeypatch, capsys) -> Callable[..., SimpleNamespace]:
    """`call(*flags)` runs the command line in a directory of its own."""
    monkeypatch.chdir(tmp_path)

    def call(*flags: str) -> SimpleNamespace:
        status = main(flags)
        out, err = capsys.readouterr()
        return SimpleNamespace(status=status, out=out, err=err)

    return call


@pytest.fixture
def complaint(call, tmp_path) -> Callable[..., str]:
    """`complaint(*flags)`: what the one line says; nothing may be left behind."""

    def complaint(*flags: str) -> str:
        before = sorted(tmp_path.rglob("*"))
        done = call(*flags)
        assert done.status == 2
        assert done.out == ""
        *progress, last = done.err.splitlines()
        assert all(line.startswith("read ") for line in progress)
        assert sorted(tmp_path.rglob("*")) == before
        assert last.startswith("error: ")
        return last.removeprefix("error: ")

    return complaint


def write(path: Path, rows: int = 12) -> Path:
    text = "user,item,time\n"
    text += "".join(f"u{n // 4},i{n % 5},{1_600_000_000 + n}\n" for n in range(rows))
    path.write_text(text)
    return path


class TestFlags:
    def test_a_good_command(self, call, tmp_path) -> None:
        write(tmp_path / "a.csv")
        write(tmp_path / "b.csv")
        write(tmp_path / "c.csv")
        done = call("--input=a.csv,b.csv", "--input=c.csv", *FLAGS, "--out=data/mine")
        assert done.status == 0
        assert done.out.startswith("Read: 36 rows of a.csv, b.csv, c.csv\n")
        assert done.out == Path("data/mine/report.txt").read_text()
        assert call(
            "--input=a.csv", *FLAGS, "--out=data/mine", "--overwrite", "--item_core=2"
        ).out.startswith("Read: 12 rows")

    def test_a_comma_in_a_name(self, call, tmp_path) -> None:
        write(tmp_path / "a,b.csv")
        write(tmp_path / "c.csv")
        done = call("--input=a,b.csv", "--input=c.csv", *FLAGS, "--out=mine")
        assert (done.status, done.out.splitlines()[0]) == (0, "Read: 24 rows of a,b.csv, c.csv")
        done = call("--input=" + ",".join(["c.csv"] * 100), *FLAGS, "--out=many")
        assert (done.status, done.out.partition(" rows")[0]) == (0, "Read: 1,200")

    @pytest.mark.parametrize(
        ("flags", "message"),
        [
            ([], "--out: the directory of the result is expected"),
            (["--out="], "--out: the directory of the result is expected"),
            (
                ["--out=o"],
                "one of --input (a log of your own) and --dataset (the paper's) expected",
            ),
            (["--out=o", "--input=a.csv", "--dataset=amazon"], "one of --input (a log of your"),
            (["--out=o", "--dataset=amazon", "--user=u"], "--user: goes with --input"),
            (["--out=o", "--input=a.csv", "--origin=raw"], "--origin: goes with --dataset"),
            (["--out=o", "--dataset=toy"], "argument --dataset: invalid choice: 'toy'"),
            (["--out=o", "--input="], "--input: a file is expected"),
            (["--out=o", "--input=a.csv", "--user=", "--item=i"], "--user, --item, --time: diff"),
            (["--out=o", "--input=a.csv", "--user=i", "--item=i"], "--user, --item, --time: diff"),
            (["--out=o", "--input=a.csv", "--item_core=0"], "argument --item_core: a whole number"),
            (["--out=o", "--input=a.csv", "--unit=h"], "argument --unit: invalid choice: 'h'"),
            (["--out=o", "--input=a.csv", "--time=", "--unit=s"], "--unit: goes with times, and"),
            (["--out=o", "--inptu=a.csv"], "unrecognized arguments: --inptu=a.csv"),
            (["--out=o", "--input=a.csv"], "a.csv: no such file"),
            (["--out=o", "--input=a.txt"], "a.txt: unknown suffix"),
        ],
    )
    def test_mistakes(self, complaint, flags, message) -> None:
        assert complaint(*flags).startswith(message)

    def test_a_directory_in_the_way(self, complaint, tmp_path) -> None:
        write(tmp_path / "a.csv")
        (tmp_path / "file").write_text("")
        found = complaint("--input=a.csv", *FLAGS, "--out=file")
        assert found == "file: is there and was not made by this command; name another --out"
        found = complaint("--input=a.csv", *FLAGS, "--out=file/below")
        assert found.startswith("file/below: cannot write (")

    def test_help(self) -> None:
        command = [sys.executable, "-m", "pdrec_jax.prepare", "--help"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0
        assert "--downloads DIR" in done.stdout

    def test_an_interrupt(self, call, monkeypatch, tmp_path) -> None:
        def interrupt(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("pdrec_jax.prepare.own.read_raw_log", interrupt)
        write(tmp_path / "a.csv")
        done = call("--input=a.csv", *FLAGS, "--out=o")
        assert done.status == 130
        assert done.err == "interrupted; the same command begins anew\n"
        assert not (tmp_path / "o").exists()

    @pytest.mark.parametrize("flags", [["--dataset=douban"], ["--dataset", "douban"]])
    def test_an_interrupt_of_a_download(self, call, monkeypatch, flags) -> None:
        def interrupt(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("pdrec_jax.prepare.public.prepare_pair", interrupt)
        done = call(*flags, "--out=o")
        assert done.status == 130
        assert done.err == "interrupted; the same command continues its downloads\n"


CELLS = (
    st.text(max_size=8)
    | st.sampled_from(["", "nan", "inf", "-1", "1e999", "9" * 40, "\0", '"', "'", "\ufeff", "\r"])
    | st.integers(-(10**20), 10**20).map(str)
    | st.floats().map(str)
)
SEPARATORS = st.sampled_from([",", "\t", ";"])


@st.composite
def tables(draw: st.DrawFn) -> bytes:
    """Delimited text, more or less."""
    separator = draw(SEPARATORS)
    header = draw(
        st.sampled_from([["user", "item", "time"], ["time", "user", "x", "item"], ["user"] * 3])
        | st.lists(CELLS, max_size=4)
    )
    rows = draw(st.lists(st.lists(CELLS, max_size=5), max_size=30))
    if draw(st.booleans()):
        # Enough of a log for the faults to be found in what is left.
        rows += [["a", "x", "1"], ["b", "x", "2"]] * 3
        header = ["user", "item", "time"]
    text = "\n".join(separator.join(row) for row in [header, *rows])
    content = text.encode(draw(st.sampled_from(["utf-8", "utf-16", "latin-1"])), "replace")
    return draw(st.just(content) | st.binary(max_size=50).map(lambda more: content + more))


@st.composite
def json_lines(draw: st.DrawFn) -> bytes:
    """JSON lines, more or less."""
    value = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda of: st.lists(of, max_size=2) | st.dictionaries(st.text(max_size=3), of, max_size=2),
        max_leaves=4,
    )
    name = st.sampled_from(["user", "item", "time", "more"])
    record = st.dictionaries(name, value).map(json.dumps) | value.map(json.dumps)
    lines = draw(st.lists(record | st.text(max_size=9), max_size=30))
    return "\n".join(lines).encode("utf-8", "replace")


@st.composite
def inputs(draw: st.DrawFn) -> tuple[str, bytes]:
    """A name and a content that may have nothing to do with it."""
    suffix = draw(st.sampled_from([".csv", ".tsv", ".inter", ".jsonl", ".parquet"]))
    content = draw(tables() | json_lines() | st.binary(max_size=200))
    packing = "" if suffix == ".parquet" else draw(st.sampled_from(["", ".gz", ".zst"]))
    if packing == ".gz":
        content = gzip.compress(content, 1)
    elif packing:
        content = pa.Codec("zstd").compress(content, asbytes=True)
    cut = draw(st.integers(0, 5))
    return f"log{suffix}{packing}", content[: len(content) - cut]


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(inputs())
def test_malformed_inputs(call, tmp_path, given) -> None:
    """300 of them: each a clear line, or a log with every skipped row counted."""
    name, content = given
    (tmp_path / name).write_bytes(content)
    done = call(f"--input={name}", *FLAGS, "--duplicates=keep", "--out=o")
    last = done.err.splitlines()[-1]
    if done.status == 0:
        summary = json.loads(Path("o/prepared.json").read_text())
        dropped = sum(summary["dropped"].values())
        assert summary["read"] == summary["figures"]["records"] + dropped
        for path in Path("o").iterdir():
            path.unlink()
        Path("o").rmdir()
    else:
        assert done.status == 2
        assert last.startswith("error: ")
        assert len(last) < 700
    (tmp_path / name).unlink()
    assert list(tmp_path.iterdir()) == []
