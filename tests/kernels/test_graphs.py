"""torch.compile, torch.export, and tensors without values: every operation gives what eager mode does, or says so."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from cases import DTYPES, opcheck
from losses import LOSSES, SLOWLY, make_constants, with_backends
from test_transforms import TRANSFORMS
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from mind_kernels import Head, linear_cross_entropy, linear_divergence
from mind_kernels.autograd import Operator
from mind_kernels.row_chunks import accumulation_dtype

ROWS, SIZE, VOCABULARY = 12, 8, 31


def make(rows=ROWS, size=SIZE, vocabulary=VOCABULARY):
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(rows, size, generator=generator), torch.randn(vocabulary, size, generator=generator)
    return hidden, weight, make_constants(rows, vocabulary)


def assert_compiles_once(step, calls, *, mark=False, **options):
    """step(*call) in a graph is what it is in eager mode, for all calls, with one or two graphs for all of them.

    `mark`: the rows of the first argument are marked as dynamic.
    """
    torch._dynamo.reset()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    compiled = torch.compile(step, fullgraph=True, backend=backend, **options)
    for call in calls:
        results = []
        for function in (step, compiled):
            leaf = call[0].detach().clone().requires_grad_()
            if mark:
                torch._dynamo.mark_dynamic(leaf, 0)
            loss = function(leaf, *call[1:])
            loss.backward()
            results.append((loss.detach(), leaf.grad))
        for eager, found in zip(*results, strict=True):
            torch.testing.assert_close(found, eager, rtol=0, atol=0)
    assert len(graphs) <= 2


@pytest.mark.parametrize("loss", SLOWLY)
def test_softcap_and_temperature_may_change(loss):
    """More values than a function may have graphs."""
    hidden, weight, constants = make()

    def step(hidden, softcap, temperature):
        return loss(hidden, Head(weight, None, softcap, temperature), constants)

    assert_compiles_once(step, [(hidden, 2.0 + k, 0.5 + k / 7) for k in range(11)])


NUMBERS = {
    "label_smoothing": (linear_cross_entropy, ("target",), {}),
    "z_loss": (linear_cross_entropy, ("target",), {}),
    "gradient_threshold": (linear_cross_entropy, ("target",), {}),
    "beta": (linear_divergence, ("teacher_hidden", "teacher_weight"), {"kind": "jsd"}),
    "skew": (linear_divergence, ("teacher_hidden", "teacher_weight"), {"kind": "skew_reverse_kl"}),
    "interpolation": (linear_divergence, ("teacher_hidden", "teacher_weight"), {"kind": "taid"}),
    "teacher_softcap": (linear_divergence, ("teacher_hidden", "teacher_weight"), {}),
    "teacher_temperature": (linear_divergence, ("teacher_hidden", "teacher_weight"), {}),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.nightly] * (name not in ("z_loss", "skew"))) for name in NUMBERS]
)
def test_every_number_may_change(name):
    if name == "skew" and torch.__version__ < (2, 12):
        pytest.skip("PyTorch 2.11 compiles a graph for each skew")
    operation, names, options = NUMBERS[name]
    hidden, weight, constants = make()

    def step(hidden, value):
        return operation(hidden, weight, *(constants[each] for each in names), **options, **{name: value})

    assert_compiles_once(step, [(hidden, 0.01 + k / 16) for k in range(11)])


@pytest.mark.parametrize("loss", SLOWLY)
def test_rows_vocabulary_and_size_may_change(loss):
    def step(hidden, weight, constants):
        return loss(hidden, weight, constants)

    shapes = [(12, 8, 31), (18, 8, 31), (24, 10, 31), (30, 12, 40), (36, 14, 51)]
    assert_compiles_once(step, [make(*shape) for shape in shapes], dynamic=True)


def test_dimensions_that_are_marked():
    def step(hidden, weight, target):
        return linear_cross_entropy(hidden, weight, target)

    calls = []
    for rows in (12, 18, 24):
        hidden, weight, constants = make(rows)
        torch._dynamo.mark_dynamic(constants["target"], 0)
        calls.append((hidden, weight, constants["target"]))
    assert_compiles_once(step, calls, mark=True)


def test_a_wrong_number_is_named_in_a_graph():
    hidden, weight, constants = make()
    step = torch.compile(
        lambda softcap: linear_cross_entropy(hidden, weight, constants["target"], softcap=softcap), backend="aot_eager"
    )
    step(2.0)
    step(3.0)
    with pytest.raises(ValueError, match="softcap is -1.0: expected a positive finite number"):
        step(-1.0)


def without_values(kind, tensors, mode):
    """The tensors on the meta device, or as fakes of themselves."""
    convert = (lambda tensor: tensor.to("meta")) if kind == "meta" else mode.from_tensor
    return [{name: convert(tensor) for name, tensor in each.items()} for each in tensors]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["meta", "fake"])
@with_backends(reference=True, interpreter=True)
def test_shapes_without_values(loss, backend, kind, dtype):
    if dtype == torch.float64 and backend not in ("reference", "torch"):
        return  # which has no float64
    hidden, weight, constants = make()
    low = {"hidden": hidden.to(dtype), "weight": weight.to(dtype)}
    if dtype == torch.float64:
        constants = {name: value.double() if value.is_floating_point() else value for name, value in constants.items()}
    mode = FakeTensorMode()
    given, constants = without_values(kind, (low, constants), mode)
    leaves = [tensor.requires_grad_() for tensor in given.values()]
    selects = backend == "reference" and loss.name in ("sparse", "joint", "sparse_joint")  # rows, by their values
    error = pytest.raises(RuntimeError, match="tensors without values are not supported .* use backend='torch'")
    with error if selects else nullcontext(), mode if kind == "fake" else nullcontext():
        value = loss(*leaves, constants, backend=backend)
        value.backward()
    if selects:
        return
    assert value.shape == () and value.device == leaves[0].device and value.dtype == accumulation_dtype(dtype)
    for leaf in leaves:
        assert leaf.grad.shape == leaf.shape and leaf.grad.dtype == dtype and leaf.grad.device == leaf.device


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)
def test_opcheck(loss, dtype, monkeypatch):
    """Of the very calls that the loss makes: float16 returns float32 gradients from the operator."""
    calls, call = [], Operator.__call__
    monkeypatch.setattr(Operator, "__call__", lambda self, given: (calls.append((self, given)), call(self, given))[1])
    hidden, weight, constants = make()
    loss(hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), constants)
    ((operator, arguments),) = calls
    opcheck(operator, arguments)


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)
def test_export(loss):
    hidden, weight, constants = make()

    class Module(torch.nn.Module):
        def forward(self, hidden):
            return loss(hidden, weight, constants)

    exported = torch.export.export(Module(), (hidden,))
    torch.testing.assert_close(exported.module()(2 * hidden), Module()(2 * hidden), rtol=0, atol=0)


@pytest.mark.parametrize(
    "name", ["grad", *(pytest.param(name, marks=pytest.mark.nightly) for name in ("vjp", "vmap", "jvp"))]
)
@pytest.mark.parametrize("fullgraph", [False, True])
def test_a_transform_within_a_graph_is_refused(name, fullgraph):
    hidden, weight, constants = make()

    def call(x):
        return linear_cross_entropy(x, weight, constants["target"])

    torch._dynamo.reset()
    compiled = torch.compile(lambda x: TRANSFORMS[name](call, x), backend="aot_eager", fullgraph=fullgraph)
    with pytest.raises(Exception, match="transforms of torch.func are not supported by this backend"):
        compiled(hidden)


@pytest.mark.parametrize("name", ["grad", "vmap", "jvp"])
def test_a_transform_of_a_graph_is_refused(name):
    hidden, weight, constants = make()
    torch._dynamo.reset()
    step = torch.compile(lambda x: linear_cross_entropy(x, weight, constants["target"]), backend="aot_eager")
    step(hidden)
    with pytest.raises(Exception, match="transforms of torch.func are not supported by this backend"):
        TRANSFORMS[name](step, hidden)


@pytest.mark.parametrize("fullgraph", [False, True])
def test_forward_mode_through_a_graph_is_refused(fullgraph):
    hidden, weight, constants = make()
    torch._dynamo.reset()
    step = torch.compile(
        lambda x: linear_cross_entropy(x, weight, constants["target"]), backend="aot_eager", fullgraph=fullgraph
    )
    plain = step(hidden)  # the graph without a tangent does not serve one with it
    # ours, or from PyTorch 2.14 on its own
    refused = "forward-mode derivatives are not supported by this backend|carry a forward-mode AD tangent"
    with pytest.raises(Exception, match=refused):
        TRANSFORMS["dual tensors"](step, hidden)
    torch.testing.assert_close(step(hidden), plain, rtol=0, atol=0)


@pytest.mark.parametrize("is_cuda", [False, True], ids=["", "gpu"])
def test_a_trace_of_gradients_has_their_factor(is_cuda, monkeypatch):
    """make_fx traces what looks like ordinary tensors, and would not see a kernel of Triton."""
    hidden, weight, constants = make()
    target = constants["target"]

    def gradients(hidden, weight, factor):
        loss = linear_cross_entropy(hidden, weight, target, backend="torch")
        if is_cuda:  # in the backward pass, as on a GPU; no kernel may be launched
            monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda _: True))
        found = torch.autograd.grad(loss, (hidden, weight), factor)
        monkeypatch.undo()
        return found

    leaves = hidden.requires_grad_(), weight.requires_grad_()
    traced = make_fx(gradients)(*leaves, torch.tensor(1.0))
    for found, once in zip(traced(*leaves, torch.tensor(3.0)), gradients(*leaves, torch.tensor(1.0)), strict=True):
        torch.testing.assert_close(found, 3 * once)
