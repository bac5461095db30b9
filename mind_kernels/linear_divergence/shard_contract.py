"""The kernels that a backend has to supply for a split head, and the data that its passes exchange.

A process has the logits (n, V_r) of its shard. For a teacher's head, `shard_sums_` reads both sides,
`shard_rows.divergence_` computes the normalizers of whole rows from the sums of all shards, `shard_parts_` returns the
shard's parts of divergence and S, and `shard_gradient_` overwrites the student's logits by the gradient. For a
teacher's list, `others` and `spread_` handle the tokens that are not listed. None of them is called for an empty shard.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from mind_kernels.head import Head
from mind_kernels.linear_divergence.kinds import Divergence
from mind_kernels.linear_divergence.terms import Parts


class SoftmaxSums(NamedTuple):
    """Sums over the logits z of n rows, of this shard or of whole rows; (n,) each."""

    maximum: Tensor
    """The largest z; minus infinity if all entries are excluded, or there are none."""
    total: Tensor
    """The sum of e^(z - maximum); 0 for a shard whose maximum is minus infinity."""
    moment: Tensor
    """The sum of e^(z - maximum) (z - maximum), to which entries with probability 0 add nothing."""

    @classmethod
    def empty(cls, rows: int, like: Tensor) -> SoftmaxSums:
        """The sums of a shard without entries, on the device of `like` and in its dtype."""
        zeros = like.new_zeros(rows)
        return cls(zeros - torch.inf, zeros, zeros)


class ShardSums(NamedTuple):
    """The sums over this shard's logits of both sides."""

    student: SoftmaxSums
    target: SoftmaxSums
    """The sums of the logits that the student is compared with, by which `shard_sums_` has replaced the teacher's."""
    target_offset: Tensor
    """(n,) float64: a shift to add to those logits, so that they have the same scale in all shards. 0 except for
    "taid", whose interpolated logits are relative to the shard's own maxima, since rounding of large logits would
    change p."""


class Normalizers(NamedTuple):
    """The normalizers of whole rows, (n,) each, in the dtype of the logits."""

    maximum: Tensor
    total: Tensor
    their_maximum: Tensor
    """In the scale of this shard, without its `target_offset`."""
    their_total: Tensor


class ShardKernels(Protocol):
    """The kernels that a backend has to supply for "linear_divergence, shards" in `backend.BACKENDS`."""

    def shard_sums_(
        self,
        logits: Tensor,  # (n, V_r), projected; becomes z
        teacher_logits: Tensor,  # (n, V_r), projected; becomes the logits that the student is compared with
        head: Head,
        teacher_head: Head,
        divergence: Divergence,
    ) -> ShardSums:
        """The sums of both sides, after softcap and temperature, which are applied in place."""
        ...

    def shard_parts_(
        self,
        logits: Tensor,  # (n, V_r), z
        target_logits: Tensor,  # (n, V_r), after `shard_sums_`; overwritten by data for `shard_gradient_`
        normalizers: Normalizers,
        divergence: Divergence,
    ) -> Parts:
        """The shard's part of the sums over whole rows."""
        ...

    def shard_gradient_(
        self,
        logits: Tensor,  # (n, V_r), z; becomes the gradient of the projected logits
        slopes: Tensor,  # (n, V_r), after `shard_parts_`; overwritten
        normalizers: Normalizers,
        parts: Parts,  # of whole rows
        weights: Tensor,  # (n,)
        head: Head,
        divergence: Divergence,
    ) -> None:
        """The gradient q (F' - S) of the rows' divergences times their weights."""
        ...

    def others(self, logits: Tensor, head: Head) -> Tensor:
        """(3, n): maximum, log sum e^(z - maximum) and mean of z - maximum over the tokens that are not listed; -inf,
        0, 0 if all of them have probability 0. The projected logits (n, V_r), teachers.LISTED for listed tokens,
        are not changed."""
        ...

    def spread_(self, logits: Tensor, numbers: Tensor, gradient: Tensor, head: Head) -> None:
        """Overwrites the same logits by the gradient of the others' log-sum-exp times `gradient` (n,); `numbers` (3, n)
        are those of the others in all shards. The results for listed tokens are arbitrary."""
        ...
