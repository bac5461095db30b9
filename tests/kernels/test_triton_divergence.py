"""Triton's row kernels of the divergences on rows of several tiles; in the interpreter where there is no GPU."""

from __future__ import annotations

import math

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

import triton
import triton.language as tl

from mind_kernels.head import Head
from mind_kernels.linear_divergence import backend_torch, backend_triton
from mind_kernels.linear_divergence._triton.rows import pair_launch
from mind_kernels.linear_divergence.kinds import Divergence
from mind_kernels.testing import assert_within_budget
from mind_kernels.triton_math import log1p

# Lanes that are not stored may overflow in the interpreter.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HEADS = Head(torch.empty(0), None, 5.0, 0.7), Head(torch.empty(0), None, 9.0, 0.7)
PLAIN = Head(torch.empty(0)), Head(torch.empty(0))
DIVERGENCES = [Divergence(1.0, 0.0, 0.0), Divergence(0.3, 0.7, 0.3), Divergence(1.0, 0.0, 0.0, 0.4)]


def make(rows, vocabulary):
    """Logits of both, larger at some tokens, weights of both signs, and a list of 5 tokens for a teacher."""
    generator = torch.Generator().manual_seed(vocabulary)
    logits = torch.randn(2, rows, vocabulary, generator=generator)
    logits[:, :, ::97] += 3
    logits[1] = (logits[0] + logits[1]) / 2
    ids = torch.rand(rows, vocabulary, generator=generator).argsort(1)[:, :5]
    log_p = torch.log_softmax(torch.randn(rows, 6, generator=generator), 1)
    return *logits.to(DEVICE), torch.linspace(-1, 2, rows, device=DEVICE), ids.to(DEVICE), log_p.to(DEVICE)


def run(kernels, inputs, dtype, heads, divergence, listed):
    logits, theirs, weights, ids, log_p = inputs
    logits, theirs, weights, log_p = (tensor.to(dtype, copy=True) for tensor in (logits, theirs, weights, log_p))
    if listed:
        values = kernels.listed_divergence_(logits, ids, log_p, weights, heads[0], divergence)
    else:
        values = kernels.divergence_(logits, theirs, weights, *heads, divergence)
    return {"divergence": values.divergence, "entropy": values.entropy, "gradient": logits}


@pytest.mark.parametrize("listed", [False, True])
@pytest.mark.parametrize("heads", [PLAIN, HEADS], ids=["plain", "softcap"])
@pytest.mark.parametrize("divergence", DIVERGENCES, ids=str)
@pytest.mark.parametrize("shape", [(2, 2311), (1, 4112)], ids=str)  # neither a multiple of a tile
def test_several_tiles(shape, divergence, heads, listed):
    inputs = make(*shape)
    truth, peer = (
        run(backend_torch, inputs, dtype, heads, divergence, listed) for dtype in (torch.float64, torch.float32)
    )
    assert_within_budget(
        run(backend_triton, inputs, torch.float32, heads, divergence, listed), peer, truth, torch.float32
    )


def test_statistics_alone_are_those_of_the_gradient():
    logits, theirs, weights, *_ = make(3, 67)
    alone = backend_triton.divergence_(logits.clone(), theirs, None, *PLAIN, DIVERGENCES[1])
    with_gradient = backend_triton.divergence_(logits, theirs, weights, *PLAIN, DIVERGENCES[1])
    assert all(map(torch.equal, alone, with_gradient))


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("divergence", DIVERGENCES, ids=str)
def test_non_finite_logits_show(divergence, value):
    for of_teacher in (False, True):
        logits, theirs, weights, *_ = make(3, 67)
        (theirs if of_teacher else logits)[1, 40] = value
        found = backend_triton.divergence_(logits, theirs, weights, *PLAIN, divergence)
        assert found.divergence.isfinite().tolist() == [True, False, True]
        assert logits.isfinite().all(1).tolist() == [True, False, True]


@triton.jit
def _log1p_kernel(x, out, SIZE: tl.constexpr):
    tl.store(out + tl.arange(0, SIZE), log1p(tl.load(x + tl.arange(0, SIZE))))


def test_log1p():
    """Relative to the result, from the smallest arguments on."""
    x, out = torch.logspace(-6, 6, 4096, device=DEVICE), torch.empty(4096, device=DEVICE)
    _log1p_kernel[(1,)](x, out, SIZE=4096)
    truth = x.double().log1p()
    relative = [{"log1p / true log1p": value.double() / truth} for value in (out, x.log1p(), truth)]
    assert_within_budget(*relative, torch.float32)
    ends = torch.tensor([0.0, math.inf, math.nan, 0.0], device=DEVICE)
    _log1p_kernel[(1,)](ends, out, SIZE=4)
    assert out[0] == 0 and not out[2].isfinite()


def test_launches():
    for vocabulary in (2, 67, 1024, 50257, 151936, 262144):
        launch = pair_launch(vocabulary)
        assert launch["LANES"] == 32 * launch["num_warps"] and launch["num_warps"] <= 16
        assert launch["num_warps"] == 1 or launch["LANES"] * launch["VECTOR"] < 2 * vocabulary
    assert pair_launch(151936)["num_warps"] == 16 and pair_launch(151937)["num_warps"] == 8
