"""linear_cross_entropy: every backend against the float64 definition, edge rows, identities, errors."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from cases import BACKENDS, assert_compiles_whole, cases, device_of, interpreted, on, opcheck, row_statistics
from hypothesis import given, settings
from hypothesis import strategies as st

from mind_kernels import BackendUnavailableError, linear_cross_entropy, row_chunks, sparse_gradient
from mind_kernels.head import Head, HeadGradients
from mind_kernels.linear_cross_entropy.contract import RowArguments, RowSpec
from mind_kernels.linear_cross_entropy.op import operator
from mind_kernels.testing import assert_within_budget, make_inputs

OPTIONS = [
    {},
    {"reduction": "sum", "weighted": True},
    {"reduction": "none", "weighted": True},
    {"reduction": "sum", "label_smoothing": 0.1, "z_loss": 1e-3, "softcap": 5.0, "temperature": 0.7, "biased": True},
    {"reduction": "none", "label_smoothing": 0.1, "z_loss": 1e-3, "softcap": 5.0, "biased": True},
]


def run(inputs, dtype, backend, *, weighted=False, biased=False, upstream=None, device=None, **options):
    """Loss, statistics and gradients as a dict of tensors on the CPU."""
    device = device or device_of(backend)
    inputs = on(device, inputs)
    hidden, weight = (inputs[name].detach().to(dtype).requires_grad_() for name in ("hidden", "weight"))
    bias = torch.linspace(-1, 1, weight.shape[0]).to(device, dtype).requires_grad_() if biased else None
    rows = hidden.shape[0]
    loss, stats = linear_cross_entropy(
        hidden,
        weight,
        inputs["target"],
        bias=bias,
        row_weight=inputs["row_weight"] if weighted else None,
        segment=torch.arange(rows, device=device) % 3,
        num_segments=3,
        return_stats=True,
        backend=backend,
        **options,
    )
    loss.backward(torch.full_like(loss, 1.7) if upstream is None else upstream)
    out = {"loss": loss, **row_statistics(stats), "d_hidden": hidden.grad, "d_weight": weight.grad}
    return on("cpu", out | ({"d_bias": bias.grad} if biased else {}))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(("backend", "dtype", "shape"), cases((1, 8, 2), (37, 33, 1009), (130, 64, 257)))
def test_matches_float64(backend, dtype, shape, options):
    inputs = make_inputs(*shape, dtype=dtype, ignored=0.0 if shape[0] == 1 else 0.2)
    truth = run(inputs, torch.float64, "reference", **options)
    peer = run(inputs, dtype, "reference", device=device_of(backend), **options)
    assert_within_budget(run(inputs, dtype, backend, **options), peer, truth, dtype)


def test_reference_is_torch_cross_entropy():
    inputs = make_inputs(23, 16, 101, dtype=torch.float64)
    for options in ({}, {"label_smoothing": 0.2}, {"reduction": "none"}):
        ours = linear_cross_entropy(
            inputs["hidden"], inputs["weight"], inputs["target"], backend="reference", **options
        )
        theirs = F.cross_entropy(inputs["hidden"] @ inputs["weight"].T, inputs["target"], **options)
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_reference_gradcheck():
    inputs = make_inputs(5, 4, 7, dtype=torch.float64)
    hidden, weight = inputs["hidden"].requires_grad_(), inputs["weight"].requires_grad_()

    def loss(hidden, weight):
        return linear_cross_entropy(
            hidden,
            weight,
            inputs["target"],
            row_weight=inputs["row_weight"],
            z_loss=0.1,
            label_smoothing=0.1,
            softcap=3.0,
            backend="reference",
        )

    assert torch.autograd.gradcheck(loss, (hidden, weight))
    assert torch.autograd.gradgradcheck(loss, (hidden, weight))


@pytest.mark.parametrize(
    ("backend", "reduction", "gradient_threshold"),
    [
        (backend, reduction, threshold)
        for backend in BACKENDS
        for reduction in ("mean", "none")
        for threshold in (None, 0.01)
        if not interpreted(backend) or (reduction == "mean") == (threshold is None)
    ],
)
def test_opcheck(backend, reduction, gradient_threshold, monkeypatch):
    monkeypatch.setattr(sparse_gradient, "_DENSITY_LIMIT", {"cpu": 1.0, "cuda": 1.0})
    inputs = make_inputs(5, 8, 13, device=device_of(backend))
    head = Head(inputs["weight"].requires_grad_(), None, 4.0, 0.9)
    arguments = RowArguments(
        inputs["hidden"].requires_grad_(),
        RowSpec(head, z_loss=1e-3, gradient_threshold=gradient_threshold),
        inputs["target"],
        inputs["row_weight"],
        segment=torch.arange(5, device=head.weight.device) % 2,
        num_segments=2,
        ignore_index=-100,
        reduction=reduction,
        extra_stats="mean_logit,predicted" if reduction == "none" else "",
        backend=backend,
    )
    opcheck(operator, arguments)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_compiles_whole(backend, reduction):
    inputs = make_inputs(9, 8, 31, device=device_of(backend))

    def step(hidden, weight):
        loss = linear_cross_entropy(hidden * 2, weight, inputs["target"], reduction=reduction, backend=backend)
        return loss.sum()

    assert_compiles_whole(step, inputs["hidden"], inputs["weight"])


@pytest.mark.parametrize("frozen", ["hidden", "weight", "both"])
def test_frozen_inputs_get_no_gradient(frozen):
    inputs = make_inputs(11, 8, 31)
    hidden = inputs["hidden"].requires_grad_(frozen == "weight")
    weight = inputs["weight"].requires_grad_(frozen == "hidden")
    loss = linear_cross_entropy(hidden, weight, inputs["target"])
    assert loss.requires_grad == (frozen != "both")
    if frozen != "both":
        loss.backward()
    assert (hidden.grad is not None) == (frozen == "weight")
    assert (weight.grad is not None) == (frozen == "hidden")


def test_frozen_head_skips_its_product(monkeypatch):
    inputs = make_inputs(11, 8, 31)
    monkeypatch.setattr(HeadGradients, "_add_weight", lambda *_: pytest.fail("dW was computed"))
    linear_cross_entropy(inputs["hidden"].requires_grad_(), inputs["weight"], inputs["target"]).backward()


def test_weight_zero_costs_no_gradient_and_keeps_statistics(monkeypatch):
    inputs = make_inputs(40, 8, 31, ignored=0.3)
    row_weight = inputs["row_weight"] * (torch.arange(40) % 2)
    rows = []
    add = HeadGradients.add
    monkeypatch.setattr(HeadGradients, "add", lambda self, index, *rest: (rows.append(index), add(self, index, *rest)))
    hidden = inputs["hidden"].clone().requires_grad_()
    loss, stats = linear_cross_entropy(
        hidden, inputs["weight"], inputs["target"], row_weight=row_weight, reduction="sum", return_stats=True
    )
    loss.backward()
    _, plain = linear_cross_entropy(inputs["hidden"], inputs["weight"], inputs["target"], return_stats=True)
    valid = inputs["target"] != -100
    assert sorted(torch.cat(rows).tolist()) == (valid & (row_weight != 0)).nonzero().flatten().tolist()
    torch.testing.assert_close(stats.nll, plain.nll)
    assert hidden.grad[row_weight == 0].count_nonzero() == 0


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_no_valid_row(backend):
    inputs = make_inputs(4, 8, 31)
    inputs["target"][:] = -100
    hidden, weight = inputs["hidden"].requires_grad_(), inputs["weight"].requires_grad_()
    assert torch.isnan(linear_cross_entropy(hidden, weight, inputs["target"], backend=backend))
    total = linear_cross_entropy(hidden, weight, inputs["target"], reduction="sum", backend=backend)
    total.backward()
    assert total == 0 and hidden.grad.count_nonzero() == 0 and weight.grad.count_nonzero() == 0


@pytest.mark.parametrize("reduction", ["sum", "none", "mean"])
def test_no_rows_at_all(reduction):
    hidden, weight = torch.empty(0, 8, requires_grad=True), torch.randn(31, 8, requires_grad=True)
    loss = linear_cross_entropy(hidden, weight, torch.empty(0, dtype=torch.int64), reduction=reduction)
    loss.sum().backward()
    assert loss.isnan() if reduction == "mean" else float(loss.sum()) == 0
    assert loss.shape == ((0,) if reduction == "none" else ())
    assert weight.grad.count_nonzero() == 0 and hidden.grad.shape == (0, 8)


def test_extreme_logits_and_last_entry():
    weight = torch.eye(5) * 1e4
    hidden = torch.cat([torch.eye(5), -torch.eye(5)])
    target = torch.tensor([0, 1, 2, 3, 4, 4, 4, 4, 4, 0])
    inputs = {"hidden": hidden, "weight": weight, "target": target}
    truth = run(inputs, torch.float64, "reference")
    assert_within_budget(
        run(inputs, torch.float32, "torch"), run(inputs, torch.float32, "reference"), truth, torch.float32
    )


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("size", [1e15, 1e20, 1e30, 1e37])
@pytest.mark.parametrize("backend", BACKENDS)
def test_logits_of_any_size_have_a_loss(backend, size, label_smoothing):
    """Their square is beyond float32, and nothing needs it without a z_loss."""
    logits = torch.tensor([[1.0, -0.5, 0.25], [-0.75, 0.5, 0.0]], dtype=torch.float64)
    inputs = on(device_of(backend), {"hidden": logits.float(), "weight": torch.eye(3) * size})
    target = torch.tensor([1, 0], device=inputs["hidden"].device)
    # log-softmax of logits that lie so far apart: the distance to the largest one
    below = size * (logits.amax(1, keepdim=True) - logits)
    expected = (1 - label_smoothing) * below[[0, 1], [1, 0]] + label_smoothing * below.mean(1)
    options = {"label_smoothing": label_smoothing, "backend": backend}
    loss = linear_cross_entropy(**inputs, target=target, reduction="none", **options)
    torch.testing.assert_close(loss.double().cpu(), expected, rtol=1e-5, atol=0)


def test_non_finite_hidden_gives_non_finite_loss():
    inputs = make_inputs(6, 8, 31, ignored=0.0)
    inputs["hidden"][2, 3] = float("inf")
    assert not torch.isfinite(linear_cross_entropy(inputs["hidden"], inputs["weight"], inputs["target"]))


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(0, 40),
    size=st.integers(1, 9),
    vocabulary=st.integers(1, 50),
    chunk=st.integers(1, 64),
    block=st.integers(1, 64),
    seed=st.integers(0, 99),
)
def test_chunk_sizes_change_nothing(rows, size, vocabulary, chunk, block, seed):
    inputs = make_inputs(rows, size, vocabulary, dtype=torch.float64, seed=seed)
    whole = run(inputs, torch.float64, "torch", reduction="sum", weighted=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(row_chunks, "_CHUNK_BYTES", {"cpu": chunk * vocabulary * 8})
        patch.setattr(row_chunks, "_BLOCK_BYTES", {"cpu": block * vocabulary * 4})
        pieces = run(inputs, torch.float64, "torch", reduction="sum", weighted=True)
    for name, value in whole.items():
        torch.testing.assert_close(pieces[name], value, rtol=1e-12, atol=1e-12)


def test_rows_may_be_permuted():
    inputs = make_inputs(50, 8, 31, dtype=torch.float64)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(1))
    plain = run(inputs, torch.float64, "torch", weighted=True)
    moved = run(
        {"weight": inputs["weight"]} | {k: v[order] for k, v in inputs.items() if k != "weight"},
        torch.float64,
        "torch",
        weighted=True,
    )
    torch.testing.assert_close(moved["loss"], plain["loss"])
    torch.testing.assert_close(moved["d_hidden"], plain["d_hidden"][order])
    torch.testing.assert_close(moved["d_weight"], plain["d_weight"])


def test_segments_are_unweighted_means():
    inputs = make_inputs(30, 8, 31)
    segment = torch.arange(30) // 10
    _, stats = linear_cross_entropy(
        inputs["hidden"],
        inputs["weight"],
        inputs["target"],
        return_stats=True,
        row_weight=inputs["row_weight"],
        segment=segment,
        num_segments=4,
    )
    valid = inputs["target"] != -100
    for s in range(3):
        torch.testing.assert_close(stats.segment_nll[s], stats.nll[(segment == s) & valid].mean())
    assert stats.segment_count.tolist() == [int(((segment == s) & valid).sum()) for s in range(4)]
    assert torch.isnan(stats.segment_nll[3])


def test_statistics_carry_no_gradient_and_upstream_may_have_stride_zero():
    inputs = make_inputs(12, 8, 31)
    hidden = inputs["hidden"].requires_grad_()
    loss, stats = linear_cross_entropy(hidden, inputs["weight"], inputs["target"], reduction="none", return_stats=True)
    assert not stats.nll.requires_grad and not stats.correct.requires_grad
    loss.backward(torch.tensor(2.0).expand(12))
    expected = hidden.grad.clone()
    hidden.grad = None
    (2 * linear_cross_entropy(hidden, inputs["weight"], inputs["target"], reduction="sum")).backward()
    torch.testing.assert_close(hidden.grad, expected)


def test_retained_graph_backpropagates_twice():
    inputs = make_inputs(12, 8, 31)
    hidden = inputs["hidden"].requires_grad_()
    loss = linear_cross_entropy(hidden, inputs["weight"], inputs["target"]) * 3
    loss.backward(retain_graph=True)
    once = hidden.grad.clone()
    loss.backward()
    torch.testing.assert_close(hidden.grad, 2 * once)


def test_autocast_takes_the_autocast_dtype():
    inputs = make_inputs(12, 8, 31)
    hidden, weight = inputs["hidden"].requires_grad_(), inputs["weight"].requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = linear_cross_entropy(hidden, weight, inputs["target"])
    loss.backward()
    leaves = (leaf.detach().bfloat16().requires_grad_() for leaf in (hidden, weight))
    low = linear_cross_entropy(*leaves, inputs["target"])  # with a gradient, too: its logits are rounded
    torch.testing.assert_close(loss, low, rtol=0, atol=0)
    assert weight.grad.dtype == torch.float32


def call(**changes):
    inputs = make_inputs(6, 8, 31)
    return linear_cross_entropy(**inputs | changes)


@pytest.mark.parametrize(
    "changes, kind, message",
    [
        ({"hidden": torch.zeros(6, 9)}, ValueError, r"same hidden size D"),
        (
            {"hidden": torch.zeros(8)},
            ValueError,
            r"hidden has shape \(8,\): expected at least 2 dimensions \(\.\.\., D\)",
        ),
        ({"hidden": torch.zeros(6, 8).long()}, TypeError, r"hidden has dtype torch.int64"),
        ({"weight": torch.zeros(31, 8).double()}, TypeError, r"weight has dtype torch.float64: expected torch.float32"),
        ({"weight": torch.zeros(0, 8)}, ValueError, r"at least one vocabulary entry"),
        ({"bias": torch.zeros(30)}, ValueError, r"bias has shape \(30,\): expected \(V,\) = \(31,\)"),
        ({"target": torch.zeros(5).long()}, ValueError, r"target has shape \(5,\): expected \(N,\) = \(6,\)"),
        ({"target": torch.zeros(6)}, TypeError, r"target has dtype torch.float32: expected torch.int64"),
        ({"target": torch.tensor([0, 1, 31, 2, 3, 4])}, ValueError, r"target: .* in \[0, 31\).*got 31 in row 2"),
        ({"target": torch.tensor([0, 1, -1, 2, 3, 4])}, ValueError, r"got -1 in row 2"),
        ({"row_weight": torch.zeros(6, 1)}, ValueError, r"row_weight has shape \(6, 1\)"),
        ({"row_weight": torch.zeros(6).long()}, TypeError, r"row_weight has dtype torch.int64"),
        ({"row_weight": torch.zeros(6, requires_grad=True)}, ValueError, r"row_weight requires a gradient"),
        ({"segment": torch.zeros(6).long()}, ValueError, r"segment and num_segments"),
        ({"segment": torch.tensor([0, 0, -1, 0, 0, 0]), "num_segments": 2}, ValueError, r"segment: .* got -1 in row 2"),
        ({"segment": torch.zeros(6).long(), "num_segments": 0}, ValueError, r"num_segments is 0"),
        ({"reduction": "max"}, ValueError, r"reduction is 'max'"),
        ({"label_smoothing": 1.5}, ValueError, r"label_smoothing is 1.5"),
        ({"softcap": 0.0}, ValueError, r"softcap is 0.0"),
        ({"temperature": float("nan")}, ValueError, r"temperature is nan"),
        ({"backend": "fast"}, ValueError, r"backend is 'fast'"),
        ({"backend": "cuda"}, BackendUnavailableError, r"'cuda' is not available on cpu"),
        (
            {
                "backend": "triton",
                **on(device_of("triton"), make_inputs(6, 8, 31)),
                **on(
                    device_of("triton"), {"hidden": torch.zeros(6, 8).double(), "weight": torch.zeros(31, 8).double()}
                ),
            },
            TypeError,
            r"hidden has dtype torch.float64: backend 'triton' computes in float32",
        ),
        ({"gradient_threshold": 1.5}, ValueError, r"gradient_threshold is 1.5"),
    ],
)
def test_bad_input_is_named(changes, kind, message):
    with pytest.raises(kind, match=message):
        call(**changes)


def test_class_weights_are_row_weights():
    """Those of torch.nn.functional.cross_entropy, with its mean, as the README says."""
    inputs = make_inputs(23, 8, 31, dtype=torch.float64, ignored=0.2)
    hidden, weight, target = inputs["hidden"].requires_grad_(), inputs["weight"], inputs["target"]
    of_class = torch.linspace(0.2, 3, 31, dtype=torch.float64)
    ours = linear_cross_entropy(hidden, weight, target, row_weight=of_class[target.clamp(min=0)])
    theirs = F.cross_entropy(hidden @ weight.T, target, of_class)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(*(torch.autograd.grad(loss, hidden)[0] for loss in (ours, theirs)))


@pytest.mark.parametrize("threshold", [None, 0.05])
@pytest.mark.parametrize("backend", BACKENDS)
def test_strides_change_nothing(monkeypatch, backend, threshold):
    monkeypatch.setattr(sparse_gradient, "_DENSITY_LIMIT", {"cpu": 1.0, "cuda": 1.0})
    monkeypatch.setattr(sparse_gradient, "_MASS_LIMIT", 1.0)
    inputs = make_inputs(6, 8, 31, device=device_of(backend))
    inputs["bias"] = torch.linspace(-1, 1, 31, device=device_of(backend))
    strided = {name: torch.stack([t, torch.zeros_like(t)], -1).unbind(-1)[0] for name, t in inputs.items()}
    gradients = []
    for case in (inputs, strided):
        hidden, weight, bias = (case[name].detach().requires_grad_() for name in ("hidden", "weight", "bias"))
        loss = linear_cross_entropy(
            hidden,
            weight,
            case["target"],
            row_weight=case["row_weight"],
            bias=bias,
            gradient_threshold=threshold,
            backend=backend,
        )
        gradients.append((loss.detach(), *torch.autograd.grad(loss, (hidden, weight, bias))))
    assert not strided["target"].is_contiguous() and strided["hidden"].stride(1) == 2
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected)
