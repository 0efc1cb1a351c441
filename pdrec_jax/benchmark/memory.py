"""Peak memory of a call: resident set of the process, and memory of the accelerator."""

import contextlib
import ctypes
import re
import resource
import sys
from pathlib import Path

import jax

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def reset_peak() -> bool:
    """Lets the process' peak start anew; False where the system cannot (anywhere but on Linux)."""
    # What the C library keeps of freed memory would be used again without showing.
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    try:
        _CLEAR.write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def host_peak() -> int:
    """Largest resident set of the process since ``reset_peak``, or since its start, in bytes."""
    if (found := _status("VmHWM")) is not None:
        return found
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def host_now() -> int | None:
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
