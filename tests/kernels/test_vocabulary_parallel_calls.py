"""Divergences and the joint loss of a head that is split: collectives, chunks, DTensors, graphs, refusals."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from divergence_cases import make
from kernel_processes import run_in_processes
from test_linear_pairwise_jsd import make as make_groups
from test_vocabulary_parallel_groups import make_joint
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Partial, Replicate, Shard, distribute_tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mind_kernels import (
    BackendUnavailableError,
    Head,
    linear_divergence,
    linear_mind_loss,
    linear_pairwise_jsd,
    linear_top_k,
    row_chunks,
    shards,
)
from mind_kernels.linear_top_k import backend_torch

SIZES = (40, 0, 61)
HEADS = ("weight", "bias", "teacher_weight")


def of_this_process(inputs):
    """With this process's rows of the heads, and the group."""
    start = sum(SIZES[: dist.get_rank()])
    place = slice(start, start + SIZES[dist.get_rank()])
    return inputs | {k: inputs[k][place] for k in HEADS if k in inputs} | {"process_group": dist.group.WORLD}


def divergence(form="head"):
    inputs = make(20, 8, sum(SIZES), form=form)
    inputs["row_weight"] = inputs["row_weight"].abs() + 0.1
    return inputs


@contextlib.contextmanager
def counted() -> Iterator[list[str]]:
    """Every collective of the losses."""
    found, gather, add = [], shards._gather, shards.Shard.sum_
    shards._gather = lambda *arguments: found.append("gather") or gather(*arguments)
    shards.Shard.sum_ = lambda *arguments: found.append("sum") or add(*arguments)
    try:
        yield found
    finally:
        shards._gather, shards.Shard.sum_ = gather, add


@contextlib.contextmanager
def rows_in_a_chunk(rows: int) -> Iterator[None]:
    """That many rows of logits of the largest shard."""
    before, row_chunks._CHUNK_BYTES = row_chunks._CHUNK_BYTES, {"cpu": rows * max(SIZES) * 8}
    yield
    row_chunks._CHUNK_BYTES = before


def backward(call, inputs, **options):
    """Loss and gradients of hidden and weight, in float64."""
    leaves = {name: inputs[name].detach().clone().requires_grad_() for name in ("hidden", "weight")}
    loss = call(**(inputs | leaves), **options)
    loss.sum().backward()
    return {"loss": loss.detach()} | {f"d_{name}": leaf.grad for name, leaf in leaves.items()}


def collectives(call, inputs, rows, **options):
    """That many, in chunks of `rows` rows; the call gives what it gives in one process."""
    with rows_in_a_chunk(rows), counted() as found:
        of_shard = backward(call, of_this_process(inputs), backend="torch", **options)
    whole = backward(call, inputs, backend="reference", **options)
    start = sum(SIZES[: dist.get_rank()])
    whole["d_weight"] = whole["d_weight"][start : start + SIZES[dist.get_rank()]]
    torch.testing.assert_close(of_shard, whole, rtol=1e-13, atol=1e-14)
    return found


def number_of_collectives() -> None:
    """One in which the processes agree, those of the chunks, and one that sums the gradient of the hidden states."""
    for kind in ({}, {"kind": "jsd"}, {"kind": "taid", "interpolation": 0.3}):
        for chunks, rows in ((1, 40), (4, 10)):  # of 20 rows of both sides
            found = collectives(linear_divergence, divergence(), rows, **kind)
            assert found == ["gather"] * (1 + 2 * chunks) + ["sum"]
        assert collectives(linear_divergence, divergence("list"), 1000, **kind) == ["gather", "gather", "sum"]
    per_row = collectives(linear_divergence, divergence(), 40, reduction="none")
    assert per_row == ["gather"] * 3 + ["gather"] * 3 + ["sum"]
    groups = make_groups(4, 3, vocabulary=sum(SIZES)) | {"mask": torch.ones(4, 3, dtype=torch.bool)}
    for kind in ("jsd", "jeffreys"):
        for chunks, rows in ((1, 48), (2, 24)):  # of 12 rows, with room for F' in float64
            found = collectives(linear_pairwise_jsd, groups, rows, kind=kind)
            assert found == ["gather"] * (1 + 2 * chunks) + ["sum"]
    # Groups of 3 and of 2 rows, three each, and the other 24 rows.
    found = collectives(linear_mind_loss, make_joint(sum(SIZES)), 1000)
    assert found == ["gather"] * (1 + 3 + 3 + 2) + ["sum"]


