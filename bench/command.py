"""The command line of a benchmark: errors in it are reported before anything is measured or overwritten."""

from __future__ import annotations

import argparse
import inspect
import math
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from bench.measure import RESULTS, ROOT
from mind.cli.boundary import guarded

OUTPUT = ROOT / "runs" / "bench"
"""Where results go unless --output names another folder; those in the repository are in RESULTS."""


def options_of(name: str, description: str, *, draw: bool = False, minutes: str = "") -> argparse.ArgumentParser:
    """A parser with the options that the benchmark `name` shares with others: --output, --overwrite, ...

    Args:
        name: its module is bench.<name>.
        description: the docstring of the module.
        draw: it has --draw.
        minutes: what --minutes means to it; empty: it has none.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m bench.{name}",
        description=inspect.cleandoc(description),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output", type=Path, default=OUTPUT, help=f"folder of the results (default {shown(OUTPUT)})")
    parser.add_argument("--overwrite", action="store_true", help="replace the results that are there")
    if draw:
        parser.add_argument(
            "--draw",
            action="store_true",
            help="measure nothing: show the results in --output, of the repository "
            f"for example (--output {shown(RESULTS)})",
        )
    if minutes:
        parser.add_argument("--minutes", type=positive, default=8.0, help=f"{minutes} (default 8)")
    return parser


def parse(
    parser: argparse.ArgumentParser,
    results: Callable[[argparse.Namespace], str],
    arguments: Sequence[str] | None,
    *,
    measures: Callable[[argparse.Namespace], bool] = lambda _: True,
) -> tuple[argparse.Namespace, Path]:
    """The options, and the file of results, whose name without ending `results` gives.

    Ends the program with a line if there is none to draw, or if it measures and may not replace the one that is there.
    """
    options = parser.parse_args(arguments)
    file = options.output / f"{results(options)}.jsonl"
    if getattr(options, "draw", False):
        if not file.is_file():
            parser.error(f"--draw: {shown(file)} is not there; measure first, or name another --output")
    elif measures(options):
        if file.exists() and not options.overwrite:
            parser.error(f"{shown(file)} is there: name another --output, or add --overwrite to replace it")
        if not (folder := existing_part(options.output)).is_dir():
            parser.error(f"--output {options.output}: {folder} is a file: expected a folder")
    return options, file


def existing_part(path: Path) -> Path:
    """The longest beginning of the path that exists."""
    return path if path.exists() or path == path.parent else existing_part(path.parent)


def shown(path: Path) -> str:
    """From the repository's root, for what is in it."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def count(text: str) -> int:
    """An option that counts something."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number, at least 1")
    return int(text)


def count_or_none(text: str) -> int:
    """As `count`, or 0."""
    return 0 if text == "0" else count(text)


def positive(text: str) -> float:
    """An option that measures something."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number above 0")
    return value


def readable_file(text: str) -> Path:
    """An option that names a file to read."""
    if not Path(text).is_file():
        raise argparse.ArgumentTypeError(f"{text!r}: no such file")
    return Path(text)


def program(name: str, main: Callable[[], None]) -> None:
    """Runs `main` as the program python -m bench.<name>: bad input and Ctrl-C end it in one line."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # bench/__init__.py has put it off
    sys.exit(guarded(f"bench.{name}", main))
