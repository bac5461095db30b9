"""linear_pairwise_jsd of kind "jeffreys": every backend against the float64 definition, identities, errors."""

from __future__ import annotations

import math

import pytest
import torch
from cases import assert_compiles_whole, device_of, interpreted, on, opcheck, usable, with_dtypes
from kernel_cases import make_groups
from test_linear_pairwise_jsd import make, of_logits

from mind_kernels import BackendUnavailableError, JeffreysStats, extension, linear_divergence, linear_pairwise_jsd
from mind_kernels.head import Head
from mind_kernels.linear_pairwise_jsd.contract import JEFFREYS, GroupArguments
from mind_kernels.linear_pairwise_jsd.op import operator
from mind_kernels.testing import assert_within_budget

BACKENDS = usable(JEFFREYS)
OPTIONS = [{}, {"softcap": 4.0, "temperature": 0.8}]


def with_bias(inputs):
    """A bias that rules out two tokens."""
    bias = torch.linspace(-1, 1, len(inputs["weight"]), dtype=torch.float64)
    bias[[3, -1]] = -math.inf
    return inputs | {"bias": bias}


def run(inputs, dtype, backend, **options):
    """Loss, divergences and the gradients of 1.3 times the loss."""
    inputs = on(device_of(backend), inputs)
    names = [name for name in ("hidden", "weight", "bias") if name in inputs]
    leaves = {name: inputs.pop(name).detach().to(dtype).requires_grad_() for name in names}
    options = {"kind": "jeffreys", "return_stats": True, "backend": backend} | options
    loss, stats = linear_pairwise_jsd(**leaves, **inputs, **options)
    assert isinstance(stats, JeffreysStats)
    (1.3 * loss).backward()
    outputs = {"loss": loss, "divergence": stats.jeffreys} | {f"d_{name}": leaf.grad for name, leaf in leaves.items()}
    return {name: tensor.detach().cpu() for name, tensor in outputs.items()}


@pytest.mark.parametrize("options", OPTIONS, ids=["plain", "conditioned"])
@pytest.mark.parametrize("shape", [{"count": 2}, {"count": 5, "scale": 0.3}, {"count": 9, "groups": 2}], ids=str)
@pytest.mark.parametrize("backend, dtype", with_dtypes(BACKENDS))
def test_matches_float64(backend, dtype, shape, options):
    inputs = with_bias(make(**shape, vocabulary=37 if interpreted(backend) else 67))
    inputs = {k: v.to(dtype) if k in ("hidden", "weight", "bias") else v for k, v in inputs.items()}
    truth = run(inputs, torch.float64, "reference", **options)
    found = run(inputs, dtype, backend, **options)
    assert_within_budget(found, run(inputs, dtype, "reference", **options), truth, dtype)
    expected = (found["divergence"].double() * inputs["pair_weight"]).triu(1).sum()
    torch.testing.assert_close(found["loss"].double(), expected, rtol=1e-12 if dtype == torch.float64 else 1e-6, atol=0)


def test_the_definition_is_the_sum_of_both_divergences():
    """Those of linear_divergence, whose gradients to one side with the other constant add up to that of the pair."""
    inputs = with_bias(make(groups=3, count=2)) | {"mask": torch.ones(3, 2, dtype=torch.bool)}
    found = run(inputs, torch.float64, "reference", temperature=1.3)
    hidden, weight = (inputs[name].clone().requires_grad_() for name in ("hidden", "weight"))
    total = 0.0
    for kind in ("forward_kl", "reverse_kl"):
        for own, other in ((0, 1), (1, 0)):
            total = total + linear_divergence(
                hidden[:, own],
                weight,
                hidden[:, other].detach(),
                weight.detach(),
                bias=inputs["bias"],
                teacher_bias=inputs["bias"],
                temperature=1.3,
                kind=kind,
                row_weight=inputs["pair_weight"][:, 0, 1],
                reduction="sum",
                backend="reference",
            )
    (1.3 * total).backward()
    torch.testing.assert_close(found["loss"], total.detach() / 2, rtol=1e-13, atol=0)
    for name, leaf in (("d_hidden", hidden), ("d_weight", weight)):
        torch.testing.assert_close(found[name], leaf.grad, rtol=1e-11, atol=1e-13)


