"""The contract of linear_pairwise_jsd's GroupKernels, for every implementation: pairs and mixtures of a group's rows.

What only one of them has, such as threads or launches, is in the file of its backend.
"""

from __future__ import annotations

import functools
import math

import implementations
import pytest
import torch
from kernel_cases import make_groups, not_cancelling, truth_and_peer_of_groups

from mind_kernels.testing import assert_within_budget

# Lanes that are not stored, and branches that are not taken, may overflow in Triton's interpreter.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")

ALL = implementations.of("linear_pairwise_jsd")
# PyTorch's form computes in float64, takes a probability of pairs for 1e-300 at least, and has no form for no groups.
KERNELS = [implementation for implementation in ALL if implementation.backend != "torch"]
KINDS = ["pairs", "mixture"]
# (groups, rows, vocabulary): parts of a vector, a tile and a warp's columns, spans of several warps; one block of rows,
# several, and parts of one.
SHAPES = [(3, 2, 101), (2, 3, 67), (1, 5, 128), (2, 8, 67), (1, 9, 35), (1, 13, 40), (1, 16, 40), (1, 32, 7)]
each = functools.partial(implementations.each, of=ALL)


@pytest.fixture(autouse=True)
def wide_steps(monkeypatch, implementation):
    """128 columns a step for any number of rows: the interpreter takes milliseconds for a pair however many it has."""
    if implementation.interpreted:
        from mind_kernels.linear_pairwise_jsd._triton import groups

        monkeypatch.setattr(groups, "_FEW_ROWS", 32)


def make(implementation, kind, *shape, **options):
    return make_groups(kind, *shape, **options, device=implementation.device)


def run(implementation, kind, logits, weight, mask, with_gradient=True):
    """Values, and the gradient if there is one; the logits stay."""
    kernels, before = implementation.kernels("linear_pairwise_jsd"), logits.clone()
    kernel = kernels.pair_divergences if kind == "pairs" else kernels.mixture_divergences
    values, gradient = kernel(logits, weight, mask, with_gradient)
    torch.testing.assert_close(logits, before, rtol=0, atol=0, equal_nan=True)
    assert (gradient is not None) == with_gradient
    return {"values": values} if gradient is None else {"values": values, "gradient": gradient}


def check(implementation, kind, *inputs):
    """The same, within the budget of eager PyTorch's."""
    found = run(implementation, kind, *inputs)
    truth, peer = truth_and_peer_of_groups(*inputs)
    assert_within_budget(found, peer, truth, torch.float32)
    return found


@each(KINDS, SHAPES, names="kind shape")
def test_matches_float64(implementation, kind, shape):
    check(implementation, kind, *make(implementation, kind, *shape, scale=2.0 if shape[1] % 2 else 0.5))


@each(KINDS, [1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6], names="kind difference")
def test_nearly_equal_rows_keep_their_digits(implementation, kind, difference):
    logits, weight, mask = make(implementation, kind, 2, 3, 128, spread=difference, absent=0)
    logits[1] += 20
    found = run(implementation, kind, logits, weight, mask)
    values, gradient = not_cancelling(logits, weight)
    # The sums of e^z are rounded, which moves the log-ratios by 2^-22, and adds its square to theirs. The gradient is
    # free of it, and has the rounding of fine parts of up to 2^-10.
    torch.testing.assert_close(found["values"].double(), values, rtol=2**-20 + (2**-22 / difference) ** 2, atol=0)
    assert (found["gradient"] - gradient).norm() < (2**-20 + 2**-33 / difference) * gradient.norm()


@each(KINDS, [5, 9], names="kind count")
def test_equal_rows_give_exactly_zero(implementation, kind, count):
    logits, weight, mask = make(implementation, kind, 2, count, 67, spread=0.0)
    logits[1, 2] *= 0.9
    mask[1, 2] = True
    found = run(implementation, kind, logits, weight, mask)
    assert found["values"][0].count_nonzero() == 0 and found["gradient"][0].count_nonzero() == 0
    assert found["values"][1].count_nonzero() > 0
    if kind == "pairs":
        others = [k for k in range(count) if k != 2]
        assert found["values"][1][others][:, others].count_nonzero() == 0


@each([0.01, 1.0, 20.0], names="scale")
def test_pairs_are_symmetric_and_bounded(implementation, scale):
    logits, weight, mask = make(implementation, "pairs", 2, 4, 67, scale=scale)
    jsd = run(implementation, "pairs", logits, weight, mask)["values"]
    assert torch.equal(jsd, jsd.transpose(1, 2)) and jsd.diagonal(dim1=1, dim2=2).count_nonzero() == 0
    assert bool((jsd >= 0).all()) and bool((jsd <= math.log(2) * (1 + 1e-6)).all())
    assert jsd[~(mask[:, :, None] & mask[:, None])].count_nonzero() == 0


