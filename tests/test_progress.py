"""What a run shows of itself while it is at work: phases, bars on a terminal, lines in a file."""

import contextlib
import fcntl
import io
import os
import struct
import termios

import jax.numpy as jnp
import numpy as np
import pytest

from pdrec_jax import metric_log
from pdrec_jax.metric_log import MetricLog


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    """Stands in for the module `time`."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(metric_log, "time", clock)
    return clock


def test_phase_prints_one_line_with_the_time(clock: Clock) -> None:
    stream = io.StringIO()
    with MetricLog(None, stream=stream) as log:
        log.phase("data")
        clock.now += 75
        log.phase("diffusion")
        clock.now += 3600
        log.phase("report")
    assert stream.getvalue() == "[0:00] data\n[1:15] diffusion\n[1:01:15] report\n"


def test_the_stream_is_standard_error_by_default(capsys: pytest.CaptureFixture[str]) -> None:
    with MetricLog(None) as log:
        log.phase("data")
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "[0:00] data\n"


def test_a_file_gets_a_plain_line_every_thirty_seconds(clock: Clock) -> None:
    stream = io.StringIO()
    with MetricLog(None, stream=stream) as log, log.progress("SASRec", 100, "epoch") as progress:
        for epoch in range(80):
            clock.now += 1
            if epoch == 20:
                progress.update(ndcg=0.21987)
            else:
                progress.update(loss=jnp.float32(1 / (epoch + 1)))
    assert stream.getvalue().splitlines() == [
        "SASRec: 30/100 epoch, 1 epoch/s, 1:10 left, loss=0.03333, ndcg=0.2199",
        "SASRec: 60/100 epoch, 1 epoch/s, 0:40 left, loss=0.01667, ndcg=0.2199",
        "SASRec: 80/100 epoch, in 1:20, loss=0.0125, ndcg=0.2199",
    ]


def test_a_resumed_loop_rates_only_its_own_work(clock: Clock) -> None:
    stream = io.StringIO()
    with (
        MetricLog(None, stream=stream) as log,
        log.progress("a", 2000, "step", initial=1000) as progress,
    ):
        clock.now += 30
        progress.update(60)
    assert stream.getvalue().splitlines()[0] == "a: 1,060/2,000 step, 2 step/s, 7:50 left"


@pytest.mark.parametrize("total", [0, 50])
def test_progress_beyond_what_was_known_has_no_end(clock: Clock, total: int) -> None:
    stream = io.StringIO()
    with MetricLog(None, stream=stream).progress("a", total, "KiB") as progress:
        clock.now += 30
        progress.update(60)
    assert stream.getvalue().splitlines() == ["a: 60 KiB, 2 KiB/s", "a: 60 KiB, in 0:30"]


def test_no_progress_yet_has_no_rate(clock: Clock) -> None:
    stream = io.StringIO()
    with MetricLog(None, stream=stream) as log, log.progress("a", 5, "step") as progress:
        clock.now += 31
        progress.update(0)
    assert stream.getvalue().splitlines()[0] == "a: 0/5 step"


def test_a_terminal_gets_a_bar_with_values(clock: Clock) -> None:
    stream = Terminal()
    with (
        MetricLog(None, stream=stream) as log,
        log.progress("SASRec", 10, "epoch", initial=2) as progress,
    ):
        for _ in range(3):
            clock.now += 1
            progress.update(loss=np.float32(0.51234), ndcg=0.2)
        log.phase("evaluation")
    text = stream.getvalue()
    assert "SASRec:  20%" in text
    assert "5/10" in text.split("\r")[-1]
    assert "loss=0.5123, ndcg=0.2" in text
    assert "[0:03] evaluation\n" in text


@pytest.mark.parametrize("columns", [0, 60, 100])
def test_the_bar_fits_the_terminal_and_shows_on_one_of_no_width(columns: int) -> None:
    leader, follower = os.openpty()
    try:
        fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 0, columns, 0, 0))
        with (
            open(follower, "w", closefd=False) as stream,
            MetricLog(None, stream=stream) as log,
            log.progress("TI-DiffRec", 7, "epoch") as progress,
        ):
            progress.update(7, loss=0.5)
    finally:
        os.close(follower)
    # The terminal passes on what it got piece by piece; its end is an error.
    pieces = []
    with contextlib.suppress(OSError):
        while piece := os.read(leader, 10_000):
            pieces.append(piece)
    os.close(leader)
    text = b"".join(pieces).decode()
    last = text.replace("\n", "").rstrip("\r").split("\r")[-1]
    assert last.startswith("TI-DiffRec: 100%|")
    assert "7/7" in last
    assert len(last) <= (columns or 100)


def test_values_are_read_only_when_they_are_shown(clock: Clock) -> None:
    class Unread:
        def __array__(self, *_: object, **__: object) -> np.ndarray:
            raise AssertionError("read")

    stream = Terminal()
    with MetricLog(None, stream=stream) as log, log.progress("a", 10, "step") as progress:
        for _ in range(5):
            progress.update(loss=Unread())
        clock.now += 1
        with pytest.raises(AssertionError, match="read"):
            progress.update()
        progress.update(loss=1.0)


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()])
def test_an_exception_within_a_loop_is_not_hidden(stream: io.StringIO) -> None:
    def loop() -> None:
        with MetricLog(None, stream=stream) as log, log.progress("a", 10, "step") as progress:
            progress.update(loss=object())
            raise FloatingPointError("the loss is not finite")

    with pytest.raises(FloatingPointError, match="loss"):
        loop()


@pytest.mark.parametrize("bars", [True, False])
def test_progress_can_be_forced(bars: bool) -> None:
    stream = io.StringIO() if bars else Terminal()
    with (
        MetricLog(None, stream=stream, progress=bars) as log,
        log.progress("a", 3, "step") as progress,
    ):
        progress.update(3)
    assert ("100%" in stream.getvalue()) is bars
    assert ("3/3 step, in 0:00" in stream.getvalue()) is not bars
