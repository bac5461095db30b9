"""linear_divergence: every backend against the float64 definition, the published formulas, identities, edge rows."""

from __future__ import annotations

import math

import pytest
import torch
from cases import device_of, on
from divergence_cases import (
    BACKENDS,
    CASES,
    EXTREME_KINDS,
    FORMS,
    KINDS,
    OPTIONS,
    assert_matches_float64,
    fit,
    listed_cases,
    make,
    name_of,
    published,
    run,
)

from mind_kernels import backend as backends
from mind_kernels import linear_divergence
from mind_kernels.testing import assert_within_budget

# Lanes that are not stored may overflow in the interpreter.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: options["reduction"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS, ids=name_of)
@pytest.mark.parametrize(("backend", "dtype"), CASES)
def test_matches_float64(backend, dtype, kind, form, options):
    inputs = make(*fit(backend, 37, 33, 1009), form=form, dtype=dtype, seed=5)
    assert_matches_float64(inputs, dtype, backend, **kind, **options)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", EXTREME_KINDS, ids=name_of)
@pytest.mark.parametrize("backend", BACKENDS)
def test_extreme_mixtures(backend, kind, form):
    inputs = make(*fit(backend, 37, 33, 1009), form=form, dtype=torch.float32, seed=5)
    assert_matches_float64(inputs, torch.float32, backend, reduction="none", **kind)


@pytest.mark.parametrize("other", [{}, {"teacher_temperature": 0.6}], ids=["one temperature", "two"])
@pytest.mark.parametrize("kind", KINDS, ids=name_of)
def test_reference_is_the_published_formula(kind, other):
    inputs = make(23, 16, 101)
    hidden = inputs["hidden"].requires_grad_()
    loss = linear_divergence(
        hidden,
        inputs["weight"],
        inputs["teacher_hidden"],
        inputs["teacher_weight"],
        **kind,
        temperature=1.7,
        **other,
        backend="reference",
    )
    z, theirs = hidden @ inputs["weight"].T / 1.7, inputs["teacher_hidden"] @ inputs["teacher_weight"].T
    theirs = theirs / other.get("teacher_temperature", 1.7)
    expected = published(kind, torch.log_softmax(z, -1), torch.log_softmax(theirs, -1)).mean()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(*(torch.autograd.grad(value, hidden)[0] for value in (loss, expected)))


@pytest.mark.parametrize("kind", KINDS, ids=name_of)
def test_list_is_the_divergence_of_its_events(kind):
    inputs = make(9, 8, 31, form="list", listed=4)
    log_q = torch.log_softmax(inputs["hidden"] @ inputs["weight"].T, -1)
    others = torch.ones_like(log_q).scatter_(1, inputs["teacher_ids"], 0)
    tail = (log_q.exp() * others).sum(1, keepdim=True)
    log_q = torch.cat([log_q.gather(1, inputs["teacher_ids"]), tail.log()], 1)
    log_p = inputs["teacher_log_prob"].double()
    log_p = torch.cat([log_p, (1 - log_p.exp().sum(1, keepdim=True)).log()], 1)
    expected = published(kind, log_q, log_p)
    for backend in ("reference", "torch"):
        torch.testing.assert_close(run(inputs, torch.float64, backend, **kind)["divergence"], expected)


@pytest.mark.parametrize("form", [*FORMS, "renormalized list"])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind["kind"] != "taid"], ids=name_of)
def test_reference_gradcheck(kind, form):
    inputs = make(4, 3, 6, form=form, listed=2)
    if form != "head":
        inputs["teacher_log_prob"][0, 1] = inputs["teacher_log_prob"][2] = -math.inf
    names = [name for name in inputs if name.startswith("teacher")]

    def loss(hidden, weight):
        return linear_divergence(
            hidden,
            weight,
            **{name: inputs[name] for name in names},
            **kind,
            tail="renormalize" if form == "renormalized list" else "bucket",
            softcap=3.0,
            row_weight=inputs["row_weight"],
            reduction="sum",
            backend="reference",
        )

    tensors = inputs["hidden"].requires_grad_(), inputs["weight"].requires_grad_()
    assert torch.autograd.gradcheck(loss, tensors)
    assert torch.autograd.gradgradcheck(loss, tensors)


