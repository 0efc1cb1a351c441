"""The memory of a process: the most that it held."""

import subprocess
import sys

import pytest

from pdrec_jax import memory

HELD = 200 << 20


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux alone forgets a peak")
def test_a_peak_is_forgotten():
    held = bytearray(HELD)
    del held
    before = memory.peak()
    memory.forget_peak()
    assert memory.peak() <= before - HELD // 2
    held = bytearray(HELD)
    assert memory.peak() >= len(held)


def test_a_system_that_cannot_forget_is_no_error(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "_CLEAR", tmp_path / "missing" / "clear_refs")
    assert memory.forget_peak() is False
    assert memory.peak() > 0


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux alone forgets a peak")
def test_a_peak_is_not_that_of_the_process_that_started_this_one():
    """What Linux tells of resources begins with those before exec, and is not forgotten."""
    held = bytearray(HELD)
    words = "from pdrec_jax import memory; memory.forget_peak(); print(memory.peak(), memory.now())"
    done = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, check=True)
    peak, now = map(int, done.stdout.split())
    assert len(held) == HELD
    assert peak < now + HELD // 2
