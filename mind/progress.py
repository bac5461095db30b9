"""How far a long piece of work is: a bar on a terminal, and in a log file a plain line now and then.

Of several processes the main one says it: how many units it has done itself, or how many all have done if the others
are as fast (`processes.for_all`).
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Collection, Iterator
from typing import TypeVar

from mind import processes
from mind.display import one_line, readable

T = TypeVar("T")

LINE_EVERY_S = 30.0
"""Seconds between the lines of a log."""
FIRST_LINE_S = 5.0
"""Seconds to the first of them, which says how long the work will take."""
_BAR = "{desc}: {percentage:3.0f}%|{bar:10}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"
"""A bar of ten cells: what is said behind it must not take its place in 80 columns."""
_UNKNOWN_COLUMNS = 80


_quiet = False


def set_quiet(quiet: bool) -> None:
    """Whether this process keeps silent about what is under way, as `mind --quiet` asks."""
    global _quiet
    _quiet = quiet


def quiet() -> bool:
    """What `set_quiet` said last; False if it was not called."""
    return _quiet


def interval(seconds: float) -> str:
    """A time as the bars show it: 01:30, or 1:00:05."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes:02}:{rest:02}"


class Progress:
    """Use it in a `with`, or call `close`. It writes to standard error."""

    def __init__(
        self, what: str, total: int, unit: str, *, done: int = 0, stay: bool = False, late: bool = False
    ) -> None:
        """
        Args:
            what: the work, in a few words.
            total: how many units it has.
            unit: the name of one, in the singular.
            done: how many were done before.
            stay: the bar stays on the terminal when the work is done.
            late: nothing is shown if the work is done within `FIRST_LINE_S` seconds.
        """
        self._what, self._total, self._unit = one_line(what), total, unit
        self._first = self._done = self._told = done
        self._words = ""
        self._started = self._last = time.monotonic()
        self._wait_s = min(FIRST_LINE_S, LINE_EVERY_S)
        self._late = late
        self._bar = None
        if sys.stderr.isatty() and processes.main() and not quiet():
            from tqdm import tqdm  # not at the top: `mind --version` shall not wait for it

            # A terminal that a program made may say that it has no columns: a bar of that width would be empty.
            sized = os.get_terminal_size(sys.stderr.fileno()).columns > 0
            self._bar = tqdm(
                desc=self._what,
                total=total,
                initial=done,
                leave=stay,
                delay=FIRST_LINE_S if late else 0,
                bar_format=_BAR,
                dynamic_ncols=sized,
                ncols=None if sized else _UNKNOWN_COLUMNS,
            )

    def update(self, count: int) -> None:
        """So many more are done."""
        self._done += count
        if self._bar is not None:
            self._bar.update(count)
        elif time.monotonic() - self._last >= self._wait_s:
            self._tell()

    def reach(self, done: int) -> None:
        """So many are done by now."""
        self.update(done - self._done)

    def expect(self, total: int) -> None:
        """So many units are expected now."""
        self._total = total
        if self._bar is not None:
            self._bar.total = total

    def say(self, words: str) -> None:
        """What else there is to say from now on."""
        self._words = one_line(words)
        if self._bar is not None:
            self._bar.set_postfix_str(self._words, refresh=False)

    def close(self) -> None:
        """Ends the bar, or writes a last line."""
        if self._bar is not None:
            self._bar.close()
        elif self._done > self._told and not (self._late and self._told == self._first):
            self._tell()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _tell(self) -> None:
        self._last, self._told, self._wait_s = time.monotonic(), self._done, LINE_EVERY_S
        spent = self._last - self._started
        parts = [f"{self._what}: {self._done:,} of {self._total:,} {self._unit}s in {interval(spent)}"]
        if self._first < self._done < self._total:
            left = spent * (self._total - self._done) / (self._done - self._first)
            parts.append(f"about {interval(left)} left")
        tell(", ".join(filter(None, [*parts, self._words])))


def tracked(items: Collection[T], what: str, unit: str) -> Iterator[T]:
    """The items; if the work on them takes longer than `FIRST_LINE_S` seconds, how far it is."""
    with Progress(what, len(items), unit, late=True) as bar:
        for item in items:
            yield item
            bar.update(1)


def tell(text: str, *, of_results: bool = False) -> None:
    """A line on standard error, for whoever waits; `--quiet` keeps one that says what the results are of."""
    if processes.main() and (of_results or not quiet()):
        print(readable(text), file=sys.stderr, flush=True)
