"""A vocabulary of which a bias of minus infinity rules out a part: every operation on every backend.

The truth is float64, from plain PyTorch on the vocabulary without these entries: values, and gradients of hidden
states, weight and bias, which are 0 at the entries that are ruled out.
"""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from cases import DTYPES, device_of, interpreted, runs, usable
from divergence_cases import KINDS, name_of, published
from masked_cases import lowest_of

from mind_kernels import (
    linear_cross_entropy,
    linear_divergence,
    linear_log_prob,
    linear_mind_loss,
    linear_pairwise_jsd,
    sparse_gradient,
)
from mind_kernels.testing import assert_within_budget

# Lanes that are not stored may overflow in Triton's interpreter.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")

SIZE, VOCABULARY = 16, 64
KEPT = torch.arange(VOCABULARY) % 4 != 2
GRADIENTS = ["d_hidden", "d_weight", "d_bias"]


@pytest.fixture(autouse=True)
def no_limits(monkeypatch):
    """The random rows of these tests would fall back to the exact gradient."""
    monkeypatch.setattr(sparse_gradient, "_DENSITY_LIMIT", {"cpu": 1.0, "cuda": 1.0})
    monkeypatch.setattr(sparse_gradient, "_MASS_LIMIT", 1.0)


def cases(operation: str) -> pytest.MarkDecorator:
    """Each backend in each dtype that it has; the definition, whose logits are in the dtype of hidden, in two."""
    of_definition = [("reference", torch.float64), ("reference", torch.float32)]
    of_backends = [
        (backend, dtype)
        for backend in usable(operation)
        if backend != "reference"
        for dtype in DTYPES
        if runs(backend, dtype) and (dtype == torch.float32 or not interpreted(backend))
    ]
    return pytest.mark.parametrize(
        ("backend", "dtype"),
        [
            pytest.param(backend, dtype, id=f"{backend}-{str(dtype).removeprefix('torch.')}")
            for backend, dtype in of_definition + of_backends
        ],
    )


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)), dtype=torch.float64)


def make(*rows, dtype=torch.float64, seed=0):
    """hidden (*rows, D), weight (V, D) and bias (V,), rounded to `dtype`, float64."""
    tensors = normal(*rows, SIZE, seed=seed), 0.4 * normal(VOCABULARY, SIZE, seed=seed), normal(VOCABULARY, seed=seed)
    return tuple(tensor.to(dtype).double() for tensor in tensors)


def targets(rows):
    """(rows,) among the entries that stay, some of them ignored."""
    kept = KEPT.nonzero().squeeze(1)
    target = kept[torch.randint(0, len(kept), (rows,), generator=torch.Generator().manual_seed(rows))]
    target[::7] = -100
    return target


def position(target):
    """The targets in the vocabulary without the entries that are ruled out."""
    return torch.where(target < 0, target, KEPT.cumsum(0)[target.clamp(min=0)] - 1)


def on_kept(step, tensors, dtype=torch.float64):
    """Results and gradients of step(hidden, weight, bias) -> (objective, results) without the entries ruled out."""
    hidden, weight, bias = (tensor.to(dtype).requires_grad_() for tensor in tensors)
    objective, results = step(hidden, weight[KEPT], bias[KEPT])
    gradients = torch.autograd.grad(objective, (hidden, weight, bias))
    return {**results, **dict(zip(GRADIENTS, gradients, strict=True))}


def on_all(step, tensors, dtype, backend, lowest=-math.inf):
    """The same of an operation, which sees the bias `lowest` there."""
    hidden, weight, bias = (tensor.to(device_of(backend), dtype) for tensor in tensors)
    bias = bias.masked_fill(~KEPT.to(bias.device), lowest)
    leaves = [tensor.requires_grad_() for tensor in (hidden, weight, bias)]
    objective, results = step(*leaves)
    gradients = torch.autograd.grad(objective, leaves)
    found = {**results, **dict(zip(GRADIENTS, gradients, strict=True))}
    return {name: value.detach().cpu() for name, value in found.items()}


def logits_of(hidden, weight, bias):
    """In float32 or better after the product."""
    logits = F.linear(hidden, weight, bias)
    return logits if logits.dtype == torch.float64 else logits.float()


