"""NNS's negatives drawn anew out of the whole pools."""

import jax.numpy as jnp
import numpy as np
import pytest

from pdrec_jax.diffusion import redraw
from pdrec_jax.diffusion.redraw import Redraws, packed, unpacked, words
from pdrec_jax.diffusion.selection import pack_bits


def redraws(sizes, count: int, *, items: int = 70, seed: int = 0, every: int = 2) -> Redraws:
    """Pools of some sizes, each of the first items of the catalogue."""
    marks = np.arange(items)[None, :] < np.array(sizes)[:, None]
    first = np.where(marks.any(axis=1), 1, 0)[:, None] * np.ones((1, count), np.int32)
    return Redraws(first.astype(np.int32), packed(marks), every, seed)


@pytest.mark.parametrize("items", [1, 31, 32, 33, 100])
def test_words(items: int) -> None:
    marks = np.random.default_rng(items).random((5, items)) < 0.5
    found = packed(marks)
    assert found.shape == (5, words(items))
    np.testing.assert_array_equal(unpacked(found, items), marks)
    for row, line in zip(found, marks, strict=True):
        np.testing.assert_array_equal(row, pack_bits(jnp.asarray(line)))


class TestTurns:
    def test_epochs(self) -> None:
        made = redraws([5], 3, every=3)
        assert [made.turn(epoch) for epoch in range(1, 8)] == [0, 0, 0, 1, 1, 1, 2]

    def test_the_first_is_what_the_preferences_have(self) -> None:
        made = redraws([40, 40], 7)
        assert made.negatives(0) is made.first

    def test_a_sample_is_distinct_and_out_of_the_pool(self) -> None:
        sizes = np.array([70, 0, 33, 12, 7])
        drawn = redraws(sizes, 12).negatives(1)
        for size, row in zip(sizes, drawn, strict=True):
            if size == 0:
                assert not row.any()
            else:
                assert (row >= 1).all()
                assert (row <= size).all()
                assert len(set(row)) == min(size, 12)

    def test_a_small_pool_is_taken_evenly(self) -> None:
        """All of it over and over, none more than once more than another."""
        row = redraws([5], 12).negatives(3)[0]
        counts = np.bincount(row, minlength=6)[1:]
        assert counts.max() - counts.min() <= 1

    def test_it_depends_on_seed_turn_and_user(self) -> None:
        made = redraws([70] * 4, 12)
        first = made.negatives(1)
        np.testing.assert_array_equal(made.negatives(1), first)
        others = [made.negatives(2), redraws([70] * 4, 12, seed=1).negatives(1)]
        assert all((first != other).any() for other in others)
        assert (first[0] != first[1]).any()

    def test_not_on_who_is_drawn_with_it(self, monkeypatch) -> None:
        expected = redraws([70, 0, 33, 12, 7], 12).negatives(4)
        monkeypatch.setattr(redraw, "_BLOCK", 3)
        np.testing.assert_array_equal(redraws([70, 0, 33, 12, 7], 12).negatives(4), expected)

    def test_over_turns_all_items_come_equally_often(self) -> None:
        made = redraws([30] * 200, 6, items=64)
        counts = sum(np.bincount(made.negatives(turn).reshape(-1), minlength=65)
                     for turn in range(1, 6))  # fmt: skip
        assert not counts[0]
        assert not counts[31:].any()
        # 6,000 draws of 30 items: 200 each, with a standard deviation of 12.5.
        assert np.abs(counts[1:31] - 200).max() < 60

    def test_nobody(self) -> None:
        assert not redraws([0, 0], 3).negatives(1).any()
