"""The divergence of rows and its gradient, computed from both softmaxes without cancellation, in plain PyTorch.

With e = log(q / p), q - p is (p + q) tanh(e / 2), so that equal distributions give exactly 0, and the error of nearly
equal ones is a rounding of e, not of p. For a mixture m = c p + (1 - c) q, with R = (q - p) / m,
    log(max(p, q) / m) = log1p(max(c R, (c - 1) R)),   log(q / m) = that + min(e, 0),   log(p / m) = that - max(e, 0):
no argument of log1p is near -1, nothing overflows, and every large term is multiplied by a small probability. The
number S = sum q F' / sum q of a row is computed from the same numbers as F', so that a rounding error of a normalizer
cancels in F' - S.

If p or q is 0, a ratio that is infinite or nan (from logits of minus infinity) times 0 would be nan. A finite ratio is
used instead, except where the divergence really is infinite.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.linalg import vecdot

from mind_kernels.definitions import finite
from mind_kernels.linear_divergence.contract import RowValues
from mind_kernels.linear_divergence.kinds import Divergence
from mind_kernels.row_chunks import known_finite

# Used as |log(q / p)| if q or p is 0: its tanh is 1, and e^-_FAR is 0.
_FAR = 1e4
# About the number of tensors (n, T) that `event_terms` holds: they share a chunk's memory with the logits.
EVENT_TENSORS = 12


class Parts(NamedTuple):
    """Sums over the entries of rows, (n,) each; the sums of whole rows are those of all shards added."""

    value: Tensor  # of the divergence
    weighted: Tensor  # of q F'
    mass: Tensor  # of q

    @property
    def divergence(self) -> Tensor:
        """The divergence of each row (n,)."""
        return self.value.clamp(min=0)

    def gradient_(self, slope: Tensor, q: Tensor, divergence: Divergence) -> Tensor:
        """q (F' - S), the gradient by the student's logits (n, E), from the results of `divergence_parts_`; overwrites
        one of the two tensors."""
        share = (self.weighted / self.mass)[:, None]
        return slope.sub_(q.mul_(share)) if divergence.mixture == 0 else slope.sub_(share).mul_(q)


def divergence_terms_(
    ratio: Tensor,  # (n, E), log(q / p)
    q: Tensor,  # (n, E), the student's
    p: Tensor,  # (n, E), the teacher's
    scratch: Tensor,  # (n, E)
    divergence: Divergence,
) -> tuple[Tensor, Tensor]:
    """The divergence of each row (n,) and its gradient q (F' - S) with respect to the student's logits (n, E).

    Overwrites its arguments; the gradient is in the memory of one of them.
    """
    parts, slope = divergence_parts_(ratio, q, p, scratch, divergence)
    return parts.divergence, parts.gradient_(slope, q, divergence)


def divergence_parts_(
    ratio: Tensor,  # (n, E), log(q / p)
    q: Tensor,  # (n, E), the student's
    p: Tensor,  # (n, E), the teacher's
    scratch: Tensor,  # (n, E)
    divergence: Divergence,
) -> tuple[Parts, Tensor]:
    """The sums of each row, and F' (n, E), or q F' for a mixture of 0.

    Overwrites its arguments except q; F' is in the memory of one of the others.
    """
    if not known_finite(ratio):
        if divergence.mixture != 1:
            ratio.masked_fill_(p == 0, _FAR)
        if divergence.mixture != 0:
            ratio.masked_fill_(q == 0, -_FAR)
    mass = q.sum(1)
    difference = torch.mul(ratio, 0.5, out=scratch).tanh_()  # (q - p) / (q + p), then q - p
    if divergence.mixture == 0:
        of_ratio = ratio.mul_(p).sum(1)
        total = difference.mul_(torch.add(p, q, out=ratio)).sum(1)
        return Parts(total - of_ratio, total, mass), difference  # q F' is q - p
    if divergence.mixture == 1:
        of_ratio = vecdot(q, ratio)
        return Parts(of_ratio - vecdot(difference, p.add_(q)), of_ratio, mass), ratio
    value, slope = _mixed_(ratio, difference.mul_(p + q), q, p, divergence)
    return Parts(value, vecdot(q, slope), mass), slope


def _mixed_(ratio: Tensor, difference: Tensor, q: Tensor, p: Tensor, divergence: Divergence) -> tuple[Tensor, Tensor]:
    """The divergence (n,) and F' (n, E) of a mixture m of both; overwrites ratio and difference."""
    c, d = divergence.mixture, divergence.difference_part
    value = d * difference.sum(1)
    m = torch.mul(p, c).add_(q, alpha=1 - c).clamp_(min=torch.finfo(p.dtype).tiny)
    relative = difference.div_(m)  # (q - p) / m
    log_larger = torch.maximum(torch.mul(relative, c, out=m), relative * (c - 1)).log1p_()  # log(max(p, q) / m)
    if divergence.teacher_part:
        value += divergence.teacher_part * (log_larger - ratio.clamp(min=0)).mul_(p).sum(1)
    slope = relative.mul_((1 - c) * d)
    if divergence.student_part:
        of_student = ratio.clamp_(max=0).add_(log_larger)
        value += divergence.student_part * vecdot(q, of_student)
        slope.add_(of_student, alpha=divergence.student_part)
    return value, slope


def event_terms(
    listed: Tensor,  # (n, T), logits of distinct tokens
    maximum: Tensor,  # (n,), of all other logits z; -inf if all of them have probability 0
    log_total: Tensor,  # (n,), log sum exp(z - maximum) of the others; finite for a maximum of -inf; nan if any is nan
    mean: Tensor,  # (n,), mean of z - maximum in the others' softmax; finite or nan in the same cases
    log_p: Tensor,  # (n, T + 1), the teacher's; -inf for no event
    divergence: Divergence,
) -> tuple[RowValues, Tensor]:
    """The values (n,), and the gradient of the divergence with respect to the logits of the T tokens and to
    the log-sum-exp of the others (n, T + 1).

    The last event combines the others and the listed tokens that are no events: its logit is the log-sum-exp of theirs,
    and their softmax distributes its gradient.
    """
    top = torch.maximum(listed.amax(1), torch.where(log_total.isnan(), log_total, maximum))  # nan in every event
    z = torch.cat([listed - top[:, None], ((maximum - top) + log_total)[:, None]], 1)
    q = torch.softmax(z, 1)
    entropy = torch.special.entr(q).sum(1) + q[:, -1] * (log_total - mean)
    is_event = log_p > -torch.inf
    pooled = torch.cat([z[:, :-1].masked_fill(is_event[:, :-1], -torch.inf), z[:, -1:]], 1)
    total = pooled.logsumexp(1, keepdim=True)
    z = torch.where(is_event, torch.cat([z[:, :-1], total], 1), -torch.inf)
    log_q = torch.log_softmax(z, 1)  # nan if all events have probability 0, and so is the target
    if divergence.interpolation != 1:
        log_p = torch.log_softmax(torch.lerp(finite(log_q), finite(log_p), divergence.interpolation), 1)
    p = log_p.exp()
    target_entropy = torch.special.entr(p).sum(1)
    value, gradient = divergence_terms_(log_q - log_p, log_q.exp(), p, log_q, divergence)
    alone = pooled == -torch.inf
    of_pooled = pooled.sub_(total).exp_().mul_(gradient[:, -1:]).masked_fill_(alone, 0)
    gradient[:, -1] = 0
    return RowValues(value, entropy, target_entropy), gradient.add_(of_pooled)
