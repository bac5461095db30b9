"""Several processes take the steps that one takes: gradients, statistics and MetaNet are the same in all."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
import torch
from small_run import write_student
from test_trainer import build_trainer, relative
from tiny import build_model

from mind.methods import METHODS
from mind.methods.kd import KdOptions
from mind.methods.qcrd import QcrdOptions
from mind.methods.taid import TaidOptions
from tests.guide import example

STEPS = 3
COMMON = ("loss", "accuracy", "work/trained", "work/observed", "grad_norm")
RUNS = {
    "mind": ("l_real/first", "sft_loss", "consistency", "meta_loss"),
    "easiest": ("l_real/first", "easiest_loss", "seen"),
    "mcc-kd": ("l_real/first", "symmetric_kl"),
    "taid": ("l_real/first", "interpolation"),
    "kd": ("l_real/sample", "divergence", "sample_tokens", "work/generated", "work/teacher_scored"),
    "qcrd": ("l_real/first", "label_loss", "wrong_quality", "samples"),
}
"""Methods, and what each logs beside COMMON. The second one observes a step before it trains on it, the target of taid
depends on the losses before, and the last two have the student answer."""


def run(rank: int, processes: int, port: int, folder: str) -> None:
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
    METHODS["easiest"] = example("tests/mind/test_methods.py", path).Easiest
    for method in RUNS:
        torch.save(train(method, path / method, processes), path / f"{method}.pt")


def train(method: str, path: Path, processes: int) -> dict:
    # The second step has one question: with two processes the other one's share is empty.
    options = {"questions_per_step": 5, "max_steps": STEPS, "pack_length": 150, "share_prompts": "always"}
    own = None
    if method == "taid":
        own = TaidOptions(teacher=str(path.parents[1] / "teacher"), alpha=0.9, momentum=0.0)
    if method == "kd":
        own = KdOptions(teacher=str(path.parents[1] / "teacher"), on_policy=1.0, max_new_tokens=5)
    if method == "qcrd":
        own = QcrdOptions(max_new_tokens=5, discriminator_epochs=2)
    trainer = build_trainer(path, method=method, own=own, **options)
    assert trainer.args.world_size == processes
    trainer.args.save_strategy = "no"
    trainer.train()
    assert trainer.folder.metrics.exists() == trainer.is_world_process_zero()
    return {
        "student": [p.detach() for p in trainer.model.parameters()],
        "networks": [p.detach() for network in trainer.method.networks().values() for p in network.parameters()],
        "log": [row for row in trainer.state.log_history if "loss" in row],
    }


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this build of torch has no torch.distributed")
def test_two_processes_take_the_steps_of_one(tmp_path):
    write_student(tmp_path / "teacher", build_model(seed=5))
    for processes in (1, 2):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        torch.multiprocessing.spawn(run, (processes, port, str(tmp_path)), nprocs=processes)
    for method, numbers in RUNS.items():
        alone, first, second = (torch.load(tmp_path / name / f"{method}.pt") for name in ("1-0", "2-0", "2-1"))
        for name in ("student", "networks"):
            for p, q in zip(first[name], second[name], strict=True):
                assert torch.equal(p, q), name
            for p, q in zip(alone[name], first[name], strict=True):
                assert relative(q, p) < 1e-6, name
        for row, other in zip(alone["log"], first["log"], strict=True):
            for name in (*COMMON, *numbers):
                assert other[name] == pytest.approx(row[name], rel=1e-5), (method, name)
