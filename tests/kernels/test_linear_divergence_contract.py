"""linear_divergence: weights, reductions, frozen inputs, chunks, autograd, the compiler, and each error message."""

from __future__ import annotations

import math

import pytest
import torch
from cases import assert_compiles_whole, device_of, on, opcheck
from divergence_cases import BACKENDS, FORMS, KINDS, make, name_of, run

from mind_kernels import BackendUnavailableError, Head, linear_divergence, row_chunks
from mind_kernels.head import HeadGradients
from mind_kernels.linear_divergence.contract import DivergenceArguments
from mind_kernels.linear_divergence.kinds import divergence_of
from mind_kernels.linear_divergence.op import operator
from mind_kernels.linear_divergence.teachers import HeadTeacher, ListTeacher

# Lanes that are not stored may overflow in the interpreter.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")


@pytest.mark.parametrize("frozen", ["hidden", "weight", "both"])
def test_frozen_inputs_get_no_gradient(frozen):
    inputs = make(11, 8, 31)
    inputs.pop("row_weight")
    hidden = inputs.pop("hidden").requires_grad_(frozen == "weight")
    weight = inputs.pop("weight").requires_grad_(frozen == "hidden")
    for reduction in ("mean", "none"):
        hidden.grad = weight.grad = None
        loss = linear_divergence(hidden, weight, **inputs, reduction=reduction).sum()
        assert loss.requires_grad == (frozen != "both")
        if frozen != "both":
            loss.backward()
        assert (hidden.grad is not None) == (frozen == "weight")
        assert (weight.grad is not None) == (frozen == "hidden")


def test_frozen_head_skips_its_product(monkeypatch):
    inputs = make(11, 8, 31)
    inputs.pop("row_weight")
    monkeypatch.setattr(HeadGradients, "_add_weight", lambda *_: pytest.fail("dW was computed"))
    linear_divergence(inputs.pop("hidden").requires_grad_(), inputs.pop("weight"), **inputs).backward()


@pytest.mark.parametrize("form", FORMS)
def test_weight_zero_costs_no_gradient_and_keeps_statistics(monkeypatch, form):
    inputs = make(40, 8, 31, form=form)
    rows = []
    add = HeadGradients.add
    monkeypatch.setattr(HeadGradients, "add", lambda self, index, *rest: (rows.append(index), add(self, index, *rest)))
    out = run(inputs, torch.float64, "torch", reduction="sum", weighted=True)
    assert torch.cat(rows).tolist() == inputs["row_weight"].nonzero().flatten().tolist()
    assert out["d_hidden"][1::4].count_nonzero() == 0
    torch.testing.assert_close(out["divergence"], run(inputs, torch.float64, "torch")["divergence"])


def test_reductions():
    inputs = make(12, 8, 31)
    each = run(inputs, torch.float64, "torch", reduction="none", weighted=True)
    weight = inputs["row_weight"]
    torch.testing.assert_close(each["loss"], weight * each["divergence"])
    for reduction, total in (("sum", 1), ("mean", weight.sum())):
        loss = run(inputs, torch.float64, "torch", reduction=reduction, weighted=True)["loss"]
        torch.testing.assert_close(loss, each["loss"].sum() / total)


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_no_weight_at_all(backend):
    inputs = make(4, 8, 31)
    inputs["row_weight"].zero_()
    hidden = inputs["hidden"].requires_grad_()
    assert torch.isnan(linear_divergence(**inputs, backend=backend))
    total = linear_divergence(**inputs, reduction="sum", backend=backend)
    total.backward()
    assert total == 0 and hidden.grad.count_nonzero() == 0


@pytest.mark.parametrize("tail", ["bucket", "renormalize"])
@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
def test_a_row_that_is_no_number_has_no_divergence(backend, tail):
    """Also if the teacher listed nothing: all tokens are then one event, of probability nan."""
    hidden, weight = torch.ones(3, 2), torch.eye(5, 2)
    hidden[:2, 1] = math.nan
    ids, log_prob = torch.zeros(3, 1, dtype=torch.long), torch.tensor([[-math.inf], [-0.5], [-0.5]])
    given = {"hidden": hidden, "weight": weight, "teacher_ids": ids, "teacher_log_prob": log_prob}
    given = on(device_of(backend), given)
    found = linear_divergence(**given, tail=tail, reduction="none", backend=backend)
    assert found.isnan().tolist() == [True, True, False]


