"""Tests in several processes of gloo, each with one thread."""

from __future__ import annotations

import datetime
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

TIMEOUT_S = 240


def run_in_processes(world: int, function: Callable[..., None], *arguments: Any) -> None:
    """Calls function(*arguments), which a module has by name, in `world` processes; raises what one of them raised."""
    with tempfile.TemporaryDirectory() as folder:
        place = f"file://{Path(folder) / 'store'}"
        context = mp.spawn(_begin, (world, place, function, arguments), nprocs=world, join=False)
        assert context is not None
        if not context.join(TIMEOUT_S):
            for process in context.processes:
                process.kill()
            raise TimeoutError(f"{function.__name__}: the processes did not end within {TIMEOUT_S} s")


def _begin(rank: int, world: int, place: str, function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=place, rank=rank, world_size=world, timeout=datetime.timedelta(seconds=60)
    )
    function(*arguments)
    dist.destroy_process_group()


def of_all(value: Any) -> list[Any]:
    """That value of each process."""
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found
