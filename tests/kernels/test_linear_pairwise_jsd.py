"""linear_pairwise_jsd: every backend against the float64 definition, identities, cancellation, errors."""

from __future__ import annotations

import math

import pytest
import torch
from cases import assert_compiles_whole, device_of, interpreted, on, opcheck, usable, with_dtypes
from kernel_cases import not_cancelling

from mind_kernels import MixtureStats, linear_pairwise_jsd, row_chunks
from mind_kernels.head import Head
from mind_kernels.linear_pairwise_jsd.contract import GroupArguments
from mind_kernels.linear_pairwise_jsd.op import operator
from mind_kernels.linear_pairwise_jsd.reference import mixture_kl, pairwise_jsd
from mind_kernels.testing import assert_within_budget

BACKENDS = usable("linear_pairwise_jsd")
FORMS = ["pairs", "mixture"]


def make(groups=4, count=8, size=16, vocabulary=67, *, scale=1.0, spread=1.0, seed=0):
    """hidden, weight, pair_weight, mask; `scale` peaks the distributions, `spread` 0 makes a group's rows equal."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    hidden = (normal(groups, 1, size) + spread * normal(groups, count, size)) * scale
    return {
        "hidden": hidden,
        "weight": normal(vocabulary, size),
        "pair_weight": torch.rand(groups, count, count, generator=generator).double(),
        "mask": torch.rand(groups, count, generator=generator) > 0.2,
    }


def as_mixture(inputs):
    """The same inputs for the mixture form; its weights are the first row of the pairs'."""
    return {k: v for k, v in inputs.items() if k != "pair_weight"} | {"mixture_weight": inputs["pair_weight"][:, 0]}


def of_logits(inputs):
    """The same logits as hidden states of an identity: equal rows of a product need not come out equal bit by bit."""
    hidden = (inputs["hidden"] @ inputs["weight"].T).float()
    hidden[:] = torch.where((inputs["hidden"] == inputs["hidden"][:, :1]).all(-1, keepdim=True), hidden[:, :1], hidden)
    return inputs | {"hidden": hidden, "weight": torch.eye(hidden.shape[-1])}


def run(inputs, dtype, backend, **options):
    inputs = on(device_of(backend), inputs)
    hidden, weight = (inputs.pop(name).detach().to(dtype).requires_grad_() for name in ("hidden", "weight"))
    loss, stats = linear_pairwise_jsd(hidden, weight, **inputs, return_stats=True, backend=backend, **options)
    divergence = stats.kl if isinstance(stats, MixtureStats) else stats.jsd
    (1.3 * loss).backward()
    outputs = {"loss": loss, "divergence": divergence, "d_hidden": hidden.grad, "d_weight": weight.grad}
    return {name: tensor.detach().cpu() for name, tensor in outputs.items()}


def total(divergence, inputs):
    """The loss that belongs to the divergences."""
    if "pair_weight" in inputs:
        return (divergence.double() * inputs["pair_weight"]).triu(1).sum()
    return (divergence.double() * inputs["mixture_weight"]).sum()


def kinds(backend):
    """Arguments of `make` and options of the loss; the interpreter gets few and small ones."""
    plain, conditioned = {}, {"softcap": 4.0, "temperature": 0.8}
    if interpreted(backend):
        small = {"groups": 2, "vocabulary": 37}
        return [
            ({"count": 2} | small, plain),
            ({"count": 3, "scale": 4.0} | small, conditioned),
            ({"count": 5, "scale": 1e-3} | small, plain),
        ]
    return [
        (kind, options)
        for options in (plain, conditioned)
        for kind in (
            {"groups": 3},
            {"count": 2},
            {"count": 3, "scale": 4.0},
            {"count": 5, "scale": 1e-3},
            {"count": 16, "groups": 2},
            {"vocabulary": 1009, "scale": 0.5, "groups": 2},
            {"count": 3, "scale": 0.05},
        )
    ]


CASES = [
    pytest.param(*case.values, *arguments, id="-".join([case.id, *map(str, arguments)]))
    for case in with_dtypes(BACKENDS)
    for arguments in kinds(case.values[0])
]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("backend, dtype, kind, options", CASES)
def test_matches_float64(backend, dtype, form, kind, options):
    if dtype == torch.float64 and kind.get("scale") == 1e-3:
        pytest.skip("the float64 definition itself cancels there; test_nearly_equal_rows_do_not_cancel has the case")
    inputs = make(**kind)
    inputs = {k: v.to(dtype) if k in ("hidden", "weight") else v for k, v in inputs.items()}
    inputs = inputs if form == "pairs" else as_mixture(inputs)
    truth = run(inputs, torch.float64, "reference", **options)
    peer = run(inputs, dtype, "reference", **options)
    found = run(inputs, dtype, backend, **options)
    # The loss is the weighted sum of the divergences. Where rows nearly coincide plain PyTorch's sum is right only by
    # luck, which is no budget: its terms cancel, and `divergence` shows it.
    del truth["loss"]
    assert_within_budget(found, peer, truth, dtype)
    torch.testing.assert_close(
        found["loss"].double(),
        total(found["divergence"], inputs),
        atol=1e-15,
        rtol=1e-6 if dtype != torch.float64 else 1e-12,
    )


