"""linear_mind_loss: against float64, against its two parts, sparse gradient, absent answers, errors."""

from __future__ import annotations

import pytest
import torch
from cases import assert_compiles_whole, device_of, interpreted, on, opcheck, row_statistics, usable, with_dtypes

from mind_kernels import linear_cross_entropy, linear_mind_loss, linear_pairwise_jsd, row_chunks, sparse_gradient
from mind_kernels.head import Head, HeadGradients
from mind_kernels.linear_cross_entropy.contract import RowSpec
from mind_kernels.linear_mind_loss.contract import MindArguments
from mind_kernels.linear_mind_loss.op import operator
from mind_kernels.testing import assert_within_budget, make_inputs

BACKENDS = usable("linear_mind_loss")
THRESHOLD = 2.0**-6


@pytest.fixture(autouse=True)
def no_limits(monkeypatch):
    """The random rows of these tests would fall back to the exact gradient."""
    monkeypatch.setattr(sparse_gradient, "_DENSITY_LIMIT", {"cpu": 1.0, "cuda": 1.0})
    monkeypatch.setattr(sparse_gradient, "_MASS_LIMIT", 1.0)


def make(rows=60, groups=5, count=4, *, absent=0.2, ignored=0.1, seed=0):
    """make_inputs' tensors with answer_rows and pair_weight; every third row has weight zero."""
    inputs = make_inputs(rows, 16, 67, dtype=torch.float64, ignored=ignored, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    answer_rows = torch.randperm(rows, generator=generator)[: groups * count].view(groups, count).clone()
    answer_rows[torch.rand(groups, count, generator=generator) < absent] = -1
    row_weight = inputs["row_weight"] * (torch.arange(rows) % 3 > 0)
    return inputs | {
        "row_weight": row_weight,
        "answer_rows": answer_rows,
        "pair_weight": torch.rand(groups, count, count, generator=generator, dtype=torch.float64),
    }


def as_mixture(inputs):
    return {k: v for k, v in inputs.items() if k != "pair_weight"} | {"mixture_weight": inputs["pair_weight"][:, 0]}


def run(inputs, dtype, backend, **options):
    device = device_of(backend)
    inputs = on(device, inputs)
    hidden, weight = (inputs.pop(name).detach().to(dtype).requires_grad_() for name in ("hidden", "weight"))
    bias = torch.linspace(-1, 1, 67).to(device, dtype).requires_grad_()
    segment = torch.arange(hidden.shape[0], device=device) % 4
    loss, stats = linear_mind_loss(
        hidden,
        weight,
        **inputs,
        bias=bias,
        segment=segment,
        num_segments=4,
        return_stats=True,
        backend=backend,
        **options,
    )
    (1.3 * loss).backward()
    divergence = stats.pairs.jsd if "pair_weight" in inputs else stats.pairs.kl
    outputs = {
        "loss": loss,
        "cross_entropy": stats.cross_entropy,
        "consistency": stats.consistency,
        "divergence": divergence,
        **row_statistics(stats.rows),
        "segment_nll": stats.rows.segment_nll,
        "d_hidden": hidden.grad,
        "d_weight": weight.grad,
        "d_bias": bias.grad,
    }
    if stats.rows.kept_entries is not None:
        # A rounding error of the dropped mass is one of the whole.
        outputs |= {"kept_mass": 1 - stats.rows.dropped_mass, "kept": stats.rows.kept_entries}
    return {name: tensor.detach().cpu() for name, tensor in outputs.items()}


def small(backend):
    """Arguments of `make`: the interpreter takes milliseconds a row."""
    return {"rows": 9, "groups": 2, "count": 2} if interpreted(backend) else {"rows": 24, "groups": 3}


def kinds(backend):
    """Arguments of `make` and options of the loss."""
    options = [{}, {"softcap": 4.0, "temperature": 0.8}, {"gradient_threshold": THRESHOLD}]
    if interpreted(backend):
        return [(small(backend), option) for option in options]
    return [
        (kind, option)
        for option in options
        for kind in (
            {"rows": 24, "groups": 3},
            {"rows": 20, "absent": 0.0, "ignored": 0.0},
            {"rows": 4, "groups": 0},
            {"rows": 9, "count": 2, "groups": 1, "absent": 1.0},
        )
    ]


CASES = [
    pytest.param(*case.values, *arguments, id="-".join([case.id, *map(str, arguments)]))
    for case in with_dtypes(tuple(BACKENDS))
    for arguments in kinds(case.values[0])
]


@pytest.mark.parametrize("form", ["pairs", "mixture"])
@pytest.mark.parametrize("backend, dtype, kind, options", CASES)
def test_matches_float64(backend, dtype, form, kind, options):
    inputs = make(**kind) if form == "pairs" else as_mixture(make(**kind))
    inputs = {k: v.to(dtype) if k in ("hidden", "weight") else v for k, v in inputs.items()}
    truth = run(inputs, torch.float64, "reference", **options)
    peer = run(inputs, dtype, "reference", **options)
    found = run(inputs, dtype, backend, **options)
    # Kept pieces of the streaming form are a second product, rounded apart from the first.
    conditioning = 2 * float(truth["lse"].abs().max()) if backend == "triton_streaming" else 1.0
    assert_within_budget(found, peer, truth, dtype, conditioning=max(1.0, conditioning))


@pytest.mark.parametrize("backend", BACKENDS)
def test_equals_its_two_parts(backend):
    inputs = make(**small(backend), absent=0.0)
    joint = run(inputs, torch.float32, backend)
    hidden, weight = (inputs[name].float().requires_grad_() for name in ("hidden", "weight"))
    bias = torch.linspace(-1, 1, 67)
    ce = linear_cross_entropy(
        hidden, weight, inputs["target"], row_weight=inputs["row_weight"], bias=bias, reduction="sum"
    )
    jsd = linear_pairwise_jsd(hidden[inputs["answer_rows"]], weight, inputs["pair_weight"], bias=bias)
    (1.3 * (ce + jsd)).backward()
    for name, value in {
        "loss": ce + jsd,
        "cross_entropy": ce,
        "consistency": jsd,
        "d_hidden": hidden.grad,
        "d_weight": weight.grad,
    }.items():
        torch.testing.assert_close(joint[name], value.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_sparse_gradient_is_of_rows_that_are_no_answers(backend):
    inputs = make(**small(backend), ignored=0.0)
    exact = run(inputs, torch.float32, backend)
    sparse = run(inputs, torch.float32, backend, gradient_threshold=THRESHOLD)
    for name in ("loss", "nll", "divergence"):
        torch.testing.assert_close(sparse[name], exact[name])
    answers = torch.zeros(len(inputs["target"]), dtype=torch.bool)
    answers[inputs["answer_rows"][inputs["answer_rows"] >= 0]] = True
    torch.testing.assert_close(sparse["d_hidden"][answers], exact["d_hidden"][answers])
    assert (sparse["kept"][answers] == 67).all() and (sparse["kept_mass"][answers] == 1).all()
    assert (sparse["kept"][~answers] < 67).all() and (sparse["kept_mass"][~answers] < 1).all()
    weighted = ~answers & (inputs["row_weight"] > 0)
    assert (sparse["d_hidden"][weighted] != exact["d_hidden"][weighted]).any(1).all()


@pytest.mark.parametrize("backend", [*BACKENDS, "reference"])
def test_an_answer_alone_in_its_group_is_a_row_like_others(backend):
    """A nan there is one of its cross-entropy, which an ignored row does not have."""
    inputs = make(**small(backend))
    inputs["answer_rows"][0, 1:] = -1
    inputs["answer_rows"][0, 0] = row = int(set(range(9)).difference(inputs["answer_rows"].flatten().tolist()).pop())
    inputs["target"][row] = -100
    clean = run(inputs, torch.float32, backend)
    inputs["hidden"][row] = float("nan")
    found = run(inputs, torch.float32, backend)
    for name, expected in clean.items():
        torch.testing.assert_close(found[name], expected, rtol=0, atol=0)
    assert found["d_hidden"][row].count_nonzero() == 0


@pytest.mark.parametrize("backend", [*BACKENDS, "reference"])
def test_a_nan_reaches_no_row_that_no_weight_compares_it_with(backend):
    inputs = make(**small(backend))
    place = (inputs["answer_rows"] >= 0).nonzero()[0].tolist()
    row = int(inputs["answer_rows"][tuple(place)])
    inputs["pair_weight"][place[0], place[1]] = inputs["pair_weight"][place[0], :, place[1]] = 0
    inputs["target"][row], inputs["row_weight"][row] = 1, 0.5
    clean = run(inputs, torch.float32, backend)
    inputs["hidden"][row, 0] = float("nan")
    found = run(inputs, torch.float32, backend)
    others = torch.arange(len(found["d_hidden"])) != row
    torch.testing.assert_close(found["d_hidden"][others], clean["d_hidden"][others])
    assert all(bool(value.isnan().all()) for value in (found["loss"], found["d_hidden"][row], found["d_weight"]))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("form", ["pair_weight", "mixture_weight"])
def test_an_answer_that_nothing_is_compared_with_needs_no_softmax(backend, form):
    device = device_of(backend)
    hidden = torch.ones(2, 4, device=device, requires_grad=True)
    weight = torch.ones(7, 4, device=device)
    shape = (1, 2, 2) if form == "pair_weight" else (1, 2)
    loss = linear_mind_loss(
        hidden,
        weight,
        torch.tensor([-100, -100]),
        torch.ones(2, device=device),
        torch.tensor([[-1, 0]]),
        **{form: torch.ones(shape, device=device)},
        bias=torch.full((7,), -torch.inf, device=device),
        backend=backend,
    )
    loss.backward()
    assert loss == 0 and hidden.grad.count_nonzero() == 0


@pytest.mark.parametrize("chunk", [1, 3, 40])
def test_chunk_sizes_change_nothing(monkeypatch, chunk):
    inputs = make()
    whole = run(inputs, torch.float64, "torch")
    monkeypatch.setattr(row_chunks, "_CHUNK_BYTES", {"cpu": 8 * 67 * 8 * chunk})
    monkeypatch.setattr(row_chunks, "_BLOCK_BYTES", {"cpu": 67 * 4 * chunk})
    for name, value in run(inputs, torch.float64, "torch").items():
        torch.testing.assert_close(value, whole[name], rtol=1e-12, atol=1e-12)


def test_answer_rows_are_projected_once(monkeypatch):
    inputs = make(ignored=0.0, absent=0.0)
    projected = []

    def counted(project):
        return lambda self, h, *out: (projected.append(h.shape[0]), project(self, h, *out))[1]

    for name in ("project", "project_into"):
        monkeypatch.setattr(Head, name, counted(getattr(Head, name)))
    run(inputs, torch.float64, "torch")
    assert sum(projected) == 60


def test_rows_without_any_weight_cost_no_gradient_product(monkeypatch):
    inputs = make(ignored=0.0, absent=0.0)
    inputs["pair_weight"][:, 2] = inputs["pair_weight"][:, :, 2] = 0  # row 2 of each group is not selected
    inputs["row_weight"][inputs["answer_rows"][:, 2]] = 0
    answers = torch.zeros(60, dtype=torch.bool).index_fill(0, inputs["answer_rows"].flatten(), True)
    expected = 5 * 3 + int((~answers & (inputs["row_weight"] != 0)).sum())
    counts = []
    add = HeadGradients.add
    monkeypatch.setattr(
        HeadGradients,
        "add",
        lambda self, rows, hidden, dz: (counts.append(len(dz)), add(self, rows, hidden, dz))[1],
    )
    out = run(inputs, torch.float64, "torch")
    assert sum(counts) == expected
    assert (out["divergence"][:, 2, :2] > 0).all() and (out["nll"][inputs["answer_rows"][:, 2]] > 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_frozen_head(backend):
    inputs = on(device_of(backend), make(**small(backend)))
    hidden, weight = inputs.pop("hidden").float().requires_grad_(), inputs.pop("weight").float()
    loss = linear_mind_loss(hidden, weight, **inputs, backend=backend)
    (found,) = torch.autograd.grad(loss, hidden)
    whole = linear_mind_loss(hidden, weight.requires_grad_(), **inputs, backend=backend)
    (expected,) = torch.autograd.grad(whole, hidden)
    torch.testing.assert_close(found, expected)


AT_NIGHT = [
    pytest.param(*case, marks=pytest.mark.nightly) for case in (("triton", None), ("triton_streaming", THRESHOLD))
]


@pytest.mark.parametrize("backend, threshold", [("torch", None), ("torch", THRESHOLD), *AT_NIGHT])
def test_opcheck_and_compile(backend, threshold):
    inputs = on(device_of(backend), make(**small(backend)))
    hidden, weight = inputs["hidden"].float().requires_grad_(), inputs["weight"].float().requires_grad_()
    rest = {name: inputs[name] for name in ("target", "row_weight", "answer_rows")}
    spec = RowSpec(Head(weight), gradient_threshold=threshold)
    opcheck(
        operator,
        MindArguments(
            hidden,
            spec,
            **rest,
            group_weight=inputs["pair_weight"],
            segment=None,
            num_segments=0,
            ignore_index=-100,
            backend=backend,
        ),
    )

    def step(hidden, weight):
        arguments = rest | {"pair_weight": inputs["pair_weight"], "gradient_threshold": threshold, "backend": backend}
        return linear_mind_loss(hidden * 2, weight, **arguments)

    assert_compiles_whole(step, hidden, weight)


@pytest.mark.parametrize(
    "changes, kind, message",
    [
        ({"answer_rows": torch.zeros(5).long()}, ValueError, r"answer_rows has shape \(5,\): expected 2 dimensions"),
        ({"answer_rows": torch.zeros(5, 4)}, TypeError, r"answer_rows has dtype torch.float32"),
        ({"answer_rows": torch.full((5, 4), -2)}, ValueError, r"answer_rows: expected rows in \[0, 60\)"),
        ({"answer_rows": torch.full((5, 4), 60)}, ValueError, r"answer_rows: expected rows in \[0, 60\)"),
        ({"answer_rows": torch.full((5, 4), 3)}, ValueError, r"answer_rows: expected each row at most once"),
        ({"pair_weight": torch.zeros(5, 3, 3)}, ValueError, r"pair_weight has shape"),
        ({"pair_weight": None}, ValueError, r"pair_weight and mixture_weight: expected exactly one"),
        (
            {"pair_weight": None, "mixture_weight": torch.full((5, 4), -1.0)},
            ValueError,
            r"mixture_weight: expected finite",
        ),
        ({"pair_weight": torch.full((5, 4, 4), float("inf"))}, ValueError, r"pair_weight: expected finite"),
        ({"target": torch.full((60,), 67)}, ValueError, r"got 67 in row 0"),
        ({"gradient_threshold": 1.0}, ValueError, r"gradient_threshold is 1.0"),
    ],
)
@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_bad_input_is_named(backend, changes, kind, message):
    with pytest.raises(kind, match=message):
        linear_mind_loss(**make() | changes, backend=backend)
