"""The exceptions whose messages are written for users, and the check that raises them."""

LONGEST = 1500
"""Characters of a message's line; of a longer one, which quotes a long value from a file, both ends are shown."""


class MindError(Exception):
    """Bad input: the message names the thing (file, line, field, value) and what was expected.

    The command line prints it as one line and exits with status 2; everything else is a bug and keeps its traceback.
    """

    def __str__(self) -> str:
        return "\n".join(map(_shown, super().__str__().split("\n")))


class MissingError(MindError):
    """A package, a backend or a compiler that this machine lacks; the message says which, and how to get it.

    The command line adds that `mind doctor` shows all that is missing.
    """


class NotFiniteError(MindError):
    """A number computed by a model or by training is nan or infinite; the message says which, and for which
    questions."""


class StoppedError(MindError):
    """A method found that further training makes its student worse; the message says by what measure, and what to
    change."""


class BudgetError(MindError):
    """The work that a run must do costs more than its budget, so nothing is left for training; the message has both
    numbers."""


class PausedError(MindError):
    """A run stopped between two steps because its time was over; the message says after which. The run can be
    resumed."""


def _shown(line: str) -> str:
    if len(line) <= LONGEST:
        return line
    begin, end = line[: LONGEST - 500], line[-400:]
    return f"{begin} [... {len(line) - len(begin) - len(end):,} characters ...] {end}"


def require(condition: bool, message: str) -> None:
    """Raises MindError with `message` unless `condition` holds."""
    if not condition:
        raise MindError(message)
