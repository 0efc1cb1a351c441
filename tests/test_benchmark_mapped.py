"""The benchmark of mapped logs, and what it shows: memory that does not grow with the log."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pdrec_jax.benchmark import mapped
from pdrec_jax.data.mapped import read_mapped
from pdrec_jax.data.readers import read_log
from pdrec_jax.errors import UserError

ROOT = Path(__file__).resolve().parents[1]


def test_both_forms_hold_the_same_log(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(mapped, "_EVENTS_A_BLOCK", 500)
    mapped.write_both(tmp_path, users=120, items=50, events=2000)
    one, other = read_mapped(tmp_path / "log"), read_log(tmp_path / "log.parquet")
    assert one.num_users == 120
    assert 1000 < one.num_events < 4000
    np.testing.assert_array_equal(one.offsets, other.offsets)
    np.testing.assert_array_equal(one.times, other.times)
    # The mapped one also has the items that nobody chose.
    np.testing.assert_array_equal(one.item_ids[one.items], other.item_ids[other.items])
    assert one.lengths.min() >= 3


def test_a_log_of_other_sizes_is_not_taken_for_it(tmp_path) -> None:
    mapped.write_both(tmp_path, users=20, items=30, events=100)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir() if path.is_file()}
    mapped.write_both(tmp_path, users=20, items=30, events=100)
    with pytest.raises(UserError, match=r"holds a log of other sizes \({\"users\": 20, .* 100}\);"):
        mapped.write_both(tmp_path, users=20, items=30, events=101)
    after = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir() if path.is_file()}
    assert before.keys() == after.keys()
    assert before[tmp_path / "log.parquet"] == after[tmp_path / "log.parquet"]
    (tmp_path / "sizes.json").unlink()
    with pytest.raises(UserError, match="holds a log of unknown sizes"):
        mapped.write_both(tmp_path, users=20, items=30, events=100)


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--dir=new", "--users=0"], "argument --users: a whole number from 20 to 1,000,000,000"),
        (["--dir=new", "--items=-5"], "argument --items: a whole number from 200 to 1,000,000,000"),
        (
            ["--dir=new", "--events=0"],
            "argument --events: a whole number from 1 to 100,000,000,000",
        ),
        (["--dir=log.csv"], "log.csv: cannot write (File exists)"),
        (["--dir=log.csv/below"], "log.csv/below: cannot write (Not a directory)"),
    ],
)
def test_a_mistake_is_one_line(flags, complaint, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "log.csv").touch()
    assert mapped.main(flags) == 2
    said = capsys.readouterr()
    assert said.err.startswith(f"error: {complaint}")
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert [path.name for path in tmp_path.iterdir()] == ["log.csv"]


@pytest.mark.slow
def test_anonymous_memory_does_not_grow_with_a_mapped_log(tmp_path) -> None:
    users, millions = 100_000, (4, 16)
    peaks = []
    for number in millions:
        place = tmp_path / str(number)
        mapped.write_both(place, users, 20_000, number * 10**6)
        words = [f"--dir={place}", f"--measure={place / 'log'}"]
        done = subprocess.run(
            [sys.executable, "-m", "pdrec_jax.benchmark.mapped", *words],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        found = json.loads(done.stdout)
        peaks.append([found[step][1] for step in ("read, split, candidates", "one epoch")])
    # In memory the log alone would take 12 bytes an event, 144 MB more.
    assert max(np.subtract(peaks[1], peaks[0])) < 48e6
