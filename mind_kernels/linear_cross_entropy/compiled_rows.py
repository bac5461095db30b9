"""Row kernels of linear cross-entropy from a compiled library: csrc/cpu on a CPU, csrc/cuda on an NVIDIA GPU.

Logits in float32, bfloat16 or float16, all arithmetic in float32. Exact: the logits of a chunk are read and overwritten
by their gradient. Sparse: read for statistics and counts, and again for the kept entries.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mind_kernels import extension
from mind_kernels.head import Head
from mind_kernels.linear_cross_entropy.contract import RowSpec, RowValues, RowWeights
from mind_kernels.linear_cross_entropy.logits_rows import Counted, KeptEntries, LogitsRows


class CompiledRows:
    """See `contract.RowKernels` and `logits_rows.LogitsKernels`; `device` is "cpu" or "cuda"."""

    SPARSE_CHUNKS = 1

    def __init__(self, device: str) -> None:
        self._device = device

    @property
    def _operators(self):
        return extension.operators(self._device)

    def row_kernel_(self, logits: Tensor, target: Tensor, weights: RowWeights | None, spec: RowSpec) -> RowValues:
        numbers, correct = _outputs(logits)
        scale, entropy_scale = (None, None) if weights is None else (weights.loss, weights.entropy)
        conditions = _conditions(spec.head)
        self._operators.row_kernel_(
            logits, target, scale, entropy_scale, *conditions, spec.label_smoothing, spec.z_loss, numbers, correct
        )
        return RowValues(*numbers[:4], correct)

    def statistics(self, hidden: Tensor, target: Tensor, spec: RowSpec) -> RowValues:
        return self.row_kernel_(spec.head.project(hidden), target, None, spec)

    def sparse_rows(self, hidden: Tensor, target: Tensor, spec: RowSpec) -> LogitsRows:
        return LogitsRows(self, hidden, target, spec)

    def count(self, logits: Tensor, target: Tensor, spec: RowSpec) -> Counted:
        numbers, correct = _outputs(logits)
        kept, kept_mass = torch.empty_like(target), torch.empty_like(numbers[0])
        self._operators.count(
            logits,
            target,
            *_conditions(spec.head),
            spec.label_smoothing,
            spec.z_loss,
            spec.log_threshold,
            numbers,
            correct,
            kept,
            kept_mass,
        )
        return Counted(RowValues(*numbers[:4], correct), numbers, kept, kept_mass)

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
        self._operators.entries(
            logits,
            target,
            weights.loss,
            weights.entropy,
            *_conditions(spec.head),
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
        self._operators.background(
            logits, target, *_conditions(spec.head), spec.log_threshold, normalizer, rows, weight, out
        )
        return out

    def gather_rows(
        self, values: Tensor, indices: Tensor, offsets: Tensor, matrix: Tensor, left: Tensor, right: Tensor, out: Tensor
    ) -> None:
        self._operators.gather_rows(values, indices, offsets, matrix, left, right, out)


def _outputs(logits: Tensor) -> tuple[Tensor, Tensor]:
    """(7, n) for loss, nll, lse, entropy, maximum, log of total, total: sum of e^(z - maximum); and `correct` (n,)."""
    rows = logits.shape[0]
    return logits.new_empty(7, rows, dtype=torch.float32), logits.new_empty(rows, dtype=torch.bool)


def _conditions(head: Head) -> tuple[float, float]:
    """softcap, 0 for none, and temperature."""
    return head.softcap or 0.0, head.temperature
