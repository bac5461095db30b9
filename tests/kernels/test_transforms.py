"""Derivatives that an operation does not have: each is right, or an error that names the operation and the remedy."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.autograd.functional as AF
from cases import DTYPES
from losses import LOSSES, SLOWLY, make_constants, with_backends
from torch.autograd import forward_ad

from mind_kernels import Head, linear_cross_entropy, linear_divergence

ROWS, SIZE, VOCABULARY = 6, 4, 11
DEFINED = [loss for loss in LOSSES if "sparse" not in loss.name]


def make():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(ROWS, SIZE, generator=generator, dtype=torch.float64)
    weight = torch.randn(VOCABULARY, SIZE, generator=generator, dtype=torch.float64)
    return hidden, weight, make_constants(ROWS, VOCABULARY, dtype=torch.float64)


def of_hidden(loss, backend):
    hidden, weight, constants = make()
    single = backend not in ("reference", "torch")  # which compute in float32

    def call(x):
        low = {k: v.float() if single and v.is_floating_point() else v for k, v in constants.items()}
        return loss(x, weight.to(x.dtype), low, backend=backend)

    return call, hidden.float() if single else hidden


def dual(call, hidden):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(call(forward_ad.make_dual(hidden, torch.ones_like(hidden)))).tangent


TRANSFORMS = {
    "jvp": lambda call, x: torch.func.jvp(call, (x,), (torch.ones_like(x),))[1],
    "jacfwd": lambda call, x: torch.func.jacfwd(call)(x),
    "grad": lambda call, x: torch.func.grad(call)(x),
    "vjp": lambda call, x: torch.func.vjp(call, x)[1](torch.ones((), dtype=x.dtype))[0],
    "jacrev": lambda call, x: torch.func.jacrev(call)(x),
    "hessian": lambda call, x: torch.func.hessian(call)(x),
    "vmap": lambda call, x: torch.func.vmap(call)(torch.stack([x, 2 * x])),
    "linearize": lambda call, x: torch.func.linearize(call, x)[1](torch.ones_like(x)),
    "dual tensors": dual,
    "dual tensors of a leaf": lambda call, x: dual(call, x.clone().requires_grad_()),
    "forward-mode jacobian": lambda call, x: AF.jacobian(call, x, vectorize=True, strategy="forward-mode"),
    "functional.jvp": lambda call, x: AF.jvp(call, x, torch.ones_like(x))[1],
    "functional.hvp": lambda call, x: AF.hvp(call, x, torch.ones_like(x))[1],
    "functional.hessian": lambda call, x: AF.hessian(call, x),
    "create_graph": lambda call, x: torch.autograd.grad(call(y := x.clone().requires_grad_()), y, create_graph=True),
}


@pytest.mark.parametrize("name", TRANSFORMS)
@with_backends()
def test_a_transform_is_refused(loss, backend, name):
    with pytest.raises(
        RuntimeError, match=r"^linear_\w+: .* are not supported by this backend: use backend='reference'"
    ):
        TRANSFORMS[name](*of_hidden(loss, backend))


@pytest.mark.parametrize("loss", [loss for loss in SLOWLY if "sparse" not in loss.id])
def test_the_definition_has_them_all(loss):
    """Forward mode and its second derivatives agree with those of reverse mode; vmap with a loop."""
    call, hidden = of_hidden(loss, "reference")
    gradient = AF.vjp(call, hidden)[1]
    for name in ("grad", "vjp", "jacrev", "jacfwd", "forward-mode jacobian"):
        torch.testing.assert_close(TRANSFORMS[name](call, hidden), gradient)
    for name in ("jvp", "dual tensors", "functional.jvp", "linearize"):
        torch.testing.assert_close(TRANSFORMS[name](call, hidden), gradient.sum())
    torch.testing.assert_close(torch.func.hessian(call)(hidden), AF.hessian(call, hidden))
    torch.testing.assert_close(TRANSFORMS["vmap"](call, hidden), torch.stack([call(hidden), call(2 * hidden)]))


def sparse_definition():
    hidden, weight, constants = make()

    def call(x):
        return linear_cross_entropy(x, weight, constants["target"], gradient_threshold=0.01, backend="reference")

    return call, hidden


@pytest.mark.parametrize("name", ["jvp", "grad", "vmap", "dual tensors"])
def test_the_sparse_gradient_has_no_other_derivative(name):
    with pytest.raises(RuntimeError, match="^gradient_threshold: .* use gradient_threshold=None"):
        TRANSFORMS[name](*sparse_definition())


def test_the_sparse_gradient_has_no_second_derivative():
    call, hidden = sparse_definition()
    leaf = hidden.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(call(leaf), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@with_backends(reference=True)
def test_first_derivatives_of_autograd_functional(loss, backend):
    call, hidden = of_hidden(loss, backend)
    leaf = hidden.clone().requires_grad_()
    call(leaf).backward()
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if hidden.dtype == torch.float32 else {}
    for vectorize in (False, True):
        torch.testing.assert_close(AF.jacobian(call, hidden, vectorize=vectorize), leaf.grad, **tolerance)
    torch.testing.assert_close(AF.vjp(call, hidden)[1], leaf.grad, **tolerance)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_many_upstream_gradients_at_once(dtype):
    hidden, weight, constants = make()
    leaf = hidden.to(dtype).requires_grad_()
    loss = linear_cross_entropy(leaf, weight.to(dtype), constants["target"], backend="torch")
    upstream = torch.tensor([1.0, 3.00390625, -2.0], dtype=loss.dtype)
    (found,) = torch.autograd.grad(loss, leaf, upstream, retain_graph=True, is_grads_batched=True)
    each = [torch.autograd.grad(loss, leaf, one, retain_graph=True)[0] for one in upstream]
    torch.testing.assert_close(found, torch.stack(each), rtol=0, atol=0)


def test_a_functional_call_is_no_transform():
    hidden, weight, constants = make()
    layer = torch.nn.Linear(SIZE, SIZE, dtype=torch.float64)
    replaced = {"weight": torch.eye(SIZE, dtype=torch.float64, requires_grad=True), "bias": hidden.new_zeros(SIZE)}
    out = torch.func.functional_call(layer, replaced, (hidden,))
    linear_cross_entropy(out, weight, constants["target"]).backward()
    assert replaced["weight"].grad is not None


FLOATING = [
    (loss, name)
    for loss in LOSSES
    if loss.name not in ("none", "log_prob", "listed")  # whose weights are not arguments of the operation
    for name in loss.constants
    if name not in ("target", "answer_rows", "teacher_ids", "teacher_mask")
]


@pytest.mark.parametrize(("loss", "name"), FLOATING, ids=lambda value: getattr(value, "name", value))
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_a_constant_that_requires_a_gradient_is_refused(loss, name, backend):
    hidden, weight, constants = make()
    constants[name].requires_grad_()
    argument = "pair_weight" if name == "answer_weight" else name
    with pytest.raises(ValueError, match=rf"^{argument} requires a gradient: .* pass {argument}.detach\(\)"):
        loss(hidden, weight, constants, backend=backend)
    with torch.no_grad():
        without = loss(hidden, weight, constants, backend=backend)
    constants[name] = constants[name].detach()
    torch.testing.assert_close(loss(hidden, weight, constants, backend=backend), without, rtol=0, atol=0)
    with forward_ad.dual_level(), pytest.raises(ValueError, match=rf"^{argument} requires a gradient"):
        constants[name] = forward_ad.make_dual(constants[name], torch.ones_like(constants[name]))
        loss(hidden, weight, constants, backend=backend)


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_a_teachers_head_that_requires_a_gradient_is_refused(backend):
    hidden, weight, constants = make()
    teacher, bias = constants["teacher_weight"], torch.zeros(VOCABULARY, dtype=torch.float64, requires_grad=True)
    with pytest.raises(ValueError, match="^teacher_bias requires a gradient"):
        linear_divergence(hidden, weight, constants["teacher_hidden"], Head(teacher, bias), backend=backend)
    layer = torch.nn.Linear(5, VOCABULARY, dtype=torch.float64)
    with pytest.raises(ValueError, match="^teacher_weight requires a gradient"):
        linear_divergence(hidden, weight, constants["teacher_hidden"], layer.weight, backend=backend)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("name", ["temperature", "softcap", "label_smoothing", "z_loss", "gradient_threshold"])
def test_a_number_that_is_a_tensor_is_refused(name, backend):
    """Its gradient would be left out."""
    hidden, weight, constants = make()
    option = {name: torch.tensor(0.5, requires_grad=True)}
    with pytest.raises(TypeError, match=rf"^{name} is a tensor: expected a number"):
        linear_cross_entropy(hidden, weight, constants["target"], **option, backend=backend)


@pytest.mark.parametrize(
    ("kind", "name"), [("jsd", "beta"), ("skew_forward_kl", "skew"), ("taid", "interpolation"), ("jsd", "softcap")]
)
def test_a_parameter_of_a_divergence_that_is_a_tensor_is_refused(kind, name):
    hidden, weight, constants = make()
    teacher = constants["teacher_hidden"], constants["teacher_weight"]
    with pytest.raises(TypeError, match=rf"^{name} is a tensor: expected a number"):
        linear_divergence(hidden, weight, *teacher, kind=kind, **{name: torch.tensor(0.5)})


class _Sharded(torch.Tensor):
    """Looks like a DTensor, which needs a process group."""

    full_tensor = None


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda t: t.tolist(), "is a list: expected a torch.Tensor"),
        (lambda t: t.to_sparse(), "has layout torch.sparse_coo: expected torch.strided"),
        (lambda t: t.as_subclass(_Sharded), "is a DTensor: expected a tensor that this process holds whole"),
    ],
    ids=["list", "sparse", "DTensor"],
)
@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)
def test_what_is_no_whole_tensor_is_refused(loss, wrong, message):
    hidden, weight, constants = make()
    with pytest.raises(TypeError, match=f"^weight {message}"):
        loss(hidden, Head(wrong(weight)), constants)
    if loss.name not in ("none", "log_prob", "listed"):
        name = loss.constants[-1]
        argument = "pair_weight" if name == "answer_weight" else name
        with pytest.raises(TypeError, match=f"^{argument} {message}"):
            loss(hidden, weight, constants | {name: wrong(constants[name])})


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)
def test_the_owner_of_a_tensor_is_told_from_it(loss):
    """model.lm_head in place of model.lm_head.weight, and what a trunk returns in place of its hidden states."""
    hidden, weight, constants = make()
    linear = torch.nn.Linear(weight.shape[1], weight.shape[0])
    embedding = torch.nn.Embedding(*weight.shape)
    for owner in (linear, embedding):
        message = rf"^weight is a {type(owner).__name__}: expected a torch.Tensor, such as its \.weight$"
        with pytest.raises(TypeError, match=message):
            loss(hidden, Head(owner), constants)
    with pytest.raises(TypeError, match=r"^bias is a Linear: expected a torch.Tensor, such as its \.bias$"):
        loss(hidden, Head(weight, linear), constants)
    if loss.of is linear_cross_entropy:
        output = SimpleNamespace(last_hidden_state=hidden)
        with pytest.raises(TypeError, match=r"^hidden is a SimpleN.*, such as its \.last_hidden_state$"):
            loss(output, weight, constants)


def test_a_parameter_is_a_tensor():
    hidden, weight, constants = make()
    parameter = torch.nn.Parameter(weight)
    linear_cross_entropy(hidden, parameter, constants["target"]).backward()
    assert parameter.grad is not None


def test_a_constant_from_inference_mode():
    hidden, weight, constants = make()
    with torch.inference_mode():
        row_weight = constants["row_weight"] * 2
        linear_cross_entropy(hidden, weight, constants["target"], row_weight=row_weight)
    leaf = hidden.clone().requires_grad_()
    linear_cross_entropy(leaf, weight, constants["target"], row_weight=row_weight).backward()
    assert leaf.grad is not None and bool(leaf.grad.isfinite().all())
