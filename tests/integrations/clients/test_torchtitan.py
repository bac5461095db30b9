"""torchtitan's model takes the steps of its chunked loss, on one process and, sharded by torchtitan, on two.

The loop is that of torchtitan's trainer, which itself needs a GPU.
"""

from __future__ import annotations

import importlib
import sys
from contextlib import nullcontext
from typing import Any

import pytest

pytest.importorskip("torchtitan", reason="torchtitan is not installed (make integrations)")

import client_runs
import torch
from processes import PROCESSES, joined, start
from torch import distributed, multiprocessing, nn
from torch.distributed.fsdp import FSDPModule
from torchtitan.components.loss import ChunkedLossWrapper, CrossEntropyLoss
from torchtitan.distributed import parallel_dims
from torchtitan.distributed.fsdp import apply_fsdp_to_decoder
from torchtitan.distributed.utils import get_spmd_context, set_spmd_backend
from torchtitan.models.common import ScaledDotProductAttention
from torchtitan.models.llama3 import model_registry
from torchtitan.models.llama3.sharding import set_llama3_sharding_config

from mind_kernels.integrations.torchtitan import FusedLinearCrossEntropy

STEPS, BATCH, LENGTH = 4, 2, 16


def model(tied: bool = False, sequence_parallel: bool | None = None) -> nn.Module:
    """Two layers of torchtitan's smallest Llama, with logits that are wide enough to tell a wrong loss."""
    config = model_registry("debugmodel").model
    config.layers = config.layers[:2]
    for layer in config.layers:  # flexible attention has no gradient on a CPU
        layer.attention.inner_attention = ScaledDotProductAttention.Config()
    config.enable_weight_tying = tied
    if sequence_parallel is not None:
        set_llama3_sharding_config(config, enable_sp=sequence_parallel)
    torch.manual_seed(0)
    made = config.build()
    made.init_states(buffer_device=torch.device("cpu"))
    with torch.no_grad():
        made.lm_head.weight.mul_(0.125 if tied else 3)
    return made


