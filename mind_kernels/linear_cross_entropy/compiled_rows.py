"""Row kernels of linear cross-entropy in a compiled library: csrc/cpu for CPUs, csrc/cuda for NVIDIA GPUs.

Logits in float32, bfloat16 or float16, all arithmetic in float32. Exact: the logits of a chunk are read and overwritten
by their gradient. Sparse: they are read for statistics and counts, and again for the kept entries. For a shard of the
vocabulary: they are read for the sums that the processes exchange, for the counts, and for the results that need whole
rows.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mind_kernels import extension
from mind_kernels.compiled_head import conditions
from mind_kernels.linear_cross_entropy.contract import RowSpec, RowValues, RowWeights, SparseRows
from mind_kernels.linear_cross_entropy.logits_rows import Counted, KeptEntries, LogitsRows
from mind_kernels.linear_cross_entropy.shard_contract import GradientTerms, RowSums
from mind_kernels.linear_cross_entropy.shard_rows import JoinedRows
from mind_kernels.sparse_gradient import ByColumn, sort_entries

# The rows of `numbers`, in the order of `RowNumber` in csrc/arguments.h, which explains them.
ROW_NUMBERS = ("loss", "nll", "lse", "entropy", "maximum", "log_total", "total", "others", "lse_others", "mean")


class CompiledRows:
    """See `contract.RowKernels`, `logits_rows.LogitsKernels` and `sparse_shard_rows.SparseShardKernels`; `library` is
    "cpp" or "cuda". `entries` and `background` also work on the logits of a shard, with the results of `count_shard`.
    `StreamedRows` has further kernels of backend `cpp`.
    """

    SPARSE_CHUNKS = 1
    STREAMED_CHUNKS = 1

    def __init__(self, library: str) -> None:
        self._library = library

    @property
    def operators(self) -> Any:
        return extension.operators(self._library)

    def row_kernel_(self, logits: Tensor, target: Tensor, weights: RowWeights | None, spec: RowSpec) -> RowValues:
        numbers, correct = outputs(logits)
        scale, entropy_scale = (None, None) if weights is None else (weights.loss, weights.entropy)
        self.operators.row_kernel_(
            logits,
            target,
            scale,
            entropy_scale,
            *conditions(spec.head),
            spec.label_smoothing,
            spec.z_loss,
            numbers,
            correct,
        )
        return values_of(numbers, correct)

    def statistics(self, hidden: Tensor, target: Tensor, spec: RowSpec) -> RowValues:
        return self.row_kernel_(spec.head.project(hidden), target, None, spec)

    def sparse_rows(self, hidden: Tensor, target: Tensor, spec: RowSpec, keep_logits: bool = True) -> SparseRows:
        return LogitsRows(self, hidden, target, spec)

    def count(self, logits: Tensor, target: Tensor, spec: RowSpec) -> Counted:
        numbers, correct = outputs(logits)
        kept, dropped_mass = torch.empty_like(target), torch.empty_like(numbers[0])
        self.operators.count(
            logits,
            target,
            *conditions(spec.head),
            spec.label_smoothing,
            spec.z_loss,
            spec.log_threshold,
            numbers,
            correct,
            kept,
            dropped_mass,
        )
        others = numbers[ROW_NUMBERS.index("others")]
        return Counted(values_of(numbers, correct), numbers, kept, dropped_mass, others)

    def entries(
        self,
        logits: Tensor,
        target: Tensor,
        normalizer: Tensor,
        values: RowValues,
        weights: RowWeights,
        spec: RowSpec,
        offsets: Tensor,
        total: int,
    ) -> KeptEntries:
        columns, entry_values = logits.new_empty(total, dtype=torch.int32), logits.new_empty(total, dtype=torch.float32)
        kept_sum = torch.empty_like(values.lse)
        self.operators.entries(
            logits,
            target,
            weights.loss,
            weights.entropy,
            *conditions(spec.head),
            spec.label_smoothing,
            spec.z_loss,
            spec.log_threshold,
            normalizer,
            offsets,
            columns,
            entry_values,
            kept_sum,
        )
        return KeptEntries(columns, entry_values, kept_sum)

    def background(
        self, logits: Tensor, rows: Tensor, target: Tensor, normalizer: Tensor, weight: Tensor, spec: RowSpec
    ) -> Tensor:
        out = logits.new_empty(logits.shape[1], dtype=torch.float32)
        self.operators.background(
            logits, target, *conditions(spec.head), spec.log_threshold, normalizer, rows, weight, out
        )
        return out

    def shard_sums(self, logits: Tensor, target: Tensor, spec: RowSpec) -> RowSums:
        sums, argmax = shard_outputs(logits)
        self.operators.shard_sums(logits, target, *conditions(spec.head), spec.label_smoothing != 0, sums, argmax)
        return RowSums._make([*sums, argmax])

    def shard_gradient_(self, logits: Tensor, target: Tensor, terms: GradientTerms, spec: RowSpec) -> None:
        self.operators.shard_gradient_(logits, target, *conditions(spec.head), *terms)

    def count_shard(self, logits: Tensor, target: Tensor, joined: JoinedRows, spec: RowSpec) -> Counted:
        numbers = numbers_of(joined)
        kept, kept_mass = torch.empty_like(target), torch.empty_like(joined.others)
        self.operators.shard_count(logits, target, *conditions(spec.head), spec.log_threshold, numbers, kept, kept_mass)
        return Counted(joined.values, numbers, kept, (joined.here - kept_mass).clamp_(min=0), joined.others)

    def gather_rows(
        self, values: Tensor, indices: Tensor, offsets: Tensor, matrix: Tensor, left: Tensor, right: Tensor, out: Tensor
    ) -> None:
        self.operators.gather_rows(values, indices, offsets, matrix, left, right, out)

    def sort_entries(self, rows: Tensor, offsets: Tensor, columns: Tensor, values: Tensor, vocabulary: int) -> ByColumn:
        return sort_entries(rows, offsets, columns, values, vocabulary)


def outputs(like: Tensor) -> tuple[Tensor, Tensor]:
    """`numbers` (len(ROW_NUMBERS), n) float32 and `correct` (n,) bool, to be filled."""
    rows = like.shape[0]
    return like.new_empty(len(ROW_NUMBERS), rows, dtype=torch.float32), like.new_empty(rows, dtype=torch.bool)


def numbers_of(joined: JoinedRows) -> Tensor:
    """`numbers` of whole rows."""
    values, log_total = joined.values, joined.log_total
    named = values._asdict() | joined._asdict() | {"total": log_total.exp(), "mean": log_total - values.entropy}
    return torch.stack([named[name] for name in ROW_NUMBERS])


def shard_outputs(like: Tensor) -> tuple[Tensor, Tensor]:
    """The sums of `RowSums` (5, n) float32 in their order, and its `argmax` (n,), to be filled."""
    rows, sums = like.shape[0], len(RowSums._fields) - 1
    return like.new_empty(sums, rows, dtype=torch.float32), like.new_empty(rows, dtype=torch.int64)


def values_of(numbers: Tensor, correct: Tensor) -> RowValues:
    named: dict[str, Tensor] = dict(zip(ROW_NUMBERS, numbers, strict=True))
    named["correct"] = correct & named["nll"].isfinite()  # the kernels compare infinite logits like others
    return RowValues(**{name: named[name] for name in RowValues._fields})


CUDA = CompiledRows("cuda")
