"""linear_pairwise_jsd: public function, custom operator, fake kernel and autograd."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mind_kernels import backend as backends
from mind_kernels import checks
from mind_kernels.autograd import empty_gradients, needs_gradient, save_gradients, scaled_gradients, under_autocast
from mind_kernels.linear_pairwise_jsd import backend_torch, reference
from mind_kernels.row_chunks import Head, accumulation_dtype


@dataclass(frozen=True)
class PairStats:
    """Statistics of the pairs, without a gradient; float32 (float64 for float64 input)."""

    jsd: Tensor
    """(P, K, K) divergences in nats, in [0, ln 2]: symmetric, zero diagonal, zero where a row is masked."""


def linear_pairwise_jsd(
    hidden: Tensor,
    weight: Tensor,
    pair_weight: Tensor,
    *,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    softcap: float | None = None,
    temperature: float = 1.0,
    return_stats: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, PairStats]:
    """sum_p sum_{i<j} pair_weight[p, i, j] JSD(P_i, P_j) of P_k = softmax(z_k), with gradients to all K sides.

    z = softcap(hidden weight^T + bias) / temperature, in float32 whatever the dtype of hidden. JSD(P, Q) =
    H((P + Q) / 2) - (H(P) + H(Q)) / 2 in nats: L_cons of MIND (arXiv 2601.03717) for pair_weight = alpha_i alpha_j.

    Args:
        hidden: (P, K, D), K >= 2 rows a group, float64, float32, bfloat16 or float16. Takes a gradient.
        weight: (V, D) LM head, dtype and device of hidden. Takes a gradient.
        pair_weight: (P, K, K) finite, any sign, a constant; only its upper triangle (i < j) counts.
        mask: (P, K) bool, False where a group lacks a row: its pairs have no divergence and no gradient.
        bias, softcap, temperature, backend: as in `linear_cross_entropy`.
        return_stats: also return PairStats.

    Returns:
        The loss in float32 (float64 for float64 input), or (loss, PairStats).

    Raises:
        ValueError, TypeError: an argument of the wrong shape, device, dtype or value; it is named.
        RuntimeError: a higher-order gradient through any backend but "reference".
    """
    hidden, weight, bias = under_autocast(hidden, weight, bias)
    checks.dimensions("hidden", hidden, "(P, K, D)")
    checks.head_arguments(hidden, weight, bias, softcap, temperature)
    groups, count, _ = hidden.shape
    checks.pair_weight_argument(pair_weight, hidden, (groups, count, count))
    if mask is None:
        mask = torch.ones(groups, count, dtype=torch.bool, device=hidden.device)
    checks.shape("mask", mask, (groups, count), "(P, K)")
    checks.device("mask", mask, hidden)
    if mask.dtype != torch.bool:
        raise TypeError(f"mask has dtype {mask.dtype}: expected torch.bool")
    name = backends.resolve(backend, hidden, BACKENDS)
    if name == "reference":
        checks.values(pair_weight.isfinite(), "pair_weight: expected finite values")
        logits = Head(weight, bias, softcap, temperature).logits(torch.where(mask[..., None], hidden, 0))
        jsd = reference.pairwise_jsd(logits, mask)
        loss, jsd = reference.weighted_sum(jsd, pair_weight), jsd.detach()
    else:
        loss, jsd = _forward(hidden, weight, bias, pair_weight, mask, softcap, float(temperature),
                             needs_gradient(hidden, weight, bias), name)[:2]
    return (loss, PairStats(jsd)) if return_stats else loss


@torch.library.custom_op("mind_kernels::linear_pairwise_jsd", mutates_args=())
def _forward(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    pair_weight: Tensor,
    mask: Tensor,
    softcap: float | None,
    temperature: float,
    needs: list[bool],
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(loss, jsd, d_hidden, d_weight, d_bias)"""
    checks.values(pair_weight.isfinite(), "pair_weight: expected finite values")
    pair_weight = pair_weight.to(accumulation_dtype(hidden.dtype))
    with torch.autocast(hidden.device.type, enabled=False):
        jsd, gradients = BACKENDS[backend](hidden, Head(weight, bias, softcap, temperature), pair_weight, mask, needs)
    d_hidden, d_weight, d_bias = gradients.results()
    if needs[0]:
        d_hidden = d_hidden.view_as(hidden)
    return reference.weighted_sum(jsd, pair_weight), jsd, d_hidden, d_weight, d_bias


BACKENDS = {"torch": backend_torch.forward}


@_forward.register_fake
def _(hidden, weight, bias, pair_weight, mask, softcap, temperature, needs, backend):
    dtype = accumulation_dtype(hidden.dtype)
    return (hidden.new_empty((), dtype=dtype), pair_weight.new_empty(pair_weight.shape, dtype=dtype),
            *empty_gradients((hidden, weight, bias), needs))


def _setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
    ctx.needs = inputs[7]
    save_gradients(ctx, output[0], output[1:2], output[2:])


def _backward(ctx: Any, upstream: Tensor | None, *_: Any) -> tuple:
    return (*scaled_gradients(ctx, upstream), *[None] * 6)


_forward.register_autograd(_backward, setup_context=_setup_context)
