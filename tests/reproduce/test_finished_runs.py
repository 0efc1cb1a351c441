"""What a run has left counts for the command that it was made by, and for no other."""

from pathlib import Path

import pytest

from pdrec_jax import keep

OUT = Path("runs/reproduce")
REFUSED = "runs/reproduce/toy-strict-0/"
SIMULATED = "--config.data.source=simulated"
FLAGS = ("--table=1", "--encoders=sasrec")


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            "--config.diffusion.steps=2",
            f"{REFUSED}diffusion: holds a run with another config, which differs in "
            "diffusion.steps; name another --out or remove it",
        ),
        (
            "--config.encoder.dropout=0.5",
            f"{REFUSED}sasrec: holds a run with another config, which differs in "
            "encoder.dropout; name another --out or remove it",
        ),
        (
            SIMULATED,
            f"{REFUSED}diffusion: holds a run on real data, and this one would be on simulated "
            "data; name another --out or remove it",
        ),
    ],
)
def test_another_config_or_source(reproduce, runs, real_log, changed, message, more):
    assert reproduce(*FLAGS, real_log).status == 0
    text = (OUT / "strict" / "table1-toy-sasrec.md").read_text()
    done = reproduce(*FLAGS, real_log, changed, *more)
    assert (done.status, done.err) == (2, f"error: {message}\n")
    assert len(runs) == 2
    assert (OUT / "strict" / "table1-toy-sasrec.md").read_text() == text


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_an_override_that_was_set_since(reproduce, runs, real_log, tmp_path, more):
    assert reproduce(*FLAGS, real_log).status == 0
    file = tmp_path / "configs" / "toy.py"
    override = '"progress": False, "strict_overrides": (("hbr.clip", 2.0),)'
    file.write_text(file.read_text().replace('"progress": False', override))
    done = reproduce(*FLAGS, real_log, *more)
    assert (done.status, len(runs)) == (2, 2)
    # The diffusion run, which does not read it, is as finished as before.
    assert done.err == (
        f"error: {REFUSED}sasrec: holds a run with another config, which differs in hbr.clip; "
        "name another --out or remove it\n"
    )


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_another_content_of_the_log(reproduce, runs, real_log, tmp_path, more):
    assert reproduce(*FLAGS, real_log).status == 0
    log = tmp_path / "amazon_toy.csv"
    log.write_text(log.read_text().removesuffix("\n")[:-1] + "7\n")
    done = reproduce(*FLAGS, real_log, *more)
    assert (done.status, len(runs)) == (2, 2)
    assert done.err == (
        f"error: {REFUSED}diffusion: holds a run on another content of amazon_toy.csv, by its "
        "checksum; name another --out or remove it\n"
    )


def test_simulated_results_fill_no_real_table(reproduce, runs, real_log):
    assert reproduce(*FLAGS, SIMULATED).status == 0
    done = reproduce(*FLAGS, real_log)
    assert done.status == 2
    assert "holds a run on simulated data, and this one would be on real data" in done.err


def test_what_it_was_begun_with_is_said_before_anything_runs(reproduce, runs, real_log):
    runs.die_at = 2
    assert reproduce(*FLAGS, real_log).status == 130
    done = reproduce("--table=1", "--encoders=gru4rec,sasrec", real_log, "--config.dpa.fine=1")
    assert done.err.startswith(f"error: {REFUSED}sasrec: holds a run with another config")
    assert len(runs) == 2


def test_fields_that_decide_on_nothing(reproduce, runs, real_log):
    assert reproduce(*FLAGS, real_log).status == 0
    done = reproduce(*FLAGS, real_log, "--config.save_seconds=1", "--config.progress=True")
    assert (done.status, len(runs)) == (0, 2)


def test_what_a_real_log_does_not_read(reproduce, runs, real_log):
    assert reproduce(*FLAGS, real_log).status == 0
    done = reproduce(*FLAGS, real_log, "--config.simulation.num_users=300")
    assert (done.status, len(runs)) == (0, 2)
    # Of two fields that differ the one that it reads is told.
    done = reproduce(
        *FLAGS, real_log, "--config.simulation.num_users=300", "--config.dpa.weight=0.5"
    )
    assert "sasrec: holds a run with another config, which differs in dpa.weight; " in done.err


@pytest.mark.parametrize("shared_first", [True, False])
def test_sharing_makes_other_runs(reproduce, runs, real_log, shared_first):
    flags = [(), ("--share-diffusion",)]
    first, then = reversed(flags) if shared_first else flags
    assert reproduce(*FLAGS, real_log, "--seeds=2", *first).status == 0
    done = reproduce(*FLAGS, real_log, "--seeds=2", *then)
    assert done.status == 2
    assert "another config, which differs in preferences_from; name another --out" in done.err
    assert len(runs) == 2


