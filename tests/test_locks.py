"""One run at a time in a directory: refused in one line, and never for somebody who died."""

import contextlib
import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pdrec_jax import locks
from pdrec_jax.errors import UserError
from pdrec_jax.locks import NAME, locked, require_unlocked

ROOT = Path(__file__).resolve().parents[1]
HOLD = """
import sys
from pathlib import Path
from pdrec_jax.locks import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen]:
    """Another process that holds the lock until its input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def refuse(directory: Path) -> str:
    with pytest.raises(UserError) as told, locked(directory):
        pytest.fail("the lock was given")
    with pytest.raises(UserError) as asked:
        require_unlocked(directory)
    assert str(told.value) == str(asked.value)
    return str(told.value)


def test_another_process_is_refused_and_told_who_holds_it(tmp_path: Path, holder) -> None:
    assert refuse(tmp_path) == (
        f"{tmp_path}: another run is at work in it (process {holder.pid} on "
        f"{socket.gethostname()}); wait for it, end it, or choose another directory"
    )
    assert (tmp_path / NAME).exists()


def test_a_process_that_was_killed_holds_nothing(tmp_path: Path, holder) -> None:
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (tmp_path / NAME).exists()
    require_unlocked(tmp_path)
    with locked(tmp_path):
        assert (tmp_path / NAME).read_text().startswith(f"process {os.getpid()} on ")


def test_nothing_is_left_after_the_block(tmp_path: Path, holder) -> None:
    holder.communicate("")
    assert list(tmp_path.iterdir()) == []
    require_unlocked(tmp_path)
    require_unlocked(tmp_path / "nowhere")
    for _ in range(2):
        with contextlib.suppress(RuntimeError), locked(tmp_path):
            assert refuse(tmp_path)
            raise RuntimeError
        assert list(tmp_path.iterdir()) == []


def test_a_file_that_its_holder_removes_in_between_is_not_taken(tmp_path, monkeypatch) -> None:
    """Two could hold a lock each, on the old file and on a new one of the same name."""
    flock, path = fcntl.flock, tmp_path / NAME
    removed = []

    def flock_late(descriptor: int, operation: int) -> None:
        if not removed:
            removed.append(path.unlink())
        flock(descriptor, operation)

    monkeypatch.setattr(locks.fcntl, "flock", flock_late)
    with locked(tmp_path):
        monkeypatch.undo()
        assert refuse(tmp_path)


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch, capsys) -> None:
    def refused(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks.fcntl, "flock", refused)
    with locked(tmp_path):
        pass
    assert capsys.readouterr().err == (
        f"warning: {tmp_path}: no locks here, two runs at once would not be noticed\n"
    )
