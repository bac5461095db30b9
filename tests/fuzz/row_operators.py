"""One random call of each operator of rows, from logits or from hidden states, beside its definition in float64."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from hypothesis import strategies as st
from torch import Tensor

from mind_kernels import extension
from mind_kernels.linear_cross_entropy.batch_rows import SPAN
from tests.fuzz import calls
from tests.fuzz.arguments import arenas
from tests.fuzz.calls import Call, same
from tests.fuzz.rows import ROUNDING, Rows, ShardRows, StreamedRows, close
from tests.fuzz.spoilt import call, spoil


@st.composite
def row_kernel_(draw: Callable) -> None:
    arena = draw(arenas())
    rows = Rows(draw, arena)
    scale, entropy_scale = rows.weights(draw)
    if draw(st.booleans()):
        scale = None
    before = rows.logits.clone()
    arguments = {
        "logits": rows.logits,
        "target": rows.target,
        "scale": scale,
        "entropy_scale": entropy_scale,
        **rows.options(),
        "numbers": rows.numbers,
        "correct": rows.correct,
    }
    if not call(draw, arena, "row_kernel_", arguments):
        return
    rows.check_numbers()
    if scale is None:
        assert same(rows.logits, before), "logits changed without weights"
        return
    a, b, t = rows.coefficients(scale, entropy_scale)
    uniform = scale.double()[:, None] * rows.smoothing / rows.z.shape[1]
    truth = (rows.part(a, b) - t * rows.hit - uniform) * rows.slope
    size = rows.gradient_size(a, b, t)
    close("gradient", rows.logits, truth, (4 * rows.step[:, None] + ROUNDING[before.dtype]) * size)


def threshold_of(draw: Callable, rows: Rows) -> tuple[float, Tensor, Tensor]:
    """log_threshold, and what the operators that count fill: kept and dropped_mass, or kept_mass of a shard."""
    threshold = math.log(draw(st.sampled_from((2.0**-4, 2.0**-12, 0.5))))
    return threshold, rows.arena.empty((rows.n,), torch.int64), rows.arena.empty((rows.n,), torch.float32)


def counted(draw: Callable, rows: Rows) -> tuple[float, Tensor, Tensor]:
    """log_threshold, and what `count` says of the rows: kept and dropped_mass."""
    threshold, kept, mass = threshold_of(draw, rows)
    extension.operators("cpp").count(
        rows.logits, rows.target, *rows.options().values(), threshold, rows.numbers, rows.correct, kept, mass
    )
    return threshold, kept, mass


@st.composite
def count(draw: Callable) -> None:
    arena = draw(arenas())
    rows = Rows(draw, arena)
    threshold, kept, mass = threshold_of(draw, rows)
    arguments = {
        "logits": rows.logits,
        "target": rows.target,
        **rows.options(),
        "log_threshold": threshold,
        "numbers": rows.numbers,
        "correct": rows.correct,
        "kept": kept,
        "dropped_mass": mass,
    }
    if not call(draw, arena, "count", arguments):
        return
    rows.check_numbers()
    rows.check_counts(kept, mass, threshold)


@st.composite
def entries(draw: Callable) -> None:
    arena = draw(arenas())
    rows = Rows(draw, arena)
    scale, entropy_scale = rows.weights(draw)
    threshold, kept, _ = counted(draw, rows)
    offsets = arena.put(torch.cat([kept.new_zeros(1), kept.cumsum(0)]))
    wrong_offsets = rows.n and draw(st.integers(0, 4)) == 0
    if wrong_offsets:  # any that do not decrease are taken: nothing may be written beyond them
        offsets[1:] = arena.integers(int(offsets[-1]) + 1, rows.n).sort().values
    total = max(int(offsets[-1]), int(kept.sum()))
    columns, values = arena.empty((total,), torch.int32), arena.empty((total,), torch.float32)
    kept_sum = arena.empty((rows.n,), torch.float32)
    arguments = {
        "logits": rows.logits,
        "target": rows.target,
        "scale": scale,
        "entropy_scale": entropy_scale,
        **rows.options(),
        "log_threshold": threshold,
        "numbers": rows.numbers,
        "offsets": offsets,
        "columns": columns,
        "values": values,
        "kept_sum": kept_sum,
    }
    if not call(draw, arena, "entries", arguments) or wrong_offsets:
        return
    rows.check_entries(scale, entropy_scale, kept, columns, values, kept_sum)


@st.composite
def background(draw: Callable) -> None:
    arena = draw(arenas())
    rows = Rows(draw, arena)
    threshold, _, _ = counted(draw, rows)
    listed = draw(st.integers(0, 5)) if rows.n else 0
    sample, weight = arena.put(arena.integers(rows.n, listed)), arena.put(arena.normal(listed))
    out = arena.empty((rows.z.shape[1],), torch.float32)
    arguments = {
        "logits": rows.logits,
        "target": rows.target,
        **rows.conditions(),
        "log_threshold": threshold,
        "numbers": rows.numbers,
        "sample": sample,
        "weight": weight,
        "out": out,
    }
    if not call(draw, arena, "background", arguments):
        return
    dropped = torch.where(rows.kept(threshold), 0, rows.p) * rows.slope
    step = 4 * rows.step[:, None]
    unsure = (rows.unsure(threshold, step) + rows.p * step).nan_to_num(0)
    truth, slack = weight.double() @ dropped[sample], weight.double().abs() @ (unsure * rows.slope.abs())[sample]
    close("background", out, truth, slack + ROUNDING[torch.float32] * (1 + weight.double().abs().sum()))


@st.composite
def shard_sums(draw: Callable) -> None:
    """Of logits in memory, and then their gradient for any terms of whole rows."""
    arena = draw(arenas())
    rows = Rows(draw, arena)
    shard = ShardRows(rows)
    dtype, inputs = rows.logits.dtype, {"logits": rows.logits, "target": shard.target} | rows.conditions()
    arguments = inputs | {"adds_logits": draw(st.booleans()), "sums": shard.sums, "argmax": shard.argmax}
    if not call(draw, arena, "shard_sums", arguments):
        return
    shard.check_sums(arguments["adds_logits"])
    terms = shard.terms(draw)
    if call(draw, arena, "shard_gradient_", inputs | terms):
        truth, allowed = shard.gradient_of(terms, dtype)
        close("gradient", rows.logits, truth, allowed)


@st.composite
def stream_shard_sums(draw: Callable) -> None:
    """The same straight from hidden states, and the products of the gradient."""
    arena = draw(arenas())
    rows = StreamedRows(draw, arena)
    shard, vocabulary = ShardRows(rows), rows.z.shape[1]
    inputs = rows.inputs() | {"target": shard.target} | rows.conditions()
    logits = arena.empty((-(-vocabulary // 96) * 96, -(-rows.n // 16) * 16), torch.float32)
    results = {"sums": shard.sums, "argmax": shard.argmax, "logits": logits}
    arguments = inputs | {"adds_logits": draw(st.booleans())} | results
    if not call(draw, arena, "stream_shard_sums", arguments):
        return
    shard.check_sums(arguments["adds_logits"])
    hidden, weight, terms = rows.hidden, rows.weight, shard.terms(draw)
    outputs = {
        "of_hidden": arena.empty(tuple(hidden.shape), torch.float32),
        "of_weight": arena.empty(tuple(weight.shape), torch.float32),
        "add_weight": False,
        "of_bias": arena.put(torch.zeros(vocabulary)),
    }
    inputs = {"logits": logits, "hidden": hidden, "weight": weight, "target": shard.target} | rows.conditions()
    if not call(draw, arena, "shard_products", inputs | terms | outputs) or rows.n == 0:  # which writes nothing
        return
    truth, allowed = shard.gradient_of(terms, torch.float32)
    allowed = allowed + ROUNDING[torch.float32] * truth.abs()
    h, w = hidden.double(), weight.double()
    close("of_hidden", outputs["of_hidden"], truth @ w, allowed @ w.abs())
    close("of_weight", outputs["of_weight"], truth.T @ h, allowed.T @ h.abs())
    close("of_bias", outputs["of_bias"], truth.sum(0), allowed.sum(0))


@st.composite
def shard_count(draw: Callable) -> None:
    arena = draw(arenas())
    rows = Rows(draw, arena)
    threshold, _, _ = counted(draw, rows)
    shard = ShardRows(rows)  # its numbers are still those of the rows with their targets
    kept, mass = arena.empty((rows.n,), torch.int64), arena.empty((rows.n,), torch.float32)
    arguments = {
        "logits": rows.logits,
        "target": shard.target,
        **rows.conditions(),
        "log_threshold": threshold,
        "numbers": rows.numbers,
        "kept": kept,
        "kept_mass": mass,
    }
    if call(draw, arena, "shard_count", arguments):
        shard.check_counts(kept, mass, threshold)


@st.composite
def stream_statistics(draw: Callable) -> None:
    arena = draw(arenas())
    rows = StreamedRows(draw, arena)
    arguments = {
        **rows.inputs(),
        **rows.options(),
        "temperatures": None,  # public functions have them
        "numbers": rows.numbers,
        "correct": rows.correct,
        "logits": None,
    }
    if call(draw, arena, "stream_statistics", arguments):
        rows.check_numbers()


@st.composite
def stream_kept(draw: Callable) -> None:
    """And the gradient at the entries that it keeps, by kept_values."""
    arena = draw(arenas())
    rows = StreamedRows(draw, arena)
    threshold, kept, mass = threshold_of(draw, rows)
    cuts, floors = None, None
    if draw(st.booleans()):  # the same ones, from the log-sum-exp of all entries
        cuts = arena.put((threshold + rows.others.log()).float())
        floors = arena.put(torch.full((rows.n,), -math.inf))
    spans = -(-rows.z.shape[1] // SPAN)
    span_mass = arena.empty((rows.n, spans), torch.float32) if draw(st.booleans()) else None
    arguments = {
        **rows.inputs(),
        **rows.options(),
        "log_threshold": threshold,
        "log_cuts": cuts,
        "floors": floors,
        "most_per_row": draw(st.sampled_from((2**62, 2**62, 5))),
        "numbers": rows.numbers,
        "correct": rows.correct,
        "kept": kept,
        "dropped_mass": mass,
        "span_mass": span_mass,
    }
    made = Call.of(calls.operators()["stream_kept"], list(arguments.values()))
    made.arena = arena
    if draw(st.integers(0, 3)) == 0 and spoil(draw, made):
        return
    columns, projected = made()
    rows.check_numbers()
    if len(columns) == 0 and rows.n:  # given up
        assert bool((kept == rows.z.shape[1]).all()) and arguments["most_per_row"] == 5
        assert not mass.any() and (span_mass is None or not span_mass.any())
        return
    rows.check_counts(kept, mass, threshold)
    if span_mass is not None:
        rows.check_spans(span_mass, threshold)
    scale, entropy_scale = rows.weights(draw)
    values, kept_sum = arena.empty((len(columns),), torch.float32), arena.empty((rows.n,), torch.float32)
    small_sum = arena.empty((rows.n, spans), torch.float32)
    sizes = (rows.gradient(scale, entropy_scale)[0] * rows.slope).abs()
    sizes = sizes[torch.repeat_interleave(torch.arange(rows.n), kept), columns.long()]
    sizes = sizes[sizes <= 3e38].tolist()
    least = draw(st.sampled_from((-1.0, 3e38)) | st.sampled_from(sizes or [0.0]))  # none are small, all, or some
    given = {
        "columns": arena.put(columns),
        "projected": arena.put(projected),
        "target": rows.target,
        "scale": scale,
        "entropy_scale": entropy_scale,
        **rows.options(),
        "vocabulary": rows.z.shape[1],
        "numbers": rows.numbers,
        "offsets": arena.put(torch.cat([kept.new_zeros(1), kept.cumsum(0)])),
        "values": values,
        "kept_sum": kept_sum,
        "least": least,
        "small_sum": small_sum,
    }
    if call(draw, arena, "kept_values", given):
        rows.check_entries(scale, entropy_scale, kept, columns, values, kept_sum)
        rows.check_small(scale, entropy_scale, kept, columns, values, least, small_sum)
