"""The contract of linear_cross_entropy's RowKernels where logits are minus infinity, for every implementation."""

from __future__ import annotations

import functools
import math
from dataclasses import replace

import implementations
import pytest
import torch
import torch.nn.functional as F
from cases import DTYPES
from kernel_cases import EVERYTHING, PLAIN, Options, truth_and_peer_of_rows
from masked_cases import kept_columns, lowest_of, mask_all_but, widen
from test_row_kernels import ALL, ON_LOGITS, assert_right, make, never_given_up, run

from mind_kernels.row_chunks import accumulation_dtype
from mind_kernels.testing import assert_within_budget

# Lanes that are not stored may overflow in Triton's interpreter.
pytestmark = [
    pytest.mark.filterwarnings("ignore::RuntimeWarning:triton"),
    pytest.mark.usefixtures(never_given_up.__name__),
]

TORCH = [implementation for implementation in ALL if implementation.backend == "torch"]
each = functools.partial(implementations.each, of=ON_LOGITS, dtypes=DTYPES)


def sparse_rows(implementation, logits, target, options, bias):
    """The sparse rows of logits (n, V) plus a bias (V,): an identity for a head leaves them as they are."""
    spec = options.spec(torch.eye(logits.shape[1], dtype=logits.dtype, device=logits.device))
    spec = replace(spec, head=replace(spec.head, bias=bias))
    rows = implementation.kernels("linear_cross_entropy").sparse_rows(logits, target, spec)
    rows.means()
    return rows


MASKED = [PLAIN, Options(temperature=0.5), Options(z_loss=1e-2), Options(entropy=True)]


