"""Decides whether two LaTeX answers are equal, by math-verify in a child process that can be killed.

SymPy can hang in C code (9^{9^9}), where no Python signal handler runs, and use any amount of memory: only killing its
process stops that reliably. One process serves all calls.
"""

from __future__ import annotations

import atexit
import functools
import importlib.util
import json
import logging
import os
import re
import select
import signal
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from typing import Literal, cast

from mind.grading.latex_notation import normal_latex

logger = logging.getLogger(__name__)

Equality = Literal["equal", "different", "unparsed", "timeout"]
""""unparsed": one of the two is not LaTeX or too long, or the comparison ran out of memory."""

LATEX_TIMEOUT_SECONDS = 5
START_TIMEOUT_SECONDS = 120
"""Seconds for the start: importing SymPy takes one or two, unless the machine is very busy."""
FROM_OUTSIDE = frozenset({-signal.SIGKILL, -signal.SIGTERM})
"""Exit statuses if a system without memory, or somebody, ended the process: a new one compares the pair once more."""
CACHED_PAIRS = 65_536
MAX_LATEX_CHARACTERS = 500
"""Longer texts are not parsed: the parser takes seconds for them, and answers have a tenth of this length."""

_NAME = re.compile(r"[A-Za-z]\s*=|[A-Za-z]\s*\\in(?![a-z])")
_SPACE_WITHIN = re.compile(r"(?<![0-9]) +| +(?![0-9])")
_WORD = re.compile(r"[A-Za-z]{2,}")
_FIGURE = re.compile(r"\\(angle|triangle|overline|overrightarrow|overleftrightarrow)(?![A-Za-z])")
_BASED = re.compile(r"[0-9]+\s*_\s*(?:[0-9]+|\{\s*[0-9]+\s*\})")

# Started by path, so that it runs however this package was found; -P keeps the modules beside it from shadowing
# Python's own.
_COMMAND = (sys.executable, "-P", str(Path(__file__).with_name("latex_worker.py")))


class LatexWorker:
    """A child process that compares one pair after another; threads wait for each other.

    It starts at the first call, and again at the first call after it was killed. It ends when its standard input is
    closed, so also when this process is killed. A process forked from this one gets its own child.
    """

    def __init__(self, timeout_seconds: float = LATEX_TIMEOUT_SECONDS):
        self.timeout_seconds = timeout_seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        _workers.add(self)

    def compare(self, gold: str, extracted: str) -> Equality:
        """Whether two texts of at most MAX_ANSWER_CHARACTERS are equal; "unparsed" after `timeout_seconds`, not
        counting the start.

        Raises ModuleNotFoundError without math-verify, and RuntimeError if the process does not start.
        """
        with self._lock:
            reply, status = self._attempt(gold, extracted)
            if status in FROM_OUTSIDE:  # it says nothing of this pair
                reply, status = self._attempt(gold, extracted)
        if reply:
            return cast(Equality, reply.decode().strip())
        if reply is None:
            logger.warning("no result within %g s for the LaTeX answer %.80r", self.timeout_seconds, extracted)
            return "timeout"
        logger.warning("the comparison of the LaTeX answer %.80r ended with status %d", extracted, status)
        return "unparsed"

    def _attempt(self, gold: str, extracted: str) -> tuple[bytes | None, int | None]:
        """As `_ask`, and the exit status of the process if it ended by itself."""
        self._process = process = self._process or _start()
        reply = b""
        try:
            reply = _ask(process, gold, extracted, self.timeout_seconds)
        finally:
            if not reply:  # after Ctrl-C too: the reply that comes then would be taken for the next one
                self._kill()
        return reply, process.returncode if reply == b"" else None

    def close(self) -> None:
        """Ends the process, if there is one."""
        with self._lock:
            self._kill()

    def disown(self) -> None:
        """In a forked process: leaves the child to the process that started it."""
        self._lock = threading.Lock()  # another thread may have held it, and does not exist here
        if self._process is not None:
            for pipe in (self._process.stdin, self._process.stdout):
                assert pipe is not None
                pipe.close()  # an open copy here would keep the child alive
            self._process.returncode = 0  # marked as ended: it is not a child of this process
            self._process = None

    def _kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


