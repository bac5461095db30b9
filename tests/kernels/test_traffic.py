"""The bytes per logit by which "auto" takes Triton on a GPU: the table in mind_kernels/backend.py, counted.

Of backend torch on the meta device, where its kernels take the branches of a GPU: every operator reads its large
arguments and writes its large results. Of Triton in its interpreter: every load and store of a kernel.
"""

from __future__ import annotations

import pytest
import torch

from bench.roofline import Counted
from mind_kernels import backend
from mind_kernels.availability import interpreted
from mind_kernels.backend import BYTES_PER_LOGIT
from mind_kernels.head import Head
from mind_kernels.linear_cross_entropy.contract import RowSpec, RowWeights
from mind_kernels.linear_divergence.kinds import divergence_of

# Of a meta device: large enough that a row's numbers do not count.
ROWS, VOCABULARY = 64, 32768


def operation_of(name: str) -> str:
    """What a line of the table is about, as the backends call it."""
    return max((operation for operation in backend.BACKENDS["triton"].kernels if name.startswith(operation)), key=len)


def loss_of(name: str, kernels, device: str, rows: int, vocabulary: int):
    """The kernel call of a line of the table, on fresh tensors."""
    dtype = torch.bfloat16 if name.endswith("bfloat16") else torch.float32
    head = Head(torch.zeros(vocabulary, 8, dtype=dtype, device=device))
    weights = torch.ones(rows, device=device)
    z = torch.randn(rows, vocabulary, device=device).to(dtype)
    if name.startswith("linear_cross_entropy"):
        target = torch.zeros(rows, dtype=torch.int64, device=device)
        scale = None if "statistics" in name else RowWeights(weights)
        return lambda: kernels.row_kernel_(z, target, scale, RowSpec(head))
    if name.endswith("list"):
        forward, ids = divergence_of("forward_kl", None, None, None), torch.arange(4, device=device).expand(rows, 4)
        log_p = torch.full((rows, 5), 0.2, device=device).log()
        return lambda: kernels.listed_divergence_(z, ids, log_p, weights, head, forward)
    if name.startswith("linear_divergence"):
        divergence, teacher = divergence_of(name.split()[-1], None, None, None), torch.randn_like(z)
        return lambda: kernels.divergence_(z, teacher, weights, head, head, divergence)
    grouped, mask = z.view(-1, 8, vocabulary), torch.ones(rows // 8, 8, dtype=torch.bool, device=device)
    if "mixture" in name:
        return lambda: kernels.mixture_divergences(grouped, torch.ones(rows // 8, 8, device=device), mask, True)
    return lambda: kernels.pair_divergences(grouped, torch.ones(rows // 8, 8, 8, device=device), mask, True)


def test_the_table_has_every_operation_that_auto_chooses_triton_for():
    # linear_mind_loss has the rows and groups of others; shards have the passes of whole rows.
    served = {name for name in backend.BACKENDS["triton"].kernels if not name.endswith(", shards")} - {
        "linear_mind_loss"
    }
    assert {operation_of(name) for name in BYTES_PER_LOGIT} == served


@pytest.mark.parametrize("name", BYTES_PER_LOGIT)
def test_torch_moves_these_bytes(name, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda tensor: tensor.device.type == "meta"))
    call = loss_of(name, backend.kernels(operation_of(name), "torch"), "meta", ROWS, VOCABULARY)
    with Counted(ROWS * VOCABULARY // 16) as counted:
        call()
    assert round(counted.bytes / (ROWS * VOCABULARY)) == BYTES_PER_LOGIT[name]["torch"]


@pytest.mark.skipif(not interpreted(), reason="the interpreter counts")
@pytest.mark.skipif(not backend.BACKENDS["triton"].availability().available, reason="triton is not here")
@pytest.mark.parametrize("name", BYTES_PER_LOGIT)
def test_triton_moves_these_bytes(name, monkeypatch):
    from triton.runtime.interpreter import InterpreterBuilder

    moved = 0

    def counted(method, value_of):
        def call(self, *arguments):
            nonlocal moved
            result = method(self, *arguments)
            value, mask = value_of(result, arguments)
            if value.data.size > 8:  # no number of a row
                moved += int(mask.data.sum()) * value.data.itemsize
            return result

        return call

    load, store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store
    monkeypatch.setattr(InterpreterBuilder, "create_masked_load", counted(load, lambda found, given: (found, given[1])))
    monkeypatch.setattr(InterpreterBuilder, "create_masked_store", counted(store, lambda _, given: given[1:3]))
    rows, vocabulary = 8, 512 if "pairwise" in name else 4096
    loss_of(name, backend.kernels(operation_of(name), "triton"), "cpu", rows, vocabulary)()
    assert round(moved / (rows * vocabulary)) == BYTES_PER_LOGIT[name]["triton"]
