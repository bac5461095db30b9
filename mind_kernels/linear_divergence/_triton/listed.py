"""Triton kernels for the tokens that a teacher's list leaves out, on float32 logits. One program per row.

Passes: the normalizer of these tokens (read), their gradient in place (read, write).
`linear_divergence.terms.event_terms` computes the part of the listed tokens. Peak memory: three numbers per row beside
the logits. All arithmetic in float32; deterministic.
"""

from __future__ import annotations

import torch
import triton.language as tl
from torch import Tensor

from mind_kernels.head import Head
from mind_kernels.linear_divergence import teachers
from mind_kernels.triton_math import (
    FLOOR,
    LOWEST,
    columns_of,
    condition,
    conditions,
    exp,
    jit,
    join_lanes,
    online_softmax,
    row_launch,
    row_pointer,
    slope,
)
from mind_kernels.triton_variant import Variant

# Marks a listed token: replaces its logit before the softcap.
LISTED = tl.constexpr(teachers.LISTED)


def others_launch(vocabulary: int) -> dict[str, int]:
    """Tile and warps of both kernels."""
    return row_launch(vocabulary, vocabulary, torch.float32)


@jit
def _load_others(row, columns, vocabulary, softcap, temperature, HAS_SOFTCAP: tl.constexpr):
    """z of these columns of a row; -inf if the logit is LISTED or beyond the vocabulary."""
    x = tl.load(row + columns, mask=columns < vocabulary, other=LISTED)
    return tl.where(x == LISTED, float("-inf"), condition(x, softcap, temperature, HAS_SOFTCAP))


@jit
def _others_kernel(
    logits,  # (n, V), LISTED for listed tokens
    numbers,  # (3, n): maximum, log_total, mean
    vocabulary,
    softcap,
    temperature,
    HAS_SOFTCAP: tl.constexpr,
    LANES: tl.constexpr,
    VECTOR: tl.constexpr,
):
    r, rows = tl.program_id(0), tl.num_programs(0)
    row = row_pointer(logits, r, vocabulary)
    maximum = tl.full((LANES,), FLOOR, tl.float32)
    total = tl.zeros((LANES,), tl.float32)
    entropy_sum = tl.zeros((LANES,), tl.float32)
    for start in range(0, vocabulary, LANES * VECTOR):
        columns = columns_of(start, LANES, VECTOR)
        z = _load_others(row, columns, vocabulary, softcap, temperature, HAS_SOFTCAP)
        maximum, total, entropy_sum = online_softmax(z, tl.max(z, axis=1), maximum, total, entropy_sum)
    row_maximum, row_total, entropy_sum = join_lanes(maximum, total, entropy_sum)
    none = row_total == 0  # all other tokens have probability 0
    total = tl.where(none, 1.0, row_total)
    tl.store(numbers + r, tl.where(none, float("-inf"), row_maximum))
    tl.store(numbers + rows + r, tl.log(total))
    tl.store(numbers + 2 * rows + r, entropy_sum / total)


@jit
def _spread_kernel(
    logits,  # (n, V), LISTED for listed tokens
    numbers,  # (3, n): maximum, log_total, mean
    weight,  # (n,)
    vocabulary,
    softcap,
    temperature,
    HAS_SOFTCAP: tl.constexpr,
    LANES: tl.constexpr,
    VECTOR: tl.constexpr,
):
    r, rows = tl.program_id(0), tl.num_programs(0)
    row = row_pointer(logits, r, vocabulary)
    maximum, log_total = tl.maximum(tl.load(numbers + r), FLOOR), tl.load(numbers + rows + r)
    share = tl.load(weight + r)
    for start in range(0, vocabulary, LANES * VECTOR):
        columns = columns_of(start, LANES, VECTOR)
        z = _load_others(row, columns, vocabulary, softcap, temperature, HAS_SOFTCAP)
        dx = share * exp((z - maximum) - log_total) * slope(tl.maximum(z, LOWEST), softcap, temperature, HAS_SOFTCAP)
        tl.store(row + columns, dx, mask=columns < vocabulary)


def variants() -> list[Variant]:
    """Both kernels, with all options, and for a vocabulary that is not a multiple of 16."""
    types = dict.fromkeys(("logits", "numbers", "weight"), "*fp32")
    types |= {"vocabulary": "i32", "softcap": "fp32", "temperature": "fp32"}

    def variant(name, kernel, softcap, vocabulary=151936, unaligned=()):
        keywords = {"HAS_SOFTCAP": softcap} | others_launch(vocabulary)
        return Variant(name, kernel, types, keywords, ("logits",), unaligned)

    out = []
    for name, kernel in (("others", _others_kernel), ("others' gradient", _spread_kernel)):
        out += [
            variant(name, kernel, False),
            variant(f"{name}, all options", kernel, True),
            variant(f"{name}, unaligned", kernel, True, 50257, ("vocabulary",)),
        ]
    return out


def others(
    logits: Tensor,  # (n, V) float32, projected, contiguous, LISTED for listed tokens
    head: Head,
) -> Tensor:
    """(3, n): maximum of z, log sum exp(z - maximum), and the mean of z - maximum in their softmax: -inf, 0 and 0 if
    all other tokens have probability 0."""
    rows, vocabulary = logits.shape
    numbers = logits.new_empty(3, rows)
    _others_kernel[(rows,)](logits, numbers, vocabulary, **conditions(head), **others_launch(vocabulary))
    return numbers


def spread_(
    logits: Tensor,  # as for `others`; becomes the gradient, 0 for listed tokens
    numbers: Tensor,  # (3, n), of `others`
    weight: Tensor,  # (n,) float32, d(total loss) / d(log-sum-exp of the others)
    head: Head,
) -> None:
    """Overwrites the projected logits by the gradient of the others' log-sum-exp, times weight."""
    rows, vocabulary = logits.shape
    _spread_kernel[(rows,)](logits, numbers, weight, vocabulary, **conditions(head), **others_launch(vocabulary))
