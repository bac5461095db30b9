"""The CUDA kernels of groups against plain PyTorch in float64, on CPU tensors by tests/cuda_emulator."""

from __future__ import annotations

import math

import pytest
import torch
from compiled_kernels import EMULATED, needs_emulator
from kernel_cases import eager_groups, make_groups, not_cancelling

from mind_kernels.testing import assert_within_budget

pytestmark = needs_emulator
GROUPS = EMULATED.groups
# (groups, rows, vocabulary): parts of a warp's columns, spans of several warps; one block of rows, several, and parts
GROUP_SHAPES = [
    (3, 2, 101),
    (2, 3, 67),
    (1, 5, 128),
    (1, 7, 68),
    (2, 8, 67),
    (1, 9, 35),
    (1, 13, 40),
    (1, 17, 7),
    (1, 3, 2100),
    (1, 2, 8200),
]
KINDS = pytest.mark.parametrize("kind", ["pairs", "mixture"])


def run_groups(kind, logits, weight, mask, with_gradient=True):
    kernel = GROUPS.pair_divergences if kind == "pairs" else GROUPS.mixture_divergences
    values, gradient = kernel(logits, weight, mask, with_gradient)
    return {"values": values, "gradient": gradient}


def check_groups(kind, logits, weight, mask):
    before = logits.clone()
    found = run_groups(kind, logits, weight, mask)
    assert torch.equal(logits, before)
    assert_within_budget(
        found, eager_groups(logits, weight, mask), eager_groups(logits.double(), weight, mask), torch.float32
    )
    return found


@pytest.mark.parametrize("shape", GROUP_SHAPES, ids=str)
@KINDS
def test_groups_match_float64(kind, shape):
    check_groups(kind, *make_groups(kind, *shape, scale=2.0 if shape[1] % 2 else 0.5))


@pytest.mark.parametrize("difference", [1e-2, 1e-4, 1e-6])
@KINDS
def test_nearly_equal_rows_keep_their_digits(kind, difference):
    logits, weight, mask = make_groups(kind, 2, 3, 128, spread=difference, absent=0)
    logits[1] += 20
    found = run_groups(kind, logits, weight, mask)
    values, gradient = not_cancelling(logits, weight)
    # The sums of e^z are rounded, which moves the log-ratios by 2^-22, and adds its square to theirs. The gradient is
    # free of it, and has the rounding of fine parts of up to 2^-10.
    torch.testing.assert_close(found["values"].double(), values, rtol=2**-20 + (2**-22 / difference) ** 2, atol=0)
    assert (found["gradient"] - gradient).norm() < (2**-20 + 2**-33 / difference) * gradient.norm()


@pytest.mark.parametrize("count", [5, 9])
@KINDS
def test_equal_rows_give_exactly_zero(kind, count):
    logits, weight, mask = make_groups(kind, 2, count, 67, spread=0.0)
    logits[1, 2] *= 0.9
    found = run_groups(kind, logits, weight, mask)
    assert found["values"][0].count_nonzero() == 0 and found["gradient"][0].count_nonzero() == 0
    assert found["values"][1].count_nonzero() > 0


def test_pairs_are_symmetric_and_bounded():
    for scale in (0.01, 1.0, 20.0):
        logits, weight, mask = make_groups("pairs", 2, 4, 67, scale=scale)
        jsd = run_groups("pairs", logits, weight, mask)["values"]
        assert torch.equal(jsd, jsd.transpose(1, 2)) and jsd.diagonal(dim1=1, dim2=2).count_nonzero() == 0
        assert bool((jsd >= 0).all()) and bool((jsd <= math.log(2) * (1 + 1e-6)).all())
        assert jsd[~(mask[:, :, None] & mask[:, None])].count_nonzero() == 0


@pytest.mark.parametrize("count", [4, 12])
@KINDS
def test_absent_rows_may_hold_anything(kind, count):
    logits, weight, mask = make_groups(kind, 1, count, 67)
    mask[0, 2:4] = torch.tensor([False, True])
    expected = check_groups(kind, logits, weight, mask)
    for contents in (1e4, math.nan, math.inf):
        found = run_groups(kind, torch.where(mask[..., None], logits, contents), weight, mask)
        for name, value in found.items():
            assert torch.equal(value, expected[name])
            assert value[0, 2].count_nonzero() == 0


@KINDS
def test_groups_without_present_rows_are_zero(kind):
    logits, weight, mask = make_groups(kind, 3, 3, 67)
    mask[0] = False
    found = check_groups(kind, logits, weight, mask)
    for value in found.values():
        assert value[0].count_nonzero() == 0 and bool((value[1:] != 0).flatten(1).any(1).all())


