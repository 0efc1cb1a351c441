"""The command line of the reproduction, on a config of a simulated log."""

import contextlib
import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from pdrec_jax import experiment
from pdrec_jax.checkpoints import Store
from pdrec_jax.data import sources
from pdrec_jax.encoders.stage import parse_variant
from pdrec_jax.evaluation.metrics import CUTOFFS
from pdrec_jax.reproduce.__main__ import main
from pdrec_jax.workdir import Workdir

CONFIG = """
from pdrec_jax.settings import default_config, put

def get_config():
    config = default_config()
    fields = {
        "name": "toy", "data.target": "amazon_toy", "progress": False,
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
def config_text() -> str:
    """Of the config that the command is run on."""
    return CONFIG


@pytest.fixture
def quick_compilation():
    """Halves the time spent in the compiler, which is nearly all of it."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def keys_of(config) -> list[str]:
    other = "position" if config.diffusion.weighting == "time" else "time"
    keys = [] if config.stage == "encoder" else ["diffusion", f"diffusion-{other}"]
    if config.stage != "diffusion":
        names = [parse_variant(v) for v in config.encoder.variants if v != "base"]
        keys += ["+".join([config.encoder.name, *plugins]) for plugins in [(), *names]]
    return keys


@pytest.fixture
def runs(monkeypatch):
    """The runs that were asked for; each leaves results at once.

    `runs.die_at` kills one, `runs.names` says what a run calls the model of a key, those of several
    seeds have `runs.comparisons`, and `runs.configs` has the config of each, by workdir.
    """

    class Runs(list):
        die_at = None
        names: ClassVar[dict[str, str]] = {}
        comparisons: ClassVar[list[dict[str, Any]]] = []
        configs: ClassVar[dict[str, ConfigDict]] = {}

    made = Runs()
    made.configs = {}

    def run(config, by_hand, workdir):
        made.append(workdir)
        config, files = experiment.resolve(config, by_hand)
        made.configs[workdir] = config
        source = "simulated" if files is None else "real"
        place = Workdir(workdir, config, source)
        place.begin({"source": source, "files": sources.listed(files)})
        if made.die_at == len(made):
            raise KeyboardInterrupt
        names = [f"NDCG@{k}" for k in CUTOFFS] + [f"HR@{k}" for k in CUTOFFS] + ["AUC", "MRR"]
        figures = {name: 0.23 for name in names}
        seeds = list(range(config.seed, config.seed + config.seeds))
        models: list[dict[str, Any]] = [{"key": key, "sampled": figures} for key in keys_of(config)]
        for model in models:
            if model["key"] in made.names:
                model["name"] = made.names[model["key"]]
            if len(seeds) > 1:
                model["deviation"] = {"sampled": dict.fromkeys(names, 0.001)}
        results = {"seed": config.seed, "stage": config.stage, "models": models,
                   "data": {"source": source}, "times": {"total": 2000.0},
                   "device": "cpu x1"}  # fmt: skip
        if len(seeds) > 1:
            results["seeds"] = seeds
            results["comparisons"] = made.comparisons
        ranks = [f"{key}/{kind}_rank" for key in keys_of(config) for kind in ("sampled", "full")]
        place.save_per_user(
            {"users": np.arange(3), **dict.fromkeys(ranks, np.arange(3, dtype=np.float32))}
        )
        if config.stage != "encoder":
            Store(workdir).save("preferences", 0, {"top": np.zeros(3)}, {})
            for key in keys_of(config):
                if key.startswith("diffusion"):
                    Store(Path(workdir) / key).save("best", 0, {"bias": np.zeros(3)}, {})
        place.finish(results)

    monkeypatch.setattr(experiment, "run", run)
    return made


@pytest.fixture
def real_log(tmp_path):
    rows = [f"{u},{u * 40 + i},{i}\n" for u in range(9) for i in range(30)]
    (tmp_path / "amazon_toy.csv").write_text("user_id,item_id,timestamp\n" + "".join(rows))
    return f"--config.data.dir={tmp_path}"
