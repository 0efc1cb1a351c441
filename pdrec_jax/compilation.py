"""Compiled programs: kept on disk between runs, dropped in time, and how long they take."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
from pathlib import Path

import jax

from pdrec_jax.errors import UserError
from pdrec_jax.files import expanded

_COMPILED = "/jax/core/compile/backend_compile_duration"
_DIRECTORY, _ENABLED = "jax_compilation_cache_dir", "jax_enable_compilation_cache"
_X64 = "jax_enable_x64"
_LEAST_SECONDS = 0.2  # what compiles faster is not worth a file
_MAPPINGS, _MOST_MAPPINGS = Path("/proc/self/maps"), Path("/proc/sys/vm/max_map_count")
_USUAL_MOST = 65_530


def require_32_bits() -> None:
    """Checks that JAX makes numbers of 32 bits, which models and checkpoints are of.

    Raises:
      UserError: it was told to make them of 64.
    """
    if getattr(jax.config, _X64):
        raise UserError(
            "JAX_ENABLE_X64: numbers of 32 bits are expected; unset it, or call "
            'jax.config.update("jax_enable_x64", False)'
        )


def use_cache(setting: str) -> Path | None:
    """Keeps compiled programs on disk, so that a second run does not compile them again.

    What a user has told JAX itself about its cache (``JAX_COMPILATION_CACHE_DIR`` and the like)
    stays as it is.

    Args:
      setting: ``auto`` for a directory in the user's cache, ``off``, or a directory.

    Returns:
      the directory that is in use, if any.
    """
    own = getattr(jax.config, _DIRECTORY)
    if own or not getattr(jax.config, _ENABLED):
        return Path(own) if own else None
    if setting == "off":
        return None
    directory = _default() if setting == "auto" else expanded(setting, "config.compilation_cache")
    jax.config.update(_DIRECTORY, str(directory))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", _LEAST_SECONDS)
    return directory


def _default() -> Path:
    """A directory of this kind of machine alone: programs for a CPU use what that CPU has."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "pdrec_jax" / _machine()


def _machine() -> str:
    """A name for the processor's kind and abilities."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    abilities = [line for line in lines if line.startswith(("model name", "flags", "Features"))]
    described = "\n".join([platform.machine(), platform.processor(), *sorted(set(abilities))])
    return f"{platform.machine()}-{hashlib.sha256(described.encode()).hexdigest()[:12]}"


def drop_if_many() -> bool:
    """Drops the compiled programs of this process before Linux refuses it memory for more.

    One for a CPU takes tens of mappings, and of those a process may have 65,530 (the kernel's
    ``vm.max_map_count``, unless somebody has set it): XLA ends by a signal where it gets no more,
    and a sweep over sizes would come to that after some twenty runs. What is used again compiles
    again. To be called where nothing is being computed; elsewhere than on Linux it does nothing.

    Returns:
      whether they were dropped, which they are from half of that number on, or of 65,530 where
      more are allowed, for memory grows with them.
    """
    try:
        with _MAPPINGS.open("rb") as file:
            mappings = sum(1 for _ in file)
        most = min(int(_MOST_MAPPINGS.read_text(encoding="ascii")), _USUAL_MOST)
    except (OSError, ValueError):
        return False
    if mappings < most // 2:
        return False
    jax.clear_caches()
    return True


class _Clock:
    """Adds up what this process spends on compiling."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def hear(self, event: str, duration_secs: float, **_: str | int) -> None:
        if event == _COMPILED:
            self.seconds += duration_secs


@functools.cache
def _clock() -> _Clock:
    # JAX has no public way to take a listener back: one for all.
    clock = _Clock()
    jax.monitoring.register_event_duration_secs_listener(clock.hear)
    return clock


def seconds_spent() -> float:
    """Seconds of compiling, or of reading what was compiled, since this was first asked."""
    return _clock().seconds
