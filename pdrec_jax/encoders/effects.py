"""What each plugin did to the data of a run, for the report."""

from __future__ import annotations

from typing import Any

import numpy as np

from pdrec_jax.data.scratch import user_blocks
from pdrec_jax.data.splits import Split
from pdrec_jax.diffusion.preferences import Preferences

_BINS = 20
_LOW = 0.1  # of the mean weight, omega_f


def popularity_percentile(split: Split, items: np.ndarray) -> float:
    """Mean share of the items learnt that are less popular than those given (ties half), in [0, 1].

    Args:
      split: popularity is counted over its training events.
      items: ids, any shape.
    """
    counts = split.train.popularity[1 : 1 + split.num_learnt_items]
    ordered = np.sort(counts)
    own = counts[items.reshape(-1) - 1]
    below, through = (np.searchsorted(ordered, own, side=side) for side in ("left", "right"))
    return float(np.mean((below + through) / 2) / len(counts))


def plugin_effects(
    split: Split,
    preferences: Preferences,
    weights: np.ndarray,
    clip: float,
    scale: float,
    max_length: int,
) -> dict[str, Any]:
    """Summarises the three plugins.

    The held-out items are looked at here for the report alone; nothing of it reaches training.

    Args:
      split: the data.
      preferences: candidates and negatives of the users that have them.
      weights: [E] HBR's weights, 0 where an event is no target.
      clip: c_w.
      scale: omega_f.
      max_length: L; earlier events of a history are no targets, nor is its first.

    Returns:
      histogram and shares of HBR's weights; how often DPA's candidates hold the test item, beside
      a uniform draw of as many; the share of NNS's negatives that are a held-out item of their
      user, beside that of uniform draws from the catalogue.
    """
    users, num_items = np.flatnonzero(preferences.users), split.num_learnt_items
    offsets, lengths = split.train.offsets, split.train.lengths
    trained = np.where(preferences.users, np.minimum(lengths - 1, max_length), 0)
    counts, edges = np.histogram([], bins=_BINS, range=(0, clip * scale))
    largest = np.float32(clip) * np.float32(scale)  # as the weights have it, in their precision
    total = low = clipped = 0
    for first, last in user_blocks(offsets):
        begin, end = offsets[[first, last]]
        own = lengths[first:last]
        from_end = np.repeat(offsets[first + 1 : last + 1], own) - np.arange(begin, end)
        targets = from_end <= np.repeat(trained[first:last], own)
        if not split.learns_source:
            targets &= split.train.items[begin:end] <= num_items
        targets = weights[begin:end][targets]
        counts = counts + np.histogram(targets, bins=_BINS, range=(0, clip * scale))[0]
        total += len(targets)
        low += int(np.sum(targets < _LOW * scale))
        clipped += int(np.sum(targets >= largest))
    candidates, negatives = preferences.candidates[users], preferences.negatives[users]
    test, valid = split.test_items[users][:, None], split.valid_items[users][:, None]
    hits = (candidates == test).any(axis=1)
    # Of the draws, for a small pool repeats its items.
    wrong = np.mean((negatives == test) | (negatives == valid))
    held = 1 + (test != valid)
    return {
        "hbr": {
            "edges": edges.tolist(),
            "counts": counts.tolist(),
            "low_share": low / max(total, 1),
            "clipped_share": clipped / max(total, 1),
        },
        "dpa": {
            "hit_rate": float(hits.mean()),
            "uniform_hit_rate": candidates.shape[1] / num_items,
            "popularity_percentile": popularity_percentile(split, candidates),
        },
        "nns": {
            "false_negative_rate": float(wrong),
            "uniform_false_negative_rate": float(np.mean(held)) / num_items,
            "popularity_percentile": popularity_percentile(split, negatives),
        },
    }
