"""Models of different runs, compared user by user: runs of made-up ranks."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from pdrec_jax import compare
from pdrec_jax.evaluation.metrics import user_values

USERS = 40  # that `make` makes


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
    (group,) = (each for each in results["groups"] if each["block"] == "sampled")
    assert (group["by"], group["group"], group["users"]) == ("history_length", "7", USERS - 3)
    (gain,) = group["gains"].values()
    ours, theirs = (user_values("NDCG@10", ranks[:2, 3:]).mean() for ranks in (other, base))
    assert gain["difference"] == pytest.approx(ours - theirs)
    assert "## By groups of users" in (out / "comparison.md").read_text()
    mean = results["models"][0]["sampled"]["NDCG@10"]
    assert mean == pytest.approx(np.nanmean(user_values("NDCG@10", base[:2])))
    assert "tuned: SASREC+NNS less base: SASREC: gain" in (out / "comparison.md").read_text()


def test_a_seed_that_is_trained_yet_is_left_out(tmp_path, make, capsys):
    """Its results are those of its first models."""
    make("base", ["sasrec", "sasrec+hbr"], 3)
    make("less", ["sasrec"], 3)
    shutil.copytree(tmp_path / "less/seed-2", tmp_path / "base/seed-2", dirs_exist_ok=True)
    out = tmp_path / "out"
    status, _, _ = run(tmp_path, capsys, "base:sasrec", "base:sasrec+hbr", f"--out={out}")
    assert status == 0
    assert json.loads((out / "comparison.json").read_text())["seeds"] == [0, 1]
    status, _, error = run(tmp_path, capsys, "base:sasrec", "base:sasrec+nns")
    assert (status, error.count("no model 'sasrec+nns'")) == (2, 1)


def test_nothing_is_written_within_a_run(tmp_path, make, capsys):
    make("base", ["sasrec"], 2)
    make("tuned", ["sasrec"], 2)
    for out in ("tuned", "base/seed-0/new"):
        status, said, error = run(tmp_path, capsys, "base", "tuned", f"--out={tmp_path / out}")
        assert (status, said) == (2, "")
        assert f"{out}: is within the run {tmp_path}/" in error
    assert run(tmp_path, capsys, "base", "tuned", f"--out={tmp_path}")[0] == 0  # which holds them


def test_seeds_that_are_not_finished_are_left_out(tmp_path, make, capsys):
    make("base", ["sasrec"], 3)
    make("tuned", ["sasrec"], 4)
    for seed in (0, 3):
        (tmp_path / f"tuned/seed-{seed}/results.json").unlink()
    (tmp_path / "tuned/seed-3/config.json").unlink()  # not begun
    out = tmp_path / "out"
    status, said, _ = run(tmp_path, capsys, "base", "tuned", f"--out={out}")
    assert status == 0
    note = f"{tmp_path}/tuned: left out, not finished: seeds 0, 3"
    assert note in said.splitlines()
    assert note in (out / "comparison.md").read_text()
    assert json.loads((out / "comparison.json").read_text())["seeds"] == [1, 2]
    for seed in (1, 2):
        (tmp_path / f"tuned/seed-{seed}/results.json").unlink()
    status, _, error = run(tmp_path, capsys, "base", "tuned")
    assert (status, error) == (
        2, f"error: {tmp_path}/tuned: not finished; one of its seeds is expected\n"
    )  # fmt: skip


def test_seeds_that_do_not_follow_one_another_are_listed(tmp_path, make, capsys):
    make("base", ["sasrec"], 3)
    make("tuned", ["sasrec"], 3)
    (tmp_path / "tuned/seed-1/results.json").unlink()
    status, said, _ = run(tmp_path, capsys, "base", "tuned")
    assert status == 0
    assert said.splitlines()[0].endswith(" | seeds 0, 2")


@pytest.mark.parametrize(
    ("copied", "differs"),
    [
        ("tuned/seed-0", "config, which differs in seed"),
        ("other/seed-1", "config, which differs in dpa.coarse"),
        ("log/seed-1", "content of log, by its checksum"),
    ],
)
def test_a_seed_that_is_not_of_the_run(tmp_path, make, capsys, copied, differs):
    make("base", ["sasrec"], 2)
    make("tuned", ["sasrec"], 2)
    make("other", ["sasrec"], 2, dpa__coarse=70)
    make("log", ["sasrec"], 2, log="b")
    shutil.rmtree(tmp_path / "tuned/seed-1")
    shutil.copytree(tmp_path / copied, tmp_path / "tuned/seed-1")
    status, out, error = run(tmp_path, capsys, "base", "tuned")
    assert (status, out) == (2, "")
    assert f"{tmp_path}/tuned/seed-1: holds a run" in error
    assert differs in error
    assert error.endswith(f" ({tmp_path}/tuned/seed-1 is to hold seed 1 of {tmp_path}/tuned)\n")
    assert error.count("\n") == 1


def test_seeds_of_other_users(tmp_path, make, capsys):
    make("base", ["sasrec", "sasrec+hbr"], 2)
    place = tmp_path / "base/seed-0/per_user.npz"
    with np.load(place) as arrays:
        np.savez(place, **{name: array[:0] for name, array in arrays.items()})
    status, out, error = run(tmp_path, capsys, "base:sasrec", "base:sasrec+hbr")
    assert (status, out, error.count("\n")) == (2, "", 1)
    assert "a run on the log of" in error


def test_a_run_and_its_own_seed_are_one_model(tmp_path, make, capsys):
    make("base", ["sasrec"], 2)
    status, _, error = run(tmp_path, capsys, "base", "base/seed-0")
    names = f"{tmp_path}/base and {tmp_path}/base/seed-0"
    assert (status, error) == (2, f"error: a model is named twice: {names}\n")


def test_users_whose_ids_are_text(tmp_path, make, capsys):
    make("a", ["sasrec"], text=True)
    make("b", ["sasrec"], text=True)
    status, said, _ = run(tmp_path, capsys, "a", "b")
    assert status == 0
    assert "b: SASREC less a: SASREC" in said


def test_folders_of_one_name_are_told_apart(tmp_path, make, capsys):
    make("a/run", ["sasrec"])
    make("b/run", ["sasrec"])
    status, said, _ = run(tmp_path, capsys, "a/run", "b/run", "--metrics=AUC")
    assert status == 0
    names = [str(tmp_path / folder / "run") for folder in "ba"]
    assert " less ".join(names) in said


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
        ({}, "base", "a model is named twice: "),
        ({}, "base:sasrec", "a model is named twice: "),
        ({}, "run/../base", "a model is named twice: "),
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


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("base.txt", "--out: {}: a directory is expected, and {} is none"),
        ("base.txt/out", "--out: {}/out: a directory is expected, and {} is none"),
        ("locked", "--out: {}: cannot write ({} is not writable)"),
        ("locked/new/out", "--out: {}/new/out: cannot write ({} is not writable)"),
    ],
)
def test_a_place_that_is_none_is_found_first(tmp_path, make, capsys, monkeypatch, out, message):
    make("base", ["sasrec"])
    make("run", ["sasrec"])
    (tmp_path / "base.txt").touch()
    (tmp_path / "locked").mkdir()
    before = set(tmp_path.rglob("*"))
    monkeypatch.setattr(compare, "compare_runs", lambda *_: pytest.fail("compared"))
    # To a superuser every directory is open.
    monkeypatch.setattr(os, "access", lambda path, _: Path(path).name != "locked")
    status, said, error = run(tmp_path, capsys, "base", "run", f"--out={tmp_path / out}")
    top = tmp_path / Path(out).parts[0]
    assert (status, said, error) == (2, "", f"error: {message.format(top, top)}\n")
    assert set(tmp_path.rglob("*")) == before


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
        (
            '{"models": [{"key": "sasrec", "name": "S", "users": "many"}]}',
            "results.json: not what a run writes",
        ),
        (
            '{"models": [{"key": "sasrec", "name": "S", "paper": 3}]}',
            "results.json: not what a run writes",
        ),
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
        {**arrays, "users": np.array(1)},
        {**arrays, "sasrec/sampled_rank": np.array(USERS * ["first"])},
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
