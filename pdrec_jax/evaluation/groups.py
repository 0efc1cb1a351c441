"""Where a model is good: NDCG@10 by length of the history and by popularity of the test item."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pdrec_jax.evaluation.metrics import user_values
from pdrec_jax.evaluation.over_seeds import BLOCKS, variants_and_base
from pdrec_jax.evaluation.significance import compare

GROUPINGS = ("history_length", "item_popularity")
METRIC = "NDCG@10"
_MOST_BINS = 6
_FEWEST_USERS = 10  # a bin; fewer make an interval that says nothing


def quantile_bins(numbers: np.ndarray, most: int = _MOST_BINS) -> tuple[np.ndarray, list[str]]:
    """Groups users by a whole number into bins of about the same number of users.

    Users of one number share a bin, so there are fewer bins where numbers tie. None has fewer than
    ten users, unless there are fewer in all.

    Args:
      numbers: [U'], of each user, such as the length of the history; U' >= 1.
      most: most bins.

    Returns:
      [U'] int64 bin of each user, and the bins' labels: the least and largest number within
      ("5-8").
    """
    count = max(1, min(most, len(numbers) // _FEWEST_USERS))
    cuts = np.unique(np.quantile(numbers, np.arange(1, count + 1) / count, method="inverted_cdf"))
    bins = _merged(np.searchsorted(cuts, numbers, side="left"))
    labels = []
    for index in range(bins.max() + 1):
        low, high = int(numbers[bins == index].min()), int(numbers[bins == index].max())
        labels.append(f"{low}" if low == high else f"{low}-{high}")
    return bins, labels


def _merged(bins: np.ndarray) -> np.ndarray:
    """Joins bins of fewer than ten users with the next one, the last with the one before."""
    sizes, joined, number = np.bincount(bins), [], 0
    held = 0
    for size in sizes:
        joined.append(number)
        held += size
        if held >= _FEWEST_USERS:
            number, held = number + 1, 0
    names = np.array(joined)
    if held and number:
        names[names == number] = number - 1
    return names[bins]


def by_group(
    models: Sequence[Mapping[str, Any]],
    ranks: Mapping[str, np.ndarray],
    per_user: Mapping[str, np.ndarray],
    pairs: Sequence[tuple[str, str]] | None = None,
) -> list[dict[str, Any]]:
    """Averages every model over groups of users, and compares each variant with its base.

    All models of a ranking are averaged over the same users, those whom every one of them ranks
    under every seed.

    Args:
      models: of the results; ``key`` and ``stage`` count.
      ranks: ``KEY/BLOCK_rank`` [S, U].
      per_user: ``history_length`` and ``item_popularity``, the training events of the test item,
        [U] each; one that is absent (from a run of an earlier version) makes no groups.
      pairs: keys of a model and of its base; those of variants and bases where not given.

    Returns:
      a dict for each group: ``by``, ``block``, ``group`` (its numbers), ``users``, ``NDCG@10`` by
      model, and under ``gains`` by variant ``difference``, ``low`` and ``high`` of its bootstrap
      interval and ``p_users``, uncorrected; None stands for a number that there is none of.
    """
    pairs = variants_and_base(models) if pairs is None else pairs
    found = []
    for block in BLOCKS:
        values = {}
        for model in models:
            key = str(model["key"])
            if f"{key}/{block}_rank" in ranks:
                values[key] = user_values(METRIC, ranks[f"{key}/{block}_rank"])
        values = {key: each for key, each in values.items() if not np.isnan(each).all()}
        if not values:
            continue
        common = ~np.isnan(np.stack(list(values.values()))).any(axis=(0, 1))
        if not common.any():
            continue
        for by in GROUPINGS:
            if by not in per_user:
                continue
            bins, labels = quantile_bins(np.asarray(per_user[by])[common])
            for number, label in enumerate(labels):
                some = {key: each[:, common][:, bins == number] for key, each in values.items()}
                found.append(
                    {
                        "by": by,
                        "block": block,
                        "group": label,
                        "users": int((bins == number).sum()),
                        METRIC: {key: float(each.mean()) for key, each in some.items()},
                        "gains": _gains(some, pairs),
                    }
                )
    return found


def _gains(
    values: Mapping[str, np.ndarray], pairs: Sequence[tuple[str, str]]
) -> dict[str, dict[str, float | None]]:
    """Compares models [S, U'] with their bases."""
    gains = {}
    for key, base in pairs:
        if key not in values or base not in values:
            continue
        (made,) = compare(values[key][None], values[base][None])
        numbers = {name: getattr(made, name) for name in ("difference", "low", "high", "p_users")}
        gains[key] = {k: v if math.isfinite(v) else None for k, v in numbers.items()}
    return gains
