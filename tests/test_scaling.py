"""Whole jobs on meshes and in processes of their own: the same metrics, killed or not.

make test ARGS="-m slow tests/test_scaling.py"
"""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
KILLS = 20
CONFIG = """
from pdrec_jax.settings import default_config, put

def get_config():
    config = default_config()
    fields = {
        "name": "tiny", "data.target": "none", "progress": False, "evaluation.negatives": 20,
        "simulation.num_users": 120, "simulation.num_items": 300, "simulation.mean_length": 6.0,
        "simulation.overrides": (("diffusion.epochs", 6), ("encoder.epochs", 6)),
        "diffusion.hidden": (16,), "diffusion.steps": 3, "diffusion.embedding_size": 4,
        "diffusion.batch_size": 30, "diffusion.block": 128, "diffusion.learning_rate": 1e-3,
        "encoder.width": 8, "encoder.blocks": 1, "encoder.max_length": 16,
        "encoder.batch_size": 30, "encoder.block": 128, "encoder.first_evaluation": 1,
        "encoder.variants": ("hbr+nns+dpa",), "dpa.coarse": 10, "dpa.fine": 2, "nns.kept": 16,
        "save_seconds": 0.0,
    }
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
        "encoder.first_evaluation": 1, "encoder.variants": ("hbr+nns+dpa",), "nns.kept": 16,
        "save_seconds": 0.0,
    }
    for field, value in fields.items():
        put(config, field, value)
    return config
"""


class Job:
    """A whole job in some processes.

    Args:
      place: of config, workdir and logs.
      name: of the workdir.
      processes: how many.
      devices: of each process.
      mesh: `config.mesh`, the config's own for none.
      config: the file.
    """

    def __init__(
        self,
        place: Path,
        name: str,
        processes: int,
        devices: int,
        mesh: str = "",
        config: str = "config.py",
    ):
        self.path = place / name
        with socket.socket() as found:
            found.bind(("localhost", 0))
            port = found.getsockname()[1]
        environ = {
            **os.environ,
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
            "PYTHONPATH": str(ROOT),
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
            "JAX_COMPILATION_CACHE_DIR": str(place / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
        }
        command = [sys.executable, "-m", "pdrec_jax.main", f"--config={config}"]
        command += [f"--config.mesh={mesh}"] * bool(mesh) + [f"--workdir={name}"]
        self.logs = [place / f"{name}.{number}.log" for number in range(processes)]
        self.running = []
        for number, log in enumerate(self.logs):
            place_of = [f"--coordinator=localhost:{port}", f"--num_processes={processes}"]
            with log.open("a") as out:
                self.running.append(
                    subprocess.Popen(
                        [*command, *place_of, f"--process_id={number}"],
                        cwd=place,
                        env=environ,
                        stdout=out,
                        stderr=out,
                    )
                )

    def signal(self, number: int) -> None:
        """Signals all processes, and waits for their ends."""
        for process in self.running:
            process.send_signal(number)
        for process in self.running:
            process.wait(600)

    def wait_for_lines(self, count: int) -> None:
        """Waits until the metrics have so many lines."""
        lines = self.path / "metrics.jsonl"
        while not (lines.is_file() and lines.read_text().count("\n") >= count):
            time.sleep(0.05)
            assert self.running[0].poll() is None

    def finish(self) -> dict[str, Any]:
        """Waits for the end; returns the metrics of all models."""
        for process, log in zip(self.running, self.logs, strict=True):
            assert process.wait(3600) == 0, log.read_text()[-3000:]
        models = json.loads((self.path / "results.json").read_text())["models"]
        kinds = ("sampled", "full", "validation", "best_epoch")
        return {model["key"]: {kind: model[kind] for kind in kinds} for model in models}


def flat(metrics: dict[str, Any], before: str = "") -> Iterator[tuple[str, float]]:
    for name, value in metrics.items():
        if isinstance(value, dict):
            yield from flat(value, f"{before}{name}/")
        else:
            yield before + name, value


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("scaling")
    (place / "config.py").write_text(CONFIG)
    (place / "toy.py").write_text(TOY)
    return place


@pytest.fixture(scope="module")
def alone(place: Path) -> dict[str, float]:
    """Metrics of one device."""
    return dict(flat(Job(place, "alone", 1, 1, "1,1").finish()))


@pytest.fixture(scope="module")
def unbroken(place: Path) -> tuple[dict[str, float], float]:
    """Metrics of four processes, and the seconds that they took, compiling included."""
    begun = time.monotonic()
    metrics = dict(flat(Job(place, "unbroken", 4, 1, "2,2").finish()))
    return metrics, time.monotonic() - begun


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
        (4, 1, "2,2"),
        (4, 2, "4,2"),
    ],
)
def test_metrics_are_those_of_one_device(place, alone, processes, devices, mesh) -> None:
    name = f"{processes}x{devices}-{mesh}"
    found = dict(flat(Job(place, name, processes, devices, mesh).finish()))
    assert found == pytest.approx(alone, abs=1e-4)


@pytest.fixture(scope="module")
def small_toy(place: Path) -> dict[str, float]:
    """Metrics of Toy's settings, windows included, on one device."""
    return dict(flat(Job(place, "toy", 1, 1, config="toy.py").finish()))


@pytest.mark.parametrize(
    ("processes", "devices", "mesh"), [(1, 8, ""), (1, 8, "4,2"), (1, 8, "1,8"), (2, 2, "2,2")]
)
def test_toy_is_the_same_on_a_mesh(place, small_toy, processes, devices, mesh) -> None:
    name = f"toy-{processes}x{devices}-{mesh}"
    found = dict(flat(Job(place, name, processes, devices, mesh, "toy.py").finish()))
    assert found == pytest.approx(small_toy, abs=1e-4)


@pytest.mark.parametrize("seed", range(KILLS))
def test_a_killed_job_goes_on_elsewhere(place, alone, unbroken, seed) -> None:
    metrics, seconds = unbroken
    job = Job(place, f"killed-{seed}", 4, 1, "2,2")
    time.sleep(random.Random(seed).uniform(0, seconds))
    job.signal(signal.SIGKILL)
    if seed % 2:  # on the same mesh every bit is the same
        found = dict(flat(Job(place, f"killed-{seed}", 4, 1, "2,2").finish()))
        assert found == metrics
    else:
        found = dict(flat(Job(place, f"killed-{seed}", 2, 1, "1,2").finish()))
        assert found == pytest.approx(alone, abs=1e-4)


def test_a_killed_toy_goes_on_elsewhere(place, small_toy) -> None:
    job = Job(place, "toy-killed", 2, 2, "2,2", "toy.py")
    job.wait_for_lines(3)
    job.signal(signal.SIGKILL)
    found = dict(flat(Job(place, "toy-killed", 1, 8, "", "toy.py").finish()))
    assert found == pytest.approx(small_toy, abs=1e-4)


def test_a_signal_to_one_process_saves_in_all(place, unbroken) -> None:
    metrics, _ = unbroken
    job = Job(place, "told", 4, 1, "2,2")
    job.wait_for_lines(2)
    job.running[2].send_signal(signal.SIGTERM)
    assert [process.wait(600) for process in job.running] == [128 + signal.SIGTERM] * 4
    assert "saved after epoch" in job.logs[0].read_text()
    assert dict(flat(Job(place, "told", 4, 1, "2,2").finish())) == metrics
