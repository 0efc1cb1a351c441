"""What a person sees while a run goes on: phases, progress, and metrics.jsonl for every epoch."""

import importlib
import io
import json
import math
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

import numpy as np
from tqdm import tqdm

from pdrec_jax.errors import UserError
from pdrec_jax.files import atomic_write_text, write_errors

FILE = "metrics.jsonl"
_BAR_SECONDS = 0.2
_LINE_SECONDS = 30.0


class MetricLog:
    """The log of one run: lines on a stream, and one JSON line an epoch in the workdir.

    The file is the memory of a run that was killed: it is opened again by the resumed run, cut back
    to the restored checkpoint with `rewind`, and read by the report. A line that was being written
    when the process died is dropped on opening.

    Attributes:
        workdir: Folder of metrics.jsonl, or None to keep the lines in memory alone (a process that
            is not the first of several, or a test).
    """

    def __init__(
        self,
        workdir: Path | None,
        *,
        stream: TextIO | None = None,
        progress: bool | None = None,
        tensorboard: bool = False,
    ) -> None:
        """Opens the log, after whatever an earlier run of the same workdir left.

        Args:
            workdir: Folder for metrics.jsonl, made if missing; None: nothing is written to disk.
            stream: Where phases and progress go; standard error by default.
            progress: True draws bars, False prints plain lines now and then, None draws bars on a
                terminal.
            tensorboard: Also write event files to workdir/tensorboard, a run a stage. Needs
                tensorboardX.

        Raises:
            UserError: metrics.jsonl holds something else than our lines, the folder cannot be
                written, or tensorboardX is asked for and missing.
        """
        self.workdir = workdir
        self._stream = sys.stderr if stream is None else stream
        self._bars = _is_terminal(self._stream) if progress is None else progress
        self._start = time.monotonic()
        self._lines: list[dict[str, Any]] = []
        self._file: io.FileIO | None = None
        self._boards = _Boards(workdir / "tensorboard") if tensorboard and workdir else None
        if workdir is not None:
            path = workdir / FILE
            with write_errors(path):
                workdir.mkdir(parents=True, exist_ok=True)
                self._lines = _load(path)
                self._open()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the files; the lines stay readable."""
        if self._file is not None:
            self._file.close()
            self._file = None
        if self._boards is not None:
            self._boards.close()

    def phase(self, text: str) -> None:
        """Prints one line that says what the run does now, with the time since the log was opened.

        Args:
            text: The line.
        """
        self._print(f"[{_clock(time.monotonic() - self._start)}] {text}")

    def write(self, stage: str, epoch: int, **values: Any) -> None:
        """Appends one line to metrics.jsonl, which survives a kill from the moment this returns.

        Args:
            stage: The stage or the model that the epoch belongs to.
            epoch: Its number.
            **values: Numbers, strings, booleans or None. Arrays of one element (numpy or JAX) count
                as numbers; what is not finite becomes null, since JSON has no NaN.

        Raises:
            UserError: The disk is full; the file then ends with the line before.
        """
        line = {"stage": stage, "epoch": int(epoch)}
        line |= {name: _plain(value) for name, value in values.items()}
        if self.workdir is not None:
            if self._file is None:
                raise ValueError("the metric log is closed")
            _append(self._file, self.workdir / FILE, _dump(line).encode())
            if self._boards is not None:
                self._boards.write(line)
        self._lines.append(line)

    def rewind(self, stage: str, epoch: int) -> None:
        """Forgets the epochs of a stage after `epoch`, which a resumed run is about to repeat.

        Args:
            stage: The stage; lines of others stay.
            epoch: The last epoch to keep.

        Raises:
            UserError: The disk is full; the file is then as it was.
        """
        kept = [line for line in self._lines if line["stage"] != stage or line["epoch"] <= epoch]
        if self._boards is not None:
            self._boards.rewind(stage, epoch)
        if len(kept) == len(self._lines):
            return
        if self._file is not None and self.workdir is not None:
            atomic_write_text(self.workdir / FILE, "".join(map(_dump, kept)))
            # The open file is the one that was just replaced.
            self._file.close()
            self._open()
        self._lines = kept

    def read(self, stage: str | None = None) -> list[dict[str, Any]]:
        """Returns the lines written so far, those of earlier runs in this workdir included.

        Args:
            stage: Only the lines of this stage; None: all.

        Returns:
            One dict a line with "stage", "epoch" and the values, in the order of writing.
        """
        return [dict(line) for line in self._lines if stage is None or line["stage"] == stage]

    def progress(self, label: str, total: int, unit: str, initial: int = 0) -> "Progress":
        """Starts a progress display; use it as a context manager.

        On a terminal: a bar with rate, time left and the latest values. Elsewhere (a file, a batch
        system): a plain line at most every 30 seconds and one at the end, so that logs stay short.

        Args:
            label: What is going on.
            total: Units of work in all; 0 where nobody knows.
            unit: The name of one unit ("epoch", "step", "user").
            initial: Units done before (a resumed run).

        Returns:
            A context manager with `update(n=1, **values)`.
        """
        return Progress(label, total, unit, initial, self._stream, self._bars)

    def _open(self) -> None:
        if self.workdir is not None:
            # Unbuffered: what a failed write left in a buffer would turn up later, out of place.
            self._file = open(self.workdir / FILE, "ab", buffering=0)  # noqa: SIM115

    def _print(self, text: str) -> None:
        # tqdm.write keeps a bar that is on screen below the line.
        _Bar.write(text, file=self._stream)
        self._stream.flush()


class Progress:
    """How far a loop has come, shown at a bounded rate. Made by `MetricLog.progress`.

    The values may be JAX scalars: they are read only when they are shown, so that passing them at
    every step does not wait for the device at every step.
    """

    def __init__(
        self, label: str, total: int, unit: str, initial: int, stream: TextIO, bar: bool
    ) -> None:
        self._label, self._total, self._unit = label, total, unit
        self._initial = self._done = self._shown_done = initial
        self._stream = stream
        self._values: dict[str, Any] = {}
        self._start = self._shown = time.monotonic()
        self._bar: tqdm | None = None
        if bar:
            self._bar = _Bar(
                desc=label, total=total, unit=unit, initial=initial, file=stream,
                nrows=20, mininterval=0, miniters=0,
            )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # After an exception a value may be of a computation that failed: reading it would hide why.
        if kind is None:
            self._show(last=True)
        if self._bar is not None:
            self._bar.close()

    def update(self, n: int = 1, **values: Any) -> None:
        """Counts `n` more units as done.

        Args:
            n: Units of work.
            **values: What to show beside the bar; a value stays until it is given anew.
        """
        self._done += n
        self._values |= values
        wait = _LINE_SECONDS if self._bar is None else _BAR_SECONDS
        if time.monotonic() - self._shown >= wait:
            self._show()

    def _show(self, last: bool = False) -> None:
        self._shown = time.monotonic()
        values = ", ".join(f"{name}={_short(value)}" for name, value in self._values.items())
        if self._bar is not None:
            self._bar.set_postfix_str(values, refresh=False)
            self._bar.update(self._done - self._shown_done)
            self._bar.refresh()
        else:
            seconds = self._shown - self._start
            known = self._done <= self._total
            of_all = f"/{self._total:,}" if known else ""
            parts = [f"{self._label}: {self._done:,}{of_all} {self._unit}"]
            if last:
                parts.append(f"in {_clock(seconds)}")
            elif (rate := (self._done - self._initial) / max(seconds, 1e-9)) > 0:
                parts.append(f"{rate:.3g} {self._unit}/s")
                if known:
                    parts.append(f"{_clock((self._total - self._done) / rate)} left")
            print(", ".join([*parts, values] if values else parts), file=self._stream, flush=True)
        self._shown_done = self._done


class _Bar(tqdm):
    # tqdm's watcher thread would outlive the run; the bar is refreshed at our own rate.
    monitor_interval = 0

    @property
    def format_dict(self) -> dict[str, Any]:
        """What the bar is drawn from, with the width that the terminal has now."""
        try:
            columns = os.get_terminal_size(self.fp.fileno()).columns
        except (AttributeError, OSError, ValueError):
            columns = 0
        # A terminal in a container can say that it has 0 columns, on which tqdm would draw nothing.
        return {**super().format_dict, "ncols": columns - 1 if columns > 0 else None}


def require_boards() -> Any:
    """Returns the package that writes TensorBoard's files.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module("tensorboardX")
    except ImportError as error:
        raise UserError(
            "tensorboard: the package tensorboardX is missing; it is the extra `tensorboard`: "
            "pip install '.[tensorboard]' in the folder of the source code"
        ) from error


