"""Processes that run the checks of shard_checks.py; each check is a test of its own in test_vocabulary_parallel.py."""

from __future__ import annotations

import functools
import json
import os
import tempfile
import traceback
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException, spawn

LIMIT = timedelta(seconds=120)
"""After which a collective that waits for another process fails."""


@functools.cache
def results(processes: int, backend: str, names: tuple[str, ...]) -> dict[str, str]:
    """Of each of the checks that ran, what failed in any of the processes; empty if nothing did."""
    with tempfile.TemporaryDirectory() as folder:
        context = spawn(_work, (processes, folder, backend, names), nprocs=processes, join=False)
        assert context is not None
        died = ""
        try:
            while not context.join(timeout=5):
                pass
        except (ProcessExitedException, ProcessRaisedException) as error:
            died = str(error)
        told = [_read(Path(folder, f"{rank}.jsonl")) for rank in range(processes)]
    found: dict[str, str] = {}
    for name in dict.fromkeys(name for of_rank in told for name in of_rank):
        missing = died or "the process ended before"
        found[name] = "\n".join(filter(None, (of_rank.get(name, missing) for of_rank in told)))
    return found


def _read(path: Path) -> dict[str, str]:
    return dict(map(json.loads, path.read_text().splitlines())) if path.exists() else {}


def _work(rank: int, processes: int, folder: str, backend: str, names: tuple[str, ...]) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", processes)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=processes, timeout=LIMIT)
    from shard_argument_checks import CHECKS, Shards

    shards = Shards(dist.group.WORLD, rank, processes, backend)
    with Path(folder, f"{rank}.jsonl").open("w") as out:
        for name in names:
            try:
                CHECKS[name](shards)
                failure = ""
            except AssertionError:  # after the check's last collective: the processes go on together
                failure = f"process {rank}: {traceback.format_exc()}"
            print(json.dumps((name, failure)), file=out, flush=True)
    dist.barrier()  # none of them leaves while another still connects to it
    dist.destroy_process_group()
