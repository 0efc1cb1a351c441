"""How every command of the package ends: with a status, and one line where something is wrong."""

from __future__ import annotations

import argparse
import io
import math
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from pdrec_jax import interrupts
from pdrec_jax.errors import UserError, of_system, one_line

MISTAKE = 2  # exit status for what the user can mend


class Parser(argparse.ArgumentParser):
    """Answers a mistyped flag in one line, where argparse would print the usage too."""

    def error(self, message: str) -> NoReturn:
        """Raises what ``answered`` prints."""
        raise UserError(message)


def some_text(text: str) -> str:
    """Is the type of a flag that names a place, where ``--out=$OUT`` without OUT would name none.

    Args:
      text: as it was typed.

    Raises:
      argparse.ArgumentTypeError: it is empty.
    """
    if not text:
        raise argparse.ArgumentTypeError("a path is expected, got ''")
    return text


def some_path(text: str) -> Path:
    """Is ``some_text`` as a path; an empty one would be the directory one is in."""
    return Path(some_text(text))


def some_files(names: str) -> list[Path]:
    """The files of a flag that takes several with commas.

    Args:
      names: as they were typed; a comma may be part of the name of a file or directory that is
        there, which then is the only one.
    """
    # Path.exists raises where a list is too long for a name.
    whole = os.path.exists(names)
    return [Path(name) for name in ([names] if whole else names.split(",")) if name]


def number(kind: type, least: float, most: float = math.inf) -> Callable[[str], float]:
    """Makes the type of a flag that takes numbers within bounds.

    Args:
      kind: int or float.
      least: that is allowed.
      most: likewise.
    """
    what = "a whole number" if kind is int else "a number"
    limit = f"of at least {least:,}" if math.isinf(most) else f"from {least:,} to {most:,}"

    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{what} {limit} is expected, got {text!r}")
        return value

    return parse


def answered(work: Callable[[], int | None], going_on: str) -> int:
    """Does a command's work, and turns what stops it into a line and a status.

    Args:
      work: the whole of it, reading the command line included; may return a status of its own.
      going_on: what the line says when a signal ends it, such as what the same command does then.

    Returns:
      the exit status: 0, 2 after one line on a mistake of the user's or of the system's, 128 and
      the number of the signal when interrupted (130 for SIGINT, 143 for SIGTERM).
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A file's name may have bytes that are no text; stderr escapes them by itself.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with interrupts.heard():
            return work() or 0
    except UserError as error:
        return _fail(str(error))
    except KeyboardInterrupt as error:
        print(interrupts.farewell(error, going_on), file=sys.stderr)
        return interrupts.status(error)
    except BrokenPipeError:
        # Who reads has seen enough. What is left in the buffer has nowhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except MemoryError as error:
        return _fail(f"out of memory ({str(error) or 'no more is given'})")
    except RuntimeError as error:
        # Of XLA, where an accelerator's memory is full.
        if not str(error).startswith("RESOURCE_EXHAUSTED"):
            raise
        said = str(error).partition("\n")[0].removeprefix("RESOURCE_EXHAUSTED: ")
        return _fail(
            f"out of memory on the device ({said}); a smaller encoder.batch_size or "
            "diffusion.batch_size needs less in training, a smaller encoder.block or "
            "diffusion.block in ranking"
        )
    except OSError as error:
        message = of_system(error)
        if message is None:
            raise
        return _fail(message)


def leave(status: int) -> NoReturn:
    """Ends the process of a command with what ``answered`` returned."""
    jax = sys.modules.get("jax")
    alone = jax is None or jax.process_count() == 1
    if alone and status - 128 in interrupts.SIGNALS:
        # XLA may be at work still, and would lose the ground when the interpreter takes its leave.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def _fail(message: str) -> int:
    print(f"error: {one_line(message)}", file=sys.stderr)
    return MISTAKE