class _Boards:
    """TensorBoard event files, one run a stage, so that the stages' curves lie over each other."""

    def __init__(self, folder: Path) -> None:
        self._module = require_boards()
        self._folder = folder
        self._writers: dict[str, Any] = {}
        self._purge: dict[str, int] = {}

    def write(self, line: Mapping[str, Any]) -> None:
        stage = line["stage"]
        if stage not in self._writers:
            self._writers[stage] = self._module.SummaryWriter(
                logdir=str(self._folder / stage), purge_step=self._purge.pop(stage, None)
            )
        for name, value in line.items():
            if name != "epoch" and isinstance(value, int | float):
                self._writers[stage].add_scalar(name, value, line["epoch"])

    def rewind(self, stage: str, epoch: int) -> None:
        if stage in self._writers:
            self._writers.pop(stage).close()
        self._purge[stage] = epoch + 1

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()


def _is_terminal(stream: TextIO) -> bool:
    return bool(getattr(stream, "isatty", lambda: False)())


def _append(file: io.FileIO, path: Path, data: bytes) -> None:
    end = file.seek(0, 2)
    with write_errors(path):
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[file.write(rest) or 0 :]
        except OSError:
            file.truncate(end)
            raise


def _load(path: Path) -> list[dict[str, Any]]:
    """Reads the lines of an earlier run and mends the file where the last one is incomplete."""
    if not path.exists():
        return []
    data = path.read_bytes()
    rows = data.split(b"\n")
    cut = rows[-1] != b""
    if not cut:
        rows.pop()
    lines: list[dict[str, Any]] = []
    for number, row in enumerate(rows, start=1):
        try:
            line = json.loads(row)
            valid = isinstance(line["stage"], str) and isinstance(line["epoch"], int)
            valid &= all(_is_value(name, value) for name, value in line.items())
            _dump(line)  # refuses numbers that are not finite, which would be found at a rewind
        except (ValueError, TypeError, KeyError, RecursionError):
            valid = False
        if valid:
            lines.append(line)
        elif number < len(rows) or not cut:
            raise UserError(
                f'{path}: row {number}: expected a JSON object with "stage", "epoch" and finite '
                "numbers"
            )
    if cut:
        atomic_write_text(path, "".join(map(_dump, lines)))
    return lines


def _is_value(name: str, value: Any) -> bool:
    """Whether a field of a line is of a kind that is written there."""
    if name in ("loss", "ndcg", "seconds", "learning_rate"):
        return value is None or (isinstance(value, int | float) and not isinstance(value, bool))
    return value is None or isinstance(value, str | bool | int | float)


def _dump(line: Mapping[str, Any]) -> str:
    return json.dumps(line, allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    array = np.asarray(value)
    if array.size != 1:
        raise TypeError(f"a metric is one number, not an array of shape {array.shape}")
    scalar = array.reshape(())[()]
    if not np.issubdtype(scalar.dtype, np.integer) and scalar.dtype != np.bool_:
        # Through its own shortest text, float32(0.1) is written 0.1 and not 0.10000000149011612.
        number = float(str(scalar))
        return number if math.isfinite(number) else None
    return scalar.item()


def _short(value: Any) -> str:
    number = _plain(value)
    return f"{number:.4g}" if isinstance(number, float) else str(number)


def _clock(seconds: float) -> str:
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
