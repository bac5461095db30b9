"""Weights up to 2^100 beside tokens that a bias rules out: their logarithm of 0 times a weight stays a number."""

from __future__ import annotations

import math

import pytest
import torch
from losses import LOSSES, Loss, make_constants, with_backends

from mind_kernels import Head, linear_pairwise_jsd

# Lanes that are not stored may overflow in Triton's interpreter.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")

ROWS, SIZE, VOCABULARY = 12, 8, 37
LARGE = 2.0**100
WEIGHTS = ("row_weight", "pair_weight", "mixture_weight", "answer_weight")


def _jeffreys(hidden, head, **options):
    return linear_pairwise_jsd(hidden.unflatten(0, (-1, 3)), head, kind="jeffreys", **options)


JEFFREYS = Loss("jeffreys", "linear_pairwise_jsd, jeffreys", ("pair_weight",), _jeffreys)
WEIGHTED = [loss for loss in LOSSES if set(loss.constants) & set(WEIGHTS)]


def gradients(loss, backend, scale):
    """Of hidden states, weight and bias, over `scale`, the size of the weights."""
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, SIZE, generator=generator) for n in (ROWS, VOCABULARY))
    bias = torch.zeros(VOCABULARY)
    constants = make_constants(ROWS, VOCABULARY)
    ruled_out = torch.ones(VOCABULARY, dtype=torch.bool)
    for name in ("target", "ids", "teacher_ids"):
        ruled_out[constants[name]] = False
    assert ruled_out.sum() > 3
    bias[ruled_out] = -math.inf
    constants |= {name: value * scale for name, value in constants.items() if name in WEIGHTS}
    leaves = [tensor.requires_grad_() for tensor in (hidden, weight, bias)]
    loss(hidden, Head(weight, bias), constants, backend=backend).backward()
    return [leaf.grad / scale for leaf in leaves]


@with_backends(interpreter=True, losses=[*WEIGHTED, JEFFREYS])
def test_gradients_are_those_of_small_weights_times_their_size(loss, backend):
    for large, small in zip(gradients(loss, backend, LARGE), gradients(loss, backend, 1.0), strict=True):
        torch.testing.assert_close(large, small, rtol=1e-4, atol=1e-6)
