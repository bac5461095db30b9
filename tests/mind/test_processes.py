"""Several processes take the steps that one takes: gradients, statistics and MetaNet are the same in all."""

from __future__ import annotations

import os
import socket

import pytest
import torch
from test_trainer import build_trainer, relative

STEPS = 3


def run(rank: int, processes: int, port: int, folder: str) -> None:
    from pathlib import Path

    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "HF_HUB_OFFLINE": "1",
    }
    torch.set_num_threads(1)
    path = Path(folder) / f"{processes}-{rank}"
    path.mkdir()
    # The second step has one question: with two processes the other one's share is empty.
    trainer = build_trainer(path, questions_per_step=5, max_steps=STEPS, pack_length=150, share_prompts="always")
    assert trainer.args.world_size == processes
    trainer.args.save_strategy = "no"
    trainer.train()
    torch.save(
        {
            "student": [p.detach() for p in trainer.model.parameters()],
            "metanet": [p.detach() for p in trainer.method.calibrator.metanet.parameters()],
            "log": [row for row in trainer.state.log_history if "loss" in row],
        },
        path / "result.pt",
    )


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this build of torch has no torch.distributed")
def test_two_processes_take_the_steps_of_one(tmp_path):
    results = {}
    for processes in (1, 2):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        torch.multiprocessing.spawn(run, (processes, port, str(tmp_path)), nprocs=processes)
        for rank in range(processes):
            results[processes, rank] = torch.load(tmp_path / f"{processes}-{rank}" / "result.pt")
    alone, first, second = results[1, 0], results[2, 0], results[2, 1]
    for name in ("student", "metanet"):
        for p, q in zip(first[name], second[name], strict=True):
            assert torch.equal(p, q), name
        for p, q in zip(alone[name], first[name], strict=True):
            assert relative(q, p) < 1e-6, name
    for row, other in zip(alone["log"], first["log"], strict=True):
        for name in (
            "loss",
            "sft_loss",
            "consistency",
            "meta_loss",
            "accuracy",
            "l_real/first",
            "work/trained",
            "work/observed",
            "grad_norm",
        ):
            assert other[name] == pytest.approx(row[name], rel=1e-5), name
