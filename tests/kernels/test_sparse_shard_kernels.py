"""What the sparse gradient asks of a shard's logits once whole rows are known, for every implementation: counts, kept
entries and the background. The shards of a test are columns of one matrix of logits."""

from __future__ import annotations

import functools
import math

import implementations
import pytest
import torch
from cases import DTYPES
from kernel_cases import EVERYTHING, PLAIN, THRESHOLD, Options, from_lse, kept_entries
from shard_cases import columns, joined, shards_of
from test_row_kernels import assert_follows, make

from mind_kernels.row_chunks import accumulation_dtype
from mind_kernels.sparse_gradient import offsets_of

# Lanes that are not stored may overflow in Triton's interpreter.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")

SHARDS = "linear_cross_entropy, shards"
# The kernels of triton_streaming are Triton's.
ALL = [implementation for implementation in implementations.of(SHARDS) if implementation.backend != "triton_streaming"]
SIZES = [(5, 1, 61), (101, 101), (984, 16, 24)]
each = functools.partial(implementations.each, of=ALL, dtypes=DTYPES)


def counted(kernels, logits, target, options, sizes):
    """For each shard its logits and targets, whole rows, and what is counted of them."""
    shards, spec = shards_of(sizes, logits.device), options.spec(logits.shape[1])
    parts = [(logits[:, columns(shard)].contiguous(), shard.local(target)) for shard in shards]
    sums = [kernels.shard_sums(*part, spec) for part in parts]
    for shard, part, whole in zip(shards, parts, joined(shards, sums, target, spec), strict=True):
        yield shard, *part, whole, kernels.count_shard(*part, whole, options.spec(shard.size))


@each([PLAIN, Options(entropy=True), EVERYTHING], SIZES, names="options sizes")
def test_entries_of_all_shards_are_those_of_the_row(implementation, dtype, options, sizes):
    inputs = make(implementation, sum(sizes), dtype)
    (logits, target), weights = inputs[:2], options.weights(*inputs[2:])
    kernels, wide = implementation.kernels(SHARDS), accumulation_dtype(dtype)
    gradient, kept_sum = torch.zeros(logits.shape, dtype=wide, device=logits.device), 0
    mask, dropped, shards_kept = torch.zeros_like(logits, dtype=torch.bool), 0, 0
    for shard, part, local, whole, found in counted(kernels, logits, target, options, sizes):
        before, spec = part.clone(), options.spec(shard.size)
        offsets, total = offsets_of(found.kept), int(found.kept.sum())
        entries = kernels.entries(part, local, found.normalizer, found.values, weights, spec, offsets, total)
        assert torch.equal(part, before)
        row = torch.repeat_interleave(torch.arange(len(part), device=part.device), found.kept)
        assert bool(((row * max(1, shard.size) + entries.columns).diff() > 0).all())  # each once, by row and column
        gradient[row, shard.start + entries.columns.long()] = entries.values
        mask[row, shard.start + entries.columns.long()] = True
        kept_sum, dropped, shards_kept = (
            kept_sum + entries.kept_sum,
            dropped + found.dropped_mass,
            shards_kept + found.kept,
        )
        torch.testing.assert_close(found.others, whole.others)
    should, close = kept_entries(logits, target, options)
    assert torch.equal(mask | close, should | close) and torch.equal(mask.sum(1), shards_kept)

    def formula(logits, order=None):
        p, dz, _, gradient = from_lse(logits, *inputs[1:], options, order)
        dropped = torch.where(mask, 0, p).sum(1)
        return {"dropped": dropped, "kept_sum": (dz * mask).sum(1), "values": gradient[mask]}

    results = {"dropped": dropped, "kept_sum": kept_sum, "values": gradient[mask]}
    truth = formula(logits.double())
    torch.testing.assert_close(results["dropped"].double(), truth["dropped"], rtol=1e-4, atol=1e-6)
    assert_follows(lambda *a: {k: v for k, v in formula(*a).items() if k != "dropped"}, results, logits)


@each([PLAIN, EVERYTHING], [[0], [4, 1, 3], list(range(5)) * 9], SIZES, names="options chosen sizes")
def test_background_of_all_shards(implementation, dtype, options, chosen, sizes):
    inputs = make(implementation, sum(sizes), dtype, rows=5)
    logits, target = inputs[:2]
    chosen = torch.tensor(chosen, device=logits.device)
    weight = torch.linspace(0.5, 2, len(chosen), device=logits.device, dtype=accumulation_dtype(dtype))
    kernels, parts = implementation.kernels(SHARDS), []
    for shard, part, local, _, found in counted(kernels, logits, target, options, sizes):
        spec = options.spec(shard.size)
        parts.append(kernels.background(part, chosen, local, found.normalizer, weight, spec))
    kept, close = kept_entries(logits, target, options)
    assert not bool((close & ~kept).any())

    def formula(logits, order=None):
        terms = from_lse(logits, *inputs[1:], options, order)
        return {"background": weight.to(logits.dtype) @ torch.where(kept, 0, terms.p * terms.slope)[chosen]}

    assert_follows(formula, {"background": torch.cat(parts)}, logits)


@each(dtypes=())
def test_a_confident_row(implementation):
    """All others together have 1e-9: what is kept is a share of that, also in the shards without the target."""
    logits = torch.linspace(-2, 2, 90, device=implementation.device).repeat(2, 1)
    target = torch.tensor([50, 3], device=implementation.device)
    logits[[0, 1], target] = 24.0
    kernels = implementation.kernels(SHARDS)
    found = list(counted(kernels, logits, target, PLAIN, (40, 30, 20)))
    others = torch.softmax(logits.double(), 1).scatter(1, target[:, None], 0)
    above = (others > THRESHOLD * others.sum(1, keepdim=True)).scatter(1, target[:, None], True)
    for shard, _, _, whole, of_shard in found:
        assert torch.equal(of_shard.kept, above[:, columns(shard)].sum(1))
        torch.testing.assert_close(whole.others.double(), others.sum(1), rtol=1e-5, atol=0)
        truth = torch.where(above, 0, others)[:, columns(shard)].sum(1)
        torch.testing.assert_close(
            of_shard.dropped_mass.double(), truth, rtol=0, atol=1e-6 * float(others.sum(1).max())
        )


@each(dtypes=())
def test_entries_that_are_ruled_out_are_not_kept(implementation):
    logits = torch.zeros(2, 60, device=implementation.device)
    logits[:, :20] = logits[:, 30:35] = -math.inf
    target = torch.tensor([25, 59], device=implementation.device)
    kernels = implementation.kernels(SHARDS)
    found = list(counted(kernels, logits, target, PLAIN, (20, 20, 20)))
    assert [of_shard.kept.tolist() for *_, of_shard in found] == [[0, 0], [15, 15], [20, 20]]
