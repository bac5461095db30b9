"""What only Triton's row kernels of linear_cross_entropy have: rows of several tiles, and entries of several blocks.

In the interpreter where there is no GPU; everything else is in the suite of test_row_kernels.py.
"""

from __future__ import annotations

import pytest
import torch
from kernel_cases import (
    EVERYTHING,
    PLAIN,
    from_lse,
    kept_entries,
    make_rows,
    truth_and_peer_of_rows,
    unluckiest,
)

pytest.importorskip("triton", reason="triton is not installed")

from mind_kernels.linear_cross_entropy._triton.entries import background, entries
from mind_kernels.linear_cross_entropy._triton.rows import count, row_kernel_
from mind_kernels.linear_cross_entropy.contract import RowWeights
from mind_kernels.sparse_gradient import offsets_of
from mind_kernels.testing import assert_within_budget

# Lanes that are not stored may overflow in the interpreter.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float32, torch.float16] + [torch.bfloat16] * torch.cuda.is_available()
VOCABULARY = 4507  # several tiles of a row, and several blocks of its entries
OPTIONS = [PLAIN, EVERYTHING]


def make(dtype):
    return make_rows(2, VOCABULARY, dtype, device=DEVICE)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_of_several_tiles(dtype, options):
    inputs = make(dtype)
    out = inputs[0].clone()
    values = row_kernel_(out, inputs[1], options.weights(*inputs[2:]), options.spec(VOCABULARY))
    truth, peer = truth_and_peer_of_rows(*inputs, options)
    gradient = {"gradient": truth.pop("gradient")}
    assert_within_budget(values._asdict(), peer, truth, torch.float32)
    assert_within_budget({"gradient": out}, peer, gradient, dtype)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_entries_of_several_blocks(dtype, options):
    logits, target, *weights = inputs = make(dtype)
    spec = options.spec(VOCABULARY)
    counted = count(logits, target, spec)
    found = entries(
        logits,
        target,
        counted.normalizer,
        counted.values,
        options.weights(*weights),
        spec,
        offsets_of(counted.kept),
        int(counted.kept.sum()),
    )
    rows = torch.repeat_interleave(torch.arange(2, device=DEVICE), counted.kept)
    assert bool(((rows * VOCABULARY + found.columns).diff() > 0).all())  # each once, by row and column
    mask = torch.zeros_like(logits, dtype=torch.bool)
    mask[rows, found.columns.long()] = True
    should, close = kept_entries(logits, target, options)
    assert torch.equal(mask | close, should | close)
    sampled, weight = torch.tensor([1, 0, 1], device=DEVICE), torch.tensor([0.5, 1.0, 2.0], device=DEVICE)
    dropped = background(logits, sampled, target, counted.normalizer, weight, spec)

    def formula(logits, order=None):
        p, dz, slope, gradient = from_lse(logits, *inputs[1:], options, order)
        return {
            "dropped_mass": (p * ~mask).sum(1),
            "kept_sum": (dz * mask).sum(1),
            "values": gradient[mask],
            "background": weight.to(p.dtype) @ torch.where(mask, 0, p * slope)[sampled],
        }

    truth = formula(logits.double())
    peer = unluckiest(lambda order: formula(logits.float(), order), VOCABULARY, truth)
    every = {"dropped_mass": counted.dropped_mass, "kept_sum": found.kept_sum}
    assert_within_budget(every | {"values": found.values, "background": dropped}, peer, truth, torch.float32)


def test_no_rows():
    logits, none = torch.empty(0, 67, device=DEVICE), torch.empty(0, device=DEVICE)
    spec, target = PLAIN.spec(67), none.long()
    counted = count(logits, target, spec)
    weights = RowWeights(none)
    found = entries(logits, target, counted.normalizer, counted.values, weights, spec, offsets_of(counted.kept), 0)
    assert counted.values.loss.shape == found.columns.shape == (0,)


def test_first_maximum_counts():
    """Every target against rows full of ties, in every part of a vector, a tile and a row."""
    for vocabulary in (67, 4500):
        logits = torch.zeros(1, vocabulary)
        logits[0, 13::29] = 3.0
        targets = torch.tensor([0, 12, 13, 14, 42, vocabulary - 1] + list(range(13, vocabulary, 29))[-2:])
        logits = logits.expand(len(targets), -1).contiguous().to(DEVICE)
        values = row_kernel_(logits, targets.to(DEVICE), None, PLAIN.spec(vocabulary))
        assert values.correct.tolist() == (targets == 13).tolist()
