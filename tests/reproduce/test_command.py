"""What the command plans, runs, leaves out and writes; the runs themselves are stand-ins."""

import json
import shlex
from pathlib import Path

import pytest

from pdrec_jax import experiment, keep
from pdrec_jax.encoders import registry
from pdrec_jax.errors import UserError
from pdrec_jax.main import parse
from pdrec_jax.reproduce import figures
from pdrec_jax.reproduce.__main__ import main
from pdrec_jax.settings import flatten

ROOT = Path(__file__).resolve().parents[2]
OUT = Path("runs/reproduce")
TABLE = OUT / "strict" / "table1-toy-sasrec.md"
SIMULATED = "--config.data.source=simulated"
# An encoder that an argument of its config changes, in a class of its own.
MEAN = """
def own(factor, config):
    from pdrec_jax.encoders.registry import register
    from pdrec_jax.encoders.sasrec import SASRec

    register("mean", "Mean", type("Mean", (SASRec,), {"factor": factor}))
    config.name = "mean" + factor
    return config
"""


def test_table_1(reproduce, runs, real_log):
    done = reproduce("--table=1", "--encoders=sasrec", "--seeds=2", real_log)
    assert (done.status, done.err) == (0, "")
    folder = "runs/reproduce/toy-strict-0-seeds"
    assert runs == [f"{folder}/diffusion", f"{folder}/sasrec"]
    text = TABLE.with_stem("table1-toy-sasrec-2seeds").read_text()
    assert text.startswith("# Table 1 | protocol strict | seeds 0 to 1\n")
    assert "0.2020<br>0.2300 ± 0.0010<br>+0.0280 !" in text
    assert "0.2286<br>0.2300 ± 0.0010<br>+0.0014 " in text
    models = ["T-DiffRec", "TI-DiffRec", "SASRec", "SASRec+HBR", "SASRec+HBR+NNS",
              "SASRec+HBR+NNS+DPA"]  # fmt: skip
    lines = [line.split(" | ")[0] for line in text.splitlines() if "0.2300" in line]
    assert lines == [f"| {name}" for name in models]
    assert "SIMULATED" not in text
    assert "Finished runs: 2 of 2, 1 h 06 min in all on cpu x1." in text
    again = reproduce("--table=1", "--encoders=sasrec", "--seeds=2", real_log)
    assert again.status == 0
    assert len(runs) == 2  # nothing is missing


def test_seeds_that_share_a_diffusion_model(reproduce, runs, real_log):
    """One run of it, that of the first seed alone, which a table of one seed then finds."""
    flags = ("--table=1", "--encoders=sasrec", "--share-diffusion", real_log)
    done = reproduce(*flags, "--seeds=3")
    assert (done.status, done.err) == (0, "")
    model, encoder = (
        "runs/reproduce/toy-strict-0/diffusion",
        "runs/reproduce/toy-strict-0-seeds/sasrec",
    )
    assert runs == [model, encoder]
    assert [runs.configs[run].seeds for run in runs] == [1, 3]
    assert runs.configs[encoder].preferences_from == model
    text = TABLE.with_stem("table1-toy-sasrec-3seeds").read_text()
    assert "All seeds share the diffusion models of the first" in text
    rows = {line.split(" | ")[0]: line for line in text.splitlines() if "0.2300" in line}
    assert "±" not in rows["| TI-DiffRec"]
    assert "±" in rows["| SASRec"]

    assert reproduce(*flags).status == 0
    assert runs[2:] == ["runs/reproduce/toy-strict-0/sasrec"]
    assert "All seeds share" not in TABLE.read_text()


def test_both_protocols(reproduce, runs, real_log):
    flags = ("--table=1", "--encoders=sasrec", "--protocol=reference,strict", real_log)
    done = reproduce(*flags)
    assert (done.status, done.err) == (0, "")
    folders = [f"runs/reproduce/toy-{name}-0" for name in ("reference", "strict")]
    assert runs == [f"{folder}/{name}" for folder in folders for name in ("diffusion", "sasrec")]
    assert [config.protocol for config in runs.configs.values()] == [
        *["reference"] * 2,
        *["strict"] * 2,
    ]
    for name in ("reference", "strict"):
        text = (OUT / name / TABLE.name).read_text()
        assert text.startswith(f"# Table 1 | protocol {name} | seed 0\n")
        assert text.count("0.2300") == 6 * 6
        assert f"{name}/{TABLE.name}" in done.out
    assert "(4 of 4) toy: sasrec" in done.out


