"""A tiny run on a log whose ids are as nasty as text can be."""

import csv
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import pytest
from jax._src import compiler

from pdrec_jax.inspect.explain import explain
from pdrec_jax.inspect.explanation import Explanation
from pdrec_jax.inspect.trained import TrainedRun, open_run
from pdrec_jax.main import main

SETTINGS = {
    "name": "nasty",
    "progress": False,
    "data.user": "user",
    "data.item": "item",
    "data.time": "time",
    "evaluation.negatives": 20,
    "diffusion.hidden": (8,),
    "diffusion.steps": 3,
    "diffusion.embedding_size": 4,
    "diffusion.epochs": 2,
    "diffusion.learning_rate": 1e-2,
    "encoder.width": 8,
    "encoder.blocks": 1,
    "encoder.max_length": 8,
    "encoder.epochs": 1,
    "encoder.first_evaluation": 1,
    "dpa.coarse": 10,
    "dpa.fine": 3,
    "nns.kept": 16,
}
NASTY = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</style></title><b>bold</b>",
    "back\u202eward",
    "\x1b[31mred",
    "&lt;already&gt;",
    "a" * 255,
]


def write_log(path: Path, users: int = 40, items: int = 90) -> None:
    rng = random.Random(0)
    names = [*NASTY, *(f"item {number}" for number in range(items - len(NASTY)))]
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["user", "item", "time"])
        for user in range(users):
            name = '<i onclick="x()">& co' if user == 0 else f"user {user}"
            for step in range(3 + user % 14):
                # Small numbers of items come often, the nasty ones so among them.
                item = names[int(rng.random() ** 2 * items)]
                rows.writerow([name, item, 1_600_000_000 + user * 1000 + step * step * 86_400])


@pytest.fixture(scope="session")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config file beside the log that it names."""
    folder = tmp_path_factory.mktemp("inspect")
    write_log(folder / "log.csv")
    fields = {**SETTINGS, "data.target": str(folder / "log.csv"), "data.source": "real"}
    (folder / "config.py").write_text(
        "from pdrec_jax.settings import default_config, put\n\n"
        f"def get_config():\n    config = default_config()\n    for item in {fields!r}.items():\n"
        "        put(config, *item)\n    return config\n"
    )
    return folder / "config.py"


def hurried() -> Callable[..., Any]:
    """Compiles without the part of XLA that takes half of its time, where XLA knows the option."""
    options = {"xla_cpu_use_fusion_emitters": "False"}
    try:
        jax.jit(lambda x: x + 1, compiler_options=options)(1.0)
    except Exception:
        options = {}
    before = compiler.get_compile_options
    return lambda *given, **named: before(*given, **named | {"env_options_overrides": options})


@pytest.fixture(scope="session")
def train(config: Path) -> Callable[..., Path]:
    """`train(name, *flags)` runs the main job, compiled with little care; returns its workdir."""

    def train(name: str, *flags: str) -> Path:
        workdir = config.parent / name
        before = jax.config.values["jax_disable_most_optimizations"]
        with jax.numpy_dtype_promotion("standard"), pytest.MonkeyPatch.context() as patch:
            patch.setattr(compiler, "get_compile_options", hurried())
            patch.setattr("pdrec_jax.report.plots.write_plots", lambda *_: [])
            jax.config.update("jax_disable_most_optimizations", True)
            try:
                assert main(["main", f"--config={config}", f"--workdir={workdir}", *flags]) == 0
            finally:
                jax.config.update("jax_disable_most_optimizations", before)
        return workdir

    return train


@pytest.fixture(scope="session")
def workdir(train: Callable[..., Path]) -> Path:
    """A finished run of the default variants under `strict`."""
    return train("strict")


@pytest.fixture(scope="session")
def run(workdir: Path) -> TrainedRun:
    """The same, opened."""
    return open_run(workdir)


@pytest.fixture(scope="session")
def told(run: TrainedRun) -> Explanation:
    """Of the user with the longest history."""
    train = run.given.split.train
    return explain(run, str(train.user_ids[train.lengths.argmax()]))
