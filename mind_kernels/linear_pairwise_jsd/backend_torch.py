"""Group kernels in plain PyTorch, on any device: divergences and their gradient in float64, from float32 logits.

In float64 the plain formulas are accurate enough: with s = p + q and h = sum p log p,
    JSD = (h_p + h_q) / 2 - sum (s log s) / 2 + log 2,   F'_i = sum_j w_ij / 2 (log p_i - log s_ij) + constant.
If P and Q are nearly equal, these terms cancel up to an error of about 1e-16: relative to a JSD of 1e-9 (log-ratios of
1e-4) that is 1e-7; float32 would have no correct digit. Rows that are equal bit by bit are found, and get exactly 0.
There is one logarithm per pair and column; the pairs' sums, and the sums over the pairs of a row, take two passes and a
small product.

Peak memory: the gradient beside the logits, and the float64 buffers of one block of groups (on a CPU one group).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import hardshrink

from mind_kernels.row_chunks import chunks, rows_per_block

# Smallest log-probability of pairs, relative to a row's largest: no p is 0, so the log of a sum of two is finite.
_LEAST = math.log(1e-300)
# The same for a mixture, which needs no logarithm of a probability: it only replaces minus infinity.
LOWEST = -1e300
# If a row gives probability to a token to which the mixture gives none, the computed divergence is p times 1e300.
_INFINITE = 1e200
# Gradients of the tiny probabilities that replace 0 are smaller.
_NO_GRADIENT = 1e-250
# Columns that are compared first: rows that agree in them rarely differ in others.
_PREFIX = 64


class Buffers:
    """Float64 log p, p and F' of a block of groups, and pairs of rows for a block of columns; reused by all blocks."""

    def __init__(self, logits: Tensor, pairs: int) -> None:
        groups, count, vocabulary = logits.shape
        self.groups = min(max(1, rows_per_block(vocabulary, logits.device) // (2 * count)), max(1, groups))
        self.columns = min(rows_per_block(2 * self.groups * max(1, pairs), logits.device), vocabulary)

        def empty(*shape: int) -> Tensor:
            return torch.empty(shape, dtype=torch.float64, device=logits.device)

        self.log_p, self.p, self.derivative = (empty(self.groups, count, vocabulary) for _ in range(3))
        self.sums, self.log_sums = (empty(self.groups, pairs, self.columns) for _ in range(2))

    def fill(
        self, logits: Tensor, least: float, softmax: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """log p, p and memory for F', from logits (g, K, V); logits are clamped to at least their row's largest plus
        `least`.

        `softmax` is that largest logit and the sum of e^(z - largest), (g, K, 1) each; None: computed from these
        logits.
        """
        log_p, p, derivative = (buffer[: len(logits)] for buffer in (self.log_p, self.p, self.derivative))
        maximum = logits.amax(-1, keepdim=True) if softmax is None else softmax[0]
        log_p.copy_(logits).sub_(maximum).clamp_(min=least)
        torch.exp(log_p, out=p)
        total = p.sum(-1, keepdim=True) if softmax is None else softmax[1]
        log_p.sub_(total.log())
        p.div_(total)
        return log_p, p, derivative


class Steps(Protocol):
    """The steps of a divergence; for G groups with M divergences each. `part` is a block of g groups."""

    least: float
    """Logits are clamped to at least this number plus their row's largest."""

    def sums(self, part: slice, log_p: Tensor, p: Tensor, derivative: Tensor) -> Tensor:
        """The sums (g, M), over these columns of log p and p (g, K, columns), from which `values` computes the
        divergences. Fills `derivative` with F' and may overwrite `log_p`."""
        ...

    def values(self, sums: Tensor) -> Tensor:
        """The divergences (G, M), from the sums over all columns."""
        ...

    def gradient_(self, part: slice, p: Tensor, derivative: Tensor, scalar: Tensor, values: Tensor) -> Tensor:
        """Overwrites F' by p (F' - S), given S (g, K, 1) and the divergences (g, M)."""
        ...


def run(
    logits: Tensor,  # (G, K, V)
    pairs: int,  # the number of pairs that need buffers
    steps_of: Callable[[Buffers], Steps],
    with_gradient: bool,
) -> tuple[Tensor, Tensor | None]:
    """The divergences (G, M) and the gradient in the dtype of the logits, block by block."""
    buffers = Buffers(logits, pairs)
    steps = steps_of(buffers)
    gradient = torch.empty_like(logits) if with_gradient else None
    found = []
    for part in chunks(len(logits), buffers.groups):
        log_p, p, derivative = buffers.fill(logits[part], steps.least)
        found.append(steps.values(steps.sums(part, log_p, p, derivative)))
        if gradient is not None:
            weighted, mass = row_sums(p, derivative)
            scalar = (weighted / mass)[..., None]
            store(gradient[part], steps.gradient_(part, p, derivative, scalar, found[-1]))
    return torch.cat(found), gradient


def row_sums(p: Tensor, derivative: Tensor) -> tuple[Tensor, Tensor]:
    """Sums of p F' and of p, (g, K) each: S is computed from the same numbers as F', so that a rounding error of log p
    cancels in F' - S."""
    return torch.linalg.vecdot(p, derivative), p.sum(-1)


def store(gradient: Tensor, of_logits: Tensor) -> None:
    """Stores a block's gradient (g, K, V), converted from float64."""
    exact = gradient.dtype == of_logits.dtype
    gradient.copy_(hardshrink(of_logits, _NO_GRADIENT) if exact else of_logits)


class JsdSteps:
    """See `Steps`: the JSDs of the pairs, given half their weights (G, pairs)."""

    least = _LEAST

    def __init__(self, half: Tensor, count: int, buffers: Buffers) -> None:
        self._half, self._count, self._buffers = half, count, buffers
        self._first, self._second = pairs_of(count, half.device)

    def sums(self, part: slice, log_p: Tensor, p: Tensor, derivative: Tensor) -> Tensor:
        buffers, count, pairs = self._buffers, self._count, len(self._first)
        to_rows = log_p.new_zeros(len(log_p), count, pairs)
        pair = torch.arange(pairs, device=log_p.device)
        to_rows[:, self._first, pair] = to_rows[:, self._second, pair] = -self._half[part]
        torch.mul(log_p, -to_rows.sum(-1, keepdim=True), out=derivative)
        sum_log = log_p.new_zeros(len(log_p), pairs)
        for columns in chunks(log_p.shape[2], buffers.columns):
            sums, log_sums = (b[: len(p), :, : columns.stop - columns.start] for b in (buffers.sums, buffers.log_sums))
            for gap, rows in gaps(count):
                torch.add(p[:, : count - gap, columns], p[:, gap:, columns], out=sums[:, rows])
            torch.log(sums, out=log_sums)
            derivative[:, :, columns].baddbmm_(to_rows, log_sums)
            sum_log += sums.mul_(log_sums).sum(-1)
        negative_entropy = torch.linalg.vecdot(p, log_p)
        return (negative_entropy[:, self._first] + negative_entropy[:, self._second] - sum_log) / 2

    def values(self, sums: Tensor) -> Tensor:
        return (sums + math.log(2)).clamp_(min=0)

    def gradient_(self, part: slice, p: Tensor, derivative: Tensor, scalar: Tensor, values: Tensor) -> Tensor:
        return derivative.sub_(scalar).mul_(p)


class MixtureSteps:
    """See `Steps`: the divergences of the rows from their mixture, given their weights (G, K), 0 if absent.

    log(p_k / m) is computed relative to the largest p of a column among the rows with weight, so that equal rows give
    0.
    """

    least = LOWEST

    def __init__(self, weight: Tensor, total: Tensor) -> None:
        self._weight, self._share = weight, torch.where(total > 0, weight / total, 0)

    def sums(self, part: slice, log_p: Tensor, p: Tensor, derivative: Tensor) -> Tensor:
        share = self._share[part]
        member = (share > 0)[..., None]
        reference = torch.where(member, log_p, LOWEST).amax(1, keepdim=True)
        # Also of a nan, which another group may have; on a GPU the host would have to wait for the result.
        if log_p.is_cuda or not float(reference.amin()) >= _LEAST:
            torch.sub(log_p, reference, out=derivative).clamp_(max=0).expm1_()
        else:
            largest = torch.where(member, p, 0).amax(1, keepdim=True)
            torch.sub(p, largest, out=derivative).div_(largest)
        log_mixture = torch.bmm(share[:, None], derivative).log1p_().add_(reference)
        torch.sub(log_p, log_mixture, out=derivative)
        kl = torch.linalg.vecdot(p, derivative)
        derivative.mul_(self._weight[part, :, None])
        return kl

    def values(self, sums: Tensor) -> Tensor:
        kl = sums.clamp(min=0)
        return kl.masked_fill_(kl > _INFINITE, math.inf)

    def gradient_(self, part: slice, p: Tensor, derivative: Tensor, scalar: Tensor, values: Tensor) -> Tensor:
        return derivative.sub_(scalar).mul_(p)


Run = Callable[[Tensor, int, Callable[[Buffers], Steps], bool], tuple[Tensor, Tensor | None]]
"""`run`, or its counterpart for a shard."""


def pair_divergences(
    logits: Tensor,  # (G, K, V) float32 or float64, softcap and temperature applied
    pair_weight: Tensor,  # (G, K, K), its upper triangle counts
    mask: Tensor,  # (G, K)
    with_gradient: bool,
) -> tuple[Tensor, Tensor | None]:
    """See `contract.GroupKernels`."""
    return pairs_by(run, distinct(logits), logits, pair_weight, mask, with_gradient)


def pairs_by(
    run: Run, differ: Tensor, logits: Tensor, pair_weight: Tensor, mask: Tensor, with_gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """`pair_divergences`; `differ` (G, pairs) bool says which pairs have rows that differ."""
    groups, count, _ = logits.shape
    first, second = pairs_of(count, logits.device)
    counted = mask[:, first] & mask[:, second] & differ
    half = torch.where(counted, pair_weight[:, first, second] / 2, 0).double()
    values, gradient = run(logits, len(first), lambda buffers: JsdSteps(half, count, buffers), with_gradient)
    values = torch.where(counted, values.to(logits.dtype), 0)
    jsd = logits.new_zeros(groups, count, count)
    jsd[:, first, second] = jsd[:, second, first] = values
    return jsd, gradient


def mixture_divergences(
    logits: Tensor,  # (G, K, V) float32 or float64, softcap and temperature applied
    mixture_weight: Tensor,  # (G, K)
    mask: Tensor,  # (G, K)
    with_gradient: bool,
) -> tuple[Tensor, Tensor | None]:
    """See `contract.GroupKernels`."""
    return mixture_by(run, logits, mixture_weight, mask, with_gradient)


def mixture_by(
    run: Run, logits: Tensor, mixture_weight: Tensor, mask: Tensor, with_gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """`mixture_divergences`."""
    weight = torch.where(mask, mixture_weight, 0).double()
    total = weight.sum(1, keepdim=True)
    values, gradient = run(logits, 0, lambda _: MixtureSteps(weight, total), with_gradient)
    return torch.where(mask & (total > 0), values.to(logits.dtype), 0), gradient


def pairs_of(count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The rows i < j of each pair, ordered by their distance: (0, 1), (1, 2), ..., (0, 2), ..."""
    rows = torch.arange(count, device=device)
    gaps = range(1, count)
    return torch.cat([rows[: count - gap] for gap in gaps]), torch.cat([rows[gap:] for gap in gaps])


def gaps(count: int):
    """Each distance between two rows, and the slice of its pairs: all pairs of a distance are sums of two slices of
    rows."""
    start = 0
    for gap in range(1, count):
        yield gap, slice(start, start + count - gap)
        start += count - gap


def distinct(logits: Tensor) -> Tensor:
    """(G, pairs) bool: whether a pair's divergence has to be computed: its rows differ, or have no softmax."""
    differ = differing(logits)
    if logits.device.type == "cpu" and bool(differ.all()):  # on a GPU the host would have to wait for the result
        return differ
    return differ | without_softmax(logits.amax(-1))


def differing(logits: Tensor) -> Tensor:
    """(G, pairs) bool: whether the two rows of a pair differ."""

    def differ(part: Tensor) -> Tensor:
        count = part.shape[1]
        return torch.cat([(part[:, : count - gap] != part[:, gap:]).any(-1) for gap, _ in gaps(count)], 1)

    if logits.device.type == "cpu":  # on a GPU the host would have to wait for the result
        in_prefix = differ(logits[..., :_PREFIX])
        if bool(in_prefix.all()):
            return in_prefix
    return differ(logits)


def without_softmax(largest: Tensor) -> Tensor:
    """(G, pairs) bool: whether the first row of a pair has no softmax, given the largest logit of each row (G, K)."""
    first, _ = pairs_of(largest.shape[1], largest.device)
    return ~largest[:, first].isfinite()
