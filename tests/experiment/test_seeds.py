"""Several seeds in one run: what each is, what they come to, and what happens when it is killed."""

import dataclasses
import gc
import json
import math
import os
import shutil
import signal
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pdrec_jax import keep, other_runs, phases, processes, seeds
from pdrec_jax.checkpoints import Store
from pdrec_jax.data import sources
from pdrec_jax.diffusion.preferences import save_preferences
from pdrec_jax.errors import UserError
from pdrec_jax.evaluation import protocol
from pdrec_jax.given import prepare
from pdrec_jax.metric_log import MetricLog
from pdrec_jax.report.seeds import seeds_table
from pdrec_jax.training import Run
from pdrec_jax.workdir import Workdir

KEYS = ["diffusion", "sasrec", "sasrec+hbr+nns+dpa"]
SEEDS = "--config.seeds=2"
# So that the second seed alone has the log of the first.
SAME_LOG = "--config.simulation.seed=0"


def die(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


@pytest.fixture(scope="module")
def two(folder, call):
    done = call(folder / "two", SEEDS, SAME_LOG)
    assert done.status == 0, done.err
    return done


def test_output(two):
    lines = two.out.splitlines()
    assert lines[0] == "SIMULATED DATA | tiny | protocol strict | seeds 0 to 1"
    assert two.out.endswith(seeds_table(two.results) + "\n")
    assert two.out.count("Full ranking: ") == 1
    assert max(map(len, lines)) <= 100
    assert "SASRec+HBR+NNS+DPA less SASRec" in lines


def test_each_seed_is_a_run_of_its_own(two, call, tmp_path, strict):
    for seed, alone in ((0, strict), (1, call(tmp_path, "--config.seed=1", SAME_LOG))):
        where = two.path / f"seed-{seed}"
        found = json.loads((where / "results.json").read_text())
        assert [m["key"] for m in found["models"]] == KEYS
        for model, expected in zip(found["models"], alone.results["models"], strict=True):
            assert model["best_epoch"] == expected["best_epoch"]
            for block in ("sampled", "full", "validation"):
                assert model[block] == pytest.approx(expected[block], abs=1e-5)
        assert (where / "report.md").is_file()
        assert not list(where.rglob("state"))


def test_means_and_deviations(two):
    results = two.results
    each = [json.loads((two.path / f"seed-{seed}" / "results.json").read_text()) for seed in (0, 1)]
    assert results["seeds"] == [0, 1]
    assert results["stage"] == "all"
    for index, model in enumerate(results["models"]):
        values = [one["models"][index]["sampled"]["NDCG@10"] for one in each]
        assert model["sampled"]["NDCG@10"] == pytest.approx(np.mean(values))
        assert model["deviation"]["sampled"]["NDCG@10"] == pytest.approx(np.std(values, ddof=1))
        assert model["by_seed"]["sampled"]["NDCG@10"] == values
    for name, seconds in results["times"].items():
        assert seconds == pytest.approx(sum(one["times"][name] for one in each), abs=1e-6)
    assert results["peak_memory_bytes"] == max(one["peak_memory_bytes"] for one in each)


def test_comparisons(two):
    found = two.results["comparisons"]
    assert {each["key"] for each in found} == {KEYS[2]}
    assert {each["base"] for each in found} == {KEYS[1]}
    assert len(found) == 12 + 11
    models = {model["key"]: model for model in two.results["models"]}
    for each in found:
        gain = [models[key][each["block"]][each["metric"]] for key in (KEYS[2], KEYS[1])]
        assert each["difference"] == pytest.approx(gain[0] - gain[1], abs=1e-6)
        for kind in ("users", "seeds"):
            p = each[f"p_{kind}"]
            assert p is None or p <= each[f"p_{kind}_holm"] <= 1


def test_again(two, call, monkeypatch):
    monkeypatch.setattr(seeds, "prepare", None)
    before = two.stamps
    done = call(two.path, SEEDS, SAME_LOG)
    assert (done.status, done.err) == (0, "")
    assert "finished, these are its results" in done.out
    assert two.stamps == before


def test_the_first_process_says_what_is_finished(two, call, monkeypatch):
    """A file system may show the others a new file late."""
    asked: list[str] = []

    def late(here: bool, what: str) -> bool:
        asked.append(what)
        assert here
        if what == str(two.path / "results.json"):
            return False  # the first process has looked before it was there
        raise UserError(what)

    monkeypatch.setattr(processes, "found_by_first", late)
    done = call(two.path, SEEDS, SAME_LOG)
    assert done.status == 2
    assert asked == [str(two.path / "results.json"), str(two.path / "seed-0/results.json")]


def test_fewer_do_not_replace_more(two, call):
    before = two.stamps
    done = call(two.path, SAME_LOG)
    assert (done.status, done.err.count("\n")) == (2, 1)
    assert "which differs in seeds" in done.err
    assert done.stamps == before


def test_reports_that_are_missing_are_written(two, call, tmp_path):
    assert keep.main([str(two.path), f"--out={tmp_path}"]) == 0
    kept = tmp_path / two.path.name
    assert not list(kept.rglob("report.md"))
    assert call(kept, SEEDS, SAME_LOG).status == 0
    assert len(list(kept.rglob("report.md"))) == 3


def test_again_on_another_log(two, call, monkeypatch):
    monkeypatch.setattr(sources, "listed", lambda _: [{"name": "log.inter", "sha256": "0"}])
    done = call(two.path, SEEDS, SAME_LOG)
    assert done.status == 2
    assert "holds a run on another content of log.inter, by its checksum" in done.err
    one = call(two.path / "seed-1", "--config.seed=1", SAME_LOG)
    assert "holds a run on another content of log.inter, by its checksum" in one.err


def test_more_seeds_later(two, call, tmp_path):
    assert (
        call(tmp_path, SEEDS, SAME_LOG, "--config.stage=diffusion").results["stage"] == "diffusion"
    )
    done = call(tmp_path, SEEDS, SAME_LOG, "--config.seeds_at_once=1")  # in turn
    assert done.status == 0
    for ours, expected in zip(done.results["models"], two.results["models"], strict=True):
        for block in ("sampled", "full"):
            assert ours[block] == pytest.approx(expected[block], abs=1e-5)
    stamps = {name: stamp for name, stamp in done.stamps.items() if name.startswith("seed-")}
    more = call(tmp_path, "--config.seeds=3", SAME_LOG)
    assert more.status == 0
    assert more.results["seeds"] == [0, 1, 2]
    kept = {name: stamp for name, stamp in more.stamps.items() if name in stamps}
    assert kept == stamps
    # Of what was kept of the first two there are no models, and none are trained again.
    small = tmp_path / "small"
    assert keep.main([str(two.path), f"--out={small}"]) == 0
    first = small / two.path.name / "seed-0" / "results.json"
    first.write_text(json.dumps({**json.loads(first.read_text()), "peak_memory_bytes": 10**15}))
    again = call(small / two.path.name, "--config.seeds=3", SAME_LOG)
    assert again.status == 0
    assert again.results["peak_memory_bytes"] == 10**15  # the most that a seed has taken
    assert "seed 2" in again.err
    assert "seed 0" not in again.err
    for ours, expected in zip(again.results["models"], more.results["models"], strict=True):
        each = [one["by_seed"]["sampled"]["NDCG@10"] for one in (ours, expected)]
        assert each[0] == pytest.approx(each[1], abs=1e-5)
    assert not (small / two.path.name / "seed-0" / "encoders").exists()
    # Of the fourth there is the diffusion model alone, and so that is what all have.
    less = call(tmp_path, "--config.seeds=4", SAME_LOG, "--config.stage=diffusion")
    assert (less.status, less.results["stage"]) == (0, "diffusion")
    assert [model["key"] for model in less.results["models"]] == KEYS[:1]
    assert less.results["comparisons"] == []


def test_more_seeds_ask_for_preferences_of_their_own_alone(two, call, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(two.path, source)
    flags = [SAME_LOG, "--config.stage=encoder", f"--config.preferences_from={source}",
             "--config.encoder.variants=('hbr',)"]  # fmt: skip
    assert call(tmp_path / "run", SEEDS, *flags).status == 0
    assert keep.main([str(tmp_path / "run"), f"--out={tmp_path / 'kept'}"]) == 0
    for seed in (0, 1):
        shutil.rmtree(source / f"seed-{seed}" / "preferences")
    more = call(tmp_path / "kept/run", "--config.seeds=3", *flags)
    assert more.status == 2
    # The third seed's are looked for, and the first two are not asked.
    assert f"{source}: a run of several seeds, without seed 2" in more.err


def test_one_and_several_do_not_mix(two, call, strict):
    done = call(two.path, SAME_LOG)
    assert done.status == 2
    assert "differs in seeds; name another" in done.err
    done = call(strict.path, SEEDS)
    assert "differs in seeds; name another" in done.err


@pytest.mark.parametrize("vmapped", [False, True])
def test_killed_while_two_train(two, call, tmp_path, monkeypatch, vmapped):
    if vmapped:
        monkeypatch.setattr(seeds.jax, "default_backend", lambda: "gpu")
    write, lines = MetricLog.write, 0

    def write_and_die(log: MetricLog, name: str, epoch: int, **values) -> None:
        nonlocal lines
        write(log, name, epoch, **values)
        lines += name == KEYS[2]
        if lines == 3:
            raise KeyboardInterrupt

    flags = [SEEDS, SAME_LOG, "--config.save_seconds=0", "--config.seeds_at_once=2"]
    with monkeypatch.context() as patch:
        patch.setattr(MetricLog, "write", write_and_die)
        killed = call(tmp_path, *flags)
    assert killed.status == 130
    assert killed.results == {}
    assert len(list(tmp_path.rglob("state"))) == 2
    done = call(tmp_path, *flags)
    assert done.status == 0
    for ours, expected in zip(done.results["models"], two.results["models"], strict=True):
        assert ours["best_epoch"] == expected["best_epoch"]
        assert ours["sampled"] == pytest.approx(expected["sampled"], abs=1e-5)
    assert done.half_written == []


@pytest.mark.parametrize("at_once", [1, 2])
def test_one_that_diverges_leaves_the_others(two, call, tmp_path, monkeypatch, at_once):
    measure, times = Run.measure, []

    def broken(run: Run, state: Any, values: dict[str, float]) -> None:
        if "seed-0/encoders/sasrec+" in str(run.store.directory):
            values["loss"] = math.nan
            times.append(run)
        measure(run, state, values)

    flags = [SEEDS, SAME_LOG, f"--config.seeds_at_once={at_once}"]
    with monkeypatch.context() as patch:
        patch.setattr(Run, "measure", broken)
        done = call(tmp_path, *flags)
    assert done.status == 2
    assert f"error: seed 0: {KEYS[2]}: the loss is nan in epoch 1 at learning rate" in done.err
    assert len(times) == 1  # it is not begun a second time
    assert not (tmp_path / "results.json").exists()
    assert json.loads((tmp_path / "seed-0/results.json").read_text())["stage"] == "diffusion"
    found = json.loads((tmp_path / "seed-1/results.json").read_text())
    for model, expected in zip(found["models"], two.results["models"], strict=True):
        ours = expected["by_seed"]["sampled"]["NDCG@10"][1]
        assert model["sampled"]["NDCG@10"] == pytest.approx(ours, abs=1e-5)


def test_candidates_of_a_seed_are_drawn_once(call, tmp_path, monkeypatch):
    drawn, draw = [], protocol.draw_candidates

    def noted(*given: Any, heldout: str, **named: Any) -> np.ndarray:
        drawn.append((given[2], heldout))
        return draw(*given, heldout=heldout, **named)

    monkeypatch.setattr(protocol, "draw_candidates", noted)
    flags = ["--config.stage=encoder", "--config.encoder.variants=base", SEEDS, SAME_LOG]
    assert call(tmp_path, *flags).status == 0
    assert drawn == [(seed, heldout) for seed in (0, 1) for heldout in ("test", "valid")]


@pytest.mark.parametrize("vmapped", [False, True])
def test_a_group_at_a_time(call, tmp_path, monkeypatch, vmapped):
    if vmapped:
        monkeypatch.setattr(seeds.jax, "default_backend", lambda: "gpu")
    alive: list[weakref.ref] = []
    groups, build, fit = [], phases.encoder_training, seeds.fit_together

    def counted(*arguments: Any) -> phases.EncoderTraining:
        made = build(*arguments)
        alive.append(weakref.ref(made.task))
        return made

    def noted(runs: list[Run], *arguments: Any, **named: Any) -> None:
        gc.collect()
        groups.append(len(runs))
        assert sum(each() is not None for each in alive) == len(runs)
        fit(runs, *arguments, **named)

    monkeypatch.setattr(phases, "encoder_training", counted)
    monkeypatch.setattr(seeds, "fit_together", noted)
    flags = ["--config.seeds=3", "--config.stage=encoder", "--config.encoder.variants=('base',)"]
    done = call(tmp_path, *flags, SAME_LOG, "--config.seeds_at_once=2")
    assert (done.status, groups) == (0, [2, 1]), done.err


def test_killed_while_a_seed_is_mended(two, call, tmp_path, monkeypatch):
    run = Path(shutil.copytree(two.path, tmp_path / "run"))
    for path in run.glob("seed-1/encoders/sasrec/best/*/tree/d/*"):
        path.unlink()
    with monkeypatch.context() as patch:
        patch.setattr(MetricLog, "write", die)
        assert call(run, SEEDS, SAME_LOG).status == 130
    assert not list(run.glob("seed-1/encoders/sasrec/best/*"))
    done = call(run, SEEDS, SAME_LOG)
    assert (done.status, done.err.count("warning: ")) == (0, 0)
    assert "finished, these are" not in done.out
    assert list(run.glob("seed-1/encoders/sasrec/best/*"))
    assert [model["key"] for model in done.results["models"]] == KEYS


def test_ranks_of_a_seed_that_are_missing(two, call, tmp_path, monkeypatch):
    run = Path(shutil.copytree(two.path, tmp_path / "run"))
    ranks = run / "seed-1/per_user.npz"
    with np.load(ranks, allow_pickle=False) as file:
        before = dict(file)
    ranks.unlink()
    (run / "results.json").unlink()
    done = call(run, SEEDS, SAME_LOG)
    assert done.status == 0
    assert "seed-1/per_user.npz: missing; it is put together from the phases\n" in done.err
    assert done.results["comparisons"] == two.results["comparisons"]
    with np.load(ranks, allow_pickle=False) as file:
        assert dict(file).keys() == before.keys()
        for name, array in before.items():
            np.testing.assert_array_equal(file[name], array)
    # Of a run that was kept there are no phases, and it is found before a third seed is trained.
    assert keep.main([str(two.path), f"--out={tmp_path / 'kept'}"]) == 0
    kept = tmp_path / "kept" / two.path.name
    (kept / "seed-1/per_user.npz").unlink()
    monkeypatch.setattr(seeds, "prepare", None)
    refused = call(kept, "--config.seeds=3", SAME_LOG)
    assert refused.status == 2
    assert "error: " in refused.err
    assert "seed-1/per_user.npz: missing, so that seed 1 cannot be compared" in refused.err
    assert not (kept / "seed-2").exists()


def test_too_many(call, tmp_path):
    done = call(tmp_path, "--config.seed=2147483647", SEEDS)
    assert done.status == 2
    assert done.err.startswith("error: config.seeds: seeds of at most 2147483647 are expected")
    assert not (tmp_path / "config.json").exists()


def test_an_encoder_stage_without_preferences_writes_nothing(two, call, tmp_path):
    flags = [SEEDS, SAME_LOG, "--config.stage=encoder"]
    done = call(tmp_path / "run", *flags)
    assert done.status == 2
    assert "the encoder stage alone needs preferences" in done.err
    assert not (tmp_path / "run").exists()
    done = call(tmp_path / "run", *flags, f"--config.preferences_from={tmp_path}")
    assert done.status == 2
    assert "no checkpoint here" in done.err
    assert not (tmp_path / "run").exists()


def test_all_seeds_read_the_preferences_of_a_single_one(strict, call, tmp_path):
    flags = ["--config.stage=encoder", f"--config.preferences_from={strict.path}", SAME_LOG]
    done = call(tmp_path / "two", SEEDS, *flags)
    assert done.status == 0, done.err
    alone = call(tmp_path / "one", "--config.seed=1", *flags)
    for ours, *single in zip(
        done.results["models"], strict.results["models"][1:], alone.results["models"], strict=True
    ):
        expected = [model["sampled"]["NDCG@10"] for model in single]
        assert ours["by_seed"]["sampled"]["NDCG@10"] == pytest.approx(expected, abs=1e-5)


def test_no_seed_goes_on_with_other_preferences(strict, call, tmp_path, monkeypatch):
    source, run = tmp_path / "source", tmp_path / "run"
    shutil.copytree(strict.path, source)
    flags = [SEEDS, SAME_LOG, "--config.stage=encoder", "--config.encoder.variants=nns"]
    flags += [f"--config.preferences_from={source}"]
    with monkeypatch.context() as patch:
        patch.setattr(seeds, "fit_together", die)
        assert call(run, *flags).status == 130
    given, _ = prepare(Workdir.open(strict.path).config, None)
    preferences = other_runs.read_preferences(given, source)
    changed = dataclasses.replace(preferences, negatives=preferences.negatives[:, ::-1])
    meta = Store(source).restore_meta("preferences")
    shutil.rmtree(source / "preferences")
    save_preferences(Store(source), changed, meta)
    refused = call(run, *flags)
    assert refused.status == 2
    assert refused.err.endswith("was begun with; name another --workdir, or put those back\n")
    shutil.rmtree(source / "preferences")
    save_preferences(Store(source), preferences, meta)
    assert call(run, *flags).status == 0


@pytest.mark.parametrize("at_once", [1, 2])
def test_a_signal_ends_it_beside_one_that_diverged(call, tmp_path, monkeypatch, at_once):
    """At the end of the epoch; no other group, variant or seed is begun."""
    measure, begun = Run.measure, []

    def broken(run: Run, state: Any, values: dict[str, float]) -> None:
        folder = str(run.store.directory)
        begun.append(folder)
        if "seed-0/encoders/" in folder:
            values["loss"] = math.nan
        elif "encoders" in folder:
            os.kill(os.getpid(), signal.SIGTERM)
        measure(run, state, values)

    monkeypatch.setattr(Run, "measure", broken)
    flags = ["--config.seeds=4", SAME_LOG, f"--config.seeds_at_once={at_once}"]
    done = call(tmp_path, *flags, "--config.save_seconds=1e6")
    assert done.status == 128 + signal.SIGTERM
    assert not [folder for folder in begun if "seed-2/encoders" in folder]


def test_each_seed_reads_the_preferences_of_its_number(two, call, tmp_path):
    flags = [SEEDS, SAME_LOG, "--config.stage=encoder"]
    done = call(tmp_path, *flags, f"--config.preferences_from={two.path}")
    assert done.status == 0
    for ours, expected in zip(done.results["models"], two.results["models"][1:], strict=True):
        assert ours["by_seed"]["sampled"]["NDCG@10"] == pytest.approx(
            expected["by_seed"]["sampled"]["NDCG@10"], abs=1e-5
        )
