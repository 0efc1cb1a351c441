"""Timing several ways to do the same work, in turns, within one process.

Whatever else the machine does hits all contestants of a round alike, and the ratio of two is taken
round by round, so that a busy machine widens the spread more than it moves the median. A large
matrix product and a large copy run in every round too: the ceilings that the others' operations and
bytes are held against.

A contestant is a function of nothing, so one that asks another process to do its share (the PyTorch
reference) can run beside those of this package; it says itself how long that took, `Elapsed`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pdrec_jax import memory

_MEMORY_CALLS = 2
_COMPILED = "/jax/core/compile/backend_compile_duration"


@dataclasses.dataclass(frozen=True)
class Elapsed:
    """What a contestant in another process returns.

    Attributes:
      seconds: that its work took.
      peak_bytes: largest resident set of its processes since their start, added up.
    """

    seconds: float
    peak_bytes: int


@dataclasses.dataclass(frozen=True)
class Contestant:
    """One way to do the work.

    Attributes:
      name: of its row.
      run: does the work once. What it returns is waited for.
      units: users or steps that one call gets done.
      flops: operations of one call's matrix products, a multiplication with its addition counted
        as two; None where they were not counted.
      twin: name of the slow twin, which a ratio is taken to.
      foreign: not of this package; every row of this package is held against it too.
      moved: bytes that one call has to read from memory or write there, on paper; None where they
        were not counted.
    """

    name: str
    run: Callable[[], Any]
    units: int
    flops: float | None = None
    twin: str | None = None
    foreign: bool = False
    moved: float | None = None


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Contestants that take turns.

    Attributes:
      stage: it belongs to.
      title: what is done, and at which sizes.
      data: what it is done to.
      unit: ``user``, ``step`` or ``model``.
      contestants: the slow twin first.
      repeats: rounds, where the user does not say.
      agree: computes how far contestants are from their twin, by name.
      agreement: what that number is.
      notes: lines below the table.
    """

    stage: str
    title: str
    data: str
    unit: str
    contestants: tuple[Contestant, ...]
    repeats: int
    agree: Callable[[], Mapping[str, float]] = dict
    agreement: str = ""
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Row:
    """What was measured of a contestant.

    Attributes:
      name: see ``Contestant``; so are the next three.
      units: see there.
      flops: see there.
      twin: see there.
      seconds: of each call, by round.
      first_seconds: of the first call, which compiles.
      peak_bytes: largest resident set of the process during a call.
      added_bytes: by how much the call raised it, which memory left over from earlier calls can
        make too little; None where the system does not tell.
      device_peak_bytes: see ``memory.device_peak``, after a call.
      difference: from the twin; None where there is none.
      foreign: see ``Contestant``.
      moved: see there.
    """

    name: str
    units: int
    flops: float | None
    twin: str | None
    seconds: tuple[float, ...]
    first_seconds: float
    peak_bytes: int
    added_bytes: int | None
    device_peak_bytes: int | None
    difference: float | None
    foreign: bool = False
    moved: float | None = None

    def quantile(self, share: float) -> float:
        """Seconds of a call that this share of the calls stayed below."""
        return float(np.quantile(self.seconds, share))

    @property
    def compile_seconds(self) -> float:
        """What the first call took longer than the others do: tracing, compiling, first touch."""
        return max(self.first_seconds - self.quantile(0.5), 0.0)

    @property
    def rate(self) -> float | None:
        """Operations a second, at the median."""
        return None if self.flops is None else self.flops / self.quantile(0.5)

    @property
    def bandwidth(self) -> float | None:
        """Bytes a second, at the median."""
        return None if self.moved is None else self.moved / self.quantile(0.5)


@dataclasses.dataclass(frozen=True)
class Result:
    """A comparison's outcome.

    Attributes:
      stage: see ``Comparison``; so are the next five.
      title: see there.
      data: see there.
      unit: see there.
      agreement: see there.
      notes: see there.
      rows: of the contestants, in their order.
      ceiling: of the matrix product.
      copy: of the large copy.
      compilations: how often something was compiled while the clock ran; 0 unless shapes change.
    """

    stage: str
    title: str
    data: str
    unit: str
    agreement: str
    notes: tuple[str, ...]
    rows: tuple[Row, ...]
    ceiling: Row
    copy: Row
    compilations: int

    def floor(self, row: Row) -> float | None:
        """Seconds that a call takes at least at the ceilings measured beside it (its roofline)."""
        bounds = [
            amount / ceiling
            for amount, ceiling in (
                (row.flops, self.ceiling.rate),
                (row.moved, self.copy.bandwidth),
            )
            if amount is not None and ceiling is not None
        ]
        return max(bounds, default=None)

    def ratios(self, row: Row) -> np.ndarray | None:
        """Time of the twin over that of a row for one unit, round by round; None without a twin."""
        if row.twin is None:
            return None
        return self.ratios_to(next(other for other in self.rows if other.name == row.twin), row)

    def ratios_to(self, twin: Row, row: Row) -> np.ndarray:
        """Time of another row over that of a row for one unit, round by round."""
        return (np.array(twin.seconds) / twin.units) / (np.array(row.seconds) / row.units)


