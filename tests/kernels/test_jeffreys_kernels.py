"""The kernels of Jeffreys divergences, for every implementation: a group's pairs, as GroupKernels has them.

The truth is written here, in float64 and without differences that cancel.
"""

from __future__ import annotations

import functools
import math

import implementations
import pytest
import torch
from kernel_cases import make_groups, unluckiest
from test_group_kernels import wide_steps

from mind_kernels.linear_pairwise_jsd.contract import JEFFREYS
from mind_kernels.linear_pairwise_jsd.reference import pairwise_jeffreys
from mind_kernels.testing import assert_within_budget

# Lanes that are not stored, and branches that are not taken, may overflow in Triton's interpreter.
pytestmark = [
    pytest.mark.filterwarnings("ignore::RuntimeWarning:triton"),
    pytest.mark.usefixtures(wide_steps.__name__),
]

ALL = implementations.of(JEFFREYS)
SHAPES = [(3, 2, 101), (2, 3, 67), (2, 8, 67), (1, 9, 35), (1, 13, 40)]
each = functools.partial(implementations.each, of=ALL)


def make(implementation, *shape, **options):
    return make_groups("pairs", *shape, **options, device=implementation.device)


def run(implementation, logits, weight, mask, with_gradient=True):
    before = logits.clone()
    values, gradient = implementation.kernels(JEFFREYS).pair_divergences(logits, weight, mask, with_gradient)
    torch.testing.assert_close(logits, before, rtol=0, atol=0, equal_nan=True)
    assert (gradient is not None) == with_gradient
    return {"values": values} if gradient is None else {"values": values, "gradient": gradient}


def defined(logits, weight, mask):
    """J = sum (p - q) log(p / q), its weighted sum's gradient w [p (log(p / q) - KL(p || q)) + p - q], with
    p - q = (p + q) tanh(log(p / q) / 2)."""
    z = logits.double()
    log_p = z - z.logsumexp(-1, keepdim=True)
    p, count = log_p.exp(), logits.shape[1]
    values, gradient = p.new_zeros(len(p), count, count), torch.zeros_like(p)
    for i in range(count):
        for j in range(count):
            ratio = log_p[:, i] - log_p[:, j]
            ratio = torch.where(ratio.isnan() & logits[:, i].eq(-math.inf), 0, ratio)  # both rule the token out
            difference = (p[:, i] + p[:, j]) * torch.tanh(ratio / 2)
            both = mask[:, i] & mask[:, j] & torch.tensor(i != j, device=mask.device)
            entry = torch.where(difference == 0, 0, difference * ratio)
            values[:, i, j] = torch.where(both, entry.sum(-1), 0)
            kl = (p[:, i] * ratio - difference).sum(-1, keepdim=True)  # of non-negative entries
            w = torch.where(both, weight[:, min(i, j), max(i, j)].double(), 0)[:, None]
            gradient[:, i] += w * (p[:, i] * (ratio - kl) + difference)
    return {"values": values, "gradient": gradient}


def eager(logits, weight, mask):
    leaf = logits.detach().clone().requires_grad_()
    values = pairwise_jeffreys(leaf, mask)
    (values * weight).triu(1).sum().backward()
    return {"values": values.detach(), "gradient": leaf.grad}


def check(implementation, logits, weight, mask):
    """Within the budget of eager PyTorch's."""
    found, truth = run(implementation, logits, weight, mask), defined(logits, weight, mask)

    def ordered(order):
        order = order.to(logits.device)
        peer = eager(logits[..., order], weight, mask)
        return peer | {"gradient": peer["gradient"][..., order.argsort()]}

    assert_within_budget(found, unluckiest(ordered, logits.shape[-1], truth), truth, torch.float32)
    return found


@each(SHAPES, names="shape")
def test_matches_float64(implementation, shape):
    found = check(implementation, *make(implementation, *shape, scale=2.0 if shape[1] % 2 else 0.5))
    values = found["values"]
    assert torch.equal(values, values.transpose(1, 2)) and bool((values >= 0).all())
    assert values.diagonal(dim1=1, dim2=2).count_nonzero() == 0


@each([1e-1, 1e-3, 1e-5], names="difference")
def test_nearly_equal_rows_keep_their_digits(implementation, difference):
    logits, weight, mask = make(implementation, 2, 3, 128, spread=difference, absent=0)
    logits[1] += 20
    found, truth = run(implementation, logits, weight, mask), defined(logits, weight, mask)
    rounding = 2**-19 + (2**-21 / difference) ** 2  # as in test_group_kernels
    torch.testing.assert_close(found["values"].double(), truth["values"], rtol=rounding, atol=0)
    error = (found["gradient"] - truth["gradient"]).norm() / truth["gradient"].norm()
    assert error < 2**-19 + 2**-32 / difference


