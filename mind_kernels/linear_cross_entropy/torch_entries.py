"""The kept entries of a shard's logits in plain PyTorch, after the sums of whole rows are known: see
`sparse_shard_rows`.

Rows are searched block by block, in the tiles whose maximum is above the threshold. They are searched twice, first to
count the entries and then to list them, since it has to be known first whether there are few enough.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mind_kernels.linear_cross_entropy.contract import RowSpec, RowValues, RowWeights
from mind_kernels.linear_cross_entropy.logits_rows import Counted, KeptEntries
from mind_kernels.linear_cross_entropy.shard_rows import JoinedRows
from mind_kernels.linear_cross_entropy.tiles import entries_above, tile_maxima
from mind_kernels.row_chunks import accumulation_dtype, chunks, rows_per_block


class _Normalizer(NamedTuple):
    """The rows of `Counted.normalizer`."""

    maximum: Tensor
    log_total: Tensor
    others: Tensor
    lse_others: Tensor


class _Kept(NamedTuple):
    """The kept entries of all rows, row by row; (entries,) each."""

    row: Tensor
    column: Tensor
    z: Tensor
    log_p: Tensor
    is_target: Tensor


def count_shard(logits: Tensor, target: Tensor, joined: JoinedRows, spec: RowSpec) -> Counted:
    """See `sparse_shard_rows.SparseShardKernels`."""
    normalizer = torch.stack([joined.maximum, joined.log_total, joined.others, joined.lse_others])
    kept, mass = torch.zeros_like(target), torch.zeros_like(joined.here)
    for block in chunks(len(logits), rows_per_block(logits.shape[1], logits.device)):  # with any number of entries
        found = _kept(logits[block], target[block], normalizer[:, block], spec)
        kept[block] = torch.bincount(found.row, minlength=len(kept[block]))
        mass[block] = mass[block].index_add_(0, found.row, found.log_p.exp() * ~found.is_target)
    return Counted(joined.values, normalizer, kept, (joined.here - mass).clamp_(min=0), joined.others)


def entries(
    logits: Tensor,
    target: Tensor,
    normalizer: Tensor,
    values: RowValues,
    weights: RowWeights,
    spec: RowSpec,
    offsets: Tensor,
    total: int,
) -> KeptEntries:
    """See `logits_rows.EntryKernels`."""
    found = _kept(logits, target, normalizer, spec)
    a, b, at_target = weights.coefficients(values, _Normalizer(*normalizer).others, spec)
    p, row = found.log_p.exp(), found.row
    log_p = torch.where(p == 0, 0, found.log_p)
    dz = p * (a[row] if b is None else a[row] + b[row] * log_p)
    dz = torch.where(found.is_target, at_target[row], dz)
    kept_sum = torch.zeros_like(a).index_add_(0, row, dz)
    return KeptEntries(found.column.int(), dz * spec.head.slope(found.z), kept_sum)


def background(
    logits: Tensor, rows: Tensor, target: Tensor, normalizer: Tensor, weight: Tensor, spec: RowSpec
) -> Tensor:
    """See `logits_rows.EntryKernels`."""
    out = weight.new_zeros(logits.shape[1])
    for block in chunks(torch.arange(len(rows), device=rows.device), rows_per_block(logits.shape[1], logits.device)):
        part = rows[block]
        of_rows, index = _Normalizer(*normalizer[:, part, None]), target[part].clamp(min=0)[:, None]
        z = _logits(logits[part], spec)
        p = ((z - of_rows.maximum) - of_rows.log_total).exp_()
        dropped = torch.where(z > of_rows.lse_others + spec.log_threshold, 0, p)
        dropped.scatter_(1, index, torch.where(target[part, None] < 0, dropped.gather(1, index), 0))
        out += weight[block] @ dropped.mul_(spec.head.slope(z))
    return out


def _kept(logits: Tensor, target: Tensor, normalizer: Tensor, spec: RowSpec) -> _Kept:
    """The entries of these rows above the threshold, and the target's."""
    of_rows, blocks = _Normalizer(*normalizer), []
    cut = of_rows.lse_others + spec.log_threshold
    for block in chunks(len(logits), rows_per_block(logits.shape[1], logits.device)):
        z = _logits(logits[block], spec)
        found = entries_above(z, tile_maxima(z), cut[block], target[block])
        assert found is not None
        blocks.append((found.row + block.start, found.column, found.z))
    row, column, z = (torch.cat(part) for part in zip(*blocks, strict=True))
    log_p = (z - of_rows.maximum[row]) - of_rows.log_total[row]
    return _Kept(row, column, z, log_p, column == target[row])


def _logits(projected: Tensor, spec: RowSpec) -> Tensor:
    return spec.head.to_logits(projected.to(accumulation_dtype(projected.dtype)))
