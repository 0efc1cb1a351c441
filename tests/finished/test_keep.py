"""What is kept of finished runs can be compared as they can, and replaces no other run."""

import json
import shutil
from unittest.mock import Mock

import numpy as np
import pytest

from pdrec_jax import compare, keep
from pdrec_jax.locks import locked
from pdrec_jax.workdir import Workdir


@pytest.fixture
def kept(tmp_path, capsys):
    """`kept(*runs)` runs the command; returns its status, what it said, and the folder."""

    def kept(*runs, out="kept"):
        status = keep.main([*(str(tmp_path / run) for run in runs), f"--out={tmp_path / out}"])
        said = capsys.readouterr()
        return status, said.out, said.err, tmp_path / out

    return kept


def compared(capsys, base, run):
    assert compare.main([str(base), str(run)]) == 0
    return capsys.readouterr().out


def files(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


@pytest.mark.parametrize("seeds", [1, 2])
def test_what_is_kept_compares_as_the_runs_do(tmp_path, make, kept, capsys, seeds):
    for name in ("base", "run"):
        make(name, ["sasrec"], seeds)
        (tmp_path / name / "metrics.jsonl").write_text('{"stage": "sasrec", "epoch": 1}\n')
        (tmp_path / name / "catalogue.npz").write_bytes(b"large")
    if seeds > 1:
        Workdir.open(tmp_path / "base", several=True).finish({"seeds": [0, 1]})
        Workdir.open(tmp_path / "run", several=True).finish({"seeds": [0, 1]})
    status, out, error, folder = kept("base", "run")
    assert (status, error) == (0, "")
    assert out.split() == [f"{folder}/base", f"{folder}/run"]
    parts = ["base"] if seeds == 1 else ["base", "base/seed-0", "base/seed-1"]
    expected = {
        f"{part}/{f}" for part in parts for f in ("config.json", "data.json", "results.json")
    }
    expected |= {f"{part}/per_user.npz" for part in parts[-seeds:]} | {"base/metrics.jsonl"}
    assert {name for name in files(folder) if name.startswith("base")} == expected
    folders = {path.name for path in (folder / "base").rglob("*") if path.is_dir()}
    assert folders == {f"seed-{seed}" for seed in range(seeds) if seeds > 1}  # none is empty
    whole = compared(capsys, tmp_path / "base", tmp_path / "run")
    assert compared(capsys, folder / "base", folder / "run") == whole
    # Once more, what is there is replaced by the same.
    before = {name: (folder / name).read_bytes() for name in files(folder)}
    assert kept("base", "run")[0] == 0
    assert {name: (folder / name).read_bytes() for name in files(folder)} == before


def test_ranks_are_those_of_the_run_and_smaller(tmp_path, make, kept):
    make("run", ["sasrec"], users=2000)
    *_, folder = kept("run")
    places = [path / "run" / "per_user.npz" for path in (tmp_path, folder)]
    whole, small = (dict(np.load(place)) for place in places)
    assert whole.keys() == small.keys()
    for name, array in whole.items():
        np.testing.assert_array_equal(small[name], array)
    assert places[1].stat().st_size < 0.5 * places[0].stat().st_size


@pytest.mark.parametrize("damage", ["gone", "cut"])
def test_ranks_that_are_missing_are_refused(tmp_path, make, kept, damage):
    make("run", ["sasrec", "sasrec+nns"])
    place = tmp_path / "run/per_user.npz"
    with np.load(place) as found:
        arrays = dict(found)
    if damage == "gone":
        del arrays["sasrec/full_rank"]
    else:
        arrays["sasrec+nns/sampled_rank"] = arrays["sasrec+nns/sampled_rank"][:5]
    np.savez(place, **arrays)
    status, _, error, folder = kept("run")
    assert (status, error.count("\n")) == (2, 1)
    assert "ranks of all users are expected in per_user.npz" in error
    assert not folder.exists()


def test_a_seed_of_another_run_is_refused(tmp_path, make, kept):
    for name in ("run", "other"):
        make(name, ["sasrec"], 2, dpa__coarse=70 if name == "other" else 50)
        Workdir.open(tmp_path / name, several=True).finish({"seeds": [0, 1]})
    shutil.rmtree(tmp_path / "run/seed-1")
    shutil.copytree(tmp_path / "other/seed-1", tmp_path / "run/seed-1")
    status, _, error, folder = kept("run")
    assert (status, error.count("\n")) == (2, 1)
    assert "differs in dpa.coarse" in error
    assert not folder.exists()


def test_an_empty_place_is_none(tmp_path, make, monkeypatch):
    make("run", ["sasrec"])
    before = files(tmp_path)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert keep.main([str(tmp_path / "run"), "--out="]) == 2
    assert files(tmp_path) == before


@pytest.mark.parametrize("results", [{}, {"models": None}, {"models": []}, {"models": [{}]}])
def test_results_without_models_are_refused(tmp_path, make, kept, results):
    make("run", ["sasrec"])
    (tmp_path / "run" / "results.json").write_text(json.dumps({"stage": "all", **results}))
    status, _, error, folder = kept("run")
    assert (status, error.count("\n")) == (2, 1)
    assert not folder.exists()


def test_a_folder_of_runs(tmp_path, make, kept):
    make("all/toy/diffusion", ["diffusion"])
    make("all/toy/sasrec", ["sasrec"], 2)
    Workdir.open(tmp_path / "all/toy/sasrec", several=True).finish({"seeds": [0, 1]})
    make("all/toy/gru4rec", ["gru4rec"], done=False)
    status, out, error, folder = kept("all")
    assert (status, error) == (0, "")
    assert out.splitlines() == [
        f"{tmp_path}/all/toy/gru4rec: not finished, left out",
        f"{folder}/toy/diffusion",
        f"{folder}/toy/sasrec",
    ]
    assert (folder / "toy/sasrec/seed-1/results.json").is_file()
    assert not (folder / "toy/gru4rec").exists()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["nowhere"], "nowhere: no finished run is there or below"),
        (["begun"], "begun: a finished run is expected"),
        (["run", "in/run"], "would both be "),
        (["two"], "seed-1: a finished run is expected"),
    ],
)
def test_what_cannot_be_kept(tmp_path, make, kept, words, expected):
    make("run", ["sasrec"])
    make("in/run", ["sasrec"])
    make("begun", ["sasrec"], done=False)
    make("two", ["sasrec"], 2)
    Workdir.open(tmp_path / "two", several=True).finish({"seeds": [0, 1]})
    (tmp_path / "two/seed-1/results.json").unlink()
    status, out, error, folder = kept(*words)
    assert (status, out) == (2, "")
    assert expected in error
    assert error.count("\n") == 1
    assert not folder.exists()


