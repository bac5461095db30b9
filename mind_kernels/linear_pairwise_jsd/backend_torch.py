"""Group kernels in plain PyTorch, on any device: divergences and their gradient in float64, from float32 logits.

In float64 the plain formulas serve: with s = p + q and h = sum p log p,
    JSD = (h_p + h_q) / 2 - sum (s log s) / 2 + log 2,   F'_i = sum_j w_ij / 2 (log p_i - log s_ij) + constant,
whose terms cancel to about 1e-16 where P and Q nearly coincide: relative to a JSD of 1e-9 (log-ratios of 1e-4) that is
1e-7, where float32 would have nothing left. Bitwise equal rows are found, and are exactly 0 apart. One logarithm per
pair and column; the pairs' sums and the way back to their rows are two passes and a small product.

Peak memory: the gradient beside the logits, and the float64 buffers of one block of groups (on a CPU one group).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import hardshrink

from mind_kernels.row_chunks import chunks, rows_per_block

# Smallest log-probability of pairs, relative to a row's largest: no p is 0, so the log of a sum of two is finite.
_LEAST = math.log(1e-300)
# The same of a mixture, which takes no logarithm of a probability: in place of minus infinity alone.
LOWEST = -1e300
# A divergence from a mixture without probability where the row has some is p times 1e300.
_INFINITE = 1e200
# Gradients of probabilities that stand for 0 are smaller.
_NO_GRADIENT = 1e-250
# Columns that are compared first: rows that agree in them are rare, save where all columns agree.
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

    def fill(self, logits: Tensor, least: float) -> tuple[Tensor, Tensor, Tensor]:
        """log p, p and room for F', of logits (g, K, V); a logit counts as at least `least` below its row's largest."""
        log_p, p, derivative = (buffer[: len(logits)] for buffer in (self.log_p, self.p, self.derivative))
        log_p.copy_(logits).sub_(logits.amax(-1, keepdim=True)).clamp_(min=least)
        total = torch.exp(log_p, out=p).sum(-1, keepdim=True)
        log_p.sub_(total.log())
        p.div_(total)
        return log_p, p, derivative


def pair_divergences(
    logits: Tensor,  # (G, K, V) float32 or float64, softcap and temperature applied
    pair_weight: Tensor,  # (G, K, K), its upper triangle counts
    mask: Tensor,  # (G, K)
    with_gradient: bool,
) -> tuple[Tensor, Tensor | None]:
    """See `contract.GroupKernels`."""
    groups, count, _ = logits.shape
    first, second = pairs_of(count, logits.device)
    counted = mask[:, first] & mask[:, second] & distinct(logits)
    half = torch.where(counted, pair_weight[:, first, second] / 2, 0).double()
    buffers = Buffers(logits, len(first))

    def block(part: slice) -> tuple[Tensor, Tensor | None]:
        log_p, p, derivative = buffers.fill(logits[part], _LEAST)
        to_rows = log_p.new_zeros(len(log_p), count, len(first))
        pair = torch.arange(len(first), device=logits.device)
        to_rows[:, first, pair] = to_rows[:, second, pair] = -half[part]
        torch.mul(log_p, -to_rows.sum(-1, keepdim=True), out=derivative)
        sum_log = log_p.new_zeros(len(log_p), len(first))
        for columns in chunks(logits.shape[2], buffers.columns):
            sums, log_sums = (b[: len(p), :, : columns.stop - columns.start] for b in (buffers.sums, buffers.log_sums))
            for gap, rows in gaps(count):
                torch.add(p[:, : count - gap, columns], p[:, gap:, columns], out=sums[:, rows])
            torch.log(sums, out=log_sums)
            derivative[:, :, columns].baddbmm_(to_rows, log_sums)
            sum_log += sums.mul_(log_sums).sum(-1)
        negative_entropy = torch.linalg.vecdot(p, log_p)
        own = (negative_entropy[:, first] + negative_entropy[:, second] - sum_log) / 2
        values = (own + math.log(2)).clamp_(min=0)
        return values, times_p_(derivative, p) if with_gradient else None

    values, gradient = run_blocks(logits, buffers.groups, block, with_gradient)
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
    """See `contract.GroupKernels`.

    log(p_k / m) is taken relative to the largest p of a column among the rows with weight: equal rows give 0.
    """
    weight = torch.where(mask, mixture_weight, 0).double()
    total = weight.sum(1, keepdim=True)
    share = torch.where(total > 0, weight / total, 0)
    buffers = Buffers(logits, 0)

    def block(part: slice) -> tuple[Tensor, Tensor | None]:
        log_p, p, derivative = buffers.fill(logits[part], LOWEST)
        member = (share[part] > 0)[..., None]
        reference = torch.where(member, log_p, LOWEST).amax(1, keepdim=True)
        if log_p.is_cuda or float(reference.amin()) < _LEAST:  # a GPU would have to report the result first
            torch.sub(log_p, reference, out=derivative).clamp_(max=0).expm1_()
        else:
            largest = torch.where(member, p, 0).amax(1, keepdim=True)
            torch.sub(p, largest, out=derivative).div_(largest)
        log_mixture = torch.bmm(share[part, None], derivative).log1p_().add_(reference)
        torch.sub(log_p, log_mixture, out=derivative)
        kl = torch.linalg.vecdot(p, derivative).clamp_(min=0)
        kl.masked_fill_(kl > _INFINITE, math.inf)
        return kl, times_p_(derivative.mul_(weight[part, :, None]), p) if with_gradient else None

    values, gradient = run_blocks(logits, buffers.groups, block, with_gradient)
    return torch.where(mask & (total > 0), values.to(logits.dtype), 0), gradient


def run_blocks(
    logits: Tensor, size: int, block: Callable[[slice], tuple[Tensor, Tensor | None]], with_gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """block(groups) -> (values, gradient or None) over all groups; the gradient in the dtype of the logits."""
    gradient = torch.empty_like(logits) if with_gradient else None
    values = []
    for part in chunks(len(logits), size):
        value, of_logits = block(part)
        values.append(value)
        if gradient is not None and of_logits is not None:
            exact = gradient.dtype == of_logits.dtype
            gradient[part] = hardshrink(of_logits, _NO_GRADIENT) if exact else of_logits
    return torch.cat(values), gradient


def times_p_(derivative: Tensor, p: Tensor, infinite: Tensor | None = None) -> Tensor:
    """p (F' - S) in place of F', (g, K, V) both; nan in the rows that are `infinite` (g, K)."""
    # S from the same numbers as F', so that a rounding error of log p cancels in F' - S.
    scalar = torch.linalg.vecdot(p, derivative) / p.sum(-1)
    if infinite is not None:
        scalar.masked_fill_(infinite, math.nan)
    return derivative.sub_(scalar[..., None]).mul_(p)


def pairs_of(count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The rows i < j of each pair, by their distance: (0, 1), (1, 2), ..., (0, 2), ..."""
    rows = torch.arange(count, device=device)
    gaps = range(1, count)
    return torch.cat([rows[: count - gap] for gap in gaps]), torch.cat([rows[gap:] for gap in gaps])


def gaps(count: int):
    """Each distance of two rows, and where its pairs stand: so all of them are sums of two slices."""
    start = 0
    for gap in range(1, count):
        yield gap, slice(start, start + count - gap)
        start += count - gap


def distinct(logits: Tensor) -> Tensor:
    """(G, pairs) bool: the two rows of a pair differ. Non-finite rows count as different."""

    def differ(part: Tensor) -> Tensor:
        count = part.shape[1]
        return torch.cat([(part[:, : count - gap] != part[:, gap:]).any(-1) for gap, _ in gaps(count)], 1)

    if logits.device.type == "cpu":  # a GPU would have to report the result first
        in_prefix = differ(logits[..., :_PREFIX])
        if bool(in_prefix.all()):
            return in_prefix
    return differ(logits)
