"""Row kernels of linear cross-entropy in plain PyTorch, on any device.

Passes over a chunk of logits, block by block, so that a block stays in the cache: softcap and temperature; tile maxima;
exponential and sum; then either the gradient in place, or a search for the entries above the threshold, only in tiles
whose maximum is above it. Peak memory: one chunk of logits and two blocks beside the gradients. Logits in the input's
dtype, everything after the product in float32 (float64 for float64 input).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mind_kernels.head import Head, scale_
from mind_kernels.linear_cross_entropy.contract import RowSpec, RowValues, RowWeights
from mind_kernels.linear_cross_entropy.shard_contract import GradientTerms, RowSums
from mind_kernels.linear_cross_entropy.tiles import entries_above, maxima
from mind_kernels.linear_cross_entropy.torch_entries import background, count_shard, entries
from mind_kernels.row_chunks import accumulation_dtype, chunks, gradient_dtype, may_be_nan, rows_per_block
from mind_kernels.sparse_gradient import Entries, dropped_share, most_kept, sort_entries

__all__ = [
    "SPARSE_CHUNKS",
    "STREAMED_CHUNKS",
    "background",
    "count_shard",
    "entries",
    "gather_rows",
    "row_kernel_",
    "shard_gradient_",
    "shard_sums",
    "sort_entries",
    "sparse_rows",
    "statistics",
]

SPARSE_CHUNKS = 1
STREAMED_CHUNKS = 1


class _Blocks:
    """Iterates over blocks of logits; all use the same two buffers, since fresh pages cost more time than exp."""

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits
        self.size = min(rows_per_block(logits.shape[1], logits.device), max(1, logits.shape[0]))
        dtype = accumulation_dtype(logits.dtype)
        self._shifted, self._exponential = (
            torch.empty(self.size, logits.shape[1], dtype=dtype, device=logits.device) for _ in range(2)
        )

    def __iter__(self):
        for block in chunks(self.logits.shape[0], self.size):
            count = block.stop - block.start
            yield block, self._shifted[:count], self._exponential[:count]


class _Sums(NamedTuple):
    """Sums over the entries of rows, (n,) each."""

    total: Tensor  # of e^(z - maximum)
    log_total: Tensor
    others: Tensor  # of p, without the target's
    lse_others: Tensor  # log-sum-exp without the target; inf if all others have probability 0, so that none is above it


def _values(
    z: Tensor, target: Tensor, spec: RowSpec, maximum: Tensor, argmax: Tensor, shifted: Tensor, exponential: Tensor
) -> tuple[RowValues, _Sums]:
    """The rows' values and sums. With d = z - max, exponential becomes e^d, 0 at the target, and shifted d times
    that."""
    torch.sub(z, maximum[:, None], out=shifted)
    torch.exp(shifted, out=exponential)
    index = target[:, None]
    at_target, of_target = shifted.gather(1, index).squeeze(1), exponential.gather(1, index).squeeze(1)
    exponential.scatter_(1, index, 0)  # the sum of the others would lose its digits beside a target near 1
    others = exponential.sum(1)
    total = others + of_target
    log_total = torch.where(at_target == 0, others.log1p(), total.log())
    nll = log_total - at_target
    lse = log_total + maximum
    value = nll
    if spec.label_smoothing:
        value = (1 - spec.label_smoothing) * nll + spec.label_smoothing * (log_total - shifted.mean(1))
    if spec.z_loss:
        value = value + spec.z_loss * lse.square()
    mean = shifted.mul_(exponential).sum(1)
    lowest = torch.finfo(z.dtype).min
    if may_be_nan(mean):  # 0 times minus infinity has to be 0
        torch.sub(z, maximum[:, None], out=shifted).clamp_(min=lowest)
        mean = shifted.mul_(exponential).sum(1)
        lse = torch.where(maximum == -math.inf, maximum, lse)
    entropy = log_total - (mean + of_target * at_target.clamp(min=lowest)) / total
    lse_others = torch.where(others > 0, maximum + others.log(), math.inf)
    values = RowValues(value, nll, lse, entropy, argmax == target)
    return values, _Sums(total, log_total, others / total, lse_others)


def _to_logits(part: Tensor, head: Head) -> Tensor:
    """z of projected logits; the same tensor if neither dtype nor head change them."""
    z = part.to(accumulation_dtype(part.dtype))
    if head.softcap is None and head.temperature == 1.0:
        return z
    return head.to_logits_(z.clone() if z is part else z)


def row_kernel_(
    logits: Tensor,  # (n, V), projected
    target: Tensor,  # (n,), in [0, V)
    weights: RowWeights | None,  # (n,)
    spec: RowSpec,
) -> RowValues:
    """See `contract.RowKernels`."""
    out = []
    for block, shifted, exponential in _Blocks(logits):
        part = logits[block]
        z = _to_logits(part, spec.head)
        maximum, argmax, _ = maxima(z)
        slope = 1.0 if weights is None else spec.head.slope(z)
        values, sums = _values(z, target[block], spec, maximum, argmax, shifted, exponential)
        out.append(values)
        if weights is not None:
            part.copy_(_gradient_(shifted, exponential, sums, values, target[block], weights[block], spec, slope))
    return _joined(out)


def _joined(blocks: list[RowValues]) -> RowValues:
    """The values of all blocks; the largest logit is the target's only if that is a number."""
    values = RowValues(*(torch.cat(column) for column in zip(*blocks, strict=True)))
    return values._replace(correct=values.correct & values.nll.isfinite())


