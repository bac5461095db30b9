"""linear_log_prob: every backend against the float64 definition, with an upstream gradient for each output."""

from __future__ import annotations

import pytest
import torch
from cases import assert_compiles_whole, cases, device_of, on, opcheck, row_statistics

from mind_kernels import Head, linear_cross_entropy, linear_log_prob
from mind_kernels.linear_cross_entropy.contract import RowSpec
from mind_kernels.linear_log_prob.contract import LogProbArguments, Upstream
from mind_kernels.linear_log_prob.op import operator
from mind_kernels.testing import assert_within_budget, make_inputs

OPTIONS = [{}, {"softcap": 5.0, "temperature": 0.7, "biased": True}]


def run(inputs, dtype, backend, *, biased=False, only=None, device=None, **options):
    """Outputs, statistics and gradients on the CPU; upstream gradients differ by row and by output."""
    device = device or device_of(backend)
    inputs = on(device, inputs)
    hidden, weight = (inputs[name].detach().to(dtype).requires_grad_() for name in ("hidden", "weight"))
    bias = torch.linspace(-1, 1, weight.shape[0]).to(device, dtype).requires_grad_() if biased else None
    rows, stats = linear_log_prob(
        hidden, weight, inputs["target"], bias=bias, return_stats=True, backend=backend, **options
    )
    upstream = {"log_prob": torch.linspace(-1, 2, len(hidden)), "entropy": torch.linspace(0.3, -0.2, len(hidden))}
    upstream["lse"] = torch.linspace(-0.1, 0.2, len(hidden))
    outputs = {name: getattr(rows, name) for name in upstream}
    used = [only] if only else list(upstream)
    torch.autograd.backward([outputs[name] for name in used], [upstream[name].to(rows.entropy) for name in used])
    out = {**outputs, **row_statistics(stats), "d_hidden": hidden.grad, "d_weight": weight.grad}
    return on("cpu", out | ({"d_bias": bias.grad} if biased else {}))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("only", [None, "log_prob", "entropy"])
@pytest.mark.parametrize(("backend", "dtype", "shape"), cases((37, 33, 1009)))
def test_matches_float64(backend, dtype, shape, only, options):
    inputs = make_inputs(*shape, dtype=dtype, ignored=0.2)
    truth = run(inputs, torch.float64, "reference", only=only, **options)
    peer = run(inputs, dtype, "reference", only=only, device=device_of(backend), **options)
    assert_within_budget(run(inputs, dtype, backend, only=only, **options), peer, truth, dtype)


# Logits far smaller than their log-sum-exp, whose slope is far from 1.
CAPPED = [(5.0, 1000.0), (3.0, 3e4), (0.1, 0.1)]


@pytest.mark.parametrize(("softcap", "temperature"), CAPPED)
@pytest.mark.parametrize(("backend", "dtype", "shape"), cases((13, 24, 101)))
def test_gradient_of_lse_under_a_softcap(backend, dtype, shape, softcap, temperature):
    inputs = make_inputs(*shape, dtype=dtype, peak=20.0)
    options = {"only": "lse", "softcap": softcap, "temperature": temperature}
    truth, peer = (run(inputs, kind, "reference", **options) for kind in (torch.float64, dtype))
    assert_within_budget(run(inputs, dtype, backend, **options), peer, truth, dtype)


def test_log_prob_is_minus_the_cross_entropy():
    inputs = make_inputs(20, 8, 31, dtype=torch.float64)
    arguments = (inputs["hidden"].requires_grad_(), inputs["weight"], inputs["target"])
    rows = linear_log_prob(*arguments)
    nll = linear_cross_entropy(*arguments, reduction="none")
    torch.testing.assert_close(-rows.log_prob, nll)
    weight = inputs["row_weight"]
    ours, theirs = (torch.autograd.grad((weight * loss).sum(), arguments[0])[0] for loss in (-rows.log_prob, nll))
    torch.testing.assert_close(ours, theirs)


def test_reference_gradcheck():
    inputs = make_inputs(5, 4, 7, dtype=torch.float64)
    hidden, weight = inputs["hidden"].requires_grad_(), inputs["weight"].requires_grad_()

    def outputs(hidden, weight):
        return tuple(linear_log_prob(hidden, weight, inputs["target"], softcap=3.0, backend="reference"))

    assert torch.autograd.gradcheck(outputs, (hidden, weight))
    assert torch.autograd.gradgradcheck(outputs, (hidden, weight))


@pytest.mark.parametrize("gradient_threshold", [None, 0.01])
def test_opcheck(gradient_threshold):
    inputs = make_inputs(9, 8, 31)
    spec = RowSpec(Head(inputs["weight"].requires_grad_(), None, 4.0, 0.9), gradient_threshold=gradient_threshold)
    hidden, target = inputs["hidden"].requires_grad_(), inputs["target"]
    opcheck(operator, LogProbArguments(hidden, spec, target[:, None], None, Upstream(), -100, "", "torch"))


def test_compiles_whole():
    inputs = make_inputs(17, 8, 31)

    def step(hidden, weight):
        rows = linear_log_prob(hidden * 2, weight, inputs["target"])
        return (rows.log_prob.exp() - 0.1 * rows.entropy).sum()

    assert_compiles_whole(step, inputs["hidden"], inputs["weight"])


def test_saturated_rows_have_entropy_zero_and_finite_gradients():
    hidden = torch.tensor([[1e4, 0.0], [-1e4, 0.0], [0.0, 1e4]]).requires_grad_()
    weight = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.5, 0.5]]).requires_grad_()
    rows = linear_log_prob(hidden, weight, torch.tensor([0, 1, 2]))
    assert rows.entropy.tolist() == [0, 0, 0]
    (rows.log_prob.sum() + rows.entropy.sum()).backward()
    assert hidden.grad.count_nonzero() == 0 and weight.grad.count_nonzero() == 0


def test_frozen_head():
    inputs = make_inputs(12, 8, 31)
    hidden = inputs["hidden"].requires_grad_()
    torch.autograd.grad(linear_log_prob(hidden, inputs["weight"], inputs["target"]).entropy.sum(), hidden)
    assert inputs["weight"].grad is None


@pytest.mark.parametrize(
    "changes, kind, message",
    [
        ({"hidden": torch.zeros(6, 9)}, ValueError, r"same hidden size D"),
        ({"target": torch.tensor([0, 1, 31, 2, 3, 4])}, ValueError, r"target: .*got 31 in row 2"),
        ({"target": torch.zeros(6)}, TypeError, r"target has dtype"),
        ({"gradient_threshold": 1.0}, ValueError, r"gradient_threshold is 1.0: expected None or a probability"),
        ({"softcap": -1.0}, ValueError, r"softcap is -1.0"),
        ({"temperature": 0.0}, ValueError, r"temperature is 0.0"),
    ],
)
def test_bad_input_is_named(changes, kind, message):
    inputs = make_inputs(6, 8, 31)
    inputs.pop("row_weight")
    with pytest.raises(kind, match=message):
        linear_log_prob(**inputs | changes)
