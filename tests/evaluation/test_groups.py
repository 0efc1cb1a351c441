"""Groups of users: who is in which, and what the averages and gains of a group are."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdrec_jax.evaluation.groups import by_group, quantile_bins
from pdrec_jax.report.groups import markdown_groups

MODELS = [
    {"key": "diffusion", "stage": "diffusion", "name": "TI-DiffRec"},
    {"key": "sasrec", "stage": "encoder", "name": "SASRec"},
    {"key": "sasrec+nns", "stage": "encoder", "name": "SASRec+NNS"},
]


@pytest.fixture
def world() -> tuple[dict, dict]:
    """Ranks of 3 seeds and 80 users, some of whom one model did not rank, and their numbers."""
    rng = np.random.default_rng(0)
    ranks = {}
    for model in MODELS:
        for block in ("sampled", "full"):
            ranks[f"{model['key']}/{block}_rank"] = rng.integers(0, 30, (3, 80)).astype(float)
    ranks["diffusion/sampled_rank"][:, :7] = np.nan
    ranks["sasrec/full_rank"][1, 79] = np.nan
    per_user = {
        "history_length": rng.integers(1, 9, 80),
        "item_popularity": rng.integers(0, 50, 80),
    }
    return ranks, per_user


def gain_of(rank: float) -> float:
    return 1 / math.log2(rank + 2) if rank < 10 else 0.0


def test_averages_and_gains_are_those_of_a_loop(world) -> None:
    ranks, per_user = world
    found = by_group(MODELS, ranks, per_user)
    assert {(each["block"], each["by"]) for each in found} == {
        (block, by) for block in ("sampled", "full") for by in per_user
    }
    for each in found:
        low, _, high = each["group"].partition("-")
        users = []
        for user in range(80):
            own = [
                ranks[f"{m['key']}/{each['block']}_rank"][s, user] for m in MODELS for s in range(3)
            ]
            number = per_user[each["by"]][user]
            if not any(map(math.isnan, own)) and int(low) <= number <= int(high or low):
                users.append(user)
        assert each["users"] == len(users) > 0
        means = {}
        for model in MODELS:
            table = ranks[f"{model['key']}/{each['block']}_rank"]
            means[model["key"]] = np.mean([gain_of(table[s, u]) for s in range(3) for u in users])
        assert each["NDCG@10"] == pytest.approx(means)
        assert list(each["gains"]) == ["sasrec+nns"]
        gain = each["gains"]["sasrec+nns"]
        assert gain["difference"] == pytest.approx(means["sasrec+nns"] - means["sasrec"])
        assert gain["low"] <= gain["difference"] <= gain["high"]
        assert 0 <= gain["p_users"] <= 1


def test_every_user_is_in_one_group(world) -> None:
    found = by_group(MODELS, *world)
    for by in ("history_length", "item_popularity"):
        for block, count in (("sampled", 73), ("full", 79)):
            some = [each["users"] for each in found if (each["by"], each["block"]) == (by, block)]
            assert sum(some) == count


def test_a_run_of_before_has_groups_by_length_alone(world) -> None:
    ranks, per_user = world
    del per_user["item_popularity"]
    assert {each["by"] for each in by_group(MODELS, ranks, per_user)} == {"history_length"}
    assert by_group(MODELS, {}, per_user) == []


def test_the_tables(world) -> None:
    text = markdown_groups({"models": MODELS, "groups": by_group(MODELS, *world)})
    assert text.startswith("## By groups of users\n\nSampled ranking:")
    assert "| history length | users | TI-DiffRec | SASRec | SASRec+NNS |" in text
    assert "| training events of the test item | users |" in text
    assert markdown_groups({"models": MODELS}) == ""


@given(st.lists(st.integers(1, 60), min_size=1, max_size=200), st.integers(1, 8))
def test_quantile_bins_part_the_users(lengths: list[int], most: int) -> None:
    array = np.array(lengths, np.int64)
    bins, labels = quantile_bins(array, most)
    assert 1 <= len(labels) <= most
    assert bins.shape == array.shape
    assert sorted(set(bins.tolist())) == list(range(len(labels)))
    # Longer histories never stand in an earlier bin, and users of one length share theirs.
    order = np.argsort(array, kind="stable")
    assert (np.diff(bins[order]) >= 0).all()
    assert all(len(set(bins[array == length])) == 1 for length in set(lengths))
    assert np.bincount(bins).min() >= min(10, len(lengths))
    for index, label in enumerate(labels):
        low, _, high = label.partition("-")
        assert array[bins == index].min() == int(low)
        assert array[bins == index].max() == int(high or low)


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ({1: 59, 2: 1}, [60]),
        ({1: 3, 2: 50, 3: 50}, [53, 50]),
        ({1: 50, 2: 4, 3: 50, 4: 5}, [50, 59]),
        ({1: 4}, [4]),
    ],
)
def test_quantile_bins_are_of_ten_users_at_least(counts, expected) -> None:
    numbers = np.concatenate([np.full(count, number) for number, count in counts.items()])
    assert np.bincount(quantile_bins(numbers)[0]).tolist() == expected


def test_quantile_bins_are_even_where_nothing_ties() -> None:
    bins, labels = quantile_bins(np.arange(1, 601), 6)
    assert np.bincount(bins).tolist() == [100] * 6
    assert labels[0] == "1-100"