def dtensors() -> None:
    """The gradient of hidden arrives as its placement has it."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=("tp",))
    rows = {"row_weight": divergence()["row_weight"]}
    calls = (
        (linear_divergence, divergence(), rows),
        (linear_divergence, divergence("list"), {}),
        (linear_pairwise_jsd, make_groups(3, 4, vocabulary=sum(SIZES)), {}),
        (linear_mind_loss, make_joint(sum(SIZES)), {}),
    )
    for call, inputs, options in calls:
        whole = backward(call, inputs | options, backend="reference")
        for placement in (Replicate(), Shard(0)):
            split = {k: distribute_tensor(inputs[k], mesh, [Shard(0)]) for k in HEADS if k in inputs}
            hidden = {
                k: distribute_tensor(inputs[k], mesh, [placement]) for k in ("hidden", "teacher_hidden") if k in inputs
            }
            found = backward(call, inputs | split | hidden | options, backend="torch")
            # Of whole hidden states each process has its part, as of torch.nn.functional.linear.
            assert found["d_hidden"].placements == (Partial() if placement == Replicate() else placement,)
            found |= {name: found[name].full_tensor() for name in ("d_hidden", "d_weight")}
            torch.testing.assert_close(found, whole, rtol=1e-13, atol=1e-14)


def in_a_graph() -> None:
    inputs = of_this_process(divergence())

    def loss(hidden):
        return linear_divergence(**(inputs | {"hidden": hidden}), kind="jsd", backend="torch")

    found = []
    for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        hidden = inputs["hidden"].clone().requires_grad_()
        value = function(hidden)
        value.backward()
        found.append((value.detach(), hidden.grad))
    assert all(map(torch.equal, *found))


def top_k() -> None:
    """Also of more tokens than a shard has, and of some that are ruled out."""
    inputs = make(20, 8, sum(SIZES))
    bias = torch.linspace(-1, 1, sum(SIZES), dtype=torch.float64)
    bias[:45:3] = -torch.inf
    inputs = {"hidden": inputs["hidden"], "weight": inputs["weight"], "bias": bias}
    for k in (1, 7, 50, sum(SIZES)):
        whole = linear_top_k(k=k, **inputs, temperature=0.8, backend="reference")
        for backend in ("reference", "torch"):
            with rows_in_a_chunk(6):
                found = linear_top_k(k=k, **of_this_process(inputs), temperature=0.8, backend=backend)
            assert torch.equal(torch.isinf(found.log_prob), torch.isinf(whole.log_prob))
            torch.testing.assert_close(found[1:], whole[1:], rtol=1e-13, atol=1e-14)
            likely = whole.log_prob > -torch.inf
            assert torch.equal(found.ids[likely], whole.ids[likely])
            assert all(len(set(row)) == k for row in found.ids.tolist())
    refuses(linear_top_k, of_this_process(inputs) | {"k": 102}, "k is 102: expected 1 to 101")
    refuses(linear_top_k, of_this_process(inputs) | {"k": 3 + dist.get_rank()}, "k differs")


class Wide(TorchDispatchMode):
    """The sizes of the float64 tensors that are made inside."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes = [0]

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.sizes += [
            each.numel() for each in tree_leaves(out) if isinstance(each, Tensor) and each.dtype == torch.float64
        ]
        return out


def top_k_stays_in_float32() -> None:
    """A float64 copy of a chunk's logits would be twice the chunk."""
    inputs = {name: value.float() for name, value in make(20, 8, sum(SIZES)).items() if name in ("hidden", "weight")}
    hidden, head, k = inputs["hidden"], Head(of_this_process(inputs)["weight"]), 2
    shard = shards.agree(shards.group_of(dist.group.WORLD), "linear_top_k", head.vocabulary, hidden, lambda: None)
    with Wide() as wide:
        found = backend_torch.shard_top_k(hidden, head, k, shard)
    assert max(wide.sizes) <= len(SIZES) * len(hidden) * (1 + 2 * k)
    whole = linear_top_k(k=k, **{name: value.double() for name, value in inputs.items()}, backend="reference")
    assert torch.equal(found.ids, whole.ids)
    torch.testing.assert_close(found[1:], tuple(value.float() for value in whole[1:]), rtol=1e-6, atol=1e-6)


def refuses(call, inputs, message, error=ValueError):
    """In all processes."""
    with pytest.raises(error, match=re.escape(message)):
        call(**inputs)


def refusals() -> None:
    rank = dist.get_rank()
    inputs, groups, joint = (
        of_this_process(each)
        for each in (divergence(), make_groups(3, 4, vocabulary=sum(SIZES)), make_joint(sum(SIZES)))
    )
    hidden = inputs["hidden"]
    refuses(
        linear_divergence, inputs | {"hidden": hidden[: 20 - rank]}, "row_weight has shape" if rank else "process 1"
    )
    refuses(
        linear_divergence,
        inputs | {"kind": ("jsd", "reverse_kl", "jsd")[rank]},
        "kind, beta, skew or interpolation differs",
    )
    refuses(linear_divergence, inputs | {"teacher_softcap": 3.0 + rank}, "teacher_temperature differs")
    fewer = inputs["teacher_weight"][rank == 2 :]
    refuses(linear_divergence, inputs | {"teacher_weight": fewer}, "whether teacher_weight has as many rows as weight")
    more = torch.cat([inputs["teacher_weight"], hidden.new_ones(1, 13)])
    refuses(linear_divergence, inputs | {"teacher_weight": more}, "teacher_weight has shape")
    listed = of_this_process(divergence("list"))
    refuses(linear_divergence, listed | {"teacher_ids": listed["teacher_ids"] + 101}, "expected values in [0, 101)")
    unlike = listed["teacher_ids"].roll(rank, 1)
    refuses(linear_divergence, listed | {"teacher_ids": unlike}, "teacher_ids differs")
    refuses(linear_pairwise_jsd, groups | {"kind": "jeffreys" if rank else "jsd"}, "kind differs")
    refuses(linear_pairwise_jsd, groups | {"mask": groups["mask"].roll(rank, 1)}, "mask differs")
    refuses(linear_mind_loss, joint | {"answer_rows": joint["answer_rows"].roll(rank, 0)}, "answer_rows differs")
    refuses(linear_mind_loss, joint | {"target": joint["target"].roll(rank, 0)}, "target differs")
    for call, arguments in ((linear_divergence, inputs), (linear_pairwise_jsd, groups), (linear_mind_loss, joint)):
        refuses(
            call,
            arguments | {"backend": "cpp"},
            "it has no kernels for this operation with process_group; torch, triton",
            BackendUnavailableError,
        )


def every_check() -> None:
    for check in (number_of_collectives, top_k, top_k_stays_in_float32, dtensors, in_a_graph, refusals):
        check()


@pytest.mark.nightly
def test_a_head_of_three_shards():
    run_in_processes(len(SIZES), every_check)