def test_trl_agrees():
    trl = pytest.importorskip("trl.kernels.chunked_divergence", reason="trl is not installed")
    inputs = make(21, 16, 101, dtype=torch.float32)
    order = ("hidden", "weight", "teacher_hidden", "teacher_weight")
    for kind, beta in ((KINDS[0], 0.0), (KINDS[1], 1.0), ({"kind": "jsd", "beta": 0.3}, 0.3)):
        ours = [inputs[name].clone().requires_grad_(not name.startswith("teacher")) for name in order]
        theirs = [tensor.detach().clone().requires_grad_(tensor.requires_grad) for tensor in ours]
        # TRL has one temperature, and a scale of the logits of each side: c tanh(s x / c) / T.
        loss, stats = linear_divergence(
            *ours,
            **kind,
            temperature=1.3 / 0.5,
            softcap=20.0 / 0.5,
            teacher_temperature=1.3 / 2,
            teacher_softcap=30.0 / 2,
            reduction="none",
            return_stats=True,
        )
        expected, entropy = trl.ChunkedDivergenceFunction.apply(
            theirs[0], theirs[1], None, theirs[2], theirs[3], None, beta, 1.3, 0.5, 20.0, 2.0, 30.0
        )
        loss.sum().backward()
        expected.sum().backward()
        for found, wanted in (
            (loss, expected),
            (stats.entropy, entropy),
            *((a.grad, b.grad) for a, b in zip(ours[:2], theirs[:2], strict=True)),
        ):
            torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_liger_agrees(beta):
    liger = pytest.importorskip("liger_kernel.chunked_loss.jsd_loss", reason="liger-kernel is not installed")
    inputs = make(21, 16, 101, dtype=torch.float32)
    kind = {0.0: {"kind": "forward_kl"}, 1.0: {"kind": "reverse_kl"}}.get(beta, {"kind": "jsd", "beta": beta})
    loss = run(inputs, torch.float32, "torch", reduction="sum", **kind)["loss"]
    logits = (inputs["hidden"] @ inputs["weight"].T, inputs["teacher_hidden"] @ inputs["teacher_weight"].T)
    expected = liger.LigerFusedLinearJSDFunction.distillation_loss_fn(*logits, beta=beta)
    torch.testing.assert_close(loss.detach(), expected)


@pytest.mark.parametrize("kind", KINDS, ids=name_of)
@pytest.mark.parametrize("backend", BACKENDS)
def test_equal_heads_give_exactly_zero(backend, kind):
    inputs = make(2, 16, 101, dtype=torch.float32)
    equal = inputs | {"teacher_hidden": inputs["hidden"], "teacher_weight": inputs["weight"]}
    out = run(equal, torch.float32, backend, reduction="none", **kind)
    assert out["divergence"].count_nonzero() == 0
    assert out["d_hidden"].count_nonzero() == 0 and out["d_weight"].count_nonzero() == 0


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
def test_taid_starts_at_zero_and_ends_at_forward_kl(backend, form):
    inputs = make(*fit(backend, 12, 16, 301), form=form)
    dtype = torch.float64 if backends.BACKENDS[backend].float64 else torch.float32
    start = run(inputs, dtype, backend, kind="taid", interpolation=0.0)
    for name in ("loss", "divergence", "d_hidden", "d_weight"):
        torch.testing.assert_close(start[name], torch.zeros_like(start[name]), rtol=0, atol=1e-15)
    end = run(inputs, dtype, backend, kind="taid", interpolation=1.0)
    for name, expected in run(inputs, dtype, backend, kind="forward_kl").items():
        torch.testing.assert_close(end[name], expected)


def test_jsd_of_one_half_is_symmetric():
    inputs = make(12, 16, 301)
    swapped = {
        "hidden": inputs["teacher_hidden"],
        "weight": inputs["teacher_weight"],
        "teacher_hidden": inputs["hidden"],
        "teacher_weight": inputs["weight"],
    }
    jsd, mirrored = (run(case, torch.float64, "torch", kind="jsd")["divergence"] for case in (inputs, swapped))
    torch.testing.assert_close(jsd, mirrored)
    assert jsd.min() > 0 and jsd.max() <= math.log(2)


@listed_cases("reference", *BACKENDS)
def test_list_of_every_token_is_the_full_form(backend, kind):
    dtype = torch.float64 if backends.BACKENDS[backend].float64 else torch.float32
    inputs = make(4, 8, 31, dtype=dtype)
    log_p = torch.log_softmax(inputs["teacher_hidden"] @ inputs["teacher_weight"].T, -1).double()
    order = torch.rand(4, 31, generator=torch.Generator().manual_seed(3)).argsort(1)
    listed = {name: inputs[name] for name in ("hidden", "weight")}
    listed |= {"teacher_ids": order, "teacher_log_prob": log_p.gather(1, order)}
    full, whole = (run(case, dtype, backend, reduction="none", **kind) for case in (inputs, listed))
    for name, expected in full.items():
        torch.testing.assert_close(whole[name], expected)


