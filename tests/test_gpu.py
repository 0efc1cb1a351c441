"""The whole job on a GPU against the same job on CPUs: other kernels, the same draws and figures.

Products of matrices are asked for in full float32, which GPUs otherwise round to fewer digits.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
SIZES = (
    "simulation.num_users=400",
    "simulation.num_items=500",
    "diffusion.hidden=(32,)",
    "diffusion.batch_size=100",
    "diffusion.learning_rate=0.01",
    "diffusion.epochs=4",
    "dpa.coarse=20",
    "encoder.max_length=32",
    "encoder.width=16",
    "encoder.batch_size=100",
    "encoder.epochs=4",
    "encoder.first_evaluation=1",
)
JOBS = {
    "two seeds together": ("seeds=2", "encoder.name=sasrec"),
    "windows": (
        "encoder.name=gru4rec",
        "diffusion.noise_fraction=0.25",
        "diffusion.error_fraction=0.25",
    ),
    "views": ("encoder.name=cl4srec", "protocol=reference", "diffusion.both=True"),
}
pytestmark = pytest.mark.gpu


def run(platform: str, workdir: Path, fields: tuple[str, ...]) -> dict[str, Any]:
    """Runs the job on a platform; what its results say, and its losses by seed, stage and epoch."""
    given = (*SIZES, *fields, "data.source=simulated", "progress=False")
    words = ["--config=configs/toy.py:readme", *(f"--config.{field}" for field in given)]
    done = subprocess.run(
        [sys.executable, "-m", "pdrec_jax.main", *words, f"--workdir={workdir}"],
        cwd=ROOT,
        env={
            **os.environ,
            "JAX_PLATFORMS": platform,
            "JAX_DEFAULT_MATMUL_PRECISION": "highest",
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    losses = {}
    for file in workdir.rglob("metrics.jsonl"):
        seed = file.parent.relative_to(workdir)
        for line in map(json.loads, file.read_text().splitlines()):
            losses[seed, line["stage"], line["epoch"]] = line["loss"]
    seeds = sorted(workdir.glob("seed-*")) or [workdir]
    results = [json.loads((seed / "results.json").read_text()) for seed in seeds]
    return {"losses": losses, "results": results}


@pytest.mark.parametrize("job", JOBS)
def test_a_job_on_a_gpu_is_the_job_on_cpus(job, tmp_path) -> None:
    there, here = (run(name, tmp_path / name, JOBS[job]) for name in ("cuda", "cpu"))
    assert there["losses"].keys() == here["losses"].keys()
    for key, loss in here["losses"].items():
        assert there["losses"][key] == pytest.approx(loss, rel=2e-3), key
    for ours, theirs in zip(here["results"], there["results"], strict=True):
        assert theirs["device"] != ours["device"]
        for model, other in zip(ours["models"], theirs["models"], strict=True):
            assert model["key"] == other["key"]
            for ranking in ("sampled", "full"):
                found, expected = (np.array(list(one[ranking].values())) for one in (other, model))
                np.testing.assert_allclose(found, expected, atol=0.02, err_msg=model["key"])
