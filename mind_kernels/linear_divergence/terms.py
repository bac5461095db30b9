"""The divergence of rows and its gradient, from both softmaxes, in plain PyTorch.

Cancellation-proof: with e = log(q / p), q - p is (p + q) tanh(e / 2), so that equal distributions give exactly 0, and
the error of nearly equal ones is a rounding of e, not of p. For a mixture m = c p + (1 - c) q, with R = (q - p) / m,
    log(max(p, q) / m) = log1p(max(c R, (c - 1) R)),   log(q / m) = that + min(e, 0),   log(p / m) = that - max(e, 0):
no argument is near -1, nothing overflows, and no term grows that its probability does not bound. The row scalar
S = sum q F' / sum q is made from the same numbers as F', so that a rounding error of a normalizer cancels in F' - S.

Where p or q is 0, a ratio that is infinite or nan (of logits of minus infinity) would make 0 times that nan. A finite
one stands for it there; it stays where the other's term is infinite.
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

# |log(q / p)| where q or p is 0: then tanh of it is 1, and e^-_FAR is 0.
_FAR = 1e4
# About as many tensors (n, T) are alive in `event_terms`: they share a chunk's room with the logits.
EVENT_TENSORS = 12


class Parts(NamedTuple):
    """What is summed up over the entries of rows, (n,) each: those of whole rows are the sums of all shards' ones."""

    value: Tensor  # of the divergence
    weighted: Tensor  # of q F'
    mass: Tensor  # of q

    @property
    def divergence(self) -> Tensor:
        """Of each row (n,)."""
        return self.value.clamp(min=0)

    def gradient_(self, slope: Tensor, q: Tensor, divergence: Divergence) -> Tensor:
        """q (F' - S) with respect to the student's logits (n, E), from what `divergence_parts_` left; in the memory of
        one of the two."""
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

    Overwrites its arguments; the gradient lies in the memory of one of them.
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

    Overwrites its arguments except q; F' lies in the memory of one of the others.
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
    maximum: Tensor,  # (n,), of all other logits z; -inf where none has any probability, and then
    log_total: Tensor,  # (n,), log sum exp(z - maximum) of the others, is finite, or nan if any of them is; so is the
    mean: Tensor,  # (n,), mean of z - maximum in their softmax
    log_p: Tensor,  # (n, T + 1), the teacher's; -inf where there is no event
    divergence: Divergence,
) -> tuple[RowValues, Tensor]:
    """The values (n,), and the gradient of the divergence with respect to the logits of the T tokens and to
    the log-sum-exp of the others (n, T + 1).

    The last event is that of the others and of the tokens that are none themselves: its logit is the log-sum-exp of
    these, and the softmax within them distributes its gradient.
    """
    top = torch.maximum(listed.amax(1), torch.where(log_total.isnan(), log_total, maximum))  # nan in every event
    z = torch.cat([listed - top[:, None], ((maximum - top) + log_total)[:, None]], 1)
    q = torch.softmax(z, 1)
    entropy = torch.special.entr(q).sum(1) + q[:, -1] * (log_total - mean)
    is_event = log_p > -torch.inf
    pooled = torch.cat([z[:, :-1].masked_fill(is_event[:, :-1], -torch.inf), z[:, -1:]], 1)
    total = pooled.logsumexp(1, keepdim=True)
    z = torch.where(is_event, torch.cat([z[:, :-1], total], 1), -torch.inf)
    if divergence.interpolation != 1:
        log_p = torch.log_softmax(torch.lerp(finite(z), finite(log_p), divergence.interpolation), 1)
    log_q, p = torch.log_softmax(z, 1), log_p.exp()
    target_entropy = torch.special.entr(p).sum(1)
    value, gradient = divergence_terms_(log_q - log_p, log_q.exp(), p, log_q, divergence)
    alone = pooled == -torch.inf
    of_pooled = pooled.sub_(total).exp_().mul_(gradient[:, -1:]).masked_fill_(alone, 0)
    gradient[:, -1] = 0
    return RowValues(value, entropy, target_entropy), gradient.add_(of_pooled)
