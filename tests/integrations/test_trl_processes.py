"""TRL's trainers on two processes, with gloo: under DDP and FSDP2 the fused losses give the gradients of TRL's own."""

from __future__ import annotations

import contextlib

import pytest
import torch
from processes import PROCESSES, join, start
from torch import distributed
from torch.distributed.tensor import Shard, distribute_tensor
from trainers import distance

pytest.importorskip("trl", reason="trl is not installed (mind-kernels[test])")


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

    cases = {
        "sft": (sft, {}, {}),
        "distillation": (distillation, {}, {}),
        "gkd": (gkd, {"kind": GKDTrainer}, {"kind": FusedGKDTrainer}),
    }
    of_both = {"max_steps": 2, "ddp_backend": "gloo"}
    for name, (trainer, of_stock, of_fused) in cases.items():
        expected = trl_runs.train(trainer, folder, contextlib.nullcontext(), **of_both, **of_stock)
        found = trl_runs.train_fused(trainer, folder, **of_both, **of_fused)
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
    from trl.trainer.distillation_trainer import _chunked_divergence_loss
    from trl_runs import counted, model

    from mind_kernels.integrations import trl
    from mind_kernels.integrations.trl_logits import check_logits

    def with_the_teacher(model, mesh):
        sharded_with_the_head_apart(trainers[-1].teacher_model, mesh)
        return sharded_with_the_head_apart(model, mesh)

    trainers = []

    def fused_gkd(*args, **kwargs):
        trainers.append(gkd(*args, kind=FusedGKDTrainer, **kwargs))
        return trainers[-1]

    stock = contextlib.nullcontext()
    loss, expected = gradient(sft, replicated, folder, stock)
    with counted() as calls:
        found = gradient(sft, sharded, folder, trl.fused_losses())
    assert calls.count("linear_log_prob") == 2  # the check of the model, and the step
    assert distance(found[0], loss) <= 1e-6 and distance(found[1], expected) <= 1e-5
    # TRL's own gradient of the head is wrong here.
    with pytest.raises(ValueError, match="gathered by full_tensor"):
        gradient(sft, sharded_with_the_head_apart, folder, trl.fused_losses())
    mesh = torch.distributed.init_device_mesh("cpu", (PROCESSES,))
    for dtype in (torch.float32, torch.bfloat16):  # TRL casts what it gathers
        weight = distribute_tensor(torch.randn(37, 8), mesh, [Shard(0)]).requires_grad_()
        hidden = torch.randn(2, 3, 8, dtype=dtype)
        with trl.fused_losses(), pytest.raises(ValueError, match="gathered by full_tensor"):
            _chunked_divergence_loss(hidden, hidden, weight, weight.detach(), torch.ones(2, 3), beta=0.5)
    check_logits(sharded(model("recurrent_gemma"), mesh))  # left alone: its data are not all here
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
@pytest.mark.nightly
def test_steps_are_those_of_trl(tmp_path):
    start(work, str(tmp_path))
