"""The gradients of linear_divergence by products of backend `cpp`'s own, with every instruction set."""

from __future__ import annotations

import functools
import math
from typing import Any

import implementations
import pytest
import torch
from divergence_cases import FORMS, NEARLY_THE_TEACHER, assert_matches_float64, make, run

from mind_kernels import linear_divergence
from mind_kernels.head import Head
from mind_kernels.linear_divergence import backend_cpp, streamed_rows
from mind_kernels.linear_divergence.contract import OwnProducts
from mind_kernels.linear_divergence.kinds import divergence_of
from mind_kernels.linear_divergence.teachers import HeadTeacher, ListTeacher
from mind_kernels.testing import make_inputs

CPP = [each for each in implementations.of("linear_divergence") if each.backend == "cpp"]
each = functools.partial(implementations.each, of=CPP)
SPAN = 96 * 64  # vocabulary entries that are summed at a time: kSpan in csrc/cpu/stream_operators.cpp
HALF = (torch.float32, torch.bfloat16, torch.float16)
# A form of the gradient each: q - p, q (F' - S) of the reverse divergence and of a mixture.
KINDS = ({"kind": "forward_kl"}, {"kind": "reverse_kl"}, {"kind": "jsd", "beta": 0.3})
PLAIN = {"reduction": "mean"}
EVERYTHING = {
    "reduction": "none",
    "weighted": True,
    "biased": True,
    "softcap": 5.0,
    "teacher_softcap": 7.0,
    "temperature": 0.7,
    "teacher_temperature": 1.6,
}
SCALED = {"reduction": "sum", "temperature": 0.7, "biased": True}
SHAPES = [(37, 33, 1009), (49, 321, 193), (100, 45, 97)]


@each([PLAIN, SCALED, EVERYTHING], SHAPES, FORMS, names="options shape form", dtypes=HALF)
def test_gradients_match_float64(implementation, dtype, options, shape, form, monkeypatch):
    """Rows, depths and vocabularies that end inside a vector, a panel, a strip, a block, a chunk."""
    monkeypatch.setattr(streamed_rows, "_MOST_ROWS", 48)
    kind = KINDS[(shape[0] + len(options)) % 3]
    inputs = make(*shape, form=form, dtype=dtype, seed=3)
    assert_matches_float64(inputs, dtype, "cpp", **kind, **options)


@each(KINDS, FORMS, names="kind form")
def test_more_than_a_span(implementation, kind, form):
    assert_matches_float64(make(33, 50, SPAN + 13, form=form, dtype=torch.float32), torch.float32, "cpp", **kind)


@each(KINDS, [PLAIN, EVERYTHING], names="kind options")
def test_equal_heads_give_exactly_zero(implementation, kind, options):
    inputs = make(40, 33, 211, dtype=torch.float32)
    inputs |= {"teacher_hidden": inputs["hidden"], "teacher_weight": inputs["weight"]}
    same = {name: value for name, value in options.items() if not name.startswith("teacher_") and name != "biased"}
    if "softcap" in same:
        same["teacher_softcap"] = same["softcap"]
    found = run(inputs, torch.float32, "cpp", **kind, **same)
    assert not any(found[name].any() for name in ("divergence", "d_hidden", "d_weight"))


@each(KINDS, FORMS, [torch.nan, torch.inf], names="kind form value")
def test_a_row_that_is_not_finite(implementation, kind, form, value):
    """Its own gradient is nan, those of other rows are what they are without it."""
    inputs = make(40, 16, 211, form=form, dtype=torch.float32)
    clean = run(inputs, torch.float32, "cpp", reduction="sum", **kind)
    inputs["hidden"][7] = value
    found = run(inputs, torch.float32, "cpp", reduction="sum", **kind)
    others = torch.arange(40) != 7
    assert found["d_hidden"][7].isnan().all() and torch.equal(found["d_hidden"][others], clean["d_hidden"][others])
    assert not found["divergence"][7].isfinite()
    assert torch.equal(found["divergence"][others], clean["divergence"][others])


@each(KINDS, FORMS, names="kind form")
def test_the_same_bits_for_the_same_threads(implementation, kind, form):
    """All but dH do not depend on the number of threads, and it does by the rounding of a sum of as many parts."""
    inputs = make(70, 50, 1003, form=form, dtype=torch.float32)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 3, 3, 40):
            torch.set_num_threads(threads)
            results.append(run(inputs, torch.float32, "cpp", biased=True, **kind))
    finally:
        torch.set_num_threads(before)
    one, three, again, many = results
    assert all(torch.equal(three[name], again[name]) for name in three)
    for other in (three, many):
        torch.testing.assert_close(one["d_hidden"], other["d_hidden"], rtol=1e-5, atol=1e-5)
        assert all(torch.equal(one[name], other[name]) for name in one if name != "d_hidden")


def with_logits(student, teacher):
    """Inputs whose 48 rows have nearly these logits (V,): a column of hidden states is 1. Rows differ by about 1e-4."""
    inputs = make(48, 16, len(student), dtype=torch.float32)
    for side, logits in (("", student), ("teacher_", teacher)):
        inputs[f"{side}hidden"] *= 0.01
        inputs[f"{side}hidden"][:, -1] = 1
        inputs[f"{side}weight"] *= 0.01
        inputs[f"{side}weight"][:, -1] = logits
    return inputs


def peaked(place, rest):
    """Logits (1000,) of a token and of others that have about `rest` of the probability."""
    logits = torch.full((1000,), math.log(rest / 1000))
    logits[place] = 0
    return logits


def relative_errors(inputs, *backends):
    """Of the gradients of hidden states and head by forward_kl in float32, (2,) for each backend."""
    truth = run(dict(inputs), torch.float64, "reference")
    results = [run(dict(inputs), torch.float32, backend) for backend in backends]
    return [
        torch.stack([(found[name] - truth[name]).norm() / truth[name].norm() for name in ("d_hidden", "d_weight")])
        for found in results
    ]


