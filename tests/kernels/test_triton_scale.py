"""The kernel that multiplies gradients by the upstream gradient on a GPU."""

from __future__ import annotations

import contextlib

import pytest
import torch
from cases import device_of, interpreted

pytest.importorskip("triton")
from mind_kernels import autograd, triton_scale
from mind_kernels.linear_cross_entropy import linear_cross_entropy

DEVICE = device_of("triton")
pytestmark = pytest.mark.skipif(not (interpreted("triton") or DEVICE == "cuda"), reason="Triton cannot run here")
# Triton's interpreter does not round to bfloat16.
PAIRS = [(torch.float32, torch.float32), (torch.float32, torch.float16)]
PAIRS += [] if interpreted("triton") else [(torch.bfloat16, torch.bfloat16)]


@pytest.mark.parametrize("count", [0, 1, 8191, 8192, 20000])
@pytest.mark.parametrize("factor", [1.0, -0.3, 0.0, float("nan")])
@pytest.mark.parametrize("dtypes", PAIRS, ids=str)
def test_one_rounding(dtypes, factor, count):
    source = torch.randn(count, device=DEVICE).to(dtypes[0])
    factor = torch.tensor(factor, device=DEVICE)
    out = torch.full((count,), 7.0, device=DEVICE, dtype=dtypes[1])
    triton_scale.scale(source, factor, out)
    torch.testing.assert_close(out, (source.float() * factor).to(dtypes[1]), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("factor", [1.0, 0.7])
@pytest.mark.parametrize("dtype", sorted({out for _, out in PAIRS}, key=str), ids=str)
def test_in_place(dtype, factor):
    source = torch.randn(10000, device=DEVICE).to(dtype)
    expected = (source.float() * torch.tensor(factor, device=DEVICE)).to(dtype)
    triton_scale.scale(source, torch.tensor(factor, device=DEVICE), source)
    torch.testing.assert_close(source, expected, rtol=0, atol=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_gradients_on_a_gpu(dtype):
    hidden = torch.randn(40, 32, device="cuda", dtype=dtype, requires_grad=True)
    weight = torch.randn(300, 32, device="cuda", dtype=dtype, requires_grad=True)
    target = torch.randint(300, (40,), device="cuda")
    loss = linear_cross_entropy(hidden, weight, target)
    once = torch.autograd.grad(loss, (hidden, weight), retain_graph=True)
    factor = torch.tensor(-1.5, device="cuda")
    again = torch.autograd.grad(loss, (hidden, weight), factor, retain_graph=True)
    in_place = torch.autograd.grad(loss, (hidden, weight), factor)
    for first, second, third in zip(once, again, in_place, strict=True):
        torch.testing.assert_close(second, (first.float() * -1.5).to(dtype), rtol=2e-2, atol=0)
        assert torch.equal(second, third)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two CUDA devices")
def test_the_tensors_decide_on_the_device():
    source = torch.ones(10000, device="cuda:1")
    with torch.cuda.device(0):
        triton_scale.scale(source, torch.tensor(2.0, device="cuda:1"), source)
    assert bool((source == 2).all())


def test_it_launches_on_the_device_of_its_tensors(monkeypatch):
    """With a stand-in for a second GPU: the kernel is launched while that is the current one."""
    current = []
    monkeypatch.setattr(torch.cuda, "device_of", lambda tensor: contextlib.nullcontext(current.append(tensor)))
    monkeypatch.setattr(triton_scale, "_scale_kernel", {(1,): lambda *_, **options: current.append(options)})
    source = torch.ones(5)
    triton_scale.scale(source, torch.tensor(2.0), source)
    assert current[0] is source and current[1]["IN_PLACE"] is True
    triton_scale.scale(source, torch.tensor(2.0), torch.empty(5))
    assert current[3]["IN_PLACE"] is False


@pytest.mark.parametrize("retained", [False, True])
def test_autograd_uses_it_on_a_gpu(retained, monkeypatch):
    """With a stand-in for the GPU: in place unless the graph is retained."""
    in_place = []
    monkeypatch.setattr(triton_scale, "scale", lambda source, factor, out: in_place.append(source is out))
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda _: True))
    monkeypatch.setattr(torch._C._autograd, "_get_current_graph_task_keep_graph", lambda: retained)
    gradient = torch.ones(3)
    scaled = autograd._scaled([gradient] * 3, [True, False, False], torch.tensor(2.0), torch.float32)
    assert in_place == [not retained] and (scaled.hidden is gradient) == (not retained) and scaled.weight is None
