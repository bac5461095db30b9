"""Limits of time and memory on a chat template, which is a program that comes with a tokenizer and may never end.

They are against a template that never ends, whatever the text; not against an attacker, whose template may behave well
when it is tried and loop for a question of the data.
"""

from __future__ import annotations

import os
import resource
import select
import signal
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, NoReturn

from mind.display import describe
from mind.errors import MindError

CPU_SECONDS = 5
"""A template takes milliseconds."""
WALL_SECONDS = 60
"""For a process that waits for what never comes."""
START_SECONDS = 20
"""For a forked process to set its limits, which takes milliseconds."""
STARTS = 3
"""How often it is tried: a fork beside other threads may wait forever for a lock that one of them had, before any code
of ours. So it was seen in CPython 3.11, in a run of two processes."""
MEMORY_BYTES = 1 << 30
"""More than this process has already."""
MEND = "mend it, or give another by --student.chat-template"
_OUT_OF_MEMORY, _NO_LIMITS = 3, 4
_STATM = Path("/proc/self/statm")


class LimitError(MindError):
    """A template reached a limit, or could not be tried with limits; the message goes on from "its chat template"."""


def check_ends(render: Callable[[], object]) -> None:
    """Calls `render` in a forked process with limits, and forgets what it returns or raises.

    A limit in this process would not hold: neither a signal nor another thread ends a single multiplication of large
    numbers, and a signal's handler belongs to the main thread. The forked process runs Python alone, no kernel of
    PyTorch and no tokenizer, which a fork could leave without their threads. Memory has a limit only if
    /proc/self/statm exists, as on Linux. Raises LimitError if `render` did not come to its end within the limits, or
    if the process could not be started, limited or watched.
    """
    status = _status(render)
    if os.WIFSIGNALED(status):
        ended_by = os.WTERMSIG(status)
        if ended_by == signal.SIGXCPU:
            raise LimitError(f"takes more than {CPU_SECONDS} seconds of CPU time; {MEND}")
        if ended_by == signal.SIGALRM:
            raise LimitError(f"does not end within {WALL_SECONDS} seconds; {MEND}")
        if ended_by == signal.SIGKILL:
            raise LimitError(f"was killed while it was tried, as by a system that is out of memory; {MEND}")
        raise LimitError(f"crashes the process that renders it ({signal.strsignal(ended_by)}); {MEND}")
    if os.WEXITSTATUS(status) == _OUT_OF_MEMORY:
        raise LimitError(f"needs more than {MEMORY_BYTES >> 20:,} MiB of memory; {MEND}")
    if os.WEXITSTATUS(status):
        raise LimitError("cannot be tried: the system refuses to limit the time and memory of a process")


def _status(render: Callable[[], object]) -> int:
    """How the forked process ended, as `os.waitpid` tells it."""
    ignored = signal.getsignal(signal.SIGCHLD) == signal.SIG_IGN  # then the system forgets how a process ended
    main = threading.current_thread() is threading.main_thread()  # the only one that may change that
    if ignored and main:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        for _ in range(STARTS):
            child, has_limits = _forked(render)
            if not has_limits:
                os.kill(child, signal.SIGKILL)
            status = os.waitpid(child, 0)[1]
            if has_limits:
                return status
        raise LimitError(f"cannot be tried: a forked process did not begin within {START_SECONDS} s, {STARTS} times")
    except ChildProcessError as error:
        reason = "SIGCHLD is ignored" if ignored else "something else in this process waited for it"
        raise LimitError(f"cannot be tried: how the process that renders it ended is unknown, as {reason}") from error
    except OSError as error:
        raise LimitError(f"cannot be tried in a process of its own: {describe(error)}") from error
    finally:
        if ignored and main:
            signal.signal(signal.SIGCHLD, signal.SIG_IGN)


def _forked(render: Callable[[], object]) -> tuple[int, bool]:
    """A forked process that renders, and whether it has set its limits, or ended."""
    heard, told = os.pipe()
    with open(heard, "rb", 0) as hearing:
        with open(told, "wb", 0) as telling:
            with warnings.catch_warnings():  # of threads that the fork leaves behind, from Python 3.12 on
                warnings.simplefilter("ignore", DeprecationWarning)
                child = os.fork()
            if child == 0:
                _run_limited(render, telling)
        waiting = select.poll()
        waiting.register(hearing, select.POLLIN)
        return child, bool(waiting.poll(1000 * START_SECONDS))


def _run_limited(render: Callable[[], object], telling: BinaryIO) -> NoReturn:
    """In the forked process, which does not come back from here."""
    status = _NO_LIMITS
    try:
        _set_limits()
        telling.write(b".")
        status = 0
        render()
    except Exception as error:  # of `render`: the caller meets it again, and tells of it; of `_set_limits`: see status
        if status == 0 and (isinstance(error, MemoryError) or isinstance(error.__cause__, MemoryError)):
            status = _OUT_OF_MEMORY
    finally:
        os._exit(status)


def _set_limits() -> None:
    # The system ends the process: a handler of Python's would wait for the operation under way.
    ends = (signal.SIGALRM, signal.SIGXCPU)
    for end in ends:
        signal.signal(end, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ends)
    signal.alarm(WALL_SECONDS)
    _lower(resource.RLIMIT_CORE, 0)
    _lower(resource.RLIMIT_CPU, CPU_SECONDS)
    if _STATM.exists():
        pages = int(_STATM.read_text().split()[0])
        _lower(resource.RLIMIT_AS, pages * resource.getpagesize() + MEMORY_BYTES)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):  # the caller renders again, and says the same
        os.dup2(nowhere, stream)


def _lower(kind: int, most: int) -> None:
    hard = resource.getrlimit(kind)[1]
    resource.setrlimit(kind, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
