"""Triton's row kernels and kept entries against plain PyTorch in float64; in the interpreter where there is no GPU."""

from __future__ import annotations

import math

import pytest
import torch
from kernel_cases import EVERYTHING, OPTIONS, PLAIN, THRESHOLD, Options, eager_rows, make_rows

pytest.importorskip("triton", reason="triton is not installed")

import triton
import triton.language as tl

from mind_kernels.linear_cross_entropy._triton import entries as triton_entries
from mind_kernels.linear_cross_entropy._triton import rows as triton_rows
from mind_kernels.testing import assert_within_budget
from mind_kernels.triton_math import tanh

# Lanes that are not stored may overflow in the interpreter.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float32, torch.float16] + [torch.bfloat16] * torch.cuda.is_available()
SHAPES = [(1, 67), (16, 2), (3, 1024), (2, 4507)]  # one row, less than a vector, whole vectors, several tiles


def make(*shape_and_dtype, **options):
    return make_rows(*shape_and_dtype, **options, device=DEVICE)


def run(logits, target, scale, entropy_scale, options):
    """Values, gradient and correct of the row kernel, on a copy of the logits."""
    out = logits.clone()
    *values, correct = triton_rows.row_kernel_(
        out,
        target,
        scale,
        entropy_scale if options.entropy else None,
        options.head,
        options.label_smoothing,
        options.z_loss,
    )
    return dict(zip(("loss", "nll", "lse", "entropy"), values, strict=True)), {"gradient": out}, correct


@triton.jit
def _tanh_kernel(x, out, SIZE: tl.constexpr):
    tl.store(out + tl.arange(0, SIZE), tanh(tl.load(x + tl.arange(0, SIZE))))


def test_tanh():
    """Relative to the result, from the smallest arguments to saturation and beyond."""
    size = torch.logspace(-6, 1.2, 2048, device=DEVICE)
    x, out = torch.cat([size, -size]), torch.empty(4096, device=DEVICE)
    _tanh_kernel[(1,)](x, out, SIZE=4096)
    truth = x.double().tanh()
    relative = [{"tanh / true tanh": value.double() / truth} for value in (out, x.tanh(), truth)]
    assert_within_budget(*relative, torch.float32)
    ends = torch.tensor([0.0, math.inf, -math.inf, math.nan], device=DEVICE)
    _tanh_kernel[(1,)](ends, out, SIZE=4)
    assert str(out[:4].tolist()) == "[0.0, 1.0, -1.0, nan]"


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_row_kernel_matches_float64(dtype, shape, options):
    inputs = make(*shape, dtype)
    truth, true_gradient, z = eager_rows(inputs[0].double(), *inputs[1:], options)
    peer, peer_gradient, _ = eager_rows(*inputs, options)
    values, gradient, correct = run(*inputs, options)
    assert_within_budget(values, peer, truth, torch.float32)
    assert_within_budget(gradient, peer_gradient, true_gradient, dtype)
    assert torch.equal(correct, z.argmax(1) == inputs[1])


