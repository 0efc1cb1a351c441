"""What fills the preferences, and the other diffusion model beside the run's own."""

import numpy as np
import pytest

from pdrec_jax.checkpoints import Store

ENCODER = "--config.stage=encoder"


@pytest.fixture(scope="module")
def by_sasrec(folder, call):
    done = call(folder / "by_sasrec", "--config.preferences_by=sasrec")
    assert done.status == 0, done.err
    return done


def test_a_sasrec_fills_the_preferences(by_sasrec, strict):
    results = by_sasrec.results
    assert [model["key"] for model in results["models"]] == ["sasrec", "sasrec+hbr+nns+dpa"]
    assert results["stage"] == "all"
    # The base is trained once, and is that of any run.
    assert results["models"][0] == strict.results["models"][1]
    assert results["models"][1] != strict.results["models"][2]
    assert not (by_sasrec.path / "diffusion").exists()
    assert results["plugins"]["dpa"] != strict.results["plugins"]["dpa"]


def test_they_are_told_from_those_of_a_diffusion_model(by_sasrec, strict, call, tmp_path):
    flags = [ENCODER, f"--config.preferences_from={strict.path}"]
    done = call(tmp_path / "run", *flags, "--config.preferences_by=sasrec")
    assert done.status == 2
    assert "made with another maker (diffusion), expected sasrec" in done.err
    assert Store(by_sasrec.path).restore_meta("preferences")["maker"] == "sasrec"


def test_stage_by_stage(by_sasrec, call, tmp_path):
    flag = "--config.preferences_by=sasrec"
    first = call(tmp_path, flag, "--config.stage=diffusion")
    assert [model["key"] for model in first.results["models"]] == ["sasrec"]
    assert call(tmp_path, flag).lasting == by_sasrec.lasting


def test_the_base_on_the_preferences_of_another_run(by_sasrec, call, tmp_path):
    """The run has trained no SASRec yet, so its base is one of its models like any other."""
    flags = [
        "--config.preferences_by=sasrec",
        ENCODER,
        f"--config.preferences_from={by_sasrec.path}",
    ]
    done = call(tmp_path, *flags)
    assert [model["key"] for model in done.results["models"]] == ["sasrec", "sasrec+hbr+nns+dpa"]
    assert done.results["models"] == by_sasrec.results["models"]


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--config.diffusion_from=some", "config.diffusion_from: none is expected, for "),
        ("--config.diffusion.both=True", "config.diffusion.both: False is expected, for "),
    ],
)
def test_there_is_no_diffusion_model_beside_a_sasrec(call, tmp_path, flag, message):
    done = call(tmp_path, "--config.preferences_by=sasrec", flag)
    assert (done.status, done.err.startswith(f"error: {message}")) == (2, True)
    assert done.err.count("\n") == 1


def test_both_diffusion_models(strict, call, tmp_path):
    done = call(tmp_path, "--config.diffusion.both=True", "--config.stage=diffusion")
    assert done.status == 0
    models = done.results["models"]
    assert [model["name"] for model in models] == ["TI-DiffRec", "T-DiffRec"]
    assert [model["stage"] for model in models] == ["diffusion", "diffusion"]
    assert models[0] == strict.results["models"][0]
    assert models[1]["sampled"] != models[0]["sampled"]
    # Who borrows the preferences need not wait for the other model.
    phases = ["diffusion", "preferences", "diffusion-position"]
    assert [name for name in done.results["times"] if name in phases] == phases
    with np.load(tmp_path / "per_user.npz", allow_pickle=False) as file:
        assert "diffusion-position/sampled_rank" in file.files
    # The same as a run of its own.
    alone = call(
        tmp_path / "alone", "--config.diffusion.weighting=position", "--config.stage=diffusion"
    )
    assert alone.results["models"][0]["sampled"] == models[1]["sampled"]


def test_the_papers_figure_is_that_of_the_model_of_the_name(call, tmp_path):
    flags = ["--config.name=toy", "--config.diffusion.weighting=position",
             "--config.data.target=amazon_toy", "--config.evaluation.negatives=99"]  # fmt: skip
    done = call(tmp_path, *flags, "--config.diffusion.both=True", "--config.stage=diffusion")
    assert [(model["name"], model["paper"]) for model in done.results["models"]] == [
        ("T-DiffRec", {}), ("TI-DiffRec", {"NDCG@10": 0.1823}),
    ]  # fmt: skip
