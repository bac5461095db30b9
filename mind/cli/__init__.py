"""The command line. A command imports what it needs when it runs, so that a missing package gives a one-line
message."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from mind.cli.boundary import guarded
from mind.display import one_line, readable
from mind.requirements import application_packages

_as_python_does = warnings.formatwarning


def _one_line(message: Warning | str, category: type[Warning], filename: str, *place: Any) -> str:
    """Formats a warning of this package without the line of its code."""
    ours = filename.startswith(os.path.dirname(os.path.dirname(__file__)))
    if ours:
        return f"mind: {one_line(str(message))}\n"
    return readable(_as_python_does(message, category, filename, *place))


SPINS = "10000"
"""How often a thread of libgomp checks whether the others are done before it sleeps; libgomp's own value is 300,000.
Next to other busy processes a waiting thread may have no core, and threads that spin take it away: among fifteen
others, features took 9.5 s with 300,000 and 3.8 s with this value, and 0.365 s and 0.362 s alone. Passive waiting took
2.3 s and 0.43 s (bench/busy_machine.py)."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status.

    0: success. 1: a job left requests unanswered. 2: bad input, a package that is not installed, a file that cannot be
    read or written, or training that met a number that is not finite; one line on standard error reports it. 130:
    interrupted by Ctrl-C. 141: nobody reads the output any more.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.formatwarning = _one_line
    _spin_briefly()
    words = list(sys.argv[1:] if arguments is None else arguments)

    def run() -> int:
        with application_packages():
            from mind.cli import commands

            return commands.run(words)

    return guarded("mind", run)


def _spin_briefly() -> None:
    """Must be set before torch is loaded; keeps the user's own setting."""
    own = {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME"} & os.environ.keys()
    if not own and "torch" not in sys.modules:
        os.environ["GOMP_SPINCOUNT"] = SPINS
