"""A fused model whose LM head is split over processes has the gradients of one process, parameter by parameter.

Tensor parallelism of transformers and of PyTorch, with and without sequence parallelism, and FSDP2 around them, with
gloo on a CPU; compared with the model's own loss in one process.
"""

from __future__ import annotations

import pytest
import torch
from processes import joined, start
from split_models import (
    assert_close,
    batch_of,
    gradients,
    load,
    mesh_of,
    of_one_process,
    save_models,
    sharded,
    with_plan,
)
from torch import distributed, nn
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, loss_parallel, parallelize_module

from mind_kernels.integrations.condition import Condition
from mind_kernels.integrations.transformers import fuse, read_condition, unfuse

LIMITS = {torch.float32: 1e-6, torch.float64: 1e-13}

pytestmark = pytest.mark.skipif(not distributed.is_gloo_available(), reason="PyTorch without gloo")


def check(fused, expected, batch, dtype, case):
    """Loss and gradients of one step are the `expected` ones, (loss, gradients)."""
    output = fused(**batch)
    assert output.logits.shape[1] == 0, case
    assert type(output.loss) is torch.Tensor, case
    output.loss.backward()
    torch.testing.assert_close(output.loss.detach(), expected[0], rtol=LIMITS[dtype], atol=0, msg=case)
    assert_close(gradients(fused), expected[1], LIMITS[dtype], case)


def by_transformers(rank, folder):
    """tp_plan="auto"."""
    batch = batch_of(0)
    for family, condition in {"llama": (None, 1.0), "qwen2": (None, 1.0), "gemma2": (3.0, 1.0)}.items():
        for dtype in LIMITS:
            case = f"{family}, {dtype}"
            (loss,), whole = of_one_process(load(folder, family, dtype), [batch])
            model = load(folder, family, dtype, tp_plan="auto")
            assert model.lm_head.weight.placements == (Shard(0),), case
            assert read_condition(model) == Condition(*condition)
            check(fuse(model), (loss, whole), batch, dtype, case)


