"""Work row by row, against the same on whole matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdrec_jax.rows import by_blocks, by_rows, count_both, count_true


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_halves_are_joined_in_order(rows):
    numbers = jnp.arange(rows * 3).reshape(rows, 3)
    first, total = by_rows(lambda row: (row[0], jnp.sum(row)), numbers)
    np.testing.assert_array_equal(first, numbers[:, 0])
    np.testing.assert_array_equal(total, numbers.sum(axis=1))


@pytest.mark.parametrize("rows", [1, 4, 8, 11])
def test_blocks_are_joined_in_order(rows):
    numbers, table = jnp.arange(rows * 3).reshape(rows, 3), jnp.arange(15).reshape(3, 5)
    product, first = by_blocks(lambda some: (some @ table, some[:, 0]), 4, numbers)
    np.testing.assert_array_equal(product, numbers @ table)
    np.testing.assert_array_equal(first, numbers[:, 0])


@pytest.mark.parametrize("width", [1, 127, 128, 129, 1000])
def test_count_of_every_width(width):
    marks = np.random.default_rng(width).random(width) < 0.3
    count = jax.jit(count_true)(marks)
    assert count.dtype == jnp.int32
    assert count == marks.sum()


@pytest.mark.parametrize("width", [1, 127, 128, 129, 1000, 128 << 16])
def test_two_counts_at_once(width):
    draws = np.random.default_rng(width).random(width)
    counts = jax.jit(count_both)(draws < 0.3, draws < 0.99)
    assert counts.dtype == jnp.int32
    assert counts.tolist() == [(draws < 0.3).sum(), (draws < 0.99).sum()]


def test_two_full_counts():
    assert (
        jax.jit(count_both)(np.ones(1 << 22, bool), np.ones(1 << 22, bool)).tolist()
        == [1 << 22] * 2
    )
