"""The rows of backend `cpp` straight from hidden states (csrc/cpu/stream.h), with every instruction set."""

from __future__ import annotations

import functools
import itertools
from dataclasses import replace

import implementations
import pytest
import torch
from cases import DTYPES
from kernel_cases import EVERYTHING, OPTIONS, PLAIN, Options, statistics, unluckiest
from test_row_kernels import make, never_given_up

from mind_kernels import extension, linear_cross_entropy, row_chunks, sparse_gradient
from mind_kernels.head import Head
from mind_kernels.linear_cross_entropy.compiled_rows import ROW_NUMBERS
from mind_kernels.linear_cross_entropy.contract import RowWeights
from mind_kernels.testing import assert_within_budget

pytestmark = pytest.mark.usefixtures(never_given_up.__name__)

CPP = [
    implementation for implementation in implementations.of("linear_cross_entropy") if implementation.backend == "cpp"
]
each = functools.partial(implementations.each, of=CPP)
SPAN = 96 * 64  # vocabulary entries that are summed at a time: kSpan in csrc/cpu/stream_operators.cpp


def kernels(implementation):
    return implementation.kernels("linear_cross_entropy")


def streamed(implementation, hidden, target, spec):
    """Sparse rows without a logit in memory."""
    rows = kernels(implementation).sparse_rows(hidden, target, spec, False)
    assert not hasattr(rows, "_logits")
    return rows


def inputs_of(rows, size, vocabulary, dtype=torch.float32, bias=False):
    """Hidden states near the target's row of the head, and a bias that rules a third of the vocabulary out."""
    generator = torch.Generator().manual_seed(rows * size + vocabulary)
    weight = torch.randn(vocabulary, size, generator=generator)
    target = torch.randint(0, vocabulary, (rows,), generator=generator)
    target[0], target[-1] = 0, vocabulary - 1
    hidden = torch.randn(rows, size, generator=generator) + weight[target] * 4 / size**0.5
    added = torch.randn(vocabulary, generator=generator)
    added[1::3] = -torch.inf
    added[target] = 0.5
    return hidden.to(dtype), weight.to(dtype), added.to(dtype) if bias else None, target


@each(OPTIONS, [7, 101, 1000], [24, 100], names="options vocabulary rows", dtypes=DTYPES)
def test_entries_are_those_of_logits_in_memory(implementation, dtype, options, vocabulary, rows):
    """An identity for a head leaves the logits as they are, whichever way they go."""
    logits, target, *weights = make(implementation, vocabulary, dtype, rows)
    spec, weight = options.spec(torch.eye(vocabulary, dtype=dtype)), options.weights(*weights)
    found = streamed(implementation, logits, target, spec)
    expected = kernels(implementation).sparse_rows(logits, target, spec, True)
    assert torch.equal(found.kept, expected.kept) and torch.equal(found.values.correct, expected.values.correct)
    assert found.means() == pytest.approx(expected.means(), rel=1e-4)
    close = functools.partial(torch.testing.assert_close, rtol=1e-5, atol=1e-6)
    close(found.dropped_mass, expected.dropped_mass)
    for one, other in zip(found.values, expected.values, strict=True):
        close(one, other)
    one, other = found.entries(weight), expected.entries(weight)
    assert torch.equal(one.counts, other.counts) and torch.equal(one.columns, other.columns)
    close(one.values, other.values)
    close(one.kept_sum, other.kept_sum)


@each(
    [PLAIN, EVERYTHING],
    [(1, 321, 193), (15, 33, 97), (16, 1, 5), (17, 33, 97), (49, 321, 193), (100, 7, SPAN + 13)],
    names="options shape",
    dtypes=DTYPES,
)
def test_statistics_match_float64(implementation, dtype, options, shape):
    """Rows, depths and vocabularies that end inside a vector, a panel, a part of the depth, a span."""
    options = replace(options, label_smoothing=0.0)  # beside which no entry may be ruled out
    for bias in (False, True):
        hidden, weight, added, target = inputs_of(*shape, dtype, bias)
        spec = options.spec(weight)
        spec = replace(spec, head=replace(spec.head, bias=added))
        values = kernels(implementation).statistics(hidden, target, spec)

        def eager(wide, order, inputs=(hidden, weight, added, target)):
            rows, head, shift, labels = inputs
            logits = torch.nn.functional.linear(rows.to(wide), head.to(wide), None if shift is None else shift.to(wide))
            z = options.condition(logits[:, order])
            found = statistics(z, order.argsort()[labels], options)
            log_p = z.log_softmax(1)
            loss = found["nll"] + options.z_loss * found["lse"].square()  # 0 times minus infinity is not in it
            return found | {"loss": loss, "entropy": -(log_p.exp() * log_p.clamp(min=-1e30)).sum(1)}

        truth = eager(torch.float64, torch.arange(shape[2]))
        peer = unluckiest(functools.partial(eager, torch.float32), shape[2], truth)
        conditioning = max(1.0, float(truth["lse"].abs().max()))  # of nll, which is a difference
        assert_within_budget(values._asdict(), peer, truth, torch.float32, conditioning=conditioning)