@each([1e-2, 1e-4, 1e-6], [0, 500], names="rest place")
def test_confident_rows(implementation, rest, place):
    """The gradient of a row that is `rest` away from a confident teacher: small terms have the digits of 1 - q."""
    inputs = with_logits(peaked(place, rest), peaked(place, 1e-80))
    (errors,) = relative_errors(inputs, "cpp")
    assert errors.max() < 3e-6


@each([0, 500], names="place")
def test_nearly_equal_confident_sides(implementation, place):
    """They err by roundings of both sides' logits, as in plain PyTorch, and not of the normalizers."""
    student = peaked(place, 1e-4)
    inputs = with_logits(student, student)
    noise = 1e-4 * torch.randn(1000, generator=torch.Generator().manual_seed(0))
    teacher = inputs["weight"] + noise[:, None] * (torch.arange(16) == 15)
    inputs |= {"teacher_hidden": inputs["hidden"], "teacher_weight": teacher}
    errors, of_torch = relative_errors(inputs, "cpp", "torch")
    assert (errors < 2 * of_torch).all()


@each(NEARLY_THE_TEACHER, names="kind")
def test_a_mixture_that_is_nearly_the_teacher(implementation, kind):
    """What it has of the student counts where the teacher has nothing."""
    inputs = make(20, 16, 211, dtype=torch.float32)
    bias = torch.zeros(211).index_fill(0, torch.arange(5, 9), -torch.inf)
    found = run(inputs | {"teacher_bias": bias}, torch.float32, "cpp", reduction="sum", **kind)
    truth = run(inputs | {"teacher_bias": bias.double()}, torch.float64, "reference", reduction="sum", **kind)
    for name, value in truth.items():
        assert (found[name] - value).norm() < 1e-4 * value.norm(), name


def test_a_teacher_in_float64():
    inputs = make(20, 8, 50, dtype=torch.float32)
    gradients = []
    for dtype in (torch.float32, torch.float64):
        hidden = inputs["hidden"].clone().requires_grad_()
        teacher = inputs["teacher_hidden"].to(dtype), inputs["teacher_weight"].to(dtype)
        linear_divergence(hidden, inputs["weight"], *teacher, backend="cpp").backward()
        gradients.append(hidden.grad)
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-7)


@each(names="")
def test_a_nan_of_a_token_that_is_not_listed(implementation):
    inputs = make(20, 8, 50, form="list", dtype=torch.float32)
    listed = torch.zeros(20, 50, dtype=torch.bool).scatter_(1, inputs["teacher_ids"], True)
    place = int(listed.sum(0).argmin())
    inputs["weight"][place] = torch.nan
    found = run(inputs, torch.float32, "cpp", reduction="none", tail="renormalize")
    assert not listed[:, place].all() and found["divergence"].isnan()[~listed[:, place]].all()


@each(FORMS, names="form")
def test_only_what_is_needed(implementation, form):
    inputs = make(60, 21, 301, form=form, dtype=torch.float32)
    every = run(dict(inputs), torch.float32, "cpp", biased=True)
    given: dict[str, Any] = {name: value for name, value in inputs.items() if name.startswith("teacher_")}
    if form == "head":
        given["teacher_bias"] = torch.linspace(1, 0, 301)
    names = ("hidden", "weight", "bias")
    for name in names:
        values: dict[str, Any] = {"hidden": inputs["hidden"], "weight": inputs["weight"]}
        values["bias"] = torch.linspace(-1, 1, 301)
        values[name] = values[name].clone().requires_grad_()
        linear_divergence(**values, **given, backend="cpp").backward(torch.tensor(-1.0))
        assert torch.equal(values[name].grad, every[f"d_{name}"])


def test_what_they_serve():
    """Few rows, hidden states without columns and logits in between are left to the row kernels."""
    inputs = make_inputs(40, 8, 31, dtype=torch.float32)
    hidden, head = inputs["hidden"], Head(inputs["weight"])
    forward, taid = divergence_of("forward_kl", None, None, None), divergence_of("taid", None, None, 0.5)
    assert isinstance(backend_cpp, OwnProducts)
    given = hidden, head, HeadTeacher(hidden, head)
    assert backend_cpp.exact_rows(40, *given, forward) is not None
    assert backend_cpp.exact_rows(15, *given, forward) is None
    assert backend_cpp.exact_rows(40, *given, taid) is None
    wide = HeadTeacher(hidden.double(), Head(inputs["weight"].double()))
    assert backend_cpp.exact_rows(40, hidden, head, wide, forward) is None
    empty = HeadTeacher(hidden[:, :0], Head(inputs["weight"][:, :0]))
    assert backend_cpp.exact_rows(40, hidden, head, empty, forward) is None


@pytest.mark.parametrize(("listed", "expected"), [(None, 128), (64, 192), (49152, 16)])
def test_a_chunk_fits_48_mebibytes(listed, expected):
    """Both sides' logits, or the student's and 12 numbers per listed token."""
    hidden, head = torch.zeros(1024, 1), Head(torch.zeros(49152, 1))
    teacher = HeadTeacher(hidden, head)
    if listed is not None:
        teacher = ListTeacher(
            torch.zeros(()).long().expand(1024, listed), torch.zeros(()).expand(1024, listed), "bucket"
        )
    rows = backend_cpp.exact_rows(1024, hidden, head, teacher, divergence_of("forward_kl", None, None, None))
    assert rows is not None and rows.size == expected
    assert 4 * rows.size * (49152 * 2 if listed is None else 49152 + 12 * listed) <= 48 << 20
