"""One random call of each operator of mind_kernels._cpp, beside its definition in float64.

A call with arguments that it takes must give what the definition gives; one with a spoilt argument must raise. What
holds for all operators, of those to come too, is tested on the calls that public functions make.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from hypothesis import strategies as st

from mind_kernels import extension
from mind_kernels.linear_pairwise_jsd import reference
from tests.fuzz import row_operators
from tests.fuzz.arguments import DTYPES, arenas
from tests.fuzz.calls import Call, public_call, same, watched
from tests.fuzz.choices import Choices
from tests.fuzz.rows import ROUNDING, close
from tests.fuzz.spoilt import call, spoil


@st.composite
def gather_rows(draw: Callable) -> None:
    arena = draw(arenas())
    dtype = draw(st.sampled_from(DTYPES))
    bags, height = draw(st.integers(0, 9)), draw(st.integers(1, 20))
    size, rank = draw(st.integers(0, 40) | st.integers(1015, 1040)), draw(st.integers(0, 3))
    counts = arena.integers(draw(st.sampled_from((1, 4, 40))), bags)
    offsets = arena.put(torch.cat([counts.new_zeros(1), counts.cumsum(0)]))
    total = int(offsets[-1])
    indices = arena.put(arena.integers(height, total, dtype=torch.int32))
    values, left = arena.put(arena.normal(total)), arena.normal(rank, bags).T
    matrix = arena.put(arena.normal(height, size, dtype=dtype), gap=draw(st.sampled_from((0, 3))))
    right = arena.put(arena.normal(rank, size, dtype=dtype), gap=draw(st.sampled_from((0, 3))))
    out_dtype = draw(st.sampled_from((dtype, torch.float32)))
    out = arena.empty((bags, size), out_dtype, gap=draw(st.sampled_from((0, 3))))
    bad_index = total and draw(st.integers(0, 5)) == 0
    if bad_index:
        indices[int(arena.integers(total, 1))] = draw(st.sampled_from((-1, height, -(2**31), 2**31 - 1)))
    arguments = {
        "values": values,
        "indices": indices,
        "offsets": offsets,
        "matrix": matrix,
        "left": left,
        "right": right,
        "out": out,
    }
    if bad_index:
        try:
            extension.operators("cpp").gather_rows(*arguments.values())
        except RuntimeError:
            arena.check_margins()
            return
        raise AssertionError("gather_rows took an index out of range")
    if not call(draw, arena, "gather_rows", arguments):
        return
    bag = torch.repeat_interleave(torch.arange(bags), counts)
    products = values.double()[:, None] * matrix.double()[indices.long()]
    truth = left.double() @ right.double()
    size_of = left.double().abs() @ right.double().abs()
    close(
        "out",
        out,
        truth.index_add(0, bag, products),
        ROUNDING[torch.float32] + ROUNDING[out_dtype] * size_of.index_add(0, bag, products.abs()),
    )


@st.composite
def divergences(draw: Callable) -> None:
    arena = draw(arenas())
    groups, rows = draw(st.integers(0, 3)), draw(st.integers(1, 9) | st.just(17))
    columns = draw(st.integers(1, 70) | st.integers(500, 560))
    spread, scale = draw(st.sampled_from((0.0, 1e-2, 1.0))), draw(st.sampled_from((0.0, 1.0, 30.0)))
    z = arena.put((arena.normal(groups, 1, columns) + spread * arena.normal(groups, rows, columns)) * scale)
    mask = arena.put(arena.integers(4, groups, rows) > 0)
    of_pairs = draw(st.booleans())
    shape = (groups, rows, rows) if of_pairs else (groups, rows)
    weight = arena.put(arena.normal(*shape) if of_pairs else arena.normal(*shape).clamp(min=0))
    divergence = arena.empty(shape, torch.float32)
    gradient = arena.empty((groups, rows, columns), torch.float32) if draw(st.booleans()) else None
    jeffreys = of_pairs and draw(st.booleans())
    name = "jeffreys_divergences" if jeffreys else "pair_divergences" if of_pairs else "mixture_divergences"
    arguments = {"logits": z, "weight": weight, "mask": mask, "divergence": divergence, "gradient": gradient}
    if not call(draw, arena, name, arguments):
        return
    leaf = z.double().requires_grad_()
    truth = reference.divergences(leaf, weight.double(), mask, "jeffreys" if jeffreys else "jsd")
    loss = reference.group_loss(truth, weight.double()) + 0 * leaf.sum()  # one row alone has no pair
    loss.backward()
    step = ROUNDING[torch.float32] * (1 + scale) * (1 + spread)
    if jeffreys and truth.numel():  # not bounded by log 2
        step = step * (1 + truth.detach().max())
    close(name, divergence, truth.detach(), step)
    if gradient is not None:
        size = weight.double().abs().sum((1, 2) if of_pairs else 1).view(-1, 1, 1)
        close("gradient", gradient, leaf.grad, 4 * step * (1 + size))


GROSS = {torch.float32: 2.0**-11, torch.bfloat16: 2.0**-4, torch.float16: 2.0**-7}
"""What a public function may err; the definitions above are stricter."""


REACHED: Counter[str] = Counter()
"""Calls of each operator by public functions."""


@st.composite
def public_functions(draw: Callable) -> None:
    """Each call of an operator stays within its tensors and repeats bit by bit; the function is right at large."""

    def guarded(made: Call) -> Any:
        REACHED[made.name] += 1
        one, other = made.copied(), made.copied()
        result = one()
        for value, again in zip(one.results(result), other.results(other()), strict=True):
            assert same(value, again), f"{made.name} gave another result to the same arguments"
        if draw(st.integers(0, 7)) == 0:
            spoil(draw, made)
        for name in made.written:
            made.arguments[name].copy_(one.arguments[name])
        return result

    made = public_call(lambda values: draw(st.sampled_from(values)), draw(st.integers(0, 2**31)))
    with watched(guarded):
        found = made()
    truth = made("reference", torch.float64)
    for value, true in list(zip(found, truth, strict=True))[: None if made.exact else 1]:
        distance, size = float((value.double() - true).norm()), float(true.norm())
        allowed = GROSS[made.hidden.dtype] * (size + 0.1 * len(made.hidden) ** 0.5)
        assert distance <= allowed, f"{made.function}: {distance} from its definition, of size {size}"


OPERATORS = {
    "public_functions": public_functions,
    "row_kernel_": row_operators.row_kernel_,
    "count": row_operators.count,
    "entries": row_operators.entries,
    "background": row_operators.background,
    "shard_sums": row_operators.shard_sums,
    "shard_count": row_operators.shard_count,
    "stream_shard_sums": row_operators.stream_shard_sums,
    "stream_statistics": row_operators.stream_statistics,
    "stream_kept": row_operators.stream_kept,
    "gather_rows": gather_rows,
    "divergences": divergences,
}


def one(name: str, choices: Choices, counts: Counter[str]) -> None:
    """A random call of this operator, counted."""
    choices.data.draw(OPERATORS[name]())
    counts[name] += 1
