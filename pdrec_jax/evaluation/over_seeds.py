"""What the runs of several seeds come to: means, deviations, and comparisons with the base."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pdrec_jax.evaluation.metrics import CUTOFFS, user_values
from pdrec_jax.evaluation.significance import Comparison, compare, holm

BLOCKS = ("sampled", "full")
_PARTS = (*BLOCKS, "validation")
METRICS = (*(f"{name}@{k}" for name in ("NDCG", "HR") for k in CUTOFFS), "AUC", "MRR")
# With one relevant item these are the same number for every user but one whose item ties for the
# first place, so that a test of the one is no further comparison beside a test of the other.
_SAME = {"HR@1": "NDCG@1"}
_NUMBERS = tuple(field.name for field in dataclasses.fields(Comparison))


def over_seeds(models: Sequence[Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Averages the models of several runs.

    Args:
      models: of each seed's results, the same models in the same order.

    Returns:
      a model each, as in the results of one seed, its figures being means over seeds; and under
      ``deviation`` and ``by_seed`` the standard deviations (n - 1) and the figures of each seed.
      ``best_epoch`` and ``epochs`` are rounded means, lists of them stand in ``by_seed``.
    """
    combined = []
    for group in zip(*models, strict=True):
        first = group[0]
        model = dict(first)
        deviation: dict[str, Any] = {}
        by_seed: dict[str, Any] = {}
        for part in _PARTS:
            if not first.get(part):
                continue
            values = {name: [float(one[part][name]) for one in group] for name in first[part]}
            model[part] = {name: float(np.mean(found)) for name, found in values.items()}
            by_seed[part] = values
            deviation[part] = {
                name: float(np.std(found, ddof=1)) if len(found) > 1 else math.nan
                for name, found in values.items()
            }
        for name in ("best_epoch", "epochs"):
            by_seed[name] = [one[name] for one in group]
            model[name] = round(float(np.mean(by_seed[name])))
        combined.append({**model, "deviation": deviation, "by_seed": by_seed})
    return combined


def variants_and_base(models: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Pairs the key of every variant of an encoder with that of its base, where there are both."""
    encoders = [str(model["key"]) for model in models if model.get("stage") == "encoder"]
    pairs = [(key, key.partition("+")[0]) for key in encoders]
    return [(key, base) for key, base in pairs if key != base and base in encoders]


def comparisons(
    pairs: Sequence[tuple[str, str]],
    ranks: Mapping[str, np.ndarray],
    negatives: int,
    *,
    metrics: Sequence[str] = METRICS,
    seed: int = 0,
    draws: int = 2000,
) -> list[dict[str, Any]]:
    """Compares models, each with its base.

    The p-values of a block (sampled or full ranking), of all models and metrics, are one family,
    and corrected together. NDCG@1 and HR@1, one number where no item ties for the first place, then
    count as one comparison.

    Args:
      pairs: keys of a model and of its base.
      ranks: ``KEY/BLOCK_rank`` [S, U]; a pair that lacks one is passed over.
      negatives: of the sampled ranking.
      metrics: some of ``METRICS``.
      seed: of the bootstrap.
      draws: of the bootstrap.

    Returns:
      a dict for each comparison: ``key``, ``base``, ``block``, ``metric``, the fields of
      ``significance.Comparison``, ``p_users_holm`` and ``p_seeds_holm``; None stands for a number
      that there is none of.
    """
    found: list[dict[str, Any]] = []
    for block in BLOCKS:
        # How many negatives a user had in the full ranking is not kept, so no AUC there.
        kept = [name for name in metrics if name != "AUC" or block == "sampled"]
        family: list[dict[str, Any]] = []
        for key, base in pairs if kept else ():
            pair = [
                ranks[name] for each in (key, base) if (name := f"{each}/{block}_rank") in ranks
            ]
            if len(pair) < 2:
                continue
            ours, theirs = (
                np.stack([user_values(metric, each, negatives) for metric in kept]) for each in pair
            )
            made = compare(ours, theirs, seed=seed, draws=draws)
            for metric, one in zip(kept, made, strict=True):
                where = {"key": key, "base": base, "block": block, "metric": metric}
                family.append({**where, **vars(one)})
        repeated = [is_repeated(each, family) for each in family]
        own = [each for each, again in zip(family, repeated, strict=True) if not again]
        for name in ("p_users", "p_seeds"):
            values = holm(np.array([each[name] for each in own])).tolist()
            corrected = {
                (each["key"], each["metric"]): value
                for each, value in zip(own, values, strict=True)
            }
            for each, again in zip(family, repeated, strict=True):
                metric = _SAME[each["metric"]] if again else each["metric"]
                each[f"{name}_holm"] = corrected[each["key"], metric]
        found += family
    return [{k: _finite(v) for k, v in each.items()} for each in found]


def is_repeated(one: Mapping[str, Any], family: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a comparison has the same numbers as that of another metric of the same model.

    Args:
      one: of ``comparisons``.
      family: those of a block, ``one`` among them.
    """
    twins = (
        each
        for each in family
        if each["key"] == one["key"] and each["metric"] == _SAME.get(one["metric"])
    )
    return any(
        all(_finite(each[name]) == _finite(one[name]) for name in _NUMBERS) for each in twins
    )


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
