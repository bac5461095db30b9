"""linear_pairwise_jsd: public function, custom operator, fake kernel and autograd."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mind_kernels import backend as backends
from mind_kernels import checks
from mind_kernels.autograd import empty_gradients, needs_gradient, save_gradients, scaled_gradients, under_autocast
from mind_kernels.head import Head
from mind_kernels.linear_pairwise_jsd import groups, reference
from mind_kernels.linear_pairwise_jsd.contract import MixtureStats, PairStats
from mind_kernels.row_chunks import accumulation_dtype, row_major

BACKENDS = ("torch", "cpp", "triton", "cuda")  # backend_<name>.py each


def linear_pairwise_jsd(
    hidden: Tensor,
    weight: Tensor,
    pair_weight: Tensor | None = None,
    *,
    mixture_weight: Tensor | None = None,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    softcap: float | None = None,
    temperature: float = 1.0,
    return_stats: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, PairStats | MixtureStats]:
    """sum_p sum_{i<j} pair_weight[p, i, j] JSD(P_i, P_j) of P_k = softmax(z_k), with gradients to all K sides.

    z = softcap(hidden weight^T + bias) / temperature, in float32 whatever the dtype of hidden. JSD(P, Q) =
    H((P + Q) / 2) - (H(P) + H(Q)) / 2 in nats: L_cons of MIND (arXiv 2601.03717) for pair_weight = alpha_i alpha_j.

    With `mixture_weight` w instead: sum_p sum_k w[p, k] KL(P_k || M), M = sum_k w_k P_k / sum_k w_k, which is
    sum_k w_k times the generalised JSD of all K distributions (Lin 1991), and 1/2 in both places the JSD of a pair.

    Args:
        hidden: (P, K, D), K >= 2 rows a group, float64, float32, bfloat16 or float16. Takes a gradient.
        weight: (V, D) LM head, dtype and device of hidden. Takes a gradient.
        pair_weight: (P, K, K) finite, any sign, a constant; only its upper triangle (i < j) counts.
        mixture_weight: (P, K) finite, not negative, a constant. Exactly one of the two is given.
        mask: (P, K) bool, False where a group lacks a row: it has no divergence and no gradient.
        bias, softcap, temperature, backend: as in `linear_cross_entropy`.
        return_stats: also return PairStats, or MixtureStats with `mixture_weight`.

    Returns:
        The loss in float32 (float64 for float64 input), or (loss, PairStats or MixtureStats).

    Raises:
        ValueError, TypeError: an argument of the wrong shape, device, dtype or value; it is named.
        RuntimeError: a higher-order gradient through any backend but "reference".
    """
    hidden, weight, bias = under_autocast(hidden, weight, bias)
    checks.dimensions("hidden", hidden, "(P, K, D)")
    checks.head_arguments(hidden, weight, bias, softcap, temperature)
    shape = hidden.shape[:2]
    group_weight = checks.group_weight_argument(pair_weight, mixture_weight, hidden, shape)
    if mask is None:
        mask = torch.ones(shape, dtype=torch.bool, device=hidden.device)
    checks.shape("mask", mask, shape, "(P, K)")
    checks.device("mask", mask, hidden)
    if mask.dtype != torch.bool:
        raise TypeError(f"mask has dtype {mask.dtype}: expected torch.bool")
    name = backends.resolve(backend, hidden, BACKENDS)
    if name == "reference":
        checks.group_weight_values(group_weight)
        logits = Head(weight, bias, softcap, temperature).logits(torch.where(mask[..., None], hidden, 0))
        divergence = reference.divergences(logits, group_weight, mask)
        loss, divergence = reference.group_loss(divergence, group_weight), divergence.detach()
    else:
        loss, divergence = _forward(
            hidden,
            weight,
            bias,
            group_weight,
            mask,
            softcap,
            float(temperature),
            return_stats,
            needs_gradient(hidden, weight, bias),
            name,
        )[:2]
    return (loss, statistics(divergence)) if return_stats else loss


def statistics(divergence: Tensor) -> PairStats | MixtureStats:
    """Divergences (P, K, K) of pairs, or (P, K) of rows to their mixture, as the public statistics."""
    return PairStats(divergence) if divergence.dim() == 3 else MixtureStats(divergence)


@torch.library.custom_op("mind_kernels::linear_pairwise_jsd", mutates_args=())
def _forward(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    group_weight: Tensor,
    mask: Tensor,
    softcap: float | None,
    temperature: float,
    with_stats: bool,
    needs: list[bool],
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(loss, divergences shaped as group_weight, d_hidden, d_weight, d_bias)

    Without statistics only divergences of weighted pairs need be there.
    """
    checks.group_weight_values(group_weight)
    group_weight = group_weight.to(accumulation_dtype(hidden.dtype))
    head = Head(row_major(weight), bias, softcap, temperature)
    with torch.autocast(hidden.device.type, enabled=False), torch.cuda.device_of(hidden):  # Triton launches there
        divergence, gradients = groups.forward(
            backends.kernels("linear_pairwise_jsd", backend),
            hidden,
            head,
            group_weight,
            mask,
            needs,
            with_stats=with_stats,
        )
    d_hidden, d_weight, d_bias = gradients.results()
    if needs[0]:
        d_hidden = d_hidden.view(hidden.shape)
    return reference.group_loss(divergence, group_weight), divergence, d_hidden, d_weight, d_bias


@_forward.register_fake
def _(hidden, weight, bias, group_weight, mask, softcap, temperature, with_stats, needs, backend):
    dtype = accumulation_dtype(hidden.dtype)
    return (
        hidden.new_empty((), dtype=dtype),
        group_weight.new_empty(group_weight.shape, dtype=dtype),
        *empty_gradients((hidden, weight, bias), needs),
    )


def _setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
    ctx.needs = inputs[8]
    save_gradients(ctx, output[0], output[1:2], output[2:])


def _backward(ctx: Any, upstream: Tensor | None, *_: Any) -> tuple:
    return (*scaled_gradients(ctx, upstream), *[None] * 7)


_forward.register_autograd(_backward, setup_context=_setup_context)
