"""linear_top_k: the public function and its operator."""

from __future__ import annotations

import torch
from torch import Tensor

from mind_kernels import backend as backends
from mind_kernels import checks
from mind_kernels.head import Head, head_of
from mind_kernels.linear_top_k import reference
from mind_kernels.linear_top_k.contract import TopK
from mind_kernels.row_chunks import accumulation_dtype, flat_rows, row_major


def linear_top_k(
    hidden: Tensor,
    weight: Tensor | Head,
    k: int,
    *,
    bias: Tensor | None = None,
    softcap: float | None = None,
    temperature: float = 1.0,
    backend: str = "auto",
) -> TopK:
    """The k most likely tokens of softmax(z), z = softcap(hidden weight^T + bias) / temperature, of each row.

    For a teacher's lists on disk, which `linear_divergence` takes as teacher_ids and teacher_log_prob, without the
    N x V logits. Without a gradient: `linear_log_prob` has one.

    Args:
        hidden: (..., D) float64, float32, bfloat16 or float16: hidden states.
        weight: (V, D) LM head, dtype and device of hidden; or a Head, which has bias, softcap and temperature too.
        k: from 1 to V, how many tokens.
        bias: (V,), dtype and device of hidden: added to the projected logits; -inf rules an entry out.
        softcap: c > 0: x = hidden weight^T + bias becomes c tanh(x / c), before the temperature. None: x stays.
        temperature: T > 0: what the logits are divided by.
        backend: "auto" or a name that `mind_kernels.backends` lists.

    Returns:
        TopK. Of tokens with equal logits at the end of the list, any may be in it.

    Raises:
        ValueError, TypeError: an argument of the wrong shape, device, dtype or range; it is named.
        BackendUnavailableError: the backend that was named cannot run here; the message says why.
    """
    head = head_of(weight, bias, softcap, temperature)
    hidden, head = checks.head_arguments(hidden, head, "(..., D)")
    checks.integer("k", k)
    if not 1 <= k <= head.vocabulary:
        raise ValueError(f"k is {k}: expected 1 to {head.vocabulary}, the vocabulary")
    name = backends.resolve(backend, hidden, "linear_top_k")
    with torch.no_grad():
        rows = flat_rows(hidden.detach(), 1)
        weight, bias = head.weight.detach(), None if head.bias is None else head.bias.detach()
        if name == "reference":
            found = reference.top_k(rows, Head(weight, bias, head.softcap, head.temperature), k)
        else:
            found = _top_k(rows, weight, bias, head.softcap, head.temperature, k, name)
    ids, log_prob, lse = found
    shape = hidden.shape[:-1]
    return TopK(ids.view(*shape, k), log_prob.view(*shape, k), lse.view(shape))


@torch.library.custom_op("mind_kernels::linear_top_k", mutates_args=())
def _top_k(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    softcap: float | None,
    temperature: float,
    k: int,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    head = Head(weight, bias, softcap, temperature).row_major()
    return tuple(backends.kernels("linear_top_k", backend).top_k(row_major(hidden), head, k))


@_top_k.register_fake
def _fake(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    softcap: float | None,
    temperature: float,
    k: int,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    rows, dtype = hidden.shape[0], accumulation_dtype(hidden.dtype)
    listed = hidden.new_empty(rows, k, dtype=dtype)
    return torch.empty_like(listed, dtype=torch.int64), listed, hidden.new_empty(rows, dtype=dtype)
