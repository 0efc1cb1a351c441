"""The blocked selection against a whole stable sort, on scores that are exact and often equal."""

import numpy as np
import pytest

from pdrec_jax.recommend.top_items import in_blocks, top_items


def by_sorting(users, items, seen, count: int, last_item: int):
    """Scores that are sorted as a whole: ids [B, k] and scores [B, k]."""
    scores = (users.astype(np.float64) @ items.astype(np.float64).T)[:, : last_item + 1]
    scores[:, 0] = -np.inf
    for row, some in zip(scores, seen, strict=True):
        row[some[some <= last_item]] = -np.inf
    order = np.argsort(-scores, axis=1, kind="stable")[:, :count]
    best = np.take_along_axis(scores, order, axis=1)
    order = np.where(best > -np.inf, order, 0)
    missing = max(0, count - order.shape[1])
    return (
        np.pad(order, ((0, 0), (0, missing))),
        np.pad(best, ((0, 0), (0, missing)), constant_values=-np.inf),
    )


@pytest.mark.parametrize(
    ("num_items", "block", "count", "last_item"),
    [(500, 64, 20, 500), (500, 16384, 20, 500), (130, 64, 100, 97), (700, 128, 1, 300)],
)
def test_equal_to_a_sort(num_items: int, block: int, count: int, last_item: int) -> None:
    rng = np.random.default_rng(num_items + count)
    # Small integers: every product is exact, and most scores occur many times.
    users = rng.integers(-2, 3, (7, 3)).astype(np.float32)
    items = rng.integers(-2, 3, (num_items + 1, 3)).astype(np.float32)
    seen = rng.integers(0, num_items + 1, (7, 40)).astype(np.int32)

    blocks = in_blocks(items, block)
    ids, scores = top_items(users, blocks, seen, count=count, last_item=last_item)

    expected_ids, expected_scores = by_sorting(users, items, seen, count, last_item)
    np.testing.assert_array_equal(ids, expected_ids)
    np.testing.assert_array_equal(scores, expected_scores)


def test_fewer_items_than_wanted() -> None:
    items = np.arange(5, dtype=np.float32)[:, None]
    seen = np.array([[4, 0, 0], [1, 2, 4]], np.int32)
    users = np.ones((2, 1), np.float32)
    ids, scores = top_items(users, in_blocks(items), seen, count=6, last_item=4)
    assert ids.tolist() == [[3, 2, 1, 0, 0, 0], [3, 0, 0, 0, 0, 0]]
    assert scores[1].tolist() == [3.0] + [-np.inf] * 5


def test_blocks_are_filled_up() -> None:
    items = np.ones((131, 2), np.float32)
    assert in_blocks(items, 64).shape == (3, 64, 2)
    assert in_blocks(items).shape == (1, 192, 2)
    assert float(in_blocks(items, 64).sum()) == 2 * 131
