"""Models of different runs, compared user by user: runs of made-up ranks."""

import json
from pathlib import Path

import numpy as np
import pytest

from pdrec_jax import compare
from pdrec_jax.evaluation.metrics import user_values
from pdrec_jax.settings import default_config, put
from pdrec_jax.workdir import Workdir, seed_folder

USERS = 40


@pytest.fixture
def make(tmp_path: Path):
    """Makes `name`, a finished run of some seeds; returns the ranks of its models, [S, U]."""

    def make(name, keys, seeds=1, *, first=0, users=USERS, log="a", done=True, **fields):
        config = default_config()
        for field, value in {"seed": first, "seeds": seeds, **fields}.items():
            put(config, field.replace("__", "."), value)
        data = {"source": "real", "files": [{"name": "log", "sha256": log}]}
        if seeds > 1:
            Workdir(tmp_path / name, config, "real").begin(data)
        ranks = {key: [] for key in keys}
        for seed in range(first, first + seeds):
            own = config.copy_and_resolve_references()
            own.seed, own.seeds = seed, 1
            path = tmp_path / name / seed_folder(seed) if seeds > 1 else tmp_path / name
            place = Workdir(path, own, "real")
            place.begin(data)
            rng = np.random.default_rng([seed, len(name), *name.encode()])
            arrays = {"users": np.arange(users), "history_length": np.full(users, 7)}
            models = []
            for key in keys:
                drawn = rng.integers(0, 100, users).astype(np.float32)
                drawn[:3] = np.nan
                arrays |= {f"{key}/{block}_rank": drawn for block in ("sampled", "full")}
                ranks[key].append(drawn)
                figures = {"NDCG@10": float(np.nanmean(user_values("NDCG@10", drawn)))}
                models.append(
                    {"key": key, "name": key.upper(), "stage": "encoder", "users": users - 3,
                     "sampled": figures, "best_epoch": 5, "epochs": 9}
                )  # fmt: skip
            place.save_per_user(arrays)
            if done:
                place.finish({"models": models})
        return {key: np.stack(found) for key, found in ranks.items()}

    return make


def run(tmp_path, capsys, *words):
    """Runs the command; returns its status and what it said on either channel."""
    given = [word if word.startswith("-") else str(tmp_path / word) for word in words]
    status = compare.main(given)
    said = capsys.readouterr()
    return status, said.out, said.err


def test_over_the_seeds_that_both_have(tmp_path, make, capsys):
    base = make("base", ["sasrec"], 3)["sasrec"]
    other = make("tuned", ["sasrec", "sasrec+nns"], 2)["sasrec+nns"]
    out = tmp_path / "out"
    status, said, _ = run(tmp_path, capsys, "base", "tuned:sasrec+nns", f"--out={out}")
    assert status == 0
    assert "tuned: SASREC+NNS less base: SASREC" in said
    assert "seeds 0 to 1" in said
    assert max(map(len, said.splitlines())) <= 100
    results = json.loads((out / "comparison.json").read_text())
    assert results["seeds"] == [0, 1]
    assert len(results["comparisons"]) == 12 + 11
    for each in results["comparisons"]:
        ours, theirs = (user_values(each["metric"], ranks[:2, 3:], 99) for ranks in (other, base))
        assert each["difference"] == pytest.approx((ours - theirs).mean())
    mean = results["models"][0]["sampled"]["NDCG@10"]
    assert mean == pytest.approx(np.nanmean(user_values("NDCG@10", base[:2])))
    assert "tuned: SASREC+NNS less base: SASREC: gain" in (out / "comparison.md").read_text()


def test_chosen_metrics_are_the_family(tmp_path, make, capsys):
    for name in ("base", "one", "two"):
        make(name, ["sasrec"])
    words = "base", "one", "two", "--metrics=NDCG@10,AUC", f"--out={tmp_path}/out"
    status, said, _ = run(tmp_path, capsys, *words)
    assert status == 0
    assert "+-" not in said  # a single seed
    found = json.loads((tmp_path / "out/comparison.json").read_text())["comparisons"]
    assert [(each["block"], each["metric"]) for each in found] == [
        *[("sampled", "NDCG@10"), ("sampled", "AUC")] * 2,
        *[("full", "NDCG@10")] * 2,
    ]