@each([1, 15], names="rows", dtypes=[torch.bfloat16, torch.float16])
def test_half_precision_does_not_depend_on_the_number_of_rows(implementation, dtype, rows):
    """Statistics without a gradient, which a rounding of the logits would change."""
    hidden, weight, _, target = inputs_of(40, 33, 97, dtype)
    many, few = (
        linear_cross_entropy(
            hidden[:count], weight, target[:count], reduction="none", return_stats=True, backend="cpp"
        )[1]
        for count in (40, rows)
    )
    for name in ("nll", "lse", "entropy", "correct"):
        assert torch.equal(getattr(few, name), getattr(many, name)[:rows]), name


@each([1, 40], names="rows")
def test_hidden_states_without_columns(implementation, rows):
    """All logits are the bias."""
    bias, target = torch.linspace(-1, 1, 97), torch.arange(rows)
    loss = linear_cross_entropy(
        torch.empty(rows, 0), torch.empty(97, 0), target, bias=bias, reduction="none", backend="cpp"
    )
    torch.testing.assert_close(loss, bias.logsumexp(0) - bias[target])


@each([(13, 64), (8, 9), (0, 100), (100, SPAN)], names="places")
def test_correct_is_the_first_maximum(implementation, places):
    first, second = places
    weight = torch.zeros(SPAN + 1, 1)
    weight[[first, second]] = 7.0
    target = torch.tensor([first, second, 50, SPAN]).repeat(5)
    values = kernels(implementation).statistics(torch.ones(20, 1), target, PLAIN.spec(weight))
    assert values.correct.tolist() == [True, False, False, False] * 5


@each([torch.nan, torch.inf, -torch.inf], names="value")
def test_non_finite_rows_keep_their_target_alone(implementation, value):
    hidden, weight, _, target = inputs_of(20, 8, 101)
    hidden[3] = value
    rows = streamed(implementation, hidden, target, PLAIN.spec(weight))
    assert rows.values.loss.isfinite().tolist() == [row != 3 for row in range(20)]
    assert rows.kept[3] == 1 and not rows.values.correct[3]
    entries = rows.entries(RowWeights(torch.ones(20)))
    place = int(rows.kept[:3].sum())
    assert entries.columns[place] == target[3] and not entries.values[place].isfinite()


@each([1e4, 1e8], names="scale")
def test_large_logits(implementation, scale):
    hidden, weight, _, target = inputs_of(33, 16, 211)
    values = kernels(implementation).statistics(hidden * scale, target, PLAIN.spec(weight))
    z = (hidden * scale).double() @ weight.double().T
    torch.testing.assert_close(values.lse.double(), z.logsumexp(1), rtol=1e-6, atol=0)
    assert torch.equal(values.correct, z.argmax(1) == target)


@each([20, 700], names="rows")
def test_threads_change_nothing(implementation, rows):
    """A thread takes spans of the vocabulary if the rows are few, else rows; the same bits either way."""
    hidden, weight, _, target = inputs_of(rows, 9, SPAN + 500)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 7):
            torch.set_num_threads(threads)
            found = streamed(implementation, hidden, target, PLAIN.spec(weight))
            entries = found.entries(RowWeights(torch.ones(rows)))
            results.append((*found.values, found.kept, found.dropped_mass, entries.columns, entries.values))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


@each([(4000, 1 / 32), (2 * SPAN + 13, 1 / 4)], names="limit")
def test_flat_rows_are_given_up(implementation, monkeypatch, limit):
    """More candidates than the limit allows: they are not collected, and the statistics are right all the same. Each
    strip of rows and span of the vocabulary may be below what the whole vocabulary is allowed."""
    vocabulary, share = limit
    monkeypatch.setitem(sparse_gradient._DENSITY_LIMIT, "cpu", share)
    hidden, weight, _, target = inputs_of(60, 8, vocabulary)
    spec = Options().spec(weight * 0.01, threshold=0.97 / vocabulary)
    rows = streamed(implementation, hidden, target, spec)
    assert rows.means()[0] == vocabulary and (rows.kept == vocabulary).all()
    z = hidden.double() @ spec.head.weight.double().T
    torch.testing.assert_close(rows.values.lse.double(), z.logsumexp(1), rtol=1e-6, atol=0)