def check(backend, dtype, operation, definition, tensors, *, wide=False, conditioning=4.0):
    """The operation within the budget of plain PyTorch; 0 in the gradients of what is ruled out.

    `wide`: of plain PyTorch in float32, for operations with logits in float32 whatever the input's dtype.
    """
    truth = on_kept(definition, tensors)
    assert all(bool(value.isfinite().all()) for value in truth.values())
    peer = on_kept(definition, tensors, torch.float32 if wide and dtype != torch.float64 else dtype)
    for lowest in lowest_of(dtype):
        found = on_all(operation, tensors, dtype, backend, lowest)
        assert found["d_weight"][~KEPT].count_nonzero() == 0 and found["d_bias"][~KEPT].count_nonzero() == 0
        found = {name: found[name] for name in truth}
        values, gradients = ({n: truth[n] for n in truth if (n in GRADIENTS) == each} for each in (False, True))
        value_dtype = torch.float64 if dtype == torch.float64 else torch.float32
        assert_within_budget(found, peer, values, value_dtype, conditioning=conditioning)
        assert_within_budget(found, peer, gradients, dtype, conditioning=conditioning)


@pytest.mark.parametrize("options", [{}, {"z_loss": 1e-2}, {"gradient_threshold": 1e-6}], ids=str)
@cases("linear_cross_entropy")
def test_cross_entropy(backend, dtype, options):
    target, row_weight = targets(12), torch.linspace(0.5, -1, 12, dtype=torch.float64)
    row_weight[3] = 0

    def definition(hidden, weight, bias):
        logits = logits_of(hidden, weight, bias)
        nll = F.cross_entropy(logits, position(target), reduction="none")
        lse = torch.where(target >= 0, logits.logsumexp(1), 0)
        loss = (row_weight * (nll + options.get("z_loss", 0) * lse.square())).sum()
        log_p = torch.log_softmax(logits, 1)
        entropy = torch.where(target >= 0, -(log_p.exp() * log_p).sum(1), 0)
        return loss, {"loss": loss.detach(), "nll": nll.detach(), "lse": lse.detach(), "entropy": entropy.detach()}

    def operation(hidden, weight, bias):
        device = hidden.device
        loss, stats = linear_cross_entropy(
            hidden,
            weight,
            target.to(device),
            bias=bias,
            row_weight=row_weight.to(device),
            reduction="sum",
            return_stats=True,
            backend=backend,
            **options,
        )
        return loss, {"loss": loss, "nll": stats.nll, "lse": stats.lse, "entropy": stats.entropy}

    check(backend, dtype, operation, definition, make(12, dtype=dtype), conditioning=16.0)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@cases("linear_cross_entropy")
def test_an_infinite_cross_entropy(backend, dtype, smoothing):
    """Of a target that is ruled out, and of label smoothing: infinite, with the finite gradient of torch."""
    target = targets(8)
    target[2] = 2

    def step(function):
        def run(hidden, weight, bias):
            loss = function(hidden, weight, bias)
            return loss, {"loss": loss}

        return run

    def definition(hidden, weight, bias):
        return F.cross_entropy(
            logits_of(hidden, weight, bias), target.to(hidden.device), label_smoothing=smoothing, reduction="sum"
        )

    def operation(hidden, weight, bias):
        options = {"bias": bias, "label_smoothing": smoothing, "reduction": "sum", "backend": backend}
        return linear_cross_entropy(hidden, weight, target.to(hidden.device), **options)

    tensors = make(8, dtype=dtype)
    truth = on_all(step(definition), tensors, torch.float64, "reference")
    found, peer = (on_all(step(f), tensors, dtype, backend) for f in (operation, definition))
    assert truth["loss"] == found["loss"] == math.inf
    assert all(bool(truth[name].isfinite().all()) for name in GRADIENTS)
    assert_within_budget(found, peer, {name: truth[name] for name in GRADIENTS}, dtype, conditioning=4.0)


@pytest.mark.parametrize("threshold", [None, 1e-6])
@cases("linear_cross_entropy")
def test_log_prob(backend, dtype, threshold):
    target = targets(12)
    of_log_prob, of_entropy, of_lse = normal(3, 12)
    of_entropy[:4] = 0

    def results(*found):
        weights = (weight.to(found[0]) for weight in (of_log_prob, of_entropy, of_lse))
        objective = sum((weight * value).sum() for weight, value in zip(weights, found, strict=True))
        return objective, {
            name: value.detach() for name, value in zip(("log_prob", "entropy", "lse"), found, strict=True)
        }

    def definition(hidden, weight, bias):
        logits = logits_of(hidden, weight, bias)
        log_p = torch.log_softmax(logits, 1)
        log_prob = log_p.gather(1, position(target).clamp(min=0)[:, None]).squeeze(1)
        every = (log_prob, -(log_p.exp() * log_p).sum(1), logits.logsumexp(1))
        return results(*(torch.where(target >= 0, v, 0) for v in every))

    def operation(hidden, weight, bias):
        options = {"bias": bias, "gradient_threshold": threshold, "backend": backend}
        return results(*linear_log_prob(hidden, weight, target.to(hidden.device), **options))

    check(backend, dtype, operation, definition, make(12, dtype=dtype), conditioning=16.0)


