"""What only the CUDA kernels have: sizes at which threads share their work, traps, and errors that name a tensor.

By tests/cuda_emulator on CPU tensors; everything else is in the suites of test_row_kernels.py, test_gather_rows.py and
test_group_kernels.py.
"""

from __future__ import annotations

import math

import pytest
import torch
from kernel_cases import (
    EVERYTHING,
    PLAIN,
    from_lse,
    kept_entries,
    make_groups,
    make_rows,
    truth_and_peer_of_groups,
    truth_and_peer_of_rows,
    unluckiest,
)

from mind_kernels.linear_cross_entropy.compiled_rows import CompiledRows
from mind_kernels.linear_cross_entropy.contract import RowWeights
from mind_kernels.linear_pairwise_jsd.compiled_groups import CompiledGroups
from mind_kernels.sparse_gradient import offsets_of
from mind_kernels.testing import assert_within_budget
from tests import cuda_emulator

pytestmark = [
    pytest.mark.skipif(bool(cuda_emulator.UNAVAILABLE), reason=cuda_emulator.UNAVAILABLE),
    pytest.mark.usefixtures("emulated"),
]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
ROWS, GROUPS = CompiledRows("cuda"), CompiledGroups("cuda")
KINDS = pytest.mark.parametrize("kind", ["pairs", "mixture"])


