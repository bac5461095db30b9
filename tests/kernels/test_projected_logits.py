"""Logits in memory by the product of csrc/cpu/project.h, with every instruction set, against float64."""

from __future__ import annotations

import functools

import implementations
import pytest
import torch

from mind_kernels import compiled_head, extension
from mind_kernels.head import Head

DTYPES = torch.float32, torch.bfloat16, torch.float16
CPP = [
    implementation for implementation in implementations.of("linear_cross_entropy") if implementation.backend == "cpp"
]
each = functools.partial(implementations.each, of=CPP)
pytestmark = pytest.mark.skipif(not CPP, reason="no compiled library")
# Less than a vector, a strip and a block; whole ones; more than a span of vocabulary entries.
SIZES = [(1, 3, 5), (17, 8, 101), (49, 330, 97), (96, 16, 96), (100, 65, 1700)]


def inputs_of(rows, size, vocabulary, dtype):
    generator = torch.Generator().manual_seed(0)
    shapes = (rows, size), (vocabulary, size), (vocabulary,)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


@each(SIZES, names="sizes", dtypes=DTYPES)
def test_logits(implementation, dtype, sizes):
    hidden, weight, bias = inputs_of(*sizes, dtype)
    out = torch.full((sizes[0], sizes[2] + 3), 7.0)
    extension.operators("cpp").project(hidden, weight, bias, out[:, :-3])
    truth = hidden.double() @ weight.double().T
    size = hidden.double().abs() @ weight.double().abs().T + 1  # of what is summed
    assert ((out[:, :-3] - (truth + bias.double())).abs() <= 1e-6 * size).all()
    assert (out[:, -3:] == 7).all()
    extension.operators("cpp").project(hidden, weight, None, out[:, :-3])
    assert ((out[:, :-3] - truth).abs() <= 1e-6 * size).all()


@each()
def test_threads_change_nothing(implementation):
    hidden, weight, _ = inputs_of(100, 65, 3500, torch.float32)
    out, threads = [torch.empty(100, 3500) for _ in range(2)], torch.get_num_threads()
    try:
        for count, logits in zip((1, 3), out, strict=True):
            torch.set_num_threads(count)
            extension.operators("cpp").project(hidden, weight, None, logits)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*out)


@pytest.mark.parametrize(
    ("rows", "size", "vocabulary", "dtype", "ours"),
    [
        (15, 256, 300, torch.float32, False),
        (16, 256, 300, torch.float32, True),
        (16, 255, 300, torch.float32, False),
        (193, 256, 300, torch.float32, False),
        (1, 256, 8192, torch.bfloat16, True),
        (1, 256, 8191, torch.bfloat16, False),
        (16, 256, 300, torch.float64, False),
    ],
)
def test_which_product_a_head_takes(monkeypatch, rows, size, vocabulary, dtype, ours):
    calls, operators = [], extension.operators

    def counted(library):
        calls.append(library)
        return operators(library)

    monkeypatch.setattr(compiled_head.extension, "operators", counted)
    hidden, weight, bias = inputs_of(rows, size, vocabulary, dtype)
    found = compiled_head.CompiledHead(weight, bias).project_wide(hidden)
    assert calls == ["cpp"] * ours
    torch.testing.assert_close(found, Head(weight, bias).project_wide(hidden), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("argument", "change", "message"),
    [
        (0, lambda t: t.T, "hidden has rows that are not contiguous"),
        (0, lambda t: t[:, :0], r"weight has shape \(101, 8\): expected \(101, 0\)"),
        (1, lambda t: t.bfloat16(), "weight has dtype BFloat16: expected Float"),
        (2, lambda t: t[:5], r"bias has shape \(5\): expected \(101\)"),
        (3, lambda t: t[:, :7], r"logits has shape \(17, 7\): expected \(17, 101\)"),
        (3, lambda t: t.half(), "logits has dtype Half: expected Float"),
        (3, lambda t: t[:1].expand(17, 101), "logits has rows that overlap"),
    ],
)
def test_wrong_arguments_are_named(argument, change, message):
    arguments = [*inputs_of(17, 8, 101, torch.float32), torch.empty(17, 101)]
    arguments[argument] = change(arguments[argument])
    with pytest.raises(RuntimeError, match=message):
        extension.operators("cpp").project(*arguments)
