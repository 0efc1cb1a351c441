"""The whole job, with everything shrunk: its files, its resumption, and how it ends badly."""

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from jax._src import compiler

from pdrec_jax import experiment, phases
from pdrec_jax.checkpoints import Store
from pdrec_jax.diffusion import stage as diffusion_stage
from pdrec_jax.encoders import stage as encoder_stage
from pdrec_jax.main import main
from pdrec_jax.metric_log import MetricLog
from pdrec_jax.report import plots
from pdrec_jax.report.tables import results_table
from pdrec_jax.workdir import Workdir

ROOT = Path(__file__).resolve().parents[1]
CONFIG = """
from pdrec_jax.settings import default_config, put

def get_config():
    config = default_config()
    fields = {
        "name": "tiny", "data.target": "none", "progress": False, "evaluation.negatives": 20,
        "simulation.num_users": 120, "simulation.num_items": 300, "simulation.mean_length": 6.0,
        "simulation.overrides": (("diffusion.epochs", 3), ("encoder.epochs", 3)),
        "diffusion.hidden": (16,), "diffusion.steps": 3, "diffusion.embedding_size": 4,
        "diffusion.batch_size": 64, "diffusion.block": 128, "diffusion.learning_rate": 1e-3,
        "encoder.width": 8, "encoder.blocks": 1, "encoder.max_length": 16,
        "encoder.batch_size": 64, "encoder.block": 128, "encoder.first_evaluation": 1,
        "dpa.coarse": 10, "dpa.fine": 2, "nns.kept": 16,
    }
    for field, value in fields.items():
        put(config, field, value)
    return config
"""
KEYS = ["diffusion", "sasrec", "sasrec+hbr+nns+dpa"]
DIFFUSION = "--config.stage=diffusion"
PLOTS = {"losses.png", "ndcg_by_epoch.png", "ndcg_by_history_length.png", "plugins.png"}


def remembered(function: Callable[..., Any], key: Callable[..., str]) -> Callable[..., Any]:
    """A model is a static argument of compiled code: the same config gets the same one again."""
    made: dict[str, Any] = {}

    def again(*arguments: Any) -> Any:
        name = key(*arguments)
        if name not in made:
            made[name] = function(*arguments)
        return made[name]

    return again


@pytest.fixture(scope="module")
def hurry() -> dict[str, str]:
    """Options of XLA that halve the time of compiling; none where XLA no longer knows them."""
    options = {"xla_cpu_use_fusion_emitters": "False"}
    try:
        jax.jit(lambda x: x + 1, compiler_options=options)(1.0)
    except Exception:
        return {}
    return options


@pytest.fixture(scope="module", autouse=True)
def quick(hurry: dict[str, str]) -> Iterator[None]:
    """Compiles with little care, and each program once."""
    options_of = compiler.get_compile_options

    def hurried(*arguments: Any, **named: Any) -> Any:
        return options_of(*arguments, **named | {"env_options_overrides": hurry})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiler, "get_compile_options", hurried)
        for stage, key in (
            (diffusion_stage, lambda config, split: f"{config.to_json()} {split.train.num_items}"),
            (encoder_stage, lambda config, plugins, _: f"{config.encoder.to_json()} {plugins}"),
        ):
            patch.setattr(stage, "make_model", remembered(stage.make_model, key))
        before = jax.config.values["jax_disable_most_optimizations"]
        jax.config.update("jax_disable_most_optimizations", True)
        yield
        jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The current directory of all runs: no logs anywhere near."""
    folder = tmp_path_factory.mktemp("experiment")
    (folder / "config.py").write_text(CONFIG)
    return folder


@pytest.fixture(scope="module")
def call(folder: Path) -> Callable[..., SimpleNamespace]:
    """`call(workdir, *flags)` runs the command line, without drawing unless `draw` is set."""

    def call(workdir: Path, *flags: str, draw: bool = False) -> SimpleNamespace:
        out, err = io.StringIO(), io.StringIO()
        with (
            pytest.MonkeyPatch.context() as patch,
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            # As in the tests' own strictness, of which a fixture of this scope knows nothing; optax
            # mixes dtypes.
            jax.numpy_rank_promotion("raise"),
            jax.numpy_dtype_promotion("standard"),
        ):
            patch.chdir(folder)
            patch.delenv("PDREC_DATA", raising=False)
            if not draw:
                patch.setattr(plots, "write_plots", lambda *_: [])
            status = main(["main", "--config=config.py", f"--workdir={workdir}", *flags])
        results = Path(workdir, "results.json")
        return SimpleNamespace(
            status=status,
            out=out.getvalue(),
            err=err.getvalue(),
            results=json.loads(results.read_text()) if results.is_file() else None,
        )

    return call


def lasting(results: dict[str, Any]) -> dict[str, Any]:
    """What does not depend on the machine's mood."""
    return {key: results[key] for key in results if key not in ("times", "peak_memory_bytes")}


