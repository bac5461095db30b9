"""The exact gradient of backend `cpp` by its own products, of a head that is split: with every instruction set."""

from __future__ import annotations

import functools
from dataclasses import replace
from functools import partial
from typing import Any

import implementations
import pytest
import torch
from cases import DTYPES
from kernel_cases import EVERYTHING, PLAIN, Options, inputs_of, unluckiest
from shard_cases import columns, joined, shards_of
from test_exact_rows import NAMES, eager_gradients, exact_spec
from test_streamed_rows import CPP, SPAN, kernels

from mind_kernels import extension
from mind_kernels.head import Head, HeadGradients
from mind_kernels.linear_cross_entropy import streamed_rows
from mind_kernels.linear_cross_entropy.contract import RowSpec, RowTerms, RowWeights
from mind_kernels.linear_cross_entropy.shard_contract import GradientTerms, RowSums
from mind_kernels.row_chunks import chunks
from mind_kernels.testing import assert_within_budget

each = functools.partial(implementations.each, of=CPP)


def spec_of(spec: RowSpec, part: slice) -> RowSpec:
    """That of these entries of the vocabulary."""
    head = spec.head
    bias = None if head.bias is None else head.bias[part]
    return spec.with_head(Head(head.weight[part], bias, head.softcap, head.temperature))


def gradients_of(implementation, hidden, target, weights, spec, sizes):
    """Statistics, and the gradients by name, of all rows: what the processes of a group have together."""
    shards, rows, vocabulary = shards_of(sizes), len(hidden), spec.head.vocabulary
    specs = [spec_of(spec, columns(shard)) for shard in shards]
    exact = [kernels(implementation).exact_shards(rows, hidden, spec, max(sizes)) for spec in specs]
    gradients = [HeadGradients(hidden, spec.head, [True, True, True]) for spec in specs]
    terms = RowTerms.zeros(rows, hidden, sparse=False)
    assert len({each.size for each in exact}) == 1
    for chunk in chunks(rows, exact[0].size):
        part, y = hidden[chunk], target[chunk]
        found = [
            shards_rows.chunk(part, shard.local(y)) if shard.size else None
            for shards_rows, shard in zip(exact, shards, strict=True)
        ]
        sums = [RowSums.empty(len(part), part) if of_shard is None else of_shard.sums for of_shard in found]
        for of_shard, whole, into in zip(found, joined(shards, sums, y, spec), gradients, strict=True):
            terms.write(chunk, whole.values)
            if of_shard is not None:
                of_rows = whole.terms(weights[chunk], spec, vocabulary)
                into.write_products(chunk, len(part), partial(of_shard.write_products, of_rows))
    parts = zip(*(into.results(hidden.shape) for into in gradients), strict=True)
    of_hidden, of_weight, of_bias = map(list, parts)
    return terms.values, dict(zip(NAMES, (sum(of_hidden), torch.cat(of_weight), torch.cat(of_bias)), strict=True))


