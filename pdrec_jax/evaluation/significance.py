"""Whether one model beats another: paired tests over users and over seeds, and their correction.

All comparisons are paired, because models share users, candidates and seeds. A difference has two
sources of chance: which users were asked, and which seed a model was trained from. A test over
users says whether the trained models differ, one over seeds whether training again would show it.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy.special import stdtr

_BLOCK = 64  # bootstrap draws at a time
_GROUP = 16_384  # users whose [64, G] counts are held at a time, G
_COUNTED = 8  # draws that are counted at a time, in the cache


@dataclasses.dataclass(frozen=True)
class Comparison:
    """How far a model is from another on one metric.

    Attributes:
      difference: mean over seeds and users, model less base.
      low: lower end of the bootstrap's 95 % interval of the difference.
      high: its upper end.
      p_users: of the paired t-test over users, each averaged over seeds.
      p_seeds: of the paired t-test over seeds, each averaged over users; NaN with one seed, and
        where all seeds differ alike.
    """

    difference: float
    low: float
    high: float
    p_users: float
    p_seeds: float


def paired_t(differences: np.ndarray) -> tuple[float, float]:
    """Student's t-test of the mean of paired differences against zero, two-sided.

    ``t = mean / (s / sqrt(n))`` with n - 1 degrees of freedom (Student, 1908).

    Args:
      differences: [n].

    Returns:
      t and p. Without a spread p is 1 where all differences are 0, else 0; both are NaN for fewer
      than two differences.
    """
    count = len(differences)
    if count < 2:
        return float("nan"), float("nan")
    mean, error = differences.mean(), differences.std(ddof=1) / np.sqrt(count)
    if error == 0:
        return (0.0, 1.0) if mean == 0 else (float(np.copysign(np.inf, mean)), 0.0)
    t = float(mean / error)
    return t, float(2 * stdtr(count - 1, -abs(t)))


def bootstrap_interval(
    differences: np.ndarray, *, seed: int = 0, draws: int = 2000, level: float = 0.95
) -> tuple[np.ndarray, np.ndarray]:
    """Percentile interval of the mean, seeds and users drawn anew with replacement.

    Rows and columns are drawn independently of each other, so the interval covers both sources of
    chance (the pigeonhole bootstrap of Owen, 2007). A single seed is kept, and the interval is then
    over users alone.

    Args:
      differences: [..., S, U]; all that stand before share their draws.
      seed: of the draws.
      draws: how many.
      level: of confidence.

    Returns:
      its lower and upper end, [...] each; NaN without users.
    """
    *many, seeds, users = differences.shape
    if users == 0 or seeds == 0:
        return np.full(many, np.nan), np.full(many, np.nan)
    rng = np.random.default_rng(seed)
    columns = differences.reshape(-1, users).T / users
    means = np.empty((draws, *many))
    for begin in range(0, draws, _BLOCK):
        size = min(_BLOCK, draws - begin)
        sums = _resampled_sums(columns, size, rng)
        rows = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size) / seeds
        by_seed = sums.reshape(size, *many, seeds)
        means[begin : begin + size] = np.einsum("d...s,ds->d...", by_seed, rows)
    tail = (1 - level) / 2
    low, high = np.quantile(means, [tail, 1 - tail], axis=0)
    return low, high


def _resampled_sums(columns: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Sums over as many users as there are, drawn with replacement.

    How often each group of users is drawn is multinomial, and within a group each draw is uniform:
    the same law as of drawing among all at once, whose counts would take ``[size, U]``.

    Args:
      columns: [U, K].
      size: how many sums.
      rng: of the draws.

    Returns:
      [size, K].
    """
    users = len(columns)
    begins = range(0, users, _GROUP)
    lengths = np.minimum(users - np.array(begins), _GROUP)
    sums = np.zeros((size, columns.shape[1]))
    per_group = rng.multinomial(users, lengths / users, size)
    for begin, length, of_group in zip(begins, lengths.tolist(), per_group.T, strict=True):
        counts = np.empty((size, length))
        for few in np.split(np.arange(size), range(_COUNTED, size, _COUNTED)):
            picked = rng.integers(0, length, of_group[few].sum())
            picked += np.repeat(length * (few - few[0]), of_group[few])
            found = np.bincount(picked, minlength=length * few.size)
            counts[few] = found.reshape(few.size, length)
        sums += counts @ columns[begin : begin + length]
    return sums


def holm(p_values: np.ndarray) -> np.ndarray:
    """Corrects the p-values of one family of comparisons (Holm, 1979).

    The k-th smallest of n is multiplied by n - k + 1 and not below the ones before it, so that the
    chance of any false finding in the family stays below the level, however the tests depend on
    each other.

    Args:
      p_values: [n]; NaN for a test that could not be made, which does not count.

    Returns:
      [n], at most 1; NaN where there was one.
    """
    p_values = np.asarray(p_values, np.float64)
    corrected = np.full(p_values.shape, np.nan)
    made = np.flatnonzero(~np.isnan(p_values))
    order = made[np.argsort(p_values[made], kind="stable")]
    factors = len(order) - np.arange(len(order))
    corrected[order] = np.minimum(np.maximum.accumulate(p_values[order] * factors), 1.0)
    return corrected


def compare(
    model: np.ndarray, base: np.ndarray, *, seed: int = 0, draws: int = 2000
) -> list[Comparison]:
    """Compares a model with a base on several metrics.

    Args:
      model: [K, S, U] each metric of each seed and user; NaN where a user was not evaluated.
      base: [K, S, U], likewise.
      seed: of the bootstrap.
      draws: of the bootstrap.

    Returns:
      K comparisons, over the users whom both have under every seed.
    """
    differences = np.asarray(model, np.float64) - np.asarray(base, np.float64)
    differences = differences[:, :, ~np.isnan(differences).any(axis=(0, 1))]
    if differences.shape[2] == 0:
        return [Comparison(*[float("nan")] * 5) for _ in differences]
    lows, highs = bootstrap_interval(differences, seed=seed, draws=draws)
    return [
        Comparison(
            float(each.mean()),
            float(low),
            float(high),
            paired_t(each.mean(axis=0))[1],
            _p_of_seeds(each.mean(axis=1)),
        )
        for each, low, high in zip(differences, lows, highs, strict=True)
    ]


def _p_of_seeds(differences: np.ndarray) -> float:
    """``paired_t`` over seeds, whose few means can be alike by chance.

    A share of U users is a multiple of 1 / U, and two seeds often differ by the same one. Such a
    spread of 0 says nothing of what other seeds would come to, and is no p of 0.

    Args:
      differences: [S].
    """
    spread, mean = np.ptp(differences), np.abs(differences).max()
    if mean > 0 and spread <= 1e-9 * mean:
        return float("nan")
    return paired_t(differences)[1]