@each()
def test_disjoint_rows_are_ln_2_apart(implementation):
    logits = 1e4 * torch.eye(2, 3, device=implementation.device)[None]
    weight, mask = torch.ones(1, 2, 2, device=logits.device), torch.ones(1, 2, device=logits.device) > 0
    jsd = run(implementation, "pairs", logits, weight, mask)["values"]
    torch.testing.assert_close(jsd[0, 0, 1].cpu(), torch.tensor(math.log(2)))


@each()
def test_a_mixture_of_two_is_their_jsd(implementation):
    logits, _, mask = make(implementation, "pairs", 2, 2, 67)
    pairs = run(implementation, "pairs", logits, torch.ones(2, 2, 2, device=logits.device), mask)
    mixture = run(implementation, "mixture", logits, torch.full((2, 2), 0.5, device=logits.device), mask)
    torch.testing.assert_close(mixture["values"].sum(1) / 2, pairs["values"][:, 0, 1])
    torch.testing.assert_close(mixture["gradient"], pairs["gradient"], rtol=1e-5, atol=1e-7)


@each(KINDS, [4, 9], names="kind count")
def test_absent_rows_may_hold_anything_finite(implementation, kind, count):
    logits, weight, mask = make(implementation, kind, 1, count, 67)
    mask[0, 2:4] = torch.tensor([False, True])
    expected = check(implementation, kind, logits, weight, mask)
    found = run(implementation, kind, torch.where(mask[..., None], logits, 1e4), weight, mask)
    for name, value in found.items():
        assert torch.equal(value, expected[name])
        assert value[0, 2].count_nonzero() == 0


@each(KINDS, names="kind")
def test_groups_without_present_rows_are_zero(implementation, kind):
    logits, weight, mask = make(implementation, kind, 3, 3, 67)
    mask[0] = False
    found = check(implementation, kind, logits, weight, mask)
    for value in found.values():
        assert value[0].count_nonzero() == 0 and bool((value[1:] != 0).flatten(1).any(1).all())


@each()
def test_pairs_without_weight_change_nothing(implementation):
    logits, weight, mask = make(implementation, "pairs", 2, 3, 67, absent=0)
    only = torch.full_like(weight, math.nan).tril()  # the lower triangle does not count
    only[:, 0, 1] = weight[:, 0, 1]
    three = run(implementation, "pairs", logits, only, mask)
    two = run(implementation, "pairs", logits[:, :2].contiguous(), only[:, :2, :2], mask[:, :2])
    torch.testing.assert_close(three["values"][:, :2, :2], two["values"])
    torch.testing.assert_close(three["gradient"][:, :2], two["gradient"], rtol=1e-5, atol=1e-8)
    assert bool((three["values"][:, 2, :2] > 0).all()) and three["gradient"][:, 2].count_nonzero() == 0


@each([3, 9], names="count")
def test_rows_without_weight_are_compared_with_the_mixture(implementation, count):
    logits, weight, mask = make(implementation, "mixture", 2, count, 67, scale=5.0, absent=0)
    weight[0, :3] = torch.tensor([0.0, 0.3, 0.4])
    weight[1] = 0
    found = check(implementation, "mixture", logits, weight, mask)
    assert found["values"][0, 0] > 0 and found["gradient"][0, 0].count_nonzero() == 0
    assert found["values"][1].count_nonzero() == 0 and found["gradient"][1].count_nonzero() == 0
    weight[0] = 0
    weight[0, 2] = 2.0  # the mixture is a row
    assert check(implementation, "mixture", logits, weight, mask)["values"][0, 2] == 0


@each(KINDS, [100.0, 300.0], names="kind peak")
def test_saturated_rows(implementation, kind, peak):
    check_saturated(implementation, kind, peak)


@each(KINDS, names="kind", of=KERNELS)
def test_rows_that_are_saturated_beyond_float64(implementation, kind):
    check_saturated(implementation, kind, 1e4)


def check_saturated(implementation, kind, peak):
    """Peaks at different tokens, at the same, at two of them, and at tokens of no other row; ordinary rows beside."""
    logits, weight, mask = make(implementation, kind, 3, 4, 67, absent=0)
    logits[0, :3, 5] = peak
    logits[0, 1:3, 6] = peak
    logits[1] = logits[1].sign() * peak
    logits[2].fill_(-peak)
    for k in range(3):
        logits[2, k, k] = peak
    assert bool(check(implementation, kind, logits, weight, mask)["gradient"].isfinite().all())


