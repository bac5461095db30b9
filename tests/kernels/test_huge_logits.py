"""Rows whose logits are all huge: a softmax depends on their differences alone, however large they are.

Hidden states are the rows of an identity, so that a head's weight holds the logits, and its gradient theirs.
"""

from __future__ import annotations

import pytest
import torch
from losses import LOSSES, make_constants, with_backends

from mind_kernels import Head, linear_top_k

# Lanes that are not stored, and branches that are not taken, may overflow in Triton's interpreter.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")

VOCABULARY = 31
LARGEST = torch.finfo(torch.float32).max
# A square of lse or a mean of logits would overflow.
OF_DIFFERENCES = [loss for loss in LOSSES if loss.name not in ("smoothed", "listed")]


def make_logits(height: float, gap: float) -> torch.Tensor:
    """(6, V) float32: of each three rows, two have all logits at `height`, but some that are `gap` lower; of the next
    three, the third is an ordinary one."""
    logits = torch.full((6, VOCABULARY), height)
    logits[0, 3:9] = logits[1, 5:20] = logits[3, 0:2] = logits[4, 1:4] = height - gap
    logits[2, 7:] = height - gap
    logits[5] = torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(0))
    return logits


HEIGHTS = {
    "1e4": (1e4, 0.5),
    "1e8": (1e8, 8.0),
    "-1e12": (-1e12, 1e7),
    "2^35": (2.0**35 + 2.0**12, 2.0**13),
    "-1e17": (-1e17, 1e12),
    "-1e19": (-1e19, 1e18),
    "-1e31": (-1e31, 1e30),
    "1e31": (1e31, 1e30),
    "lowest": (-LARGEST, 0.0),
    "largest": (LARGEST, LARGEST / 128),
}
each_height = pytest.mark.parametrize("height", HEIGHTS)


def results(loss, logits, backend, softcap=None):
    constants = make_constants(6, VOCABULARY, dtype=logits.dtype)
    weight = logits.T.contiguous().requires_grad_()
    value = loss(torch.eye(6, dtype=logits.dtype), Head(weight, softcap=softcap), constants, backend=backend)
    return value.detach(), torch.autograd.grad(value, weight)[0].T


@each_height
@with_backends(interpreter=True, losses=OF_DIFFERENCES)
def test_losses_and_gradients(loss, backend, height):
    logits = make_logits(*HEIGHTS[height])
    truth = results(loss, logits.double(), "reference")
    atol = 1e-5 if "sparse" in loss.name else 2e-7  # where the gradient may be approximate
    for found, expected in zip(results(loss, logits, backend), truth, strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=2e-5, atol=atol)


@pytest.mark.parametrize("low", [-1e18, -1e30])
@with_backends(interpreter=True, losses=[loss for loss in LOSSES if loss.operation == "linear_divergence"])
def test_a_softcap_makes_any_number_a_logit(loss, backend, low):
    """Also one that a kernel may use to mark a token."""
    logits = torch.randn(6, VOCABULARY, generator=torch.Generator().manual_seed(0))
    logits[:, 4:12] = logits[3] = low
    truth = results(loss, logits.double(), "reference", 5.0)
    for found, expected in zip(results(loss, logits, backend, 5.0), truth, strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=2e-5, atol=2e-7)


@each_height
def test_top_k(height):
    logits = make_logits(*HEIGHTS[height])
    found = linear_top_k(torch.eye(6), logits.T.contiguous(), 12, backend="torch")
    truth = torch.log_softmax(logits.double(), 1)
    torch.testing.assert_close(found.log_prob.double(), truth.topk(12).values, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.log_prob.double(), truth.gather(1, found.ids), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.lse.double(), logits.double().logsumexp(1), rtol=1e-6, atol=0)
