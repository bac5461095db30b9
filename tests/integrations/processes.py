"""Tests on several processes of one machine."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch import distributed

from tests.forked import free_port, in_processes

PROCESSES = 2
TIMEOUT_S = 600


def start(work: Callable[..., None], *arguments: Any, processes: int = PROCESSES) -> None:
    """Runs `work(rank, port, *arguments)` in each process, which calls `join` or `joined` first. Raises TimeoutError
    if they do not end."""
    in_processes(processes, work, (free_port(), *arguments), TIMEOUT_S)


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