def latex_equality(gold: str, extracted: str) -> Equality:
    """Whether `extracted` states the answer `gold`; both are LaTeX, with or without "$" and \\boxed around it.

    These make no difference: spacing, units of measure, degree, percent and currency signs, the size of fractions and
    brackets, and an "x = " that only one of them has. Decimals are equal to exact values if they agree to 12 digits.
    May be called by several threads, and after a fork. Results are kept, because most right answers to a question are
    identical.
    """
    gold, extracted = normal_latex(gold), normal_latex(extracted)
    one_is_named = bool(_NAME.match(gold)) != bool(_NAME.match(extracted))
    if one_is_named and not ("=" in gold and "=" in extracted):
        gold, extracted = (_NAME.sub("", text, count=1).strip() for text in (gold, extracted))
    if not gold or not extracted:
        return "unparsed"
    if _unspaced(gold) == _unspaced(extracted):
        return "equal"
    if max(len(gold), len(extracted)) > MAX_LATEX_CHARACTERS:
        return "unparsed"
    # SymPy would read a word as a product of its letters, in any order
    if _WORD.fullmatch(gold) and _WORD.fullmatch(extracted):
        if gold.lower() == extracted.lower():
            return "equal"
        return "unparsed" if len(gold) < 4 and sorted(gold) == sorted(extracted) else "different"
    if _FIGURE.search(gold) or _FIGURE.search(extracted):
        return _figure_equality(gold, extracted)
    if _BASED.fullmatch(gold) or _BASED.fullmatch(extracted):  # SymPy ignores the base of a number
        gold, extracted = (re.sub(r"[{}\s]", "", text) for text in (gold, extracted))
        return "equal" if extracted in (gold, gold.partition("_")[0]) else "different"
    return _compared(gold, extracted)


def _figure_equality(gold: str, extracted: str) -> Equality:
    """Whether two figures are named by the same points in the same order; undecided if only one says what it is."""
    one, other = (re.sub(r"[{}\s]", "", _FIGURE.sub("", text)) for text in (gold, extracted))
    if not (one.isalpha() and other.isalpha()):
        return _compared(gold, extracted)
    if one == other and _FIGURE.findall(gold) == _FIGURE.findall(extracted):
        return "equal"
    return "unparsed" if sorted(one) == sorted(other) else "different"


def _unspaced(text: str) -> str:
    return _SPACE_WITHIN.sub("", text)


@functools.lru_cache(maxsize=CACHED_PAIRS)
def _compared(gold: str, extracted: str) -> Equality:
    return _worker.compare(gold, extracted)


def _start() -> subprocess.Popen[bytes]:
    if importlib.util.find_spec("math_verify") is None:  # only the child process imports it
        raise ModuleNotFoundError("No module named 'math_verify'", name="math_verify")
    # In a separate process group, so that Ctrl-C ends only this process, and the child ends when its input closes.
    environment = {**os.environ, "PYTHONHASHSEED": "0"}
    process = subprocess.Popen(
        _COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, env=environment, process_group=0
    )
    if _line(process, START_TIMEOUT_SECONDS) != b"ready\n":
        process.kill()
        process.communicate()
        raise RuntimeError(f"{' '.join(_COMMAND)} does not start (status {process.returncode}); its error is above")
    return process


def _ask(process: subprocess.Popen[bytes], gold: str, extracted: str, timeout_seconds: float) -> bytes | None:
    """The outcome; b"" if the process dies, None if it takes too long."""
    # A child that hangs would outlive a killed parent, so it has its own, later deadline.
    request = {"gold": gold, "extracted": extracted, "seconds": timeout_seconds + 1}
    assert process.stdin is not None
    try:
        process.stdin.write(json.dumps(request).encode() + b"\n")  # fits into the pipe, so it does not block
    except BrokenPipeError:
        return b""
    return _line(process, timeout_seconds)


def _line(process: subprocess.Popen[bytes], timeout_seconds: float) -> bytes | None:
    """The next line of `process`; b"" at its end, None if no line comes in time."""
    assert process.stdout is not None
    ready = select.poll()
    ready.register(process.stdout, select.POLLIN)
    return process.stdout.readline() if ready.poll(1000 * timeout_seconds) else None


def _disown_workers() -> None:
    for worker in _workers:
        worker.disown()


_workers: weakref.WeakSet[LatexWorker] = weakref.WeakSet()
os.register_at_fork(after_in_child=_disown_workers)
_worker = LatexWorker()
atexit.register(_worker.close)
