"""Numbers and names that are of another kind: one line that names the argument, what it is and what was expected."""

from __future__ import annotations

import re
from functools import partial

import numpy as np
import pytest
import torch

from mind_kernels import (
    Head,
    linear_cross_entropy,
    linear_divergence,
    linear_log_prob,
    linear_mind_loss,
    linear_top_k,
)

ROWS, SIZE, VOCABULARY = 6, 4, 31


def calls():
    """Every function with what it cannot do without, by name."""
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(rows, SIZE, generator=generator) for rows in (ROWS, VOCABULARY))
    target = torch.arange(ROWS)
    ids, log_prob, _ = linear_top_k(hidden, weight, 5)
    return {
        "cross_entropy": partial(linear_cross_entropy, hidden, weight, target),
        "log_prob": partial(linear_log_prob, hidden, weight, target),
        "divergence": partial(linear_divergence, hidden, weight, hidden, weight),
        "list": partial(linear_divergence, hidden, weight, teacher_ids=ids, teacher_log_prob=log_prob),
        "top_k": partial(linear_top_k, hidden, weight, 3),
    }


NAMES = ["cross_entropy", "log_prob", "divergence", "list", "top_k"]
backends = pytest.mark.parametrize("backend", ["torch", "reference"])


def assert_named(call, error, message):
    with pytest.raises(error) as raised:
        call()
    assert re.match(message, str(raised.value)), str(raised.value)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 250


@backends
@pytest.mark.parametrize("name", NAMES)
def test_what_is_no_number(name, backend):
    call = partial(calls()[name], backend=backend)
    for value, said in [
        (np.ones(5000), r"a ndarray of shape \(5000,\)"),
        (np.array(0.7), r"array\(0.7\)"),
        ([1.0] * 5000, r"\[1.0, .*\.\.\.\]"),
        ("1", "'1'"),
        ([torch.ones(2, 2)], r"\[tensor\(.*\]"),
    ]:
        for argument in ("temperature", "softcap"):
            assert_named(partial(call, **{argument: value}), TypeError, rf"{argument} is {said}: expected a number")
    assert_named(partial(call, temperature=None), TypeError, "temperature is None: expected a positive finite number$")
    for other in (["torch"], None, 1):
        assert_named(partial(calls()[name], backend=other), ValueError, r"backend is .*: expected 'auto' or one of")


@backends
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("number", [np.float32(0.7), np.float64(0.7)])
def test_a_number_of_numpy_is_one(name, backend, number):
    call = calls()[name]
    found, expected = (call(temperature=each, backend=backend) for each in (number, float(number)))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_a_temperature_per_row_is_said_to_be_possible():
    for value in ([1.0] * ROWS, np.ones(ROWS)):
        call = partial(calls()["log_prob"], temperature=value)
        assert_named(call, TypeError, r"temperature is .*: expected a number or a torch.Tensor, one per row$")


@pytest.mark.parametrize("name", ["cross_entropy", "divergence", "top_k"])
@pytest.mark.parametrize("value", [torch.ones(ROWS), np.ones(ROWS), 2.0])
def test_a_temperature_beside_a_head(name, value):
    call = calls()[name]
    hidden, weight, *others = call.args
    call = partial(call.func, hidden, Head(weight), *others, temperature=value)
    assert_named(call, ValueError, "temperature: expected none beside a Head as weight")


@backends
@pytest.mark.parametrize("name", ["cross_entropy", "log_prob"])
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"ignore_index": None}, TypeError, "ignore_index is None: expected an integer"),
        ({"ignore_index": -100.0}, TypeError, "ignore_index is -100.0: expected an integer"),
        ({"ignore_index": np.array([-100])}, TypeError, r"ignore_index is a ndarray of shape \(1,\): expected"),
        ({"ignore_index": 2**70}, ValueError, "ignore_index is 1180591620717411303424: expected .* 64 bits"),
        ({"extra_stats": None}, TypeError, r"extra_stats is None: expected .* such as \('predicted',\)"),
        ({"extra_stats": 3}, TypeError, r"extra_stats is 3: expected a sequence of names"),
        ({"extra_stats": "predicted"}, TypeError, r"extra_stats is 'predicted': .* such as \('predicted',\)"),
        ({"gradient_threshold": np.ones(2)}, TypeError, r"gradient_threshold is a ndarray of shape \(2,\)"),
    ],
)
def test_arguments_of_rows(name, backend, options, error, message):
    call = partial(calls()[name], return_stats=True, backend=backend, **options)
    assert_named(call, error, message)


@pytest.mark.parametrize("name", ["cross_entropy", "log_prob"])
def test_what_names_statistics_once_is_enough(name):
    call = partial(calls()[name], return_stats=True)
    _, expected = call(extra_stats=("mean_logit", "predicted"))
    _, found = call(extra_stats=(name for name in ("predicted", "mean_logit")))
    assert torch.equal(found.predicted, expected.predicted)
    assert torch.equal(found.mean_logit, expected.mean_logit)


@pytest.mark.parametrize("name", ["label_smoothing", "z_loss"])
def test_none_is_not_zero(name):
    call = partial(calls()["cross_entropy"], **{name: None})
    assert_named(call, TypeError, f"{name} is None: expected a number")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"kind": ["jsd"]}, ValueError, r"kind is \['jsd'\]: expected one of"),
        ({"kind": "jsd", "beta": np.ones(2)}, TypeError, r"beta is a ndarray of shape \(2,\): expected a number"),
        ({"teacher_temperature": np.ones(2)}, TypeError, r"teacher_temperature is a ndarray of shape \(2,\)"),
    ],
)
def test_arguments_of_a_divergence(options, error, message):
    assert_named(partial(calls()["divergence"], **options), error, message)


