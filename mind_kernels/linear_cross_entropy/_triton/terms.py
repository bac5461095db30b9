"""The formulas that the Triton kernels of linear cross-entropy share, for entries of a row; all arithmetic is float32.

p is the softmax of a row's conditioned logits z, and d(loss) / dz = p (a + b log p) - t [v = target] - a uniform part,
as in `contract.RowWeights`. Kept entries have p > threshold or are the target's.
"""

from __future__ import annotations

import triton.language as tl

from mind_kernels.linear_cross_entropy.contract import RowSpec
from mind_kernels.triton_math import LOWEST, conditions, exp, jit, slope


def loss_arguments(spec: RowSpec) -> dict[str, float | bool]:
    """The loss per row as kernel arguments."""
    return {"label_smoothing": spec.label_smoothing, "z_loss": spec.z_loss} | conditions(spec.head)


@jit
def coefficients(scale, entropy_scale, lse, entropy, label_smoothing, z_loss):
    """a, b and t for the row of this program."""
    weight = tl.load(scale + tl.program_id(0))
    a = weight * (1.0 + 2.0 * z_loss * lse)
    b = 0.0
    if entropy_scale is not None:
        b = -tl.load(entropy_scale + tl.program_id(0))
        a += b * entropy
    return a, b, weight * (1.0 - label_smoothing)


@jit
def probability_part(log_p, a, b, HAS_ENTROPY: tl.constexpr):
    """p (a + b log p); 0 where p is."""
    factor = a
    if HAS_ENTROPY:
        factor += b * tl.maximum(log_p, LOWEST)
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
    t,
    softcap,
    temperature,
    HAS_ENTROPY: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
):
    """p (a + b log p), and the gradient of the projected logit without a uniform part."""
    part = probability_part((z - maximum) - log_total, a, b, HAS_ENTROPY)
    return part, (part - tl.where(columns == target, t, 0.0)) * slope(z, softcap, temperature, HAS_SOFTCAP)


@jit
def load_normalizer(normalizer, row, rows):
    """maximum, log_total and lse of rows. log p is (z - maximum) - log_total: at logits of 1e4 the rounding of lse
    alone would be 1e-3 of p."""
    maximum, log_total = tl.load(normalizer + row), tl.load(normalizer + rows + row)
    return maximum, log_total, log_total + maximum


@jit
def is_kept(z, columns, target, lse, log_threshold):
    """p > threshold, or the target. Written without z - lse: the compiler may fuse that into the last product of z, and
    so round it differently, in one kernel and not in another; here the same entries are kept in all of them."""
    return (z > lse + log_threshold) | (columns == target)