def _gradient_(
    shifted: Tensor,
    exponential: Tensor,
    sums: _Sums,
    values: RowValues,
    target: Tensor,
    weights: RowWeights,
    spec: RowSpec,
    slope: Tensor | float,
) -> Tensor:
    """The gradient (n, V) with respect to the projected logits, in the memory of `exponential`."""
    a, b, at_target = weights.coefficients(values, sums.others, spec)
    total = sums.total
    if b is None:
        dz = exponential.mul_((a / total)[:, None])
    else:
        dz = exponential.mul_(((a - b * sums.log_total) / total)[:, None]).addcmul_(shifted, (b / total)[:, None])
    dz.scatter_(1, target[:, None], at_target[:, None])
    uniform = weights.uniform(spec)
    if uniform is not None:
        dz.sub_(uniform[:, None])
    return scale_(dz, slope)


def shard_sums(logits: Tensor, target: Tensor, spec: RowSpec) -> RowSums:
    """See `shard_contract.ShardKernels`."""
    blocks = _Blocks(logits)
    found = [_sums_of_shard(logits[b], target[b], spec, *buffers) for b, *buffers in blocks]
    return RowSums(*map(torch.cat, zip(*found, strict=True)))


def _sums_of_shard(part: Tensor, target: Tensor, spec: RowSpec, shifted: Tensor, exponential: Tensor) -> RowSums:
    """The sums of one block of projected logits."""
    z = _to_logits(part, spec.head)
    maximum, argmax, _ = maxima(z)
    index = target.clamp(min=0)[:, None]
    torch.sub(z, torch.where(maximum == -math.inf, 0, maximum)[:, None], out=shifted)
    torch.exp(shifted, out=exponential)
    if may_be_nan(moment := torch.linalg.vecdot(exponential, shifted)):  # 0 times minus infinity has to be 0
        moment = torch.linalg.vecdot(exponential, shifted.clamp_(min=torch.finfo(z.dtype).min))
    exponential.scatter_(1, index, torch.where(target >= 0, 0, exponential.gather(1, index).squeeze(1))[:, None])
    at_target = z.gather(1, index).squeeze(1)
    z_sum = z.sum(1) if spec.label_smoothing else at_target
    return RowSums(maximum, exponential.sum(1), moment, at_target, z_sum, argmax)


def shard_gradient_(logits: Tensor, target: Tensor, terms: GradientTerms, spec: RowSpec) -> None:
    """See `shard_contract.ShardKernels`."""
    for block, log_p, p in _Blocks(logits):
        of_block, index = terms.of_rows(block), target[block].clamp(min=0)[:, None]
        z = _to_logits(logits[block], spec.head)
        slope = spec.head.slope(z)
        torch.sub(z, of_block.maximum[:, None], out=log_p).sub_(of_block.log_total[:, None])
        torch.exp(log_p, out=p)
        if of_block.b is None:
            dz = p.mul_(of_block.a[:, None])
        else:  # if p is 0, so is p log p
            factor = log_p.masked_fill_(p == 0, 0).mul_(of_block.b[:, None]).add_(of_block.a[:, None])
            dz = p.mul_(factor)
        at_target = torch.where(target[block] >= 0, of_block.at_target, dz.gather(1, index).squeeze(1))
        dz.scatter_(1, index, at_target[:, None])
        if of_block.uniform is not None:
            dz.sub_(of_block.uniform[:, None])
        logits[block].copy_(scale_(dz, slope))


def statistics(hidden: Tensor, target: Tensor, spec: RowSpec) -> RowValues:
    """See `contract.RowKernels`."""
    return row_kernel_(spec.head.project(hidden), target, None, spec)


def sparse_rows(hidden: Tensor, target: Tensor, spec: RowSpec, keep_logits: bool = True) -> _SparseRows:
    """See `contract.RowKernels`."""
    return _SparseRows(hidden, target, spec)