def test_kept_runs_fill_the_table(reproduce, runs, real_log):
    flags = ("--table=1", "--encoders=sasrec", real_log)
    assert reproduce(*flags).status == 0
    assert keep.main([str(OUT), "--out=kept"]) == 0
    done = reproduce(*flags, "--out=kept")
    assert (done.status, done.err, len(runs)) == (0, "", 2)
    for ending in ("md", "csv", "tex"):
        name = f"strict/{TABLE.stem}.{ending}"
        assert Path("kept", name).read_bytes() == (OUT / name).read_bytes()


def test_weighed_by_position(reproduce, runs, real_log):
    flags = ("--table=1", "--encoders=sasrec", "--config.diffusion.weighting=position", real_log)
    assert reproduce(*flags).status == 0
    lines = TABLE.read_text().splitlines()
    rows = [line for line in lines if "DiffRec |" in line]
    # The run's own is T-DiffRec, the paper's figure is that of the other one.
    ours = "<br>0.2300<br> | "
    assert rows == [
        f"| T-DiffRec | {ours * 6}".rstrip(),
        f"| TI-DiffRec | {ours * 2}0.1823<br>0.2300<br>+0.0477 ! | {ours * 3}".rstrip(),
    ]


def test_what_a_run_calls_its_model(reproduce, runs, real_log):
    runs.names = {"diffusion": "T-DiffRec"}
    assert reproduce("--table=1", "--encoders=sasrec", real_log).status == 0
    text = TABLE.read_text()
    assert text.count("| T-DiffRec |") == 2
    assert "0.1823" not in text


def test_one_diffusion_model_of_a_log_without_times(reproduce, runs, real_log):
    flags = ("--table=1", "--encoders=sasrec", "--config.data.time=", real_log)
    assert "missing  toy: T-DiffRec\n" in reproduce(*flags, "--dry-run").out
    runs.names = {"diffusion": "T-DiffRec"}
    assert reproduce(*flags).status == 0
    assert [config.diffusion.both for config in runs.configs.values()] == [False, False]
    rows = [line for line in TABLE.read_text().splitlines() if "-DiffRec |" in line]
    assert [row.count("0.2300") for row in rows] == [6, 0]
    assert [row.split(" |")[0] for row in rows] == ["| T-DiffRec", "| TI-DiffRec"]
    # A run of before trained both.
    saved = OUT / "toy-strict-0" / "diffusion" / "config.json"
    saved.write_text(saved.read_text().replace('"both": false', '"both": true'))
    assert reproduce(*flags, "--dry-run").out.endswith("0 of 2 runs are left\n")


def test_each_config_trains_the_encoder_that_it_registers(reproduce, runs, monkeypatch):
    ours = registry.registered()
    monkeypatch.setattr(registry, "_ENCODERS", dict(ours))
    text = Path("configs/toy.py").read_text()
    text = text.replace("def get_config():", "def get_config(factor='1'):")
    text = text.replace("    return config", "    return own(factor, config)")
    Path("configs/mean.py").write_text(text + MEAN)
    trained = []
    monkeypatch.setattr(
        experiment, "run", lambda config, *_: trained.append(registry.find("mean")[1].factor)
    )
    flags = ("--table=1", "--encoders=mean", SIMULATED)
    reproduce(*flags, "--datasets=mean:2,mean:4")
    assert trained == ["2"] * 2 + ["4"] * 2
    for names in ("mean:2,toy", "toy,mean:2"):  # Toy's registers none
        registry.put_back(ours)
        refused = reproduce(*flags, f"--datasets={names}")
        assert (refused.status, "'mean'" in refused.err) == (2, True), refused.err
    assert len(trained) == 4