@pytest.mark.parametrize(
    ("other", "word", "expected"),
    [
        ({"done": False}, "run", "not finished; seed 0 of a finished run is expected"),
        ({"evaluation__negatives": 50}, "run", "config.evaluation.negatives is 50, and 99 in"),
        ({"protocol": "reference"}, "run", "config.protocol is 'reference', and 'strict' in"),
        ({"users": 39}, "run", "a run on the log of"),
        ({"log": "b"}, "run", "a run on the log of"),
        ({"first": 4}, "run", "no seed is common to all: "),
        ({}, "run:gru4rec", "no model 'gru4rec'; there are sasrec, sasrec+hbr"),
        ({}, "base", "a model is named twice"),
        ({}, "nowhere", "the workdir of a run is expected"),
    ],
)
def test_what_cannot_be_compared(tmp_path, make, capsys, other, word, expected):
    make("base", ["sasrec"])
    make("run", ["sasrec", *["sasrec+hbr"] * (word != "run")], **other)
    status, out, error = run(tmp_path, capsys, "base", word)
    assert (status, out) == (2, "")
    assert error.startswith("error: ")
    assert expected in error
    assert error.count("\n") == 1


def test_a_run_of_several_models_needs_a_name(tmp_path, make, capsys):
    make("base", ["sasrec", "sasrec+hbr"])
    make("run", ["sasrec"])
    status, _, error = run(tmp_path, capsys, "base", "run")
    assert status == 2
    assert "name one of its models, as in " in error
    status, _, error = run(tmp_path, capsys, "run", "base:sasrec", "--metrics=NDCG@3")
    assert status == 2
    assert "--metrics: some of NDCG@1, " in error


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"models": [{}]}', "results.json: not what a run writes"),
        ('{"models": [{"key": "sasrec"}]}', "results.json: not what a run writes"),
        ('{"models": []}', "no model was trained in this run"),
    ],
)
def test_damaged_results_are_one_line(tmp_path, make, capsys, text, expected):
    for name in ("base", "run"):
        make(name, ["sasrec"])
    (tmp_path / "run/results.json").write_text(text)
    status, _, error = run(tmp_path, capsys, "base", "run")
    assert (status, error.count("\n")) == (2, 1)
    assert expected in error


def test_ranks_that_are_missing_or_cut_are_one_line(tmp_path, make, capsys):
    for name in ("base", "run"):
        make(name, ["sasrec"])
    path = tmp_path / "run/per_user.npz"
    with np.load(path) as found:
        arrays = dict(found)
    for wrong in (
        {**arrays, "sasrec/full_rank": np.zeros(USERS - 1)},
        {name: array for name, array in arrays.items() if name != "sasrec/full_rank"},
        {name: array for name, array in arrays.items() if name != "users"},
    ):
        np.savez(path, **wrong)
        status, _, error = run(tmp_path, capsys, "base", "run")
        assert (status, error.count("\n")) == (2, 1)
        assert "per_user.npz" in error
    path.unlink()
    assert run(tmp_path, capsys, "base", "run")[0] == 2


def test_it_is_said_where_other_users_were_ranked(tmp_path, make, capsys):
    for name in ("base", "run"):
        make(name, ["sasrec"])
    _, said, _ = run(tmp_path, capsys, "base", "run")
    assert "different users" not in said
    path = tmp_path / "run/per_user.npz"
    with np.load(path) as found:
        arrays = dict(found)
    arrays["sasrec/sampled_rank"][5:10] = np.nan
    np.savez(path, **arrays)
    status, said, _ = run(tmp_path, capsys, "base", "run", f"--out={tmp_path}/out")
    assert status == 0
    assert f"ranked different users: gains are over the {USERS - 8} of both" in said
    assert "ranked different users" in (tmp_path / "out/comparison.md").read_text()