def its_other_calls(rank, folder):
    """Statistics, evaluation, generation, and the way back."""
    batch = batch_of(0)
    stock = load(folder, "qwen2", torch.float32)
    model = load(folder, "qwen2", torch.float32, tp_plan="auto")
    stock_of_its_kind = load(folder, "qwen2", torch.float32, tp_plan="auto")
    fused, alone = fuse(model, label_smoothing=0.1, z_loss=0.01), fuse(stock, label_smoothing=0.1, z_loss=0.01)
    fused(**batch).loss.backward()
    alone(**batch).loss.backward()
    assert_close(gradients(fused), gradients(alone), 1e-6, "label smoothing and z-loss")
    assert torch.equal(fused.last_row_stats.correct, alone.last_row_stats.correct)
    torch.testing.assert_close(fused.last_row_stats.entropy, alone.last_row_stats.entropy)
    given = {"input_ids": batch["input_ids"][:1, :6], "max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    for each in (fused, alone, stock_of_its_kind):
        each.eval()
    with torch.no_grad():
        found, expected = fused(**batch), alone(**batch)
        assert found.logits.shape == expected.logits.shape
        torch.testing.assert_close(found.logits, expected.logits)
        torch.testing.assert_close(found.loss, expected.loss)
        assert torch.equal(fused.generate(**given), alone.generate(**given))
        assert torch.equal(unfuse(fused)(**batch).logits, stock_of_its_kind(**batch).logits)
    assert "forward" in vars(fused.lm_head) and type(fused.lm_head) is torch.nn.Linear


def by_parallelize_module(rank, folder):
    heads = {
        "gathered": ColwiseParallel(output_layouts=Replicate()),
        "local": ColwiseParallel(),
        "DTensor": ColwiseParallel(use_local_output=False),
    }
    mesh, batch = mesh_of(tp=2), batch_of(0)
    for dtype in LIMITS:
        (loss,), whole = of_one_process(load(folder, "llama", dtype), [batch])
        for name, head in heads.items():
            model = fuse(with_plan(load(folder, "llama", dtype), mesh, head))
            check(model, (loss, whole), batch, dtype, f"{name}, {dtype}")
        model = with_plan(fuse(load(folder, "llama", dtype)), mesh, heads["local"])
        check(model, (loss, whole), batch, dtype, f"fused before, {dtype}")
        head = ColwiseParallel(input_layouts=Shard(1), use_local_output=False)
        model = with_plan(fuse(load(folder, "llama", dtype)), mesh, head, sequence_parallel=True)
        check(model, (loss, whole), batch, dtype, f"sequence parallelism, {dtype}")
        again = model(**batch).loss
        with CommDebugMode() as collectives:
            again.backward()
        # The parts of the hidden states' gradient are not summed in every process first.
        assert collectives.get_comm_counts()[torch.ops.c10d_functional.reduce_scatter_tensor] == 1
        model = with_plan(load(folder, "llama", dtype), mesh, head, sequence_parallel=True)
        if dtype == torch.float32:  # PyTorch's own way, as an equal; transformers' loss is in float32
            with loss_parallel():
                model(**batch).loss.backward()
            assert_close(gradients(model), whole, LIMITS[dtype], "loss_parallel")
            model.zero_grad()
        check(fuse(model, condition=Condition(None, 1.0)), (loss, whole), batch, dtype, f"fused after, {dtype}")


def by_data_parallelism(rank, folder):
    """DDP and FSDP2: each process has a batch of its own, and gathers the head for it if it is sharded."""
    from transformers.distributed import DistributedConfig

    mesh, batches = mesh_of(fsdp=2), [batch_of(process) for process in range(2)]
    for family in ("llama", "qwen2"):
        for dtype in LIMITS:
            losses, whole = of_one_process(load(folder, family, dtype), batches)
            model = fuse(load(folder, family, dtype))
            replica = nn.parallel.DistributedDataParallel(model)
            replica(**batches[rank]).loss.backward()
            assert_close(gradients(model), whole, LIMITS[dtype], f"{family}, DDP, {dtype}")
            config = DistributedConfig(fsdp_size=2)
            for case, model in {
                "FSDP2": sharded(fuse(load(folder, family, dtype)), mesh),
                "DistributedConfig": fuse(load(folder, family, dtype, distributed_config=config)),
            }.items():
                check(model, (losses[rank], whole), batches[rank], dtype, f"{family}, {case}, {dtype}")


def what_is_refused(rank, folder):
    """In every process, without a collective that waits for another."""
    from peft import LoraConfig, get_peft_model
    from transformers.distributed.tensor_parallel import apply_tensor_parallelism

    mesh, batch = mesh_of(tp=2), batch_of(0)
    model = fuse(load(folder, "llama", torch.float32, tp_plan="auto"))
    with pytest.raises(ValueError, match="target differs between process 0 and process 1"):
        model(**batch | {"labels": batch["labels"] + rank})
    adapted = get_peft_model(
        load(folder, "llama", torch.float32, tp_plan="auto"), LoraConfig(target_modules=["lm_head"], r=2)
    )
    with pytest.raises(ValueError, match="has an adapter and is split over processes"):
        fuse(adapted)
    model = fuse(load(folder, "llama", torch.float32))
    plan = {"lm_head.weight": "colwise_gather_output", "lm_head": "colwise_gather_output"}
    apply_tensor_parallelism(model, mesh, plan)
    with pytest.raises(ValueError, match="split by transformers' tensor parallelism after `fuse`"):
        model(**batch)
    model = load(folder, "llama", torch.float32)
    parallelize_module(model, mesh, {"lm_head": RowwiseParallel(input_layouts=Replicate())})
    with pytest.raises(ValueError, match=r"over mesh dimension 'tp': expected Shard\(0\)"):
        fuse(model, condition=Condition(None, 1.0))(**batch)


def work_of_two(rank, port, folder):
    with joined(rank, port):
        what_is_refused(rank, folder)
        by_transformers(rank, folder)
        its_other_calls(rank, folder)
        by_parallelize_module(rank, folder)
        by_data_parallelism(rank, folder)


@pytest.mark.nightly
def test_gradients_of_a_split_head_are_those_of_one_process(tmp_path, record):
    save_models(tmp_path)
    start(work_of_two, str(tmp_path))
    for way in ("tensor parallelism", "sequence parallelism"):
        record("transformers", "2", f"two processes, {way}")


def in_two_dimensions(rank, folder):
    """Two pairs of processes; each pair has a batch of its own and a copy of the model, which both divide."""
    mesh = mesh_of(fsdp=2, tp=2)
    batches = [batch_of(pair) for pair in range(2)]
    mine = mesh["fsdp"].get_local_rank()
    head = ColwiseParallel(input_layouts=Shard(1), use_local_output=False)
    for dtype in LIMITS:
        losses, whole = of_one_process(load(folder, "llama", dtype), batches)
        for apart in (False, True):
            model = with_plan(fuse(load(folder, "llama", dtype)), mesh["tp"], head, sequence_parallel=True)
            model = sharded(model, mesh["fsdp"], head_apart=apart)
            check(model, (losses[mine], whole), batches[mine], dtype, f"FSDP2 x TP, head apart: {apart}, {dtype}")


def in_two_dimensions_by_transformers(rank, folder):
    from transformers.distributed import DistributedConfig

    batches = [batch_of(pair) for pair in range(2)]
    for family in ("llama", "qwen2"):
        for dtype in LIMITS:
            losses, whole = of_one_process(load(folder, family, dtype), batches)
            config = DistributedConfig(fsdp_size=2, tp_size=2)
            model = fuse(load(folder, family, dtype, distributed_config=config))
            mine = rank // 2
            check(model, (losses[mine], whole), batches[mine], dtype, f"{family}, DistributedConfig, {dtype}")


def work_of_four(rank, port, folder):
    with joined(rank, port, 4):
        in_two_dimensions(rank, folder)
        in_two_dimensions_by_transformers(rank, folder)


@pytest.mark.nightly
def test_gradients_under_fsdp_and_tensor_parallelism_are_those_of_one_process(tmp_path, record):
    save_models(tmp_path)
    start(work_of_four, str(tmp_path), processes=4)
    record("transformers", "2", "four processes, FSDP2 and tensor parallelism")