def count(logits, target):
    """Values, normalizer, kept, offsets and how many entries are kept of rows without options."""
    values, normalizer, kept, *_ = ROWS.count(logits, target, PLAIN.spec(logits.shape[1]))
    return values, normalizer, kept, offsets_of(kept), int(kept.sum())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rows_of_several_vectors_a_thread(dtype):
    vocabulary = 20011 if dtype == torch.float32 else 34001
    inputs = make_rows(1, vocabulary, dtype)
    out = inputs[0].clone()
    values = ROWS.row_kernel_(out, inputs[1], EVERYTHING.weights(*inputs[2:]), EVERYTHING.spec(vocabulary))
    truth, peer = truth_and_peer_of_rows(*inputs, EVERYTHING)
    gradient = {"gradient": truth.pop("gradient")}
    assert_within_budget(values._asdict(), peer, truth, torch.float32)
    assert_within_budget({"gradient": out}, peer, gradient, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_entries_of_several_vectors_a_thread(dtype):
    logits, target, scale, entropy_scale = make_rows(1, 40003, dtype)
    values, normalizer, kept, offsets, total = count(logits, target)
    spec = PLAIN.spec(40003)
    columns, found, kept_sum = ROWS.entries(logits, target, normalizer, values, RowWeights(scale), spec, offsets, total)
    assert bool((columns.diff() > 0).all())
    mask = torch.zeros(logits.shape, dtype=torch.bool).index_fill_(1, columns.long(), True)
    should, close = kept_entries(logits, target, PLAIN)
    assert torch.equal(mask | close, should | close) and kept.tolist() == [total]

    def formula(logits, order=None):
        _, dz, _, gradient = from_lse(logits, target, scale, entropy_scale, PLAIN, order)
        return {"kept_sum": (dz * mask).sum(1), "values": gradient[mask]}

    truth = formula(logits.double())
    peer = unluckiest(lambda order: formula(logits.float(), order), 40003, truth)
    assert_within_budget({"kept_sum": kept_sum, "values": found}, peer, truth, torch.float32)


def test_no_rows():
    logits, target, none = torch.empty(0, 67), torch.empty(0, dtype=torch.int64), torch.empty(0)
    values, normalizer, _, offsets, total = count(logits, target)
    spec = PLAIN.spec(67)
    columns, _, _ = ROWS.entries(logits, target, normalizer, values, RowWeights(none), spec, offsets, total)
    assert values.loss.shape == columns.shape == (0,)


@pytest.mark.parametrize("bad", [-1, 101, 2**40])
def test_bad_values_on_the_device_trap(bad):
    """What the host cannot check: the kernel ends before it reads or writes there."""
    logits, target, scale, _ = make_rows(3, 101, torch.float32)
    values, normalizer, _, offsets, total = count(logits, target)
    weights, spec = RowWeights(scale), PLAIN.spec(101)
    rows = torch.tensor([0, bad])
    with pytest.raises(RuntimeError, match="background could not be launched: trap"):
        ROWS.background(logits, rows, target, normalizer, torch.ones(2), spec)
    shifted, fewer = offsets.clone(), offsets.clone()
    shifted[1], fewer[2] = bad, fewer[2] - 1
    for wrong in (shifted, fewer):
        with pytest.raises(RuntimeError, match="entries could not be launched: trap"):
            ROWS.entries(logits, target, normalizer, values, weights, spec, wrong, total)
    target[1] = bad
    with pytest.raises(RuntimeError, match="row_kernel_ could not be launched: trap"):
        ROWS.row_kernel_(logits, target, weights, spec)
    with pytest.raises(RuntimeError, match="count could not be launched: trap"):
        ROWS.count(logits, target, spec)


def test_bad_tensors_of_rows_are_named():
    logits, target, scale, _ = make_rows(3, 101, torch.float32)
    for arguments, message in [
        ((logits.T, target, RowWeights(scale)), "logits has rows that are not contiguous"),
        ((logits.double(), target, RowWeights(scale)), "logits has dtype"),
        ((logits, target[:2], RowWeights(scale)), r"target has shape \(2\): expected \(3\)"),
        ((logits, target.int(), RowWeights(scale)), "target has dtype"),
        ((logits, target, RowWeights(scale[:1])), "scale has shape"),
        ((logits[:1].expand(3, 101), target, RowWeights(scale)), "logits has rows that overlap"),
        ((logits[:, :0], target, RowWeights(scale)), "logits have 0 columns"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            ROWS.row_kernel_(*arguments, PLAIN.spec(101))


def gather_arguments():
    """values, indices, offsets, matrix, left and right of bags of 3 and 200 entries."""
    generator = torch.Generator().manual_seed(0)
    indices = torch.randint(0, 11, (203,), generator=generator, dtype=torch.int32)
    matrix, right = torch.randn(11, 40, generator=generator), torch.ones(1, 40)
    return [torch.ones(203), indices, torch.tensor([0, 3, 203]), matrix, torch.ones(2, 1), right]


@pytest.mark.parametrize(
    "name, position, bad",
    [
        ("indices", 1, 11),
        ("indices", 150, -1),
        ("indices", 5, 2**31 - 1),
        ("offsets", 1, -1),
        ("offsets", 1, 204),
        ("offsets", 2, 2**40),
    ],
)
def test_bad_lists_trap(name, position, bad):
    arguments = gather_arguments()
    arguments[{"indices": 1, "offsets": 2}[name]][position] = bad
    with pytest.raises(RuntimeError, match="gather_rows could not be launched: trap"):
        ROWS.gather_rows(*arguments, torch.empty(2, 40))


def test_bad_tensors_of_a_gather_are_named():
    values, indices, offsets, matrix, left, right = gather_arguments()
    out = torch.empty(2, 40)
    for arguments, message in [
        ((values, indices, offsets, matrix, left, right.half(), out), "right has dtype Half: expected Float"),
        ((values, indices, offsets, matrix, left, right, out.half()), "out has dtype Half: expected Float"),
        ((values, indices, offsets, matrix, left[:1], right, out), "left has shape"),
        ((values, indices.long(), offsets, matrix, left, right, out), "indices has dtype"),
        ((values, indices, offsets[1:], matrix, left, right, out), "offsets has shape"),
        ((values, indices, offsets, matrix.T, left, right, out), "matrix has rows that are not contiguous"),
        ((values, indices, offsets, matrix, left, right, out[:1].expand(2, 40)), "out has rows that overlap"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            ROWS.gather_rows(*arguments)


def run_groups(kind, logits, weight, mask):
    kernel = GROUPS.pair_divergences if kind == "pairs" else GROUPS.mixture_divergences
    values, gradient = kernel(logits, weight, mask, True)
    return {"values": values, "gradient": gradient}


# Parts of a warp's columns, spans of several warps, and parts of a block of rows.
@pytest.mark.parametrize("shape", [(1, 7, 68), (1, 17, 7), (1, 3, 2100), (1, 2, 8200)], ids=str)
@KINDS
def test_groups_at_the_ends_of_blocks(kind, shape):
    inputs = make_groups(kind, *shape, scale=2.0)
    truth, peer = truth_and_peer_of_groups(*inputs)
    assert_within_budget(run_groups(kind, *inputs), peer, truth, torch.float32)


@KINDS
def test_absent_rows_are_not_read(kind):
    logits, weight, mask = make_groups(kind, 1, 12, 67)
    mask[0, 2:4] = torch.tensor([False, True])
    expected = run_groups(kind, logits, weight, mask)
    for contents in (math.nan, math.inf):
        found = run_groups(kind, torch.where(mask[..., None], logits, contents), weight, mask)
        assert all(torch.equal(value, expected[name]) for name, value in found.items())


@pytest.mark.parametrize("shape", [(2, 0, 67), (2, 1, 67)], ids=str)
@KINDS
def test_nothing_to_compare(kind, shape):
    groups, rows, _ = shape
    weight = torch.ones((groups, rows, rows) if kind == "pairs" else (groups, rows))
    found = run_groups(kind, torch.zeros(shape), weight, torch.ones(groups, rows, dtype=torch.bool))
    assert found["gradient"].shape == shape and not any(value.any() for value in found.values())


@KINDS
def test_bad_tensors_of_groups_are_named(kind):
    logits, weight, mask = make_groups(kind, 2, 3, 67)
    for arguments, message in [
        ((logits[0], weight, mask), "logits have shape"),
        ((logits.double(), weight, mask), "logits has dtype"),
        ((logits[..., ::2], weight, mask), "logits is not contiguous"),
        ((logits, weight[:1], mask), "_weight has shape"),
        ((logits, weight, mask.float()), "mask has dtype"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            run_groups(kind, *arguments)
