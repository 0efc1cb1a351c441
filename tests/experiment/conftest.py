"""A job with everything shrunk, run through the command line as often as a test likes."""

import contextlib
import dataclasses
import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import pytest
from jax._src import compiler

from pdrec_jax.diffusion import stage as diffusion_stage
from pdrec_jax.encoders import stage as encoder_stage
from pdrec_jax.main import main
from pdrec_jax.report import plots

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


@dataclasses.dataclass(frozen=True)
class Done:
    """A run that has ended, one way or another, and its directory."""

    path: Path
    status: int
    out: str
    err: str

    @property
    def results(self) -> dict[str, Any]:
        """results.json; empty where there is none."""
        path = self.path / "results.json"
        return json.loads(path.read_text()) if path.is_file() else {}

    @property
    def lasting(self) -> dict[str, Any]:
        """The results but for what depends on the machine's mood."""
        mood = ("times", "peak_memory_bytes")
        return {key: value for key, value in self.results.items() if key not in mood}

    @property
    def losses(self) -> list[dict[str, Any]]:
        """metrics.jsonl, but for the seconds."""
        lines = (self.path / "metrics.jsonl").read_text().splitlines()
        return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]

    @property
    def stamps(self) -> dict[str, int]:
        """When each file was written."""
        files = [path for path in self.path.rglob("*") if path.is_file()]
        return {str(path.relative_to(self.path)): path.stat().st_mtime_ns for path in files}

    @property
    def half_written(self) -> list[str]:
        """Files and directories that bear a temporary name."""
        names = [path.name for path in self.path.rglob("*")]
        return [name for name in names if name.endswith((".tmp", "orbax-checkpoint-tmp"))]


Call = Callable[..., Done]


def remembered(function: Callable[..., Any], key: Callable[..., str]) -> Callable[..., Any]:
    """A model is a static argument of compiled code: the same config gets the same one again."""
    made: dict[str, Any] = {}

    def again(*arguments: Any) -> Any:
        name = key(*arguments)
        if name not in made:
            made[name] = function(*arguments)
        return made[name]

    return again


@pytest.fixture(scope="session")
def hurry() -> dict[str, str]:
    """Options of XLA that halve the time of compiling; none where XLA no longer knows them."""
    options = {"xla_cpu_use_fusion_emitters": "False"}
    try:
        jax.jit(lambda x: x + 1, compiler_options=options)(1.0)
    except Exception:
        return {}
    return options


@pytest.fixture(scope="session")
def quickly(hurry: dict[str, str]) -> Callable[[], contextlib.AbstractContextManager[None]]:
    """`with quickly():` compiles with little care, and each program once."""
    options_of = compiler.get_compile_options
    makers = {
        diffusion_stage: lambda config, split: f"{config.to_json()} {split.train.num_items}",
        encoder_stage: lambda config, plugins, items: (
            f"{config.seed} {config.encoder.to_json()} {plugins} {items}"
        ),
    }
    models = {stage: remembered(stage.make_model, key) for stage, key in makers.items()}

    def hurried(*arguments: Any, **named: Any) -> Any:
        return options_of(*arguments, **named | {"env_options_overrides": hurry})

    @contextlib.contextmanager
    def quickly() -> Iterator[None]:
        with (
            pytest.MonkeyPatch.context() as patch,
            # The same in every call, since it decides on what was compiled before; optax mixes
            # dtypes.
            jax.numpy_rank_promotion("raise"),
            jax.numpy_dtype_promotion("standard"),
        ):
            patch.setattr(compiler, "get_compile_options", hurried)
            for stage, make in models.items():
                patch.setattr(stage, "make_model", make)
            before = jax.config.values["jax_disable_most_optimizations"]
            jax.config.update("jax_disable_most_optimizations", True)
            try:
                yield
            finally:
                jax.config.update("jax_disable_most_optimizations", before)

    return quickly


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The current directory of all runs, with config.py and no logs anywhere near."""
    folder = tmp_path_factory.mktemp("experiment")
    (folder / "config.py").write_text(CONFIG)
    return folder


@pytest.fixture(scope="session")
def call(folder: Path, quickly: Callable[[], contextlib.AbstractContextManager[None]]) -> Call:
    """`call(workdir, *flags)` runs the command line, without drawing unless `draw` is set."""

    def call(workdir: Path, *flags: str, draw: bool = False) -> Done:
        out, err = io.StringIO(), io.StringIO()
        with (
            quickly(),
            pytest.MonkeyPatch.context() as patch,
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            patch.chdir(folder)
            patch.delenv("PDREC_DATA", raising=False)
            if not draw:
                patch.setattr(plots, "write_plots", lambda *_: [])
            status = main(["main", "--config=config.py", f"--workdir={workdir}", *flags])
        return Done(Path(workdir), status, out.getvalue(), err.getvalue())

    return call


@pytest.fixture(scope="session")
def opened() -> tuple[list[str], list[Path]]:
    """Two lists: put a directory into the first, and files opened for writing join the second."""
    watched: list[str] = []
    found: list[Path] = []

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        # Python never lets go of an audit hook: it does nothing while nobody watches.
        if watched and event == "open" and isinstance(arguments[0], str):
            path, mode, flags = arguments[0], str(arguments[1] or ""), arguments[2]
            if path.startswith(watched[0]) and (set(mode) & set("wax+") or flags & os.O_WRONLY):
                found.append(Path(path))

    sys.addaudithook(note)
    return watched, found


@pytest.fixture(scope="session")
def strict(folder: Path, call: Call, opened: tuple[list[str], list[Path]]) -> Done:
    """An unbroken run of the whole job under `strict`."""
    watched, _ = opened
    watched.append(str(folder / "strict"))
    done = call(folder / "strict", draw=True)
    watched.clear()
    assert done.status == 0, done.err
    return done


@pytest.fixture(scope="session")
def reference(folder: Path, call: Call) -> Done:
    """A run of the whole job under `reference`."""
    return call(folder / "reference", "--config.protocol=reference")
