"""linear_log_prob of several ids per row, with a temperature per row and with a gradient of lse: every backend against
a definition in float64 of its own."""

from __future__ import annotations

import math

import pytest
import torch
from cases import BACKENDS, COMPILED_BACKENDS, assert_compiles_whole, cases, device_of, on, opcheck, with_dtypes

from mind_kernels import Head, compiled_head, linear_log_prob, row_chunks
from mind_kernels.linear_cross_entropy.contract import RowSpec
from mind_kernels.linear_log_prob.contract import LogProbArguments, Upstream
from mind_kernels.linear_log_prob.op import operator
from mind_kernels.testing import assert_within_budget, make_inputs

OPTIONS = [
    {"ids": 3},
    {"ids": 34, "softcap": 5.0, "temperature": 0.7, "biased": True},
    {"ids": 1, "temperature": "rows"},
    {"ids": 4, "softcap": 5.0, "temperature": "rows", "biased": True},
]


def make(rows, size, vocabulary, dtype, *, ids, temperature=1.0, biased=False, **options):
    """Inputs with absent ids, rows without any, and ids that are in a row twice; upstream gradients by output."""
    inputs = make_inputs(rows, size, vocabulary, dtype=dtype)
    generator = torch.Generator().manual_seed(ids)
    target = torch.randint(0, vocabulary, (rows, ids), generator=generator)
    target[:, 0] = inputs["target"]
    if ids > 1:
        target[1::3, -1] = target[1::3, 0]
        target[2::4, 1] = -100
        target[::5] = target[::5].flip(1)
        target[3] = -100
    tensors = {"hidden": inputs["hidden"], "weight": inputs["weight"], "target": target}
    if biased:
        tensors["bias"] = torch.linspace(-1, 1, vocabulary).to(dtype)
    if temperature == "rows":
        tensors["temperature"] = torch.linspace(0.5, 1.7, rows)
        tensors["temperature"][3] = 0.0 if ids > 1 else 1.0  # of an ignored row
    else:
        options["temperature"] = temperature
    upstream = torch.randn(rows, ids + 2, generator=generator, dtype=torch.float64)
    return tensors, options, (upstream[:, :ids], upstream[:, ids], upstream[:, ids + 1])


def define(hidden, weight, target, bias=None, softcap=None, temperature=1.0, **_):
    """By plain PyTorch: log-probabilities, entropy and lse; half precision is widened after the product."""
    z = torch.nn.functional.linear(hidden, weight, bias)
    z = z if z.dtype == torch.float64 else z.float()
    if softcap is not None:
        z = softcap * torch.tanh(z / softcap)
    present = target != -100
    valid = present.any(-1)
    if isinstance(temperature, torch.Tensor):
        temperature = torch.where(valid, temperature, 1)[..., None]
    log_p = torch.log_softmax(z / temperature, -1)
    entropy, lse = -(log_p.exp() * log_p).sum(-1), (z / temperature).logsumexp(-1)
    log_prob = torch.where(present, log_p.gather(-1, target.clamp(min=0)), 0)
    return log_prob, torch.where(valid, entropy, 0), torch.where(valid, lse, 0)


def results(function, tensors, options, upstream, dtype, device):
    """Outputs and gradients of `function` in this dtype, on the CPU."""
    given = on(device, tensors)
    for name in ("hidden", "weight", "bias"):
        if name in given:
            given[name] = given[name].detach().to(dtype).requires_grad_()
    outputs = function(**given, **options)
    torch.autograd.backward(outputs, [each.to(outputs[0]) for each in upstream])
    named = dict(zip(("log_prob", "entropy", "lse"), outputs, strict=True))
    gradients = {f"d_{name}": given[name].grad for name in ("hidden", "weight", "bias") if name in given}
    return {name: value.detach().cpu() for name, value in {**named, **gradients}.items()}


def check(backend, dtype, tensors, options, upstream, **how):
    device = device_of(backend)
    truth = results(define, tensors, options, upstream, torch.float64, "cpu")
    peer = results(define, tensors, options, upstream, dtype, device)

    def ours(**given):
        return linear_log_prob(**given, backend=backend)

    assert_within_budget(results(ours, tensors, options, upstream, dtype, device), peer, truth, dtype, **how)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(("backend", "dtype", "shape"), cases((14, 33, 1009)))