@each(KINDS, [-1e4, -1e9], names="kind lowest")
def test_forbidden_columns(implementation, kind, lowest):
    """A vocabulary whose columns are ruled out by very negative logits, in all rows or in one."""
    logits, weight, mask = make(implementation, kind, 2, 3, 100, absent=0)
    weight = weight.abs() + 0.1
    logits[..., 90:] = lowest
    logits[:, 1, :10] = lowest
    check(implementation, kind, logits, weight, mask)


@each(KINDS, [-1e4, 1e4], names="kind shift")
def test_shifted_rows(implementation, kind, shift):
    """Logits near 1e4, where a float32 of the log-sum-exp is rounded to 1e-3; all rows of a group, and one of them."""
    logits, weight, mask = make(implementation, kind, 2, 3, 67, absent=0)
    logits = logits.mul(1024).round() / 1024
    expected = run(implementation, kind, logits, weight, mask)
    logits[0] += shift
    logits[1, 1] += shift
    found = check(implementation, kind, logits, weight, mask)
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-7)


@each(KINDS, [math.nan, math.inf], [0, 40], names="kind value column")
def test_non_finite_rows_show(implementation, kind, value, column):
    """In their pairs or their mixture, and in the gradients of all rows that are compared with them."""
    logits, weight, mask = make(implementation, kind, 2, 3, 67, absent=0)
    finite = run(implementation, kind, logits, weight, mask)["values"]
    logits[0, 1, column] = value
    found = run(implementation, kind, logits, weight, mask)
    if kind == "pairs":
        assert not bool(found["values"][0, 1, [0, 2]].isfinite().any())
    else:
        assert not bool(found["values"][0].isfinite().any())
    torch.testing.assert_close(found["values"][1], finite[1])
    assert found["gradient"].isfinite().all(-1).tolist() == [[False] * 3, [True] * 3]


@each([math.nan, math.inf], names="value")
def test_non_finite_rows_without_weight_show(implementation, value):
    logits, weight, mask = make(implementation, "mixture", 2, 3, 131, absent=0)
    weight[0] = torch.tensor([0.5, 0.5, 0.0])
    logits[0, 2, 130] = value
    found = run(implementation, "mixture", logits, weight, mask)
    assert not bool(found["values"][0, 2].isfinite())
    assert bool(found["values"][1].isfinite().all()) and bool(found["gradient"][1].isfinite().all())


@each(KINDS, [2, 8, 9], names="kind count")
def test_without_a_gradient(implementation, kind, count):
    inputs = make(implementation, kind, 1, count, 35)
    alone = run(implementation, kind, *inputs, with_gradient=False)
    assert torch.equal(alone["values"], run(implementation, kind, *inputs)["values"])


@each(KINDS, [7, 131], names="kind vocabulary")
def test_logits_that_are_not_aligned(implementation, kind, vocabulary):
    """They lie among nans, of which none is read."""
    logits, weight, mask = make(implementation, kind, 2, 3, vocabulary)
    around = torch.full((logits.numel() + 65,), math.nan, device=logits.device)
    inside = around[1 : logits.numel() + 1].view(logits.shape)
    inside.copy_(logits)
    found, expected = (run(implementation, kind, tensor, weight, mask) for tensor in (inside, logits))
    torch.testing.assert_close(found, expected)


@each(KINDS, names="kind")
def test_groups_do_not_depend_on_one_another(implementation, kind):
    logits, weight, mask = make(implementation, kind, 4, 3, 128)
    whole = run(implementation, kind, logits, weight, mask)
    for part in (slice(0, 1), slice(1, 4)):
        found = run(implementation, kind, logits[part], weight[part], mask[part])
        assert all(torch.equal(value, whole[name][part]) for name, value in found.items())


@each(KINDS, names="kind")
def test_deterministic(implementation, kind):
    inputs = make(implementation, kind, 1, 9, 67)
    first, second = run(implementation, kind, *inputs), run(implementation, kind, *inputs)
    assert all(torch.equal(first[name], second[name]) for name in first)


@each(KINDS, names="kind", of=KERNELS)
def test_no_groups(implementation, kind):
    logits, weight, mask = (tensor[:0] for tensor in make(implementation, kind, 1, 3, 67))
    found = run(implementation, kind, logits, weight, mask)
    assert found["values"].shape == weight.shape and found["gradient"].shape == logits.shape