def matrix_product(side: int) -> Contestant:
    """The machine's own ceiling: a product of two square float32 matrices."""
    a, b = (jax.random.normal(jax.random.key(seed), (side, side)) for seed in (0, 1))
    product = jax.jit(jnp.dot)
    return Contestant(f"matrix product {side:,}", lambda: product(a, b), 1, 2.0 * side**3)


def large_copy(side: int) -> Contestant:
    """The machine's own ceiling of bytes: reads an array far larger than a cache, writes it back.

    In place, since memory that is new to the process costs more than the copy.

    Args:
      side: of the matrix product; the array has as many numbers as 16 of its matrices.
    """
    held = [jnp.zeros(16 * side**2)]
    rewrite = jax.jit(lambda array: array + 1, donate_argnums=0)

    def run() -> Array:
        held[0] = rewrite(held[0])
        return held[0]

    size = held[0].size
    return Contestant(f"copy {4 * size:,} B", run, 1, moved=8.0 * size)


def measure(
    comparison: Comparison, repeats: int | None, ceiling: Contestant, copy: Contestant
) -> Result:
    """Warms up, measures memory and agreement, then times all contestants in turns.

    Args:
      comparison: what to time.
      repeats: rounds; None for the comparison's own number.
      ceiling: from ``matrix_product``; takes part in every round.
      copy: from ``large_copy``, likewise.
    """
    contestants = (ceiling, copy, *comparison.contestants)
    first, peaks = {}, {}
    # The slow twin last: the accelerator's peak is that since the start, and would hide the others.
    for contestant in (ceiling, copy, *reversed(comparison.contestants)):
        first[contestant.name] = _seconds(contestant)
        peaks[contestant.name] = _peak(contestant)
    differences = comparison.agree()
    with _compilations() as compiled:
        seconds = _rounds(contestants, repeats or comparison.repeats)
    rows = tuple(
        Row(
            c.name,
            c.units,
            c.flops,
            c.twin,
            tuple(seconds[number]),
            first[c.name],
            *peaks[c.name],
            differences.get(c.name),
            c.foreign,
            c.moved,
        )
        for number, c in enumerate(contestants)
    )
    shared = ("stage", "title", "data", "unit", "agreement", "notes")
    head = {name: getattr(comparison, name) for name in shared}
    return Result(**head, rows=rows[2:], ceiling=rows[0], copy=rows[1], compilations=len(compiled))


def _rounds(contestants: tuple[Contestant, ...], repeats: int) -> list[list[float]]:
    """Seconds of each contestant by round; who starts a round changes from one to the next."""
    seconds: list[list[float]] = [[] for _ in contestants]
    gc.collect()
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        for number in range(repeats):
            for turn in range(len(contestants)):
                place = (number + turn) % len(contestants)
                seconds[place].append(_seconds(contestants[place]))
    finally:
        if was_enabled:
            gc.enable()
    return seconds


def _seconds(contestant: Contestant) -> float:
    begun = time.perf_counter()
    outcome = jax.block_until_ready(contestant.run())
    return outcome.seconds if isinstance(outcome, Elapsed) else time.perf_counter() - begun


def _peak(contestant: Contestant) -> tuple[int, int | None, int | None]:
    """Peak of the process, what a call added to it, and peak of the accelerator."""
    if contestant.foreign:
        return contestant.run().peak_bytes, None, None
    peak, added = 0, None
    # A call that finds memory left over from the one before seems to need less: the larger counts.
    for _ in range(_MEMORY_CALLS):
        gc.collect()
        before = memory.now() if memory.forget_peak() else None
        jax.block_until_ready(contestant.run())
        peak = max(peak, memory.peak())
        if before is not None:
            added = max(added or 0, memory.peak() - before)
    return peak, added, memory.device_peak()


@contextlib.contextmanager
def _compilations() -> Iterator[list[str]]:
    """Collects what is compiled within the block."""
    found: list[str] = []
    listening = True

    def heard(event: str, duration_secs: float, **kwargs: str | int) -> None:
        if listening and event == _COMPILED:
            found.append(event)

    # JAX has no public way to take a listener back, so it is told to stop listening.
    jax.monitoring.register_event_duration_secs_listener(heard)
    try:
        yield found
    finally:
        listening = False


def largest_difference(found: Any, expected: Any) -> float:
    """Largest difference of two arrays over the largest magnitude of the second."""
    found, expected = (np.asarray(array, np.float64) for array in (found, expected))
    return float(np.abs(found - expected).max() / np.abs(expected).max())


class Training:
    """A training state that several tasks of one shape carry on in turn.

    What the state holds does not change the time of a step, and one state is large enough.

    Args:
      state: as ``training.Task.initial`` returns it; donated by the first call.
    """

    def __init__(self, state: dict[str, Any]):
        self.state = state

    def run(self, task: Any) -> dict[str, Any]:
        """Runs the first epoch of a ``training.Task`` again; returns the new state."""
        if "row_age" in self.state:  # counted from the first step
            self.state["row_age"] = jnp.zeros_like(self.state["row_age"])
        self.state, _ = task.run_epoch(self.state, 1, lambda steps: None)
        return self.state