def losses(workdir: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{key: line[key] for key in line if key != "seconds"} for line in lines]


def assert_same_diffusion(done: SimpleNamespace, workdir: Path, strict: SimpleNamespace) -> None:
    """A run of the diffusion stage alone came to what the unbroken run of all has."""
    assert done.status == 0
    assert done.results["models"] == strict.results["models"][:1]
    assert done.results["plugins"] == strict.results["plugins"]
    assert losses(workdir) == [line for line in losses(strict.path) if line["stage"] == KEYS[0]]
    assert_whole(workdir)


def stamps(workdir: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in workdir.rglob("*") if path.is_file()}


def assert_whole(workdir: Path) -> None:
    """Nothing half-written is in a directory."""
    names = [path.name for path in workdir.rglob("*")]
    assert not [name for name in names if name.endswith(".tmp") or "orbax-checkpoint-tmp" in name]


OPENED: list[tuple[Path, str]] = []
WATCHED: list[str] = []


def note(event: str, arguments: tuple[Any, ...]) -> None:
    """An audit hook, which Python never lets go again: it does nothing while nobody watches."""
    if WATCHED and event == "open" and isinstance(arguments[0], str):
        path, mode = arguments[0], str(arguments[1] or "")
        if path.startswith(WATCHED[0]) and (set(mode) & set("wax+") or arguments[2] & os.O_WRONLY):
            OPENED.append((Path(path), mode))


@pytest.fixture(scope="module")
def strict(folder: Path, call: Callable[..., SimpleNamespace]) -> SimpleNamespace:
    """An unbroken run of the whole job under `strict`."""
    sys.addaudithook(note)
    WATCHED.append(str(folder / "strict"))
    done = call(folder / "strict", draw=True)
    WATCHED.clear()
    return SimpleNamespace(**vars(done), path=folder / "strict")