@each([3, 9], names="count")
def test_equal_rows_give_exactly_zero(implementation, count):
    logits, weight, mask = make(implementation, 2, count, 67, spread=0.0)
    logits[..., 5:25] = -math.inf
    found = run(implementation, logits, weight, mask)
    assert all(value.count_nonzero() == 0 for value in found.values())


@each([-math.inf, -1e30], names="lowest")
def test_masked_columns(implementation, lowest):
    """Values and gradient are those of the vocabulary without them, whose gradient is 0."""
    logits, weight, mask = make(implementation, 2, 5, 101)
    kept = torch.arange(101, device=logits.device) % 3 != 1
    expected = check(implementation, logits[..., kept].contiguous(), weight, mask)
    logits[..., ~kept] = lowest
    found = run(implementation, logits, weight, mask)
    assert found["gradient"][..., ~kept].count_nonzero() == 0
    torch.testing.assert_close(found["values"], expected["values"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found["gradient"][..., kept], expected["gradient"], rtol=1e-5, atol=1e-6)


@each([2, 4, 9], names="count")
def test_a_token_that_one_row_alone_rules_out(implementation, count):
    """Its pairs are infinitely apart. Without weight they leave all gradients what they are; with weight both rows' are
    nan, so that no step is made of them."""
    logits, weight, mask = make(implementation, 2, count, 67, absent=0)
    logits[0, 1, 30:33] = -math.inf
    weight[0, 0, 1] = 1.0
    others = [k for k in range(count) if k != 1]
    found = run(implementation, logits, weight, mask)
    assert bool((found["values"][0, 1, others] == math.inf).all())
    assert bool(found["values"][0][others][:, others].isfinite().all()) and bool(found["values"][1].isfinite().all())
    assert bool(found["gradient"][0, :2].isnan().all()) and bool(found["gradient"][1].isfinite().all())
    weight[0, 1] = weight[0, :, 1] = 0
    found = run(implementation, logits, weight, mask)
    assert found["gradient"][0, 1].count_nonzero() == 0
    if count > 2:
        of_others = logits[:, others].contiguous(), weight[:, others][:, :, others].contiguous(), mask[:, others]
        without = run(implementation, *of_others)
        torch.testing.assert_close(found["gradient"][0, others], without["gradient"][0], rtol=1e-4, atol=1e-6)


@each([2, 9], names="count")
def test_absent_rows_may_hold_anything_finite(implementation, count):
    logits, weight, mask = make(implementation, 1, count, 67)
    mask[0, -1] = False
    expected = check(implementation, logits, weight, mask)
    found = run(implementation, torch.where(mask[..., None], logits, 1e4), weight, mask)
    for name, value in found.items():
        assert torch.equal(value, expected[name]) and value[0, -1].count_nonzero() == 0


@each([100.0, 1e4], names="peak")
def test_saturated_rows(implementation, peak):
    """Peaks at different tokens, at the same, and at two: a divergence is then about a difference of logits."""
    logits, weight, mask = make(implementation, 2, 4, 67, absent=0)
    logits[0, :3, 5] = peak
    logits[0, 1:3, 6] = peak
    logits[1].fill_(-peak)
    for k in range(4):
        logits[1, k, k] = peak
    found = check(implementation, logits, weight, mask)
    assert bool(found["gradient"].isfinite().all())
    torch.testing.assert_close(found["values"][1, 0, 1].cpu(), torch.tensor(4 * peak))


@each([math.nan, math.inf], names="value")
def test_non_finite_rows_show(implementation, value):
    logits, weight, mask = make(implementation, 2, 3, 67, absent=0)
    finite = run(implementation, logits, weight, mask)["values"]
    logits[0, 1, 40] = value
    found = run(implementation, logits, weight, mask)
    assert not bool(found["values"][0, 1, [0, 2]].isfinite().any())
    torch.testing.assert_close(found["values"][1], finite[1])
    assert not bool(found["gradient"][0, 1].isfinite().all()) and bool(found["gradient"][1].isfinite().all())


@each([2, 9], names="count")
def test_repeats_and_does_without_a_gradient(implementation, count):
    inputs = make(implementation, 2, count, 67)
    first, second = run(implementation, *inputs), run(implementation, *inputs)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(run(implementation, *inputs, with_gradient=False)["values"], first["values"])
    alone = run(implementation, *(tensor[:1] for tensor in inputs))
    assert all(torch.equal(value, first[name][:1]) for name, value in alone.items())


@each(names="")
def test_float64_logits(implementation):
    """Where there are any: to all their digits."""
    if torch.float64 not in implementation.dtypes:
        pytest.skip("this backend has no float64")
    logits, weight, mask = (t.double() if t.is_floating_point() else t for t in make(implementation, 2, 3, 67))
    found, truth = run(implementation, logits, weight, mask), defined(logits, weight, mask)
    torch.testing.assert_close(found, truth, rtol=1e-12, atol=1e-14)