@pytest.mark.parametrize("kind", KINDS, ids=name_of)
def test_list_is_a_lower_bound_that_grows_with_it(kind):
    full = make(9, 8, 31)
    lists = [make(9, 8, 31, form="list", listed=listed, list_dtype=torch.float64) for listed in (1, 5, 20, 30)]
    values = [run(inputs, torch.float64, "torch", **kind)["divergence"] for inputs in (*lists, full)]
    if kind["kind"] != "taid":  # whose teacher depends on the list
        assert all((smaller <= larger + 1e-12).all() for smaller, larger in zip(values, values[1:], strict=False))
    torch.testing.assert_close(values[3], values[4])


@listed_cases(*BACKENDS)
def test_small_tail_keeps_its_probability(backend, kind):
    """The student's listed tokens are all but certain: 1 - sum would lose the tail, and its gradient with it."""
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(24, 7, generator=generator)
    logits[:, :2] += 40
    p = torch.rand(24, 2, generator=generator) / 2
    inputs = {
        "hidden": logits,
        "weight": torch.eye(7),
        "teacher_ids": torch.tensor([[0, 1], [1, 0]] * 12),
        "teacher_log_prob": p.log(),
    }
    truth = assert_matches_float64(inputs, torch.float32, backend, reduction="none", **kind)
    assert (truth["d_hidden"][:, 2:] != 0).all()


@listed_cases(*BACKENDS)
def test_list_may_hold_all_probability_or_none_of_some_token(backend, kind):
    inputs = make(18, 8, 31, form="list", listed=3)
    p = torch.tensor([[0.5, 0.3, 0.2], [1.0, 0.0, 0.0], [0.9, 0.1, 0.0]] * 6)
    inputs["teacher_log_prob"] = (p.clamp(min=1e-30) if kind["kind"] == "reverse_kl" else p).log()
    assert_matches_float64(inputs, torch.float32, backend, reduction="none", **kind)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS, ids=name_of)
@pytest.mark.parametrize("backend", BACKENDS)
def test_extreme_logits(backend, kind, form):
    logits = torch.tensor(
        [[1e4, 0, -1e4, 3, 0], [-1e4, 1e4, 1e4, 0, 0], [0, 0, 0, 0, 1e4], [1e4, 0, -1e4, 3, 0], [1e4, 9999, 9998, 0, 0]]
    )
    inputs = {"hidden": logits, "weight": torch.eye(5)}
    if form == "head":
        inputs |= {"teacher_hidden": logits.roll(1, 1), "teacher_weight": torch.eye(5)}
        inputs["teacher_hidden"][3:] = logits[3:] + torch.tensor([0, 1, 0, 0, 0])
    else:
        p = torch.tensor([[0.5, 0.5], [1.0, 1e-30], [0.3, 0.3], [0.9, 0.1], [0.2, 0.1]])
        inputs |= {"teacher_ids": torch.tensor([[0, 1], [2, 0], [4, 1], [2, 3], [1, 2]]), "teacher_log_prob": p.log()}
    assert_matches_float64(inputs, torch.float32, backend, reduction="sum", **kind)


def from_rounded_log_probs(inputs, kind):
    """The divergences in float64 of log-probabilities that are rounded to float32: what any float32 code has lost."""
    log_q, log_p = (torch.log_softmax(inputs[name], -1) for name in ("hidden", "teacher_hidden"))
    exact = {
        "hidden": log_q.double(),
        "teacher_hidden": log_p.double(),
        "weight": torch.eye(log_q.shape[1]).double(),
        "teacher_weight": torch.eye(log_q.shape[1]).double(),
    }
    return {"divergence": run(exact, torch.float64, "torch", **kind)["divergence"]}


@pytest.mark.parametrize(
    ("backend", "difference"),
    [
        *(("torch", difference) for difference in (1e-1, 1e-3, 1e-5)),
        *(("cpp", difference) for difference in (1e-1, 1e-3, 1e-5)),
        *(("triton", difference) for difference in (1e-1, 1e-4)),
    ],
)
@pytest.mark.parametrize("kind", KINDS, ids=name_of)
def test_nearly_equal_distributions_do_not_cancel(backend, kind, difference):
    generator = torch.Generator().manual_seed(5)
    logits = 2 * torch.randn(3, 101, generator=generator)
    near = logits + difference * torch.randn(3, 101, generator=generator)
    # The float32 logits are the input here; their rounding is not ours.
    inputs = {"hidden": logits, "weight": torch.eye(101), "teacher_hidden": near, "teacher_weight": torch.eye(101)}
    truth = run(inputs, torch.float64, "torch", **kind)
    found = run(inputs, torch.float32, backend, **kind)
    assert (truth["divergence"] > 0).all() and (found["divergence"] > 0).all()
    # A divergence is about c e^2 / 2, e the logarithm of the ratio and c the share of a mixture, so functions of e that
    # are rounded to eps err by eps / (c e) of it.
    share = (*kind.values(), 1.0)[1]
    assert_within_budget(
        found,
        from_rounded_log_probs(inputs, kind),
        {"divergence": truth["divergence"]},
        torch.float32,
        conditioning=1 / (share * difference),
    )


