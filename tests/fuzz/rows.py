"""Random rows of the row operators, and what their statistics, kept entries and gradients are in float64."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from hypothesis import strategies as st
from torch import Tensor

from mind_kernels.head import Head
from mind_kernels.linear_cross_entropy.batch_rows import SPAN
from mind_kernels.linear_cross_entropy.compiled_rows import ROW_NUMBERS
from mind_kernels.linear_cross_entropy.shard_contract import RowSums
from tests.fuzz.arguments import DTYPES, Arena, logits

ROUNDING = {torch.float32: 2.0**-20, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}


def close(name: str, value: Tensor, truth: Tensor, allowed: float | Tensor) -> None:
    """`value` is `truth` (float64), to `allowed`; where that is not finite, no number is asked for."""
    expected = truth.isfinite()
    wrong = expected & ~((value.double() - truth).abs() <= allowed)
    assert not bool(wrong.any()), (
        f"{name}: {value[wrong][:3].tolist()} where the definition has {truth[wrong][:3].tolist()}"
    )


class Rows:
    """Logits, targets and options of a row operator, and the definition of its statistics."""

    MOST = 6
    COLUMNS = st.integers(1, 90) | st.integers(2040, 2100)

    def __init__(self, draw: Callable, arena: Arena) -> None:
        rows, columns = draw(st.integers(0, self.MOST)), draw(self.COLUMNS)
        self.arena, self.n = arena, rows
        x, rounding = self.project(draw, columns)
        self.target = arena.put(arena.integers(columns, rows))
        self.softcap, self.temperature = draw(st.sampled_from((0.0, 0.0, 5.0))), draw(st.sampled_from((1.0, 1.0, 0.7)))
        self.smoothing, self.z_loss = draw(st.sampled_from((0.0, 0.1))), draw(st.sampled_from((0.0, 1e-3)))
        self.numbers = arena.empty((len(ROW_NUMBERS), rows), torch.float32)
        self.correct = arena.empty((rows,), torch.bool)
        head = Head(torch.empty(columns, 1), None, self.softcap or None, self.temperature)
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
        self.step = ROUNDING[torch.float32] * (1 + self.z.nan_to_num(0, 0, 0).abs().amax(1) + rounding)

    def project(self, draw: Callable, columns: int) -> tuple[Tensor, Tensor | float]:
        """(n, V) logits before softcap and temperature, in float64, and the size (n,) of the sums that give them."""
        self.logits = logits(draw, self.arena, self.n, columns)
        return self.logits.double(), 0.0

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

    def gradient(self, scale: Tensor, entropy_scale: Tensor | None) -> tuple[Tensor, Tensor]:
        """(n, V): that of z, without a uniform part; (n,): how far its entries and sums may be off."""
        a, b, t = self.coefficients(scale, entropy_scale)
        return self.part(a, b) - t * self.hit, (8 * self.step[:, None] * self.gradient_size(a, b, t)).squeeze(1)

    def part(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.where(self.p == 0, 0, self.p * (a + b * self.log_p))

    def kept(self, log_threshold: float | Tensor) -> Tensor:
        """(n, V) bool: the target, and the entries with p > threshold (1 - p of the target)."""
        above = self.log_p > self.others.log()[:, None] + log_threshold
        return above & (self.p > 0) | (self.hit > 0)

    def unsure(self, log_threshold: float, step: Tensor) -> Tensor:
        """(n, V): the probability of entries that a rounding of a logit decides about."""
        return torch.where(self.kept(log_threshold - step) & ~self.kept(log_threshold + step), self.p, 0)

    def check_counts(self, kept: Tensor, mass: Tensor, threshold: float) -> None:
        """`kept` and `dropped_mass`, as far as roundings leave no doubt."""
        finite = self.lse.isfinite() & (
            (self.others > 1e-30) | (self.others == 0)
        )  # float32's exponentials end at 1e-38
        step = 4 * self.step[:, None]
        surely, perhaps = ((self.kept(threshold + sign * step) & finite[:, None]).sum(1) for sign in (1, -1))
        assert bool(((kept >= surely) & (kept <= perhaps))[finite].all()), "kept"
        truth = torch.where(self.kept(threshold), 0, self.p).sum(1).masked_fill(~finite, math.nan)
        close("dropped_mass", mass, truth, self.unsure(threshold, step).sum(1) + 4 * self.step * self.others + 1e-30)

    def check_spans(self, mass: Tensor, threshold: float) -> None:
        """`span_mass`, as `dropped_mass` of each span."""
        known = self.lse.isfinite() & ((self.others > 1e-30) | (self.others == 0))
        step = 4 * self.step[:, None]
        dropped = torch.where(self.kept(threshold), 0, self.p)
        allowed = self.unsure(threshold, step) + step * self.p * (1 - self.hit)
        truth = self.of_spans(dropped).masked_fill(~known[:, None], math.nan)
        close("span_mass", mass, truth, self.of_spans(allowed) + 1e-30)

    def check_small(
        self,
        scale: Tensor,
        entropy_scale: Tensor | None,
        kept: Tensor,
        columns: Tensor,
        values: Tensor,
        least: float,
        small_sum: Tensor,
    ) -> None:
        """`small_sum`: in each span the sum of the gradient of z over the kept entries whose value is small."""
        dz, allowed = self.gradient(scale, entropy_scale)
        place = (torch.repeat_interleave(torch.arange(self.n), kept), columns.long())
        small = torch.zeros_like(self.hit, dtype=torch.bool).index_put_(place, values.abs() <= least)
        truth = self.of_spans(torch.where(small, dz, 0))
        close("small_sum", small_sum, truth, allowed[:, None].expand_as(truth))

    @staticmethod
    def of_spans(values: Tensor) -> Tensor:
        """(n, spans): the sums of values (n, V) over each span of the vocabulary."""
        return torch.stack([part.sum(1) for part in values.split(SPAN, 1)], 1)

    def check_entries(
        self,
        scale: Tensor,
        entropy_scale: Tensor | None,
        kept: Tensor,
        columns: Tensor,
        values: Tensor,
        kept_sum: Tensor,
    ) -> None:
        """The gradient at the kept entries, and the sum over those of a row of that of z."""
        dz, allowed = self.gradient(scale, entropy_scale)
        row = torch.repeat_interleave(torch.arange(self.n), kept)
        assert bool(((columns >= 0) & (columns < self.z.shape[1])).all()), "columns"
        close("values", values, (dz * self.slope)[row, columns.long()], allowed[row])
        sums = torch.zeros(self.n, dtype=torch.float64).index_add_(0, row, dz[row, columns.long()])
        close("kept_sum", kept_sum, sums, allowed)


class StreamedRows(Rows):
    """The same of rows straight from hidden states, a head and perhaps a bias."""

    MOST = 60  # strips of rows, whole and not
    COLUMNS = Rows.COLUMNS | st.integers(SPAN - 3, SPAN + 200)

    def project(self, draw: Callable, columns: int) -> tuple[Tensor, Tensor | float]:
        size, dtype = draw(st.integers(1, 20) | st.integers(318, 324)), draw(st.sampled_from(DTYPES))
        scale = draw(st.sampled_from((0.0, 1.0, 8.0)))
        gaps = st.sampled_from((0, 0, 3))
        values = self.arena.normal(self.n, size, scale=scale, dtype=dtype)
        if self.n and draw(st.integers(0, 9)) == 0:
            values[-1, 0] = draw(st.sampled_from((math.nan, math.inf, -math.inf)))
        self.hidden = self.arena.put(values, gap=draw(gaps))
        self.weight = self.arena.put(self.arena.normal(columns, size, scale=size**-0.5, dtype=dtype), gap=draw(gaps))
        self.bias = self.arena.put(self.arena.normal(columns, dtype=dtype)) if draw(st.booleans()) else None
        hidden, weight = self.hidden.double(), self.weight.double()
        rounding = (hidden.abs() @ weight.abs().T).amax(1).nan_to_num(0, 0, 0)
        x = hidden @ weight.T
        return (x if self.bias is None else x + self.bias.double()), rounding

    def inputs(self) -> dict[str, Tensor | None]:
        return {"hidden": self.hidden, "weight": self.weight, "bias": self.bias, "target": self.target}


class ShardRows:
    """The same of rows of a shard, with the targets of some in another one."""

    def __init__(self, rows: Rows) -> None:
        self.rows, arena = rows, rows.arena
        self.here = arena.integers(2, rows.n) > 0
        self.target = arena.put(torch.where(self.here, rows.target, -1))
        self.hit = rows.hit * self.here[:, None]
        self.sums = arena.empty((len(RowSums._fields) - 1, rows.n), torch.float32)
        self.argmax = arena.empty((rows.n,), torch.int64)

    def check_sums(self, adds_logits: bool) -> None:
        z, step = self.rows.z, self.rows.step
        top = z.amax(1)
        d = z - top[:, None]
        e = d.exp()
        terms, size = torch.where(e == 0, 0, e * d), torch.where(e == 0, 0, e * (1 - d)).sum(1)
        at_target = torch.where(self.here, z.gather(1, self.rows.target[:, None]).squeeze(1), math.nan)
        found = RowSums(*self.sums.unbind(), self.argmax)
        close("maximum", found.maximum, top, step)
        close("others", found.others, (e * (1 - self.hit)).sum(1), 2 * step * (1 + size))
        close("moment", found.moment, terms.sum(1), 4 * step * (1 + size))
        close("at_target", found.at_target, at_target, step)
        if adds_logits:
            close("sum", found.sum, z.sum(1), 2 * step * z.shape[1])
        largest = z.topk(min(2, z.shape[1]), 1).values
        apart = (largest[:, 0] - largest[:, -1] > step) | (largest.shape[1] == 1)
        assert bool((found.argmax == z.argmax(1))[top.isfinite() & apart].all()), "argmax"
        assert bool(((found.argmax >= 0) & (found.argmax < z.shape[1])).all()), "argmax"

    def terms(self, draw: Callable) -> dict[str, Tensor | None]:
        """Of whole rows whose other entries are any."""
        arena, n = self.rows.arena, self.rows.n

        def some() -> Tensor:
            return arena.put(arena.normal(n))

        return {
            "maximum": arena.put(self.rows.z.amax(1).float() + arena.normal(n).abs()),
            "log_total": arena.put(arena.normal(n).abs()),
            "a": some(),
            "b": some() if draw(st.booleans()) else None,
            "at_target": some(),
            "uniform": some() if draw(st.booleans()) else None,
        }

    def gradient_of(self, terms: dict[str, Tensor | None], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """(n, V): that of the projected logits, and how far it may be off in this dtype."""
        zeros = torch.zeros(self.rows.n)
        of = {name: (zeros if term is None else term).double()[:, None] for name, term in terms.items()}
        log_p = self.rows.z - of["maximum"] - of["log_total"]
        p = log_p.exp()
        dz = torch.where(p == 0, 0, p * (of["a"] + of["b"] * log_p))
        dz = torch.where(self.hit > 0, of["at_target"], dz) - of["uniform"]
        dz = torch.where(of["maximum"].isfinite(), dz, math.nan)
        size = (of["a"].abs() + 2 * of["b"].abs() + of["at_target"].abs() + of["uniform"].abs()) / self.rows.temperature
        step = 4 * (self.rows.step[:, None] + ROUNDING[torch.float32] * of["log_total"])
        return dz * self.rows.slope, (step + ROUNDING[dtype]) * size * torch.ones_like(dz)

    def check_counts(self, kept: Tensor, mass: Tensor, threshold: float) -> None:
        """`kept` and `kept_mass`, as far as roundings leave no doubt."""
        rows = self.rows
        rows.hit = self.hit
        # (A target of probability 1 that is said to be elsewhere, and is here, has no threshold.)
        finite = rows.lse.isfinite() & ((rows.others > 1e-30) | ((rows.others == 0) & self.here))
        step = 4 * rows.step[:, None]
        surely, perhaps = ((rows.kept(threshold + sign * step) & finite[:, None]).sum(1) for sign in (1, -1))
        assert bool(((kept >= surely) & (kept <= perhaps))[finite].all()), "kept"
        truth = torch.where(rows.kept(threshold), rows.p * (1 - rows.hit), 0).sum(1).masked_fill(~finite, math.nan)
        close("kept_mass", mass, truth, rows.unsure(threshold, step).sum(1) + 4 * rows.step + 1e-30)
