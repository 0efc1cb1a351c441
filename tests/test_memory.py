"""The memory of a process: the most that it held."""

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
    monkeypatch.setattr(memory, "_PEAK", tmp_path / "missing" / "clear_refs")
    memory.forget_peak()
    assert memory.peak() > 0