def test_gradcheck():
    inputs = make(groups=2, count=3, vocabulary=5, size=4)
    assert torch.autograd.gradcheck(
        lambda hidden, weight: linear_pairwise_jsd(
            hidden, weight, inputs["pair_weight"], kind="jeffreys", backend="torch"
        ),
        (inputs["hidden"].requires_grad_(), inputs["weight"].requires_grad_()),
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_equal_rows_give_exactly_zero(backend):
    for name, value in run(of_logits(make(groups=2, spread=0.0)), torch.float32, backend).items():
        assert value.count_nonzero() == 0, name


@pytest.mark.parametrize("backend", BACKENDS)
def test_masked_rows_and_pairs_without_weight_get_no_gradient(backend):
    inputs = make(groups=2, count=4)
    inputs["pair_weight"][:, 2] = inputs["pair_weight"][:, :, 2] = 0
    clean = run(inputs, torch.float32, backend)
    dirty = dict(inputs, hidden=torch.where(inputs["mask"][..., None], inputs["hidden"], math.nan))
    out = run(dirty, torch.float32, backend)
    torch.testing.assert_close(out["loss"], clean["loss"])
    torch.testing.assert_close(out["d_hidden"], clean["d_hidden"], rtol=1e-4, atol=1e-6)
    assert clean["d_hidden"][~inputs["mask"]].count_nonzero() == 0 and clean["d_hidden"][:, 2].count_nonzero() == 0
    assert clean["d_weight"].count_nonzero() > 0


@pytest.mark.parametrize("frozen", ["hidden", "weight"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_frozen_inputs(backend, frozen):
    inputs = on(device_of(backend), make(groups=2, count=3))
    whole = run(inputs, torch.float32, backend)
    leaves = {name: inputs.pop(name).float().requires_grad_(name != frozen) for name in ("hidden", "weight")}
    (1.3 * linear_pairwise_jsd(**leaves, **inputs, kind="jeffreys", backend=backend)).backward()
    (other,) = leaves.keys() - {frozen}
    assert leaves[frozen].grad is None
    torch.testing.assert_close(leaves[other].grad.cpu(), whole[f"d_{other}"])


@pytest.mark.parametrize("backend", BACKENDS)
def test_opcheck_and_compile(backend):
    inputs = on(device_of(backend), make(groups=2, count=3))
    hidden, weight = inputs["hidden"].float().requires_grad_(), inputs["weight"].float().requires_grad_()
    arguments = hidden, Head(weight), inputs["pair_weight"], inputs["mask"], "jeffreys", True, backend
    opcheck(operator, GroupArguments(*arguments))

    def step(hidden, weight):
        options = {"mask": inputs["mask"], "kind": "jeffreys", "backend": backend}
        return linear_pairwise_jsd(hidden * 2, weight, inputs["pair_weight"], **options)

    assert_compiles_whole(step, hidden, weight)


@pytest.mark.parametrize(
    "changes, error, message",
    [
        ({"kind": "kl"}, ValueError, "kind is 'kl': expected one of 'jsd', 'jeffreys'"),
        (
            {"pair_weight": None, "mixture_weight": torch.ones(4, 8)},
            ValueError,
            "kind is 'jeffreys': expected 'jsd' with mixture_weight",
        ),
        (
            {"backend": "triton_streaming"},
            BackendUnavailableError,
            "it has no kernels for this operation; torch, cpp, triton have|triton is not installed",
        ),
    ],
)
def test_bad_input_is_named(changes, error, message):
    inputs = {k: v.float() if k in ("hidden", "weight") else v for k, v in make().items()} | {"kind": "jeffreys"}
    with pytest.raises(error, match=message):
        linear_pairwise_jsd(**inputs | changes)


@pytest.mark.skipif("cpp" not in BACKENDS, reason="backend cpp is not here")
@pytest.mark.parametrize(
    "argument, change, message",
    [
        ("pair_weight", lambda t: t[:1], "pair_weight has shape"),
        ("mask", lambda t: t.float(), "mask has dtype"),
        ("gradient", lambda t: t[..., :66], "gradient has shape"),
    ],
)
def test_wrong_arguments_of_the_compiled_operator_are_named(argument, change, message):
    logits, weight, mask = make_groups("pairs", 2, 3, 67)
    given = {
        "logits": logits,
        "pair_weight": weight,
        "mask": mask,
        "divergence": weight.clone(),
        "gradient": logits + 0,
    }
    with pytest.raises(RuntimeError, match=message):
        extension.operators("cpp").jeffreys_divergences(*(given | {argument: change(given[argument])}).values())