@each(MASKED, [0, 1, 2], [7, 101, 1024], names="options lowest vocabulary")
def test_masked_logits(implementation, dtype, options, lowest, vocabulary):
    """Of minus infinity or next to it: no probability and no gradient. All else is as without these entries."""
    logits, target, *weights = make(implementation, vocabulary, dtype)
    columns = kept_columns(*logits.shape, vocabulary // 2 + 1, target)
    position = (columns == target[:, None]).int().argmax(1)
    inputs = logits.gather(1, columns), position, *weights
    truth, peer = truth_and_peer_of_rows(*inputs, options)
    assert bool(torch.stack([value.isfinite().all() for value in truth.values()]).all())
    masked = mask_all_but(logits, columns, lowest_of(dtype)[lowest % len(lowest_of(dtype))])
    values, gradient = run(implementation, masked, target, *weights, options)
    true_gradient = {"gradient": truth.pop("gradient")}
    assert_within_budget(values._asdict(), peer, truth, accumulation_dtype(dtype))
    assert_within_budget({"gradient": gradient.gather(1, columns)}, peer, true_gradient, dtype)
    assert torch.equal(values.correct, options.condition(inputs[0].double()).argmax(1) == position)
    assert torch.equal(gradient, widen(gradient.gather(1, columns), columns, vocabulary))


@each(
    [PLAIN, Options(entropy=True)], [[0, 4096], [4100, 8200], [1, 8200], [0, 8199]], names="options masked", dtypes=()
)
def test_masked_parts_of_a_row(implementation, options, masked):
    """Whole blocks before and after those with a logit, all entries but the first or the last."""
    logits, _, *weights = make(implementation, 8200, torch.float32, rows=3)
    start, stop = masked
    inside = [column for column in (0, 4097, 8199) if not start <= column < stop]
    target = torch.tensor([inside[0], inside[-1], inside[0]], device=implementation.device)
    logits[:, start:stop] = -math.inf
    kept = logits.isfinite()[0]
    inputs = logits[:, kept], kept.cumsum(0)[target] - 1, *weights
    truth, peer = truth_and_peer_of_rows(*inputs, options)
    values, gradient = run(implementation, logits, target, *weights, options)
    true_gradient = {"gradient": truth.pop("gradient")}
    assert_within_budget(values._asdict(), peer, truth, torch.float32)
    assert_within_budget({"gradient": gradient[:, kept]}, peer, true_gradient, torch.float32)
    assert gradient[:, ~kept].count_nonzero() == 0


@each([0.0, 0.2], names="smoothing")
def test_an_infinite_loss_has_the_gradient_of_torch(implementation, dtype, smoothing):
    """Of a target at a logit of minus infinity, and of label smoothing beside one."""
    logits, target, scale, entropy_scale = make(implementation, 67, dtype)
    logits[:, 3:20] = -math.inf
    target[0], target[1], target[2] = 5, 30, 19
    options = Options(label_smoothing=smoothing)
    leaf = logits.double().clone().requires_grad_()
    loss = F.cross_entropy(leaf, target, label_smoothing=smoothing, reduction="none")
    (scale * loss).sum().backward()
    masked = (target >= 3) & (target < 20)
    values, gradient = run(implementation, logits, target, scale, entropy_scale, options)
    infinite = loss == math.inf
    assert bool(infinite.all() if smoothing else torch.equal(infinite, masked))
    torch.testing.assert_close(values.loss.double(), loss.detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        values.nll.double(), F.cross_entropy(leaf, target, reduction="none"), rtol=1e-5, atol=1e-6
    )
    assert bool(values.entropy.isfinite().all()) and not bool(values.correct[masked].any())
    torch.testing.assert_close(gradient.double(), leaf.grad, rtol=2 * torch.finfo(dtype).eps, atol=1e-6)


@each([PLAIN, Options(label_smoothing=0.1), Options(entropy=True)], [67, 4104], names="options vocabulary")
def test_a_row_of_minus_infinity_alone_is_nan(implementation, dtype, options, vocabulary):
    """As in torch, whose log-sum-exp of it is minus infinity. The other rows do not see it."""
    logits, target, scale, entropy_scale = make(implementation, vocabulary, dtype, rows=3)
    scale, entropy_scale = scale + 3, entropy_scale + 3
    expected, expected_gradient = run(implementation, logits, target, scale, entropy_scale, options)
    logits[1], target[1] = -math.inf, 0
    values, gradient = run(implementation, logits, target, scale, entropy_scale, options)
    assert values.lse[1] == -math.inf and not bool(values.correct[1])
    for name in ("loss", "nll", "entropy"):
        assert getattr(values, name).isnan().tolist() == [False, True, False], name
    assert bool(gradient[1].isnan().all())
    others = [0, 2]
    assert torch.equal(gradient[others], expected_gradient[others])
    assert all(torch.equal(value[others], expected[k][others]) for k, value in enumerate(values))


@each([Options(softcap=5.0), EVERYTHING], names="options")
def test_a_softcap_makes_masked_logits_finite(implementation, dtype, options):
    """-softcap / temperature, with a slope of 0."""
    logits, *rest = make(implementation, 101, dtype)
    bounded = logits.clone()
    logits[:, 40:60], bounded[:, 40:60] = -math.inf, -1e3
    values, gradient = run(implementation, logits, *rest, options)
    assert_right(values, gradient, (bounded, *rest), options)
    assert gradient[:, 40:60].count_nonzero() == 0


@each([PLAIN, Options(entropy=True)], of=ALL, names="options")
def test_sparse_rows_of_a_masked_vocabulary(implementation, dtype, options):
    """What they keep, drop and sample is what they do without the masked entries, and a masked target is kept."""
    logits, target, *weights = make(implementation, 101, dtype)
    kept = torch.ones(101, dtype=torch.bool, device=logits.device)
    kept[10:45] = False
    target[:] = torch.where(kept[target], target, 90)
    target[1], weights[0][1] = 20, 1.0
    logits[:, ~kept], bias = 0, torch.zeros_like(logits[0]).masked_fill(~kept, -math.inf)
    found = sparse_rows(implementation, logits, target, options, bias)
    place = torch.where(kept[target], kept.cumsum(0)[target] - 1, 0)
    expected = sparse_rows(implementation, logits[:, kept], place, options, None)
    finite = kept[target]
    chosen = finite.nonzero().squeeze(1)
    tolerance = {"rtol": 1e-4, "atol": 1e-6}
    for name in ("loss", "nll", "lse", "entropy"):
        value, truth = getattr(found.values, name), getattr(expected.values, name)
        torch.testing.assert_close(value[finite], truth[finite], **tolerance)
    assert found.values.nll[1] == math.inf
    torch.testing.assert_close(found.values.entropy[1], expected.values.entropy[1], **tolerance)
    entries, of_kept = found.entries(options.weights(*weights)), expected.entries(options.weights(*weights))
    row = torch.repeat_interleave(torch.arange(len(logits), device=logits.device), found.kept)
    of_row = torch.repeat_interleave(torch.arange(len(logits), device=logits.device), expected.kept)
    same, of_same = finite[row], finite[of_row]
    columns = kept.nonzero().squeeze(1)
    assert torch.equal(entries.columns[same].long(), columns[of_kept.columns.long()][of_same])
    torch.testing.assert_close(entries.values[same], of_kept.values[of_same], **tolerance)
    torch.testing.assert_close(entries.kept_sum[finite], of_kept.kept_sum[finite], **tolerance)
    torch.testing.assert_close(found.dropped_mass[finite], expected.dropped_mass[finite], **tolerance)
    at = (row == 1) & (entries.columns == 20)
    torch.testing.assert_close(entries.values[at], -weights[0][1:2], **tolerance)
    weight = torch.ones_like(weights[0])[chosen]
    background, mass = found.background(chosen, weight)
    of_kept, mass_of_kept = expected.background(chosen, weight)
    torch.testing.assert_close(background[kept], of_kept, **tolerance)
    torch.testing.assert_close(mass, mass_of_kept, **tolerance)
    assert background[~kept].count_nonzero() == 0


@each([PLAIN, Options(entropy=True)], [0, 5], names="options masked", of=TORCH)
def test_what_a_gpu_does_without_looking(implementation, dtype, options, masked, monkeypatch):
    """The torch backend asks on a CPU whether an infinity is there. A GPU is spared the question, with one result."""
    logits, *rest = make(implementation, 67, dtype)
    logits[:, :masked] = -math.inf
    expected = run(implementation, logits, *rest, options)
    monkeypatch.setattr(implementation.kernels("linear_cross_entropy"), "may_be_nan", lambda _: True)
    torch.testing.assert_close(run(implementation, logits, *rest, options), expected, rtol=0, atol=0)
