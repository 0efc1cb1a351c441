"""Signals: raised, or noted where they must wait; a second one ends the process at once."""

import importlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import NoReturn

import pytest

from pdrec_jax import interrupts
from pdrec_jax.command import leave
from pdrec_jax.interrupts import Interrupted, deferred, heard

ROOT = Path(__file__).resolve().parents[1]
# Deaf in one long call, as it is while a compiled program runs.
DEAF = """
import hashlib
from pdrec_jax.interrupts import deferred, heard
with heard(), deferred():
    print("deaf", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)
"""


@pytest.mark.parametrize("number", interrupts.SIGNALS)
def test_raised_where_nothing_is_to_be_saved(number: int) -> None:
    before = signal.getsignal(number)
    with heard(), pytest.raises(Interrupted) as caught:
        signal.raise_signal(number)
    assert interrupts.status(caught.value) == 128 + number
    assert interrupts.farewell(caught.value, "go on") == "interrupted; go on"
    assert signal.getsignal(number) is before
    assert not interrupts.pending()


def waits_for_it() -> None:
    """Gives a timer, and the handler that it calls, time in the main thread."""
    end = time.monotonic() + 20
    while time.monotonic() < end:
        time.sleep(0.001)


def test_no_import_is_broken_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Code of other languages need not survive what is raised in it; so it comes after."""
    (tmp_path / "heavy_one.py").write_text(
        "import os, signal, time\nos.kill(os.getpid(), signal.SIGTERM)\n"
        "for _ in range(100):\n    time.sleep(0.001)\nwhole = True\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "heavy_one", raising=False)

    def work() -> None:
        assert importlib.import_module("heavy_one").whole
        waits_for_it()

    with heard(), pytest.raises(Interrupted) as caught:
        work()
    assert interrupts.status(caught.value) == 128 + signal.SIGTERM


class Ending:
    """Is told to stop where Python ignores what is raised."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)


class Failing:
    """Fails where nobody can catch it."""

    def __del__(self) -> None:
        raise ValueError


def test_raised_again_where_python_ignored_it(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> None:
        ending = [Ending()]
        ending.clear()
        waits_for_it()

    before = sys.unraisablehook
    with heard(), pytest.raises(Interrupted):
        work()
    assert sys.unraisablehook is before
    heard_of: list[object] = []
    sys.unraisablehook = heard_of.append
    try:
        with heard():
            failing = [Failing()]
            failing.clear()
    finally:
        sys.unraisablehook = before
    assert len(heard_of) == 1
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("number", interrupts.SIGNALS)
@pytest.mark.parametrize("command", ["compare", "keep", "plan", "reproduce", "convert"])
def test_a_command_that_is_still_loading(tmp_path: Path, command: str, number: int) -> None:
    """The signal comes when it first asks for numpy, before it hears signals itself."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\n"
        "class Sender:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'numpy':\n"
        f"            os.kill(os.getpid(), {int(number)})\n"
        "sys.meta_path.insert(0, Sender())\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", f"pdrec_jax.{command}", "nothing"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    said = done.stderr
    assert (done.returncode, said.count("\n")) == (128 + number, 1), said
    assert said.startswith("interrupted")


def test_noted_where_it_must_wait() -> None:
    steps = []
    with heard():
        try:
            with deferred():
                with deferred():
                    signal.raise_signal(signal.SIGTERM)
                steps.append(interrupts.pending())
        except Interrupted as caught:
            steps.append(caught.saved)
    assert steps == [True, ""]


def test_ended_at_a_safe_point() -> None:
    with heard(), deferred():
        interrupts.stop("nothing was asked")
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(Interrupted) as caught:
            interrupts.stop("all is saved")
        interrupts._asked.number = None
    assert interrupts.farewell(caught.value, "go on") == "interrupted: all is saved; go on"


def test_another_error_is_not_hidden() -> None:
    def fail() -> None:
        with deferred():
            signal.raise_signal(signal.SIGINT)
            raise ValueError("mine")

    with heard(), pytest.raises(ValueError, match="mine"):
        fail()


def test_a_keyboard_interrupt_of_somebody_else() -> None:
    assert interrupts.status(KeyboardInterrupt()) == 130
    assert interrupts.farewell(KeyboardInterrupt(), "go on") == "interrupted; go on"


def test_in_another_thread_nothing_changes() -> None:
    handlers = []

    def work() -> None:
        with heard():
            handlers.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert handlers == [signal.getsignal(signal.SIGTERM)]


def test_a_second_signal_ends_it_at_once() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", DEAF],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        assert process.stdout.readline() == "deaf\n"
        process.send_signal(signal.SIGTERM)
        assert process.stderr.readline().startswith("SIGTERM: the state will be saved first; ")
        process.send_signal(signal.SIGTERM)  # an echo
        time.sleep(interrupts._ECHO_SECONDS + 0.1)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130
        assert process.stderr.read().startswith("second SIGINT: ended at once; the same command")
    finally:
        process.kill()
        process.communicate()


def test_a_command_that_was_interrupted_leaves_at_once(monkeypatch) -> None:
    """XLA may be at work, and does not survive an interpreter that takes its leave in order."""

    class Left(BaseException):
        pass

    def leave_at_once(status: int) -> NoReturn:
        raise Left(status)

    monkeypatch.setattr(os, "_exit", leave_at_once)
    for number in (signal.SIGINT, signal.SIGTERM):
        with pytest.raises(Left, match=str(128 + number)):
            leave(128 + number)
    for status in (0, 2, 3):
        with pytest.raises(SystemExit, match=str(status)):
            leave(status)