def test_pairs_without_weight_change_nothing():
    logits, weight, mask = make_groups("pairs", 2, 3, 67, absent=0)
    only = torch.full_like(weight, math.nan).tril()  # the lower triangle does not count
    only[:, 0, 1] = weight[:, 0, 1]
    three = run_groups("pairs", logits, only, mask)
    two = run_groups("pairs", logits[:, :2].contiguous(), only[:, :2, :2], mask[:, :2])
    torch.testing.assert_close(three["values"][:, :2, :2], two["values"])
    torch.testing.assert_close(three["gradient"][:, :2], two["gradient"], rtol=1e-5, atol=1e-8)
    assert bool((three["values"][:, 2, :2] > 0).all()) and three["gradient"][:, 2].count_nonzero() == 0


@pytest.mark.parametrize("count", [3, 11])
def test_rows_without_weight_are_compared_with_the_mixture(count):
    logits, weight, mask = make_groups("mixture", 2, count, 67, scale=5.0, absent=0)
    weight[0, :3] = torch.tensor([0.0, 0.3, 0.4])
    weight[1] = 0
    found = check_groups("mixture", logits, weight, mask)
    assert found["values"][0, 0] > 0 and found["gradient"][0, 0].count_nonzero() == 0
    assert found["values"][1].count_nonzero() == 0 and found["gradient"][1].count_nonzero() == 0
    weight[0] = 0
    weight[0, 2] = 2.0  # the mixture is a row
    assert check_groups("mixture", logits, weight, mask)["values"][0, 2] == 0


@pytest.mark.parametrize("peak", [100.0, 1e4])
@KINDS
def test_saturated_rows(kind, peak):
    """Peaks at different tokens, at the same, at two of them, and at tokens of no other row; ordinary rows beside."""
    logits, weight, mask = make_groups(kind, 3, 4, 67, absent=0)
    logits[0, :3, 5] = peak
    logits[0, 1:3, 6] = peak
    logits[1] = logits[1].sign() * peak
    logits[2].fill_(-peak)
    for k in range(3):
        logits[2, k, k] = peak
    assert bool(check_groups(kind, logits, weight, mask)["gradient"].isfinite().all())


@pytest.mark.parametrize("shift", [-1e4, 1e4])
@KINDS
def test_shifted_rows(kind, shift):
    """Logits near 1e4, where a float32 of the log-sum-exp is rounded to 1e-3; all rows of a group, and one of them."""
    logits, weight, mask = make_groups(kind, 2, 3, 67, absent=0)
    logits = logits.mul(1024).round() / 1024
    expected = run_groups(kind, logits, weight, mask)
    logits[0] += shift
    logits[1, 1] += shift
    found = check_groups(kind, logits, weight, mask)
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@KINDS
def test_non_finite_rows_show(kind, value):
    logits, weight, mask = make_groups(kind, 2, 3, 67, absent=0)
    logits[0, 1, 40] = value
    found = run_groups(kind, logits, weight, mask)
    finite = found["values"].isfinite()
    assert not bool(finite[0, 1, [0, 2]].any() if kind == "pairs" else finite[0].any())
    assert bool(finite[1].all())
    assert found["gradient"].isfinite().all(-1).tolist() == [[False] * 3, [True] * 3]


@pytest.mark.parametrize("count", [1, 8, 9])
@KINDS
def test_without_a_gradient(kind, count):
    inputs = make_groups(kind, 1, max(count, 2), 35)
    inputs = (inputs[0][:, :count].contiguous(), inputs[1][..., :count].narrow(1, 0, count), inputs[2][:, :count])
    found, whole = run_groups(kind, *inputs, with_gradient=False), run_groups(kind, *inputs)
    assert found["gradient"] is None and torch.equal(found["values"], whole["values"])
    assert count > 1 or not any(value.any() for value in whole.values())  # nothing to compare a row with


@KINDS
def test_deterministic(kind):
    inputs = make_groups(kind, 2, 9, 67)
    first, second = run_groups(kind, *inputs), run_groups(kind, *inputs)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("shape", [(0, 3, 67), (2, 0, 67)], ids=str)
@KINDS
def test_nothing_to_compare(kind, shape):
    groups, count, _ = shape
    weight = torch.zeros((groups, count, count) if kind == "pairs" else (groups, count))
    found = run_groups(kind, torch.zeros(shape), weight, torch.ones(groups, count, dtype=torch.bool))
    assert found["gradient"].shape == shape and found["values"].numel() == 0
