"""Formulas for the entries of a row that the Triton kernels of linear cross-entropy share, in float32.

p is the softmax of a row's conditioned logits z, and d(loss) / dz = p (a + b log p) - t [v = target] - a uniform part,
as in `contract.RowWeights`. Kept entries have p > threshold (1 - p of the target) or are the target's.
"""

from __future__ import annotations

import triton.language as tl

from mind_kernels.linear_cross_entropy.contract import RowSpec
from mind_kernels.triton_math import LEAST_LOG, LOWEST, conditions, exp, jit, log1p, slope


def loss_arguments(spec: RowSpec) -> dict[str, float | bool]:
    """The loss per row as kernel arguments."""
    return {"label_smoothing": spec.label_smoothing, "z_loss": spec.z_loss} | conditions(spec.head)


@jit
def with_target(maximum, others, entropy_sum, z_target):
    """For rows, given the sums of e^(z - maximum) and of e^(z - maximum) (z - maximum) without the target: entropy,
    log_total = log sum e^(z - maximum), the share of all but the target, and their log-sum-exp, inf if they have none.

    The target is added last, since `others` may be smaller than its rounding. The maximum is that of all entries.
    """
    shifted = z_target - maximum
    of_target = exp(shifted)
    total = others + of_target
    log_total = tl.where(shifted == 0, log1p(others), tl.log(total))
    entropy = log_total - (entropy_sum + of_target * tl.maximum(shifted, LOWEST)) / total
    lse_others = tl.where(others > 0, maximum + tl.log(others), float("inf"))
    return entropy, log_total, others / total, lse_others


@jit
def coefficients(scale, entropy_scale, nll, lse, entropy, others, label_smoothing, z_loss):
    """a, b and p_y (a + b log p_y) - t for the row of this program; at the target y, p - t would cancel if p is near 1,
    and (1 - t) - others does not."""
    weight = tl.load(scale + tl.program_id(0))
    of_lse = 2.0 * z_loss * lse
    a = weight * (1.0 + of_lse)
    b = 0.0
    at_target = weight * ((label_smoothing - others) + of_lse * (1.0 - others))
    if entropy_scale is not None:
        b = -tl.load(entropy_scale + tl.program_id(0))
        at_target += b * (exp(-nll) * (entropy + tl.maximum(-nll, LOWEST)))
        a += b * entropy
    return a, b, at_target


@jit
def probability_part(log_p, a, b, HAS_ENTROPY: tl.constexpr):
    """p (a + b log p); 0 if p is 0."""
    factor = a
    if HAS_ENTROPY:
        factor += b * tl.maximum(log_p, LEAST_LOG)
    return exp(log_p) * factor


@jit
def entry_gradient(
    z,
    columns,
    target,
    maximum,
    log_total,
    a,
    b,
    at_target,
    softcap,
    temperature,
    HAS_ENTROPY: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
):
    """The gradient of the logit z, and of the projected logit, without a uniform part."""
    part = probability_part((z - maximum) - log_total, a, b, HAS_ENTROPY)
    dz = tl.where(columns == target, at_target, part)
    return dz, dz * slope(z, softcap, temperature, HAS_SOFTCAP)


@jit
def load_normalizer(normalizer, row, rows):
    """maximum, log_total, others and lse_others of rows, see `with_target`. log p is (z - maximum) - log_total: at
    logits of 1e4 the rounding of lse alone would be 1e-3 of p."""
    maximum, log_total = tl.load(normalizer + row), tl.load(normalizer + rows + row)
    return maximum, log_total, tl.load(normalizer + 2 * rows + row), tl.load(normalizer + 3 * rows + row)


@jit
def is_kept(z, columns, target, lse_others, log_threshold):
    """p > threshold (1 - p of the target), or the target. Written without z - lse_others, which the compiler might fuse
    with the last product of z in one kernel and not in another, and so round differently. All kernels have to keep the
    same entries."""
    return (z > lse_others + log_threshold) | (columns == target)
