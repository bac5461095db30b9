"""A function in several processes at once, forked from one server that has imported what tests name to it."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import Any

from torch import multiprocessing


def in_processes(count: int, function: Callable[..., None], arguments: tuple[Any, ...], limit_s: float) -> None:
    """Calls function(rank, *arguments), which a module has by name, in each of `count` processes.

    Raises what one of them raised (the others are ended then), and TimeoutError after `limit_s` seconds.
    """
    context = multiprocessing.start_processes(function, arguments, count, join=False, start_method="forkserver")
    assert context is not None
    end = time.monotonic() + limit_s
    try:
        while not context.join(end - time.monotonic()):  # also False when one of them has ended
            if time.monotonic() >= end:
                raise TimeoutError(f"{function.__name__}: the processes did not end within {limit_s:g} s")
    finally:
        for process in context.processes:
            process.kill()


def free_port() -> int:
    """The number of a TCP port of this machine that nothing uses now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
