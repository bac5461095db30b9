"""The one exception that users are meant to read."""


class MindError(Exception):
    """Bad input: the message names the thing (file, line, field, value) and what was expected.

    The command line prints it as one line and exits with status 2; everything else is a bug and keeps its traceback.
    """
