"""The operators under the streamed rows of backend `cpp` (csrc/cpu/stream_operators.cpp): schemas, errors, order."""

from __future__ import annotations

import pytest
import torch
from kernel_cases import inputs_of
from test_streamed_rows import CPP, SPAN, each, kernels

from mind_kernels import extension, sparse_gradient
from mind_kernels.linear_cross_entropy.compiled_rows import ROW_NUMBERS


def stream_statistics():
    hidden, weight, bias, target = inputs_of(17, 8, 101, bias=True)
    results = {"numbers": torch.zeros(len(ROW_NUMBERS), 17), "correct": torch.zeros(17, dtype=torch.bool)}
    options = {"softcap": 0.0, "temperature": 1.0, "label_smoothing": 0.0, "z_loss": 0.0, "temperatures": None}
    given = {"hidden": hidden, "weight": weight, "bias": bias, "target": target}
    return given | options | results | {"logits": torch.zeros(192, 32)}


def stream_kept():
    arguments = stream_statistics()
    del arguments["logits"], arguments["temperatures"]
    results = {name: arguments.pop(name) for name in ("numbers", "correct")}
    lists = {"kept": torch.zeros(17, dtype=torch.int64), "dropped_mass": torch.zeros(17)}
    cuts = {"log_threshold": -5.0, "log_cuts": None, "floors": None, "most_per_row": 101}
    return arguments | cuts | results | lists | {"span_mass": torch.zeros(17, 1)}


def kept_values():
    arguments = stream_kept()
    columns, projected = extension.operators("cpp").stream_kept(*arguments.values())
    given = {name: arguments[name] for name in ("softcap", "temperature", "label_smoothing", "z_loss")}
    return {
        "columns": columns,
        "projected": projected,
        "target": arguments["target"],
        "scale": torch.ones(17),
        "entropy_scale": None,
        **given,
        "vocabulary": 101,
        "numbers": arguments["numbers"],
        "offsets": sparse_gradient.offsets_of(arguments["kept"]),
        "values": torch.zeros_like(projected),
        "kept_sum": torch.zeros(17),
        "least": 0.1,
        "small_sum": torch.zeros(17, 1),
    }


def sort_entries():
    return {
        "order": torch.tensor([2, 0, 1]),
        "rows": torch.tensor([4, 9, 0]),
        "offsets": torch.tensor([0, 3, 3, 7]),
        "columns": torch.tensor([0, 2, 5, 1, 2, 3, 5], dtype=torch.int32),
        "values": torch.arange(7.0),
        "vocabulary": 6,
        "least": -1.0,
    }


OPERATORS = {make.__name__: make for make in (stream_statistics, stream_kept, kept_values, sort_entries)}
WRITERS = [name for name in OPERATORS if name != "sort_entries"]


@pytest.mark.skipif(not CPP, reason="no compiled library")
@pytest.mark.parametrize("operator", OPERATORS)
def test_schemas(operator):
    schema = getattr(extension.operators("cpp"), operator).default._schema
    arguments = OPERATORS[operator]()
    assert [argument.name for argument in schema.arguments] == list(arguments)
    written = {argument.name for argument in schema.arguments if argument.alias_info and argument.alias_info.is_write}
    before = {name: value.clone() for name, value in arguments.items() if isinstance(value, torch.Tensor)}
    getattr(extension.operators("cpp"), operator)(*arguments.values())
    changed = {name for name, value in before.items() if not torch.equal(value, arguments[name])}
    assert changed <= written and bool(changed) == (operator in WRITERS)


@each([0, 3], names="most_per_row")
def test_too_many_candidates_are_none(implementation, most_per_row):
    """How many were found by then depends on the threads, so nothing of them is told."""
    arguments = stream_kept() | {"most_per_row": most_per_row}
    columns, projected = extension.operators("cpp").stream_kept(*arguments.values())
    assert not len(columns) and not len(projected)
    assert arguments["kept"].tolist() == [101] * 17
    assert not arguments["dropped_mass"].any() and not arguments["span_mass"].any()