class _SparseRows:
    """See `contract.SparseRows`. If a single block exceeds the density limit, the search ends and `means` says so."""

    def __init__(self, hidden: Tensor, target: Tensor, spec: RowSpec) -> None:
        self._spec, self._target = spec, target
        self._logits = spec.head.project(hidden)
        found: list[tuple[Tensor, ...]] | None = []
        out, every = [], []
        for block, shifted, exponential in _Blocks(self._logits):
            z = _to_logits(self._logits[block], spec.head)
            maximum, argmax, tiles = maxima(z)
            values, sums = _values(z, target[block], spec, maximum, argmax, shifted, exponential)
            out.append(values)
            every.append(sums)
            if found is not None:
                entries = self._search(z, tiles, target[block], maximum, sums, block.start)
                if entries is None:
                    found = None
                else:
                    found.append(entries)
        self.values = _joined(out)
        self._sums = _Sums(*(torch.cat(column) for column in zip(*every, strict=True)))
        rows = len(target)
        self.kept = torch.zeros(rows, dtype=torch.int64, device=hidden.device)
        self.dropped_mass = torch.zeros_like(self.values.lse)
        self._given_up = found is None
        if found is not None:
            self._row, self._column, self._z, self._log_p = (torch.cat(column) for column in zip(*found, strict=True))
            self._p = self._log_p.exp()
            self._is_target = self._column == target[self._row]
            self.kept = torch.bincount(self._row, minlength=rows)
            kept = torch.zeros_like(self.dropped_mass).index_add_(0, self._row, self._p * ~self._is_target)
            self.dropped_mass = (self._sums.others - kept).clamp_(min=0)

    def _cut(self, sums: _Sums) -> Tensor:
        """(n,): logits above this number are kept, and the target's."""
        return sums.lse_others + self._spec.log_threshold

    def _search(
        self, z: Tensor, tiles: Tensor, target: Tensor, maximum: Tensor, sums: _Sums, start: int
    ) -> tuple[Tensor, ...] | None:
        """Row, column, logit and log-probability (entries,) of a block's kept entries; None above the density limit."""
        found = entries_above(z, tiles, self._cut(sums), target, most_kept(z.shape[1], z.device))
        if found is None:
            return None
        # lse = maximum + log_total would be rounded more than either; in this order p is as exact as in a dense
        # softmax.
        log_p = (found.z - maximum[found.row]) - sums.log_total[found.row]
        return found.row + start, found.column, found.z, log_p

    def means(self) -> tuple[float, float]:
        if self._given_up:
            return math.inf, 0.0
        share = dropped_share(self.dropped_mass, self._sums.others, self.values.lse)
        return float(self.kept.double().mean()), float(share.mean())

    def entries(self, weights: RowWeights) -> Entries:
        a, b, at_target = weights.coefficients(self.values, self._sums.others, self._spec)
        log_p = torch.where(self._p == 0, 0, self._log_p)
        values = self._p * (a[self._row] if b is None else a[self._row] + b[self._row] * log_p)
        values = torch.where(self._is_target, at_target[self._row], values)
        kept_sum = torch.zeros_like(a).index_add_(0, self._row, values)
        values *= self._spec.head.slope(self._z)  # log_p + lse would have lost digits of a small logit
        return Entries(self.kept, self._column.int(), values, kept_sum)

    def background(self, rows: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        z = _to_logits(self._logits[rows], self._spec.head)
        cut = self._cut(self._sums)[rows]
        dropped = torch.where(z > cut[:, None], 0, (z - self.values.lse[rows, None]).exp())
        dropped.scatter_(1, self._target[rows, None], 0)
        mass = weight @ dropped.sum(1)
        return weight @ dropped.mul_(self._spec.head.slope(z)), mass

    def logits(self) -> Tensor:
        return self._logits

    def dense(self, part: slice, weights: RowWeights) -> Tensor:
        logits = self._logits[part]
        row_kernel_(logits, self._target[part], weights, self._spec)
        return logits


def gather_rows(
    values: Tensor, indices: Tensor, offsets: Tensor, matrix: Tensor, left: Tensor, right: Tensor, out: Tensor
) -> None:
    """See `sparse_gradient.Gather`."""
    start, stop = int(offsets[0]), int(offsets[-1])
    dtype, size = gradient_dtype(matrix.dtype), matrix.shape[1]
    # embedding_bag sums in the dtype of the matrix; float16 would overflow, so some columns at a time become float32.
    at_once = size if dtype == matrix.dtype else rows_per_block(len(matrix), matrix.device)
    for columns in chunks(size, at_once):
        out[:, columns] = F.embedding_bag(
            indices[start:stop],
            matrix[:, columns].to(dtype),
            (offsets - start).to(indices.dtype),
            mode="sum",
            per_sample_weights=values[start:stop].to(dtype),
            include_last_offset=True,
        )
    out.addmm_(left.to(out.dtype), right.to(out.dtype))