@pytest.mark.parametrize("kind", KINDS[:3], ids=name_of)
def test_logits_are_not_rounded_to_half_precision(kind):
    """The divergence of bfloat16 hidden states and heads is that of the same numbers in float32."""
    inputs = make(12, 16, 101, dtype=torch.bfloat16)
    low, high = (run(inputs, dtype, "torch", **kind) for dtype in (torch.bfloat16, torch.float32))
    torch.testing.assert_close(low["divergence"], high["divergence"])


def test_teacher_has_a_dtype_of_its_own():
    inputs = make(12, 16, 101, dtype=torch.float32)
    low = inputs | {
        "teacher_hidden": inputs["teacher_hidden"].bfloat16(),
        "teacher_weight": inputs["teacher_weight"].bfloat16(),
    }
    for dtype in (torch.float32, torch.float64):
        same = low | {name: low[name].to(dtype) for name in ("teacher_hidden", "teacher_weight")}
        for backend in ("reference", "torch"):
            loss = linear_divergence(**same, backend=backend)
            assert loss.dtype == torch.float32
            torch.testing.assert_close(loss, linear_divergence(**low))


@pytest.mark.parametrize("form", FORMS)
def test_non_finite_hidden_gives_non_finite_loss(form):
    inputs = make(6, 8, 31, form=form, dtype=torch.float32)
    inputs["hidden"][2, 3] = float("inf")
    for kind in KINDS:
        assert run(inputs, torch.float32, "torch", **kind)["divergence"].isfinite().tolist() == [
            True,
            True,
            False,
            True,
            True,
            True,
        ]


@pytest.mark.skipif("cpp" not in BACKENDS, reason="no compiled library")
@pytest.mark.parametrize("beta", [1e-50, 1 - 1e-9])
def test_a_mixture_that_float32_takes_for_one_side_keeps_its_parts(beta):
    generator = torch.Generator().manual_seed(0)
    hidden, weight, teacher_hidden, teacher_weight = (
        torch.randn(rows, 8, generator=generator) * 0.5 for rows in (4, 50, 4, 50)
    )

    def loss_and_gradient(backend, dtype):
        leaf = hidden.to(dtype, copy=True).requires_grad_()
        others = (tensor.to(dtype) for tensor in (weight, teacher_hidden, teacher_weight))
        loss = linear_divergence(leaf, *others, kind="jsd", beta=beta, backend=backend)
        return loss.detach(), *torch.autograd.grad(loss, leaf)

    for found, truth in zip(
        loss_and_gradient("cpp", torch.float32), loss_and_gradient("reference", torch.float64), strict=True
    ):
        torch.testing.assert_close(found.double(), truth, rtol=1e-3, atol=1e-12)


@pytest.mark.skipif("cpp" not in BACKENDS, reason="no compiled library")
@pytest.mark.parametrize("rows", [8, 20, 200])
def test_a_teacher_of_any_size_is_multiplied_as_its_student_is(rows):
    """Products of few, some and many rows are different ones, and deep ones are summed in parts."""
    hidden, weight = torch.randn(rows, 700).requires_grad_(), torch.randn(300, 700) * 0.05
    loss = linear_divergence(hidden, weight, hidden.detach().clone(), weight.clone(), backend="cpp")
    loss.backward()
    assert loss.detach() == 0 and hidden.grad is not None and not hidden.grad.any()


@pytest.mark.parametrize("kind", [KINDS[0], {"kind": "taid", "interpolation": 0.4}], ids=name_of)
@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
def test_divergence_and_target_entropy_are_a_cross_entropy(backend, kind):
    """That of the student under the target, in float64 from both softmaxes; temperatures of their own."""
    inputs = on(device_of(backend), make(*fit(backend, 9, 8, 67), dtype=torch.float32))
    names = ("hidden", "weight", "teacher_hidden", "teacher_weight")
    options = {"temperature": 0.7, "teacher_temperature": 1.3}
    _, stats = linear_divergence(*(inputs[n] for n in names), **kind, **options, return_stats=True, backend=backend)
    z, theirs = ((inputs[a].double() @ inputs[b].double().T) for a, b in (names[:2], names[2:]))
    share = kind.get("interpolation", 1.0)
    p = torch.softmax((1 - share) * z / 0.7 + share * theirs / 1.3, 1)
    expected = -(p * torch.log_softmax(z / 0.7, 1)).sum(1)
    torch.testing.assert_close((stats.divergence + stats.target_entropy).double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(stats.target_entropy.double(), torch.special.entr(p).sum(1), rtol=1e-5, atol=1e-6)
