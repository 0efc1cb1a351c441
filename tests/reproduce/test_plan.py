"""Which runs a sweep needs, and what they take of one another."""

import dataclasses
from pathlib import Path

import pytest

from pdrec_jax.errors import UserError
from pdrec_jax.overrides import apply_protocol
from pdrec_jax.reproduce.plan import Setting, diffusion_job, encoder_job, sweep_jobs
from pdrec_jax.settings import default_config


@pytest.mark.parametrize(
    ("field", "values", "taken"),
    [
        ("hbr.clip", (1.0, 2.0), "preferences_from"),
        ("encoder.patience", (5, 10), "preferences_from"),
        ("nns.first_fraction", (0.5, 0.9), "diffusion_from"),
        ("dpa.coarse", (20, 50), "diffusion_from"),
        ("dpa.pool", ("unobserved", "all"), "diffusion_from"),
        ("hbr.floor", ("observed", "shifted"), "preferences_from"),
        ("dpa.drawn", (0, 2), "preferences_from"),
        ("diffusion.steps", (5, 10), None),
        ("simulation.num_users", (50, 60), None),
    ],
)
def test_what_a_sweep_takes_of_one_diffusion_run(field, values, taken) -> None:
    setting = Setting("toy", "toy.py", default_config(), (), Path("runs"))
    jobs = sweep_jobs(setting, field, values)
    shared = [jobs.pop(0).workdir] if taken else []
    assert len(jobs) == len(values)
    for job, value in zip(jobs, values, strict=True):
        assert next(iter(job.changed.items())) == (field, value)
        for name in ("preferences_from", "diffusion_from"):
            expected = str(shared[0]) if name == taken else ""
            assert job.config[name] == expected
        assert job.config.stage == ("encoder" if taken == "preferences_from" else "all")


@pytest.mark.parametrize("field", ["nns.first_fraction", "hbr.clip"])
def test_an_encoder_with_pools_of_its_own_takes_the_diffusion_model(field) -> None:
    config = default_config()
    config.gru4rec_overrides = ((field, 0.25),)
    setting = Setting("toy", "toy.py", config, (), Path("runs"))
    models = str(setting.models)
    for encoder, by_hand in (("gru4rec", ()), ("gru4rec", (field,)), ("sasrec", ())):
        setting = Setting("toy", "toy.py", config, by_hand, Path("runs"))
        other_pools = (encoder, by_hand, field) == ("gru4rec", (), "nns.first_fraction")
        taken, stage = ("diffusion_from", "all") if other_pools else ("preferences_from", "encoder")
        for job in (
            encoder_job(setting, encoder),
            sweep_jobs(setting, "encoder.patience", (5,), encoder)[1],
        ):
            assert (job.config.stage, job.config[taken]) == (stage, models)
            assert job.config.diffusion_from + job.config.preferences_from == models


def test_where_a_sasrec_fills_the_preferences() -> None:
    setting = Setting("toy", "toy.py", default_config(), (), Path("runs"))
    setting.config.preferences_by = "sasrec"
    first, *others = sweep_jobs(setting, "hbr.clip", (1.0, 2.0))
    assert (first.what, first.config.diffusion.both) == ("toy: SASRec", False)
    assert {job.config.preferences_from for job in others} == {str(first.workdir)}
    # A SASRec of another run is no diffusion model to borrow, so none is trained for the others.
    jobs = sweep_jobs(setting, "dpa.coarse", (10, 20))
    assert [job.changed.get("dpa.coarse") for job in jobs] == [10, 20]
    assert {(job.config.stage, job.config.diffusion_from) for job in jobs} == {("all", "")}
    setting = dataclasses.replace(setting, shared=True)
    with pytest.raises(UserError, match=r"^--share-diffusion: with preferences_by='sasrec' and a"):
        sweep_jobs(setting, "dpa.coarse", (10, 20))


@pytest.mark.parametrize(("source", "both"), [("real", False), ("simulated", True)])
def test_stand_ins_for_times_make_no_second_model(source, both) -> None:
    config = default_config()
    config.data.time, config.data.source = "order", source
    by_hand = {"diffusion.weighting"}
    setting = Setting("music", "music.py", config, by_hand, Path("runs"))
    assert diffusion_job(setting).config.diffusion.both == both


def test_a_sweep_over_diffusion_shares_no_model() -> None:
    config = default_config()
    config.seeds = 2
    setting = Setting("toy", "toy.py", config, (), Path("runs"), shared=True)
    with pytest.raises(UserError, match=r"^--share-diffusion: diffusion\.steps decides on"):
        sweep_jobs(setting, "diffusion.steps", (5, 10))
    model, *pools = sweep_jobs(setting, "dpa.coarse", (20, 50))
    assert (model.workdir, model.config.seeds) == (Path("runs/toy-strict-0/diffusion"), 1)
    assert {job.config.diffusion_from for job in pools} == {str(model.workdir)}
    assert {job.config.seeds for job in pools} == {2}


def test_a_sweep_over_picks_picks() -> None:
    config = default_config()
    config.strict_overrides = (("dpa.drawn", 1), ("dpa.weight", 0.2))
    jobs = sweep_jobs(Setting("toy", "toy.py", config, (), Path("runs")), "dpa.fine", (1, 3))[1:]
    found = [apply_protocol(job.config, job.by_hand).dpa for job in jobs]
    assert [(dpa.fine, dpa.drawn, dpa.weight) for dpa in found] == [(1, 0, 0.2), (3, 0, 0.2)]
