"""Whole jobs on meshes and in processes of their own: the same metrics, killed or not.

Three kills are among the quick tests. The rest takes 20 minutes of a processor and more:

make test ARGS="-n0 -s -m slow tests/test_scaling.py"
"""

import contextlib
import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
KILLS, EPOCHS = 20, 4
BASE, ALL = "sasrec", "sasrec+hbr+nns+dpa"
PHASES = ("preparing", "diffusion", "preferences", BASE, ALL, "report")
CONFIG = f"""
from pdrec_jax.settings import default_config, put

def get_config():
    config = default_config()
    fields = {{
        "name": "tiny", "data.target": "none", "progress": False, "evaluation.negatives": 20,
        "simulation.num_users": 120, "simulation.num_items": 300, "simulation.mean_length": 6.0,
        "simulation.overrides": (("diffusion.epochs", {EPOCHS}), ("encoder.epochs", {EPOCHS})),
        "diffusion.hidden": (16,), "diffusion.steps": 3, "diffusion.embedding_size": 4,
        "diffusion.batch_size": 30, "diffusion.block": 128, "diffusion.learning_rate": 1e-3,
        "encoder.width": 8, "encoder.blocks": 1, "encoder.max_length": 16,
        "encoder.batch_size": 30, "encoder.block": 128, "encoder.first_evaluation": 1,
        "encoder.variants": ("base", "hbr+nns+dpa"), "dpa.coarse": 10, "dpa.fine": 2,
        "nns.kept": 16, "save_seconds": 0.0, "save_async": "on",
        "encoder.row_adam_above": 100,  # on one device; on a mesh Adam is dense
    }}
    for field, value in fields.items():
        put(config, field, value)
    return config
"""
TOY = """
import runpy
from pathlib import Path

import pdrec_jax
from pdrec_jax.settings import put

def get_config():
    path = Path(pdrec_jax.__file__).parents[1] / "configs/toy.py"
    config = runpy.run_path(str(path))["get_config"]()
    small = ("diffusion.epochs", 5), ("diffusion.learning_rate", 2e-3), ("encoder.epochs", 3)
    fields = {
        "data.target": "none", "progress": False,
        "simulation.num_users": 900, "simulation.num_items": 700,
        "simulation.num_source_items": 300, "simulation.overrides": small,
        "diffusion.hidden": (32,), "encoder.width": 8, "encoder.max_length": 32,
        "encoder.first_evaluation": 1, "encoder.variants": ("base", "hbr+nns+dpa"), "nns.kept": 16,
        "save_seconds": 0.0,
    }
    for field, value in fields.items():
        put(config, field, value)
    return config
"""
# JAX keeps what the first process compiles, and on processors has another key for it in each of
# them; with one key for all, the others do not compile everything anew at every start.
SITE = """
from jax._src import cache_key
if hasattr(cache_key, "_hash_devices"):
    cache_key._hash_accelerator_config = cache_key._hash_devices
"""
# What is said where a process came too late for the others on a busy machine, or was lost.
LATE = re.compile(r"gloo|deadline_exceeded|heartbeat|connection (reset|closed)", re.IGNORECASE)
PATIENCE = 1800  # seconds

Shape = tuple[int, int, str]  # processes, devices of each, config.mesh or "" for the config's own
ALONE, FOUR = (1, 1, "1,1"), (4, 1, "2,2")


