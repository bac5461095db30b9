"""The command line. What a command needs is imported when it runs, so that one line tells of a missing package."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from mind.errors import MindError
from mind.requirements import application_packages

_as_python_does = warnings.formatwarning


def _one_line(message: Warning | str, category: type[Warning], filename: str, *place: Any) -> str:
    """A warning of this package without the line of its code."""
    ours = filename.startswith(os.path.dirname(os.path.dirname(__file__)))
    return f"mind: {message}\n" if ours else _as_python_does(message, category, filename, *place)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status.

    That is 0, 1 for a job that left requests unanswered, 2 for bad input and for a package that is not installed,
    which are told in one line on standard error, and 130 where Ctrl-C ended it.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.formatwarning = _one_line
    try:
        with application_packages():
            from mind.cli.commands import run

            return run(list(sys.argv[1:] if arguments is None else arguments))
    except MindError as error:
        print(f"mind: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("mind: interrupted", file=sys.stderr)
        return 130
