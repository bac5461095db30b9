"""TRL's trainers on two processes, with gloo: under DDP and FSDP2 the fused losses give the gradients of TRL's own."""

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


def join(rank: int, port: int) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE=str(PROCESSES))
    os.environ.update(LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(PROCESSES))


def gradient(trainer_of, wrap, folder, context, **changes):
    """The loss of a trainer's first batch, and its gradient, the model being wrapped in the trainer's place."""
    with context:
        torch.manual_seed(0)
        trainer = trainer_of(folder, ddp_backend="gloo", **changes)
        model = wrap(trainer.model, torch.distributed.init_device_mesh("cpu", (PROCESSES,)))
        loss = trainer.compute_loss(model, next(iter(trainer.get_train_dataloader())))
        loss.backward()
    gradients = [parameter.grad for parameter in trainer.model.parameters()]
    whole = [grad.full_tensor() if hasattr(grad, "full_tensor") else grad for grad in gradients]
    return loss.detach(), torch.cat([grad.flatten() for grad in whole])


def under_ddp(folder: str) -> None:
    """All of a Trainer's run."""
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


def under_fsdp(folder: str) -> None:
    """One gradient, since accelerate leaves FSDP out on a CPU: against that of DDP."""
    from test_fuse_processes import replicated, sharded, sharded_with_the_head_apart
    from test_trl import sft
    from test_trl_gkd import FusedGKDTrainer, GKDTrainer, gkd

    from mind_kernels.integrations import trl

    def with_the_teacher(model, mesh):
        sharded_with_the_head_apart(trainers[-1].teacher_model, mesh)
        return sharded_with_the_head_apart(model, mesh)

    trainers = []

    def fused_gkd(*args, **kwargs):
        trainers.append(gkd(*args, kind=FusedGKDTrainer, **kwargs))
        return trainers[-1]

    stock = contextlib.nullcontext()
    loss, expected = gradient(sft, replicated, folder, stock)
    found = gradient(sft, sharded, folder, trl.fused_losses())
    assert distance(found[0], loss) <= 1e-6 and distance(found[1], expected) <= 1e-5
    # TRL's own gradient of the head is wrong here.
    with pytest.raises(ValueError, match="gathered by full_tensor"):
        gradient(sft, sharded_with_the_head_apart, folder, trl.fused_losses())
    loss, expected = gradient(gkd, replicated, folder, stock, kind=GKDTrainer)
    for wrap in (sharded, sharded_with_the_head_apart, with_the_teacher):
        found = gradient(fused_gkd, wrap, folder, stock)
        assert distance(found[0], loss) <= 1e-6 and distance(found[1], expected) <= 1e-5, wrap.__name__


def work(rank: int, port: int, folder: str) -> None:
    join(rank, port)
    try:
        under_ddp(folder)
        under_fsdp(folder)
    finally:
        distributed.destroy_process_group()


@pytest.mark.skipif(not distributed.is_gloo_available(), reason="PyTorch without gloo")
def test_steps_are_those_of_trl(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(work, (port, str(tmp_path)), PROCESSES)
