"""Tests on several processes of one machine."""

from __future__ import annotations

import os
import socket
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import multiprocessing

PROCESSES = 2


def start(work: Callable[..., None], *arguments: Any) -> None:
    """Runs `work(rank, port, *arguments)` in each process, which calls `join` first."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(work, (port, *arguments), PROCESSES)


def join(rank: int, port: int) -> None:
    """What torch.distributed and accelerate are told of this process."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE=str(PROCESSES))
    os.environ.update(LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(PROCESSES))