class Job:
    """A whole job, started by launch/local.sh.

    Args:
      place: of config, workdir and logs.
      name: of the workdir.
      processes: how many.
      devices: of each process.
      mesh: `config.mesh`, the config's own for none.
      config: the file.
    """

    started: ClassVar[list["Job"]] = []

    def __init__(
        self,
        place: Path,
        name: str,
        processes: int,
        devices: int,
        mesh: str,
        config: str = "config.py",
    ):
        self.path, self._logs = place / name, place / f"{name}-logs"
        self._logs.mkdir(exist_ok=True)
        self._told = self._logs / "process-0.log"
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("PDREC_", "SLURM"))}
        environ = {
            **inherited,
            "PYTHON": sys.executable,
            "PYTHONPATH": f"{place / 'site'}:{ROOT}",
            "XLA_FLAGS": "--xla_cpu_use_fusion_emitters=false",
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
            "JAX_ENABLE_COMPILATION_CACHE": "true",
            "JAX_COMPILATION_CACHE_DIR": str(place / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
        }
        with self._told.open("w") as out:
            self.launcher = subprocess.Popen(
                [
                    *(ROOT / "launch/local.sh", f"--processes={processes}", f"--devices={devices}"),
                    *(f"--logs={self._logs}", "--", f"--config={config}", f"--workdir={name}"),
                    *([f"--config.mesh={mesh}"] if mesh else []),
                ],
                cwd=place,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        self.started.append(self)

    @property
    def said(self) -> str:
        return "".join(log.read_text() for log in sorted(self._logs.iterdir()))

    @property
    def phase(self) -> str:
        """What the run does now, by what it has said and written; empty once it is done."""
        if "] data: " not in self._told.read_text():
            return "preparing"
        for phase in PHASES[1:-1]:
            if not (self.path / f"phases/{phase}.json").exists():
                # What is left of the last phase is its evaluation.
                trained = phase == ALL and self.epochs(ALL) == EPOCHS
                return "report" if trained else phase
        return "" if (self.path / "results.json").exists() else "report"

    def epochs(self, stage: str) -> int:
        log = self.path / "metrics.jsonl"
        return log.read_text().count(f'"stage": "{stage}"') if log.is_file() else 0

    def numbers(self) -> list[int]:
        """The running processes' ids."""
        parent = str(self.launcher.pid)
        listed = subprocess.run(
            ["ps", "-o", "pid=", "--ppid", parent], capture_output=True, text=True, check=True
        )
        return [int(number) for number in listed.stdout.split()]

    def wait(self) -> int:
        return self.launcher.wait(PATIENCE)

    def kill(self) -> None:
        """SIGKILL to all processes and the launcher."""
        os.killpg(self.launcher.pid, signal.SIGKILL)
        self.launcher.wait()

    def kill_one(self, process: int) -> None:
        """SIGKILL to one process; the launcher ends the others."""
        with contextlib.suppress(ProcessLookupError, IndexError):  # it came too late, and ends
            os.kill(self.numbers()[process], signal.SIGKILL)
        assert self.wait()

    def reach(self, phase: str, *, epochs: int = 0, at_most: float = 0.0) -> bool:
        """Waits for a phase, and in it for epochs and seconds; False if the job ends before."""
        end = time.monotonic() + PATIENCE
        while PHASES.index(self.phase or "report") < PHASES.index(phase):
            if self.launcher.poll():
                return False
            assert time.monotonic() < end
            time.sleep(0.005)
        while self.phase == phase and self.epochs(phase) < epochs:
            if self.launcher.poll():
                return False
            time.sleep(0.005)
        end = time.monotonic() + at_most
        while self.phase == phase and time.monotonic() < end:
            time.sleep(0.005)
        return True

    def require_late(self) -> None:
        """Checks that the job failed because a process came too late for another.

        Where processes fight for few cores, one can come later than gloo waits for it. All end
        then, and users are told that the same command goes on.
        """
        assert LATE.search(self.said), self.said[-3000:]
        print(f"{self.path.name}: a process came too late, the same command goes on")


def begin(
    place: Path,
    name: str,
    shape: Shape,
    phase: str,
    at_most: float,
    epochs: int = 0,
    config: str = "config.py",
) -> Job:
    """Starts a job, and waits until it is some epochs and up to some seconds in a phase."""
    for _ in range(5):
        job = Job(place, name, *shape, config)
        if job.reach(phase, epochs=epochs, at_most=at_most):
            return job
        job.require_late()
    raise AssertionError(job.said[-3000:])


def finish(place: Path, name: str, shape: Shape, config: str = "config.py") -> Path:
    """Runs a job to its end; returns its workdir."""
    for _ in range(5):
        job = Job(place, name, *shape, config)
        if not job.wait():
            return job.path
        job.require_late()
    raise AssertionError(job.said[-3000:])


def metrics(path: Path) -> dict[str, float]:
    """The metrics of all models."""
    models = json.loads((path / "results.json").read_text())["models"]
    kinds = ("sampled", "full", "validation", "best_epoch")
    assert [model["key"] for model in models] == ["diffusion", BASE, ALL]
    return dict(flat({model["key"]: {kind: model[kind] for kind in kinds} for model in models}))


def flat(found: dict[str, Any], before: str = "") -> Iterator[tuple[str, float]]:
    for name, value in found.items():
        if isinstance(value, dict):
            yield from flat(value, f"{before}{name}/")
        else:
            yield before + name, value


def epochs(path: Path) -> list[dict[str, Any]]:
    """The lines of all epochs, but for the time."""
    lines = map(json.loads, (path / "metrics.jsonl").read_text().splitlines())
    return [{**line, "seconds": 0} for line in lines]


def require_close(what: str, found: Path, expected: Path) -> None:
    """Final metrics differ by less than 1e-4, losses of epochs by such a share; prints by what."""
    one, other = metrics(found), metrics(expected)
    assert one.keys() == other.keys()
    largest = max(abs(one[name] - other[name]) for name in one)
    shares = [
        abs(mine["loss"] - its["loss"]) / its["loss"]
        for mine, its in zip(epochs(found), epochs(expected), strict=True)
    ]
    print(f"\n{what}: metrics differ by {largest:.1e}, losses by {max(shares):.1e} of them")
    assert largest < 1e-4
    assert max(shares) < 1e-4


def require_same_bits(found: Path, expected: Path) -> None:
    """Metrics, losses of all epochs and ranks of all users are the same."""
    assert metrics(found) == metrics(expected)
    assert epochs(found) == epochs(expected)
    with np.load(found / "per_user.npz") as own, np.load(expected / "per_user.npz") as others:
        assert own.files == others.files
        for name in own.files:
            np.testing.assert_array_equal(own[name], others[name])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    place = tmp_path_factory.mktemp("scaling")
    (place / "config.py").write_text(CONFIG)
    (place / "toy.py").write_text(TOY)
    (place / "site").mkdir()
    (place / "site/sitecustomize.py").write_text(SITE)
    yield place
    for job in Job.started:  # of tests that failed
        if job.launcher.poll() is None:
            job.kill()


@pytest.fixture(scope="module")
def alone(place: Path) -> Path:
    """A job on one device."""
    return finish(place, "alone", ALONE)


@pytest.fixture(scope="module")
def unbroken(place: Path) -> tuple[Path, dict[str, float]]:
    """A job in four processes, and the seconds of its phases when everything is compiled."""
    path = finish(place, "unbroken", FOUR)
    times = []
    while len(times) != len(PHASES) + 1:  # one in which a process came too late is of no use
        name = f"timed-{random.random()}"
        job, times = Job(place, name, *FOUR), [time.monotonic()]
        for phase in PHASES[1:]:
            job.reach(phase)
            times.append(time.monotonic())
        if not job.wait():
            times.append(time.monotonic())
    seconds = [end - begun for begun, end in itertools.pairwise(times)]
    return path, dict(zip(PHASES, seconds, strict=True))


def test_three_kills(place: Path, alone: Path) -> None:
    """Lost amid a phase three times, each time taken up by another number of processes."""
    draw, two = random.Random(0), (2, 1, "2,1")
    begin(place, "killed", two, "diffusion", draw.uniform(0, 0.5), epochs=2).kill()
    begin(place, "killed", ALONE, BASE, draw.uniform(0, 0.5), epochs=2).kill()
    begin(place, "killed", two, ALL, draw.uniform(0, 0.5), epochs=2).kill_one(draw.randrange(2))
    require_close("three kills", finish(place, "killed", ALONE), alone)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "devices", "mesh"),
    [
        (1, 2, "2,1"),
        (1, 4, "4,1"),
        (1, 8, "8,1"),
        (1, 8, "4,2"),
        (1, 8, "1,8"),
        (2, 1, "2,1"),
        (2, 1, "1,2"),
        (4, 1, "4,1"),
        (4, 1, "2,2"),
        (4, 2, "4,2"),
    ],
)
def test_metrics_are_those_of_one_device(place, alone, processes, devices, mesh) -> None:
    path = finish(place, f"{processes}x{devices}-{mesh}", (processes, devices, mesh))
    require_close(f"{processes} processes of {devices} devices, mesh ({mesh})", path, alone)


