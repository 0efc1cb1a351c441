"""The command line of the reproduction, on a config of a simulated log."""

import contextlib
import io
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from pdrec_jax.reproduce.__main__ import main

CONFIG = """
from pdrec_jax.settings import default_config, put

def get_config():
    config = default_config()
    fields = {
        "name": "toy", "data.target": "none", "progress": False, "evaluation.negatives": 20,
        "simulation.num_users": 120, "simulation.num_items": 300, "simulation.mean_length": 6.0,
        "simulation.overrides": (("diffusion.epochs", 1), ("encoder.epochs", 1)),
        "diffusion.hidden": (16,), "diffusion.steps": 3, "diffusion.embedding_size": 4,
        "diffusion.batch_size": 64, "diffusion.block": 128,
        "encoder.width": 8, "encoder.blocks": 1, "encoder.max_length": 16,
        "encoder.batch_size": 64, "encoder.block": 128, "encoder.first_evaluation": 1,
        "dpa.coarse": 10, "dpa.fine": 2, "nns.kept": 16,
    }
    for field, value in fields.items():
        put(config, field, value)
    return config
"""
SIMULATED = "--config.data.source=simulated"


@pytest.fixture
def reproduce(tmp_path: Path, monkeypatch):
    """`reproduce(*flags)` runs the command line in a folder with configs/toy.py."""
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "toy.py").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PDREC_DATA", raising=False)

    def reproduce(*flags: str) -> SimpleNamespace:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = main(["--datasets=toy", *flags])
        return SimpleNamespace(status=status, out=out.getvalue(), err=err.getvalue())

    return reproduce


@pytest.fixture
def simulated() -> str:
    return SIMULATED


@pytest.fixture
def quick_compilation():
    """Halves the time spent in the compiler, which is nearly all of it."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
