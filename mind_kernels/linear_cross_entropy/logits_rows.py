"""The sparse path of a backend that keeps a chunk of logits: statistics, then entries or the dense gradient."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from mind_kernels.linear_cross_entropy.contract import RowSpec, RowValues, RowWeights
from mind_kernels.sparse_gradient import Entries, dropped_share, offsets_of


class Counted(NamedTuple):
    """Counts for n rows of logits that do not depend on weights. Kept entries: those above the threshold, and the
    target's."""

    values: RowValues
    normalizer: Tensor  # for the calls below, in a form that the backend chooses
    kept: Tensor  # (n,) int64, how many entries are kept
    dropped_mass: Tensor  # (n,), the probability of the other entries
    others: Tensor  # (n,), the probability of all entries but the target's


class KeptEntries(NamedTuple):
    """The kept entries of n rows, row by row, in increasing column order; see `sparse_gradient.Entries`."""

    columns: Tensor  # (total,) int32
    values: Tensor  # (total,)
    kept_sum: Tensor  # (n,)


class EntryKernels(Protocol):
    """Kernels that follow `count`: on projected logits (n, V), targets (n,), and weights (n,) in the accumulation
    dtype."""

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
        """The kept entries. `offsets` (n + 1,) int64 is the exclusive prefix sum of `kept`, `total` its last number."""
        ...

    def background(
        self, logits: Tensor, rows: Tensor, target: Tensor, normalizer: Tensor, weight: Tensor, spec: RowSpec
    ) -> Tensor:
        """The first result of `contract.SparseRows.background`."""
        ...


class LogitsKernels(EntryKernels, Protocol):
    """`EntryKernels` and the kernels that count."""

    def row_kernel_(self, logits: Tensor, target: Tensor, weights: RowWeights | None, spec: RowSpec) -> RowValues:
        """See `contract.RowKernels`."""
        ...

    def count(self, logits: Tensor, target: Tensor, spec: RowSpec) -> Counted:
        """Statistics of the rows, and the number of their kept entries. Does not change the logits."""
        ...


class HostSums:
    """Sums of the rows' kept entries and dropped shares, copied to the host: the copy starts now, and is read later.

    `here`: the numbers of kept entries that this process collects; None: all.
    """

    def __init__(
        self, kept: Tensor, dropped_mass: Tensor, others: Tensor, lse: Tensor, here: Tensor | None = None
    ) -> None:
        self._rows = len(kept)
        values = kept, dropped_share(dropped_mass, others, lse), kept if here is None else here
        self._sums = torch.stack([value.double().sum() for value in values])
        self._ready = None
        if self._sums.is_cuda:
            pinned = torch.empty(3, dtype=torch.float64, device="cpu", pin_memory=True)
            self._sums = pinned.copy_(self._sums, non_blocking=True)
            self._ready = torch.cuda.Event()
            self._ready.record()

    def _read(self) -> list[float]:
        if self._ready is not None:
            self._ready.synchronize()
        return self._sums.tolist()

    def means(self) -> tuple[float, float]:
        kept, share, _ = self._read()
        return kept / self._rows, share / self._rows

    def kept(self) -> int:
        return int(self._read()[2])


class LogitsRows:
    """See `contract.SparseRows`."""

    def __init__(self, kernels: LogitsKernels, hidden: Tensor, target: Tensor, spec: RowSpec) -> None:
        self._kernels, self._spec, self._target = kernels, spec, target
        self._logits = spec.head.project(hidden)
        counted = kernels.count(self._logits, target, spec)
        self.values, self.kept, self._normalizer = counted.values, counted.kept, counted.normalizer
        self.dropped_mass = counted.dropped_mass
        self._sums = HostSums(self.kept, self.dropped_mass, counted.others, self.values.lse)

    def means(self) -> tuple[float, float]:
        return self._sums.means()

    def entries(self, weights: RowWeights) -> Entries:
        found = self._kernels.entries(
            self._logits,
            self._target,
            self._normalizer,
            self.values,
            weights,
            self._spec,
            offsets_of(self.kept),
            self._sums.kept(),
        )
        return Entries(self.kept, found.columns, found.values, found.kept_sum)

    def background(self, rows: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        out = self._kernels.background(self._logits, rows, self._target, self._normalizer, weight, self._spec)
        return out, weight @ self.dropped_mass[rows]

    def logits(self) -> Tensor:
        return self._logits

    def dense(self, part: slice, weights: RowWeights) -> Tensor:
        logits = self._logits[part]
        self._kernels.row_kernel_(logits, self._target[part], weights, self._spec)
        return logits