@each([3e38, 1e-4], names="least")
def test_sums_of_small_entries_keep_their_digits(implementation, least):
    """Of a span all of whose entries are kept: they nearly cancel."""
    vocabulary, spans = 2 * SPAN + 50, 3
    hidden, weight, bias, target = inputs_of(5, 8, vocabulary)
    target[:] = 7
    numbers = torch.zeros(len(ROW_NUMBERS), 5)
    results = [numbers, torch.zeros(5, dtype=torch.bool), torch.zeros(5, dtype=torch.int64), torch.zeros(5)]
    options, kept = (0.0, 1.0, 0.0, 0.0), results[2]
    lists = (-100.0, None, None, 2**62)
    columns, projected = extension.operators("cpp").stream_kept(
        hidden, weight, bias, target, *options, *lists, *results, torch.zeros(5, spans)
    )
    assert kept.tolist() == [vocabulary] * 5
    values, sums, small_sum = torch.zeros_like(projected), torch.zeros(5), torch.zeros(5, spans)
    rest = (vocabulary, numbers, sparse_gradient.offsets_of(kept), values, sums, least, small_sum)
    extension.operators("cpp").kept_values(columns, projected, target, torch.ones(5), None, *options, *rest)
    small = torch.where(values.abs() <= least, values.double(), 0).view(5, vocabulary)
    truth = torch.stack([part.sum(1) for part in small.split(SPAN, 1)], 1)
    torch.testing.assert_close(small_sum.double(), truth, rtol=1e-6, atol=1e-12)


@pytest.mark.skipif(not CPP, reason="no compiled library")
@pytest.mark.parametrize(
    ("operator", "argument", "change", "message"),
    [
        ("stream_statistics", "hidden", lambda t: t.T, "hidden has rows that are not contiguous"),
        ("stream_statistics", "hidden", lambda t: t.double(), "hidden has dtype"),
        ("stream_statistics", "hidden", lambda t: t[:, :0], r"weight has shape \(101, 8\): expected \(101, 0\)"),
        ("stream_statistics", "weight", lambda t: t.bfloat16(), "weight has dtype BFloat16: expected Float"),
        ("stream_statistics", "weight", lambda t: t[:, :7], r"weight has shape \(101, 7\): expected \(101, 8\)"),
        ("stream_statistics", "bias", lambda t: t[:5], r"bias has shape \(5\): expected \(101\)"),
        ("stream_statistics", "bias", lambda t: t.double(), "bias has dtype Double: expected Float"),
        ("stream_statistics", "target", lambda t: t + 1, r"target\[16\] is 101: expected 0 to 100"),
        (
            "stream_statistics",
            "temperatures",
            lambda _: torch.ones(3),
            r"temperatures has shape \(3\): expected \(17\)",
        ),
        (
            "stream_statistics",
            "temperature",
            lambda _: 0.0,
            "temperature is 0: expected a finite float32 number",
        ),
        ("stream_statistics", "logits", lambda t: t.double(), "logits has dtype"),
        (
            "stream_statistics",
            "logits",
            lambda t: t[:101],
            r"logits has shape \(101, 32\): expected \(192, 32\) or more",
        ),
        ("stream_statistics", "logits", lambda t: t[:, :16].contiguous(), r"logits has shape \(192, 16\)"),
        ("stream_statistics", "logits", lambda t: t.new_zeros(192, 33), "logits has rows that are not whole cache"),
        ("stream_kept", "kept", lambda t: t.int(), "kept has dtype"),
        ("stream_kept", "dropped_mass", lambda t: t[:3], "dropped_mass has shape"),
        ("kept_values", "offsets", lambda t: t + 1, "offsets reach from 1"),
        ("kept_values", "offsets", lambda t: t.flip(0).contiguous(), "offsets do not increase at 0"),
        ("kept_values", "values", lambda t: t[:-1], "values has shape"),
        ("sort_entries", "order", lambda t: t * 0, "order has 0 twice"),
        ("sort_entries", "order", lambda t: t + 1, r"order\[0\] is 3: expected 0 to 2"),
        ("sort_entries", "rows", lambda t: -t, r"rows\[0\] is -4: expected 0 to 2147483647"),
        ("sort_entries", "offsets", lambda t: t + 1, "offsets reach from 1 to 8: expected 0 to 7"),
        ("sort_entries", "offsets", lambda t: t.clamp(min=1), "offsets reach from 1 to 7: expected 0 to 7"),
        ("sort_entries", "columns", lambda t: t * 0, r"columns\[1\] is 0: expected 1 to 5"),
        ("sort_entries", "columns", lambda t: t + 1, r"columns\[2\] is 6: expected 4 to 5"),
        ("sort_entries", "columns", lambda t: t - 1, r"columns\[0\] is -1: expected 0 to 5"),
        ("sort_entries", "values", lambda t: t.double(), "values has dtype"),
        ("sort_entries", "vocabulary", lambda _: 4, r"columns\[2\] is 5: expected 3 to 3"),
    ],
)
def test_wrong_arguments_are_named(operator, argument, change, message):
    arguments = OPERATORS[operator]()
    arguments[argument] = change(arguments[argument])
    with pytest.raises(RuntimeError, match=message):
        getattr(extension.operators("cpp"), operator)(*arguments.values())


