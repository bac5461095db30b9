"""The contract of linear_cross_entropy's ShardKernels, for every implementation: sums of a shard's entries, and their
gradient by the terms of the whole row.

The shards of a test are columns of one matrix of logits, and the whole row's terms come from its definition in float64:
what joins them over processes is tested with the operation.
"""

from __future__ import annotations

import functools
import math

import implementations
import pytest
import torch
from cases import DTYPES
from kernel_cases import EVERYTHING, OPTIONS, PLAIN, Options, make_rows, statistics, truth_and_peer_of_rows, unluckiest
from shard_cases import columns, joined, shards_of

from mind_kernels.linear_cross_entropy import backend_torch
from mind_kernels.linear_cross_entropy.contract import RowValues
from mind_kernels.linear_cross_entropy.shard_contract import GradientTerms, RowSums
from mind_kernels.row_chunks import accumulation_dtype
from mind_kernels.testing import assert_within_budget

# Lanes that are not stored may overflow in Triton's interpreter.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")

SHARDS = "linear_cross_entropy, shards"
# The kernels of triton_streaming are Triton's.
ALL = [implementation for implementation in implementations.of(SHARDS) if implementation.backend != "triton_streaming"]
# Where shards end: less than a vector, one entry, parts of vectors; several tiles of a row; one shard of all.
ENDS = [(5, 6, 67), (16, 1000, 1024), (4507,), (101, 202)]
each = functools.partial(implementations.each, of=ALL, dtypes=DTYPES)


def make(implementation, vocabulary, dtype, rows=24):
    """As `make_rows`, with a row of weight zero."""
    rows = min(rows, 6) if implementation.slow else rows
    logits, target, *weights = make_rows(rows, vocabulary, dtype, device=implementation.device)
    for weight in weights:
        weight[1] = 0
    return logits, target, *(weight.to(accumulation_dtype(dtype)) for weight in weights)


def shards(logits, target, ends):
    """A copy of the logits of each shard, and the rows' targets in it, -1 if another has them."""
    for start, end in zip((0, *ends), ends, strict=False):
        mine = (start <= target) & (target < end)
        yield logits[:, start:end].clone(memory_format=torch.contiguous_format), torch.where(mine, target - start, -1)


def definition(logits, target, options):
    """The sums of a shard and that of all its e^(z - maximum), in the dtype of its logits."""
    z = options.condition(logits)
    maximum, here, place = z.amax(1), target >= 0, target.clamp(min=0)[:, None]
    shifted = z - maximum[:, None]
    exponential = shifted.exp()
    of_target = torch.where(here, exponential.gather(1, place).squeeze(1), 0)
    without = torch.where(torch.arange(z.shape[1], device=z.device) == target[:, None], 0, exponential)
    return {
        "maximum": maximum,
        "others": without.sum(1),
        "total": without.sum(1) + of_target,
        "moment": (exponential * shifted).sum(1),
        "at_target": torch.where(here, z.gather(1, place).squeeze(1), 0),
        "sum": z.sum(1),
    }


def definition_in_order(logits, target, options, order):
    """The same, summed in this order (V,) of the entries."""
    place = order.to(target.device).argsort()
    return definition(logits[:, order], torch.where(target < 0, target, place[target]), options)


def whole_terms(logits, target, scale, entropy_scale, options):
    """Of whole rows, by their definition in float64, in the dtype of the weights."""
    spec, z = options.spec(logits.shape[1]), options.condition(logits.double()).clamp(min=-1e4)  # 0 log 0 is 0
    values = RowValues(**statistics(z, target, spec), correct=target == target)
    others = torch.softmax(z, 1).scatter(1, target[:, None], 0).sum(1)
    weights = options.weights(scale.double(), entropy_scale.double())
    a, b, at_target = weights.coefficients(values, others, spec)
    top = z.amax(1)
    log_total = (z - top[:, None]).exp().sum(1).log()
    terms = GradientTerms(top, log_total, a, b, at_target, weights.uniform(spec))
    return GradientTerms(*(None if term is None else term.to(scale.dtype) for term in terms))


