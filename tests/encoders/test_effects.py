import numpy as np
import pytest

from pdrec_jax.data.interactions import Interactions
from pdrec_jax.data.splits import leave_one_out
from pdrec_jax.diffusion.preferences import Preferences
from pdrec_jax.encoders.effects import plugin_effects


@pytest.mark.parametrize(("clip", "scale"), [(2.0, 2.0), (0.7, 2.25)])
def test_shares_are_of_the_events_that_train(clip, scale) -> None:
    """Neither a first event, nor one before the window, nor one of a user without preferences."""
    lengths = np.array([8, 4, 7])
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    items = np.arange(offsets[-1], dtype=np.int32) % 9 + 1
    log = Interactions(
        offsets=offsets,
        items=items,
        times=None,
        domains=None,
        user_ids=np.arange(3),
        item_ids=np.arange(10),
        num_target_items=9,
    )
    split = leave_one_out(log)
    np.testing.assert_array_equal(split.train.lengths, [6, 2, 5])
    # Zero where no target: of 6 events the last 3 are, of 2 the last one.
    weights = np.array([0, 0, 0, 1, 4, 0, 0, 1, 9, 9, 9, 9, 9], np.float32)
    weights[4] = np.float32(clip) * np.float32(scale)  # as float32 has it, not as float64
    preferences = Preferences(
        np.array([True, True, False]),
        np.ones((3, 2), np.int32),
        np.ones((3, 2), np.int32),
        np.zeros(13, np.float32),
        np.zeros(3, np.float32),
    )
    hbr = plugin_effects(split, preferences, weights, clip, scale, 3)["hbr"]
    assert sum(hbr["counts"]) == 4
    assert hbr["low_share"] == 1 / 4
    assert hbr["clipped_share"] == 1 / 4


def test_false_negatives_are_a_share_of_the_draws() -> None:
    """A pool smaller than what is kept of it repeats its items, and is no safer for that."""
    rng = np.random.default_rng(5)
    users, items = 400, 50
    log = Interactions(
        offsets=3 * np.arange(users + 1),
        items=rng.integers(1, items + 1, 3 * users, dtype=np.int32),
        times=None,
        domains=None,
        user_ids=np.arange(users),
        item_ids=np.arange(items + 1),
        num_target_items=items,
    )
    split = leave_one_out(log)
    pools = rng.permuted(np.tile(np.arange(1, items + 1, dtype=np.int32), (users, 1)), axis=1)
    preferences = Preferences(
        np.ones(users, bool),
        np.ones((users, 2), np.int32),
        np.tile(pools[:, :5], (1, 100)),
        np.zeros(users, np.float32),
        np.zeros(users, np.float32),
    )
    nns = plugin_effects(split, preferences, np.zeros(users, np.float32), 1.0, 1.0, 3)["nns"]
    distinct = [len({*pair}) for pair in zip(split.test_items, split.valid_items, strict=True)]
    assert nns["uniform_false_negative_rate"] == pytest.approx(np.mean(distinct) / items)
    # A pool drawn by chance is as safe as chance.
    assert nns["false_negative_rate"] == pytest.approx(np.mean(distinct) / items, rel=0.25)
