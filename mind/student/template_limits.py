"""Limits of time and memory on a chat template, which is a program that comes with a tokenizer and may never end."""

from __future__ import annotations

import os
import resource
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

from mind.errors import MindError

CPU_SECONDS = 5
"""A template takes milliseconds."""
WALL_SECONDS = 60
"""For a process that waits for what never comes."""
MEMORY_BYTES = 1 << 30
"""More than this process has already."""
_OUT_OF_MEMORY = 3


def check_ends(render: Callable[[], object]) -> None:
    """Calls `render` in a forked process with limits, and forgets what it returns or raises.

    A limit in this process would not hold: neither a signal nor another thread ends a single multiplication of large
    numbers, and a signal's handler belongs to the main thread. The forked process runs Python alone, no kernel of
    PyTorch and no tokenizer, which a fork could leave without their threads. Raises MindError if a limit was reached.
    """
    with warnings.catch_warnings():  # of threads that the fork leaves behind, from Python 3.12 on
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        _run_limited(render)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL, signal.SIGALRM):
        raise MindError(f"does not end within {CPU_SECONDS} seconds")
    if os.WIFEXITED(status) and os.WEXITSTATUS(status) == _OUT_OF_MEMORY:
        raise MindError(f"needs more than {MEMORY_BYTES >> 20:,} MiB of memory")


def _run_limited(render: Callable[[], object]) -> None:
    """In the forked process, which does not come back from here."""
    status = 0
    try:
        # The system ends the process: a handler of Python's would wait for the operation under way.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.signal(signal.SIGXCPU, signal.SIG_DFL)
        signal.alarm(WALL_SECONDS)
        _lower(resource.RLIMIT_CORE, 0)
        _lower(resource.RLIMIT_CPU, CPU_SECONDS)
        if sys.platform == "linux":  # elsewhere the limit has no effect
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            _lower(resource.RLIMIT_AS, pages * resource.getpagesize() + MEMORY_BYTES)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (1, 2):  # the caller renders again, and says the same
            os.dup2(nowhere, stream)
        render()
    except BaseException as error:  # the caller meets any other again, and tells of it
        if isinstance(error, MemoryError) or isinstance(error.__cause__, MemoryError):
            status = _OUT_OF_MEMORY
    finally:
        os._exit(status)


def _lower(kind: int, most: int) -> None:
    hard = resource.getrlimit(kind)[1]
    resource.setrlimit(kind, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
