"""The definition of linear cross-entropy: plain PyTorch, unchunked, differentiable any number of times.

Allocates N x V. Computes in the dtype of its input (float64 throughout for float64 input); half-precision logits are
converted to float32 after the product. With a gradient threshold it defines the sparse gradient, which cannot be
differentiated again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mind_kernels import checks, derivatives
from mind_kernels.definitions import entropy, project_weighted
from mind_kernels.head import Head
from mind_kernels.linear_cross_entropy.batch_rows import SPAN, WEIGHT_SHARE
from mind_kernels.linear_cross_entropy.contract import RowSpec, RowTerms, RowValues, RowWeights
from mind_kernels.linear_cross_entropy.extra_stats import ExtraStats
from mind_kernels.row_chunks import accumulation_dtype, has_gradient, reduced, row_weights, scale_of_rows
from mind_kernels.sparse_gradient import sampled_of_batch, sampled_rows


def forward(
    hidden: Tensor,  # (N, D)
    target: Tensor,  # (N,), on the device of hidden
    row_weight: Tensor | None,  # (N,)
    spec: RowSpec,
    *,
    ignore_index: int,
    reduction: str,
    extra: str = "",
) -> tuple[Tensor, RowTerms]:
    """The loss, () or (N,) for reduction "none", and the rows' terms, both differentiable."""
    valid = target != ignore_index
    weights = RowWeights(row_weights(row_weight, valid, hidden, reduction))
    terms = row_terms(without_ignored(hidden, valid), target, valid, weights, spec, extra=extra)
    return reduced(terms.values.loss, scale_of_rows(weights.loss, reduction), reduction), terms


def without_ignored(hidden: Tensor, valid: Tensor) -> Tensor:
    """Hidden states (N, D), 0 in rows that are not `valid` (N,): 0 times nan would reach the gradient of the weight."""
    return torch.where(valid[:, None], hidden, 0)


def row_terms(
    hidden: Tensor,  # (N, D)
    target: Tensor,  # (N,)
    valid: Tensor,  # (N,) bool
    weights: RowWeights,  # of the rows, for the background of the sparse gradient
    spec: RowSpec,
    *,
    temperature: Tensor | None = None,  # (N,), in addition to that of the head
    extra: str = "",
) -> RowTerms:
    """Terms of all rows, differentiable; zero (False) in rows that are not `valid`."""
    projected, logits = row_logits(hidden, weights, spec.head, temperature)
    exact = logits
    dropped_mass, kept_entries = logits.new_empty(0), target.new_empty(0)
    if spec.gradient_threshold is not None:
        logits, dropped_mass, kept_entries = _sparsify(projected, logits, spec, target, valid, weights.magnitude())
    if spec.batch_threshold is not None:
        logits, dropped_mass, kept_entries = _sparsify_batch(hidden, spec, target, valid, weights)
    index = torch.where(valid, target, 0)
    lse = torch.logsumexp(logits, dim=-1)
    lse = torch.where(lse == math.inf, math.nan, lse)  # as in the softmax
    log_p = torch.log_softmax(logits, dim=-1)  # lse of large logits, less one of them, would be rounded more
    nll = -log_p.gather(-1, index[:, None]).squeeze(-1)
    row_entropy = entropy(log_p)
    correct = (logits.argmax(-1) == index) & valid & nll.isfinite()
    nll, lse, row_entropy = (torch.where(valid, value, 0) for value in (nll, lse, row_entropy))
    loss = nll
    if spec.label_smoothing:  # infinite if a logit is minus infinity; without smoothing it would be 0 times infinity
        # The uniform part of the gradient stays exact.
        uniform = torch.where(valid, torch.logsumexp(logits, dim=-1) - exact.mean(-1), 0)
        loss = (1 - spec.label_smoothing) * nll + spec.label_smoothing * uniform
    if spec.z_loss:  # the square may be infinite; without z_loss it would be 0 times infinity
        loss = loss + spec.z_loss * lse.square()
    extras = {name: torch.where(valid, _EXTRA[name](exact), 0) for name in extra.split(",") if name}
    named = ExtraStats.zeros(0, hidden, "")._replace(**extras)
    return RowTerms(RowValues(loss, nll, lse, row_entropy, correct), dropped_mass, kept_entries, named)


_EXTRA = {
    "mean_logit": lambda z: z.mean(-1),
    "log_sum_sq": lambda z: torch.logsumexp(2 * z, -1) - 2 * torch.logsumexp(z, -1),
    "predicted": lambda z: z.argmax(-1),
}


def row_logits(
    hidden: Tensor,  # (N, D)
    weights: RowWeights,  # rows of weight 0 have no gradient
    head: Head,
    temperature: Tensor | None = None,  # (N,), in addition to that of the head
) -> tuple[Tensor, Tensor]:
    """Projected logits and logits (N, V), differentiable."""
    projected = project_weighted(head, hidden, weights.magnitude() != 0).to(accumulation_dtype(hidden.dtype))
    logits = head.to_logits(projected)
    return projected, logits if temperature is None else logits / temperature[:, None]