def test_another_run_is_not_replaced(tmp_path, make, kept):
    make("run", ["sasrec"])
    make("kept/run", ["sasrec"], encoder__negatives=4)
    before = json.loads((tmp_path / "kept/run/results.json").read_text())
    status, _, error, folder = kept("run")
    assert status == 2
    assert "another config, which differs in encoder.negatives; name another --out" in error
    assert json.loads((folder / "run/results.json").read_text()) == before
    status, _, error, _ = kept("run", out=".")
    assert status == 2
    assert "holds the run itself" in error


def test_a_run_that_is_begun_or_whole_is_not_written_over(tmp_path, make, kept):
    make("run", ["sasrec"])
    make("kept/run", ["sasrec"], done=False)
    with locked(tmp_path / "kept/run"):
        status, _, error, folder = kept("run")
    assert status == 2
    assert "another run is at work in it" in error
    assert not (folder / "run/results.json").exists()
    Workdir.open(folder / "run").phases.finish("sasrec", {})
    status, _, error, _ = kept("run")
    assert status == 2
    assert "holds the run itself" in error
    assert not (folder / "run/results.json").exists()


def test_a_copy_is_not_copied(tmp_path, make, kept):
    make("runs/a", ["sasrec"])
    for _ in range(2):
        assert kept("runs", out="runs/kept")[0] == 0
        assert sorted(p.parent.name for p in (tmp_path / "runs/kept").rglob("config.json")) == ["a"]
    status, _, error, _ = kept("runs/a", out="runs/a/kept")
    assert status == 2
    assert "lies in" in error
    assert not (tmp_path / "runs/a/kept").exists()


