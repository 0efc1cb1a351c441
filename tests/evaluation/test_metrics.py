"""Metrics: the recorded evaluation, and what they are on small lists."""

import numpy as np
import pytest

from pdrec_jax.evaluation.metrics import (
    CUTOFFS,
    SELECTION,
    auc,
    hit_rate,
    ndcg,
    summarise,
    user_values,
)
from pdrec_jax.evaluation.ranking import Ranks


def test_goldens(goldens):
    golden = goldens("evaluate")
    predictions = golden["predictions"]
    above = (predictions[:, 1:] > predictions[:, :1]).sum(axis=1)
    ties = (predictions[:, 1:] == predictions[:, :1]).sum(axis=1)
    ranks = Ranks(above, ties, np.full(40, 99), half_ties=False)
    np.testing.assert_array_equal(ranks.ranks, golden["rank"])
    found = ranks.metrics()
    expected = dict(zip(golden["metric_order"].tolist(), golden["metrics"].tolist(), strict=True))
    for k in CUTOFFS:
        assert found[f"NDCG@{k}"] == pytest.approx(expected.pop(f"NDCG{k}"), rel=1e-12)
        assert found[f"HR@{k}"] == pytest.approx(expected.pop(f"HR{k}"), rel=1e-12)
    assert found["AUC"] == pytest.approx(expected.pop("AUC"), rel=1e-12)
    assert set(expected) == {"BCE"}  # the reference's loss on the candidates, which is not ours
    assert found["MRR"] == pytest.approx((1 / (golden["rank"] + 1)).mean(), rel=1e-12)


def test_cutoffs():
    ranks = np.array([0.0, 0.5, 1.0, 9.0, 10.0])
    np.testing.assert_array_equal(hit_rate(ranks, 1), [1, 1, 0, 0, 0])
    np.testing.assert_array_equal(hit_rate(ranks, 10), [1, 1, 1, 1, 0])
    expected = 1 / np.log2(ranks + 2) * [1, 1, 1, 1, 0]
    np.testing.assert_allclose(ndcg(ranks, 10), expected, rtol=1e-15)
    assert ndcg(np.array([0]), 5) == 1


def test_auc_counts_ties_half():
    above, ties = np.array([0, 99, 10, 0]), np.array([0, 0, 4, 99])
    np.testing.assert_allclose(auc(above, ties, np.full(4, 99)), [1, 0, 1 - 12 / 99, 0.5])


def test_summary():
    above, ties = np.array([0, 3]), np.array([1, 0])
    table = summarise(above + ties / 2, above, ties, np.array([9, 9]))
    assert list(table) == [
        *(f"NDCG@{k}" for k in CUTOFFS),
        *(f"HR@{k}" for k in CUTOFFS),
        "AUC",
        "MRR",
    ]
    assert SELECTION in table
    assert table["MRR"] == pytest.approx((1 / 1.5 + 1 / 4) / 2)
    assert table["HR@1"] == 0.5
    assert all(type(value) is float for value in table.values())
    nobody = np.zeros(0, np.int64)
    assert summarise(nobody, nobody, nobody, nobody) == {}


def test_values_of_users_average_to_the_summary():
    above, ties = np.array([0, 3, 12, 98]), np.array([1, 0, 0, 1])
    ranks = Ranks(above, ties, np.full(4, 99), half_ties=True)
    for metric, mean in ranks.metrics().items():
        assert user_values(metric, ranks.ranks, 99).mean() == pytest.approx(mean, rel=1e-12)
    values = user_values("NDCG@10", np.array([[0.0, np.nan]]))
    assert values[0, 0] == 1
    assert np.isnan(values[0, 1])


@pytest.mark.parametrize("metric", ["AUC", "NDCG", "F1@5"])
def test_values_of_users_need_a_metric_of_ranks(metric):
    with pytest.raises(ValueError, match="no metric"):
        user_values(metric, np.zeros(2))
