"""Tests in several processes of gloo, each with one thread."""

from __future__ import annotations

import datetime
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from mind_kernels.testing import assert_within_budget, error

TIMEOUT_S = 600


def run_in_processes(world: int, function: Callable[..., None], *arguments: Any) -> None:
    """Calls function(*arguments), which a module has by name, in `world` processes; raises what one of them raised."""
    with tempfile.TemporaryDirectory() as folder:
        place = f"file://{Path(folder) / 'store'}"
        context = mp.spawn(_begin, (world, place, function, arguments), nprocs=world, join=False)
        assert context is not None
        end = time.monotonic() + TIMEOUT_S
        while not context.join(end - time.monotonic()):  # also False when one of them has ended
            if time.monotonic() >= end:
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


def assert_as_in_one_process(
    found: dict[str, Tensor], truth: dict[str, Tensor], peers: list[dict[str, Tensor]], dtype: torch.dtype
) -> None:
    """Asserts that this process `found` what one process finds, within the budget of `dtype` (1e-14 in float64), and
    with the same bits as all others; of d_weight and d_bias its rows.

    The budget follows from whichever of the peers errs more: of few rows, the error of one is a matter of luck.
    """
    shards = of_all(found)
    for name, value in found.items():
        if name in ("d_weight", "d_bias"):
            found = found | {name: torch.cat([shard[name] for shard in shards])}
        else:
            assert all(torch.equal(shard[name], value) for shard in shards), name
    for name, value in truth.items():
        assert value.isfinite().all(), name
        if dtype == torch.float64:
            off = float((found[name] - value).abs().max())
            assert off <= 1e-14 * max(1.0, float(value.abs().max())), f"{name}: off by {off:.2e}"
    if dtype != torch.float64:
        unluckiest = {
            name: max((peer[name] for peer in peers), key=lambda value: error(value, truth[name]).largest)  # noqa: B023
            for name in truth
        }
        assert_within_budget(found, unluckiest, truth, dtype)
