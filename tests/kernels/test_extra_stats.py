"""Statistics by name: mean logit, log sum of squared probabilities and prediction, against their definitions."""

from __future__ import annotations

import math

import pytest
import torch
from cases import BACKENDS, COMPILED_BACKENDS, device_of, fit, interpreted, on, with_dtypes
from torch.utils._python_dispatch import TorchDispatchMode

from mind_kernels import Head, RowStats, linear_cross_entropy, linear_log_prob, row_chunks
from mind_kernels.linear_cross_entropy.extra_stats import sums_of_shard
from mind_kernels.testing import assert_within_budget, make_inputs

NAMES = ("mean_logit", "log_sum_sq", "predicted")


def define(logits, target):
    """Of logits (N, V), in their dtype; zeros in ignored rows."""
    squares = torch.softmax(logits, -1).square()
    found = {"mean_logit": logits.mean(-1), "log_sum_sq": squares.sum(-1).log(), "predicted": logits.argmax(-1)}
    return {name: torch.where(target >= 0, value, 0) for name, value in found.items()}


def cross_entropy(*arguments, **options):
    return linear_cross_entropy(*arguments, reduction="sum", **options)


def log_prob(*arguments, **options):
    found, stats = linear_log_prob(*arguments, **options)
    return found.log_prob.sum(), stats


def listed(hidden, weight, target, **options):
    return log_prob(hidden, weight, torch.stack([target, target], -1), **options)


def in_turn(*arguments, **options):
    rows = torch.full_like(arguments[2], options.pop("temperature"), dtype=torch.float64)
    return log_prob(*arguments, temperature=rows, **options)


def sparse(*arguments, **options):
    return cross_entropy(*arguments, gradient_threshold=2**-7, **options)


LOSSES = [cross_entropy, sparse, log_prob, listed, in_turn]
# They are read from the logits by the same code whatever the backend.
CASES = [(loss, *case.values) for loss in LOSSES for case in with_dtypes(COMPILED_BACKENDS)]
CASES += [
    (loss, backend, torch.float16) for loss in (cross_entropy, sparse) for backend in BACKENDS if interpreted(backend)
]


@pytest.mark.parametrize(("loss", "backend", "dtype"), CASES)
def test_match_their_definitions(monkeypatch, loss, backend, dtype):
    """Five rows a chunk; the loss and its gradient are those without them."""
    rows, size, vocabulary = fit(backend, (13, 24, 333))
    for name in ("_CHUNK_BYTES", "_SPARSE_CHUNK_BYTES"):
        monkeypatch.setattr(row_chunks, name, {"cpu": 5 * vocabulary * 4, "cuda": 5 * vocabulary * 4})
    inputs = on(device_of(backend), make_inputs(rows, size, vocabulary, dtype=dtype, ignored=0.2))
    hidden, weight, target = inputs["hidden"].requires_grad_(), inputs["weight"], inputs["target"]
    options = {"softcap": 9.0, "temperature": 0.7, "return_stats": True, "backend": backend}
    value, stats = loss(hidden, weight, target, extra_stats=NAMES, **options)
    head = Head(weight, None, 9.0, 0.7)
    peer = define(head.logits(hidden.detach()), target)
    exact = Head(weight.double(), None, 9.0, 0.7)
    truth = define(exact.logits(hidden.detach().double()), target)
    found = {name: getattr(stats, name) for name in NAMES}
    assert torch.equal(found["predicted"].cpu(), peer["predicted"].cpu())
    assert torch.equal(stats.correct, (found["predicted"] == target) & (target >= 0))
    for side in (found, peer, truth):
        del side["predicted"]
    assert_within_budget(found, peer, truth, dtype)
    without, plain = loss(hidden, weight, target, **options)
    half = dtype in (torch.bfloat16, torch.float16)  # whose logits triton_streaming does not round
    torch.testing.assert_close(value, without, **({"rtol": 1e-3, "atol": 1e-3} if half else {}))
    assert plain.mean_logit is plain.log_sum_sq is plain.predicted is None
    gradients = [torch.autograd.grad(each, hidden)[0].double() for each in (value, without)]
    difference = (gradients[0] - gradients[1]).norm() / gradients[1].norm()
    assert difference < (2e-2 if dtype == torch.bfloat16 else 3e-3 if half else 1e-5)


@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
def test_entries_that_are_ruled_out(backend):
    """The mean logit is minus infinity; the others are those of the vocabulary without them."""
    inputs = on(device_of(backend), make_inputs(6, 8, 37, ignored=0.0))
    bias = torch.zeros(37, device=inputs["hidden"].device)
    bias[[0, 5]] = -math.inf
    target = torch.tensor([1, 2, 3, 4, 6, 7], device=bias.device)
    arguments = inputs["hidden"], inputs["weight"], target
    _, stats = linear_cross_entropy(*arguments, bias=bias, extra_stats=NAMES, return_stats=True, backend=backend)
    kept = torch.arange(37)[bias.cpu() == 0].to(bias.device)
    truth = define(inputs["hidden"] @ inputs["weight"][kept].T, target)
    assert bool((stats.mean_logit == -math.inf).all())
    torch.testing.assert_close(stats.log_sum_sq, truth["log_sum_sq"])
    assert torch.equal(stats.predicted, kept[truth["predicted"]])


