"""The one exception that users are meant to read, and the check that raises it."""


class MindError(Exception):
    """Bad input: the message names the thing (file, line, field, value) and what was expected.

    The command line prints it as one line and exits with status 2; everything else is a bug and keeps its traceback.
    """


def require(condition: bool, message: str) -> None:
    """Raises MindError with `message` unless `condition` holds."""
    if not condition:
        raise MindError(message)
