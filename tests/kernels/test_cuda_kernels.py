"""The CUDA kernels of rows against plain PyTorch in float64, on CPU tensors by tests/cuda_emulator."""

from __future__ import annotations

import math

import pytest
import torch
from compiled_kernels import EMULATED, needs_emulator
from kernel_cases import EVERYTHING, OPTIONS, PLAIN, THRESHOLD, Options, eager_rows, make_rows

from mind_kernels.linear_cross_entropy.contract import RowWeights
from mind_kernels.sparse_gradient import offsets_of
from mind_kernels.testing import assert_within_budget

pytestmark = needs_emulator
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# (rows, vocabulary): less than a vector, rows that are not aligned, and rows that are
SHAPES = [(3, 7), (4, 101), (3, 1000)]
ROWS = EMULATED.rows


def make(rows, vocabulary, dtype, peak=6.0):
    """As `make_rows`, with a row of weight zero."""
    inputs = make_rows(rows, vocabulary, dtype, peak)
    if rows > 2:
        for weights in inputs[2:]:
            weights[1] = 0
    return inputs


def run(logits, target, scale, entropy_scale, options):
    """Values, gradient and correct of the row kernel, on a copy of the logits."""
    out = logits.clone()
    *values, correct = ROWS.row_kernel_(out, target, options.weights(scale, entropy_scale), options.loss)
    return dict(zip(("loss", "nll", "lse", "entropy"), values, strict=True)), {"gradient": out}, correct