def test_what_of_a_teacher_was_given_is_said():
    hidden, weight, *_ = calls()["divergence"].args
    ids = calls()["list"].keywords["teacher_ids"]
    for given, said in [
        ({}, "none of them"),
        ({"teacher_ids": ids, "teacher_mask": ids > 3}, "teacher_ids, teacher_mask"),
    ]:
        call = partial(linear_divergence, hidden, weight, **given)
        assert_named(
            call, ValueError, f"teacher: expected either teacher_hidden and teacher_weight, or .*, got {said}$"
        )


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_nested_tensors_are_refused(layout):
    call = calls()["top_k"]
    hidden, weight, k = call.args
    nested = torch.nested.nested_tensor([hidden, hidden[:2]], layout=layout)
    assert_named(partial(linear_top_k, nested, weight, k), TypeError, "hidden is a nested tensor: expected")


def test_how_many_tokens():
    hidden, weight, _ = calls()["top_k"].args
    for k in (np.array([3]), [3]):
        assert_named(partial(linear_top_k, hidden, weight, k), TypeError, "k is .*: expected an integer")
    assert torch.equal(linear_top_k(hidden, weight, np.int32(3)).ids, linear_top_k(hidden, weight, 3).ids)


@backends
def test_a_wrong_value_is_said(backend):
    """And where it is."""
    log_prob = partial(calls()["log_prob"], backend=backend)
    temperature = torch.ones(ROWS)
    temperature[4] = -0.25
    call = partial(log_prob, temperature=temperature)
    assert_named(call, ValueError, r"temperature: expected positive .*, got -0.25 in row 4$")
    whole = calls()["list"].keywords
    changes = [
        ("teacher_ids", 99, r"teacher_ids: expected values in \[0, 31\), got 99 in row 3$"),
        ("teacher_ids", int(whole["teacher_ids"][3, 1]), r"teacher_ids: expected distinct ids .*, got \d+ in row 3$"),
        ("teacher_log_prob", 0.5, r"teacher_log_prob: expected probabilities that sum .*, got [12]\.\d+ in row 3$"),
    ]
    for name, value, message in changes:
        changed = whole[name].clone()
        changed[3, 0] = value
        assert_named(partial(calls()["list"], **{name: changed}, backend=backend), ValueError, message)
    target = torch.zeros(ROWS, 0, dtype=torch.int64)
    hidden, weight, _ = log_prob.args
    assert_named(
        partial(linear_log_prob, hidden, weight, target, backend=backend),
        ValueError,
        r"target has shape \(6, 0\): expected \(N, K\) = \(6, K\) with K at least 1$",
    )


@backends
@pytest.mark.parametrize("name", NAMES)
def test_numbers_that_float32_does_not_hold(name, backend):
    call = partial(calls()[name], backend=backend)
    for argument in ("temperature", "softcap"):
        for value, said in [
            (1e-320, "1e-320"),
            (1e39, r"1e\+39"),
            (2**60, None),
            (2**70, "1180591620717411303424"),
        ]:
            if said is None:
                call(**{argument: value})
                continue
            expected = "a number of at most 64 bits" if value == 2**70 else "1.2e-38 to 3.4e\\+38, as in float32"
            assert_named(partial(call, **{argument: value}), ValueError, f"{argument} is {said}: expected {expected}$")


@backends
@pytest.mark.parametrize("name", ["cross_entropy", "log_prob", "divergence", "list"])
def test_whether_to_return_statistics(name, backend):
    call = partial(calls()[name], backend=backend)
    for value in (np.ones(3), torch.ones(3), (), "yes", None):
        assert_named(partial(call, return_stats=value), TypeError, "return_stats is .*: expected True or False$")
    assert len(call(return_stats=1)) == 2


@backends
def test_truths_and_arrays_are_no_integers(backend):
    top_k = partial(linear_top_k, *calls()["top_k"].args[:2], backend=backend)
    for value in (True, np.array(0.5), torch.tensor(3)):
        assert_named(partial(top_k, value), TypeError, "k is .*: expected an integer")
        for name in ("cross_entropy", "log_prob"):
            call = partial(calls()[name], ignore_index=value, backend=backend)
            assert_named(call, TypeError, "ignore_index is .*: expected an integer")
    hidden, weight, target = calls()["cross_entropy"].args
    call = partial(linear_cross_entropy, hidden, weight, target, segment=target, num_segments=True, backend=backend)
    assert_named(call, TypeError, "num_segments is True: expected an integer")


@backends
def test_weights_of_eight_bits(backend):
    hidden, weight, target = calls()["cross_entropy"].args
    row_weight = torch.ones(ROWS).to(torch.float8_e4m3fn)
    for name, call in (
        ("row_weight", partial(linear_cross_entropy, hidden, weight, target, row_weight=row_weight)),
        ("temperature", partial(linear_log_prob, hidden, weight, target, temperature=row_weight)),
    ):
        message = f"{name} has dtype torch.float8_e4m3fn: expected one of torch.float64, torch.float32, "
        assert_named(partial(call, backend=backend), TypeError, message)


def test_row_weights_are_required_by_the_joint_loss():
    hidden, weight, target = calls()["cross_entropy"].args
    groups = torch.arange(4).view(2, 2), torch.ones(2, 2, 2)
    call = partial(linear_mind_loss, hidden, weight, target, None, *groups)
    assert_named(call, TypeError, "row_weight is a NoneType: expected a torch.Tensor$")
