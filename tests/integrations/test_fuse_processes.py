"""A fused model on two processes, with gloo: DDP and FSDP2, fused before or after them, take the stock gradients."""

from __future__ import annotations

import os
import socket
import warnings

import pytest
import torch
from torch import distributed, multiprocessing, nn
from trainers import Rows, distance, make, padded

from mind_kernels.integrations.transformers import fuse

PROCESSES = 2


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
    gradients = [parameter.grad for parameter in model.parameters()]
    whole = [grad.full_tensor() if hasattr(grad, "full_tensor") else grad for grad in gradients]
    return loss.detach(), torch.cat([grad.flatten() for grad in whole])


def work(rank: int, port: int) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE=str(PROCESSES))
    distributed.init_process_group("gloo")
    try:
        mesh = torch.distributed.init_device_mesh("cpu", (PROCESSES,))
        rows = Rows()
        batches = [padded([rows[4 * rank + 2 * step + i] for i in range(2)]) for step in range(2)]
        for wrap in (replicated, sharded, sharded_with_the_head_apart):
            expected, d_expected = gradient(wrap(make(), mesh), batches)
            for fused in (wrap(fuse(make()), mesh), fuse(wrap(make(), mesh))):
                loss, found = gradient(fused, batches)
                torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
                assert distance(found, d_expected) < 1e-5, wrap.__name__
                assert fused(**batches[0]).logits.shape[1] == 0
    finally:
        distributed.destroy_process_group()


@pytest.mark.skipif(not distributed.is_gloo_available(), reason="PyTorch without gloo")
def test_gradients_are_those_of_the_stock_loss(record):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(work, (port,), PROCESSES)
    for way in ("DDP", "FSDP2", "FSDP2 with the head apart"):
        record("transformers", "2", f"two processes, {way}")
