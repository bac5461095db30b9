"""Row kernels of the divergences in plain PyTorch, on any device.

Passes over a chunk of logits, block by block, so that a block stays in the cache: both softmaxes, then the divergence
and its gradient as in `terms`, in place. All arithmetic in float32 (float64 for float64 input). Peak memory: about six
blocks beside the chunk.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.linalg import vecdot

from mind_kernels.head import Head, scale_
from mind_kernels.linear_divergence.contract import RowValues
from mind_kernels.linear_divergence.kinds import Divergence
from mind_kernels.linear_divergence.shard_contract import Normalizers, ShardSums, SoftmaxSums
from mind_kernels.linear_divergence.teachers import LISTED, LOWEST
from mind_kernels.linear_divergence.terms import Parts, divergence_parts_, divergence_terms_, event_terms
from mind_kernels.row_chunks import chunks, known_finite, may_be_nan, rows_per_block


class _Blocks:
    """Iterates over blocks of logits; all use the same buffers, since fresh pages cost more time than exp.

    Blocks have half the rows that fit the cache: a block's passes use twice as many arrays as buffers.
    """

    def __init__(self, logits: Tensor, buffers: int) -> None:
        rows, vocabulary = logits.shape
        self._rows, self._size = rows, min(max(1, rows_per_block(vocabulary, logits.device) // 2), max(1, rows))
        self._buffers = [logits.new_empty(self._size, vocabulary) for _ in range(buffers)]

    def __iter__(self):
        for block in chunks(self._rows, self._size):
            yield block, *(buffer[: block.stop - block.start] for buffer in self._buffers)


def _softmax(z: Tensor, maximum: Tensor, shifted: Tensor, q: Tensor) -> Tensor:
    """log sum exp(z - maximum) (n, 1); fills shifted = z - maximum (it may be z) and the softmax q, (n, V)."""
    torch.sub(z, maximum, out=shifted)
    total = torch.exp(shifted, out=q).sum(1, keepdim=True)
    q.div_(total)
    return total.log_()


def _mean(q: Tensor, shifted: Tensor) -> Tensor:
    """sum q shifted (n,), where 0 times minus infinity is 0."""
    mean = vecdot(q, shifted)
    return vecdot(q, shifted.clamp(min=LOWEST)) if may_be_nan(mean) else mean


def divergence_(
    logits: Tensor,  # (n, V), projected
    teacher_logits: Tensor,  # (n, V), projected
    weights: Tensor | None,  # (n,)
    head: Head,
    teacher_head: Head,
    divergence: Divergence,
) -> RowValues:
    """See `contract.RowKernels`."""
    values = RowValues(*logits.new_empty(len(RowValues._fields), logits.shape[0]))
    for block, shifted, q, p in _Blocks(logits, 3):
        z, theirs = head.to_logits_(logits[block]), teacher_head.to_logits_(teacher_logits[block])
        log_total = _softmax(z, z.amax(1, keepdim=True), shifted, q)
        values.entropy[block] = log_total.squeeze(1) - _mean(q, shifted)
        if divergence.interpolation != 1:  # of shifted logits, at most 0: rounding of large ones would change p
            theirs.sub_(theirs.amax(1, keepdim=True))
            if not (known_finite(shifted) and known_finite(theirs)):
                shifted.clamp_(min=LOWEST)
                theirs.clamp_(min=LOWEST)
            torch.lerp(shifted, theirs, divergence.interpolation, out=theirs)
        their_log_total = _softmax(theirs, theirs.amax(1, keepdim=True), theirs, p)
        values.target_entropy[block] = their_log_total.squeeze(1) - _mean(p, theirs)
        log_total -= their_log_total
        ratio = shifted.sub_(theirs).sub_(log_total)
        values.divergence[block], gradient = divergence_terms_(ratio, q, p, theirs, divergence)
        if weights is not None:
            z.copy_(scale_(gradient.mul_(weights[block, None]), head.slope(z)))
    return values


def listed_divergence_(
    logits: Tensor,  # (n, V), projected
    ids: Tensor,  # (n, T)
    log_p: Tensor,  # (n, T + 1)
    weights: Tensor | None,  # (n,)
    head: Head,
    divergence: Divergence,
) -> RowValues:
    """See `contract.RowKernels`."""
    values = RowValues(*logits.new_empty(len(RowValues._fields), logits.shape[0]))
    for block, shifted, q in _Blocks(logits, 2):
        z, index = head.to_logits_(logits[block]), ids[block]
        listed = z.gather(1, index)
        maximum = z.scatter_(1, index, -math.inf).amax(1, keepdim=True)
        none = maximum == -math.inf  # all others have probability 0, so it is of no effect that the listed ones get it
        z.scatter_(1, index, torch.where(none, 0, maximum + LOWEST).expand(index.shape))
        log_total = _softmax(z, maximum.masked_fill(none, 0), shifted, q).squeeze(1)
        found, gradient = event_terms(
            listed, maximum.squeeze(1), log_total, _mean(q, shifted), log_p[block], divergence
        )
        for value, of_block in zip(values, found, strict=True):
            value[block] = of_block
        if weights is not None:
            gradient.mul_(weights[block, None])
            z.copy_(scale_(q.mul_(gradient[:, -1:]), head.slope(z)))
            z.scatter_(1, index, scale_(gradient[:, :-1], head.slope(listed)))
    return values


def shard_sums_(
    logits: Tensor, teacher_logits: Tensor, head: Head, teacher_head: Head, divergence: Divergence
) -> ShardSums:
    """See `shard_contract.ShardKernels`."""
    student, target, offsets = [], [], []
    for block, shifted, exponential in _Blocks(logits, 2):
        z, theirs = head.to_logits_(logits[block]), teacher_head.to_logits_(teacher_logits[block])
        student.append(_sums(z, shifted, exponential))
        offset = z.new_zeros(len(z), dtype=torch.float64)
        if divergence.interpolation != 1:
            own, other = _finite(student[-1].maximum), _finite(theirs.amax(1))
            torch.sub(z, own[:, None], out=shifted).clamp_(min=LOWEST)
            theirs.sub_(other[:, None]).clamp_(min=LOWEST)
            torch.lerp(shifted, theirs, divergence.interpolation, out=theirs)
            offset = torch.lerp(own.double(), other.double(), divergence.interpolation)
        target.append(_sums(theirs, shifted, exponential))
        offsets.append(offset)
    sides = [SoftmaxSums(*map(torch.cat, zip(*side, strict=True))) for side in (student, target)]
    return ShardSums(sides[0], sides[1], torch.cat(offsets))


def _finite(maximum: Tensor) -> Tensor:
    """The maximum, but 0 for minus infinity, which a shard has if all its entries are excluded."""
    return torch.where(maximum == -math.inf, 0, maximum)


def _sums(z: Tensor, shifted: Tensor, exponential: Tensor) -> SoftmaxSums:
    """The sums of a block z (n, V_r); fills both buffers."""
    maximum = z.amax(1)
    torch.sub(z, _finite(maximum)[:, None], out=shifted)
    total = torch.exp(shifted, out=exponential).sum(1)
    return SoftmaxSums(maximum, total, _mean(exponential, shifted))


def _shares(z: Tensor, maximum: Tensor, total: Tensor, shifted: Tensor, q: Tensor) -> None:
    """Fills shifted = z - maximum (it may be z) and the shard's part q of the softmax, (n, V_r)."""
    torch.sub(z, maximum[:, None], out=shifted)
    torch.exp(shifted, out=q).div_(total[:, None])


