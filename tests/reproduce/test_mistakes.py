"""What the command refuses before it runs anything, in one line."""

from pathlib import Path

import pytest

from pdrec_jax.reproduce.__main__ import main

ROOT = Path(__file__).resolve().parents[2]
SIMULATED = "--config.data.source=simulated"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "one of the arguments --table --figure --sweep is required"),
        (("--table=4",), "argument --table: invalid choice"),
        (("--table=1",), "amazon_toy: not found in"),  # no log, and none is simulated unasked
        (
            ("--table=1", "--protocol=paper"),
            "config.protocol: one of strict, reference is expected",
        ),
        (("--table=1", "--seeds=0"), "config.seeds: an integer of at least 1 is expected"),
        (("--table=1", "--seeds=two"), "config.seeds: an integer"),
        (("--table=1", "--encoders=caser"), "config.encoder.name: one of"),
        (("--table=1", "--config.encoder.widht=3"), "config.encoder.widht: unknown field"),
        (("--table=1", "--datasets=nowhere"), "--config: configs/nowhere.py: no such file"),
        (
            ("--table=1", "--datasets=toy,toy"),
            "argument --datasets: different names joined by commas",
        ),
        (("--table=1", "--quick"), "unexpected argument '--quick'"),
        (("--figure=4", "--metric=F1"), "--metric: one of N@1, "),
        (
            ("--table=2", "--encoders=sasrec"),
            "--encoders: none is expected with --table=2, which trains nothing",
        ),
        (
            ("--table=2", "--share-diffusion"),
            "--share-diffusion: --table=2 trains nothing; leave it out",
        ),
        (
            ("--sweep=diffusion.steps=2,3", "--share-diffusion", "--datasets=toy", SIMULATED),
            "--share-diffusion: diffusion.steps decides on the diffusion model itself; leave it",
        ),
        (
            ("--sweep=encoder.name=sasrec,gru4rec", "--encoders=sasrec"),
            "--encoders: none is expected with a sweep of encoder.name itself",
        ),
        (("--figure=5", "--encoders=caser"), "config.encoder.name: one of"),
        (("--sweep=hbr.clip",), "--sweep: FIELD=V1,V2,.. is expected"),
        (("--sweep=hbr.clap=1",), "config.hbr.clap: unknown field, did you mean"),
        (
            ("--sweep=hbr.clip=1,no",),
            "--sweep: a number at least 1e-06 and at most 1e+06 is expected",
        ),
        (
            ("--sweep=hbr.clip=1,-1",),
            "config.hbr.clip: a number at least 1e-06 and at most 1e+06 is expected, got -1",
        ),
        (
            ("--sweep=hbr.clip={[]:1}",),
            "--sweep: a number at least 1e-06 and at most 1e+06 is expected",
        ),
        (
            ("--sweep=hbr.clip=1" + 400 * "0",),
            "config.hbr.clip: a number at least 1e-06 and at most 1e+06 is expected",
        ),
        (("--sweep=hbr.clip=1,1.0",), "--sweep: different values are expected, 1.0 is there twice"),
        (("--sweep=data.user=a/b,a_b",), "--sweep: different values are expected, 'a/b' is there"),
        (("--table=1", "--config.diffusion_from=runs/a"), "--config.diffusion_from: the runs' own"),
        (("--sweep=protocol=strict,reference",), "--sweep: protocol is one of a whole table"),
        (("--sweep=seeds=1,2",), "--sweep: seeds is one of a whole table"),
        (("--sweep=preferences_from=a,b",), "--sweep: preferences_from changes no figure"),
        (("--sweep=data.source=real,simulated",), "--sweep: data.source changes no figure"),
        (
            ("--sweep=simulation.num_users=50,60", "--config.data.source=real"),
            "--sweep: nothing reads simulation.num_users of a real log",
        ),
        (
            ("--table=1", "--config.encoder.name=gru4rec"),
            "--config.encoder.name: --encoders=NAME,.. chooses them; leave it out",
        ),
        (("--figure=4", "--config.encoder.variants=('base',)"), "--config.encoder.variants: each"),
        (("--sweep=hbr.clip=1", "--config.stage=all"), "--config.stage: each run has its own"),
        (
            ("--sweep=hbr.clip=1,3", "--config.hbr.clip=2"),
            "--config.hbr.clip: --sweep has its values; leave it out",
        ),
        (
            ("--sweep=dpa.fine=1,3", "--config.dpa.drawn=1"),
            "--config.dpa.drawn: a sweep of dpa.fine has 0, for drawn candidates are no picks; ",
        ),
        (
            ("--figure=5", "--encoders=gru4rec", "--config.encoder.name=sasrec"),
            "--config.encoder.name: --encoders=NAME,.. chooses them; leave it out",
        ),
        (("--figure=5", "--config.diffusion.both=False"), "--config.diffusion.both: both models"),
        (
            ("--table=1", "--seeds=5", "--config.seeds=2"),
            "--config.seeds: --seeds says it already; leave one out",
        ),
        (("--table=1", "--protocol=strict", "--config.protocol=reference"), "--config.protocol: "),
        (("--table=1", "--seeds="), "config.seeds: an integer"),
        (("--table=1", "--metric=AUC"), "--metric: a table has all of them; leave it out"),
    ],
)
def test_mistakes(reproduce, runs, tmp_path, flags, message):
    done = reproduce(*flags)
    assert done.status == 2
    assert done.err.startswith(f"error: {message}")
    assert done.err.count("\n") == 1
    assert runs == []
    assert not (tmp_path / "runs").exists()


def test_table_3_is_of_pairs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["--table=3"]) == 2
    assert "--config: configs/toy_game.py: no such file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("table", "dataset", "message"),
    [
        ("3", "toy", "toy.py is of one domain; --table=1 is its table"),
        ("1", "toy_game", "toy_game.py is of two domains; --table=3 is its table"),
    ],
)
def test_a_dataset_of_the_other_table(table, dataset, message, runs, capsys):
    flags = ["--config.data.source=simulated", f"--configs={ROOT / 'configs'}"]
    assert main([f"--table={table}", f"--datasets={dataset}", *flags]) == 2
    assert capsys.readouterr().err.endswith(f"{message}\n")
    assert runs == []


def test_datasets_that_would_share_folders(reproduce, runs):
    for name in ("a b", "a-b"):
        Path(f"configs/{name}.py").write_text(Path("configs/toy.py").read_text())
    done = reproduce("--table=1", "--datasets=a b,a-b", SIMULATED)
    assert (done.status, runs) == (2, [])
    assert done.err == (
        "error: --datasets: configs/a b.py and another one would share the folder a-b-..; give one "
        "of them another name\n"
    )
