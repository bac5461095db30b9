"""TRL's trainers on two processes, with gloo: under DDP the fused losses take the steps of TRL's own."""

from __future__ import annotations

import contextlib
import os
import socket
import warnings

import pytest
import torch
from torch import distributed, multiprocessing
from trainers import distance

pytest.importorskip("trl", reason="trl is not installed (mind-kernels[test])")

PROCESSES = 2


def work(rank: int, port: int, folder: str) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE=str(PROCESSES))
    os.environ.update(LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(PROCESSES))
    import trl_runs
    from test_trl import distillation, sft
    from test_trl_gkd import FusedGKDTrainer, GKDTrainer, gkd

    from mind_kernels.integrations import trl

    stock = contextlib.nullcontext()
    pairs = {
        "sft": ((sft, stock, {}), (sft, trl.fused_losses(), {})),
        "distillation": ((distillation, stock, {}), (distillation, trl.fused_losses(), {})),
        "gkd": ((gkd, stock, {"kind": GKDTrainer}), (gkd, stock, {"kind": FusedGKDTrainer})),
    }
    try:
        for name, runs in pairs.items():
            expected, found = (
                trl_runs.train(kind, folder, context, max_steps=2, ddp_backend="gloo", **changes)
                for kind, context, changes in runs
            )
            assert distributed.get_world_size() == PROCESSES
            assert distance(found.losses, expected.losses) <= 1e-6, name
            assert distance(found.weights, expected.weights) <= 1e-6, name
            everyone = [torch.empty_like(found.weights) for _ in range(PROCESSES)]
            distributed.all_gather(everyone, found.weights)
            assert all(torch.equal(weights, everyone[0]) for weights in everyone), f"{name}: not synchronized"
    finally:
        distributed.destroy_process_group()


@pytest.mark.skipif(not distributed.is_gloo_available(), reason="PyTorch without gloo")
def test_steps_are_those_of_trl(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(work, (port, str(tmp_path)), PROCESSES)
