"""Draws of users, and the packing of their histories into rows."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pdrec_jax.data.batches import (
    LANES,
    PACKED,
    assign_rows,
    blocks,
    draw_users,
    enough_rows,
    extend_train,
    most_rows,
    pack,
    rows_needed,
)
from pdrec_jax.data.interactions import from_events
from pdrec_jax.data.splits import leave_one_out

LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=40)


def offsets_of(lengths) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


class TestDrawUsers:
    USERS = np.array([3, 5, 8, 13])

    def test_shape_and_seed(self):
        first, again = (draw_users(self.USERS, (5, 7), seed=(0, 2, 1)) for _ in range(2))
        assert first.shape == (5, 7)
        np.testing.assert_array_equal(first, again)
        for seed in ((0, 2, 2), (1, 2, 1), (0, 1, 1)):
            assert (draw_users(self.USERS, (5, 7), seed=seed) != first).any()

    def test_uniform_with_replacement(self):
        drawn = draw_users(self.USERS, (100, 400), seed=(4,))
        users, counts = np.unique(drawn, return_counts=True)
        assert users.tolist() == self.USERS.tolist()
        expected = drawn.size / 4
        assert ((counts - expected) ** 2 / expected).sum() < 16.3  # p = 0.001 at 3 degrees
        assert any(len(set(row)) < len(row) for row in drawn[:, :4])

    @pytest.mark.parametrize("steps", [1, 3, 7, 9])
    def test_repeat(self, steps):
        once = draw_users(self.USERS, (-(-steps // 3), 6), seed=(1,))
        thrice = draw_users(self.USERS, (steps, 6), seed=(1,), repeat=3)
        assert thrice.shape == (steps, 6)
        for step in range(steps):
            np.testing.assert_array_equal(thrice[step], once[step // 3])


def test_the_last_block_is_filled() -> None:
    cut = blocks(np.array([5, 6, 7, 8, 9]), 2)
    assert [block.tolist() for block in cut] == [[5, 6], [7, 8], [9, 9]]
    assert blocks(np.zeros(0, np.int64), 2) == []


@pytest.mark.parametrize("times", [True, False])
def test_extend_train(times):
    rng = np.random.default_rng(0)
    users = np.repeat(np.arange(6), [3, 9, 4, 3, 5, 2])
    items = rng.integers(0, 20, users.size)
    stamps = rng.integers(0, 50, users.size).astype(float) if times else None
    split = leave_one_out(from_events(users, items, stamps))
    offsets, extended, extended_times = extend_train(split)
    train = split.train
    assert offsets.tolist() == [end + user for user, end in enumerate(train.offsets)]
    assert (extended_times is None) == (not times)
    for user, (begin, end) in enumerate(itertools.pairwise(train.offsets)):
        own = slice(offsets[user], offsets[user + 1])
        assert extended[own].tolist() == [*train.items[begin:end], split.valid_items[user]]
        if times:
            wanted = [*train.times[begin:end], split.valid_times[user]]
            assert extended_times[own].tolist() == wanted
    assert extended.dtype == train.items.dtype


class TestAssignRows:
    @given(lengths=LENGTHS, slack=st.integers(0, 30))
    @settings(deadline=None)
    def test_no_row_is_overfull_and_no_cell_shared(self, lengths, slack):
        width = max(lengths) + slack
        row, column, rows = assign_rows(np.array(lengths), width)
        taken = np.zeros((rows, width), int)
        for length, r, c in zip(lengths, row, column, strict=True):
            assert c + length <= width
            taken[r, c : c + length] += 1
        assert taken.max() == 1
        assert (taken.sum(1) > 0).all()
        # Filled from the left, without gaps.
        assert (np.diff(taken, axis=1) <= 0).all()

    @given(lengths=LENGTHS)
    @settings(deadline=None)
    def test_few_rows(self, lengths):
        # Two neighbouring rows hold more than one together, or they would have been one.
        _, _, rows = assign_rows(np.array(lengths), 60)
        assert rows <= 2 * sum(lengths) / 60 + 1

    def test_nobody(self):
        assert assign_rows(np.zeros(0, np.int64), 10)[2] == 0


@pytest.mark.parametrize(("longest", "widths"), [(2, (2,)), (128, (128,)), (200, (64, 200))])
def test_row_lengths(longest, widths):
    assert PACKED.row_lengths(longest) == widths


@pytest.mark.parametrize(
    ("longest", "widths"), [(8, (8,)), (24, (8, 24)), (200, (8, 16, 32, 64, 200))]
)
def test_lengths_of_own_rows(longest, widths):
    assert LANES.row_lengths(longest) == widths


def test_most_rows():
    assert most_rows([(1, 5), (3, 2), (2, 2)]) == (3, 5)


@st.composite
def packings(draw):
    """Offsets, users (some twice) and the longest row; both kinds of row where it is over 128."""
    longest = draw(st.sampled_from([1, 2, 7, 128, 129, 200]))
    sizes = st.one_of(st.integers(1, 12), st.integers(1, 3 * longest))
    lengths = draw(st.lists(sizes, min_size=1, max_size=12))
    users = draw(st.lists(st.integers(0, len(lengths) - 1), min_size=1, max_size=16))
    return offsets_of(lengths), np.array(users), longest


class TestPack:
    @given(packing=packings())
    @settings(deadline=None)
    def test_invariants(self, packing):
        offsets, users, longest = packing
        packed = pack(offsets, users, longest)
        widths = PACKED.row_lengths(longest)
        assert [group.shape[1] for group in packed.event] == list(widths)
        assert rows_needed(offsets, users, longest) == tuple(len(g) for g in packed.event)
        for event, segment in zip(packed.event, packed.segment, strict=True):
            assert event.dtype == segment.dtype == np.int32
            assert event.shape == segment.shape
            assert (event[segment == len(users)] == 0).all()
            assert ((segment >= 0) & (segment <= len(users))).all()

        flat = np.concatenate([group.reshape(-1) for group in packed.event])
        owner = np.concatenate([group.reshape(-1) for group in packed.segment])
        width = np.concatenate([np.full(g.size, g.shape[1]) for g in packed.event])
        row = np.concatenate([np.arange(g.size) // g.shape[1] for g in packed.event])
        column = np.concatenate([np.arange(g.size) % g.shape[1] for g in packed.event])
        for number, user in enumerate(users):
            cells = np.flatnonzero(owner == number)
            # Its last events, each once, in order, side by side in one row.
            begin = max(offsets[user], offsets[user + 1] - longest)
            assert flat[cells].tolist() == list(range(begin, offsets[user + 1]))
            assert (np.diff(cells) == 1).all()
            assert len(set(zip(row[cells], width[cells], strict=True))) == 1
            assert packed.last[number] == cells[-1]
            # A row of a longer kind is begun for what fits no other, and filled with anything.
            if column[cells[0]] == 0:
                assert width[cells[0]] == min(w for w in widths if w >= len(cells))

    @given(packing=packings())
    @settings(deadline=None, max_examples=20)
    def test_deterministic(self, packing):
        first, again = pack(*packing), pack(*packing)
        jax.tree.map(
            np.testing.assert_array_equal, dataclasses.astuple(first), dataclasses.astuple(again)
        )

    def test_spare_rows_are_empty(self):
        offsets, users = offsets_of([3, 70, 5]), np.arange(3)
        packed = pack(offsets, users, 200, rows=(4, 2))
        assert [group.shape for group in packed.event] == [(4, 64), (2, 200)]
        # The long rows are there in any case, and one of them takes all.
        assert (packed.segment[0] < 3).sum() == 0
        assert (packed.segment[1] < 3).sum(axis=1).tolist() == [78, 0]
        # The last cells count the spare rows too.
        flat = np.concatenate([group.reshape(-1) for group in packed.event])
        assert flat[packed.last].tolist() == [2, 72, 77]

    @pytest.mark.parametrize(
        ("rows", "complaint"),
        [((0, 1), "1 rows of 64 are needed, 0 given"), ((1, 0), "1 rows of 200 are needed, 0")],
    )
    def test_too_few_rows(self, rows, complaint):
        with pytest.raises(ValueError, match=complaint):
            pack(offsets_of([3, 198]), np.arange(2), 200, rows)

    def test_what_fits_every_batch(self):
        """Two batches, one of which has no long history: its short ones share the long row."""
        offsets, batches = offsets_of([150, 60, 60, 60]), np.array([[0, 1, 1], [1, 2, 3]])
        assert rows_needed(offsets, batches[1], 200) == (3, 0)
        assert enough_rows(offsets, batches, 200) == (2, 1)
        for users in batches:
            packed = pack(offsets, users, 200, (2, 1))
            assert sum((group < 3).sum() for group in packed.segment) == (
                270 if 0 in users else 180
            )
        assert enough_rows(offsets, batches, 200, least=(0, 1)) == (4, 1)
        assert enough_rows(offsets, batches, 200, least=(9, 2)) == (9, 2)

    def test_a_group_may_be_empty(self):
        packed = pack(offsets_of([3, 4]), np.arange(2), 200)
        assert [group.shape for group in packed.event] == [(1, 64), (0, 200)]

    def test_it_saves_most_of_the_padding(self):
        rng = np.random.default_rng(0)
        lengths = np.clip(rng.lognormal(2.1, 1.0, 128).astype(int), 1, 400)
        packed = pack(offsets_of(lengths), np.arange(128), 200)
        cells = sum(group.size for group in packed.event)
        assert cells < 1.25 * np.minimum(lengths, 200).sum() < 0.15 * 128 * 200


class TestOwnRows:
    """A row for each history, at its right end."""

    @given(packing=packings())
    @settings(deadline=None)
    def test_invariants(self, packing):
        offsets, users, longest = packing
        packed = pack(offsets, users, longest, layout=LANES)
        widths = LANES.row_lengths(longest)
        assert [group.shape[1] for group in packed.event] == list(widths)
        assert sum(len(group) for group in packed.event) == len(users)
        flat = np.concatenate([group.reshape(-1) for group in packed.event])
        owner = np.concatenate([group.reshape(-1) for group in packed.segment])
        width = np.concatenate([np.full(g.size, g.shape[1]) for g in packed.event])
        assert (flat[owner == len(users)] == 0).all()
        for number, user in enumerate(users):
            cells = np.flatnonzero(owner == number)
            begin = max(offsets[user], offsets[user + 1] - longest)
            assert flat[cells].tolist() == list(range(begin, offsets[user + 1]))
            assert (np.diff(cells) == 1).all()
            # In the shortest row that holds it, and the last cell of it.
            assert width[cells[0]] == min(w for w in widths if w >= len(cells))
            assert packed.last[number] == cells[-1]
        ends = np.concatenate([g[:, -1] for g in packed.segment])
        assert sorted(ends.tolist()) == list(range(len(users)))

    def test_what_is_needed_counts_the_rows_that_are_at_least_so_long(self):
        offsets, users = offsets_of([3, 70, 5, 9, 200, 1]), np.arange(6)
        assert rows_needed(offsets, users, 200, LANES) == (6, 3, 2, 2, 2)

    def test_a_short_history_may_take_a_long_row(self):
        offsets, users = offsets_of([3, 70, 5]), np.arange(3)
        packed = pack(offsets, users, 200, rows=(3, 2, 2, 1, 1), layout=LANES)
        assert [len(group) for group in packed.event] == [1, 0, 1, 0, 1]
        assert [int((g < 3).sum()) for g in packed.segment] == [3, 0, 5, 0, 70]
        flat = np.concatenate([group.reshape(-1) for group in packed.event])
        assert flat[packed.last].tolist() == [2, 72, 77]

    def test_more_long_rows_than_rows(self):
        # As when the numbers of a rare batch are rounded up.
        packed = pack(offsets_of([3, 70]), np.arange(2), 24, rows=(2, 4), layout=LANES)
        assert [len(group) for group in packed.event] == [0, 4]
        assert (packed.segment[1] < 2).sum(axis=1).tolist() == [24, 3, 0, 0]

    def test_numbers_grow_together_so_that_a_long_training_has_few_shapes(self):
        rng = np.random.default_rng(0)
        lengths = np.clip(rng.lognormal(2.1, 1.0, 8_000).astype(int), 1, 200)
        offsets, users = offsets_of(lengths), np.arange(8_000)
        usual = enough_rows(offsets, draw_users(users, (500, 128), seed=(0,)), 200, LANES)
        shapes = set()
        for epoch in range(200):
            drawn = draw_users(users, (62, 128), seed=(1, epoch))
            found = enough_rows(offsets, drawn, 200, LANES, usual)
            shapes.add(found)
            need = most_rows(rows_needed(offsets, batch, 200, LANES) for batch in drawn)
            assert all(n <= number for n, number in zip(need, found, strict=True))
        assert usual in shapes
        assert len(shapes) <= 3

    def test_numbers_grow_by_quarters_and_at_least_by_four(self):
        offsets = offsets_of([3] * 20 + [30] * 20)
        assert LANES.row_lengths(40) == (8, 16, 40)

        def rows(least):  # of 20 histories that all want a row of 40
            return enough_rows(offsets, [np.arange(20, 40)], 40, LANES, least)

        assert rows((20, 20, 20)) == (20, 20, 20)
        assert rows((20, 16, 16)) == (20, 20, 20)
        assert rows((32, 20, 10)) == (32, 32, 22)
        assert rows((32, 8, 8)) == (32, 20, 20)

    def test_too_few_rows(self):
        with pytest.raises(ValueError, match="2 rows of 24 are needed, 1 given"):
            pack(offsets_of([30, 70]), np.arange(2), 24, (2, 1), LANES)
