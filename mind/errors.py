"""The exceptions that users are meant to read, and the check that raises them."""


class MindError(Exception):
    """Bad input: the message names the thing (file, line, field, value) and what was expected.

    The command line prints it as one line and exits with status 2; everything else is a bug and keeps its traceback.
    """


class MissingError(MindError):
    """A package, a backend or a compiler that this machine lacks; the message says which, and how to get it.

    The command line adds that `mind doctor` shows all that is missing.
    """


class NotFiniteError(MindError):
    """A number that a model or its training gave is nan or infinite; the message says which, and of which questions."""


class StoppedError(MindError):
    """A method found that its student gets worse if it trains on; the message says by what, and what to change."""


class BudgetError(MindError):
    """What a run must take costs more than its budget, so nothing is left for training; the message has both."""


class PausedError(MindError):
    """A run stopped between two steps because its time was over; the message says where. It can be resumed."""


def require(condition: bool, message: str) -> None:
    """Raises MindError with `message` unless `condition` holds."""
    if not condition:
        raise MindError(message)