def test_matches_float64(backend, dtype, shape, options):
    check(backend, dtype, *make(*shape, dtype, **options))


@pytest.mark.parametrize("backend", ["reference", *COMPILED_BACKENDS])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_chunks_and_leading_shapes(monkeypatch, backend, options):
    """Three rows a chunk; (2, 7, D) with int32 ids."""
    monkeypatch.setitem(row_chunks._CHUNK_BYTES, "cpu", 3 * 4 * 101)
    tensors, options, upstream = make(14, 16, 101, torch.float32, **options)
    changed = {name: value for name, value in tensors.items() if name in ("weight", "bias")}
    for name in {"hidden", "target", "temperature"} & set(tensors):
        changed[name] = tensors[name].unflatten(0, (2, 7))
    changed["target"] = changed["target"].int()
    changed |= {"hidden": changed["hidden"].to(device_of(backend))}
    found = linear_log_prob(**on(device_of(backend), changed), **options, backend=backend)
    assert [value.shape for value in found] == [changed["target"].shape, (2, 7), (2, 7)]
    if backend != "reference":
        check(backend, torch.float32, tensors, options, upstream)
    truth = define(
        **{name: value.double() if name != "target" else value for name, value in tensors.items()}, **options
    )
    for value, right in zip(found, truth, strict=True):
        torch.testing.assert_close(value.cpu().double().view(right.shape), right, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", [*BACKENDS])
def test_one_id_is_the_row_kernel_bit_by_bit(backend):
    """(N, 1), and a second id that is absent, against (N,)."""
    inputs = on(device_of(backend), make_inputs(9, 8, 61, ignored=0.2))
    hidden, weight, target = inputs["hidden"].requires_grad_(), inputs["weight"], inputs["target"]
    absent = torch.full_like(target, -100)
    every = [linear_log_prob(hidden, weight, ids, backend=backend) for ids in (target, target[:, None])]
    (one, column) = [torch.autograd.grad((f.log_prob.sum() + f.entropy.sum()), hidden)[0] for f in every]
    assert torch.equal(one, column) and torch.equal(every[0].log_prob[:, None], every[1].log_prob)
    two = linear_log_prob(hidden, weight, torch.stack([absent, target], 1), backend=backend)
    torch.testing.assert_close(two.log_prob[:, 1], every[0].log_prob)
    assert two.log_prob[:, 0].count_nonzero() == 0


@pytest.mark.parametrize("ids", [1, 3])
@pytest.mark.parametrize(("backend", "dtype"), with_dtypes(COMPILED_BACKENDS))
def test_of_lse_alone(backend, dtype, ids):
    """Its gradient is p, of which a target's may be the smallest entry: nothing of another size is added there."""
    tensors, options, upstream = make(5, 8, 1009, dtype, ids=ids, softcap=9.0)
    check(backend, dtype, tensors, options, [torch.zeros(5, ids), torch.zeros(5), upstream[2]])


@pytest.mark.parametrize("place", [0, 1, 2, 3])
@pytest.mark.parametrize("temperature", [False, True])
@pytest.mark.parametrize("backend", COMPILED_BACKENDS)
def test_confident_rows_keep_their_digits(backend, temperature, place):
    """A probability within 1e-8 of 1 at one of three ids, or at none; upstream gradients of one id at a time."""
    vocabulary, rows = 257, 12
    generator = torch.Generator().manual_seed(0)
    weight = torch.eye(vocabulary, 64) + 0.01 * torch.randn(vocabulary, 64, generator=generator)
    target = torch.randint(0, 48, (rows, 3), generator=generator)
    hidden = 0.1 * torch.randn(rows, 64, generator=generator)
    certain = target[:, place] if place < 3 else torch.arange(48, 60)
    hidden[torch.arange(rows), certain] += 24.0
    tensors = {"hidden": hidden, "weight": weight, "target": target}
    if temperature:
        tensors["temperature"] = torch.linspace(0.9, 1.1, rows)
    for output in range(3):
        upstream = torch.zeros(rows, 3).index_fill(1, torch.tensor(output), 1.0), torch.zeros(rows), torch.zeros(rows)
        truth = results(define, tensors, {}, upstream, torch.float64, "cpu")

        def ours(**given):
            return linear_log_prob(**given, backend=backend)

        found = results(ours, tensors, {}, upstream, torch.float32, device_of(backend))
        log_prob, right = found["log_prob"].double(), truth["log_prob"]
        assert float(((log_prob - right).abs() / right.abs()).max()) < 2e-5
        error = (found["d_hidden"].double() - truth["d_hidden"]).norm(dim=1) / truth["d_hidden"].norm(dim=1)
        assert float(error.max()) < 2e-5, (output, error)


@pytest.mark.parametrize("backend", BACKENDS)
def test_ids_that_are_ruled_out(backend):
    """A bias of -inf: a log-probability of -inf, with finite gradients; a row of such ids alone too."""
    inputs = on(device_of(backend), make_inputs(4, 8, 37, ignored=0.0))
    hidden = inputs["hidden"].requires_grad_()
    bias = torch.zeros(37, device=hidden.device)
    bias[[2, 5]] = -math.inf
    target = torch.tensor([[2, 7, 5], [2, 2, 5], [5, -100, 1], [3, 4, 4]], device=hidden.device)
    rows = linear_log_prob(hidden, inputs["weight"], target, bias=bias, backend=backend)
    infinite = rows.log_prob == -math.inf
    assert infinite.tolist() == [[True, False, True], [True] * 3, [True, False, False], [False] * 3]
    truth = define(hidden.double(), inputs["weight"].double(), target, bias=bias.double())[0].float()
    torch.testing.assert_close(rows.log_prob, truth)
    (gradient,) = torch.autograd.grad(torch.where(infinite, 0, rows.log_prob).sum() + rows.lse.sum(), hidden)
    assert bool(gradient.isfinite().all())


def test_parts_of_a_vocabulary_add_up():
    """What vocabulary-parallel training does: log-probability and gradient from the parts' lse alone."""
    inputs = make_inputs(7, 8, 40, dtype=torch.float64, ignored=0.0)
    hidden, weight, target = inputs["hidden"].requires_grad_(), inputs["weight"], inputs["target"]
    here = target % 20
    parts = [linear_log_prob(hidden, part, here) for part in weight.split(20)]
    lse = torch.logsumexp(torch.stack([part.lse for part in parts]), 0)
    logit = torch.stack([part.log_prob + part.lse for part in parts]).gather(0, (target // 20)[None])[0]
    whole = linear_log_prob(hidden, weight, target).log_prob
    torch.testing.assert_close(logit - lse, whole)
    ours, theirs = (torch.autograd.grad(value.square().sum(), hidden)[0] for value in (logit - lse, whole))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("rows", [0, 3])
@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
def test_without_valid_rows(backend, rows):
    device = device_of(backend)
    # The definition multiplies all rows: a gradient of 0 by nan.
    hidden = torch.full((rows, 4), 1.0 if backend == "reference" else math.nan, device=device).requires_grad_()
    weight = torch.ones(9, 4, device=device).requires_grad_()
    target, temperature = torch.full((rows, 2), -100), torch.ones(rows, device=device)
    found = linear_log_prob(hidden, weight, target.to(device), temperature=temperature, backend=backend)
    sum(value.sum() for value in found).backward()
    assert all(value.count_nonzero() == 0 for value in (*found, hidden.grad, weight.grad))


def test_reference_gradcheck():
    tensors, options, _ = make(6, 4, 7, torch.float64, ids=3, temperature="rows", softcap=3.0)
    hidden, weight = (tensors.pop(name).requires_grad_() for name in ("hidden", "weight"))

    def outputs(hidden, weight):
        return tuple(linear_log_prob(hidden, weight, **tensors, **options, backend="reference"))

    assert torch.autograd.gradcheck(outputs, (hidden, weight))
    assert torch.autograd.gradgradcheck(outputs, (hidden, weight))


def test_opcheck():
    tensors, _, _ = make(7, 8, 31, torch.float32, ids=2, temperature="rows")
    hidden, weight = (tensors[name].requires_grad_() for name in ("hidden", "weight"))
    spec, names = RowSpec(Head(weight, None, 4.0)), "mean_logit,log_sum_sq,predicted"
    opcheck(
        operator,
        LogProbArguments(hidden, spec, tensors["target"], tensors["temperature"], Upstream(), -100, names, "torch"),
    )


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_whole(dynamic):
    for rows in (6, 9) if dynamic else (9,):
        tensors, _, _ = make(rows, 8, 31, torch.float32, ids=3, temperature="rows")

        def step(hidden, weight, given=tensors):
            found = linear_log_prob(hidden * 2, weight, given["target"], temperature=given["temperature"])
            return (found.log_prob.exp().sum(1) - 0.1 * found.entropy + 0.01 * found.lse.square()).sum()

        assert_compiles_whole(step, tensors["hidden"], tensors["weight"], dynamic=dynamic)


@pytest.mark.parametrize(
    "changes, kind, message",
    [
        ({"target": torch.zeros(6, 0, dtype=torch.int64)}, ValueError, r"target has shape \(6, 0\): expected \(N, K\)"),
        ({"target": torch.zeros(5, 2, dtype=torch.int64)}, ValueError, r"target has shape \(5, 2\): expected \(N, K\)"),
        ({"target": torch.zeros(6, 2, 1, dtype=torch.int64)}, ValueError, r"target has shape \(6, 2, 1\)"),
        ({"target": torch.tensor([[0, 1]] * 5 + [[0, -1]])}, ValueError, r"target: .*got -1 in row 5"),
        ({"temperature": torch.ones(5)}, ValueError, r"temperature has shape \(5,\): expected \(N,\) = \(6,\)"),
        ({"temperature": torch.tensor(1.0)}, TypeError, r"temperature is a tensor: expected a number"),
        ({"temperature": torch.ones(6, dtype=torch.int64)}, TypeError, r"temperature has dtype torch.int64"),
        ({"temperature": torch.ones(6).to_sparse()}, TypeError, r"temperature has layout torch.sparse_coo"),
        ({"temperature": torch.arange(6.0)}, ValueError, r"temperature: expected positive finite numbers"),
        ({"temperature": torch.full((6,), math.inf)}, ValueError, r"temperature: expected positive finite numbers"),
        ({"temperature": torch.ones(6).requires_grad_()}, ValueError, r"temperature requires a gradient"),
        ({"temperature": torch.ones(6), "gradient_threshold": 0.1}, ValueError, r"expected None beside a temperature"),
        (
            {"target": torch.zeros(6, 2, dtype=torch.int64), "gradient_threshold": 0.1},
            ValueError,
            r"gradient_threshold is 0.1: expected None beside 2 ids per row",
        ),
        ({"weight": Head(torch.zeros(31, 8)), "temperature": torch.ones(6)}, ValueError, r"none beside a Head"),
    ],
)
def test_bad_input_is_named(changes, kind, message):
    inputs = make_inputs(6, 8, 31, ignored=0.0)
    inputs.pop("row_weight")
    with pytest.raises(kind, match=message):
        linear_log_prob(**inputs | changes)


@pytest.mark.skipif("cpp" not in BACKENDS, reason="no compiled library")
@pytest.mark.parametrize("rows", [9, 70])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("options", [OPTIONS[0], *OPTIONS[2:]], ids=str)
def test_a_forward_pass_of_few_ids_holds_no_logits(monkeypatch, options, dtype, rows):
    """From hidden states alone; fewer rows in float32 take a product of PyTorch's."""
    tensors, how, _ = make(rows, 24, 301, dtype, **options)
    truth = define(**{name: t.double() if t.is_floating_point() else t for name, t in tensors.items()}, **how)
    if rows >= 16 or dtype != torch.float32:
        for name in ("project", "project_into", "project_wide"):
            monkeypatch.delattr(Head, name)
        monkeypatch.delattr(compiled_head.CompiledHead, "project_into")
        monkeypatch.delattr(compiled_head.CompiledHead, "project_wide")
    with torch.no_grad():
        found = linear_log_prob(**tensors, **how, backend="cpp")
    for value, expected in zip(found, truth, strict=True):
        torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-5)
