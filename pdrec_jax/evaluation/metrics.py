"""Metrics of a ranked list with one relevant item, from ranks, in float64 on the host.

A rank counts the candidates above the relevant item: 0 is the best. It may be fractional where ties
count half.
"""

import numpy as np

CUTOFFS = (1, 5, 10, 20, 50)
SELECTION = "NDCG@10"


def ndcg(ranks: np.ndarray, cutoff: int) -> np.ndarray:
    """Normalised discounted cumulative gain of each user, ``1 / log2(rank + 2)`` below the cutoff.

    Args:
      ranks: [U], 0 is the best.
      cutoff: k.
    """
    return np.where(ranks < cutoff, 1 / np.log2(ranks + 2), 0.0)


def hit_rate(ranks: np.ndarray, cutoff: int) -> np.ndarray:
    """Whether each user's item is among the first k."""
    return (ranks < cutoff).astype(np.float64)


def auc(above: np.ndarray, ties: np.ndarray, negatives: np.ndarray) -> np.ndarray:
    """Share of each user's negatives that the relevant item beats, ties counting half.

    Args:
      above: [U] negatives scored strictly higher.
      ties: [U] negatives scored equal.
      negatives: [U] or scalar, how many there are.
    """
    return 1 - (above + ties / 2) / negatives


def user_values(metric: str, ranks: np.ndarray, negatives: float | None = None) -> np.ndarray:
    """The value of a metric for each user, from the ranks that a run keeps.

    Args:
      metric: a name as in ``summarise``.
      ranks: [...], NaN where a user was not evaluated.
      negatives: how many there were, for AUC, which takes ties as the ranks do.

    Returns:
      [...] float64, NaN where the rank is.

    Raises:
      ValueError: an unknown metric, or AUC without ``negatives``.
    """
    ranks = np.asarray(ranks, np.float64)
    name, _, cutoff = metric.partition("@")
    if name in ("NDCG", "HR") and cutoff:
        values = (ndcg if name == "NDCG" else hit_rate)(ranks, int(cutoff))
    elif metric == "MRR":
        values = 1 / (ranks + 1)
    elif metric == "AUC" and negatives is not None:
        values = 1 - ranks / negatives
    else:
        raise ValueError(f"no metric {metric!r} of ranks alone")
    return np.where(np.isnan(ranks), np.nan, values)


def summarise(
    ranks: np.ndarray, above: np.ndarray, ties: np.ndarray, negatives: np.ndarray
) -> dict[str, float]:
    """Means over users of every metric of the paper, and MRR.

    Args:
      ranks: [U] under the protocol's treatment of ties.
      above: see ``auc``.
      ties: see ``auc``.
      negatives: see ``auc``.

    Returns:
      NDCG@k and HR@k for k in ``CUTOFFS``, AUC, MRR; empty where there is no user.
    """
    if len(ranks) == 0:
        return {}
    ranks = ranks.astype(np.float64)
    table = {f"NDCG@{k}": float(ndcg(ranks, k).mean()) for k in CUTOFFS}
    table |= {f"HR@{k}": float(hit_rate(ranks, k).mean()) for k in CUTOFFS}
    table["AUC"] = float(auc(above, ties, negatives).mean())
    table["MRR"] = float((1 / (ranks + 1)).mean())
    return table
