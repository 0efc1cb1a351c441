"""The one exception for what a user can do wrong."""


class UserError(ValueError):
    """Bad input: a file, a value or a setting that the person at the keyboard can mend.

    The message is one line that names the place (file and row, or field) and what was expected
    there. `main` prints it as `error: <message>` and exits with status 2; every other exception is
    a bug of ours and keeps its traceback.
    """
