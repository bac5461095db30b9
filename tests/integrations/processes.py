"""Tests on several processes of one machine."""

from __future__ import annotations

import os
import socket
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch import distributed, multiprocessing

PROCESSES = 2
TIMEOUT_S = 600


def start(work: Callable[..., None], *arguments: Any, processes: int = PROCESSES) -> None:
    """Runs `work(rank, port, *arguments)` in each process, which calls `join` or `joined` first. Raises TimeoutError
    if they do not end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = port, *arguments
    context = multiprocessing.start_processes(work, given, processes, join=False, start_method="forkserver")
    assert context is not None
    end = time.monotonic() + TIMEOUT_S
    while not context.join(end - time.monotonic()):  # also False when one of them has ended
        if time.monotonic() >= end:
            for process in context.processes:
                process.kill()
            raise TimeoutError(f"{work.__name__}: the processes did not end within {TIMEOUT_S} s")


def join(rank: int, port: int, processes: int = PROCESSES) -> None:
    """What torch.distributed and accelerate are told of this process."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE=str(processes))
    os.environ.update(LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(processes))


@contextmanager
def joined(rank: int, port: int, processes: int = PROCESSES) -> Iterator[None]:
    """Inside, the process is one of a group, whose collectives fail after two minutes."""
    join(rank, port, processes)
    distributed.init_process_group("gloo", timeout=timedelta(minutes=2))
    try:
        yield
    finally:
        distributed.destroy_process_group()
