"""What a process keeps of the memory that it no longer needs."""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Callable


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
