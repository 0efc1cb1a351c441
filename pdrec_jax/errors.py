"""The one exception for what a user can do wrong, and the one way to warn."""

import sys


class UserError(ValueError):
    """Bad input: a file, a value or a setting that the person at the keyboard can mend.

    The message is one line that names the place (file and row, or field) and what was expected
    there. `main` prints it as `error: <message>` and exits with status 2; every other exception is
    a bug of ours and keeps its traceback.
    """


def warn(message: str) -> None:
    """Prints one line on what went wrong and was survived.

    Args:
        message: Names the place and what is done about it.
    """
    print(f"warning: {' '.join(message.split())}", file=sys.stderr, flush=True)