def shard_parts_(logits: Tensor, target_logits: Tensor, normalizers: Normalizers, divergence: Divergence) -> Parts:
    """See `shard_contract.ShardKernels`."""
    parts = Parts(*logits.new_empty(len(Parts._fields), logits.shape[0]))
    for block, shifted, q, p in _Blocks(logits, 3):
        maximum, total, their_maximum, their_total = (x[block] for x in normalizers)
        theirs = target_logits[block]
        _shares(logits[block], maximum, total, shifted, q)
        _shares(theirs, their_maximum, their_total, theirs, p)
        ratio = shifted.sub_(theirs).sub_((total.log() - their_total.log())[:, None])
        found, slope = divergence_parts_(ratio, q, p, theirs, divergence)
        theirs.copy_(slope)
        for part, of_block in zip(parts, found, strict=True):
            part[block] = of_block
    return parts


def shard_gradient_(
    logits: Tensor,
    slopes: Tensor,
    normalizers: Normalizers,
    parts: Parts,
    weights: Tensor,
    head: Head,
    divergence: Divergence,
) -> None:
    """See `shard_contract.ShardKernels`."""
    for block, shifted, q in _Blocks(logits, 2):
        z = logits[block]
        _shares(z, normalizers.maximum[block], normalizers.total[block], shifted, q)
        gradient = Parts(*(part[block] for part in parts)).gradient_(slopes[block], q, divergence)
        z.copy_(scale_(gradient.mul_(weights[block, None]), head.slope(z)))


def others(logits: Tensor, head: Head) -> Tensor:
    """See `shard_contract.ShardKernels`."""
    numbers = logits.new_empty(3, logits.shape[0])
    for block, z, shifted, exponential in _Blocks(logits, 3):
        sums = _sums(_unlisted(logits[block], head, z), shifted, exponential)
        none = sums.maximum == -math.inf
        numbers[0, block] = sums.maximum
        numbers[1, block] = torch.where(none, 0, sums.total.log())
        numbers[2, block] = torch.where(none, 0, sums.moment / sums.total)
    return numbers


def spread_(logits: Tensor, numbers: Tensor, gradient: Tensor, head: Head) -> None:
    """See `shard_contract.ShardKernels`."""
    maximum, log_total, _ = numbers
    for block, z, shifted, q in _Blocks(logits, 3):
        _unlisted(logits[block], head, z)
        _shares(z, _finite(maximum[block]), log_total[block].exp(), shifted, q)
        slope = head.slope(z.masked_fill_(z == -math.inf, 0))
        logits[block] = scale_(q.mul_(gradient[block, None]), slope)


def _unlisted(projected: Tensor, head: Head, out: Tensor) -> Tensor:
    """z (n, V_r) in the memory of `out`; minus infinity for listed tokens."""
    return head.to_logits_(out.copy_(projected)).masked_fill_(projected == LISTED, -math.inf)
