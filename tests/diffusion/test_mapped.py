"""Vectors of a mapped log, made in blocks of users, are those of the log in memory."""

import numpy as np
import pytest

from pdrec_jax.data import scratch
from pdrec_jax.diffusion.vectors import InteractionVectors, build_vectors
from pdrec_jax.diffusion.windows import choose_head, split_vectors


def same(found: InteractionVectors, expected: InteractionVectors) -> None:
    for name in ("offsets", "slots", "weights"):
        one, other = getattr(found, name), getattr(expected, name)
        np.testing.assert_array_equal(one, other, name)
        assert one.dtype == other.dtype, name
    assert found.num_slots == expected.num_slots
    assert scratch.is_mapped(found.slots)


@pytest.mark.parametrize("timed", [True, False])
def test_vectors_and_their_parts(monkeypatch, timed) -> None:
    monkeypatch.setattr(scratch.user_blocks, "__defaults__", (23,))
    rng = np.random.default_rng(0)
    lengths = rng.integers(0, 12, 40)
    offsets = np.append(0, np.cumsum(lengths))
    items = rng.integers(1, 20, offsets[-1]).astype(np.int32)
    times = np.concatenate([np.sort(rng.integers(0, 9, n)) for n in lengths]).astype(float)
    rules = {"w_min": 0.1, "w_max": 1.0, "ties": "AllLinear"}
    columns = []
    for values in (items, times):
        column = scratch.Column(values.dtype)
        column.add(values)
        columns.append(column.finish())
    found = build_vectors(offsets, columns[0], columns[1] if timed else None, 21, **rules)
    expected = build_vectors(offsets, items, times if timed else None, 21, **rules)
    same(found, expected)
    head = choose_head(np.bincount(expected.slots, minlength=21), 6)
    parts = zip(split_vectors(found, head), split_vectors(expected, head), strict=True)
    for one, other in parts:
        same(one, other)
