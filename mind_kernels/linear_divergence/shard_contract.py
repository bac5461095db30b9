"""What a backend supplies for a head that is split over the vocabulary, and what passes between its passes.

A process has the logits (n, V_r) of its shard. From a teacher's head: `shard_sums_` reads both sides,
`shard_rows.divergence_` makes normalizers of whole rows of what all shards found, `shard_parts_` gives what divergence
and S are made of, and `shard_gradient_` writes the gradient over the student's logits. From a teacher's list: `others`
and `spread_`, of the tokens that are not listed. Of an empty shard nobody calls any of them.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from mind_kernels.head import Head
from mind_kernels.linear_divergence.kinds import Divergence
from mind_kernels.linear_divergence.terms import Parts


class SoftmaxSums(NamedTuple):
    """Of logits z of n rows, this shard's or all; (n,) each."""

    maximum: Tensor
    """The largest z; minus infinity if all entries are ruled out, or there is none."""
    total: Tensor
    """The sum of e^(z - maximum); 0 of a shard whose maximum is minus infinity."""
    moment: Tensor
    """The sum of e^(z - maximum) (z - maximum), to which entries without probability add nothing."""

    @classmethod
    def empty(cls, rows: int, like: Tensor) -> SoftmaxSums:
        """Those of a shard without entries, on the device of `like` and in its dtype."""
        zeros = like.new_zeros(rows)
        return cls(zeros - torch.inf, zeros, zeros)


class ShardSums(NamedTuple):
    """Of this shard's logits of both sides."""

    student: SoftmaxSums
    target: SoftmaxSums
    """Of what the student is compared with, as `shard_sums_` has left it in the teacher's place."""
    target_offset: Tensor
    """(n,) float64: what is to be added there, to have logits of the same scale in all shards. 0 but for "taid", whose
    logits between both sides are taken from the shard's own maxima: a rounding of large ones would be one of p."""


class Normalizers(NamedTuple):
    """Of whole rows, (n,) each, in the dtype of the logits."""

    maximum: Tensor
    total: Tensor
    their_maximum: Tensor
    """In the shard's own scale: without its `target_offset`."""
    their_total: Tensor


class ShardKernels(Protocol):
    """What a backend supplies for "linear_divergence, shards" in `backend.BACKENDS`."""

    LISTED: float
    """Stands in the place of a listed token's projected logit."""

    def shard_sums_(
        self,
        logits: Tensor,  # (n, V_r), projected; becomes z
        teacher_logits: Tensor,  # (n, V_r), projected; becomes what the student is compared with
        head: Head,
        teacher_head: Head,
        divergence: Divergence,
    ) -> ShardSums:
        """The sums of both sides, after softcap and temperature, which are applied in place."""
        ...

    def shard_parts_(
        self,
        logits: Tensor,  # (n, V_r), z
        target_logits: Tensor,  # (n, V_r), as `shard_sums_` left them; becomes what `shard_gradient_` needs of them
        normalizers: Normalizers,
        divergence: Divergence,
    ) -> Parts:
        """The shard's part of the sums over whole rows."""
        ...

    def shard_gradient_(
        self,
        logits: Tensor,  # (n, V_r), z; becomes the gradient of the projected logits
        slopes: Tensor,  # (n, V_r), as `shard_parts_` left them; overwritten
        normalizers: Normalizers,
        parts: Parts,  # of whole rows
        weights: Tensor,  # (n,)
        head: Head,
        divergence: Divergence,
    ) -> None:
        """The gradient q (F' - S) of the rows' divergences times their weights."""
        ...

    def others(self, logits: Tensor, head: Head) -> Tensor:
        """(3, n) of projected logits (n, V_r), LISTED where a token is listed, which stay as they are: of the other
        tokens maximum, log sum e^(z - maximum) and mean of z - maximum; -inf, 0, 0 where none has any probability."""
        ...

    def spread_(self, logits: Tensor, numbers: Tensor, gradient: Tensor, head: Head) -> None:
        """The same logits become the gradient of the others' log-sum-exp times `gradient` (n,), where these `numbers`
        (3, n) are those of the others in all shards. Listed tokens get any number."""
        ...
