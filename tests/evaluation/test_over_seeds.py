"""Means and deviations of several runs, and the family of comparisons with the base."""

import math

import numpy as np
import pytest

from pdrec_jax.evaluation.metrics import user_values
from pdrec_jax.evaluation.over_seeds import comparisons, over_seeds, variants_and_base
from pdrec_jax.evaluation.significance import holm, paired_t

MODELS = [
    {"key": "diffusion", "stage": "diffusion"},
    {"key": "sasrec", "stage": "encoder"},
    {"key": "sasrec+hbr", "stage": "encoder"},
    {"key": "sasrec+hbr+nns", "stage": "encoder"},
]
PAIRS = variants_and_base(MODELS)


@pytest.fixture
def ranks():
    rng = np.random.default_rng(0)
    made = {
        f"{model['key']}/{block}_rank": rng.integers(0, 100, (3, 60)).astype(np.float32)
        for model in MODELS
        for block in ("sampled", "full")
    }
    for array in made.values():
        array[:, :5] = np.nan
    return made


def test_means_and_deviations():
    runs = [
        [
            {
                "key": "a",
                "sampled": {"AUC": auc},
                "validation": None,
                "best_epoch": (3, 3, 8)[i],
                "epochs": 9,
            }
        ]
        for i, auc in enumerate((0.5, 0.6, 0.8))
    ]
    (found,) = over_seeds(runs)
    assert found["sampled"]["AUC"] == pytest.approx(1.9 / 3)
    assert found["deviation"] == {
        "sampled": {"AUC": pytest.approx(np.std([0.5, 0.6, 0.8], ddof=1))}
    }
    assert found["by_seed"]["sampled"] == {"AUC": [0.5, 0.6, 0.8]}
    assert found["by_seed"]["best_epoch"] == [3, 3, 8]
    assert (found["best_epoch"], found["epochs"], found["validation"]) == (5, 9, None)


def test_every_variant_against_its_base(ranks):
    found = comparisons(PAIRS, ranks, 99, draws=50)
    assert len(found) == 2 * (12 + 11)
    assert {each["key"] for each in found} == {"sasrec+hbr", "sasrec+hbr+nns"}
    for each in found:
        ours, theirs = (
            user_values(each["metric"], ranks[f"{key}/{each['block']}_rank"][:, 5:], 99)
            for key in (each["key"], "sasrec")
        )
        gain = ours - theirs
        assert each["difference"] == pytest.approx(gain.mean())
        p = paired_t(gain.mean(axis=0))[1]
        assert each["p_users"] == (None if math.isnan(p) else pytest.approx(p, rel=1e-9))


def test_a_block_is_one_family(ranks):
    found = comparisons(PAIRS, ranks, 99, draws=50)
    for block, count in (("sampled", 24), ("full", 22)):
        family = [each for each in found if each["block"] == block]
        assert len(family) == count
        once = [each for each in family if each["metric"] != "HR@1"]
        for name in ("p_users", "p_seeds"):
            raw = np.array([each[name] for each in once], np.float64)  # None becomes NaN
            corrected = np.array([each[f"{name}_holm"] for each in once], np.float64)
            np.testing.assert_allclose(corrected, holm(raw), rtol=1e-12)


def test_draws_are_those_of_the_seed(ranks):
    def ends(**given):
        found = comparisons(PAIRS[:1], ranks, 99, metrics=("MRR",), draws=50, **given)
        return [(each["low"], each["high"]) for each in found]

    assert ends() == ends(seed=0)
    assert all(one != other for one, other in zip(ends(), ends(seed=1), strict=True))


def test_one_number_under_two_names_is_one_comparison(ranks):
    """With one relevant item NDCG@1 and HR@1 are the same, user by user."""
    for array in ranks.values():
        one, other = (user_values(name, array, 99) for name in ("NDCG@1", "HR@1"))
        np.testing.assert_array_equal(one, other)
    found = comparisons(PAIRS, ranks, 99, draws=50)
    by_metric = {(each["key"], each["block"], each["metric"]): each for each in found}
    for (key, block, metric), each in by_metric.items():
        if metric == "HR@1":
            assert {**each, "metric": "NDCG@1"} == by_metric[key, block, "NDCG@1"]
    alone = comparisons(PAIRS, ranks, 99, metrics=("HR@1",), draws=50)
    assert all(each["p_users_holm"] is not None for each in alone)


def test_a_tie_for_the_first_place_makes_two_numbers_of_them(ranks):
    """At half a place NDCG@1 is 0.756 and HR@1 is 1, so each has a p-value of its own."""
    rng = np.random.default_rng(7)
    tied = {
        name: np.where((array == 0) & (rng.random(array.shape) < 0.5), 0.5, array)
        for name, array in ranks.items()
    }
    found = comparisons(PAIRS, tied, 99, draws=50)
    family = [each for each in found if each["block"] == "sampled"]
    ones = [each for each in family if each["metric"] in ("NDCG@1", "HR@1")]
    assert len({each["p_users"] for each in ones}) == 4
    raw = np.array([each["p_users"] for each in family], np.float64)
    corrected = [each["p_users_holm"] for each in family]
    np.testing.assert_allclose(corrected, holm(raw), rtol=1e-12)


def test_nothing_to_compare(ranks):
    assert variants_and_base(MODELS[:2]) == []
    assert variants_and_base([MODELS[2]]) == []
    assert comparisons(PAIRS, {}, 99) == []
