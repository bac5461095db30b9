"""One random call of each operator of mind_kernels._cpp, beside its definition in float64.

A call with arguments that it takes must give what the definition gives; one with a spoilt argument must raise. What
holds for all operators, of those to come too, is tested on the calls that public functions make.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from mind_kernels import extension
from mind_kernels.head import Head
from mind_kernels.linear_cross_entropy.compiled_rows import ROW_NUMBERS
from mind_kernels.linear_pairwise_jsd import reference
from tests.fuzz import calls
from tests.fuzz.arguments import DTYPES, Arena, arenas, logits
from tests.fuzz.calls import Call, public_call, same, watched
from tests.fuzz.spoilt import check, spoilt

ROUNDING = {torch.float32: 2.0**-20, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}


def call(draw: Callable, arena: Arena, name: str, arguments: dict[str, Any]) -> bool:
    """Calls the operator; whether its results are to be looked at. Every fourth time an argument is wrong instead."""
    made = Call.of(calls.operators()[name], list(arguments.values()))
    made.arena = arena
    if draw(st.integers(0, 3)) or not spoil(draw, made):
        made()
        return True
    return False


def spoil(draw: Callable, made: Call) -> bool:
    """Has a random fault of a random argument raise; False if this argument has none."""
    argument = draw(st.sampled_from(list(made.arguments)))
    if not (faults := list(spoilt(made, argument))):
        return False
    check(made, draw(st.sampled_from(faults)), argument)
    return True


def close(name: str, value: Tensor, truth: Tensor, allowed: float | Tensor) -> None:
    """`value` is `truth` (float64), to `allowed`; where that is not finite, no number is asked for."""
    expected = truth.isfinite()
    wrong = expected & ~((value.double() - truth).abs() <= allowed)
    assert not bool(wrong.any()), (
        f"{name}: {value[wrong][:3].tolist()} where the definition has {truth[wrong][:3].tolist()}"
    )


class Rows:
    """Logits, targets and options of a row operator, and the definition of its statistics."""

    def __init__(self, draw: Callable, arena: Arena) -> None:
        rows, columns = draw(st.integers(0, 6)), draw(st.integers(1, 90) | st.integers(2040, 2100))
        self.arena, self.n = arena, rows
        self.logits = logits(draw, arena, rows, columns)
        self.target = arena.put(arena.integers(columns, rows))
        self.softcap, self.temperature = draw(st.sampled_from((0.0, 0.0, 5.0))), draw(st.sampled_from((1.0, 1.0, 0.7)))
        self.smoothing, self.z_loss = draw(st.sampled_from((0.0, 0.1))), draw(st.sampled_from((0.0, 1e-3)))
        self.numbers = arena.empty((len(ROW_NUMBERS), rows), torch.float32)
        self.correct = arena.empty((rows,), torch.bool)
        head = Head(torch.empty(columns, 1), None, self.softcap or None, self.temperature)
        x = self.logits.double()
        self.z = head.to_logits(x)
        self.slope = torch.as_tensor(head.slope(self.z), dtype=torch.float64).expand(rows, columns)
        self.log_p = self.z.log_softmax(1)
        self.p = self.log_p.exp()
        self.lse = self.z.logsumexp(1)
        self.nll = -self.log_p.gather(1, self.target[:, None]).squeeze(1)
        self.hit = torch.zeros_like(self.p).scatter_(1, self.target[:, None], 1)
        self.entropy = -(self.p * self.log_p).sum(1)
        self.others = (self.p * (1 - self.hit)).sum(1)
        # A rounding of a logit in float32, which is one of log p, and relative of p.
        self.step = ROUNDING[torch.float32] * (1 + self.z.nan_to_num(0, 0, 0).abs().amax(1))

    def conditions(self) -> dict[str, float]:
        return {"softcap": self.softcap, "temperature": self.temperature}

    def options(self) -> dict[str, float]:
        return self.conditions() | {"label_smoothing": self.smoothing, "z_loss": self.z_loss}

    def weights(self, draw: Callable) -> tuple[Tensor, Tensor | None]:
        scale = self.arena.put(self.arena.normal(self.n))
        return scale, self.arena.put(self.arena.normal(self.n)) if draw(st.booleans()) else None

    def check_numbers(self) -> None:
        loss = (
            (1 - self.smoothing) * self.nll
            + self.smoothing * (self.lse - self.z.mean(1))
            + self.z_loss * self.lse.square()
        )
        numbers = dict(zip(ROW_NUMBERS, self.numbers, strict=True))
        for name, truth, size in (
            ("loss", loss, 1 + 2 * self.z_loss * self.lse.abs()),
            ("nll", self.nll, 1),
            ("lse", self.lse, 1),
            ("entropy", self.entropy, 1 + self.entropy),
            ("others", self.others, 1),
        ):
            close(name, numbers[name], truth, 2 * self.step * size)
        finite = self.lse.isfinite()
        first = self.z.argmax(1) == self.target
        largest = self.z.topk(min(2, self.z.shape[1]), 1).values  # in float32 logits may tie that differ here
        apart = largest[:, 0] - largest[:, -1] > self.step
        assert bool((self.correct == first)[finite & apart].all()), "correct"

    def coefficients(self, scale: Tensor, entropy_scale: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        a = scale.double() * (1 + 2 * self.z_loss * self.lse)
        b = torch.zeros_like(a)
        if entropy_scale is not None:
            a, b = a - entropy_scale.double() * self.entropy, -entropy_scale.double()
        return a[:, None], b[:, None], (scale.double() * (1 - self.smoothing))[:, None]

    def gradient_size(self, a: Tensor, b: Tensor, t: Tensor) -> Tensor:
        """(n, 1): how large a gradient may be whose error is to be judged; infinite where it is no number."""
        logs = (self.entropy + self.lse.abs()).nan_to_num(0, 0, 0)[:, None]
        return ((a.abs() + b.abs() * (1 + logs) + t.abs()) / self.temperature).nan_to_num(nan=math.inf)

    def part(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.where(self.p == 0, 0, self.p * (a + b * self.log_p))

    def kept(self, log_threshold: float | Tensor) -> Tensor:
        """(n, V) bool: the target, and the entries with p > threshold (1 - p of the target)."""
        above = self.log_p > self.others.log()[:, None] + log_threshold
        return above & (self.p > 0) | (self.hit > 0)

    def unsure(self, log_threshold: float, step: Tensor) -> Tensor:
        """(n, V): the probability of entries that a rounding of a logit decides about."""
        return torch.where(self.kept(log_threshold - step) & ~self.kept(log_threshold + step), self.p, 0)


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


def counted(draw: Callable, rows: Rows) -> tuple[float, Tensor, Tensor]:
    """log_threshold, and what `count` says of the rows: kept and dropped_mass."""
    threshold = math.log(draw(st.sampled_from((2.0**-4, 2.0**-12, 0.5))))
    kept = rows.arena.empty((rows.n,), torch.int64)
    mass = rows.arena.empty((rows.n,), torch.float32)
    extension.operators("cpp").count(
        rows.logits, rows.target, *rows.options().values(), threshold, rows.numbers, rows.correct, kept, mass
    )
    return threshold, kept, mass


@st.composite
def count(draw: Callable) -> None:
    arena = draw(arenas())
    rows = Rows(draw, arena)
    threshold = math.log(draw(st.sampled_from((2.0**-4, 2.0**-12, 0.5))))
    kept, mass = arena.empty((rows.n,), torch.int64), arena.empty((rows.n,), torch.float32)
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
    finite = rows.lse.isfinite() & ((rows.others > 1e-30) | (rows.others == 0))  # exponentials in float32 end at 1e-38
    step = 4 * rows.step[:, None]
    surely, perhaps = ((rows.kept(threshold + sign * step) & finite[:, None]).sum(1) for sign in (1, -1))
    assert bool(((kept >= surely) & (kept <= perhaps))[finite].all()), "kept"
    truth = torch.where(rows.kept(threshold), 0, rows.p).sum(1).masked_fill(~finite, math.nan)
    close("dropped_mass", mass, truth, rows.unsure(threshold, step).sum(1) + 4 * rows.step * rows.others + 1e-30)


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
    a, b, t = rows.coefficients(scale, entropy_scale)
    truth = (rows.part(a, b) - t * rows.hit) * rows.slope
    row = torch.repeat_interleave(torch.arange(rows.n), kept)
    assert bool(((columns >= 0) & (columns < rows.z.shape[1])).all()), "columns"
    size = rows.gradient_size(a, b, t)
    close("values", values, truth[row, columns.long()], (8 * rows.step[:, None] * size)[row].squeeze(1))
    dz = rows.part(a, b) - t * rows.hit
    sums = torch.zeros(rows.n, dtype=torch.float64).index_add_(0, row, dz[row, columns.long()])
    close("kept_sum", kept_sum, sums, (8 * rows.step[:, None] * size).squeeze(1))


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
    name = "pair_divergences" if of_pairs else "mixture_divergences"
    arguments = {"logits": z, "weight": weight, "mask": mask, "divergence": divergence, "gradient": gradient}
    if not call(draw, arena, name, arguments):
        return
    leaf = z.double().requires_grad_()
    truth = reference.divergences(leaf, weight.double(), mask)
    loss = reference.group_loss(truth, weight.double()) + 0 * leaf.sum()  # one row alone has no pair
    loss.backward()
    step = ROUNDING[torch.float32] * (1 + scale) * (1 + spread)
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
    "row_kernel_": row_kernel_,
    "count": count,
    "entries": entries,
    "background": background,
    "gather_rows": gather_rows,
    "divergences": divergences,
}
