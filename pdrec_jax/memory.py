"""Memory of a process and its accelerator: what is held, the most that was, what is given back."""

from __future__ import annotations

import ctypes
import functools
import re
import resource
import sys
from collections.abc import Callable
from pathlib import Path

import jax

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


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
    if (found := _status("VmHWM")) is not None:
        return found
    # Not on Linux, where it may be that of the process that started this one.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def forget_peak() -> bool:
    """Has the peak begin at what is held now, where the system can: on Linux.

    Or else a run would report that of a larger one before it in the same process.

    Returns:
      whether it could.
    """
    # What the C library keeps of freed memory would be used again without showing.
    release()
    try:
        _CLEAR.write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def now() -> int | None:
    """Resident set of the process in bytes, None where it is not known."""
    return _status("VmRSS")


def anonymous_now() -> int | None:
    """Memory of the process that no file backs, in bytes, None where it is not known."""
    return _status("RssAnon")


def device_peak() -> int | None:
    """Most memory in use on the first device since the process began, in bytes; None on a CPU."""
    statistics = jax.devices()[0].memory_stats() or {}
    return statistics.get("peak_bytes_in_use")


def _status(name: str) -> int | None:
    try:
        found = re.search(rf"^{name}:\s+(\d+) kB", _STATUS.read_text(encoding="ascii"), re.M)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None