@each()
def test_a_few_flat_rows_are_collected(implementation, monkeypatch):
    """The limit is one of the mean over the rows."""
    monkeypatch.setitem(sparse_gradient._DENSITY_LIMIT, "cpu", 1 / 4)
    hidden, weight, _, target = inputs_of(60, 8, 4000)
    hidden *= 4
    hidden[7:17] *= 1e-4
    spec = PLAIN.spec(weight, threshold=2.0**-16)
    rows = streamed(implementation, hidden, target, spec)
    assert (rows.kept[7:17] == 4000).all()
    z = hidden.double() @ weight.double().T
    others = z.scatter(1, target[:, None], -torch.inf).softmax(1)
    kept = (others > 2.0**-16).sum(1) + 1
    assert float((rows.kept - kept).abs().max()) <= 2 and float(kept.double().mean()) < 1000


@each()
def test_gathers_take_rows_in_order(implementation, monkeypatch):
    """The sampled ones, which are visited first, and then the others: a block of the matrix is then in the cache
    (csrc/cpu/gather.h). Those of the weight's gradient come in the order of all rows."""
    monkeypatch.setattr(sparse_gradient, "SAMPLE_ROWS", 8)
    monkeypatch.setattr(sparse_gradient, "_MASS_LIMIT", 1.0)
    hidden, weight, _, target = inputs_of(100, 16, 301)
    leaves, bags, gather = (hidden.requires_grad_(), weight.requires_grad_()), [], kernels(implementation).gather_rows

    def recorded(values, indices, offsets, *others):
        bags.append([indices[start:end] for start, end in itertools.pairwise(offsets.tolist())])
        gather(values, indices, offsets, *others)

    monkeypatch.setattr(kernels(implementation), "gather_rows", recorded)
    loss = linear_cross_entropy(*leaves, target, gradient_threshold=2.0**-7, reduction="sum", backend="cpp")
    found = torch.autograd.grad(loss, leaves)
    assert [len(each) for each in bags] == [9, 91, 301] and max(map(len, bags[2])) > 8
    assert all(bool((bag.diff() > 0).all()) for each in bags for bag in each)
    exact = torch.autograd.grad(torch.nn.functional.cross_entropy(hidden @ weight.T, target, reduction="sum"), leaves)
    for one, other in zip(found, exact, strict=True):
        assert float((one - other).norm() / other.norm()) < 0.05


@each()
def test_no_more_than_a_chunk_of_logits(implementation, monkeypatch):
    """Sharp rows, flat ones, which fall back, and sharp ones again: whenever logits are needed, of one chunk only."""
    vocabulary, size, chunk, rows = 301, 16, 20, 1600
    monkeypatch.setattr(sparse_gradient, "_MASS_LIMIT", 1 / 16)
    monkeypatch.setattr(sparse_gradient, "SAMPLE_ROWS", 4)
    monkeypatch.setattr(row_chunks, "_SPARSE_CHUNK_BYTES", dict.fromkeys(("cpu", "cuda"), 4 * chunk * vocabulary))
    monkeypatch.setattr(row_chunks, "_CHUNK_BYTES", dict.fromkeys(("cpu", "cuda"), 4 * chunk * vocabulary))
    hidden, weight, _, target = inputs_of(rows, size, vocabulary)
    hidden[401:800] *= 0.01  # none of them is sampled
    hidden.requires_grad_()
    products, project = [], Head.project

    def counted(head, rows):
        products.append(len(rows))
        return project(head, rows)

    monkeypatch.setattr(Head, "project", counted)
    loss, stats = linear_cross_entropy(
        hidden, weight, target, gradient_threshold=2.0**-7, return_stats=True, reduction="sum", backend="cpp"
    )
    loss.backward()
    exact = stats.kept_entries == vocabulary
    assert not exact[:300].any() and exact[500:790].all() and not exact[850:].any()
    assert products and max(products) <= chunk
    z = hidden.detach().double() @ weight.double().T
    dz = z.softmax(1).scatter_add(1, target[:, None], torch.full_like(z[:, :1], -1.0))
    truth = (dz @ weight.double())[exact]
    torch.testing.assert_close(hidden.grad[exact].double(), truth, rtol=1e-4, atol=1e-4)


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
