"""The kernels that a backend has to supply for a split head, and the data that its two passes exchange.

A process has the logits (n, V_r) of its shard. `shard_sums` reads them, `shard_rows.join` combines the sums of all
processes to those of whole rows, and `shard_gradient_` overwrites the logits by their gradient. Neither kernel is
called for an empty shard.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from mind_kernels.linear_cross_entropy.contract import RowSpec
from mind_kernels.row_chunks import accumulation_dtype


class RowSums(NamedTuple):
    """Sums over this shard's logits z of n rows, after softcap and temperature; (n,) each, in the accumulation
    dtype."""

    maximum: Tensor
    """The largest z; minus infinity if all entries of the shard are excluded, or it has none."""
    others: Tensor
    """The sum of e^(z - maximum) over all entries but the target's; 0 if the maximum is minus infinity."""
    moment: Tensor
    """The sum of e^(z - maximum) (z - maximum) over all entries; those with probability 0 add nothing."""
    at_target: Tensor
    """z of the target; any number if another process has it."""
    sum: Tensor
    """The sum of z; any number without label smoothing."""
    argmax: Tensor
    """int64 in [0, V_r): the entry with the maximum, the first one if several are equal."""

    @classmethod
    def empty(cls, rows: int, like: Tensor) -> RowSums:
        """The sums of a shard without entries, on the device of `like` and in its accumulation dtype."""
        zeros = torch.zeros(rows, dtype=accumulation_dtype(like.dtype), device=like.device)
        return cls(zeros - torch.inf, zeros, zeros, zeros, zeros, zeros.long())


class GradientTerms(NamedTuple):
    """The numbers that determine the gradient of n whole rows; (n,) each, in the accumulation dtype.

    dz_v = p_v (a + b log p_v) - u, and at_target - u at the target.
    """

    maximum: Tensor
    """Of the whole row. log p_v = (z_v - maximum) - log_total: their sum lse would be rounded more than either."""
    log_total: Tensor
    a: Tensor
    b: Tensor | None
    """None: 0. If p_v is 0, p_v log p_v is 0 too."""
    at_target: Tensor
    uniform: Tensor | None
    """u; None: 0."""

    def of_rows(self, rows: slice) -> GradientTerms:
        """The terms of some of the rows."""
        return GradientTerms(*(None if term is None else term[rows] for term in self))  # pyright: ignore[reportArgumentType]


class ShardKernels(Protocol):
    """The kernels that a backend has to supply for "linear_cross_entropy, shards" in `backend.BACKENDS`.

    A target (n,) int64 in [0, V_r) is an entry of this shard; -1: another process has it.
    """

    def shard_sums(self, logits: Tensor, target: Tensor, spec: RowSpec) -> RowSums:
        """The sums of projected logits (n, V_r), which are not changed; softcap and temperature are those of the head
        in `spec`."""
        ...

    def shard_gradient_(self, logits: Tensor, target: Tensor, terms: GradientTerms, spec: RowSpec) -> None:
        """Overwrites the same logits by their gradient: dz of `terms` times the slope of the head in `spec`."""
        ...


class ShardChunk(Protocol):
    """A chunk of n rows whose logits of this shard are in memory."""

    sums: RowSums

    def write_products(
        self,
        terms: GradientTerms,
        of_hidden: Tensor | None,  # (n, D), written
        of_weight: Tensor | None,  # (V_r, D), written, or added to
        add_weight: bool,
        of_bias: Tensor | None,  # (V_r,), added to
    ) -> None:
        """This shard's gradients of hidden states, weight and bias, in the accumulation dtype; None: not needed."""
        ...


class ExactShards(Protocol):
    """The exact gradient of rows, by the backend's own matrix products; it holds the logits of one chunk."""

    size: int
    """Rows of a chunk."""

    def chunk(self, hidden: Tensor, target: Tensor) -> ShardChunk:
        """The chunk with hidden (n, D) and target (n,), at most `size` rows; reuses the memory of the previous
        chunk."""
        ...


@runtime_checkable
class OwnShardProducts(Protocol):
    """Further kernels that a backend may have, beside those of `ShardKernels`."""

    def exact_shards(self, rows: int, hidden: Tensor, spec: RowSpec, largest: int) -> ExactShards | None:
        """An object for `rows` rows of `hidden`; None if `ShardKernels` and PyTorch's products are faster.

        Whether it is None, and the size of a chunk, may depend only on `rows`, `hidden` and the size of the `largest`
        shard, which are the same in all processes."""
        ...


@runtime_checkable
class StreamedShards(Protocol):
    """Further kernels of a backend that keeps no logits, beside those of `ShardKernels`."""

    def stream_sums(self, hidden: Tensor, target: Tensor, spec: RowSpec) -> RowSums:
        """The sums of `shard_sums`, computed from hidden states (n, D) and the head in `spec`.

        `argmax` is the target if that is the first of the largest entries, and else any entry on the same side of the
        target as that one. This is enough to know whether a row is correct, and it is used for nothing else."""
        ...