@pytest.mark.parametrize("seeds", [1, 2])
def test_without_whole_ranks_nothing_is_kept(tmp_path, make, kept, seeds):
    make("run", ["sasrec"], seeds)
    make("whole", ["sasrec"])
    if seeds > 1:
        Workdir.open(tmp_path / "run", several=True).finish({"seeds": [0, 1]})
    ranks = tmp_path / ("run/seed-1" if seeds > 1 else "run") / "per_user.npz"
    for break_it, expected in (
        (lambda: ranks.write_bytes(ranks.read_bytes()[:300]), "arrays in .npz form are expected"),
        (ranks.unlink, "ranks of all users are expected"),
    ):
        break_it()
        status, out, error, folder = kept("whole", "run")
        assert (status, out) == (2, "")
        assert expected in error
        assert not folder.exists()


@pytest.mark.parametrize("seeds", [1, 2])
def test_interrupted_while_a_copy_is_replaced(tmp_path, make, kept, monkeypatch, seeds):
    """New ranks never stand beside old results."""
    make("run", ["sasrec"], seeds)
    (tmp_path / "run" / "metrics.jsonl").write_text("{}\n")
    if seeds > 1:
        Workdir.open(tmp_path / "run", several=True).finish({"seeds": [0, 1]})
    assert kept("run")[0] == 0
    (tmp_path / "run" / "metrics.jsonl").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(Workdir, "finish", Mock(side_effect=KeyboardInterrupt))
        assert kept("run")[0] == 130
    assert list((tmp_path / "kept").rglob("results.json")) == []
    assert kept("run")[0] == 0
    names = [path.name for path in (tmp_path / "kept").rglob("*.json")]
    assert names.count("results.json") == (1 if seeds == 1 else 3)
    assert not (tmp_path / "kept" / "run" / "metrics.jsonl").exists()


def test_another_log_or_a_lock_is_found_before_anything_is_written(tmp_path, make, kept):
    make("a", ["sasrec"])
    make("b", ["sasrec"])
    make("kept/b", ["sasrec"], log="another")
    status, _, error, folder = kept("a", "b")
    assert status == 2
    assert "holds a run on another content of log, by its checksum; name another --out" in error
    assert not (folder / "a").exists()


def test_a_run_that_is_given_more_seeds_is_left_out_of_a_folder(tmp_path, make, kept):
    for name, seeds in (("all/whole", 2), ("all/more", 3)):
        make(name, ["sasrec"], seeds)
        Workdir.open(tmp_path / name, several=True).finish({"seeds": [0, 1]})
    status, out, error, folder = kept("all")
    assert (status, error) == (0, "")
    assert f"{tmp_path}/all/more: not finished, left out\n" in out
    assert [path.name for path in folder.iterdir()] == ["whole"]
    assert kept("all/more")[2].endswith("more: a finished run is expected\n")


def test_fewer_seeds_do_not_replace_more(tmp_path, make, kept):
    for name, seeds in (("run", 2), ("kept/run", 3)):
        make(name, ["sasrec"], seeds)
        Workdir.open(tmp_path / name, several=True).finish({"seeds": list(range(seeds))})
    status, _, error, _ = kept("run")
    assert status == 2
    assert "has 3 seeds, whose results those of 2 would replace" in error


def test_what_is_no_run_is_left_out_of_a_folder(tmp_path, make, kept):
    make("all/run", ["sasrec"])
    damaged = {
        "other": '{"hidden": 3}',
        "odd": '{"seeds": null}',
        "dotted": '{"hbr.clip": 3}',
        "large": '{"hbr": {"clip": 1%s}}' % (400 * "0"),
    }
    for name, text in damaged.items():
        (tmp_path / "all" / name).mkdir()
        (tmp_path / "all" / name / "config.json").write_text(text)
        (tmp_path / "all" / name / "data.json").write_text('{"source": "real", "files": []}')
    status, out, error, folder = kept("all")
    assert (status, error) == (0, "")
    assert out.count("; left out\n") == 4
    assert "an integer of at least 1 is expected, got None" in out
    assert [path.name for path in folder.iterdir()] == ["run"]
