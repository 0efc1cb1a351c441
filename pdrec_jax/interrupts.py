"""SIGINT and SIGTERM: a run is asked to end, saves what it has, and says how to go on.

Python runs a signal's handler between two of its own instructions, so never while XLA computes. The
first signal can wait for that: where a state is being trained or saved it is noted alone
(``deferred``), and the loop looks at ``pending`` after each dispatch. The second one cannot, so a
thread of its own hears it.

Elsewhere the first one raises, unless a module is being imported: code of other languages that
imports, or is imported, need not survive that. And what is raised in a callback of the collector,
or where an object ends, Python ignores. In both cases a timer tries again.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Some senders (coreutils' timeout) signal a process and its group, so the same process twice.
_ECHO_SECONDS = 0.5
_AGAIN_SECONDS = 0.02
_IMPORTING = "<frozen importlib._bootstrap>"


class Interrupted(KeyboardInterrupt):
    """A signal asked the run to end.

    Attributes:
      number: of the signal.
      saved: what was saved because of it, in words; empty where nothing had to be.
    """

    def __init__(self, number: int = signal.SIGINT, saved: str = ""):
        super().__init__(number)
        self.number, self.saved = int(number), saved

    def __str__(self) -> str:
        return self.saved or f"signal {self.number}"


class _Asked:
    """What was asked of this process: the first signal, and how many places let it wait.

    ``idle`` while nothing is there to save and the main thread does not hear, with what it does.
    """

    number: int | None = None
    waiting: int = 0
    idle: str = ""


_asked = _Asked()


def pending() -> bool:
    """Whether a signal waits for the next safe point."""
    return _asked.number is not None


def stop(saved: str = "", of_another: bool = False) -> None:
    """Ends the run at a safe point, where a signal waits for one.

    Args:
      saved: what was saved, in words.
      of_another: a signal waits here or in another process of the run.

    Raises:
      Interrupted: a signal is pending.
    """
    if _asked.number is not None:
        raise Interrupted(_asked.number, saved)
    if of_another:
        raise Interrupted(signal.SIGTERM, saved)


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Lets a signal wait until the end of the block, at the latest.

    Raises:
      Interrupted: at the end, a signal is pending and no outer block lets it wait.
    """
    _asked.waiting += 1
    try:
        yield
    finally:
        _asked.waiting -= 1
    if not _asked.waiting:
        stop()


@contextlib.contextmanager
def idle(what: str) -> Iterator[None]:
    """Lets the first signal end the process at once, where it waits outside Python for others.

    Args:
      what: it does, in words.
    """
    _asked.idle = what
    try:
        yield
    finally:
        _asked.idle = ""


def status(error: KeyboardInterrupt) -> int:
    """The exit status for an interruption: 128 and the number of the signal."""
    return 128 + (error.number if isinstance(error, Interrupted) else int(signal.SIGINT))


def farewell(error: KeyboardInterrupt, going_on: str) -> str:
    """The line that says what was saved and how to go on."""
    saved = error.saved if isinstance(error, Interrupted) else ""
    return f"interrupted{': ' if saved else ''}{saved}; {going_on}"


@contextlib.contextmanager
def heard() -> Iterator[None]:
    """Makes SIGINT and SIGTERM raise ``Interrupted``, or wait; a second one ends the process.

    Outside the main thread, where Python allows no handlers, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    handlers = {**dict.fromkeys(SIGNALS, _note), signal.SIGALRM: _again}
    former = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    former_hook = sys.unraisablehook

    def ignored(what: sys.UnraisableHookArgs) -> None:
        if issubclass(what.exc_type, Interrupted):
            signal.setitimer(signal.ITIMER_REAL, _AGAIN_SECONDS)
        else:
            former_hook(what)

    sys.unraisablehook = ignored
    former_writer = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=_listen, args=(reader,), name="signals", daemon=True).start()
    _asked.number, _asked.waiting, _asked.idle = None, 0, ""
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        sys.unraisablehook = former_hook
        for number, handler in former.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(former_writer)
        os.close(writer)  # which ends the thread
        _asked.number = None


def _note(number: int, frame: FrameType | None) -> None:
    if _asked.number is None:
        _asked.number = number
        _obey(frame)


def _again(_: int, frame: FrameType | None) -> None:
    if _asked.number is not None:
        _obey(frame)


def _obey(frame: FrameType | None) -> None:
    """Raises the signal that was noted, where it is not to wait, now or a moment later."""
    if _asked.waiting:
        return
    while frame is not None:
        if frame.f_code.co_filename == _IMPORTING:
            signal.setitimer(signal.ITIMER_REAL, _AGAIN_SECONDS)
            return
        frame = frame.f_back
    assert _asked.number is not None
    raise Interrupted(_asked.number)


def _listen(reader: int) -> None:
    """Counts signals while the main thread computes."""
    first: float | None = None
    with open(reader, "rb", buffering=0) as signals:
        while byte := signals.read(1):
            if byte[0] not in SIGNALS:
                continue
            name, now = signal.Signals(byte[0]).name, time.monotonic()
            if first is None:
                first = now
                if _asked.idle:
                    _tell(f"interrupted {_asked.idle}; the same command goes on")
                    os._exit(128 + byte[0])
                if _asked.waiting:
                    _tell(f"{name}: the state will be saved first; a second signal ends it at once")
            elif now - first >= _ECHO_SECONDS:
                _tell(f"second {name}: ended at once; the same command goes on from the last save")
                os._exit(128 + byte[0])


def _tell(line: str) -> None:
    # Not through sys.stderr, whose lock the main thread may hold.
    with contextlib.suppress(OSError):
        os.write(2, f"{line}\n".encode())