def test_killed_and_run_again(reproduce, runs, real_log):
    runs.die_at = 2
    flags = ("--table=1", "--encoders=sasrec", real_log)
    killed = reproduce(*flags)
    assert killed.status == 130
    assert killed.err == "interrupted; the same command resumes the runs\n"
    text = TABLE.read_text()
    assert "| TI-DiffRec |  | " not in text
    # Not run: the paper's figure alone.
    assert "| SASRec |  |  | 0.2020<br><br> |  |  |  |" in text
    assert "Finished runs: 1 of 2, 33 min 20 s in all on cpu x1." in text
    planned = reproduce(*flags, "--dry-run").out
    assert planned.startswith("finished toy: TI-DiffRec and T-DiffRec\n")
    assert "begun    toy: sasrec" in planned
    assert planned.endswith("1 of 2 runs are left\n")
    assert reproduce(*flags).status == 0
    assert [Path(workdir).name for workdir in runs] == ["diffusion", "sasrec", "sasrec"]


def test_a_diffusion_run_is_gone_on_with_by_another_command(reproduce, runs, real_log):
    runs.die_at = 1
    assert reproduce("--table=1", "--encoders=sasrec", real_log).status == 130
    done = reproduce("--sweep=hbr.clip=1", real_log)
    assert (done.status, done.err) == (0, "")
    names = ["diffusion", "diffusion", "sweep-sasrec-hbr.clip=1.0"]
    assert [Path(workdir).name for workdir in runs] == names
    variants = [config.encoder.variants for config in runs.configs.values()]
    assert variants == [("base", "hbr+nns+dpa"), ("hbr+nns+dpa",)]


@pytest.mark.parametrize(
    "flags",
    [
        ("--table=1",),
        ("--figure=4", "--encoders=sasrec", "--seeds=2"),
        ("--figure=5", "--protocol=reference"),
        ("--sweep=hbr.scale=1", "--encoders=gru4rec,cl4srec"),
        ("--sweep=dpa.coarse=20,50", "--config.encoder.variants=('base', 'nns')"),
        ("--sweep=encoder.variants=('base',),('hbr', 'nns')",),
        ("--sweep=diffusion.hidden=(8,),(16,)", "--config.name=a b"),
        ("--sweep=dpa.pool=all,unobserved", "--config.simulation.overrides=(('seed', 3),)"),
    ],
)
@pytest.mark.parametrize("source", ["real", "simulated"])
def test_the_commands_of_a_dry_run_are_the_runs(
    reproduce, runs, real_log, simulated, flags, source, monkeypatch
):
    monkeypatch.setattr(figures, "draw", lambda *_, **__: [])  # after every run, and slow
    flags = (*flags, real_log if source == "real" else simulated)
    planned = reproduce(*flags, "--dry-run")
    assert planned.status == 0
    commands = [parse(shlex.split(line)[2:]) for line in planned.out.splitlines() if line[0] == " "]
    assert reproduce(*flags).status == 0
    assert [command.workdir for command in commands] == runs
    for command in commands:
        config, _ = experiment.resolve(command.config, command.by_hand)
        assert dict(flatten(config)) == dict(flatten(runs.configs[command.workdir]))


def test_dry_run_writes_nothing(reproduce, runs, real_log, tmp_path):
    before = set(tmp_path.rglob("*"))
    done = reproduce(
        "--figure=4", "--encoders=sasrec", "--protocol=reference", "--dry-run", real_log
    )
    assert done.status == 0
    assert runs == []
    assert set(tmp_path.rglob("*")) == before
    assert done.out.count("missing  toy: ") == 3
    assert "--config.preferences_by=sasrec" in done.out
    assert "--config.encoder.variants=(" in done.out.replace(
        "'--config.encoder", "--config.encoder"
    )


def test_statistics(reproduce, runs, real_log):
    assert reproduce("--table=2", real_log).status == 0
    assert runs == []
    rows = (OUT / "strict" / "table2-toy.csv").read_text().splitlines()
    assert rows[1:4] == [
        "toy,target domain,users,7996,9,,-7987,,,,,strict,seed 0,real",
        "toy,target domain,items,37868,270,,-37598,,,,,strict,seed 0,real",
        "toy,target domain,events,114487,270,,-114217,,,,,strict,seed 0,real",
    ]  # fmt: skip


