"""linear_top_k: the public function and its operator."""

from __future__ import annotations

import torch
from torch import Tensor

from mind_kernels import backend as backends
from mind_kernels import checks
from mind_kernels.autograd import Operator
from mind_kernels.head import Head, HeadGradients, head_of
from mind_kernels.linear_top_k import reference
from mind_kernels.linear_top_k.contract import TopK, TopKArguments
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
    bias = None if head.bias is None else head.bias.detach()
    head = Head(head.weight.detach(), bias, head.softcap, head.temperature)
    arguments = TopKArguments(flat_rows(hidden.detach(), 1), head, k, name)
    ids, log_prob, lse = reference.top_k(arguments.hidden, head, k) if name == "reference" else operator(arguments)
    shape = hidden.shape[:-1]
    return TopK(ids.view(*shape, k), log_prob.view(*shape, k), lse.view(shape))


def _run(a: TopKArguments, needs: list[bool]) -> tuple[TopK, HeadGradients]:
    """Of constants: none of the gradients is needed."""
    hidden, head = row_major(a.hidden), backends.head_on(a.backend, a.head)
    return backends.kernels("linear_top_k", a.backend).top_k(hidden, head, a.k), HeadGradients(hidden, head, needs)


def _fake(a: TopKArguments) -> TopK:
    rows, dtype = a.hidden.shape[0], accumulation_dtype(a.hidden.dtype)
    log_prob = a.hidden.new_empty(rows, a.k, dtype=dtype)
    return TopK(torch.empty_like(log_prob, dtype=torch.int64), log_prob, a.hidden.new_empty(rows, dtype=dtype))


operator = Operator("linear_top_k", TopKArguments, TopK, run=_run, fake=_fake, differentiable=("log_prob", "lse"))
