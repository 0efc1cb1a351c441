"""The whole job: what it prints, what it leaves, and what happens when it is run again."""

import json
import re
from unittest.mock import Mock

import jax
import numpy as np
import pytest

from pdrec_jax import compilation, experiment, phases
from pdrec_jax.report.tables import results_table
from pdrec_jax.settings import default_config
from pdrec_jax.workdir import Workdir

KEYS = ["diffusion", "sasrec", "sasrec+hbr+nns+dpa"]
PLOTS = {"losses.png", "ndcg_by_epoch.png", "ndcg_by_history_length.png", "plugins.png"}
TITLE = "SIMULATED DATA | tiny | protocol strict | seed 0"


class TestWholeJob:
    def test_output(self, strict) -> None:
        lines = strict.out.splitlines()
        assert lines[0] == TITLE
        assert lines[-1].startswith("SIMULATED DATA: made by the simulator; not comparable with")
        assert strict.out.endswith(results_table(strict.results) + "\n")
        assert max(map(len, lines)) <= 100
        assert "Sampled ranking: the test item and 20 drawn items, " in strict.out
        for told in ("data: 120 users, 300 items, ", "TI-DiffRec: best epoch ", "preferences: "):
            assert len(re.findall(rf"^\[0:\d\d\] {told}", strict.err, re.M)) == 1
        assert "error" not in strict.err

    def test_files(self, strict) -> None:
        assert {path.name for path in strict.path.iterdir()} == {
            "catalogue.npz",
            "config.json",
            "data.json",
            "diffusion",
            "encoders",
            "metrics.jsonl",
            "per_user.npz",
            "phases",
            "plots",
            "preferences",
            "report.md",
            "results.json",
        }
        assert {path.name for path in (strict.path / "plots").iterdir()} == PLOTS
        # What training left half-way is gone.
        assert [path.name for path in (strict.path / "diffusion").iterdir()] == ["best"]
        assert strict.half_written == []

    def test_files_are_never_seen_half_written(self, strict, opened) -> None:
        written = {path.relative_to(strict.path) for path in opened[1]}
        temporary = {path for path in written if re.fullmatch(r"\..*\.\w{12}\.tmp", path.name)}
        names = {path.name.rsplit(".", 2)[0][1:] for path in temporary}
        parts = {f"{key}.{kind}" for key in KEYS for kind in ("json", "npz")}
        assert names >= PLOTS | parts | {"config.json", "data.json", "per_user.npz", "report.md"}
        assert "results.json" in names
        rest = {
            str(path) for path in written - temporary if "orbax-checkpoint-tmp" not in str(path)
        }
        # It grows by a line at a time, and its reader drops half of one.
        assert rest == {"metrics.jsonl"}

    def test_results(self, strict) -> None:
        results = strict.results
        assert (results["name"], results["protocol"], results["seed"]) == ("tiny", "strict", 0)
        assert results["stage"] == "all"
        assert results["data"]["source"] == "simulated"
        assert results["data"]["note"].startswith("no real log was found (none)")
        assert [model["key"] for model in results["models"]] == KEYS
        names = ["TI-DiffRec", "SASRec", "SASRec+HBR+NNS+DPA"]
        assert [model["name"] for model in results["models"]] == names
        assert results["plugins"].keys() == {"hbr", "dpa", "nns"}
        assert results["times"].keys() == {"data", *KEYS, "preferences", "total", "compiling"}
        of_all = ("total", "compiling")
        parts = [spent for name, spent in results["times"].items() if name not in of_all]
        assert results["times"]["total"] == pytest.approx(sum(parts), abs=0.05)
        assert results["peak_memory_bytes"] > 2**27
        assert results["versions"]["jax"] == jax.__version__
        for model in results["models"]:
            assert model["epochs"] == 3
            assert 1 <= model["best_epoch"] <= 3
            assert 0 < model["validation"]["NDCG@10"] < 1
            assert model["paper"] == {}

    def test_per_user_arrays_are_the_figures(self, strict) -> None:
        with np.load(strict.path / "per_user.npz", allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
        kinds = {f"{key}/{kind}_rank" for key in KEYS for kind in ("sampled", "full")}
        assert arrays.keys() == {"users", "history_length", "item_popularity"} | kinds
        for model in strict.results["models"]:
            for kind in ("sampled", "full"):
                ranks = arrays[f"{model['key']}/{kind}_rank"]
                assert ranks.shape == (120,)
                ranks = ranks[~np.isnan(ranks)]
                assert len(ranks) == model["users"] < 120
                assert np.mean(ranks < 1) == pytest.approx(model[kind]["HR@1"], abs=1e-6)
                assert np.mean(1 / (1 + ranks)) == pytest.approx(model[kind]["MRR"], rel=1e-5)

    def test_metrics(self, strict) -> None:
        lines, fields = strict.losses, {"stage", "epoch", "loss", "learning_rate", "ndcg"}
        order = [(line["stage"], line["epoch"]) for line in lines]
        assert order == [(key, epoch) for key in KEYS for epoch in (1, 2, 3)]
        assert all(line.keys() == fields for line in lines)
        for model in strict.results["models"]:
            kept = [line for line in lines if line["stage"] == model["key"]]
            best = max(kept, key=lambda line: line["ndcg"])
            assert best["epoch"] == model["best_epoch"]
            assert best["ndcg"] == pytest.approx(model["validation"]["NDCG@10"], rel=1e-6)

    def test_report(self, strict) -> None:
        lines = (strict.path / "report.md").read_text().splitlines()
        assert lines[0] == f"# {TITLE}"
        assert lines[-1].startswith("**SIMULATED DATA: ")
        assert {name for name in PLOTS if any(f"(plots/{name})" in line for line in lines)} == PLOTS

    def test_the_config_is_that_of_the_shortened_run(self, strict) -> None:
        saved = json.loads((strict.path / "config.json").read_text())
        assert (saved["encoder"]["epochs"], saved["diffusion"]["epochs"]) == (3, 3)
        assert default_config().encoder.epochs > 3


class TestAgain:
    def test_a_finished_run_is_printed_and_left_alone(self, strict, call, monkeypatch) -> None:
        monkeypatch.setattr(experiment, "prepare", None)
        before = strict.stamps
        done = call(strict.path)
        assert (done.status, done.err) == (0, "")
        assert done.out.splitlines()[0] == TITLE
        assert f"{strict.path}: finished, these are its results\n" in done.out
        assert done.out.endswith(results_table(strict.results) + "\n")
        assert strict.stamps == before

    def test_a_part_of_a_finished_run_is_finished(self, strict, call) -> None:
        before = strict.stamps
        for stage in ("diffusion", "encoder"):
            assert "finished, these are" in call(strict.path, f"--config.stage={stage}").out
        assert strict.stamps == before

    def test_a_lost_report_is_written_again(self, strict, call) -> None:
        report = strict.path / "report.md"
        text = report.read_text()
        report.unlink()
        assert call(strict.path).status == 0
        assert report.read_text().splitlines()[0] == text.splitlines()[0]
        report.write_text(text)

    def test_another_config_is_refused(self, strict, call) -> None:
        before = strict.stamps
        done = call(strict.path, "--config.encoder.epochs=4", "--config.seed=1")
        assert done.status == 2
        assert done.err == (
            f"error: {strict.path}: holds a run with another config, which differs in "
            "encoder.epochs, seed; name another --workdir or remove it\n"
        )
        assert strict.stamps == before

    def test_a_field_set_by_hand_is_not_overridden(self, strict, call) -> None:
        # To the very value that the config file has.
        done = call(strict.path, f"--config.encoder.epochs={default_config().encoder.epochs}")
        assert "differs in encoder.epochs; name" in done.err

    def test_other_data_is_refused(self, strict, call, tmp_path) -> None:
        rows = [f"{u},{i},{i}\n" for u in (1, 2, 3) for i in range(u, u + 30)]
        (tmp_path / "none.csv").write_text("user_id,item_id,timestamp\n" + "".join(rows))
        flags = ["--config.encoder.epochs=3", "--config.diffusion.epochs=3"]
        done = call(strict.path, f"--config.data.dir={tmp_path}", *flags)
        assert done.err == (
            f"error: {strict.path}: holds a run on simulated data, and this one would be on real "
            "data; name another --workdir or remove it\n"
        )


def test_users_with_fewer_than_3_events_are_dropped_and_counted(
    call, tmp_path, monkeypatch
) -> None:
    counts = {1: 30, 2: 2, 3: 30, 4: 1, 5: 30}
    rows = [f"{u},{u * 30 + i},{i}\n" for u, count in counts.items() for i in range(count)]
    (tmp_path / "none.csv").write_text("user_id,item_id,timestamp\n" + "".join(rows))
    monkeypatch.setattr(phases, "diffusion_phase", Mock(side_effect=KeyboardInterrupt))
    done = call(tmp_path / "run", f"--config.data.dir={tmp_path}")
    assert done.out == "real data | tiny | protocol strict | seed 0\n"
    told = "data: 3 users, 93 items, 90 events, 2 users with fewer than 3 events dropped\n"
    assert done.err.partition("] ")[2].startswith(told)


def test_results_can_be_read_by_the_package(strict) -> None:
    place = Workdir(strict.path, _saved_config(strict), "simulated")
    assert place.results() == strict.results
    assert place.phases.all().keys() == {*KEYS, "preferences"}


def _saved_config(strict):
    config = default_config()
    config.update(json.loads((strict.path / "config.json").read_text()))
    return config


def test_programs_dropped_after_every_phase_change_nothing(
    strict, call, tmp_path, monkeypatch
) -> None:
    drop = Mock(side_effect=jax.clear_caches)
    monkeypatch.setattr(compilation, "drop_if_many", drop)
    done = call(tmp_path / "dropped")
    assert drop.call_count == len(KEYS) + 1  # the models and the preferences
    assert done.lasting["models"] == strict.lasting["models"]
    assert done.losses == strict.losses