@pytest.mark.parametrize("options", [PLAIN, EVERYTHING], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_large_logits(dtype, options):
    logits, *rest = make(4, 1009, dtype)
    logits = (logits * 3000).clamp(-1e4, 1e4)
    truth, true_gradient, _ = eager_rows(logits.double(), *rest, options)
    peer, peer_gradient, _ = eager_rows(logits, *rest, options)
    values, gradient, _ = run(logits, *rest, options)
    assert_within_budget(values, peer, truth, torch.float32)
    assert_within_budget(gradient, peer_gradient, true_gradient, dtype)


@pytest.mark.parametrize("shift", [-1e4, 1e4])
def test_shifted_logits_keep_their_gradient(shift):
    """All logits near 1e4: lse is rounded to 1e-3 there, and the gradient must not be."""
    logits, *rest = make(3, 257, torch.float32)
    logits = (logits * 1024).round() / 1024 + shift
    _, true_gradient, _ = eager_rows(logits.double(), *rest, Options(entropy=True))
    _, peer_gradient, _ = eager_rows(logits, *rest, Options(entropy=True))
    _, gradient, _ = run(logits, *rest, Options(entropy=True))
    assert_within_budget(gradient, peer_gradient, true_gradient, torch.float32)


def test_statistics_alone_leave_the_logits():
    logits, target, *_ = make(5, 67, torch.float32)
    before = logits.clone()
    values = triton_rows.row_kernel_(logits, target, None, None, EVERYTHING.head, 0.1, 1e-3)
    again, _, _ = run(*make(5, 67, torch.float32), EVERYTHING)
    assert torch.equal(logits, before)
    assert all(map(torch.equal, values, again.values()))


def test_first_maximum_counts():
    """Every target against rows full of ties, in every part of a vector, a tile and a row."""
    for vocabulary in (67, 4500):
        logits = torch.zeros(1, vocabulary)
        logits[0, 13::29] = 3.0
        targets = torch.tensor([0, 12, 13, 14, 42, vocabulary - 1] + list(range(13, vocabulary, 29))[-2:])
        logits = logits.expand(len(targets), -1).contiguous().to(DEVICE)
        correct = triton_rows.row_kernel_(logits, targets.to(DEVICE), None, None, PLAIN.head, 0.0, 0.0)[4]
        assert correct.tolist() == (targets == 13).tolist()


def test_rows_of_a_wider_buffer():
    """Padded rows: the padding is neither read nor written."""
    inputs = make(3, 67, torch.float32)
    buffer = torch.full((3, 80), math.nan, device=DEVICE)
    view = buffer[:, :67]
    view.copy_(inputs[0])
    values = triton_rows.row_kernel_(view, *inputs[1:], EVERYTHING.head, 0.1, 1e-3)
    expected, gradient, _ = run(*inputs, EVERYTHING)
    assert torch.equal(view, gradient["gradient"]) and torch.equal(values[0], expected["loss"])
    assert bool(buffer[:, 67:].isnan().all())


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_non_finite_logits_show(value):
    logits, target, scale, _ = make(3, 1009, torch.float32)
    logits[1, 700] = value
    loss, nll, lse, entropy, _ = triton_rows.row_kernel_(logits, target, scale, None, PLAIN.head, 0.0, 0.0)
    for statistic in (loss, nll, lse, entropy):
        assert statistic.isfinite().tolist() == [True, False, True]
    assert logits.isfinite().all(1).tolist() == [True, False, True]


def test_masked_logits():
    """Logits of minus infinity (padding of the vocabulary) have no probability and no gradient."""
    logits, target, scale, _ = make(2, 67, torch.float32)
    wide = torch.cat([logits, torch.full((2, 40), -math.inf, device=DEVICE)], 1)
    values = triton_rows.row_kernel_(wide, target, scale, None, PLAIN.head, 0.0, 0.0)
    expected = triton_rows.row_kernel_(logits, target, scale, None, PLAIN.head, 0.0, 0.0)
    torch.testing.assert_close(values[:3], expected[:3])
    torch.testing.assert_close(wide[:, :67], logits)
    assert bool((wide[:, 67:] == 0).all())


def sparse(logits, target, scale, entropy_scale, options):
    """(values, kept, kept_mass), (columns, values, kept_sum) of a chunk."""
    values, normalizer, kept, kept_mass = triton_rows.statistics(
        logits, target, options.head, options.label_smoothing, options.z_loss, THRESHOLD
    )
    offsets = torch.cat([kept.new_zeros(1), kept.cumsum(0)]).long()
    return (values, kept, kept_mass), triton_entries.entries(
        logits,
        target,
        normalizer,
        values[3],
        scale,
        entropy_scale if options.entropy else None,
        options.head,
        options.label_smoothing,
        options.z_loss,
        THRESHOLD,
        offsets,
        int(offsets[-1]),
    )


def from_lse(logits, target, scale, entropy_scale, options):
    """p, p (a + b log p), slope and gradient without the uniform part, as plain PyTorch takes them from lse."""
    scale, entropy_scale = scale.to(logits.dtype)[:, None], entropy_scale.to(logits.dtype)[:, None]
    z = options.condition(logits)
    lse = torch.logsumexp(z, 1, keepdim=True)
    log_p = z - lse
    p = log_p.exp()
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
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_entries_are_the_kept_part_of_the_gradient(dtype, shape, options):
    inputs = make(*shape, dtype)
    logits, target = inputs[:2]
    before = logits.clone()
    (values, kept, kept_mass), (columns, found, kept_sum) = sparse(*inputs, options)
    assert torch.equal(logits, before)
    expected, _, correct = run(*inputs, options)
    assert all(map(torch.equal, values, (*expected.values(), correct)))

    rows = torch.repeat_interleave(torch.arange(shape[0], device=DEVICE), kept.long())
    assert len(rows) == len(columns)
    assert bool(((rows * shape[1] + columns).diff() > 0).all())  # each once, by row and column
    mask = torch.zeros(shape, dtype=torch.bool, device=DEVICE)
    mask[rows, columns.long()] = True
    should, close = kept_entries(logits, target, options)
    assert torch.equal(mask | close, should | close)

    def parts(logits):
        p, part, _, gradient = from_lse(logits, *inputs[1:], options)
        return {"kept_mass": (p * mask).sum(1), "kept_sum": (part * mask).sum(1), "values": gradient[mask]}

    found = {"kept_mass": kept_mass, "kept_sum": kept_sum, "values": found}
    assert_within_budget(found, parts(logits.float()), parts(logits.double()), torch.float32)


@pytest.mark.parametrize("rows", [[0], [4, 1, 3], list(range(5)) * 3], ids=len)
@pytest.mark.parametrize("options", [PLAIN, EVERYTHING], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_background(dtype, options, rows):
    inputs = make(5, 1009, dtype)
    logits, target = inputs[:2]
    _, normalizer, _, _ = triton_rows.statistics(logits, target, options.head, 0.0, 0.0, THRESHOLD)
    rows = torch.tensor(rows, device=DEVICE)
    weight = torch.linspace(0.5, 2, len(rows), device=DEVICE)
    found = triton_entries.background(logits, rows, target, normalizer, weight, options.head, THRESHOLD)
    kept, close = kept_entries(logits, target, options)
    assert not bool((close & ~kept).any())

    def formula(logits):
        p, _, slope, _ = from_lse(logits, *inputs[1:], options)
        return {"background": weight.to(p.dtype) @ torch.where(kept, 0, p * slope)[rows]}

    assert_within_budget({"background": found}, formula(logits.float()), formula(logits.double()), torch.float32)


def test_non_finite_rows_keep_their_target_alone():
    logits, target, scale, entropy_scale = make(3, 67, torch.float32)
    logits[1, 5] = math.nan
    (_, kept, kept_mass), (columns, values, _) = sparse(logits, target, scale, entropy_scale, PLAIN)
    assert kept[1] == 1 and kept_mass[1].isnan()
    assert columns[kept[0]] == target[1] and values[kept[0]].isnan()


def test_deterministic():
    inputs = make(4, 5003, torch.float32)
    first, second = ((run(*inputs, EVERYTHING), sparse(*inputs, EVERYTHING)) for _ in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_no_rows():
    logits, target = torch.empty(0, 67, device=DEVICE), torch.empty(0, dtype=torch.int64, device=DEVICE)
    none = torch.empty(0, device=DEVICE)
    assert triton_rows.row_kernel_(logits, target, none, None, PLAIN.head, 0.0, 0.0)[0].shape == (0,)
    assert sparse(logits, target, none, none, PLAIN)[1][0].shape == (0,)


@pytest.mark.parametrize("itemsize, dtype", [(2, torch.bfloat16), (4, torch.float32)])
def test_launches(itemsize, dtype):
    for vocabulary in (2, 16, 67, 1024, 50257, 151936, 262144):
        launch = triton_rows.row_launch(vocabulary, vocabulary, dtype)
        threads = 32 * launch["num_warps"]
        assert launch["VECTOR"] * itemsize == 16
        assert launch["LANES"] % threads == 0 and threads <= 1024
        assert launch["num_warps"] == 1 or launch["LANES"] * launch["VECTOR"] < 2 * vocabulary
        entry = triton_entries.entry_launch(vocabulary)
        assert entry["BLOCK"] == 128 or entry["BLOCK"] < 2 * vocabulary
    assert triton_rows.row_launch(151936, 151936, torch.bfloat16) == {"LANES": 2048, "VECTOR": 8, "num_warps": 32}
    assert triton_rows.row_launch(151936, 151937, torch.bfloat16)["num_warps"] == 16  # no 16-byte loads
