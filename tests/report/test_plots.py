import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pdrec_jax.errors import UserError
from pdrec_jax.report import plots

Run = tuple[dict[str, Any], list[dict[str, Any]], dict[str, np.ndarray]]
ALL = ["losses", "ndcg_by_epoch", "ndcg_by_history_length", "plugins"]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "_DPI", 40)


def draw(workdir: Path, *parts: Any) -> list[str]:
    files = plots.write_plots(workdir, *parts)
    for file in files:
        assert file.parent == workdir / "plots"
        assert file.read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in (workdir / "plots").iterdir()) == sorted(
        file.name for file in files
    )
    return [file.stem for file in files]


def test_a_whole_run_gives_every_plot_and_leaves_no_state(tmp_path: Path, run: Run) -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    assert draw(tmp_path, *run) == ALL
    assert dict(matplotlib.rcParams) == before


def test_eight_models(tmp_path: Path, wide_run: Run) -> None:
    assert draw(tmp_path, *wide_run) == ALL


def test_the_same_run_gives_the_same_bytes(tmp_path: Path, run: Run) -> None:
    for folder in ("a", "b"):
        plots.write_plots(tmp_path / folder, run[0], [], None)
    first, second = ((tmp_path / folder / "plots/plugins.png").read_bytes() for folder in "ab")
    assert first == second


def test_missing_parts_are_left_out(tmp_path: Path, run: Run) -> None:
    results, lines, per_user = run
    assert draw(tmp_path / "a", {}, [], None) == []
    assert draw(tmp_path / "b", {**results, "plugins": {}}, lines, None) == ALL[:2]
    assert draw(tmp_path / "c", {**results, "plugins": None}, [], per_user) == ALL[2:3]
    assert draw(tmp_path / "d", results, [], {}) == ALL[3:]


def test_no_diffusion_model(tmp_path: Path, run: Run) -> None:
    results, lines, per_user = run
    results["models"] = results["models"][1:]
    lines = [line for line in lines if line["stage"] != "diffusion"]
    assert draw(tmp_path, results, lines, per_user) == ALL


def test_lines_of_a_stage_without_a_result_are_drawn(tmp_path: Path, run: Run) -> None:
    assert draw(tmp_path, {"models": []}, run[1], run[2])[:2] == ALL[:2]
    curves = plots._curves(run[0], [{"stage": "early"}, *run[1]])
    assert [curve.key for curve in curves] == ["diffusion", "sasrec", "sasrec_hbr_nns_dpa", "early"]
    assert [curve.is_diffusion for curve in curves] == [True, False, False, False]
    assert len({curve.colour for curve in curves}) == 4


def test_lines_with_nulls_and_a_lone_epoch(tmp_path: Path, run: Run) -> None:
    lines = [
        {"stage": "diffusion", "epoch": 1, "loss": None, "ndcg": None},
        {"stage": "sasrec", "epoch": 1, "loss": 0.5, "ndcg": 0.1},
        {"stage": "sasrec", "epoch": 2, "loss": None},
    ]
    run[0]["models"][1]["best_epoch"] = None
    assert draw(tmp_path, run[0], lines, None) == [*ALL[:2], "plugins"]


def test_users_without_a_rank(tmp_path: Path, run: Run) -> None:
    models, per_user = {"models": run[0]["models"]}, run[2]
    for key in per_user:
        if key.startswith("sasrec/"):
            per_user[key] = np.full_like(per_user[key], np.nan)
    assert draw(tmp_path / "a", models, [], per_user) == ALL[2:3]
    for key in per_user:
        if key.endswith("_rank"):
            per_user[key] = np.full_like(per_user[key], np.nan)
    assert draw(tmp_path / "b", models, [], per_user) == []


