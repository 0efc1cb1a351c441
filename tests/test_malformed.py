"""Malformed input, drawn at random: one line of error or a counted skip, and nothing half done.

300 inputs in all, the same in each run: files for the main job and for `prepare`, config values,
and what lies in a workdir. `PDREC_MALFORMED=20` draws 20 times as many, others in each run.
"""

import contextlib
import gzip
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, given, settings

from pdrec_jax import experiment, phases
from pdrec_jax.main import main
from pdrec_jax.prepare.__main__ import main as prepare_main
from pdrec_jax.report import plots
from pdrec_jax.settings import FIELDS, default_config
from pdrec_jax.workdir import Workdir

TIMES = int(os.environ.get("PDREC_MALFORMED", "1"))
CONFIG = """
from pdrec_jax.settings import default_config
def get_config():
    config = default_config()
    config.nns.kept, config.dpa.coarse, config.progress = 2, 5, False
    config.simulation.num_users, config.simulation.num_items = 30, 300
    return config
"""
USERS, ITEMS = 6, 200


def drawn(examples: int) -> Callable[..., Any]:
    return settings(
        max_examples=examples * TIMES,
        derandomize=TIMES == 1,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink][: 2 if TIMES == 1 else 1],
    )


class Accepted(Exception):
    """The input was found good; the run would begin."""


def accept(*_: Any, **__: Any) -> None:
    raise Accepted


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The current directory; a run in it ends where its first phase would begin."""
    path = tmp_path_factory.mktemp("malformed")
    (path / "config.py").write_text(CONFIG)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        patch.delenv("PDREC_DATA", raising=False)
        patch.setattr(phases, "diffusion_phase", accept)
        patch.setattr(plots, "write_plots", lambda *_: [])
        yield path


def told(run: Callable[[], int]) -> tuple[int | None, str, list[str]]:
    """Status (None: accepted), standard output, and the lines of standard error."""
    out, err = io.StringIO(), io.StringIO()
    status = None
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        contextlib.suppress(Accepted),
    ):
        status = run()
    return status, out.getvalue(), err.getvalue().splitlines()


def require_one_line(status: int | None, lines: list[str]) -> None:
    """Accepted, or refused in one printable line that is no traceback."""
    errors = [line for line in lines if line.startswith("error: ")]
    assert "Traceback" not in " ".join(lines)
    if status is None or status == 0:
        assert errors == []
        return
    assert status == 2
    assert errors == lines[-1:], lines
    assert 10 < len(errors[0]) <= 1010, errors
    assert not re.search(r"[\x00-\x08\x0b-\x1f]", errors[0]), errors


# What stands in a field where an id or a time should.
ODD = st.sampled_from(
    rb"""-1 0 007 +5 1e5 1e400 -1e400 nan inf -inf NULL None true 0x10 1_000 9223372036854775808
    99999999999999999999999999 -99999999999999999999 1.5 .5 5. --3 2020-01-01 2020-13-45T99:00
    \u0663 \uff11\uff12 \u00e9 \u202e \ufeff \U0001f600 ' \\ ; {} [1] \x7f""".decode(
        "unicode_escape"
    ).split()
) | st.sampled_from(
    ["", '"', '"x', 'x"y', "a b", " ", "\t", ",", "\0", "\r", "\x1b[2J", "x" * 70_000]
)
SUFFIXES = st.sampled_from([".csv", ".tsv", ".inter"])