@each(
    [PLAIN, Options(temperature=1.3, label_smoothing=0.1), EVERYTHING],
    [
        ((16, 1), (3, 2)),
        ((49, 321), (96, 0, 97)),
        ((100, 45), (1, 96)),
        ((230, 33), (70, 70, 71)),
        ((33, 50), (SPAN + 5, 8)),
    ],
    names="options shape",
    dtypes=DTYPES,
)
def test_gradients_match_float64(implementation, dtype, options, shape, monkeypatch):
    """Shards that end inside a block, and empty ones; entries ruled out, and in one case all of a shard."""
    monkeypatch.setattr(streamed_rows, "_MOST_STRIPS", 2)
    (rows, size), sizes = shape
    vocabulary, bias = sum(sizes), not options.label_smoothing or rows % 2 == 0
    if bias:  # beside label smoothing no entry may be ruled out
        options = replace(options, label_smoothing=0.0)
    hidden, weight, added, target = inputs_of(rows, size, vocabulary, dtype=dtype, bias=bias)
    generator = torch.Generator().manual_seed(3)
    scale, entropy_scale = torch.randn(2, rows, generator=generator)
    scale[rows // 2] = 0.0
    weights, spec = options.weights(scale, entropy_scale), exact_spec(options, weight, added)
    values, found = gradients_of(implementation, hidden, target, weights, spec, sizes)
    expected = kernels(implementation).statistics(hidden, target, spec)
    assert torch.equal(values.correct, expected.correct)
    torch.testing.assert_close(values[:-1], expected[:-1], rtol=2e-6, atol=2e-6)
    eager = functools.partial(eager_gradients, hidden, weight, added, target, scale, entropy_scale, options)
    truth = eager(torch.float64, torch.arange(vocabulary))
    peer = unluckiest(functools.partial(eager, torch.float32), vocabulary, truth)
    # 2 as test_exact_rows.py; without fused multiply-adds one of 16 entries of the smallest case needs 2 % more.
    assert_within_budget(found, peer, truth, dtype, conditioning=2.5)


@each()
def test_a_shard_that_is_ruled_out(implementation):
    """By a bias of minus infinity: it has no probability, and its entries no gradient."""
    hidden, weight, _, target = inputs_of(20, 9, 200)
    bias = torch.zeros(200)
    bias[:120] = -torch.inf
    target = 120 + target % 80
    weights = RowWeights(torch.ones(20), torch.ones(20))
    _, found = gradients_of(implementation, hidden, target, weights, exact_spec(PLAIN, weight, bias), (100, 20, 80))
    _, expected = gradients_of(
        implementation, hidden, target - 120, weights, exact_spec(PLAIN, weight[120:], bias[120:]), (80,)
    )
    assert not found["weight"][:120].any() and not found["bias"][:120].any()
    torch.testing.assert_close(found["hidden"], expected["hidden"])
    torch.testing.assert_close(found["weight"][120:], expected["weight"])


@each([((0, 60), (5, 7)), ((96, 97), (0, 40))], names="ties")
def test_the_first_of_equal_ones(implementation, ties):
    """In one block and in two, of one shard and of two."""
    hidden, weight = torch.ones(16, 1), torch.zeros(200, 1)
    (a, b), (c, d) = ties
    weight[[a, b]] = 5.0
    spec, kernel = exact_spec(PLAIN, weight, None), kernels(implementation)
    sums = kernel.exact_shards(16, hidden, spec, 200).chunk(hidden, torch.full((16,), -1)).sums
    assert sums.argmax.tolist() == [a] * 16
    weight[[a, b]], weight[[c, d]] = 0.0, -1.0  # all but two are equal
    sums = kernel.exact_shards(16, hidden, spec, 200).chunk(hidden, torch.full((16,), -1)).sums
    assert sums.argmax.tolist() == [0 if 0 not in (c, d) else 1] * 16


def shard_arguments() -> dict[str, dict[str, Any]]:
    """Of both operators, by name: 17 rows, depth 8, a shard of 101 entries."""
    hidden, weight, bias, target = inputs_of(17, 8, 101, bias=True)
    target[3] = -1
    conditions = {"softcap": 0.0, "temperature": 1.0}
    logits = torch.zeros(192, 32)
    sums = {"adds_logits": True, "sums": torch.zeros(5, 17), "argmax": torch.full((17,), -1)}
    head = {"hidden": hidden, "weight": weight}
    given = {"bias": bias, "target": target} | conditions | sums | {"logits": logits}
    terms = dict(zip(GradientTerms._fields, torch.ones(6, 17), strict=True))
    results = {"of_hidden": torch.zeros(17, 8), "of_weight": torch.zeros(101, 8), "add_weight": True}
    products = {"logits": torch.randn(192, 32)} | head | {"target": target} | conditions | terms | results
    return {"stream_shard_sums": head | given, "shard_products": products | {"of_bias": torch.zeros(101)}}


@pytest.mark.skipif(not CPP, reason="no compiled library")
@pytest.mark.parametrize("name", ["stream_shard_sums", "shard_products"])
def test_schemas(name):
    operator, arguments = getattr(extension.operators("cpp"), name), shard_arguments()[name]
    schema = operator.default._schema
    assert [argument.name for argument in schema.arguments] == list(arguments)
    written = {argument.name for argument in schema.arguments if argument.alias_info and argument.alias_info.is_write}
    before = {name: value.clone() for name, value in arguments.items() if isinstance(value, torch.Tensor)}
    operator(*arguments.values())
    assert {name for name, value in before.items() if not torch.equal(value, arguments[name])} == written


@pytest.mark.skipif(not CPP, reason="no compiled library")
@pytest.mark.parametrize(
    ("name", "argument", "change", "message"),
    [
        ("stream_shard_sums", "target", lambda t: t - 2, r"target\[0\] is -2: expected -1 to 100"),
        ("stream_shard_sums", "sums", lambda t: t[1:], r"sums has shape \(4, 17\): expected \(5, 17\)"),
        ("stream_shard_sums", "argmax", lambda t: t.int(), "argmax has dtype"),
        ("stream_shard_sums", "logits", lambda t: t[:96], r"logits has shape \(96, 32\): expected \(192, 32\) or more"),
        ("stream_shard_sums", "weight", lambda t: t[:0], "weight has 0 rows"),
        ("shard_products", "target", lambda t: t + 1, r"target\[16\] is 101: expected -1 to 100"),
        ("shard_products", "maximum", lambda t: t[1:], "maximum has shape"),
        ("shard_products", "b", lambda t: t.double(), "b has dtype"),
        ("shard_products", "of_weight", lambda t: t.bfloat16(), "of_weight has dtype"),
    ],
)
def test_wrong_arguments_are_named(name, argument, change, message):
    arguments = shard_arguments()[name]
    arguments[argument] = change(arguments[argument])
    with pytest.raises(RuntimeError, match=message):
        getattr(extension.operators("cpp"), name)(*arguments.values())