@pytest.mark.parametrize("options", [{"kind": "forward_kl"}, {"kind": "taid", "interpolation": 0.4}], ids=str)
@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
def test_a_list_of_excluded_tokens_alone_has_no_divergence(backend, options):
    """Renormalized, it leaves the student no distribution, and an interpolated target none either."""
    bias = torch.tensor([0.3, -math.inf, -math.inf])
    given = {"hidden": torch.ones(2, 4), "weight": torch.ones(3, 4), "bias": bias}
    given |= {"teacher_ids": torch.tensor([[0, 1], [1, 2]]), "teacher_log_prob": torch.tensor([[0.5, 0.5]] * 2).log()}
    given = on(device_of(backend), given)
    options = options | {"tail": "renormalize", "reduction": "none", "return_stats": True}
    loss, stats = linear_divergence(**given, **options, backend=backend)
    assert loss[1].isnan() and not loss[0].isnan()
    assert bool(stats.target_entropy[1].isnan()) == ("interpolation" in options)
    torch.testing.assert_close(stats.entropy.cpu(), torch.zeros(2))


@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
def test_an_excluded_tail_has_the_gradient_of_other_excluded_events(backend):
    """Where the student has probability 0 the loss is infinite and its gradient q - p, whether a token or the tail."""
    bias = torch.tensor([0.3, -0.2, 0.5, -math.inf, -math.inf])
    hidden, weight = torch.zeros(1, 4), torch.linspace(-1, 1, 20).view(5, 4)
    ids, p = torch.arange(3)[None], torch.tensor([[0.4, 0.2, 0.1]])
    given = {"hidden": hidden, "weight": weight, "bias": bias, "teacher_ids": ids, "teacher_log_prob": p.log()}
    given = on(device_of(backend), given)
    loss = linear_divergence(**{**given, "hidden": given["hidden"].requires_grad_()}, backend=backend)
    loss.backward()
    of_logits = torch.softmax(bias, 0)[:3] - p[0]
    assert loss == math.inf
    torch.testing.assert_close(given["hidden"].grad[0].cpu(), of_logits @ weight[:3])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("reduction", ["sum", "none", "mean"])