@each([0, 1], names="rows")
def test_few_rows(implementation, rows):
    arguments = stream_statistics()
    few = {"hidden": arguments["hidden"][:rows], "target": arguments["target"][:rows]}
    results = {"numbers": torch.zeros(len(ROW_NUMBERS), rows), "correct": torch.zeros(rows, dtype=torch.bool)}
    extension.operators("cpp").stream_statistics(*arguments.values())
    extension.operators("cpp").stream_statistics(*(arguments | few | results).values())
    assert torch.equal(results["numbers"], arguments["numbers"][:, :rows])


@each([(0, 7), (5, 1), (300, 5000)], names="shape")
def test_entries_by_column(implementation, shape):
    """Rows in any order, some of them without entries, over any number of threads: by column, then by row."""
    rows, vocabulary = shape
    generator = torch.Generator().manual_seed(rows)
    dense = torch.rand(rows, vocabulary, generator=generator)
    dense *= torch.rand(dense.shape, generator=generator) < 0.3 * torch.rand(rows, 1, generator=generator).round()
    numbers = torch.randperm(2 * rows, generator=generator)[:rows]
    bags, columns = dense.nonzero(as_tuple=True)
    offsets = sparse_gradient.offsets_of(torch.bincount(bags, minlength=rows))
    by_row = torch.zeros(2 * rows, vocabulary).index_copy_(0, numbers, dense)
    expected_columns, expected_rows = by_row.T.nonzero(as_tuple=True)
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found = kernels(implementation).sort_entries(
                numbers, offsets, columns.int(), dense[bags, columns], vocabulary
            )
            assert torch.equal(found.rows, expected_rows.int())
            assert torch.equal(found.offsets.diff(), torch.bincount(expected_columns, minlength=vocabulary))
            assert torch.equal(found.values, by_row.T[expected_columns, expected_rows]) and found.offsets[0] == 0
            signs = torch.where(torch.arange(len(columns)) % 2 == 0, 1.0, -1.0)  # the size counts
            large = kernels(implementation).sort_large_entries(
                numbers, offsets, columns.int(), dense[bags, columns] * signs, vocabulary, least=0.5
            )
            keep = found.values > 0.5
            assert torch.equal(large.rows, found.rows[keep]) and torch.equal(large.values.abs(), found.values[keep])
            counts = torch.bincount(expected_columns[keep], minlength=vocabulary)
            assert torch.equal(large.offsets.diff(), counts) and large.offsets[-1] == len(large.rows)
    finally:
        torch.set_num_threads(before)