def assert_sums(sums, logits, target, options):
    """Those of projected logits (n, V_r) are right; `sums` hold what is promised of them."""
    wide = accumulation_dtype(logits.dtype)
    truth = definition(logits.double(), target, options)
    eager = functools.partial(definition_in_order, logits.to(wide), target, options)
    peer = unluckiest(eager, logits.shape[1], truth)
    found = sums._asdict()
    found["total"] = sums.others + torch.where(target < 0, 0, (sums.at_target - sums.maximum).exp())
    found["at_target"] = torch.where(target < 0, 0, sums.at_target)
    total, size = truth.pop("sum"), logits.shape[1]
    if options.label_smoothing:  # what it is for is the mean, and that need be as exact as a logit
        largest = float(options.condition(logits.double()).abs().max())
        torch.testing.assert_close(
            sums.sum.double() / size, total / size, rtol=0, atol=4 * torch.finfo(wide).eps * largest
        )
    # For the moment: a rounding of d is |d| roundings of e^d.
    assert_within_budget(found, peer, truth, wide, conditioning=2.0)


@each(OPTIONS, ENDS, names="options ends")
def test_sums_match_float64(implementation, dtype, options, ends):
    logits, target, *_ = make(implementation, ends[-1], dtype)
    kernels, spec = implementation.kernels(SHARDS), options.spec(ends[-1])
    for shard, here in shards(logits, target, ends):
        before = shard.clone()
        sums = kernels.shard_sums(shard, here, spec)
        assert torch.equal(shard, before)
        assert_sums(sums, shard, here, options)
        assert torch.equal(sums.argmax, options.condition(shard.double()).argmax(1))


@each(OPTIONS, ENDS, names="options ends")
def test_gradients_match_float64(implementation, dtype, options, ends):
    inputs = make(implementation, ends[-1], dtype)
    kernels, spec = implementation.kernels(SHARDS), options.spec(ends[-1])
    every = list(shards(*inputs[:2], ends))
    # The shards' own maximum: that in float64 would differ from the largest z by a rounding, and p with it.
    maximum = torch.stack([kernels.shard_sums(*shard, spec).maximum for shard in every]).amax(0)
    terms = whole_terms(*inputs, options)._replace(maximum=maximum)
    for shard in every:
        kernels.shard_gradient_(*shard, terms, spec)
    truth, peer = truth_and_peer_of_rows(*inputs, options)
    gradient = torch.cat([logits for logits, _ in every], 1)
    assert_within_budget({"gradient": gradient}, peer, {"gradient": truth["gradient"]}, dtype)


@each(dtypes=())
def test_others_keep_their_digits(implementation):
    """Beside a target of 1, others of 1e-10 are no rounding."""
    logits = torch.zeros(1, 40, device=implementation.device)
    logits[0, 17] = 23.0
    target = torch.tensor([17], device=implementation.device)
    sums = implementation.kernels(SHARDS).shard_sums(logits, target, PLAIN.spec(40))
    assert sums.others.item() == pytest.approx(39 * math.exp(-23), rel=1e-5)


@each([torch.float32, torch.float16], names="logits_dtype", dtypes=())
def test_the_first_of_equal_ones(implementation, logits_dtype):
    for vocabulary in (67, 4500):
        firsts = [0, 1, 13, 42, vocabulary - 1]
        logits = torch.zeros(len(firsts), vocabulary, dtype=logits_dtype)
        for row, first in enumerate(firsts):
            logits[row, first::29] = 3.0
        target = torch.tensor([-1, 13, 13, 50, -1], device=implementation.device)
        logits = logits.to(implementation.device)
        for options in (PLAIN, EVERYTHING):
            spec = options.spec(vocabulary)
            sums = implementation.kernels(SHARDS).shard_sums(logits, target, spec)
            assert sums.argmax.tolist() == firsts
    flat = torch.zeros(2, 67, dtype=logits_dtype, device=implementation.device)
    sums = implementation.kernels(SHARDS).shard_sums(flat, target[:2] * 0 - 1, PLAIN.spec(67))
    assert sums.argmax.tolist() == [0, 0]


