"""Hidden states that are not numbers, in rows that the loss does not depend on: nothing else changes."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from losses import LOSSES, Loss, make_constants, with_backends

from mind_kernels import linear_cross_entropy

OF_ERROR = partial(linear_cross_entropy, reduction="sum", gradient_error=1e-3)
OF_ROWS = [loss for loss in LOSSES if {"target", "ids"} & set(loss.constants)]
ROW = 7  # no answer of the joint loss


@pytest.mark.parametrize("value", [math.nan, math.inf])
@with_backends(
    reference=True, losses=[*OF_ROWS, Loss("error", "linear_cross_entropy", ("target", "row_weight"), OF_ERROR)]
)
def test_ignored_rows_may_hold_anything(loss, backend, value):
    if loss.name == "error" and backend == "torch":
        pytest.skip("this backend has no gradient_error")
    generator = torch.Generator().manual_seed(0)
    constants = make_constants(12, 31)
    constants["target"][ROW] = constants["ids"][ROW] = -100
    results = []
    for number in (1.0, value):
        hidden, weight = (torch.randn(rows, 8, generator=generator.manual_seed(rows)) for rows in (12, 31))
        hidden[ROW] = number
        leaves = hidden.requires_grad_(), weight.requires_grad_()
        found = loss(*leaves, constants, backend=backend)
        results.append([found.detach(), *torch.autograd.grad(found, leaves)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(other, one, rtol=0, atol=0)
    assert results[0][1][ROW].count_nonzero() == 0
