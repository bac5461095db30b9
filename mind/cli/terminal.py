"""What the commands share: how a result is printed, and options that are read before the others."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from mind.errors import MindError
from mind.summary import Summary


def program() -> str:
    """What the user has to type for this program: "mind" if the shell finds it, else the path that was typed."""
    called = sys.argv[0]
    if Path(called).name != "mind":
        return "mind"
    found = shutil.which("mind")
    if found is not None and os.path.samefile(found, called):
        return "mind"
    return os.path.relpath(called)


def take_option(arguments: list[str], name: str) -> str | None:
    """The value of the option `name`, which is taken out of `arguments`; None if it is not there."""
    for index, argument in enumerate(arguments):
        if argument == name:
            if index + 1 == len(arguments):
                raise MindError(f"{name}: expected a value")
            value = arguments[index + 1]
            del arguments[index : index + 2]
            return value
        if argument.startswith(name + "="):
            del arguments[index]
            return argument.partition("=")[2]
    return None


def take_flag(arguments: list[str], name: str) -> bool:
    """Whether the flag `name` is in `arguments`; it is taken out of them."""
    there = name in arguments
    arguments[:] = [argument for argument in arguments if argument != name]
    return there


def print_summary(title: str, summary: Summary) -> None:
    """Prints the result of a command as a table: integers with thousands commas, other numbers to four places."""
    print_table(title, [{name: _shown(value) for name, value in row.items()} for row in summary.as_rows()])


def print_table(title: str, rows: Sequence[Mapping[str, str]]) -> None:
    """Prints `rows`, whose keys are the columns."""
    table = Table(*rows[0], title=title) if rows else Table(title=title)
    for row in rows:
        table.add_row(*row.values())
    Console(width=None if sys.stdout.isatty() else 110).print(table)


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return value
    return f"{value:.4f}" if isinstance(value, float) else f"{value:,}"