@pytest.mark.parametrize("difference", [1e-1, 1e-3, 1e-4])
@pytest.mark.parametrize("backend", BACKENDS)
def test_nearly_equal_rows_do_not_cancel(backend, difference):
    inputs = make(count=3, spread=difference, groups=2)
    # The float32 logits are the input here: their rounding is not ours.
    logits = inputs["hidden"].float() @ inputs["weight"].float().T
    own = run({"hidden": logits, "weight": torch.eye(67), "pair_weight": inputs["pair_weight"]}, torch.float32, backend)
    jsd, gradient = not_cancelling(logits, inputs["pair_weight"])
    torch.testing.assert_close(own["divergence"].double(), jsd, rtol=1e-4, atol=0)
    error = (own["d_hidden"].double() - 1.3 * gradient).norm() / gradient.norm()
    assert error < 1e-3 and 0 < jsd.max() < difference


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_equal_rows_give_exactly_zero(backend, form):
    inputs = of_logits(make(spread=0.0))
    out = run(inputs if form == "pairs" else as_mixture(inputs), torch.float32, backend)
    for name, value in out.items():
        assert value.count_nonzero() == 0, name


@pytest.mark.parametrize("backend", BACKENDS)
def test_equal_rows_among_others_give_exactly_zero(backend):
    inputs = of_logits(make(count=3, groups=2) | {"mask": torch.ones(2, 3, dtype=torch.bool)})
    inputs["hidden"][:, 2] = inputs["hidden"][:, 0]
    inputs["pair_weight"] = torch.zeros(2, 3, 3)
    inputs["pair_weight"][:, 0, 2] = 1
    out = run(inputs, torch.float32, backend)
    assert out["divergence"][:, 0, 2].count_nonzero() == 0 and (out["divergence"][:, 0, 1] > 0.01).all()
    assert out["d_hidden"].count_nonzero() == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_jsd_is_symmetric_and_bounded(backend):
    jsd = run(make(scale=20.0), torch.float32, backend)["divergence"]
    assert torch.equal(jsd, jsd.transpose(1, 2))
    assert (jsd >= 0).all() and (jsd <= math.log(2) * (1 + 1e-6)).all() and jsd.max() > 0.69


