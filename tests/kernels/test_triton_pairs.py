"""What only Triton's group kernels have: spans and steps, absent rows of any contents, and the terms of a pair.

In the interpreter where there is no GPU; everything else is in the suite of test_group_kernels.py.
"""

from __future__ import annotations

import math

import pytest
import torch
from kernel_cases import make_groups, truth_and_peer_of_groups

pytest.importorskip("triton", reason="triton is not installed")

import triton
import triton.language as tl

from mind_kernels.linear_pairwise_jsd._triton import groups as triton_groups
from mind_kernels.linear_pairwise_jsd._triton import mixture as triton_mixture
from mind_kernels.linear_pairwise_jsd._triton import pairs as triton_pairs
from mind_kernels.testing import assert_within_budget

# Lanes that are not stored, and branches that are not taken, may overflow in the interpreter.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
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
    inputs = make("pairs", 1, 2, 2311)
    truth, peer = truth_and_peer_of_groups(*inputs)
    assert_within_budget(run("pairs", *inputs), peer, truth, torch.float32)


@KINDS
def test_absent_rows_are_not_read(kind):
    logits, weight, mask = make(kind, 1, 4, 67)
    mask[0, 2:] = torch.tensor([False, True])
    expected = run(kind, logits, weight, mask)
    for contents in (math.nan, math.inf):
        found = run(kind, torch.where(mask[..., None], logits, contents), weight, mask)
        assert all(torch.equal(value, expected[name]) for name, value in found.items())


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


@pytest.mark.parametrize("normalize", ["whole", "shard"])
@pytest.mark.parametrize("height", [0.0, 1e4, -1e8, 1e12, -1e17, -1e31, 3e38])
def test_normalizers_of_huge_logits(normalize, height):
    """Of equal logits, and of some that are lower, as `log_probability` uses them."""
    logits = torch.full((1, 2, 67), height, device=DEVICE)
    logits[0, 1, 10:] -= abs(height) / 64 + 1
    mask = torch.ones(1, 2, dtype=torch.bool, device=DEVICE)
    if normalize == "whole":
        offset, rest = triton_groups.normalize(logits, mask)
    else:
        offset, rest = triton_groups.normalize_shard(logits, mask, lambda sums: sums[None])
    z, grid, log2_e = logits[0], triton_groups._GRID.value, triton_groups.LOG2_E.value
    shifted = z + grid
    low = (z - (shifted - grid)) * log2_e - rest[:, None]
    p = torch.exp2((shifted - offset[:, None]) * log2_e + low)
    torch.testing.assert_close(p.double(), torch.softmax(z.double(), 1), rtol=1e-5, atol=1e-30)
