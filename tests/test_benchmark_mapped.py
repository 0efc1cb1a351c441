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