@pytest.mark.parametrize("backend", BACKENDS)
def test_disjoint_distributions_are_ln_2_apart(backend):
    inputs = {"hidden": torch.eye(2).reshape(1, 2, 2) * 1e4, "weight": torch.eye(2)}
    pairs = run(inputs | {"pair_weight": torch.ones(1, 2, 2)}, torch.float32, backend)
    torch.testing.assert_close(pairs["loss"], torch.tensor(math.log(2)))
    assert pairs["d_hidden"].count_nonzero() == 0
    mixture = run(inputs | {"mixture_weight": torch.full((1, 2), 0.5)}, torch.float32, backend)
    torch.testing.assert_close(mixture["divergence"], torch.full((1, 2), math.log(2)))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_mixture_of_two_halves_is_the_jsd_of_a_pair(backend):
    inputs = make(count=2, groups=3) | {"pair_weight": torch.ones(3, 2, 2), "mask": torch.ones(3, 2, dtype=torch.bool)}
    pairs = run(inputs, torch.float32, backend)
    mixture = run(as_mixture(inputs | {"pair_weight": torch.full((3, 2, 2), 0.5)}), torch.float32, backend)
    for name in ("loss", "d_hidden", "d_weight"):
        torch.testing.assert_close(mixture[name], pairs[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_perspectives_may_be_permuted(backend):
    order = torch.tensor([3, 1, 0, 2] if interpreted(backend) else [3, 1, 0, 7, 5, 2, 6, 4])
    inputs = make(groups=2, count=len(order))
    symmetric = inputs["pair_weight"] + inputs["pair_weight"].transpose(1, 2)
    plain = run(inputs | {"pair_weight": symmetric}, torch.float32, backend)
    moved = run(
        {
            "hidden": inputs["hidden"][:, order],
            "weight": inputs["weight"],
            "mask": inputs["mask"][:, order],
            "pair_weight": symmetric[:, order][:, :, order],
        },
        torch.float32,
        backend,
    )
    torch.testing.assert_close(moved["loss"], plain["loss"])
    torch.testing.assert_close(moved["d_hidden"], plain["d_hidden"][:, order], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_masked_rows_may_hold_anything_and_get_no_gradient(backend, form):
    inputs = make(groups=3, count=4 if interpreted(backend) else 8)
    inputs = inputs if form == "pairs" else as_mixture(inputs)
    clean = run(inputs, torch.float32, backend)
    dirty = dict(inputs, hidden=torch.where(inputs["mask"][..., None], inputs["hidden"], float("nan")))
    for name in (backend, "reference"):
        out = run(dirty, torch.float32, name)
        torch.testing.assert_close(out["loss"], clean["loss"])
        torch.testing.assert_close(out["d_hidden"], clean["d_hidden"], rtol=1e-4, atol=1e-6)
    assert clean["d_hidden"][~inputs["mask"]].count_nonzero() == 0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("backend", [*BACKENDS, "reference"])
def test_a_row_alone_in_its_group_may_hold_anything(backend, form, value):
    """Its divergence is 0 and it has no gradient, nor has the weight because of it."""
    inputs = make(groups=2, count=3) | {"mask": torch.tensor([[True] * 3, [False, True, False]])}
    inputs = inputs if form == "pairs" else as_mixture(inputs)
    clean = run(inputs, torch.float32, backend)
    inputs["hidden"][1, 1] = value
    found = run(inputs, torch.float32, backend)
    for name, expected in clean.items():
        torch.testing.assert_close(found[name], expected, rtol=0, atol=0)
    assert found["divergence"][1].count_nonzero() == 0 and found["d_hidden"][1].count_nonzero() == 0


@pytest.mark.parametrize("excluded", [0, 1], ids="{} excluded".format)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("backend", [*BACKENDS, "reference"])
def test_non_finite_rows_are_not_hidden_and_spoil_their_group_alone(backend, form, excluded):
    inputs = make(groups=2, count=3) | {"mask": torch.ones(2, 3, dtype=torch.bool)}
    inputs["hidden"][1, 2, 0] = float("nan")
    inputs["bias"] = torch.zeros(67)
    inputs["bias"][:excluded] = -float("inf")
    out = run(inputs if form == "pairs" else as_mixture(inputs), torch.float32, backend)
    assert out["loss"].isnan() and out["d_hidden"][1, 2].isnan().any()
    assert out["divergence"][0].isfinite().all() and out["d_hidden"][0].isfinite().all()


@pytest.mark.parametrize("value", [float("inf"), -float("inf")])
@pytest.mark.parametrize("vocabulary", [1, 37])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("backend", [*BACKENDS, "reference"])
def test_equal_rows_without_a_softmax_have_no_divergence(backend, form, vocabulary, value):
    """Rows that are equal bit by bit have divergence 0 only if they are distributions."""
    inputs = make(groups=2, count=3) | {"mask": torch.ones(2, 3, dtype=torch.bool)}
    inputs["weight"] = inputs["weight"][:vocabulary]
    inputs["weight"][:, 0] = 1
    inputs["hidden"][1, :, 0] = value
    inputs["hidden"][1, :, 1:] = 0
    inputs = inputs if form == "pairs" else as_mixture(inputs)
    found = run(inputs, torch.float32, backend)
    assert found["loss"].isnan() and found["divergence"][0].isfinite().all()
    of_rows = found["divergence"][1]
    assert (of_rows if form == "mixture" else of_rows[0, 1:]).isnan().all()


@pytest.mark.parametrize("frozen", [["hidden"], ["weight"], ["hidden", "weight"]], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_frozen_inputs(backend, frozen):
    inputs = on(device_of(backend), make(groups=2, count=3))
    whole = run(inputs, torch.float32, backend)
    tensors = {name: inputs.pop(name).float() for name in ("hidden", "weight")}
    for name, tensor in tensors.items():
        tensor.requires_grad_(name not in frozen)
    loss = linear_pairwise_jsd(**tensors, **inputs, backend=backend)
    torch.testing.assert_close(loss.detach().cpu(), whole["loss"])
    if len(frozen) == 2:
        assert not loss.requires_grad
        return
    (1.3 * loss).backward()
    for name, tensor in tensors.items():
        assert (tensor.grad is None) == (name in frozen)
        if tensor.grad is not None:
            torch.testing.assert_close(tensor.grad.cpu(), whole[f"d_{name}"])


@pytest.mark.parametrize("backend", [*BACKENDS, "reference"])
def test_no_groups(backend):
    inputs = make()
    out = run({name: t if name == "weight" else t[:0] for name, t in inputs.items()}, torch.float32, backend)
    assert out["loss"] == 0 and out["d_weight"].count_nonzero() == 0 and out["divergence"].shape == (0, 8, 8)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("chunk", [1, 3, 40])
def test_chunk_sizes_change_nothing(monkeypatch, chunk, form):
    inputs = make(groups=7)
    inputs = inputs if form == "pairs" else as_mixture(inputs)
    whole = run(inputs, torch.float64, "torch")
    monkeypatch.setattr(row_chunks, "_CHUNK_BYTES", {"cpu": 16 * 67 * 8 * chunk})
    monkeypatch.setattr(row_chunks, "_BLOCK_BYTES", {"cpu": 67 * 4 * chunk})
    for name, value in run(inputs, torch.float64, "torch").items():
        torch.testing.assert_close(value, whole[name], rtol=1e-12, atol=1e-12)


def test_reference_is_the_entropy_form_and_gradcheck():
    inputs = make(groups=2, count=3, vocabulary=5, size=4)
    logits = inputs["hidden"] @ inputs["weight"].T
    p = torch.softmax(logits, -1)

    def entropy(p):
        return -(p * p.log()).sum(-1)

    whole = torch.ones(2, 3, dtype=torch.bool)
    expected = entropy((p[:, 0] + p[:, 2]) / 2) - (entropy(p[:, 0]) + entropy(p[:, 2])) / 2
    torch.testing.assert_close(pairwise_jsd(logits, whole)[:, 0, 2], expected, rtol=1e-10, atol=1e-12)
    share = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    expected = entropy((share[:, None] * p).sum(1)) - (share * entropy(p)).sum(1)
    found = (share * mixture_kl(logits, 2 * share.expand(2, 3), whole)).sum(1)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    for weights in ({"pair_weight": inputs["pair_weight"]}, {"mixture_weight": inputs["pair_weight"][:, 0]}):
        assert torch.autograd.gradcheck(
            lambda hidden, weight: linear_pairwise_jsd(hidden, weight, **weights, backend="reference"),  # noqa: B023
            (inputs["hidden"].requires_grad_(), inputs["weight"].requires_grad_()),
        )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_opcheck_and_compile(backend, form):
    inputs = on(device_of(backend), make(groups=2, count=3))
    hidden, weight = inputs["hidden"].float().requires_grad_(), inputs["weight"].float().requires_grad_()
    group_weight = inputs["pair_weight"] if form == "pairs" else inputs["pair_weight"][:, 0]
    opcheck(operator, GroupArguments(hidden, Head(weight), group_weight, inputs["mask"], "jsd", True, backend))
    name = "pair_weight" if form == "pairs" else "mixture_weight"

    def step(hidden, weight):
        return linear_pairwise_jsd(hidden * 2, weight, **{name: group_weight}, mask=inputs["mask"], backend=backend)

    assert_compiles_whole(step, hidden, weight)


@pytest.mark.parametrize(
    "changes, kind, message",
    [
        ({"hidden": torch.zeros(4, 16)}, ValueError, r"expected 3 dimensions \(P, K, D\)"),
        ({"hidden": torch.zeros(4, 1, 16), "pair_weight": torch.zeros(4, 1, 1), "mask": None}, ValueError, r"K >= 2"),
        ({"pair_weight": torch.zeros(4, 8, 7)}, ValueError, r"pair_weight has shape \(4, 8, 7\): expected \(P, K, K\)"),
        ({"pair_weight": torch.full((4, 8, 8), float("nan"))}, ValueError, r"pair_weight: expected finite"),
        ({"pair_weight": torch.zeros(4, 8, 8, requires_grad=True)}, ValueError, r"pair_weight requires a gradient"),
        ({"pair_weight": torch.zeros(4, 8, 8).long()}, TypeError, r"pair_weight has dtype torch.int64"),
        ({"pair_weight": None}, ValueError, r"pair_weight and mixture_weight: expected exactly one"),
        ({"mixture_weight": torch.zeros(4, 8)}, ValueError, r"pair_weight and mixture_weight: expected exactly one"),
        ({"pair_weight": None, "mixture_weight": torch.zeros(4, 8, 8)}, ValueError, r"mixture_weight has shape"),
        (
            {"pair_weight": None, "mixture_weight": torch.full((4, 8), -1.0)},
            ValueError,
            r"mixture_weight: expected finite",
        ),
        ({"mask": torch.ones(4, 7, dtype=torch.bool)}, ValueError, r"mask has shape \(4, 7\): expected \(P, K\)"),
        ({"mask": torch.ones(4, 8)}, TypeError, r"mask has dtype torch.float32: expected torch.bool"),
        ({"softcap": -1.0}, ValueError, r"softcap is -1.0"),
        ({"backend": "triton_streaming"}, RuntimeError, r"it has no kernels for this operation"),
    ],
)
def test_bad_input_is_named(changes, kind, message):
    inputs = make()
    inputs = {k: v.float() if k in ("hidden", "weight") else v for k, v in inputs.items()} | changes
    with pytest.raises(kind, match=message):
        linear_pairwise_jsd(inputs.pop("hidden"), inputs.pop("weight"), inputs.pop("pair_weight"), **inputs)
