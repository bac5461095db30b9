"""linear_mind_loss: public function, custom operator, fake kernel and autograd."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mind_kernels import backend as backends
from mind_kernels import checks
from mind_kernels.autograd import empty_gradients, needs_gradient, save_gradients, scaled_gradients, under_autocast
from mind_kernels.head import Head
from mind_kernels.linear_cross_entropy.contract import RowSpec, RowStats
from mind_kernels.linear_cross_entropy.op import segment_means
from mind_kernels.linear_mind_loss import joint, reference
from mind_kernels.linear_pairwise_jsd import op as jsd_op
from mind_kernels.linear_pairwise_jsd.contract import MixtureStats, PairStats
from mind_kernels.linear_pairwise_jsd.reference import group_loss
from mind_kernels.row_chunks import accumulation_dtype, row_major, weighted

# The row kernels of linear_cross_entropy, and the group kernels of linear_pairwise_jsd that go with them.
BACKENDS = {"torch": "torch", "cpp": "cpp", "triton": "triton", "triton_streaming": "triton", "cuda": "cuda"}


@dataclass(frozen=True)
class MindStats:
    """Statistics of one batch, without a gradient."""

    cross_entropy: Tensor
    """() sum_r row_weight[r] nll[r]."""
    consistency: Tensor
    """() the weighted sum of the divergences."""
    rows: RowStats
    pairs: PairStats | MixtureStats


def linear_mind_loss(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    row_weight: Tensor,
    answer_rows: Tensor,
    pair_weight: Tensor | None = None,
    *,
    mixture_weight: Tensor | None = None,
    segment: Tensor | None = None,
    num_segments: int | None = None,
    bias: Tensor | None = None,
    ignore_index: int = -100,
    softcap: float | None = None,
    temperature: float = 1.0,
    gradient_threshold: float | None = None,
    return_stats: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, MindStats]:
    """sum_r row_weight[r] nll[r] + sum_p sum_{i<j} pair_weight[p, i, j] JSD(P_i, P_j), in one pass over the logits.

    L_total of MIND (arXiv 2601.03717) for row_weight = alpha_k / tokens_k and pair_weight = lambda alpha_i alpha_j /
    answer positions. P_k at position p is the softmax of row answer_rows[p, k]; such a row is projected once and
    receives both gradients. With `mixture_weight` the second term is the mixture form of `linear_pairwise_jsd`.

    Args:
        hidden: (N, D) float64, float32, bfloat16 or float16. Takes a gradient.
        weight: (V, D) LM head, dtype and device of hidden. Takes a gradient.
        target: (N,) int64 in [0, V) or `ignore_index`; may stay on the CPU.
        row_weight: (N,) floating, any sign, a constant.
        answer_rows: (P, K) int64, row indices of hidden, each at most once, or -1 where absent; may stay on the CPU,
            which spares a GPU one synchronisation.
        pair_weight: (P, K, K) finite, any sign, a constant; only its upper triangle (i < j) counts.
        mixture_weight: (P, K) finite, not negative, a constant. Exactly one of the two is given.
        segment, num_segments, bias, ignore_index, softcap, temperature, backend: as in `linear_cross_entropy`.
        gradient_threshold: as in `linear_cross_entropy`, for rows that are no answers; answer rows stay exact.
        return_stats: also return MindStats.

    Returns:
        The loss in float32 (float64 for float64 input), or (loss, MindStats).

    Raises:
        ValueError, TypeError: an argument of the wrong shape, device, dtype or value; it is named.
        RuntimeError: a higher-order gradient through any backend but "reference".
    """
    hidden, weight, bias = under_autocast(hidden, weight, bias)
    checks.head_arguments(hidden, weight, bias, softcap, temperature)
    checks.row_arguments(hidden, target, row_weight, segment, num_segments)
    checks.dimensions("answer_rows", answer_rows, "(P, K)")
    checks.integers("answer_rows", answer_rows)
    checks.device("answer_rows", answer_rows, hidden, or_cpu=True)
    group_weight = checks.group_weight_argument(pair_weight, mixture_weight, hidden, answer_rows.shape)
    checks.probability("gradient_threshold", gradient_threshold)
    name = backends.resolve(backend, hidden, BACKENDS)
    shared = (
        hidden,
        weight,
        bias,
        target,
        row_weight,
        answer_rows,
        group_weight,
        segment,
        num_segments or 0,
        ignore_index,
        softcap,
        float(temperature),
        gradient_threshold,
    )
    if name == "reference":
        outputs = _reference(*shared)
    else:
        outputs = _forward(*shared, needs_gradient(hidden, weight, bias), name)
    loss, cross_entropy, consistency, *rows, segment_nll, segment_count, divergence = outputs[:12]
    if not return_stats:
        return loss
    segments = (None, None) if segment is None else (segment_nll, segment_count)
    sparse = (None, None) if gradient_threshold is None else rows[4:]
    return loss, MindStats(
        cross_entropy, consistency, RowStats(*rows[:4], *segments, *sparse), jsd_op.statistics(divergence)
    )


def _check_values(target, ignore_index, vocabulary, segment, num_segments, answer_rows, rows, group_weight):
    checks.row_values(target, ignore_index, vocabulary, segment, num_segments)
    checks.group_weight_values(group_weight)
    checks.values(
        (answer_rows >= -1) & (answer_rows < rows), f"answer_rows: expected rows in [0, {rows}), or -1 where absent"
    )
    uses = torch.zeros(rows + 1, dtype=torch.int64, device=answer_rows.device)
    uses.index_add_(0, answer_rows.flatten() % (rows + 1), torch.ones_like(answer_rows.flatten()))
    checks.values(uses[:rows] <= 1, "answer_rows: expected each row at most once")


def _reference(
    hidden,
    weight,
    bias,
    target,
    row_weight,
    answer_rows,
    group_weight,
    segment,
    num_segments,
    ignore_index,
    softcap,
    temperature,
    gradient_threshold,
):
    """The outputs of `_forward` but the gradients, differentiable."""
    _check_values(
        target, ignore_index, weight.shape[0], segment, num_segments, answer_rows, hidden.shape[0], group_weight
    )
    target, answer_rows = target.to(hidden.device), answer_rows.to(hidden.device)
    spec = RowSpec(Head(weight, bias, softcap, temperature), gradient_threshold=gradient_threshold)
    cross_entropy, consistency, terms, divergence = reference.forward(
        hidden, target, row_weight, answer_rows, group_weight, spec, ignore_index=ignore_index
    )
    rows = [terms[name].detach() for name in ("nll", "lse", "entropy", "correct", "dropped_mass", "kept")]
    segments = segment_means(rows[0], target != ignore_index, segment, num_segments)
    return (
        cross_entropy + consistency,
        cross_entropy.detach(),
        consistency.detach(),
        *rows,
        *segments,
        divergence.detach(),
    )


@torch.library.custom_op("mind_kernels::linear_mind_loss", mutates_args=())
def _forward(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    row_weight: Tensor,
    answer_rows: Tensor,
    group_weight: Tensor,
    segment: Tensor | None,
    num_segments: int,
    ignore_index: int,
    softcap: float | None,
    temperature: float,
    gradient_threshold: float | None,
    needs: list[bool],
    backend: str,
) -> tuple[
    Tensor,
    Tensor,
    Tensor,
    Tensor,
    Tensor,
    Tensor,
    Tensor,
    Tensor,
    Tensor,
    Tensor,
    Tensor,
    Tensor,
    Tensor,
    Tensor,
    Tensor,
]:
    """(loss, cross_entropy, consistency, nll, lse, entropy, correct, dropped_mass, kept, segment_nll, segment_count,
    divergences shaped as group_weight, d_hidden, d_weight, d_bias)"""
    _check_values(
        target, ignore_index, weight.shape[0], segment, num_segments, answer_rows, hidden.shape[0], group_weight
    )
    hidden, weight, bias = row_major(hidden), row_major(weight), None if bias is None else bias.contiguous()
    group_weight = group_weight.to(accumulation_dtype(hidden.dtype))
    spec = RowSpec(Head(weight, bias, softcap, temperature), gradient_threshold=gradient_threshold)
    with torch.autocast(hidden.device.type, enabled=False), torch.cuda.device_of(hidden):  # Triton launches there
        terms, row_weight, divergence, gradients = joint.forward(
            backends.kernels("linear_cross_entropy", backend),
            backends.kernels("linear_pairwise_jsd", BACKENDS[backend]),
            hidden,
            target,
            row_weight,
            answer_rows,
            group_weight,
            spec,
            needs,
            ignore_index=ignore_index,
        )
    _, nll, lse, entropy, correct = terms.values
    cross_entropy = weighted(nll, row_weight).sum()
    consistency = group_loss(divergence, group_weight)
    return (
        cross_entropy + consistency,
        cross_entropy,
        consistency,
        nll,
        lse,
        entropy,
        correct,
        terms.dropped_mass,
        terms.kept,
        *segment_means(nll, target != ignore_index, segment, num_segments),
        divergence,
        *gradients.results(),
    )


@_forward.register_fake
def _(
    hidden,
    weight,
    bias,
    target,
    row_weight,
    answer_rows,
    group_weight,
    segment,
    num_segments,
    ignore_index,
    softcap,
    temperature,
    gradient_threshold,
    needs,
    backend,
):
    rows, dtype = hidden.shape[0], accumulation_dtype(hidden.dtype)
    segments, sparse = 0 if segment is None else num_segments, 0 if gradient_threshold is None else rows
    return (
        *(hidden.new_empty((), dtype=dtype) for _ in range(3)),
        *(hidden.new_empty(rows, dtype=dtype) for _ in range(3)),
        hidden.new_empty(rows, dtype=torch.bool),
        hidden.new_empty(sparse, dtype=dtype),
        hidden.new_empty(sparse, dtype=torch.int64),
        hidden.new_empty(segments, dtype=dtype),
        hidden.new_empty(segments, dtype=torch.int64),
        hidden.new_empty(group_weight.shape, dtype=dtype),
        *empty_gradients((hidden, weight, bias), needs),
    )


def _setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
    ctx.needs = inputs[13]
    save_gradients(ctx, output[0], output[1:12], output[12:])


def _backward(ctx: Any, upstream: Tensor | None, *_: Any) -> tuple:
    return (*scaled_gradients(ctx, upstream), *[None] * 12)


_forward.register_autograd(_backward, setup_context=_setup_context)
