"""The memory of a process: what it gives back, and the most that it held."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import resource
import sys
from collections.abc import Callable
from pathlib import Path

_PEAK = Path("/proc/self/clear_refs")


@functools.cache
def _trim() -> Callable[[int], int] | None:
    if not sys.platform.startswith("linux"):
        return None
    # Absent from other C libraries than glibc.
    return getattr(ctypes.CDLL(None), "malloc_trim", None)


def release() -> None:
    """Gives freed memory back to the system, where the C library has a way to.

    Arrays of up to 32 MiB come from heaps that threads have of their own; what one thread frees
    there another does not find, so that a long training would hold ever more.
    """
    trim = _trim()
    if trim is not None:
        trim(0)


def peak() -> int:
    """The largest resident set of this process, in bytes, since ``forget_peak`` or its start."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def forget_peak() -> None:
    """Has the peak begin at what is held now, where the system can: on Linux.

    Or else a run would report that of a larger one before it in the same process.
    """
    with contextlib.suppress(OSError):
        _PEAK.write_text("5", encoding="ascii")
