"""Triton's divergences of pairs and of mixtures against plain PyTorch in float64; in the interpreter without a GPU."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from kernel_cases import eager_groups, make_groups, not_cancelling

pytest.importorskip("triton", reason="triton is not installed")

import triton
import triton.language as tl

from mind_kernels.linear_pairwise_jsd._triton import groups as triton_groups
from mind_kernels.linear_pairwise_jsd._triton import mixture as triton_mixture
from mind_kernels.linear_pairwise_jsd._triton import pairs as triton_pairs
from mind_kernels.testing import assert_within_budget
from mind_kernels.triton_math import row_launch

# Lanes that are not stored, and branches that are not taken, may overflow in the interpreter.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# (groups, rows, vocabulary): whole tiles and parts of one; one block of rows, several, and parts of one
SHAPES = [(3, 2, 101), (2, 3, 67), (1, 5, 128), (1, 8, 67), (1, 9, 35), (1, 16, 40), (1, 32, 7)]
KERNELS = {"pairs": triton_pairs.pair_divergences, "mixture": triton_mixture.mixture_divergences}
KINDS = pytest.mark.parametrize("kind", KERNELS)


@pytest.fixture(autouse=True)
def wide_steps(monkeypatch):
    """128 columns a step for any number of rows: the interpreter takes milliseconds for a pair however many it has."""
    if not torch.cuda.is_available():
        monkeypatch.setattr(triton_groups, "_FEW_ROWS", 32)


def make(*kind_and_shape, **options):
    return make_groups(*kind_and_shape, **options, device=DEVICE)


def run(kind, logits, weight, mask):
    values, gradient = KERNELS[kind](logits, weight, mask, True)
    return {"values": values, "gradient": gradient}


def check(kind, logits, weight, mask):
    """The kernels are within the budget, and leave the logits."""
    before = logits.clone()
    found = run(kind, logits, weight, mask)
    assert torch.equal(logits, before)
    assert_within_budget(
        found, eager_groups(logits, weight, mask), eager_groups(logits.double(), weight, mask), torch.float32
    )
    return found


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@KINDS
def test_matches_float64(kind, shape):
    check(kind, *make(kind, *shape, scale=2.0 if shape[1] % 2 else 0.5))


@pytest.mark.parametrize("difference", [1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6])
@KINDS
def test_nearly_equal_rows_keep_their_digits(kind, difference):
    logits, weight, mask = make(kind, 2, 3, 128, spread=difference, absent=0)
    logits[1] += 20
    found = run(kind, logits, weight, mask)
    values, gradient = not_cancelling(logits, weight)
    # The sums of e^z are rounded, which moves the log-ratios by 2^-22, and adds its square to theirs. The gradient is
    # free of it, and has the rounding of fine parts of up to 2^-10.
    torch.testing.assert_close(found["values"].double(), values, rtol=2**-20 + (2**-22 / difference) ** 2, atol=0)
    assert (found["gradient"] - gradient).norm() < (2**-20 + 2**-33 / difference) * gradient.norm()


@KINDS
def test_equal_rows_give_exactly_zero(kind):
    logits, weight, mask = make(kind, 2, 5, 67, spread=0.0)
    logits[1, 2] *= 0.9
    found = run(kind, logits, weight, mask)
    assert found["values"][0].count_nonzero() == 0 and found["gradient"][0].count_nonzero() == 0
    if kind == "pairs":
        others = [0, 1, 3, 4]
        assert found["values"][1][others][:, others].count_nonzero() == 0
        assert found["values"][1, 2, 0] > 0


def test_pairs_are_symmetric_and_bounded():
    for scale in (0.01, 1.0, 20.0):
        logits, weight, mask = make("pairs", 2, 4, 67, scale=scale)
        jsd = run("pairs", logits, weight, mask)["values"]
        assert torch.equal(jsd, jsd.transpose(1, 2)) and jsd.diagonal(dim1=1, dim2=2).count_nonzero() == 0
        assert bool((jsd >= 0).all()) and bool((jsd <= math.log(2) * (1 + 1e-6)).all())
        assert jsd[~(mask[:, :, None] & mask[:, None])].count_nonzero() == 0
    disjoint = 1e4 * torch.eye(2, 3, device=DEVICE)[None]
    jsd = run("pairs", disjoint, torch.ones(1, 2, 2, device=DEVICE), mask[:1, :2])["values"]
    torch.testing.assert_close(jsd[0, 0, 1], torch.tensor(math.log(2), device=DEVICE))


def test_a_mixture_of_two_is_their_jsd():
    logits, _, mask = make("pairs", 2, 2, 67)
    pairs = run("pairs", logits, torch.ones(2, 2, 2, device=DEVICE), mask)
    mixture = run("mixture", logits, torch.full((2, 2), 0.5, device=DEVICE), mask)
    torch.testing.assert_close(mixture["values"].sum(1) / 2, pairs["values"][:, 0, 1])
    torch.testing.assert_close(mixture["gradient"], pairs["gradient"], rtol=1e-5, atol=1e-7)


@KINDS
def test_absent_rows_may_hold_anything(kind):
    logits, weight, mask = make(kind, 1, 4, 67)
    mask[0, 2:] = torch.tensor([False, True])
    expected = check(kind, logits, weight, mask)
    for contents in (1e4, math.nan, math.inf):
        found = run(kind, torch.where(mask[..., None], logits, contents), weight, mask)
        for name, value in found.items():
            assert torch.equal(value, expected[name])
            assert value[0, 2].count_nonzero() == 0


@KINDS
def test_groups_without_present_rows_are_zero(kind):
    logits, weight, mask = make(kind, 3, 3, 67)
    mask[0] = False
    found = check(kind, logits, weight, mask)
    for value in found.values():
        assert value[0].count_nonzero() == 0 and bool((value[1:] != 0).flatten(1).any(1).all())


def test_pairs_without_weight_change_nothing():
    logits, weight, mask = make("pairs", 2, 3, 67, absent=0)
    only = torch.full_like(weight, math.nan).tril()  # the lower triangle does not count
    only[:, 0, 1] = weight[:, 0, 1]
    three = run("pairs", logits, only, mask)
    two = run("pairs", logits[:, :2].contiguous(), only[:, :2, :2], mask[:, :2])
    torch.testing.assert_close(three["values"][:, :2, :2], two["values"])
    torch.testing.assert_close(three["gradient"][:, :2], two["gradient"], rtol=1e-5, atol=1e-8)
    assert bool((three["values"][:, 2, :2] > 0).all()) and three["gradient"][:, 2].count_nonzero() == 0


def test_rows_without_weight_are_compared_with_the_mixture():
    logits, weight, mask = make("mixture", 2, 3, 67, scale=5.0, absent=0)
    weight[0] = torch.tensor([0.0, 0.3, 0.4])
    weight[1] = 0
    found = check("mixture", logits, weight, mask)
    assert found["values"][0, 0] > 0 and found["gradient"][0, 0].count_nonzero() == 0
    assert found["values"][1].count_nonzero() == 0 and found["gradient"][1].count_nonzero() == 0
    weight[0] = torch.tensor([0.0, 0.0, 2.0])  # the mixture is a row
    assert check("mixture", logits, weight, mask)["values"][0, 2] == 0


@pytest.mark.parametrize("peak", [100.0, 1e4])
@KINDS
def test_saturated_rows(kind, peak):
    """Peaks at different tokens, at the same, at two of them, and at tokens of no other row; ordinary rows beside."""
    logits, weight, mask = make(kind, 3, 4, 67, absent=0)
    logits[0, :3, 5] = peak
    logits[0, 1:3, 6] = peak
    logits[1] = logits[1].sign() * peak
    logits[2].fill_(-peak)
    for k in range(3):
        logits[2, k, k] = peak
    found = check(kind, logits, weight, mask)
    assert bool(found["gradient"].isfinite().all())


@pytest.mark.parametrize("shift", [-1e4, 1e4])
@KINDS
def test_shifted_logits(kind, shift):
    """Logits near 1e4, where a float32 of the log-sum-exp is rounded to 1e-3; all rows of a group, and one of them."""
    logits, weight, mask = make(kind, 2, 3, 67, absent=0)
    logits = logits.mul(1024).round() / 1024
    expected = run(kind, logits, weight, mask)
    logits[0] += shift
    logits[1, 1] += shift
    found = check(kind, logits, weight, mask)
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@KINDS
def test_non_finite_logits_show(kind, value):
    logits, weight, mask = make(kind, 2, 3, 67, absent=0)
    logits[0, 1, 40] = value
    found = run(kind, logits, weight, mask)
    finite = found["values"].isfinite()
    assert not bool(finite[0, 1, [0, 2]].any() if kind == "pairs" else finite[0].any())
    assert bool(finite[1].all())
    assert found["gradient"].isfinite().all(-1).tolist() == [[False] * 3, [True] * 3]


@KINDS
def test_without_a_gradient(kind):
    inputs = make(kind, 1, 9, 35)
    values, gradient = KERNELS[kind](*inputs, False)
    assert gradient is None and torch.equal(values, run(kind, *inputs)["values"])


@KINDS
def test_deterministic(kind):
    inputs = make(kind, 2, 3, 67)
    first, second = run(kind, *inputs), run(kind, *inputs)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    "shape, sizes",
    [
        ((1, 3, 131), {"_FEW_ROWS": 0, "_STEPS": 2}),
        ((1, 3, 150), {"_STEPS": 1}),
        ((1, 9, 35), {"_FEW_ROWS": 0, "_STEPS": 1}),
    ],
    ids=str,
)
@KINDS
def test_spans_and_steps_change_nothing(monkeypatch, kind, shape, sizes):
    inputs = make(kind, *shape)
    whole = run(kind, *inputs)
    for name, size in sizes.items():
        monkeypatch.setattr(triton_groups, name, size)
    for name, value in run(kind, *inputs).items():
        torch.testing.assert_close(value, whole[name], rtol=1e-5, atol=1e-8)


def test_rows_of_several_spans(monkeypatch):
    monkeypatch.setattr(triton_groups, "_ROW_SPAN", 2048)
    check("pairs", *make("pairs", 1, 2, 2311))


@KINDS
def test_no_groups(kind):
    logits, weight, mask = (tensor[:0] for tensor in make(kind, 1, 3, 67))
    found = run(kind, logits, weight, mask)
    assert found["values"].shape == weight.shape and found["gradient"].shape == logits.shape


@triton.jit
def _terms_kernel(t, p, q, out, SIZE: tl.constexpr):
    i = tl.arange(0, SIZE)
    terms = triton_pairs.pair_terms(tl.zeros((SIZE,), tl.float32), tl.load(t + i), tl.load(p + i), tl.load(q + i))
    for k in tl.static_range(3):
        tl.store(out + k * SIZE + i, terms[k])


def test_pair_terms():
    """From log-ratios of 1e-12 to 1e3, at the ends of the polynomials, and at 0."""
    size = torch.cat([torch.logspace(-12, 3, 1019), torch.tensor([0.0, 1.41421, 1.41422, 2.0, 2.1])])
    t = torch.cat([size, -size]).to(DEVICE)
    exact = t.double() * math.log(2)
    q = torch.sigmoid(exact)
    p, ratio = torch.sigmoid(-exact), -torch.log1p(torch.expm1(exact) / 2)  # log(p / m)
    log_cosh = torch.log1p(2 * torch.sinh(exact.clamp(-50, 50) / 4).square())
    entry = torch.where(exact.abs() < 50, exact / 2 * torch.tanh(exact / 2) - log_cosh, math.log(2))  # p + q = 1
    out = torch.empty(3, len(t), device=DEVICE)
    _terms_kernel[(1,)](t, p.float(), q.float(), out, SIZE=len(t))
    own, theirs, entries = out.double() * math.log(2)
    larger = torch.where(exact > 0, theirs, own)
    torch.testing.assert_close(larger, -torch.log1p(torch.expm1(-exact.abs()) / 2), rtol=2**-21, atol=0)
    far = exact.abs() > 600  # where e^t is infinite
    torch.testing.assert_close(own[~far & (exact != 0)], ratio[~far & (exact != 0)], rtol=2**-21, atol=0)
    torch.testing.assert_close(theirs - own, exact, rtol=2**-21, atol=0)
    torch.testing.assert_close(entries, entry, rtol=2**-20, atol=0)


def test_every_pair_is_in_one_launch():
    for count in range(2, 33):
        launch, seen = triton_pairs.pair_launch(count), []
        for number, blocks in enumerate(triton_pairs.pair_blocks(count)):
            left, right = (
                range(blocks[side], blocks[side] + blocks[size])
                for side, size in (("left", "LEFT"), ("right", "RIGHT"))
            )
            seen += itertools.product(left, right) if right else itertools.combinations(left, 2)
            assert max(*left, *right) < launch["PLACES"]
            # The first launches write F', each for rows of its own; all others add to it.
            assert (blocks["RIGHT"] == 0) == (number < -(-count // 8))
        assert len(seen) == len(set(seen))
        assert {pair for pair in seen if max(pair) < count} == {(i, j) for j in range(count) for i in range(j)}


def test_launches(monkeypatch):
    monkeypatch.undo()
    for count in range(2, 33):
        launch = triton_groups.column_launch(count)
        assert launch["COLUMNS"] == 32 * launch["num_warps"] and launch["SPAN"] % launch["COLUMNS"] == 0
    for vocabulary in (67, 50257, 151936):
        tile = row_launch(vocabulary, vocabulary, torch.float32)
        assert triton_groups._ROW_SPAN % (tile["LANES"] * tile["VECTOR"]) == 0  # no tile is another program's too
    assert triton_pairs.pair_launch(8) == {"PLACES": 8, "SPAN": 2048, "COLUMNS": 32, "num_warps": 1}
    assert triton_pairs.pair_launch(9)["PLACES"] == 12
    assert triton_mixture.mixture_launch(3) == {"BLOCK": 3, "SPAN": 8192, "COLUMNS": 128, "num_warps": 4}