@pytest.fixture(scope="module")
def small_toy(place: Path) -> Path:
    """Toy's settings, windows included, on one device."""
    return finish(place, "toy", ALONE, "toy.py")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "devices", "mesh"), [(1, 8, ""), (1, 8, "4,2"), (1, 8, "1,8"), (2, 2, "2,2")]
)
def test_toy_is_the_same_on_a_mesh(place, small_toy, processes, devices, mesh) -> None:
    path = finish(place, f"toy-{processes}x{devices}-{mesh}", (processes, devices, mesh), "toy.py")
    require_close(f"Toy, {processes} processes of {devices}, mesh ({mesh})", path, small_toy)


@pytest.mark.slow
def test_a_killed_toy_goes_on_elsewhere(place, small_toy) -> None:
    begin(place, "toy-killed", (2, 2, "2,2"), "diffusion", 0.5, 2, "toy.py").kill()
    found = finish(place, "toy-killed", (1, 8, ""), "toy.py")
    require_close("Toy, killed in diffusion on (2, 2), on in (8, 1)", found, small_toy)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(KILLS))
def test_a_killed_job_goes_on_elsewhere(place, alone, unbroken, seed) -> None:
    path, seconds = unbroken
    draw, phase = random.Random(seed), PHASES[seed % len(PHASES)]
    at_most, same_mesh = draw.uniform(0, seconds[phase]), (seed + seed // len(PHASES)) % 2 == 1
    for attempt in range(5):  # one that is done too soon is no kill
        name = f"killed-{seed}-{attempt}"
        job = begin(place, name, FOUR, phase, at_most / 2**attempt)
        if at := job.phase:
            break
        job.wait()
    assert at
    done = [job.epochs(stage) for stage in ("diffusion", BASE, ALL)]
    if seed % 5 == 4:
        job.kill_one(draw.randrange(4))
    else:
        job.kill()
    there = FOUR if same_mesh else (2, 1, draw.choice(["1,2", "2,1"]))
    found = finish(place, name, there)
    require_close(f"kill {seed} in {at} after {done} epochs, on in {there}", found, alone)
    if same_mesh:  # every bit is the same
        require_same_bits(found, path)


@pytest.mark.slow
def test_a_signal_to_one_process_saves_in_all(place, unbroken) -> None:
    path, _ = unbroken
    job = Job(place, "told", *FOUR)
    while job.epochs("diffusion") < 2:
        time.sleep(0.05)
        assert job.launcher.poll() is None
    os.kill(job.numbers()[2], signal.SIGTERM)
    assert job.wait() == 128 + signal.SIGTERM
    assert "saved after epoch" in job.said
    require_same_bits(finish(place, "told", FOUR), path)
