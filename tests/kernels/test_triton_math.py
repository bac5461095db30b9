"""The functions of triton_math that PyTorch has too; in the interpreter where there is no GPU."""

from __future__ import annotations

import math

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

import triton
import triton.language as tl

from mind_kernels.testing import assert_within_budget
from mind_kernels.triton_math import log1p, tanh

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@triton.jit
def _tanh_kernel(x, out, SIZE: tl.constexpr):
    tl.store(out + tl.arange(0, SIZE), tanh(tl.load(x + tl.arange(0, SIZE))))


@triton.jit
def _log1p_kernel(x, out, SIZE: tl.constexpr):
    tl.store(out + tl.arange(0, SIZE), log1p(tl.load(x + tl.arange(0, SIZE))))


def assert_precise(found, peer, truth):
    """Relative to the result."""
    relative = [{"ratio": value.double() / truth} for value in (found, peer, truth)]
    assert_within_budget(*relative, torch.float32)


@pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")  # lanes that are not chosen may overflow
def test_tanh():
    """From the smallest arguments to saturation and beyond."""
    size = torch.logspace(-6, 1.2, 2048, device=DEVICE)
    x, out = torch.cat([size, -size]), torch.empty(4096, device=DEVICE)
    _tanh_kernel[(1,)](x, out, SIZE=4096)
    assert_precise(out, x.tanh(), x.double().tanh())
    ends = torch.tensor([0.0, math.inf, -math.inf, math.nan], device=DEVICE)
    _tanh_kernel[(1,)](ends, out, SIZE=4)
    assert str(out[:4].tolist()) == "[0.0, 1.0, -1.0, nan]"


@pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")
def test_log1p():
    """From the smallest arguments on."""
    x, out = torch.logspace(-6, 6, 4096, device=DEVICE), torch.empty(4096, device=DEVICE)
    _log1p_kernel[(1,)](x, out, SIZE=4096)
    assert_precise(out, x.log1p(), x.double().log1p())
    ends = torch.tensor([0.0, math.inf, math.nan, 0.0], device=DEVICE)
    _log1p_kernel[(1,)](ends, out, SIZE=4)
    assert out[0] == 0 and not out[2].isfinite()