def divergences(logits, weight):
    """The weighted sum of the divergences of groups, from entropies and logarithms of sums, and themselves."""
    log_p = torch.log_softmax(logits, -1)
    p = log_p.exp()
    if weight.dim() == 2:
        total = weight.sum(1, keepdim=True)
        share = torch.where(total > 0, weight / torch.where(total > 0, total, 1), 1 / p.shape[1])
        log_m = (share[..., None] * p).sum(1, keepdim=True).log()
        values = torch.where(total > 0, (p * (log_p - log_m)).sum(-1), 0)
        return (weight * values).sum(), values
    pairs = [(i, j) for i in range(p.shape[1]) for j in range(i + 1, p.shape[1])]
    values = torch.zeros_like(weight)
    for i, j in pairs:
        log_m = ((p[:, i] + p[:, j]) / 2).log()
        jsd = sum((p[:, k] * (log_p[:, k] - log_m)).sum(-1) for k in (i, j)) / 2
        values = values + torch.zeros_like(values).index_put((torch.arange(len(p)), *map(torch.tensor, (i, j))), jsd)
    return (weight * values).sum(), values + values.transpose(1, 2)


def group_weight(form, groups=3, count=4):
    weight = torch.rand(groups, count, count, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 0.1
    if form == "pairs":
        return {"pair_weight": weight}
    weight = weight[:, 0].clone()
    weight[0, 1] = 0
    return {"mixture_weight": weight}


@pytest.mark.parametrize("form", ["pairs", "mixture"])
@cases("linear_pairwise_jsd")
def test_pairwise_jsd(backend, dtype, form):
    weights = group_weight(form)

    def definition(hidden, weight, bias):
        loss, values = divergences(
            logits_of(hidden.to(bias.dtype), weight, bias), next(iter(weights.values())).to(bias.dtype)
        )
        return loss, {"loss": loss.detach(), "divergence": values.detach()}

    def operation(hidden, weight, bias):
        options = {name: value.to(hidden.device) for name, value in weights.items()}
        loss, stats = linear_pairwise_jsd(hidden, weight, bias=bias, **options, return_stats=True, backend=backend)
        return loss, {"loss": loss, "divergence": next(iter(vars(stats).values()))}

    check(backend, dtype, operation, definition, make(3, 4, dtype=dtype), wide=True)


@pytest.mark.parametrize("form", ["pairs", "mixture"])
@pytest.mark.parametrize("threshold", [None, 1e-6])
@cases("linear_mind_loss")
def test_mind_loss(backend, dtype, form, threshold):
    weights, target = group_weight(form), targets(20)
    row_weight = torch.linspace(0.1, 1, 20, dtype=torch.float64)
    answer_rows = torch.randperm(20, generator=torch.Generator().manual_seed(0))[:12].view(3, 4)

    def definition(hidden, weight, bias):
        logits = logits_of(hidden, weight, bias)
        nll = F.cross_entropy(logits, position(target), reduction="none")
        consistency, values = divergences(logits[answer_rows], next(iter(weights.values())).to(logits.dtype))
        loss = (row_weight * nll).sum() + consistency
        log_p = torch.log_softmax(logits, 1)
        entropy = torch.where(target >= 0, -(log_p.exp() * log_p).sum(1), 0)
        return loss, {"loss": loss.detach(), "divergence": values.detach(), "entropy": entropy.detach()}

    def operation(hidden, weight, bias):
        device = hidden.device
        options = {name: value.to(device) for name, value in weights.items()}
        options |= {"bias": bias, "gradient_threshold": threshold, "return_stats": True, "backend": backend}
        loss, stats = linear_mind_loss(
            hidden, weight, target.to(device), row_weight.to(device), answer_rows.to(device), **options
        )
        divergence = next(iter(vars(stats.pairs).values()))
        return loss, {"loss": loss, "divergence": divergence, "entropy": stats.rows.entropy}

    check(backend, dtype, operation, definition, make(20, dtype=dtype), conditioning=16.0)


@pytest.mark.parametrize("form", ["head", "list"])
@pytest.mark.parametrize("kind", KINDS, ids=name_of)
@cases("linear_divergence")
def test_divergence(backend, dtype, kind, form):
    """Both sides have the same vocabulary; a list's tokens are the teacher's most likely ones."""
    theirs = make(8, dtype=dtype, seed=1)
    log_p = torch.log_softmax(logits_of(theirs[0], theirs[1][KEPT], theirs[2][KEPT]), 1)
    top = log_p.topk(5)
    kept_ids, list_log_p = top.indices, top.values
    ids = KEPT.nonzero().squeeze(1)[kept_ids]

    def definition(hidden, weight, bias):
        log_q, of_teacher = torch.log_softmax(logits_of(hidden, weight, bias), 1), log_p.to(bias.dtype)
        if form == "list":
            others = [log.scatter(1, kept_ids, -math.inf).logsumexp(1, keepdim=True) for log in (log_q, log_p)]
            log_q, of_teacher = (
                torch.cat([log.gather(1, kept_ids), rest.to(log.dtype)], 1)
                for log, rest in zip((log_q, log_p), others, strict=True)
            )
        values = published(kind, log_q, of_teacher.to(log_q.dtype))
        return values.mean(), {"divergence": values.detach()}

    def operation(hidden, weight, bias):
        device = hidden.device
        teacher = {"teacher_ids": ids.to(device), "teacher_log_prob": list_log_p.to(device)}
        if form == "head":
            hidden_, weight_, bias_ = (tensor.to(device, dtype) for tensor in theirs)
            teacher = {"teacher_hidden": hidden_, "teacher_weight": weight_}
            teacher["teacher_bias"] = bias_.masked_fill(~KEPT.to(device), -math.inf)
        loss, stats = linear_divergence(
            hidden, weight, bias=bias, **teacher, **kind, return_stats=True, backend=backend
        )
        return loss, {"divergence": stats.divergence}

    check(backend, dtype, operation, definition, make(8, dtype=dtype), wide=True, conditioning=16.0)


@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl"])
@cases("linear_divergence")
def test_an_infinite_divergence(backend, dtype, kind):
    """Where one side alone is ruled out. Of a row of weight 0 nothing of that is left."""
    hidden, weight, bias = (tensor.to(device_of(backend), dtype) for tensor in make(6, dtype=dtype))
    ruled_out = bias.masked_fill(~KEPT.to(bias.device), -math.inf)
    ours, theirs = (ruled_out, bias) if kind == "forward_kl" else (bias, ruled_out)
    leaves = [tensor.detach().requires_grad_() for tensor in (hidden, weight, ours)]
    row_weight = torch.ones(6, device=bias.device)

    def run():
        options = {"bias": leaves[2], "kind": kind, "row_weight": row_weight, "reduction": "sum", "return_stats": True}
        loss, stats = linear_divergence(
            *leaves[:2], hidden + 0.1, weight, teacher_bias=theirs, backend=backend, **options
        )
        return loss, stats, torch.autograd.grad(loss, leaves)

    loss, stats, gradients = run()
    assert loss == math.inf and bool((stats.divergence == math.inf).all())
    assert [bool(gradient.isfinite().any()) for gradient in gradients] == [kind == "forward_kl"] * 3
    row_weight[:] = 0
    loss, stats, gradients = run()
    assert loss == 0 and bool((stats.divergence == math.inf).all())
    if device_of(backend) == "cpu":
        assert all(gradient.count_nonzero() == 0 for gradient in gradients)


@pytest.mark.parametrize("form", ["pairs", "mixture"])
@cases("linear_mind_loss")
def test_groups_that_lack_rows_or_weight(backend, dtype, form):
    """Groups without weight, without a row, with one row, and with two of three: no nan in any of them."""
    answer_rows = torch.tensor([[0, 1, 2], [-1, -1, -1], [3, -1, -1], [-1, 4, 5], [6, 7, -1], [8, 9, 10]])
    weights = group_weight(form, groups=6, count=3)
    weight_of_groups = next(iter(weights.values()))
    weight_of_groups[0] = 0
    target, row_weight = targets(12), torch.linspace(0, 1, 12, dtype=torch.float64)
    present = answer_rows >= 0
    together = present if form == "mixture" else present[:, :, None] & present[:, None, :]
    effective = torch.where(together, weight_of_groups, 0)

    def definition(hidden, weight, bias):
        logits = logits_of(hidden, weight, bias)
        nll = F.cross_entropy(logits, position(target), reduction="none")
        consistency, values = divergences(logits[answer_rows.clamp(min=0)], effective.to(logits.dtype))
        loss = (row_weight * nll).sum() + consistency
        return loss, {"loss": loss.detach(), "divergence": torch.where(together, values, 0).detach()}

    def operation(hidden, weight, bias):
        device = hidden.device
        options = {name: value.to(device) for name, value in weights.items()}
        loss, stats = linear_mind_loss(
            hidden,
            weight,
            target.to(device),
            row_weight.to(device),
            answer_rows.to(device),
            **options,
            bias=bias,
            return_stats=True,
            backend=backend,
        )
        return loss, {"loss": loss, "divergence": next(iter(vars(stats.pairs).values()))}

    check(backend, dtype, operation, definition, make(12, dtype=dtype), conditioning=16.0)