class TestWholeJob:
    def test_output(self, strict: SimpleNamespace) -> None:
        assert strict.status == 0
        lines = strict.out.splitlines()
        assert lines[0] == "SIMULATED DATA | tiny | protocol strict | seed 0"
        assert lines[-1].startswith("SIMULATED DATA: made by the simulator; not comparable with")
        assert strict.out.endswith(results_table(strict.results) + "\n")
        assert max(map(len, lines)) <= 100
        assert "Sampled ranking: the test item and 20 drawn items, " in strict.out
        for told in ("data: 120 users, 300 items, ", "TI-DiffRec: best epoch ", "preferences: "):
            assert len(re.findall(rf"^\[0:\d\d\] {told}", strict.err, re.M)) == 1

    def test_files(self, strict: SimpleNamespace) -> None:
        assert {path.name for path in strict.path.iterdir()} == {
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
        assert_whole(strict.path)
        # While nothing trains, only what is best is kept.
        assert [path.name for path in (strict.path / "diffusion").iterdir()] == ["best"]

    def test_files_are_never_seen_half_written(self, strict: SimpleNamespace) -> None:
        written = {path.relative_to(strict.path) for path, _ in OPENED}
        loose = {
            str(path)
            for path in written
            if not re.fullmatch(r"\..*\.[0-9a-f]{12}\.tmp", path.name)
            and "orbax-checkpoint-tmp" not in str(path)
        }
        assert {path.name.split(".")[1] for path in written if path.name.endswith(".tmp")} >= {
            "config",
            "data",
            "per_user",
            "report",
            "results",
        }
        assert loose == {"metrics.jsonl"}  # which grows by a line; its reader drops half of one

    def test_results(self, strict: SimpleNamespace) -> None:
        results = strict.results
        assert (results["name"], results["protocol"], results["seed"]) == ("tiny", "strict", 0)
        assert results["stage"] == "all"
        assert results["data"]["source"] == "simulated"
        assert results["data"]["note"].startswith("no real log was found (none)")
        assert [model["key"] for model in results["models"]] == KEYS
        names = ["TI-DiffRec", "SASRec", "SASRec+HBR+NNS+DPA"]
        assert [model["name"] for model in results["models"]] == names
        assert results["plugins"].keys() == {"hbr", "dpa", "nns"}
        assert results["times"].keys() == {"data", *KEYS, "preferences", "total"}
        parts = [spent for name, spent in results["times"].items() if name != "total"]
        assert results["times"]["total"] == pytest.approx(sum(parts), abs=0.05)
        assert results["peak_memory_bytes"] > 2**27
        assert results["versions"]["jax"] == jax.__version__
        for model in results["models"]:
            assert model["epochs"] == 3
            assert 1 <= model["best_epoch"] <= 3
            assert 0 < model["validation"]["NDCG@10"] < 1
            assert model["paper"] == {}

    def test_per_user_arrays_are_the_figures(self, strict: SimpleNamespace) -> None:
        arrays = Workdir.per_user(SimpleNamespace(path=strict.path))  # type: ignore[arg-type]
        kinds = {f"{key}/{kind}_rank" for key in KEYS for kind in ("sampled", "full")}
        assert arrays.keys() == {"users", "history_length"} | kinds
        for model in strict.results["models"]:
            for kind in ("sampled", "full"):
                ranks = arrays[f"{model['key']}/{kind}_rank"]
                assert ranks.shape == (120,)
                ranks = ranks[~np.isnan(ranks)]
                assert len(ranks) == model["users"]
                assert np.mean(ranks < 1) == pytest.approx(model[kind]["HR@1"], abs=1e-6)
                assert np.mean(1 / (1 + ranks)) == pytest.approx(model[kind]["MRR"], rel=1e-5)

    def test_metrics(self, strict: SimpleNamespace) -> None:
        lines = losses(strict.path)
        assert [(line["stage"], line["epoch"]) for line in lines] == [
            (key, epoch) for key in KEYS for epoch in (1, 2, 3)
        ]
        assert all(
            line.keys() == {"stage", "epoch", "loss", "learning_rate", "ndcg"} for line in lines
        )
        for model in strict.results["models"]:
            kept = [line for line in lines if line["stage"] == model["key"]]
            best = max(kept, key=lambda line: line["ndcg"])
            assert best["epoch"] == model["best_epoch"]
            assert best["ndcg"] == pytest.approx(model["validation"]["NDCG@10"], rel=1e-6)

    def test_report(self, strict: SimpleNamespace) -> None:
        lines = (strict.path / "report.md").read_text().splitlines()
        assert lines[0] == "# SIMULATED DATA | tiny | protocol strict | seed 0"
        assert lines[-1].startswith("**SIMULATED DATA: ")
        assert {name for name in PLOTS if any(f"(plots/{name})" in line for line in lines)} == PLOTS

    def test_the_config_is_that_of_the_shortened_run(self, strict: SimpleNamespace) -> None:
        saved = json.loads((strict.path / "config.json").read_text())
        assert (saved["encoder"]["epochs"], saved["diffusion"]["epochs"]) == (3, 3)


class TestAgain:
    def test_a_finished_run_is_printed_and_left_alone(self, strict, call, monkeypatch) -> None:
        monkeypatch.setattr(phases, "prepare", None)
        before = stamps(strict.path)
        done = call(strict.path)
        assert done.status == 0
        assert done.out.splitlines()[0] == strict.out.splitlines()[0]
        assert f"{strict.path}: finished, these are its results\n" in done.out
        assert done.out.endswith(results_table(strict.results) + "\n")
        assert done.err == ""
        assert stamps(strict.path) == before

    def test_a_part_of_a_finished_run_is_finished(self, strict, call) -> None:
        before = stamps(strict.path)
        for stage in ("diffusion", "encoder"):
            assert "finished, these are" in call(strict.path, f"--config.stage={stage}").out
        assert stamps(strict.path) == before

    def test_a_lost_report_is_written_again(self, strict, call) -> None:
        report = strict.path / "report.md"
        text = report.read_text()
        report.unlink()
        assert call(strict.path).status == 0
        assert report.read_text().splitlines()[0] == text.splitlines()[0]
        report.write_text(text)

    def test_another_config_is_refused(self, strict, call) -> None:
        before = stamps(strict.path)
        done = call(strict.path, "--config.encoder.epochs=4", "--config.seed=1")
        assert done.status == 2
        assert done.err == (
            f"error: {strict.path}: holds a run with another config, which differs in "
            "encoder.epochs, seed; name another --workdir or remove it\n"
        )
        assert stamps(strict.path) == before


@pytest.fixture(scope="module")
def reference(folder: Path, call: Callable[..., SimpleNamespace]) -> SimpleNamespace:
    """A run of the whole job under `reference`."""
    done = call(folder / "reference", "--config.protocol=reference")
    return SimpleNamespace(**vars(done), path=folder / "reference")


class TestStages:
    def test_reference(self, reference: SimpleNamespace, strict: SimpleNamespace) -> None:
        assert reference.status == 0
        lines = reference.out.splitlines()
        assert lines[0] == "SIMULATED DATA | tiny | protocol reference | seed 0"
        assert lines[-1].startswith("SIMULATED DATA: ")
        models = reference.results["models"]
        assert [model["key"] for model in models] == KEYS
        assert all(model["validation"] is None for model in models)
        assert models[1]["users"] < strict.results["models"][1]["users"]
        best = [
            max(line["ndcg"] for line in losses(reference.path) if line["stage"] == k) for k in KEYS
        ]
        assert best == pytest.approx([model["sampled"]["NDCG@10"] for model in models], rel=1e-6)
        assert (reference.path / "report.md").is_file()
        assert_whole(reference.path)

    def test_diffusion_first_then_all(self, strict, call, tmp_path) -> None:
        first = call(tmp_path, DIFFUSION)
        assert (first.status, first.results["stage"]) == (0, "diffusion")
        assert [model["key"] for model in first.results["models"]] == KEYS[:1]
        assert "SIMULATED" in first.out.splitlines()[0]
        kept = stamps(tmp_path / "diffusion") | stamps(tmp_path / "preferences")
        again = call(tmp_path, DIFFUSION)
        assert "finished, these are" in again.out
        done = call(tmp_path)
        assert done.status == 0
        assert lasting(done.results) == lasting(strict.results)
        assert losses(tmp_path) == losses(strict.path)
        assert stamps(tmp_path / "diffusion") | stamps(tmp_path / "preferences") == kept

    def test_each_plugin_alone_on_the_preferences_of_another_run(
        self, strict, call, tmp_path
    ) -> None:
        source = stamps(strict.path)
        done = call(
            tmp_path,
            "--config.stage=encoder",
            f"--config.preferences_from={strict.path}",
            "--config.encoder.variants=('hbr','nns','dpa')",
        )
        assert done.status == 0
        assert done.results["stage"] == "encoder"
        names = ["SASRec+HBR", "SASRec+NNS", "SASRec+DPA"]
        assert [model["name"] for model in done.results["models"]] == names
        assert done.results["plugins"] == strict.results["plugins"]
        assert stamps(strict.path) == source
        assert not (tmp_path / "diffusion").exists()
        lines = losses(tmp_path) + losses(strict.path)
        first = {line["stage"]: line["loss"] for line in lines if line["epoch"] == 1}
        assert len({round(loss, 4) for loss in first.values()}) == 6  # no plugin does nothing

    def test_the_same_encoders_on_the_preferences_of_another_run(
        self, strict, call, tmp_path
    ) -> None:
        preferences = f"--config.preferences_from={strict.path}"
        done = call(tmp_path, "--config.stage=encoder", preferences)
        assert done.results["models"] == strict.results["models"][1:]

    def test_an_encoder_without_plugins_needs_no_preferences(self, strict, call, tmp_path) -> None:
        done = call(tmp_path, "--config.stage=encoder", "--config.encoder.variants=base")
        assert done.results["models"] == strict.results["models"][1:2]

    @pytest.mark.parametrize(
        ("flags", "message"),
        [
            (("--config.protocol=reference",), "protocol (strict), expected reference"),
            (("--config.seed=1",), "split ("),
            (("--config.dpa.coarse=11",), "rules (candidates 10, "),
            (("--config.nns.first_fraction=0.4",), "rules (candidates 10, "),
        ],
    )
    def test_preferences_that_were_made_for_something_else(
        self, strict, call, tmp_path, flags, message
    ) -> None:
        preferences = f"--config.preferences_from={strict.path}"
        done = call(tmp_path / "run", "--config.stage=encoder", preferences, *flags)
        assert done.status == 2
        start = f"error: {strict.path}: its preferences were made with another {message}"
        assert done.err.startswith(start)
        assert done.err.count("\n") == 1
        assert not (tmp_path / "run").exists()


class TestKilled:
    @pytest.mark.parametrize(
        ("stage", "save_seconds"), [(KEYS[0], 300), (KEYS[1], 300), (KEYS[2], 0)]
    )
    def test_in_an_epoch(self, strict, call, tmp_path, monkeypatch, stage, save_seconds) -> None:
        write = MetricLog.write

        def die(log: MetricLog, name: str, epoch: int, **values: Any) -> None:
            write(log, name, epoch, **values)
            if (name, epoch) == (stage, 2):
                raise KeyboardInterrupt

        save = f"--config.save_seconds={save_seconds}"
        with monkeypatch.context() as patch:
            patch.setattr(MetricLog, "write", die)
            killed = call(tmp_path, save)
        assert killed.status == 130
        assert killed.err.endswith("interrupted; the same command resumes the run\n")
        assert killed.results is None
        states = list(tmp_path.rglob("state"))
        assert len(states) == (1 if save_seconds == 0 else 0)
        done = call(tmp_path)
        assert done.status == 0
        assert lasting(done.results) == lasting(strict.results)
        assert losses(tmp_path) == losses(strict.path)
        assert_whole(tmp_path)

    @pytest.mark.parametrize(
        ("place", "name"),
        [
            (phases, "save_preferences"),
            (Workdir, "finish_phase"),
            (Workdir, "save_per_user"),
            (experiment, "write_report"),
            (Workdir, "finish"),
        ],
    )
    def test_between_the_phases(self, strict, call, tmp_path, monkeypatch, place, name) -> None:
        def die(*_: Any) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(place, name, die)
            assert call(tmp_path, DIFFUSION).status == 130
        assert_same_diffusion(call(tmp_path, DIFFUSION), tmp_path, strict)

    def test_by_the_system(self, strict, call, folder, tmp_path, hurry) -> None:
        flags = ["--config=config.py", f"--workdir={tmp_path}", "--config.save_seconds=0"]
        environment = {k: v for k, v in os.environ.items() if k != "PDREC_DATA"}
        environment |= {
            "PYTHONPATH": str(ROOT),
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
            "XLA_FLAGS": " ".join(f"--{name}={value.lower()}" for name, value in hurry.items()),
        }
        process = subprocess.Popen(
            [sys.executable, "-m", "pdrec_jax.main", *flags],
            cwd=folder,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        log, end = tmp_path / "metrics.jsonl", time.monotonic() + 300
        try:
            while not (log.is_file() and log.read_text().count("\n") >= 2):
                assert process.poll() is None, process.stderr and process.stderr.read()
                assert time.monotonic() < end
                time.sleep(0.005)
        finally:
            process.send_signal(signal.SIGKILL)
            process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert not (tmp_path / "results.json").exists()
        assert_same_diffusion(call(tmp_path, DIFFUSION), tmp_path, strict)


class TestBadEnds:
    def test_a_checkpoint_of_another_shape(self, strict, call, tmp_path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(phases, "diffusion_phase", None)
            with pytest.raises(TypeError):
                call(tmp_path)
        Store(tmp_path / "diffusion").save("best", 1, {"item_kernel": np.zeros((3, 2))}, {})
        before = stamps(tmp_path)
        done = call(tmp_path)
        assert done.status == 2
        last = done.err.splitlines()[-1]
        assert last.startswith(
            f"error: {tmp_path / 'diffusion' / 'best'}: checkpoint of another mo"
        )
        assert done.err.count("error:") == 1
        assert "Traceback" not in done.err
        assert stamps(tmp_path).keys() == before.keys()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SimpleNamespace]:
    """A file system of 4 MB, with `fill()` and `free()`; skipped where none may be mounted."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(path)]
    try:
        mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("a file system cannot be mounted here")

    def fill() -> None:
        with contextlib.suppress(OSError), (path / "filler").open("ab", buffering=0) as filler:
            while True:
                filler.write(bytes(4096))

    try:
        yield SimpleNamespace(path=path / "run", fill=fill, free=(path / "filler").unlink)
    finally:
        subprocess.run(["umount", str(path)], check=True)


class TestFullDisk:
    @pytest.mark.parametrize(
        ("place", "name", "message"),
        [
            (Workdir, "begin", r"run: cannot write, disk full|config\.json: cannot write, disk f"),
            (MetricLog, "write", r"metrics\.jsonl: cannot write, disk full"),
            (Store, "save", r"diffusion/state: disk full while saving step 1; free some space and"),
            (Workdir, "finish_phase", r"phases/diffusion\.npz: cannot write, disk full"),
            (Workdir, "save_per_user", r"per_user\.npz: cannot write, disk full"),
            (Workdir, "finish", r"results\.json: cannot write, disk full"),
        ],
    )
    def test_says_so_and_goes_on_when_there_is_space(
        self, strict, call, disk, monkeypatch, place, name, message
    ) -> None:
        function = getattr(place, name)

        def filled(*arguments: Any, **named: Any) -> Any:
            disk.fill()
            return function(*arguments, **named)

        with monkeypatch.context() as patch:
            patch.setattr(place, name, filled)
            done = call(disk.path, DIFFUSION, "--config.save_seconds=0")
        assert done.status == 2
        assert re.search(f"^error: .*{message}", done.err.splitlines()[-1])
        assert done.err.count("error:") == 1
        assert "Traceback" not in done.err
        assert done.results is None
        assert_whole(disk.path)
        disk.free()
        assert_same_diffusion(call(disk.path, DIFFUSION), disk.path, strict)