def test_statistics_are_of_the_whole_log(reproduce, runs, real_log, tmp_path):
    log = tmp_path / "amazon_toy.csv"
    log.write_text(log.read_text() + "who,once,1\n")  # too few events to be used
    assert reproduce("--table=2", real_log).status == 0
    rows = (OUT / "strict" / "table2-toy.csv").read_text().splitlines()
    assert [row.split(",")[4] for row in rows[1:4]] == ["10", "271", "271"]


@pytest.mark.parametrize("flag", [SIMULATED, "--config.data.target=mine.csv"])
def test_statistics_of_another_log_than_the_papers(reproduce, runs, real_log, tmp_path, flag):
    (tmp_path / "amazon_toy.csv").rename(tmp_path / "mine.csv")
    assert reproduce("--table=2", real_log, flag).status == 0
    rows = (OUT / "strict" / "table2-toy.csv").read_text().splitlines()
    assert [row.split(",")[3] for row in rows[1:4]] == ["", "", ""]


def test_simulated_figures_stand_beside_none_of_the_paper(reproduce, runs, simulated):
    assert reproduce("--table=1", "--encoders=sasrec", simulated).status == 0
    text = TABLE.read_text()
    assert "SIMULATED DATA" in text
    assert "0.2020" not in text


def test_simulated_or_not_before_anything_is_run(reproduce, runs, simulated):
    runs.die_at = 1
    assert reproduce("--table=1", "--encoders=sasrec", simulated).status == 130
    assert not TABLE.exists()  # a table without a figure


def test_results_that_name_no_time(reproduce, runs, real_log):
    assert reproduce("--table=1", "--encoders=sasrec", real_log).status == 0
    path = OUT / "toy-strict-0" / "sasrec" / "results.json"
    results = json.loads(path.read_text())
    del results["times"]
    path.write_text(json.dumps(results))
    assert reproduce("--table=1", "--encoders=sasrec", real_log).status == 0
    text = TABLE.read_text()
    assert "0.2020<br>0.2300" in text
    assert "Finished runs" not in text


def test_no_ti_diffrec_where_times_are_stand_ins(runs, capsys):
    """Music is weighed by position, for what its log has for times is an order alone."""
    flags = ["--config.data.source=simulated", "--dry-run", f"--configs={ROOT / 'configs'}"]
    assert main(["--table=1", "--datasets=music", "--encoders=sasrec", *flags]) == 0
    out = capsys.readouterr().out
    assert "music: T-DiffRec" in out
    assert "diffusion.both=False" in out


@pytest.mark.parametrize("table", ["1", "3"])
def test_the_default_configs_are_there(table, runs, capsys):
    flags = ["--config.data.source=simulated", "--dry-run", f"--configs={ROOT / 'configs'}"]
    assert main([f"--table={table}", "--encoders=sasrec", *flags]) == 0
    assert capsys.readouterr().out.count("missing  ") == 8


def test_an_error_in_a_run_ends_all(reproduce, runs, real_log, monkeypatch):
    def fail(*_):
        raise UserError("the loss is nan")

    monkeypatch.setattr(experiment, "run", fail)
    done = reproduce("--table=1", "--encoders=sasrec", real_log)
    assert (done.status, done.err) == (2, "error: the loss is nan\n")


@pytest.mark.slow
@pytest.mark.loose_jax("dtypes")
def test_the_real_thing(reproduce, simulated, quick_compilation):
    done = reproduce("--table=1", "--encoders=sasrec", "--seeds=2", simulated)
    assert (done.status, done.err.count("error")) == (0, 0)
    text = (OUT / "strict" / "table1.csv").read_text()
    values = [line.split(",")[4] for line in text.splitlines()[1:]]
    assert len(values) == 36
    assert all(0 <= float(value) <= 1 for value in values)
    again = reproduce("--table=1", "--encoders=sasrec", "--seeds=2", simulated, "--dry-run")
    assert again.out.endswith("0 of 2 runs are left\n")
