"""Sweeps and figures: what they run, share and write; the runs themselves are stand-ins."""

import csv
import sys
from pathlib import Path

import pytest

OUT = Path("runs/reproduce")
SIMULATED = "--config.data.source=simulated"


def test_a_sweep_of_seeds_that_share_a_diffusion_model(reproduce, runs):
    done = reproduce(
        "--sweep=hbr.clip=1,2", "--seeds=2", "--share-diffusion", SIMULATED, "--datasets=toy"
    )
    assert (done.status, done.err) == (0, "")
    model = "runs/reproduce/toy-strict-0/diffusion"
    assert [runs.configs[run].seeds for run in runs] == [1, 2, 2]
    assert {runs.configs[run].preferences_from for run in runs[1:]} == {model}


def test_a_sweep_of_several_encoders_and_variants(reproduce, runs, real_log):
    flags = ("--encoders=gru4rec,sasrec", "--config.encoder.variants=('base', 'hbr')", real_log)
    assert reproduce("--sweep=hbr.clip=1,2", *flags).status == 0
    names = [f"sweep-{name}-hbr.clip={value}" for name in ("gru4rec", "sasrec") for value in "12"]
    assert [Path(workdir).name for workdir in runs] == [
        "diffusion", *(f"{name}.0" for name in names)
    ]  # fmt: skip
    lines = (
        (OUT / "strict" / "sweep-hbr.clip=1.0,2.0-toy-gru4rec-sasrec.csv").read_text().splitlines()
    )
    rows = [row[1] for row in csv.reader(lines) if row[2] == "N@10" and row[4] == "0.23"]
    assert rows == [
        f"hbr.clip = {value} ({name}, {variant})"
        for name in ("gru4rec", "sasrec") for value in ("1.0", "2.0") for variant in ("base", "hbr")
    ]  # fmt: skip
    svg = (OUT / "strict" / "sweep-hbr.clip=1.0,2.0-toy-gru4rec-sasrec.svg").read_text()
    legend = [
        f"<!-- hbr.clip ({n}, {v}) -->" for n in ("gru4rec", "sasrec") for v in ("base", "hbr")
    ]
    assert [svg.count(text) for text in legend] == [1, 1, 1, 1]


def test_figure_5_of_an_encoder_that_is_asked_for(reproduce, runs, real_log):
    done = reproduce("--figure=5", "--encoders=gru4rec", "--dry-run", real_log)
    assert done.out.count("toy: gru4rec, ") == 18
    assert "sasrec" not in done.out


def test_a_figure(reproduce, runs, real_log):
    assert reproduce("--figure=4", "--encoders=sasrec", real_log).status == 0
    names = {path.name for path in (OUT / "strict").iterdir()}
    assert names == {f"figure4-toy-sasrec.{end}" for end in ("md", "csv", "tex", "png", "svg")}
    assert "SASRec w/o TI-DiffRec" in (OUT / "strict" / "figure4-toy-sasrec.md").read_text()


@pytest.mark.parametrize("flag", ["--figure=4", "--sweep=hbr.clip=1,2"])
def test_without_matplotlib_nothing_is_run_for_a_figure(
    reproduce, runs, real_log, monkeypatch, flag
):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    done = reproduce(flag, real_log)
    assert (done.status, done.err) == (2, "error: figures need matplotlib, the extra 'plots'\n")
    assert runs == []
    assert reproduce(flag, real_log, "--dry-run").status == 0


def test_a_sweep(reproduce, runs, real_log):
    assert reproduce("--sweep=hbr.clip=1,2.5", real_log).status == 0
    names = ["diffusion", "sweep-sasrec-hbr.clip=1.0", "sweep-sasrec-hbr.clip=2.5"]
    assert [Path(workdir).name for workdir in runs] == names
    text = (OUT / "strict" / "sweep-hbr.clip=1.0,2.5-toy.md").read_text()
    assert "| hbr.clip = 2.5 | <br>0.2300<br> |" in text
    runs.clear()
    # The pools hang on this one: the model serves, but not its preferences.
    assert reproduce("--sweep=nns.first_fraction=0.5,0.9", real_log).status == 0
    assert [Path(workdir).name[:9] for workdir in runs] == ["sweep-sas", "sweep-sas"]


def test_sweeps_of_many_values_have_a_file_each(reproduce, runs, real_log):
    for middle in ("0.7", "0.8"):
        swept = f"0.1000000000000001,{middle}000000000000001,0.9000000000000001,1.0000000000000002"
        assert reproduce(f"--sweep=hbr.scale={swept}", real_log).status == 0
    names = sorted(path.name for path in (OUT / "strict").glob("*.csv"))
    assert len(names) == 2
    start = "sweep-hbr.scale=0.1000000000000001..1.0000000000000002-4values-"
    assert all(name.startswith(start) for name in names)


def test_a_variant_whose_plugins_are_named_in_another_order(reproduce, runs, real_log):
    flags = ("--config.encoder.variants=('dpa+nns', 'base')", real_log)
    assert reproduce("--sweep=hbr.clip=1", *flags).status == 0
    lines = (OUT / "strict" / "sweep-hbr.clip=1.0-toy.csv").read_text().splitlines()
    rows = [row[1] for row in csv.reader(lines) if row[2] == "N@10" and row[4] == "0.23"]
    assert rows == ["hbr.clip = 1.0 (dpa+nns)", "hbr.clip = 1.0 (base)"]