def check_rows(inputs, options):
    dtype = inputs[0].dtype
    truth, true_gradient, z = eager_rows(inputs[0].double(), *inputs[1:], options)
    peer, peer_gradient, _ = eager_rows(*inputs, options)
    values, gradient, correct = run(*inputs, options)
    assert_within_budget(values, peer, truth, torch.float32)
    assert_within_budget(gradient, peer_gradient, true_gradient, dtype)
    return correct, z


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_row_kernel_matches_float64(dtype, shape, options):
    inputs = make(*shape, dtype)
    correct, z = check_rows(inputs, options)
    assert torch.equal(correct, z.argmax(1) == inputs[1])


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_vocabulary_of_one(dtype, options):
    """Its only probability is 1, so nll and entropy are 0; label smoothing leaves the rounding of its three parts."""
    inputs = make(3, 1, dtype)
    truth, true_gradient, _ = eager_rows(inputs[0].double(), *inputs[1:], options)
    values, gradient, correct = run(*inputs, options)
    for name, value in values.items():
        torch.testing.assert_close(value.double(), truth[name], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient["gradient"], true_gradient["gradient"].to(dtype), rtol=1e-2, atol=1e-6)
    assert bool(correct.all()) and values["nll"].count_nonzero() == 0
    assert sparse(*inputs, options)[0][1].tolist() == [1, 1, 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rows_of_several_vectors_a_thread(dtype):
    inputs = make(1, 20011 if dtype == torch.float32 else 34001, dtype)
    check_rows(inputs, EVERYTHING)


@pytest.mark.parametrize("options", [PLAIN, EVERYTHING], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_large_logits(dtype, options):
    logits, *rest = make(4, 1009, dtype)
    check_rows(((logits * 3000).clamp(-1e4, 1e4), *rest), options)


@pytest.mark.parametrize("shift", [-1e4, 1e4])
def test_shifted_logits_keep_their_gradient(shift):
    """All logits near 1e4: lse is rounded to 1e-3 there, and the gradient must not be."""
    logits, *rest = make(16, 257, torch.float32)
    check_rows(((logits * 1024).round() / 1024 + shift, *rest), Options(entropy=True))


def test_statistics_leave_the_logits():
    inputs = make(3, 101, torch.float16)
    before, (expected, _, _) = inputs[0].clone(), run(*inputs, EVERYTHING)
    values = ROWS.row_kernel_(*inputs[:2], None, EVERYTHING.loss)
    assert torch.equal(inputs[0], before) and torch.equal(values.loss, expected["loss"])


def test_correct_is_the_first_maximum():
    for first, second in ((13, 64), (8, 9), (0, 100)):
        logits = torch.zeros(4, 101)
        logits[:, [first, second]] = 7.0
        target = torch.tensor([first, second, 50, 1 if first else 100])
        correct = ROWS.row_kernel_(logits, target, None, PLAIN.loss).correct
        assert correct.tolist() == [True, False, False, False]


@pytest.mark.parametrize("offset", [0, 1, 3])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_of_a_wider_buffer(dtype, offset):
    """Whatever the rows' alignment, what is around them is neither read nor written."""
    inputs = make(3, 67, dtype)
    buffer = torch.full((3, 89), math.nan, dtype=dtype)
    view = buffer[:, offset : offset + 67]
    view.copy_(inputs[0])
    values = ROWS.row_kernel_(view, inputs[1], EVERYTHING.weights(*inputs[2:]), EVERYTHING.loss)
    expected, gradient, _ = run(*inputs, EVERYTHING)
    torch.testing.assert_close(view, gradient["gradient"])
    torch.testing.assert_close(values.loss, expected["loss"])
    assert bool(buffer[:, :offset].isnan().all()) and bool(buffer[:, offset + 67 :].isnan().all())


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_non_finite_logits_show(value):
    logits, target, scale, _ = make(3, 1009, torch.float32)
    logits[1, 700] = value
    *values, _ = ROWS.row_kernel_(logits, target, RowWeights(scale + 2), PLAIN.loss)
    for statistic in values:
        assert statistic.isfinite().tolist() == [True, False, True]
    assert logits.isfinite().all(1).tolist() == [True, False, True]


@pytest.mark.parametrize("options", [PLAIN, Options(temperature=0.5)], ids=str)
def test_masked_logits(options):
    """Logits of minus infinity (padding of the vocabulary) have no probability and no gradient."""
    logits, target, scale, _ = make(2, 67, torch.float32)
    wide = torch.cat([logits, torch.full((2, 40), -math.inf)], 1)
    values = ROWS.row_kernel_(wide, target, RowWeights(scale), options.loss)
    expected = ROWS.row_kernel_(logits, target, RowWeights(scale), options.loss)
    torch.testing.assert_close(values[:3], expected[:3])
    torch.testing.assert_close(wide[:, :67], logits)
    assert bool((wide[:, 67:] == 0).all())


def sparse(logits, target, scale, entropy_scale, options):
    """(values, kept, kept_mass), (columns, values, kept_sum) of a chunk."""
    values, numbers, kept, kept_mass = ROWS.count(logits, target, options.loss)
    return (values, kept, kept_mass), ROWS.entries(
        logits,
        target,
        numbers,
        values,
        options.weights(scale, entropy_scale),
        options.loss,
        offsets_of(kept),
        int(kept.sum()),
    )


def from_lse(logits, target, scale, entropy_scale, options):
    """p, p (a + b log p), the slope of the logits and their gradient without a uniform part, by the formulas."""
    z = options.condition(logits)
    lse = torch.logsumexp(z, 1, keepdim=True)
    log_p = z - lse
    p = log_p.exp()
    scale, entropy_scale = scale.to(z.dtype)[:, None], entropy_scale.to(z.dtype)[:, None]
    part = p * scale * (1 + 2 * options.z_loss * lse)
    if options.entropy:
        part = part - entropy_scale * p * (log_p - (p * log_p).sum(1, keepdim=True))
    slope = torch.ones_like(z) / options.temperature
    if options.softcap is not None:
        slope = slope * (1 - (z * options.temperature / options.softcap).square())
    y = torch.zeros_like(z).scatter_(1, target[:, None], 1.0)
    return p, part, slope, (part - scale * (1 - options.label_smoothing) * y) * slope


def kept_entries(logits, target, options):
    """Mask of the kept entries, and of those too close to the threshold to tell."""
    p = torch.softmax(options.condition(logits.double()), 1)
    return (p > THRESHOLD).scatter(1, target[:, None], True), (p / THRESHOLD - 1).abs() < 1e-5


@pytest.mark.parametrize("options", [PLAIN, Options(entropy=True), EVERYTHING], ids=str)
@pytest.mark.parametrize("shape", [*SHAPES, (1, 40003)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_entries_are_the_kept_part_of_the_gradient(dtype, shape, options):
    inputs = make(*shape, dtype)
    logits, target = inputs[:2]
    before = logits.clone()
    (values, kept, kept_mass), (columns, found, kept_sum) = sparse(*inputs, options)
    assert torch.equal(logits, before)
    expected, _, correct = run(*inputs, options)
    assert all(map(torch.equal, values, (*expected.values(), correct)))

    rows = torch.repeat_interleave(torch.arange(shape[0]), kept)
    assert bool(((rows * shape[1] + columns).diff() > 0).all())  # each once, by row and column
    mask = torch.zeros(shape, dtype=torch.bool)
    mask[rows, columns.long()] = True
    should, close = kept_entries(logits, target, options)
    assert torch.equal(mask | close, should | close)

    def parts(logits):
        p, part, _, gradient = from_lse(logits, *inputs[1:], options)
        return {"kept_mass": (p * mask).sum(1), "kept_sum": (part * mask).sum(1), "values": gradient[mask]}

    found = {"kept_mass": kept_mass, "kept_sum": kept_sum, "values": found}
    assert_within_budget(found, parts(logits.float()), parts(logits.double()), torch.float32)


def test_every_entry_is_kept():
    """Several entries a lane, in all lanes: they still come in order."""
    logits = torch.zeros(2, 201)
    (_, kept, kept_mass), (columns, _, _) = sparse(logits, torch.tensor([0, 77]), *torch.ones(2, 2), PLAIN)
    assert kept.tolist() == [201, 201] and torch.equal(columns, torch.arange(201).int().repeat(2))
    torch.testing.assert_close(kept_mass, torch.ones(2))


@pytest.mark.parametrize("rows", [[0], [4, 1, 3], list(range(5)) * 9], ids=len)
@pytest.mark.parametrize("vocabulary", [101, 1009, 1024])
@pytest.mark.parametrize("options", [PLAIN, EVERYTHING], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_background(dtype, options, vocabulary, rows):
    inputs = make(5, vocabulary, dtype)
    logits, target = inputs[:2]
    _, numbers, _, _ = ROWS.count(logits, target, options.loss)
    rows = torch.tensor(rows)
    weight = torch.linspace(0.5, 2, len(rows))
    found = ROWS.background(logits, rows, target, numbers, weight, options.loss)
    kept, close = kept_entries(logits, target, options)
    assert not bool((close & ~kept).any())

    def formula(logits):
        p, _, slope, _ = from_lse(logits, *inputs[1:], options)
        return {"background": weight.to(p.dtype) @ torch.where(kept, 0, p * slope)[rows]}

    assert_within_budget({"background": found}, formula(logits.float()), formula(logits.double()), torch.float32)


def test_non_finite_rows_keep_their_target_alone():
    logits, target, scale, entropy_scale = make(3, 67, torch.float32)
    logits[1, 5], scale[1] = math.nan, 1.0
    (_, kept, kept_mass), (columns, values, _) = sparse(logits, target, scale, entropy_scale, PLAIN)
    assert kept[1] == 1 and kept_mass[1].isnan()
    assert columns[kept[0]] == target[1] and values[kept[0]].isnan()


def test_deterministic():
    inputs = make(4, 1003, torch.float32)
    first, second = ((run(*inputs, EVERYTHING), sparse(*inputs, EVERYTHING)) for _ in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_no_rows():
    logits, target, none = torch.empty(0, 67), torch.empty(0, dtype=torch.int64), torch.empty(0)
    assert ROWS.row_kernel_(logits, target, RowWeights(none), PLAIN.loss).loss.shape == (0,)
    assert sparse(logits, target, none, none, PLAIN)[1][0].shape == (0,)
