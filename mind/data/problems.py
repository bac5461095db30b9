"""Collects everything that is wrong with a file of questions, to report it at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

from mind.display import number_of
from mind.errors import MindError

P = ParamSpec("P")
T = TypeVar("T")

MOST_SHOWN = 20
"""Largest number of different problems that are reported."""


class FaultyRowsError(MindError):
    """Some rows of a file cannot be read; the message says what is wrong with each. `questions` holds those of the
    other rows."""

    def __init__(self, message: str, questions: Sequence[Any]) -> None:
        super().__init__(message)
        self.questions = questions


class Problems:
    """Collects what is wrong with single rows, so that reading continues with the next row."""

    def __init__(self, path: Any) -> None:
        self._path = path
        self._places: dict[str, list[str]] = {}

    def attempt(self, where: str, function: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T | None:
        """The result of `function`; None after a MindError, which is recorded for the row at `where`."""
        try:
            return function(*arguments, **options)
        except MindError as error:
            self.note(where, str(error).removeprefix(f"{where}: "))
            return None

    def note(self, where: str, problem: str) -> None:
        self._places.setdefault(problem, []).append(where)

    def check(self, questions: Sequence[Any]) -> None:
        """Raises FaultyRowsError if there is a problem; `questions` are those of the rows without one."""
        if (told := self.told(len(questions))) is not None:
            raise FaultyRowsError(told, questions)

    def told(self, good: int) -> str | None:
        """The problems, one per line, given the number of rows without one; None if there are none."""
        if not self._places:
            return None
        lines = [f"{where}: {problem}" + _likewise(len(others)) for problem, (where, *others) in self._places.items()]
        if len(lines) == 1:
            return lines[0]
        count = sum(map(len, self._places.values()))
        hidden = len(lines) - MOST_SHOWN
        more = [f"and {hidden:,} others"] if hidden > 0 else []
        total = f"{number_of(count, 'problem')} in {self._path}; {number_of(good, 'row')} without one"
        return "\n".join([*lines[:MOST_SHOWN], *more, total])


def _likewise(rows: int) -> str:
    return f"; likewise in {number_of(rows, 'other row')}" if rows else ""


class Faults:
    """Collects what is wrong with several files, so that one start reports all of it."""

    def __init__(self) -> None:
        self._messages: list[str] = []

    def attempt(self, function: Callable[P, list[T]], *arguments: P.args, **options: P.kwargs) -> list[T]:
        """The result of `function`; an empty list after a MindError, which is kept for `check`."""
        try:
            return function(*arguments, **options)
        except MindError as error:
            self._messages.append(str(error))
            return []

    @property
    def told(self) -> str | None:
        """The problems, one per line; None if no function raised MindError."""
        return "\n".join(self._messages) or None

    def check(self) -> None:
        """Raises MindError if one of the functions did."""
        if self.told is not None:
            raise MindError(self.told)
