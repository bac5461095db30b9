"""What a backend supplies for a head that is split over the vocabulary, and what passes between the two of its passes.

A process has the logits (n, V_r) of its shard. `shard_sums` reads them, `shard_rows.join` makes whole rows of all
processes' sums, and `shard_gradient_` turns the logits into their own gradient. Of an empty shard nobody calls either.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from mind_kernels.linear_cross_entropy.contract import RowSpec
from mind_kernels.row_chunks import accumulation_dtype


class RowSums(NamedTuple):
    """Of this shard's logits z of n rows, after softcap and temperature; (n,) each, in the accumulation dtype."""

    maximum: Tensor
    """The largest z; minus infinity if the shard rules out all of its entries, or has none."""
    others: Tensor
    """The sum of e^(z - maximum) over all entries but the target's; 0 if the maximum is minus infinity."""
    moment: Tensor
    """The sum of e^(z - maximum) (z - maximum) over all entries, of which those without probability add nothing."""
    at_target: Tensor
    """z of the target; any number if another process has it."""
    sum: Tensor
    """The sum of z; any number without label smoothing."""
    argmax: Tensor
    """int64 in [0, V_r): the entry of the maximum, the first of equal ones."""

    @classmethod
    def empty(cls, rows: int, like: Tensor) -> RowSums:
        """Those of a shard without entries, on the device of `like` and in its accumulation dtype."""
        zeros = torch.zeros(rows, dtype=accumulation_dtype(like.dtype), device=like.device)
        return cls(zeros - torch.inf, zeros, zeros, zeros, zeros, zeros.long())


class GradientTerms(NamedTuple):
    """What the gradient of n whole rows is made of; (n,) each, in the accumulation dtype.

    dz_v = p_v (a + b log p_v) - u, and at the target at_target - u in place of that.
    """

    maximum: Tensor
    """Of the whole row. log p_v = (z_v - maximum) - log_total: lse, the sum of both, is rounded by more than either."""
    log_total: Tensor
    a: Tensor
    b: Tensor | None
    """None: 0. Where p_v is 0, so is p_v log p_v."""
    at_target: Tensor
    uniform: Tensor | None
    """u; None: 0."""

    def of_rows(self, rows: slice) -> GradientTerms:
        """Those of some of the rows."""
        return GradientTerms(*(None if term is None else term[rows] for term in self))  # pyright: ignore[reportArgumentType]


class ShardKernels(Protocol):
    """What a backend supplies for "linear_cross_entropy, shards" in `backend.BACKENDS`.

    A target (n,) int64 in [0, V_r) is an entry of this shard; of -1 another process has it.
    """

    def shard_sums(self, logits: Tensor, target: Tensor, spec: RowSpec) -> RowSums:
        """Of projected logits (n, V_r), which stay as they are. Softcap and temperature are those of the head in
        `spec`."""
        ...

    def shard_gradient_(self, logits: Tensor, target: Tensor, terms: GradientTerms, spec: RowSpec) -> None:
        """The same logits become their own gradient, in place: dz of `terms` times the slope of the head in `spec`."""
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
    """The exact gradient of rows with products of the backend's own; it holds the logits of one chunk."""

    size: int
    """Rows of a chunk."""

    def chunk(self, hidden: Tensor, target: Tensor) -> ShardChunk:
        """Of hidden (n, D) and target (n,), at most `size` rows; takes the memory of the chunk before."""
        ...


@runtime_checkable
class OwnShardProducts(Protocol):
    """What the kernels of a backend may have beside those of `ShardKernels`."""

    def exact_shards(self, rows: int, hidden: Tensor, spec: RowSpec, largest: int) -> ExactShards | None:
        """For `rows` rows of `hidden`; None if `ShardKernels` and PyTorch's products are faster.

        Whether it is None, and the size of a chunk, follow from `rows`, `hidden` and the size of the `largest` shard
        alone, which are the same in all processes."""
        ...


@runtime_checkable
class StreamedShards(Protocol):
    """What the kernels of a backend that keeps no logits may have beside those of `ShardKernels`."""

    def stream_sums(self, hidden: Tensor, target: Tensor, spec: RowSpec) -> RowSums:
        """Those of `shard_sums`, straight from hidden states (n, D) and the head in `spec`.

        `argmax` is the target if that is the first of the largest entries, and else any entry on the same side of the
        target as that: enough to tell whether a row is correct, and in no other place is it read."""
        ...
