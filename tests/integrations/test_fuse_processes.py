"""Losses on two processes, with gloo: under DDP and FSDP2 they take the gradients of one process.

A fused model, fused before or after them, against the stock loss; the tutorial's self-distillation, whose module
is what they wrap, against plain PyTorch.
"""

from __future__ import annotations

import pytest
import torch
from processes import PROCESSES, join, start
from torch import distributed, nn
from trainers import Rows, distance, make, padded

from mind_kernels.integrations.transformers import fuse
from tests.self_distillation import objective, plain_loss, rationales, small_model


def replicated(model, mesh):
    return nn.parallel.DistributedDataParallel(model)


def sharded(model, mesh, head_apart=False):
    from torch.distributed.fsdp import fully_shard

    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    if head_apart:
        fully_shard(model.lm_head, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def sharded_with_the_head_apart(model, mesh):
    return sharded(model, mesh, head_apart=True)


def gradient(model, batches):
    """The loss of the last batch, and the gradient of all, which is reduced once, with the last of them."""
    for batch in batches[:-1]:
        if isinstance(model, nn.parallel.DistributedDataParallel):
            with model.no_sync():
                model(**batch).loss.backward()
        else:
            model.set_requires_gradient_sync(False)
            model(**batch).loss.backward()
            model.set_requires_gradient_sync(True)
    loss = model(**batches[-1]).loss
    loss.backward()
    return loss.detach(), whole_gradient(model)


def whole_gradient(model):
    gradients = [parameter.grad for parameter in model.parameters()]
    whole = [grad.full_tensor() if hasattr(grad, "full_tensor") else grad for grad in gradients]
    return torch.cat([grad.flatten() for grad in whole])


def compare_fused(rank, mesh):
    rows = Rows()
    batches = [padded([rows[4 * rank + 2 * step + i] for i in range(2)]) for step in range(2)]
    for wrap in (replicated, sharded, sharded_with_the_head_apart):
        expected, d_expected = gradient(wrap(make(), mesh), batches)
        for fused in (wrap(fuse(make()), mesh), fuse(wrap(make(), mesh))):
            loss, found = gradient(fused, batches)
            torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
            assert distance(found, d_expected) < 1e-5, wrap.__name__
            assert fused(**batches[0]).logits.shape[1] == 0


def compare_self_distillation(rank, mesh):
    """Each process has a question of its own, and both have the mean of the two gradients."""
    from torch.distributed.fsdp import fully_shard

    expected = small_model()
    (sum(plain_loss(expected, rationales(process)) for process in range(PROCESSES)) / PROCESSES).backward()
    for wrap in (nn.parallel.DistributedDataParallel, lambda module: fully_shard(module, mesh=mesh)):
        wrapped = wrap(objective(small_model()))
        wrapped(rationales(rank)).backward()
        assert distance(whole_gradient(wrapped), whole_gradient(expected)) < 1e-5, wrap


def work(rank: int, port: int) -> None:
    join(rank, port)
    distributed.init_process_group("gloo")
    try:
        mesh = torch.distributed.init_device_mesh("cpu", (PROCESSES,))
        compare_fused(rank, mesh)
        compare_self_distillation(rank, mesh)
    finally:
        distributed.destroy_process_group()


@pytest.mark.skipif(not distributed.is_gloo_available(), reason="PyTorch without gloo")
def test_gradients_are_those_of_one_process(record):
    start(work)
    for way in ("DDP", "FSDP2", "FSDP2 with the head apart"):
        record("transformers", "2", f"two processes, {way}")