@each([0, 1, 3], names="offset")
def test_rows_of_a_wider_buffer(implementation, dtype, offset):
    """Whatever the rows' alignment, what is around them is neither read nor written."""
    inputs = make(implementation, 67, dtype, rows=3)
    buffer = torch.full((3, 89), math.nan, dtype=dtype, device=implementation.device)
    view = buffer[:, offset : offset + 67]
    view.copy_(inputs[0])
    kernels, spec, target = implementation.kernels(SHARDS), EVERYTHING.spec(67), inputs[1].clone()
    target[0] = -1
    sums, expected = (kernels.shard_sums(logits, target, spec) for logits in (view, inputs[0]))
    torch.testing.assert_close(sums, expected)
    terms = whole_terms(*inputs, EVERYTHING)
    for logits in (view, inputs[0]):
        kernels.shard_gradient_(logits, target, terms, spec)
    torch.testing.assert_close(view, inputs[0])
    assert bool(buffer[:, :offset].isnan().all()) and bool(buffer[:, offset + 67 :].isnan().all())


@each([PLAIN, Options(label_smoothing=0.1), Options(entropy=True)], names="options", dtypes=())
def test_entries_that_are_ruled_out(implementation, options):
    """Of a shard some, or all: they have no probability and no gradient."""
    logits, _, *weights = make(implementation, 67, torch.float32, rows=3)
    logits[0, 20:60] = logits[1, :60] = logits[2, ::2] = -math.inf
    target = torch.tensor([3, 63, 65], device=implementation.device)
    kernels, spec = implementation.kernels(SHARDS), options.spec(67)
    terms = whole_terms(logits, target, *(weight + 2 for weight in weights), options)
    for shard, here in shards(logits, target, (20, 60, 67)):
        ruled_out = shard == -math.inf
        none, sums = ruled_out.all(1), kernels.shard_sums(shard, here, spec)
        assert torch.equal(sums.maximum == -math.inf, none)
        assert not sums.others[none].any() and not sums.moment[none].any()
        some = ~none
        finite = torch.where(ruled_out, shard.double().clamp(min=-1e4), shard)
        assert_sums(RowSums(*(x[some] for x in sums)), finite[some].float(), here[some], PLAIN)
        kernels.shard_gradient_(shard, here, terms, spec)
        expected = torch.zeros_like(shard) if terms.uniform is None else -terms.uniform[:, None].expand_as(shard)
        assert torch.equal(shard[ruled_out], expected[ruled_out]) and bool(shard.isfinite().all())


@each([math.nan, math.inf], names="value", dtypes=())
def test_non_finite_logits_show(implementation, value):
    logits, target, *_ = make(implementation, 1009, torch.float32, rows=3)
    logits[1, 700] = value
    sums = implementation.kernels(SHARDS).shard_sums(logits, target, PLAIN.spec(1009))
    assert (sums.maximum + sums.others).isfinite().tolist() == [True, False, True]
    assert 0 <= int(sums.argmax[1]) < 1009


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_are_joined(dtype):
    """Of shards of any size, one of them empty, and one with the only entry that is not excluded."""
    sizes = (20, 0, 40, 7)
    logits, target, *_ = make_rows(6, sum(sizes), dtype)
    logits[0] = torch.full_like(logits[0], -math.inf).index_fill(0, target[0], 1.5)
    of_shards, spec = shards_of(sizes), PLAIN.spec(sum(sizes))
    parts = [logits[:, columns(shard)].contiguous() for shard in of_shards]
    sums = [
        backend_torch.shard_sums(part, shard.local(target), spec) if shard.size else RowSums.empty(6, part)
        for shard, part in zip(of_shards, parts, strict=True)
    ]
    found = joined(of_shards, sums, target, spec)
    truth, of_target = logits.double(), logits.double().softmax(1).gather(1, target[:, None]).squeeze(1)
    expected = statistics(truth.clamp(min=-1e30), target, spec)
    others = truth.scatter(1, target[:, None], -math.inf)
    expected["others"] = 1 - of_target
    expected["lse_others"] = others.logsumexp(1).masked_fill(others.amax(1) == -math.inf, math.inf)
    for rows, shard in zip(found, of_shards, strict=True):
        values = rows.values._asdict() | rows._asdict()
        for name, value in expected.items():
            torch.testing.assert_close(values[name].double(), value, rtol=1e-5, atol=1e-5, msg=name)
        here = others[:, columns(shard)].exp().sum(1) / truth.exp().sum(1)
        torch.testing.assert_close(rows.here.double(), here, rtol=1e-5, atol=1e-5)
        assert torch.equal(rows.extra["predicted"], logits.argmax(1))
        assert torch.equal(rows.values.correct, logits.argmax(1) == target)
