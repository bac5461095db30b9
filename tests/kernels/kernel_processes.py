"""Tests in several processes of gloo, each with one thread: `run_in_processes` raises what one of them raised,
`results` tells it of each of several checks."""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

from mind_kernels.testing import assert_within_budget, error
from tests.forked import in_processes

# Imports of seconds, once for all processes that one of pytest's starts. If tests/mind/launches.py is collected too, it
# names more of them. What a test sets in the environment does not reach these processes.
multiprocessing.get_context("forkserver").set_forkserver_preload(["torch.distributed", "mind_kernels.testing"])

TIMEOUT_S = 400
"""Of all checks of one call together."""
COLLECTIVE = timedelta(seconds=120)
"""After which a collective that waits for another process fails."""


def run_in_processes(world: int, function: Callable[..., None], *arguments: Any) -> None:
    """Calls function(*arguments), which a module has by name, in `world` processes; raises what one of them raised."""
    with tempfile.TemporaryDirectory() as folder:
        place = f"file://{Path(folder) / 'store'}"
        in_processes(world, _begin, (world, place, function, arguments), TIMEOUT_S)


def _begin(rank: int, world: int, place: str, function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=place, rank=rank, world_size=world, timeout=COLLECTIVE)
    function(*arguments)
    dist.barrier()  # none of them leaves while another still connects to it
    dist.destroy_process_group()


@functools.cache
def results(processes: int, backend: str, names: tuple[str, ...]) -> dict[str, str]:
    """Of each of the checks of shard_argument_checks.py that ran, what failed in any of the processes; empty if nothing
    did."""
    with tempfile.TemporaryDirectory() as folder:
        died = ""
        try:
            run_in_processes(processes, _checks, folder, backend, names)
        except (ProcessExitedException, ProcessRaisedException, TimeoutError) as error:
            died = str(error)
        told = [_read(Path(folder, f"{rank}.jsonl")) for rank in range(processes)]
    found: dict[str, str] = {}
    for name in dict.fromkeys(name for of_rank in told for name in of_rank):
        missing = died or "the process ended before"
        found[name] = "\n".join(filter(None, (of_rank.get(name, missing) for of_rank in told)))
    return found


def _read(path: Path) -> dict[str, str]:
    return dict(map(json.loads, path.read_text().splitlines())) if path.exists() else {}


def _checks(folder: str, backend: str, names: tuple[str, ...]) -> None:
    from shard_argument_checks import CHECKS, Shards

    rank = dist.get_rank()
    shards = Shards(dist.group.WORLD, rank, dist.get_world_size(), backend)
    with Path(folder, f"{rank}.jsonl").open("w") as out:
        for name in names:
            try:
                CHECKS[name](shards)
                failure = ""
            except AssertionError:  # after the check's last collective: the processes go on together
                failure = f"process {rank}: {traceback.format_exc()}"
            print(json.dumps((name, failure)), file=out, flush=True)


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
            name: max((peer[name] for peer in peers), key=lambda value: error(value, truth[name]).largest)
            for name in truth
        }
        assert_within_budget(found, unluckiest, truth, dtype)
