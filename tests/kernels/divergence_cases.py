"""What the tests of linear_divergence share: kinds, inputs, and a run of an operation with all its results."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from cases import DTYPES, device_of, interpreted, on, runs, usable

from mind_kernels import linear_divergence
from mind_kernels.testing import assert_within_budget, make_inputs

BACKENDS = usable("linear_divergence")
KINDS = [
    {"kind": "forward_kl"},
    {"kind": "reverse_kl"},
    {"kind": "jsd"},
    {"kind": "jsd", "beta": 0.1},
    {"kind": "skew_forward_kl"},
    {"kind": "skew_reverse_kl", "skew": 0.3},
    {"kind": "taid", "interpolation": 0.4},
]


def kl(log_x, log_m):
    """KL(x || m) (N,); F.kl_div(input, target) is KL(target || input)."""
    return F.kl_div(log_m, log_x, reduction="none", log_target=True).sum(-1)


def mixture(log_q, log_p, share):
    return (share * log_p.exp() + (1 - share) * log_q.exp()).log()


# The divergence of each row as its paper writes it, of log-probabilities (N, E) of student and teacher.
PUBLISHED = {
    "forward_kl": lambda log_q, log_p: kl(log_p, log_q),
    "reverse_kl": lambda log_q, log_p: kl(log_q, log_p),
    "jsd": lambda log_q, log_p, beta=0.5: (
        beta * kl(log_p, mixture(log_q, log_p, beta)) + (1 - beta) * kl(log_q, mixture(log_q, log_p, beta))
    ),
    "skew_forward_kl": lambda log_q, log_p, skew=0.1: kl(log_p, mixture(log_q, log_p, skew)),
    "skew_reverse_kl": lambda log_q, log_p, skew=0.1: kl(log_q, mixture(log_q, log_p, 1 - skew)),
    "taid": lambda log_q, log_p, interpolation: kl(
        torch.log_softmax((1 - interpolation) * log_q.detach() + interpolation * log_p, -1), log_q
    ),
}


def published(kind, log_q, log_p):
    """The divergence of each row (N,), of a kind and its parameter as in KINDS."""
    options = {name: value for name, value in kind.items() if name != "kind"}
    return PUBLISHED[kind["kind"]](log_q, log_p, **options)


EXTREME_KINDS = [
    {"kind": "jsd", "beta": 0.99},
    {"kind": "skew_forward_kl", "skew": 1e-3},
    {"kind": "skew_reverse_kl", "skew": 1e-3},
]
# Whose m is p alone if float32 rounds its share of p.
NEARLY_THE_TEACHER = [
    {"kind": "skew_reverse_kl", "skew": 1e-8},
    {"kind": "jsd", "beta": 1 - 1e-8},
    {"kind": "skew_forward_kl", "skew": 1 - 1e-8},
]
OPTIONS = [
    {"reduction": "mean"},
    {
        "reduction": "none",
        "weighted": True,
        "biased": True,
        "softcap": 5.0,
        "teacher_softcap": 7.0,
        "temperature": 0.7,
        "teacher_temperature": 1.6,
    },
]
FORMS = ["head", "list"]
# The row kernels are given float32 logits whatever the dtype, so the interpreter sees no other.
CASES = [
    pytest.param(backend, dtype, id=f"{backend}-{str(dtype).removeprefix('torch.')}")
    for backend in BACKENDS
    for dtype in DTYPES
    if runs(backend, dtype) and (dtype == torch.float32 or not interpreted(backend))
]


def fit(backend, rows, size, vocabulary):
    """The shape for a backend; a program of the interpreter, a row, takes 50 milliseconds. Of fewer rows than these the
    largest error of plain PyTorch, by which a backend is judged, would be luck."""
    return (min(rows, 8), min(size, 24), min(vocabulary, 101)) if interpreted(backend) else (rows, size, vocabulary)


def name_of(kind):
    return "-".join(map(str, kind.values()))


def listed_cases(*backends):
    """Backends and kinds, of which the interpreter sees one: events are left to PyTorch by every backend."""
    return pytest.mark.parametrize(
        ("backend", "kind"),
        [
            pytest.param(backend, kind, id=f"{backend}-{name_of(kind)}")
            for backend in backends
            for kind in KINDS
            if kind == {"kind": "jsd"} or not interpreted(backend)
        ],
    )


def make(rows, size, vocabulary, *, form="head", listed=7, list_dtype=torch.float32, dtype=torch.float64, seed=0):
    """hidden, weight, row_weight of both signs with zeros, and a teacher of another width or its most likely tokens."""
    student = make_inputs(rows, size, vocabulary, dtype=dtype, seed=seed)
    teacher = make_inputs(rows, size + 5, vocabulary, dtype=dtype, seed=seed + 1)
    inputs = {"hidden": student["hidden"], "weight": student["weight"], "row_weight": student["row_weight"] - 0.4}
    inputs["row_weight"][1::4] = 0
    if form == "head":
        return inputs | {"teacher_hidden": teacher["hidden"], "teacher_weight": teacher["weight"]}
    log_p = torch.log_softmax(teacher["hidden"].double() @ teacher["weight"].double().T, -1)
    top = log_p.topk(min(listed, vocabulary))
    return inputs | {"teacher_ids": top.indices, "teacher_log_prob": top.values.to(list_dtype)}


def run(inputs, dtype, backend, *, weighted=False, biased=False, device=None, **options):
    """Loss, statistics and gradients as a dict of tensors on the CPU; upstream gradients differ by row."""
    device = device or device_of(backend)
    inputs = {
        k: v.to(dtype) if k.endswith(("hidden", "weight")) and k != "row_weight" else v
        for k, v in on(device, inputs).items()
    }
    row_weight = inputs.pop("row_weight", None)
    hidden, weight = (inputs.pop(name).detach().requires_grad_() for name in ("hidden", "weight"))
    bias = torch.linspace(-1, 1, len(weight)).to(device, dtype).requires_grad_() if biased else None
    if biased and "teacher_weight" in inputs:
        inputs["teacher_bias"] = torch.linspace(1, 0, len(weight)).to(device, dtype)
    if "teacher_ids" in inputs:
        options = {name: value for name, value in options.items() if not name.startswith("teacher_")}
    loss, stats = linear_divergence(
        hidden,
        weight,
        **inputs,
        bias=bias,
        row_weight=row_weight if weighted else None,
        return_stats=True,
        backend=backend,
        **options,
    )
    loss.backward(torch.linspace(-1, 2, loss.numel()).to(loss).view_as(loss))
    out = {
        "loss": loss,
        "divergence": stats.divergence,
        "entropy": stats.entropy,
        "target_entropy": stats.target_entropy,
        "d_hidden": hidden.grad,
        "d_weight": weight.grad,
    }
    return on("cpu", out | ({"d_bias": bias.grad} if biased else {}))


def assert_matches_float64(inputs, dtype, backend, **options):
    truth = run(inputs, torch.float64, "reference", **options)
    peer = run(inputs, dtype, "reference", device=device_of(backend), **options)
    found = run(inputs, dtype, backend, **options)
    assert all(value.isfinite().all() for value in truth.values())
    assert_within_budget(found, peer, truth, dtype)
    return truth