@pytest.mark.parametrize("vocabulary", [1, 5])
@pytest.mark.parametrize("spoilt", [math.nan, math.inf])
@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
def test_rows_without_a_softmax(backend, spoilt, vocabulary):
    """The largest logit, which the sums of squares leave out, is no number."""
    inputs = on(device_of(backend), make_inputs(6, 8, vocabulary, ignored=0.0))
    bias = torch.zeros(vocabulary, device=inputs["hidden"].device)
    bias[-1] = spoilt
    arguments = inputs["hidden"], inputs["weight"], inputs["target"]
    _, stats = linear_cross_entropy(*arguments, bias=bias, extra_stats=NAMES, return_stats=True, backend=backend)
    assert bool(stats.log_sum_sq.isnan().all())
    assert bool(stats.mean_logit.isnan().all() if math.isnan(spoilt) else (stats.mean_logit == math.inf).all())


@pytest.mark.parametrize("backend", BACKENDS)
def test_confident_rows_keep_their_digits(backend):
    weight = torch.eye(64, 8)
    hidden = 18 * torch.eye(8)[:5]
    target = torch.arange(5)
    arguments = on(device_of(backend), {"hidden": hidden, "weight": weight, "target": target}).values()
    _, stats = linear_log_prob(*arguments, extra_stats=["log_sum_sq"], return_stats=True, backend=backend)
    truth = define((hidden @ weight.T).double(), target)["log_sum_sq"]
    torch.testing.assert_close(stats.log_sum_sq.cpu().double(), truth, rtol=1e-5, atol=0)


@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
def test_equal_logits_and_shapes(backend):
    """The first of the largest logits; one leading shape for all."""
    device = device_of(backend)
    hidden, weight = torch.ones(2, 3, 4, device=device), torch.ones(70, 4, device=device)
    weight[:3] = 0
    target = torch.zeros(2, 3, dtype=torch.int64, device=device)
    for names in (["predicted"], ("log_sum_sq", "mean_logit")):
        _, stats = linear_cross_entropy(hidden, weight, target, extra_stats=names, return_stats=True, backend=backend)
        given = {name: getattr(stats, name) for name in NAMES if getattr(stats, name) is not None}
        assert set(given) == set(names) and all(value.shape == (2, 3) for value in given.values())
        if "predicted" in given:
            assert bool((given["predicted"] == 3).all()) and given["predicted"].dtype == torch.int64


def test_in_graphs():
    inputs = make_inputs(9, 8, 31)

    def step(hidden, weight):
        loss, stats = linear_cross_entropy(
            hidden, weight, inputs["target"], return_stats=True, extra_stats=NAMES, reduction="none"
        )
        return loss, [getattr(stats, name) for name in NAMES]

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    arguments = inputs["hidden"].requires_grad_(), inputs["weight"]
    for ours, theirs in zip(step(*arguments)[1], compiled(*arguments)[1], strict=True):
        assert torch.equal(ours, theirs) and not theirs.requires_grad


@pytest.mark.parametrize("operation", [linear_cross_entropy, linear_log_prob])
def test_bad_input_is_named(operation):
    inputs = make_inputs(6, 8, 31)
    inputs.pop("row_weight")
    with pytest.raises(ValueError, match=r"extra_stats has 'mean': expected 'mean_logit', 'log_sum_sq', 'predicted'"):
        operation(**inputs, return_stats=True, extra_stats=("predicted", "mean"))
    with pytest.raises(ValueError, match="extra_stats: expected return_stats=True"):
        operation(**inputs, extra_stats=("predicted",))
    with pytest.raises(TypeError, match=r"extra_stats is 'predicted': .* such as \('predicted',\)"):
        operation(**inputs, return_stats=True, extra_stats="predicted")
    _, stats = operation(**inputs, return_stats=True, extra_stats=[])
    assert isinstance(stats, RowStats) and stats.predicted is None


class NoOperation(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        raise AssertionError(f"{func} ran")


def test_a_shard_does_not_read_its_logits_for_nothing():
    head, logits = Head(torch.ones(5, 3)), torch.ones(4, 5)
    with NoOperation():
        assert sums_of_shard(logits, head, "") == sums_of_shard(logits, head, "predicted") == []
    assert len(sums_of_shard(logits, head, "mean_logit,log_sum_sq")) == 3
