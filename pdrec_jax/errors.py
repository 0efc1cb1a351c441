"""The one exception for what a user can do wrong, and the one way to warn."""

import errno
import sys

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_PLACES = (errno.EACCES, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EPERM, errno.EROFS)
_LONGEST = 1000  # characters of a message


class UserError(ValueError):
    """Bad input: a file, a value or a setting that the person at the keyboard can mend.

    The message is one line that names the place (file and row, or field) and what was expected
    there. `main` prints it as `error: <message>` and exits with status 2; every other exception is
    a bug of ours and keeps its traceback.
    """


def one_line(message: object) -> str:
    """A message on one line of bounded length, of which every character can be printed.

    Args:
        message: May quote what a file or a command line holds, terminal commands included.
    """
    line = " ".join(str(message).split())
    line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)
    # What happened stands at the start or at the end, what is quoted between them.
    return line if len(line) <= _LONGEST else f"{line[:600]} ... {line[-300:]}"


def of_system(error: OSError) -> str | None:
    """What the system says of a disk or a path that a user can mend; None for anything else.

    Args:
        error: That no reader or writer has put into words of its own.
    """
    if error.errno in _FULL:
        return f"disk full ({error})"
    if error.errno in _PLACES and error.filename is not None:
        return f"{str(error.filename)[:200]}: {error.strerror}"
    return None


def warn(message: str) -> None:
    """Prints one line on what went wrong and was survived.

    Args:
        message: Names the place and what is done about it.
    """
    print(f"warning: {one_line(message)}", file=sys.stderr, flush=True)