def test_models_that_share_no_user_are_not_compared(tmp_path: Path, run: Run) -> None:
    models, per_user = {"models": run[0]["models"]}, run[2]
    half = np.arange(600) < 300
    for block in ("sampled", "full"):
        per_user[f"sasrec/{block}_rank"] = np.where(half, np.nan, 1).astype(np.float32)
        per_user[f"diffusion/{block}_rank"] = np.where(half, 1, np.nan).astype(np.float32)
    assert draw(tmp_path, models, [], per_user) == []


def test_a_single_user(tmp_path: Path, run: Run) -> None:
    per_user = {key: array[-1:] for key, array in run[2].items()}
    assert draw(tmp_path, {"models": run[0]["models"]}, [], per_user) == ALL[2:3]


@pytest.mark.parametrize(
    "plugins",
    [
        {"hbr": {"edges": [], "counts": []}},
        {"hbr": {"edges": [0, 1], "counts": [0]}},
        {"hbr": None, "dpa": {"hit_rate": 0.1}},
        {"dpa": {"hit_rate": None, "uniform_hit_rate": 0.1}},
        {"nns": {"false_negative_rate": math.nan, "uniform_false_negative_rate": 0.1}},
    ],
)
def test_plugins_without_figures(tmp_path: Path, plugins: dict[str, Any]) -> None:
    assert draw(tmp_path, {"plugins": plugins}, [], None) == []


@pytest.mark.parametrize(
    "plugins",
    [
        {"hbr": {"edges": [0, 1, 2], "counts": [1, 2]}},
        {"dpa": {"hit_rate": 0.0, "uniform_hit_rate": 0.0}},
        {"nns": {"false_negative_rate": 0.0, "uniform_false_negative_rate": 0.1}},
    ],
)
def test_one_plugin_alone(tmp_path: Path, plugins: dict[str, Any]) -> None:
    assert draw(tmp_path, {"plugins": plugins, "name": "a_$b$"}, [], None) == ["plugins"]


def test_every_plot_names_its_source(run: Run, simulated_run: Run) -> None:
    from matplotlib.figure import Figure

    for (results, _, _), label in ((run, "real data |"), (simulated_run, "SIMULATED DATA |")):
        figure = Figure()
        plots._label_source(figure, results)
        assert figure.get_supxlabel().startswith(label)


def test_the_best_epoch_is_the_one_of_the_results(run: Run) -> None:
    from matplotlib.figure import Figure

    results, lines, _ = run
    figure = Figure()
    plots._ndcg_by_epoch(figure, plots._curves(results, lines), lines, results)
    stars = [line for axes in figure.axes for line in axes.lines if line.get_marker() == "*"]
    assert [star.get_xdata()[0] for star in stars] == [51, 17, 20]
    assert figure.axes[0].get_ylabel() == "validation NDCG@10"
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert [label.split(":")[0] for label in labels] == [m["name"] for m in results["models"]]
    assert [label.split(" at ")[1] for label in labels] == ["epoch 51", "epoch 17", "epoch 20"]


def test_history_length_counts_only_users_of_every_model(run: Run) -> None:
    from matplotlib.figure import Figure

    results, lines, per_user = run
    figure = Figure()
    plots._by_length(figure, plots._curves(results, lines), per_user)
    ticks = [tick.get_text() for tick in figure.axes[0].get_xticklabels()]
    counts = [int(tick.split("\n")[1].split()[0]) for tick in ticks]
    assert sum(counts) == 600 - 20


def test_without_matplotlib(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(plots.PlotsUnavailableError):
        plots.write_plots(tmp_path, *run)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made(tmp_path: Path, run: Run) -> None:
    (tmp_path / "plots").touch()
    with pytest.raises(UserError, match="plots: cannot write"):
        plots.write_plots(tmp_path, *run)


def test_mean_interval_covers_the_mean() -> None:
    random = np.random.default_rng(0)
    hits = 0
    for _ in range(400):
        mean, margin = plots.mean_interval(random.random(50))
        hits += abs(mean - 0.5) <= margin
    assert 0.91 < hits / 400 < 0.985
    mean, margin = plots.mean_interval(np.array([0.25]))
    assert mean == 0.25
    assert math.isnan(margin)