def test_runs_that_were_moved_have_no_more_seeds(reproduce, runs, real_log):
    """The others would read where the preferences were before."""
    assert reproduce(*FLAGS, real_log, "--seeds=2").status == 0
    OUT.rename("moved")
    assert reproduce(*FLAGS, real_log, "--seeds=2", "--out=moved").status == 0
    for more in ((), ("--dry-run",)):
        done = reproduce(*FLAGS, real_log, "--seeds=3", "--out=moved", *more)
        assert done.status == 2
        assert "sasrec: holds a run with another config, which differs in preferences_" in done.err
    assert len(runs) == 2


def test_fewer_seeds_replace_no_results_of_more(reproduce, runs, real_log):
    assert reproduce(*FLAGS, real_log, "--seeds=3").status == 0
    done = reproduce(*FLAGS, real_log, "--seeds=2")
    assert (done.status, len(runs)) == (2, 2)
    assert done.err == (
        "error: runs/reproduce/toy-strict-0-seeds/diffusion: has 3 seeds, whose results those of 2 "
        "would replace; ask for as many, or name another --out\n"
    )


def test_what_was_kept_has_neither_preferences_nor_models(reproduce, runs, real_log):
    assert reproduce(*FLAGS, real_log).status == 0
    assert keep.main([str(OUT), "--out=kept"]) == 0
    for more in ((), ("--dry-run",)):
        done = reproduce("--table=1", "--encoders=gru4rec", "--out=kept", real_log, *more)
        assert (done.status, len(runs)) == (2, 2)
        assert (
            "the preferences that it would read are not in kept/toy-strict-0/diffusion" in done.err
        )
        done = reproduce("--sweep=dpa.coarse=5", "--out=kept", real_log, *more)
        assert (done.status, len(runs)) == (2, 2)
        assert "the models that it would read are not in kept/toy-strict-0/diffusion" in done.err


def test_a_moved_folder_is_not_what_is_in_the_way(reproduce, runs, real_log, tmp_path):
    assert reproduce(*FLAGS, real_log).status == 0
    place = OUT.rename(tmp_path / "elsewhere")
    done = reproduce(*FLAGS, real_log, f"--out={place}", "--config.encoder.dropout=0.5")
    assert "differs in encoder.dropout; name" in done.err


def test_the_diffusion_run_hears_of_no_encoder(reproduce, runs, real_log):
    assert reproduce(*FLAGS, real_log).status == 0
    flags = ("--config.encoder.name=gru4rec", "--config.hbr.scale=1", "--config.dpa.fine=1",
             "--config.encoder.negatives=4", "--config.nns.drawn=2",
             "--config.nns.placement=instead", "--config.dpa.drawn=1")  # fmt: skip
    done = reproduce("--sweep=hbr.clip=1", real_log, *flags)
    assert (done.status, done.err) == (0, "")
    assert [Path(workdir).name for workdir in runs] == [
        "diffusion", "sasrec", "sweep-gru4rec-hbr.clip=1.0",
    ]  # fmt: skip


@pytest.mark.parametrize("moved", [False, True])
def test_a_folder_spelled_in_another_way(reproduce, runs, real_log, tmp_path, moved):
    assert reproduce(*FLAGS, real_log).status == 0
    place = OUT.rename(tmp_path / "elsewhere") if moved else OUT.absolute()
    done = reproduce(*FLAGS, real_log, f"--out={place}", "--dry-run")
    assert done.out.endswith("0 of 2 runs are left\n")


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "JSON is expected ("),
        ("[]", "a JSON object is expected"),
        ('{"seeds": []}', "not what a run writes (IndexError"),
    ],
)
def test_damaged(reproduce, runs, real_log, text, message, more):
    assert reproduce(*FLAGS, real_log).status == 0
    (OUT / "toy-strict-0" / "sasrec" / "results.json").write_text(text)
    done = reproduce(*FLAGS, real_log, *more)
    assert done.status == 2
    assert done.err.startswith(f"error: {REFUSED}sasrec/results.json: {message}")
    assert done.err.count("\n") == 1


@pytest.mark.parametrize(
    "models", ['[{"name": "SASRec"}]', "5", '[{"key": "sasrec", "sampled": 1}]']
)
def test_of_another_form(reproduce, runs, real_log, models):
    assert reproduce(*FLAGS, real_log).status == 0
    path = OUT / "toy-strict-0" / "sasrec" / "results.json"
    path.write_text(f'{{"seed": 0, "stage": "all", "models": {models}}}')
    done = reproduce(*FLAGS, real_log)
    assert done.status == 2
    assert done.err.startswith(f"error: {REFUSED}sasrec/results.json: not what a run writes (")
    assert done.err.count("\n") == 1


def test_files_that_are_no_run(reproduce, runs, real_log):
    (OUT / "toy-strict-0" / "sasrec").mkdir(parents=True)
    (OUT / "toy-strict-0" / "sasrec" / "thesis.tex").touch()
    done = reproduce(*FLAGS, real_log)
    assert done.err == f"error: {REFUSED}sasrec: not empty and not a run; name another --out\n"
    assert runs == []
