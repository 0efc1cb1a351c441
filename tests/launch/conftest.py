"""Running the launchers, on a PATH where what they call is a stub that notes its arguments."""

import dataclasses
import os
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
JOB = ("--config=configs/toy.py", "--workdir=/shared/run one", '--config.name=it\'s $HOME "x"')


@dataclasses.dataclass(frozen=True)
class Done:
    status: int
    out: str
    err: str

    @property
    def commands(self) -> list[list[str]]:
        """The printed commands, as the words that a shell would make of them."""
        return [shlex.split(line) for line in self.out.splitlines()]


@pytest.fixture
def launch(tmp_path: Path) -> Callable[..., Done]:
    """Runs ``launch/NAME`` with arguments, and with variables by keyword."""

    def run(name: str, *arguments: str, timeout: float = 60, **variables: str) -> Done:
        path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("PDREC_", "SLURM"))}
        done = subprocess.run(
            [ROOT / "launch" / name, *arguments],
            env={**inherited, "PATH": path, **variables},
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture
def stub(tmp_path: Path) -> Callable[[str, str], Path]:
    """Puts a script on the PATH; returns the file to which ``$LOG`` in it points."""

    def make(name: str, script: str) -> Path:
        log = tmp_path / f"{name}.log"
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/usr/bin/env bash\nLOG={shlex.quote(str(log))}\n{script}\n")
        path.chmod(0o755)
        return log

    return make


@pytest.fixture
def job() -> tuple[str, ...]:
    """Arguments of the main job, with a space, quotes and a dollar among them."""
    return JOB