@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
def test_no_rows_at_all(backend, reduction, form):
    device = device_of(backend)
    hidden, weight = torch.empty(0, 8, device=device), torch.randn(31, 8, device=device)
    teacher = {
        "head": {"teacher_hidden": hidden, "teacher_weight": weight},
        "list": {
            "teacher_ids": torch.empty(0, 3, dtype=torch.int64, device=device),
            "teacher_log_prob": torch.empty(0, 3, device=device),
        },
    }[form]
    leaves = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    loss = linear_divergence(*leaves, **teacher, reduction=reduction, backend=backend)
    loss.sum().backward()
    assert loss.shape == ((0,) if reduction == "none" else ())
    assert leaves[0].grad.shape == (0, 8) and leaves[1].grad.nan_to_num().count_nonzero() == 0


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS[:4:3], ids=name_of)
@pytest.mark.parametrize(("chunk", "block"), [(1, 1), (5, 2), (64, 3)])
def test_chunk_sizes_change_nothing(monkeypatch, chunk, block, kind, form):
    inputs = make(23, 8, 31, form=form)
    whole = run(inputs, torch.float64, "torch", reduction="sum", weighted=True, **kind)
    monkeypatch.setattr(row_chunks, "_CHUNK_BYTES", {"cpu": 2 * chunk * 31 * 8})
    monkeypatch.setattr(row_chunks, "_BLOCK_BYTES", {"cpu": 4 * block * 31 * 4})
    for name, value in run(inputs, torch.float64, "torch", reduction="sum", weighted=True, **kind).items():
        torch.testing.assert_close(value, whole[name], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_opcheck(backend, reduction, form):
    inputs = on(device_of(backend), make(2, 8, 13, form=form, listed=3, dtype=torch.float32))
    teacher = {
        "head": lambda: HeadTeacher(inputs["teacher_hidden"], Head(inputs["teacher_weight"], temperature=0.9)),
        "list": lambda: ListTeacher(inputs["teacher_ids"], inputs["teacher_log_prob"], "renormalize"),
    }[form]()
    head = Head(inputs["weight"].requires_grad_(), None, 4.0, 0.9)
    kind = divergence_of("jsd", 0.5, None, None)
    hidden, row_weight = inputs["hidden"].requires_grad_(), inputs["row_weight"]
    opcheck(operator, DivergenceArguments(hidden, head, teacher, row_weight, kind, reduction, backend))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_compiles_whole(backend, reduction, form):
    inputs = on(device_of(backend), make(2, 8, 31, form=form, dtype=torch.float32))
    teacher = {name: value for name, value in inputs.items() if name.startswith("teacher")}

    def step(hidden, weight):
        return linear_divergence(hidden * 2, weight, **teacher, kind="jsd", reduction=reduction, backend=backend).sum()

    assert_compiles_whole(step, inputs["hidden"], inputs["weight"])


def test_retained_graph_statistics_and_stride_zero_upstream():
    inputs = make(12, 8, 31)
    inputs.pop("row_weight")
    hidden = inputs["hidden"].requires_grad_()
    loss, stats = linear_divergence(**inputs, reduction="none", return_stats=True)
    assert not any(value.requires_grad for value in vars(stats).values())
    loss.backward(torch.tensor(2.0).double().expand(12))
    once, hidden.grad = hidden.grad, None
    total = linear_divergence(**inputs, reduction="sum")
    total.backward(retain_graph=True)
    total.backward()
    torch.testing.assert_close(hidden.grad, once)


def test_autocast_takes_the_autocast_dtype():
    inputs = make(12, 8, 31, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = linear_divergence(**inputs)
    low = {name: value if name == "row_weight" else value.bfloat16() for name, value in inputs.items()}
    torch.testing.assert_close(loss, linear_divergence(**low), rtol=0, atol=0)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_strides_change_nothing(backend, form):
    inputs = make(4, 8, 31, form=form, dtype=torch.float32)
    strided = {name: torch.stack([t, torch.zeros_like(t)], -1).unbind(-1)[0] for name, t in inputs.items()}
    assert strided["hidden"].stride(1) == 2 and strided["row_weight"].stride(0) == 2
    plain = run(inputs, torch.float32, backend, weighted=True, reduction="sum")
    for name, found in run(strided, torch.float32, backend, weighted=True, reduction="sum").items():
        torch.testing.assert_close(found, plain[name])


HEAD = make(6, 8, 31, dtype=torch.float32)
LIST = make(6, 8, 31, form="list", listed=3, dtype=torch.float32)
HALVES = torch.full((6, 3), 0.5).log()


@pytest.mark.parametrize(
    "inputs, changes, error, message",
    [
        (HEAD, {"hidden": torch.zeros(6, 9)}, ValueError, r"same hidden size D"),
        (HEAD, {"hidden": torch.zeros(8)}, ValueError, r"hidden has shape \(8,\): expected at least 2 dimensions"),
        (HEAD, {"bias": torch.zeros(30)}, ValueError, r"bias has shape \(30,\): expected \(V,\) = \(31,\)"),
        (
            HEAD,
            {"teacher_hidden": torch.zeros(6, 9)},
            ValueError,
            r"teacher_hidden has shape \(6, 9\) and teacher_weight",
        ),
        (HEAD, {"teacher_hidden": torch.zeros(5, 13)}, ValueError, r"teacher_hidden .* expected \(N, D'\) = \(6, 13\)"),
        (
            HEAD,
            {"teacher_hidden": torch.zeros(6)},
            ValueError,
            r"teacher_hidden has shape \(6,\): expected at least 2 dimensions",
        ),
        (HEAD, {"teacher_hidden": torch.zeros(6, 13).long()}, TypeError, r"teacher_hidden has dtype torch.int64"),
        (
            HEAD,
            {"teacher_weight": torch.zeros(30, 13)},
            ValueError,
            r"teacher_weight .* expected \(V, D'\) = \(31, 13\)",
        ),
        (
            HEAD,
            {"teacher_weight": torch.zeros(31, 13).double()},
            TypeError,
            r"teacher_weight has dtype torch.float64: expected torch.float32, the dtype of teacher_hidden",
        ),
        (HEAD, {"teacher_bias": torch.zeros(30)}, ValueError, r"teacher_bias has shape \(30,\)"),
        (HEAD, {"teacher_softcap": 0.0}, ValueError, r"teacher_softcap is 0.0"),
        (HEAD, {"teacher_temperature": 0.0}, ValueError, r"teacher_temperature is 0.0: expected a positive finite"),
        (HEAD, {"teacher_temperature": torch.ones(())}, TypeError, r"teacher_temperature is a tensor"),
        (HEAD, {"teacher_hidden": None}, ValueError, r"teacher: expected either teacher_hidden and teacher_weight, or"),
        (HEAD, {"teacher_weight": None}, ValueError, r"teacher: expected either"),
        (HEAD, {"teacher_hidden": None, "teacher_weight": None}, ValueError, r"teacher: expected either"),
        (HEAD, {"teacher_ids": LIST["teacher_ids"]}, ValueError, r"teacher: expected either"),
        (LIST, {"teacher_ids": None}, ValueError, r"teacher: expected either"),
        (LIST, {"teacher_weight": HEAD["teacher_weight"]}, ValueError, r"teacher: expected either"),
        (LIST, {"teacher_bias": torch.zeros(31)}, ValueError, r"teacher_bias: expected None beside teacher_log_prob"),
        (LIST, {"teacher_softcap": 5.0}, ValueError, r"teacher_softcap: expected None beside teacher_log_prob"),
        (LIST, {"teacher_temperature": 1.0}, ValueError, r"teacher_temperature: expected None beside teacher_log_prob"),
        (
            LIST,
            {"teacher_ids": torch.zeros(6).long()},
            ValueError,
            r"teacher_ids .* expected at least 2 dimensions",
        ),
        (LIST, {"teacher_ids": torch.zeros(5, 3).long()}, ValueError, r"teacher_ids .* expected \(N, T\) = \(6, 3\)"),
        (
            LIST,
            {"teacher_ids": torch.zeros(6, 3)},
            TypeError,
            r"teacher_ids has dtype torch.float32: expected torch.int64",
        ),
        (
            LIST,
            {"teacher_ids": torch.zeros(6, 0).long(), "teacher_log_prob": torch.zeros(6, 0)},
            ValueError,
            r"teacher_ids .* expected T in \[1, 31\]",
        ),
        (
            LIST,
            {"teacher_ids": torch.tensor([[0, 1, 31]] * 6)},
            ValueError,
            r"teacher_ids: expected values in \[0, 31\)",
        ),
        (LIST, {"teacher_ids": torch.tensor([[0, 1, 0]] * 6)}, ValueError, r"teacher_ids: expected distinct ids"),
        (
            LIST,
            {"teacher_log_prob": torch.zeros(6, 2)},
            ValueError,
            r"teacher_log_prob .* expected \(N, T\) = \(6, 3\)",
        ),
        (LIST, {"teacher_log_prob": torch.zeros(6, 3).half()}, TypeError, r"teacher_log_prob has dtype torch.float16"),
        (
            LIST,
            {"teacher_log_prob": HALVES},
            ValueError,
            r"teacher_log_prob: expected probabilities that sum to at most 1",
        ),
        (
            LIST,
            {"teacher_log_prob": HALVES * math.nan},
            ValueError,
            r"teacher_log_prob: expected probabilities that sum",
        ),
        (
            LIST,
            {"teacher_log_prob": HALVES * math.nan, "tail": "renormalize"},
            ValueError,
            r"teacher_log_prob: expected numbers, or -inf for padding",
        ),
        (
            LIST,
            {"teacher_log_prob": HALVES + math.inf, "tail": "renormalize"},
            ValueError,
            r"teacher_log_prob: expected numbers, or -inf for padding",
        ),
        (
            LIST,
            {"teacher_ids": torch.tensor([[0, 1, 0]] * 6), "tail": "renormalize"},
            ValueError,
            r"teacher_ids: expected distinct ids in each row, save for padding",
        ),
        (LIST, {"tail": "renormalise"}, ValueError, r"tail is 'renormalise': expected one of 'bucket', 'renormalize'"),
        (HEAD, {"tail": "renormalize"}, ValueError, r"tail is 'renormalize': expected 'bucket' beside teacher_hidden"),
        (HEAD, {"teacher_mask": torch.ones(6, 3).bool()}, ValueError, r"teacher_mask: expected None beside teacher_h"),
        (LIST, {"teacher_mask": torch.ones(6, 3)}, TypeError, r"teacher_mask has dtype torch.float32: expected"),
        (LIST, {"teacher_mask": torch.ones(6, 2).bool()}, ValueError, r"teacher_mask .* expected \(N, T\) = \(6, 3\)"),
        (LIST, {"teacher_mask": [[True]]}, TypeError, r"teacher_mask is a list: expected a torch.Tensor"),
        (
            LIST,
            {"weight": torch.zeros(3, 8), "teacher_ids": torch.tensor([[0, 1, 2]] * 6), "teacher_log_prob": HALVES - 1},
            ValueError,
            r"teacher_log_prob: expected probabilities of all tokens to sum to 1",
        ),
        (HEAD, {"kind": "js"}, ValueError, r"kind is 'js': expected one of 'forward_kl', 'reverse_kl', 'jsd'"),
        (HEAD, {"beta": 0.5}, ValueError, r"beta is 0.5: expected None, since kind 'forward_kl' does not use it"),
        (HEAD, {"kind": "jsd", "skew": 0.1}, ValueError, r"skew is 0.1: expected None, since kind 'jsd'"),
        (HEAD, {"kind": "skew_reverse_kl", "interpolation": 0.1}, ValueError, r"interpolation is 0.1: expected None"),
        (HEAD, {"kind": "jsd", "beta": 0.0}, ValueError, r"beta is 0.0: .* \(0, 1\); .* 'forward_kl' and 'reverse_kl'"),
        (HEAD, {"kind": "jsd", "beta": 1}, ValueError, r"beta is 1: expected a number in \(0, 1\)"),
        (HEAD, {"kind": "skew_forward_kl", "skew": 1.0}, ValueError, r"skew is 1.0: expected a number in \(0, 1\)$"),
        (HEAD, {"kind": "taid"}, ValueError, r"interpolation is None: expected a number in \[0, 1\]"),
        (
            HEAD,
            {"kind": "taid", "interpolation": 1.5},
            ValueError,
            r"interpolation is 1.5: expected a number in \[0, 1\]",
        ),
        (HEAD, {"row_weight": torch.zeros(6, 1)}, ValueError, r"row_weight has shape \(6, 1\)"),
        (HEAD, {"row_weight": torch.zeros(6).long()}, TypeError, r"row_weight has dtype torch.int64"),
        (HEAD, {"row_weight": torch.zeros(6, requires_grad=True)}, ValueError, r"row_weight requires a gradient"),
        (HEAD, {"reduction": "max"}, ValueError, r"reduction is 'max'"),
        (HEAD, {"softcap": 0.0}, ValueError, r"softcap is 0.0"),
        (HEAD, {"temperature": float("nan")}, ValueError, r"temperature is nan"),
        (HEAD, {"backend": "fast"}, ValueError, r"backend is 'fast'"),
        (HEAD, {"backend": "cuda"}, BackendUnavailableError, r"'cuda' is not available on cpu"),
    ],
)
def test_bad_input_is_named(inputs, changes, error, message):
    with pytest.raises(error, match=message):
        linear_divergence(**inputs | changes)