def _sparsify(
    projected: Tensor,  # (N, V)
    logits: Tensor,  # (N, V)
    spec: RowSpec,
    target: Tensor,  # (N,)
    valid: Tensor,  # (N,) bool
    magnitude: Tensor,  # (N,), the rows' weights in the background
) -> tuple[Tensor, Tensor, Tensor]:
    """The logits (N, V), whose backward pass is the sparse gradient, and the rows' dropped_mass and kept_entries,
    (N,)."""
    derivatives.no_transforms("gradient_threshold", [projected], "the sparse gradient", "gradient_threshold=None")
    checks.reads_values("gradient_threshold", projected)
    with torch.no_grad():
        index = torch.where(valid, target, 0)[:, None]
        others = torch.softmax(logits, -1).scatter_(1, index, 0)  # whose sum is 1 - p_y
        keep = others.log() > others.sum(-1, keepdim=True).log() + spec.log_threshold
        dropped = torch.where(keep, 0, others)
        keep.scatter_(1, index, True)
        mass = dropped.sum(-1)
        rows = has_gradient(valid, magnitude != 0).nonzero().squeeze(1)
        sample = rows[list(sampled_rows(0, len(rows), len(rows)))]
        sample = sample[_known(logits, magnitude)[sample]]
        total = magnitude[sample] @ mass[sample]
        background = magnitude[sample] @ (dropped * spec.head.slope(logits))[sample]
        background = torch.where(total > 0, background / total, 0)
        dropped_mass, kept_entries = torch.where(valid, mass, 0), torch.where(valid, keep.sum(-1), 0)
    return _ReplaceDropped.apply(logits, projected, keep, background), dropped_mass, kept_entries


def _sparsify_batch(
    hidden: Tensor,  # (N, D)
    spec: RowSpec,
    target: Tensor,  # (N,)
    valid: Tensor,  # (N,) bool
    weights: RowWeights,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `_sparsify`, with the batch's threshold: entries with |w| p > t S are kept, and for the gradient of the weight
    those that are `WEIGHT_SHARE` times as large."""
    assert spec.batch_threshold is not None
    head, magnitude = spec.head, weights.magnitude()
    # Computed twice, so that hidden states and bias get one gradient and the weight another.
    projected, logits = row_logits(hidden, weights, replace(head, weight=head.weight.detach()))
    bias = None if head.bias is None else head.bias.detach()
    of_weight = row_logits(hidden.detach(), weights, replace(head, bias=bias))
    derivatives.no_transforms("gradient_error", [projected], "the sparse gradient", "gradient_error=None")
    checks.reads_values("gradient_error", projected)
    with torch.no_grad():
        index = torch.where(valid, target, 0)[:, None]
        others = torch.softmax(logits, -1).scatter_(1, index, 0)
        rows = (valid & (magnitude != 0)).nonzero().squeeze(1)
        sample = rows[sampled_of_batch(len(rows))]
        sample = sample[_known(logits, magnitude)[sample]]
        size = (magnitude[sample] * others[sample].sum(-1)).double().square().mean().nan_to_num(0).sqrt()
        cut = spec.batch_threshold * size
        keep = magnitude[:, None] * others > cut
        dropped = torch.where(keep, 0, others)
        keep.scatter_(1, index, True)
        slope = head.slope(logits)
        left, background = magnitude[sample] @ dropped[sample], magnitude[sample] @ (dropped * slope)[sample]
        background = torch.cat(
            [torch.where(mass.sum() > 0, part / mass.sum(), 0) for mass, part in _spans(left, background)]
        )
        has_gradient = valid & (magnitude != 0) & (projected.requires_grad or of_weight[0].requires_grad)
        dropped_mass = torch.where(has_gradient, dropped.sum(-1), 0)
        kept_entries = torch.where(has_gradient, keep.sum(-1), 0)
        # The gradient of the logits for a weight of 1, without the uniform part.
        of_lse = 2 * spec.z_loss * torch.logsumexp(logits, -1, keepdim=True)
        size_of_row = others.sum(-1, keepdim=True)
        at_target = spec.label_smoothing - size_of_row + of_lse * (1 - size_of_row)
        unit = (others * (1 + of_lse)).scatter_(1, index, at_target)
        large = (magnitude[:, None] * unit * slope).abs() > WEIGHT_SHARE * cut / head.temperature
    sparse = _ReplaceInBatch.apply(logits, projected, *reversed(of_weight), keep, keep & large, background)
    return sparse, dropped_mass, kept_entries


def _known(logits: Tensor, magnitude: Tensor) -> Tensor:
    """(N,) bool: the rows without nan or infinity; the others would spoil every row through the background."""
    return torch.logsumexp(logits, -1).isfinite() & magnitude.isfinite()


def _spans(*values: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The parts of values (..., V) in each span of the vocabulary."""
    return zip(*(value.split(SPAN, -1) for value in values), strict=True)


class _ReplaceInBatch(torch.autograd.Function):
    """As `_ReplaceDropped`, span by span, on two copies of the logits: one for the gradient of hidden states and bias,
    one for that of the weight."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, projected: Tensor, *rest: Any) -> Tensor:
        ctx.save_for_backward(*rest[2:])
        return logits.view_as(logits)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), (keep, keep_weight, background) = grad_outputs, ctx.saved_tensors
        found: list[Tensor | None] = []
        for kept in (keep, keep_weight):
            dropped = torch.where(kept, 0, gradient)
            replaced = [part.sum(-1, keepdim=True) * of_span for part, of_span in _spans(dropped, background)]
            found += [torch.where(kept, gradient, 0), torch.cat(replaced, -1)]
        return (*found, None, None, None)


class _ReplaceDropped(torch.autograd.Function):
    """The identity on the logits z. In the backward pass the gradient of kept entries passes; the sum of a row's
    dropped ones, times the background distribution, is added to the gradient of the projected logits."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, projected: Tensor, keep: Tensor, background: Tensor) -> Tensor:
        ctx.save_for_backward(keep, background)
        return logits.view_as(logits)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (gradient,), (keep, background) = grad_outputs, ctx.saved_tensors
        residual = torch.where(keep, 0, gradient).sum(-1)
        return torch.where(keep, gradient, 0), residual[:, None] * background, None, None
