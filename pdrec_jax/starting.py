"""What a signal does to a command before the command hears signals itself (``interrupts``).

``python -m pdrec_jax.COMMAND`` loads libraries for a second or two before its first line runs; a
traceback out of one of them would say nothing to whoever changed their mind.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
import threading
from types import FrameType
from typing import NoReturn


def is_command() -> bool:
    """Whether this process was started as ``python -m pdrec_jax.COMMAND``."""
    return any(
        flag == "-m" and name.startswith("pdrec_jax.")
        for flag, name in itertools.pairwise(sys.orig_argv)
    )


def end_in_a_line() -> None:
    """Lets SIGINT and SIGTERM end the process with one line and 128 and their number."""
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, _end)


def _end(number: int, _: FrameType | None) -> NoReturn:
    os.write(2, b"interrupted\n")
    os._exit(128 + number)