@st.composite
def rows(draw: st.DrawFn) -> list[list[str]]:
    """A good log, header first, with some fields, rows and names that are not."""
    table = [["user_id", "item_id", "timestamp"]]
    for user in range(1, USERS + 1):
        for n in range(ITEMS // 4):
            table.append([str(user), str(1 + (user * 31 + n * 7) % ITEMS), str(1_000_000 + n)])
    for _ in range(draw(st.integers(0, 4))):
        row = draw(st.integers(0, len(table) - 1))
        kind = draw(st.sampled_from(["field", "field", "field", "short", "long", "blank", "again"]))
        if kind == "field":
            column = draw(st.integers(0, len(table[row]) - 1)) if table[row] else 0
            table[row][column : column + 1] = [draw(ODD)]
        elif kind == "short":
            table[row] = table[row][: draw(st.integers(0, 2))]
        elif kind == "long":
            table[row] = table[row] + table[row][: draw(st.integers(1, 3))]
        elif kind == "blank":
            table[row] = []
        else:
            table.insert(row, list(table[0]))
    least = draw(st.sampled_from([len(table)] * 6 + [0, 1, 2]))
    return table[:least]


@st.composite
def damaged(draw: st.DrawFn, data: bytes) -> bytes:
    """The same bytes cut, changed here and there, or others altogether."""
    kind = draw(st.sampled_from(["whole", "whole", "cut", "changed", "inserted", "noise", "empty"]))
    if kind == "cut":
        return data[: draw(st.integers(0, max(len(data) - 1, 0)))]
    if kind == "noise":
        return draw(st.binary(max_size=300))
    if kind == "empty":
        return draw(st.sampled_from([b"", b"\n", b"\xef\xbb\xbf", b" \r\n \r\n", b"\0" * 9]))
    changed = bytearray(data)
    for _ in range(draw(st.integers(1, 5)) if kind in ("changed", "inserted") and data else 0):
        spot = draw(st.integers(0, len(data) - 1))
        if kind == "changed":
            changed[spot] = draw(st.integers(0, 255))
        else:
            changed[spot:spot] = draw(
                st.sampled_from([b"\0", b"\xff\xfe", b"\xc3\x28", b"\xed\xa0\x80"])
            )
    return bytes(changed)


@st.composite
def text_files(draw: st.DrawFn) -> tuple[str, bytes]:
    """Suffix and content of a delimited file."""
    suffix = draw(SUFFIXES)
    table = draw(rows())
    if suffix == ".inter" and table and draw(st.integers(0, 5)):
        kinds = ["token", "token", draw(st.sampled_from(["float", "float", "float", "token", ""]))]
        table[0] = [f"{name}:{kind}" for name, kind in zip(table[0], kinds, strict=False)]
    delimiter = "," if suffix == ".csv" else "\t"
    end = draw(st.sampled_from(["\n"] * 4 + ["\r\n", "\r", "\n\n", " \n"]))
    text = end.join(delimiter.join(row) for row in table) + end * draw(st.integers(0, 1))
    code = draw(st.sampled_from(["utf-8"] * 8 + ["utf-8-sig", "utf-16", "utf-32", "latin-1"]))
    data = draw(damaged(text.encode(code, "replace")))
    return draw(packed(suffix, data))


@st.composite
def packed(draw: st.DrawFn, suffix: str, data: bytes) -> tuple[str, bytes]:
    packing = draw(st.sampled_from(["", "", ".gz", ".gz as text"]))
    if packing == ".gz":
        return suffix + ".gz", draw(damaged(gzip.compress(data, 1, mtime=0)))
    return suffix + packing.partition(" ")[0], data


TYPES = [
    pa.int8(), pa.int32(), pa.int64(), pa.uint64(), pa.float16(), pa.float32(), pa.float64(),
    pa.bool_(), pa.null(), pa.string(), pa.large_string(), pa.binary(), pa.string_view(),
    pa.date32(), pa.date64(), pa.time64("us"), pa.duration("s"), pa.decimal128(20, 3),
    pa.timestamp("s"), pa.timestamp("ns", "Europe/Berlin"), pa.list_(pa.int64()),
    pa.struct([("a", pa.int64())]), pa.dictionary(pa.int32(), pa.string()),
    pa.dictionary(pa.int8(), pa.int64()),
]  # fmt: skip


@st.composite
def parquet_files(draw: st.DrawFn) -> tuple[str, bytes]:
    """A Parquet file of columns of any type, damaged or not."""
    names = draw(
        st.sampled_from([["user_id", "item_id", "timestamp"]] * 6 + [["a"], ["user_id"] * 3])
    )
    count = draw(st.sampled_from([0, 1, 2, 300, 300, 300]))
    columns = []
    for place, _ in enumerate(names):
        kind = draw(st.sampled_from(TYPES + [pa.int64()] * 20))
        values = np.arange(count) // 50 if place == 0 else np.arange(count) % 97
        array = pa.array(values + draw(st.sampled_from([0, 1, -(2**60)])))
        try:
            array = array.cast(
                kind.value_type if pa.types.is_dictionary(kind) else kind, safe=False
            )
            array = array.dictionary_encode() if pa.types.is_dictionary(kind) else array
        except pa.ArrowException:
            array = pa.nulls(count, kind)
        if count and draw(st.integers(0, 9)) == 0:
            array = pa.concat_arrays([array[:-1], pa.nulls(1, array.type)])
        columns.append(array)
    sink = io.BytesIO()
    try:
        pq.write_table(pa.Table.from_arrays(columns, names=names), sink)
    except pa.ArrowException:
        sink.write(b"PAR1")
    return ".parquet", draw(damaged(sink.getvalue()))


@st.composite
def json_files(draw: st.DrawFn) -> tuple[str, bytes]:
    """JSON lines with values of any kind, and lines that are none."""
    odd = ODD | st.sampled_from([None, True, 10**30, -1, 0.5, 1e308, [], {}, [1], {"a": 1}])
    lines = []
    for user in range(USERS):
        for n in range(8):
            record: dict[str, Any] = {"user_id": user, "item_id": n, "timestamp": 10**6 + n}
            if draw(st.integers(0, 9)) == 0:
                record[draw(st.sampled_from([*record, "x", "\ud800"]))] = draw(odd)
            if draw(st.integers(0, 19)) == 0:
                del record[draw(st.sampled_from([*record]))]
            lines.append(json.dumps(record, allow_nan=True))
    strange = [
        "",
        "null",
        "[]",
        "{",
        '{"user_id": 1',
        "NaN",
        "[" * 5000,
        '{"user_id":1,"user_id":2}',
    ]
    for _ in range(draw(st.integers(0, 3))):
        lines.insert(draw(st.integers(0, len(lines))), draw(st.sampled_from(strange)))
    data = draw(damaged("\n".join(lines).encode()))
    suffix = draw(st.sampled_from([".jsonl", ".ndjson", ".json"]))
    if draw(st.integers(0, 3)) == 0:
        packing = draw(st.sampled_from(["gzip", "zstd"]))
        data = draw(damaged(pa.compress(data, codec=packing, asbytes=True)))
        suffix += {"gzip": ".gz", "zstd": ".zst"}[packing]
    return suffix, data


@drawn(90)
@given(file=text_files() | text_files() | parquet_files())
def test_files_of_the_main_job(place: Path, file: tuple[str, bytes]) -> None:
    path, workdir = place / f"log{file[0]}", place / "run"
    path.write_bytes(file[1])
    arguments = ["main", "--config=config.py", f"--workdir={workdir}", "--config.data.source=real"]
    arguments += [f"--config.data.target={path}"]
    status, out, lines = told(lambda: main(arguments))
    require_one_line(status, lines)
    if status == 2:
        assert not workdir.exists()
        assert out.count("\n") <= 1  # the title
        assert re.search(f"{path.name}|data: |config\\.|evaluation: ", lines[-1]), lines
    else:
        shutil.rmtree(workdir)
    path.unlink()


@drawn(90)
@given(file=text_files() | parquet_files() | json_files(), cores=st.sampled_from([1, 3, 50]))
def test_files_for_prepare(place: Path, file: tuple[str, bytes], cores: int) -> None:
    path, out = place / f"own{file[0]}", place / "mine"
    path.write_bytes(file[1])
    arguments = [f"--input={path}", f"--out={out}", f"--user_core={cores}"]
    status, text, lines = told(lambda: prepare_main(arguments))
    require_one_line(status, lines)
    if status == 2:
        assert not list(place.glob("*mine*"))
        assert text == ""
    else:
        summary = json.loads((out / "prepared.json").read_text())
        table = pq.read_table(out / "log.parquet")
        assert table.num_rows == summary["read"] - sum(summary["dropped"].values())
        shutil.rmtree(out)
    path.unlink()


@pytest.mark.parametrize(
    ("module", "flags"),
    [
        ("prepare", ["--input=log.csv", "--out=mine"]),
        ("main", ["--config=config.py", "--workdir=run", "--config.data.target=./log.csv"]),
    ],
)
def test_in_a_process_of_its_own(tmp_path: Path, module: str, flags: list[str]) -> None:
    (tmp_path / "config.py").write_text(CONFIG)
    (tmp_path / "log.csv").write_bytes(b"user_id,item_id,timestamp\n1,\xff\x1b[2J,\0\n")
    environment = {k: v for k, v in os.environ.items() if k != "PDREC_DATA"}
    done = subprocess.run(
        [sys.executable, "-m", f"pdrec_jax.{module}", *flags],
        cwd=tmp_path,
        env=environment | {"PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=300,
    )
    require_one_line(done.returncode, done.stderr.splitlines())
    assert done.returncode == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.py", "log.csv"]


VALUES = ODD | st.sampled_from(
    """(1,) () (1,'a') [1] {} 1,2 None 1e-400 -5 lambda:0 True __import__('os').abort() ()()
    ('base','base') base""".split()  # noqa: SIM905
)
VALUES |= st.sampled_from(["1" * 5000, "(" * 300])


@drawn(70)
@given(
    values=st.lists(
        st.tuples(st.sampled_from(sorted(FIELDS)) | st.text(max_size=8), VALUES),
        min_size=1,
        max_size=2,
    )
)
def test_config_values(place: Path, values: list[tuple[str, str]]) -> None:
    workdir = place / "configured"
    flags = [f"--config.{field}={value}" for field, value in values]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "prepare", accept)
        status, _, lines = told(
            lambda: main(["main", "--config=config.py", f"--workdir={workdir}", *flags])
        )
    require_one_line(status, lines)
    assert not workdir.exists()


@pytest.fixture(scope="module")
def begun(place: Path) -> dict[str, bytes]:
    """The files of a run that has two phases behind it and its results before it."""
    path = place / "begun"
    arguments = [
        "main",
        "--config=config.py",
        f"--workdir={path}",
        "--config.data.source=simulated",
    ]
    assert told(lambda: main(arguments))[0] is None
    found = Workdir(path, _saved(path), "simulated")
    model = {"name": "S", "key": "sasrec", "stage": "encoder", "users": 30}
    found.phases.finish("sasrec", {"model": model}, {"full_rank": np.zeros(30)})
    found.save_per_user({"users": np.arange(30)})
    (path / "metrics.jsonl").write_text('{"stage": "diffusion", "epoch": 1, "loss": 1.0}\n' * 3)
    found.finish({"stage": "encoder", "name": "x", "models": [model], "times": {"total": 1.0}})
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def _saved(path: Path) -> Any:
    config = default_config()
    config.update(json.loads((path / "config.json").read_text()))
    return config


@st.composite
def json_values(draw: st.DrawFn, data: bytes) -> bytes:
    """A JSON object with something else in one of its places."""
    value = json.loads(data)
    odd = [None, [], {}, "x", -1, 1e308, True, {"a": {}}, [[]]]
    at, target = value, None
    while isinstance(at, dict) and at:
        key = draw(st.sampled_from(sorted(at)))
        target, at = (at, key), at[key]
        if draw(st.booleans()):
            break
    if target is not None:
        target[0][target[1]] = draw(st.sampled_from(odd))
    return json.dumps(value).encode()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metrics.jsonl", b"[" * 200_000 + b"\n"),
        ("config.json", b'{"seeds": null}'),
        ("config.json", b'{"a.b": 1}'),
        ("config.json", b'{"hbr": {"clip": 1%s}}' % (b"0" * 400)),
    ],
)
def test_what_no_run_leaves(place: Path, begun: dict[str, bytes], name, content) -> None:
    path = place / "begun"
    for each, original in begun.items():
        (path / each).write_bytes(original)
    (path / name).write_bytes(content)
    (path / "results.json").unlink()
    arguments = ["main", "--config=config.py", f"--workdir={path}"]
    status, _, lines = told(lambda: main([*arguments, "--config.data.source=simulated"]))
    assert status == 2
    require_one_line(status, lines)


@drawn(50)
@given(data=st.data())
def test_what_lies_in_a_workdir(place: Path, begun: dict[str, bytes], data: st.DataObject) -> None:
    path = place / "begun"
    name = data.draw(st.sampled_from(sorted(begun)))
    content = begun[name]
    if name.endswith(".json") and data.draw(st.booleans()):
        content = data.draw(json_values(content))
    else:
        content = data.draw(damaged(content))
    for each, original in begun.items():
        (path / each).write_bytes(original)
    (path / name).write_bytes(content)
    if data.draw(st.booleans()):
        (path / "results.json").unlink()
    arguments = [
        "main",
        "--config=config.py",
        f"--workdir={path}",
        "--config.data.source=simulated",
    ]
    stage = data.draw(st.sampled_from(["all", "encoder", "diffusion"]))
    status, _, lines = told(lambda: main([*arguments, f"--config.stage={stage}"]))
    require_one_line(status, lines)
