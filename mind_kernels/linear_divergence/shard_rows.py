"""The divergences of a chunk of rows for a head that is split over the vocabulary; a backend supplies `ShardKernels`.

A teacher's head needs two collectives: one gathers the sums of both softmaxes, the other the parts of the divergence
and of S = sum q F' / sum q. A teacher's list needs one, for the sums of the tokens that are not listed, and the logits
of the listed ones, each from the process that has it. All processes combine the gathered numbers by the same arithmetic
in the same order.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mind_kernels.head import Head, scale_
from mind_kernels.linear_divergence.contract import RowValues
from mind_kernels.linear_divergence.kinds import Divergence
from mind_kernels.linear_divergence.shard_contract import Normalizers, ShardKernels, ShardSums, SoftmaxSums
from mind_kernels.linear_divergence.teachers import LISTED
from mind_kernels.linear_divergence.terms import Parts, event_terms
from mind_kernels.shards import Shard


def divergence_(
    kernels: ShardKernels,
    logits: Tensor,  # (n, V_r), projected
    teacher_logits: Tensor,  # (n, V_r), projected
    weights: Tensor | None,  # (n,)
    head: Head,
    teacher_head: Head,
    divergence: Divergence,
    shard: Shard,
) -> RowValues:
    """As `contract.RowKernels.divergence_`, for whole rows."""
    rows, dtype = len(logits), logits.dtype
    if shard.size:
        sums = kernels.shard_sums_(logits, teacher_logits, head, teacher_head, divergence)
    else:
        none = SoftmaxSums.empty(rows, logits)
        sums = ShardSums(none, none, torch.zeros_like(none.total))
    target = sums.target._replace(maximum=sums.target.maximum + sums.target_offset)
    packed = torch.stack([torch.stack([value.double() for value in side]) for side in (sums.student, target)])
    student, target = (join(*side.unbind(1)) for side in shard.gather(packed).wait().unbind(1))
    own_scale = target.maximum - sums.target_offset
    normalizers = Normalizers(*(x.to(dtype) for x in (student.maximum, student.total, own_scale, target.total)))
    if shard.size:
        parts = kernels.shard_parts_(logits, teacher_logits, normalizers, divergence)
    else:
        parts = Parts(*logits.new_zeros(len(Parts._fields), rows))
    parts = Parts(*shard.gather(torch.stack(parts).double()).wait().sum(0).to(dtype))
    if weights is not None and shard.size:
        kernels.shard_gradient_(logits, teacher_logits, normalizers, parts, weights, head, divergence)
    return RowValues(parts.divergence, _entropy(student).to(dtype), _entropy(target).to(dtype))


def listed_divergence_(
    kernels: ShardKernels,
    logits: Tensor,  # (n, V_r), projected
    ids: Tensor,  # (n, T), in [0, V)
    log_p: Tensor,  # (n, T + 1)
    weights: Tensor | None,  # (n,)
    head: Head,
    divergence: Divergence,
    shard: Shard,
) -> RowValues:
    """As `contract.RowKernels.listed_divergence_`, for whole rows."""
    rows, dtype = len(logits), logits.dtype
    places = _Places(shard.local(ids))
    listed, sums = logits.new_zeros(ids.shape), SoftmaxSums.empty(rows, logits)
    if shard.size:
        listed = head.to_logits_(places.read(logits))
        places.write_(logits, listed.new_full((), LISTED).expand(ids.shape))
        maximum, log_total, mean = kernels.others(logits, head)
        total = torch.where(maximum == -torch.inf, 0, log_total.exp())
        sums = SoftmaxSums(maximum, total, mean * total)
    gathered = shard.gather(torch.cat([torch.stack(sums), listed.T]).double()).wait()
    listed = gathered[:, len(sums) :].gather(0, shard.owner(ids).T[None]).squeeze(0).T.to(dtype)
    others = join(*gathered[:, : len(sums)].unbind(1))
    none = others.maximum == -torch.inf
    log_total = torch.where(none, 0, others.total.log())
    mean = torch.where(none, 0, others.moment / others.total)
    numbers = torch.stack([others.maximum, log_total, mean]).to(dtype)
    maximum, log_total, mean = numbers
    values, gradient = event_terms(listed, maximum, log_total, mean, log_p, divergence)
    if weights is not None and shard.size:
        gradient.mul_(weights[:, None])
        kernels.spread_(logits, numbers, gradient[:, -1].contiguous(), head)
        places.write_(logits, scale_(gradient[:, :-1], head.slope(listed)))
    return values


def join(maximum: Tensor, total: Tensor, moment: Tensor) -> SoftmaxSums:
    """The sums of whole rows (...), from those of all shards (processes, ...)."""
    top = maximum.amax(0)
    distance = maximum - top  # nan if all logits of the row are minus infinity: such a row has no softmax
    scale = distance.exp()
    moment = torch.where(scale == 0, 0, scale * (moment + distance * total)).sum(0)
    return SoftmaxSums(top, (scale * total).sum(0), moment)


def _entropy(sums: SoftmaxSums) -> Tensor:
    return sums.total.log() - sums.moment / sums.total


class _Places:
    """The positions of the rows' listed tokens among the entries of this shard."""

    def __init__(self, local: Tensor) -> None:  # (n, T), -1 if another process has the token
        self._mine = local >= 0
        # A token of another process writes the same value to the same place as one of the row's own tokens, so nothing
        # changes; to entry 0 if the row has none.
        self._first = self._mine.byte().argmax(1, keepdim=True)
        self._any = self._mine.any(1, keepdim=True)
        self._columns = torch.where(self._mine, local, torch.where(self._any, local.gather(1, self._first), 0))

    def read(self, matrix: Tensor) -> Tensor:
        """Reads (n, T) numbers from matrix (n, V_r); arbitrary ones if another process has the token."""
        return matrix.gather(1, self._columns)

    def write_(self, matrix: Tensor, values: Tensor) -> None:
        """Writes values (n, T) to their places in matrix (n, V_r)."""
        instead = torch.where(self._any, values.gather(1, self._first), matrix[:, :1])
        matrix.scatter_(1, self._columns, torch.where(self._mine, values, instead))
