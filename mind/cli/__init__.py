"""The command line. What a command needs is imported when it runs, so that one line tells of a missing package."""

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
    """A warning of this package without the line of its code."""
    ours = filename.startswith(os.path.dirname(os.path.dirname(__file__)))
    if ours:
        return f"mind: {one_line(str(message))}\n"
    return readable(_as_python_does(message, category, filename, *place))


SPINS = "10000"
"""How often a thread of libgomp looks whether the others are done before it sleeps, its own 300,000 otherwise. Beside
other busy processes one of the others often has no core, and whoever spins takes it from them: features took 9.5 s with
300,000 and 3.8 s with this among fifteen others, 0.365 s and 0.362 s alone. Passive waiting took 2.3 s and 0.43 s
(bench/busy_machine.py)."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status.

    That is 0, 1 for a job that left requests unanswered, 2 for bad input, for a package that is not installed, for a
    file that cannot be read or written and for training that met a number that is not finite, which are reported in one
    line on standard error, 130 where Ctrl-C ended it, and 141 where nobody reads its output any more.
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
    """Read when torch is loaded, and left to whoever has set how threads wait."""
    own = {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME"} & os.environ.keys()
    if not own and "torch" not in sys.modules:
        os.environ["GOMP_SPINCOUNT"] = SPINS
