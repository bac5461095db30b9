"""Shows a running experiment: a live table on a terminal; in a log, a line when a job is started and when it ends."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from mind.cli.terminal import plain
from mind.display import readable
from mind.experiment.summary import doing
from mind.progress import interval, quiet, tell

if TYPE_CHECKING:
    from rich.table import Table

    from mind.experiment.runner import Ending, Progress

SHOWN_ENDINGS = 5
"""The number of ended jobs in the table, the latest ones."""


@contextmanager
def watching() -> Iterator[Callable[[Progress], None]]:
    """A function that shows the progress of an experiment whenever it is called."""
    if not sys.stderr.isatty() or quiet():
        yield _Lines()
        return
    from rich.console import Console
    from rich.live import Live

    console = Console(stderr=True, color_system=None if plain() else "auto")
    with Live(console=console, auto_refresh=False, transient=True) as live:
        yield lambda progress: live.update(_table(progress), refresh=True)


class _Lines:
    """Shows progress in a log."""

    def __init__(self) -> None:
        self._begun: dict[str, float] = {}
        self._told: set[str] = set()

    def __call__(self, progress: Progress) -> None:
        for job, since in progress.running.items():
            if job.name not in self._begun:
                self._begun[job.name] = since
                tell(f"{job.name}: starting")
        for job, ending in progress.ended.items():
            if job.name not in self._told:
                self._told.add(job.name)
                tell(f"{job.name}: {_ended(ending)} after {_time(self._begun.get(job.name, time.monotonic()))}")


def _table(progress: Progress) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(readable(progress.plan.title)))
    for name in ("job", "time", "state"):
        table.add_column(name)
    latest = list(progress.ended.items())[-SHOWN_ENDINGS:]
    rows = [(job.name, "", _ended(ending)) for job, ending in latest]
    rows += [(job.name, _time(since), doing(progress.folder, job)) for job, since in progress.running.items()]
    rows.append((f"{len(progress.waiting)} more", "", "ready to start"))
    for row in rows:
        table.add_row(*(Text(readable(cell)) for cell in row))
    return table


def _ended(ending: Ending) -> str:
    return ending.state + (f": {ending.message}" if ending.message else "")


def _time(since: float) -> str:
    return interval(time.monotonic() - since)