def batch(step: int, rank: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(10 * step + rank)
    ids = torch.randint(0, 2048, (BATCH, LENGTH + 1), generator=generator)
    labels = ids[:, 1:].clone()
    labels[:, :3] = -100
    return ids[:, :-1], labels


def trained(
    made: nn.Module, loss: ChunkedLossWrapper, rank: int = 0, processes: int = 1, context: Any = nullcontext
) -> client_runs.Run:
    """The steps of torchtitan's trainer, and an evaluation."""
    loss.set_lm_head(made.lm_head)
    made._skip_lm_head = True
    run = client_runs.Run(whole(made))
    optimizer = torch.optim.SGD(made.parameters(), lr=0.15, foreach=False)  # some are DTensors, others not
    for step in range(STEPS):
        inputs, labels = batch(step, rank)
        tokens = torch.tensor(float(processes * (labels != -100).sum()))
        with context():
            value, metrics = loss(made(inputs), labels, tokens)
            assert metrics == {}
            value.backward()
        optimizer.step()
        optimizer.zero_grad()
        run.losses.append(float(value))
    with torch.no_grad(), context():
        inputs, labels = batch(STEPS, rank)
        run.losses.append(float(loss(made(inputs), labels)[0]))
    run.end = whole(made)
    return run


def whole(made: nn.Module) -> torch.Tensor:
    parameters = [p.detach() for p in made.parameters()]
    return torch.cat([(p.full_tensor() if hasattr(p, "full_tensor") else p).double().flatten() for p in parameters])


@pytest.mark.parametrize("tied", [False, True])
def test_steps_are_those_of_the_chunked_loss(agree, tied):
    stock = trained(model(tied), ChunkedLossWrapper.Config(num_chunks=4).build())
    fused = trained(model(tied), FusedLinearCrossEntropy.Config().build(compile_config=None))
    agree("torchtitan", "3", f"Llama 3, {'tied head' if tied else 'one process'}", stock, fused)


def work(rank: int, port: int, results: object) -> None:
    with joined(rank, port):
        mesh = torch.distributed.init_device_mesh("cpu", (PROCESSES,), mesh_dim_names=("fsdp",))
        runs = []
        for loss in (ChunkedLossWrapper.Config(num_chunks=4), FusedLinearCrossEntropy.Config()):
            made = model()
            apply_fsdp_to_decoder(made, mesh, param_dtype=torch.float32, reduce_dtype=torch.float32, pp_enabled=False)
            for module in made.modules():
                if isinstance(module, FSDPModule):
                    module.set_force_sum_reduction_for_comms(True)  # gloo has no scaled sum
            runs.append(trained(made, loss.build(), rank, PROCESSES))
        if rank == 0:
            results.extend(runs)


def work_on_parts(rank: int, port: int, results: object) -> None:
    """In each layout of torchtitan's tensor parallelism the two runs of the second process, which has the smaller part
    of no head here, but the end of the sequence."""
    parallel_dims.device_type = "cpu"
    stock = ChunkedLossWrapper.Config(num_chunks=4, loss_fn=CrossEntropyLoss.Config(global_vocab_size=2048))
    with joined(rank, port):
        for backend in ("spmd_types", "partial_dtensor"):
            set_spmd_backend(backend)
            degrees = dict.fromkeys(("dp_replicate", "dp_shard", "cp", "pp", "ep"), 1)
            dims = parallel_dims.ParallelDims(**degrees, tp=2, world_size=2, spmd_backend=backend)
            dims.build_mesh()
            for sequence_parallel in (False, True):
                for loss in (stock, FusedLinearCrossEntropy.Config()):
                    made = model(sequence_parallel=sequence_parallel)
                    made.parallelize(dims)
                    run = trained(made, loss.build(), context=get_spmd_context(parallel_dims=dims))
                    if rank == 1:
                        results.append(run)


@pytest.mark.skipif(not distributed.is_gloo_available(), reason="PyTorch without gloo")
def test_steps_on_parts_of_the_vocabulary_are_those_of_the_chunked_loss(agree):
    with multiprocessing.Manager() as manager:
        results = manager.list()
        start(work_on_parts, results)
        runs = [*results]
    for backend in ("spmd_types", "partial_dtensor"):
        for norm in ("", " and sequence parallelism"):
            stock, fused = runs.pop(0), runs.pop(0)
            agree("torchtitan", "3", f"Llama 3, tensor parallelism{norm} ({backend})", stock, fused)


@pytest.mark.skipif(not distributed.is_gloo_available(), reason="PyTorch without gloo")
def test_sharded_steps_are_those_of_the_chunked_loss(agree):
    with multiprocessing.Manager() as manager:
        results = manager.list()
        start(work, results)
        agree("torchtitan", "3", "Llama 3, FSDP2 on two processes", *results)


def test_what_is_not_computed_right_is_refused(monkeypatch):
    class Capped(nn.Linear):
        def forward(self, hidden):
            return super().forward(hidden).tanh()

    loss = FusedLinearCrossEntropy.Config().build()
    hidden, labels = torch.randn(1, 4, 8), torch.zeros(1, 4, dtype=torch.long)
    loss.set_lm_head(Capped(8, 20))
    with pytest.raises(ValueError, match="LM head's class Capped has a forward pass of its own"):
        loss(hidden, labels)
    part = nn.Linear(8, 20, bias=False)
    part.weight = nn.Parameter(part.weight[:10])
    loss.set_lm_head(part)
    with pytest.raises(ValueError, match="10 of 20"):
        loss(hidden, labels)
    monkeypatch.setattr("mind_kernels.integrations.torchtitan.get_spmd_backend", lambda: "full_dtensor")
    with pytest.raises(ValueError, match='spmd_backend is "full_dtensor"'):
        loss(hidden, labels)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(ValueError, match="set training.disable_cuda_graphs"):
        loss(hidden, labels)


def test_another_version_of_torchtitan_is_refused(monkeypatch):
    monkeypatch.setattr(ChunkedLossWrapper, "set_lm_head", lambda self, head, norm: None)
    monkeypatch.delitem(sys.modules, "mind_kernels.integrations.torchtitan")
    expected = r"torchtitan \d.*ChunkedLossWrapper.set_lm_head takes self, head, norm: expected self, lm_head"
    with pytest.raises(ImportError, match=expected):
        importlib.import_module("mind_kernels.integrations.torchtitan")
