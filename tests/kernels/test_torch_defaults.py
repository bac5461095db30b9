"""PyTorch's default device and dtype, which a program may set, are of no consequence for any operation."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from losses import LOSSES, Loss, make_constants, with_backends

from mind_kernels import linear_cross_entropy

OF_ERROR = partial(linear_cross_entropy, reduction="sum", gradient_error=1e-3)
EVERY = [*LOSSES, Loss("error", "linear_cross_entropy", ("target", "row_weight"), OF_ERROR)]
DEFAULTS = [(torch.device("meta"), torch.float32), (torch.device("cpu"), torch.float64), (None, torch.bfloat16)]


@pytest.mark.parametrize(("device", "dtype"), DEFAULTS, ids=str)
@with_backends(reference=True, losses=EVERY)
def test_defaults_change_nothing(loss, backend, device, dtype):
    """The loss and its gradients, bit by bit; on the meta device nothing could be computed."""
    if loss.name == "error" and backend == "torch":
        pytest.skip("this backend has no gradient_error")
    generator = torch.Generator().manual_seed(0)
    constants = make_constants(12, 31)
    leaves = [torch.randn(rows, 8, generator=generator).requires_grad_() for rows in (12, 31)]

    def run():
        found = loss(*leaves, constants, backend=backend)
        return [found.detach(), *torch.autograd.grad(found, leaves)]

    expected = run()
    torch.set_default_device(device)
    torch.set_default_dtype(dtype)
    try:
        found = run()
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
