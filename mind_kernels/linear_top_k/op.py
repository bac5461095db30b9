"""`linear_top_k`, the most likely tokens without logits: the public function and its operator."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mind_kernels import backend as backends
from mind_kernels import checks, dtensors, shards
from mind_kernels.autograd import Operator
from mind_kernels.head import Head, HeadGradients, head_of
from mind_kernels.linear_top_k import reference
from mind_kernels.linear_top_k.contract import TopK, TopKArguments
from mind_kernels.row_chunks import accumulation_dtype, flat_rows, row_major
from mind_kernels.shards import Shard, operation_of

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@dtensors.errors_reach_all
def linear_top_k(
    hidden: Tensor,
    weight: Tensor | Head,
    k: int,
    *,
    bias: Tensor | None = None,
    softcap: float | None = None,
    temperature: float = 1.0,
    process_group: ProcessGroup | None = None,
    backend: str = "auto",
) -> TopK:
    """The k most likely tokens of softmax(z), z = softcap(hidden weight^T + bias) / temperature, of each row.

    The result can be stored as a teacher's lists, which `linear_divergence` accepts as teacher_ids and
    teacher_log_prob. The N x V logits are never allocated. There is no gradient; use `linear_log_prob` for
    log-probabilities with one.

    Args:
        hidden: (..., D) float64, float32, bfloat16 or float16: hidden states.
        weight: (V, D), dtype and device of hidden: the weight of the LM head. Or a Head, which also holds bias, softcap
            and temperature.
        k: the number of tokens, from 1 to V.
        bias: (V,), dtype and device of hidden: added to the projected logits; -inf excludes a token.
        softcap: c > 0: bounds x = hidden weight^T + bias to c tanh(x / c), before the temperature. None: no bound.
        temperature: T > 0: the logits are divided by it.
        process_group: the processes that share the head (tensor parallelism): each holds a block of its rows, in rank
            order, and passes these rows as weight (V_r, D) and bias (V_r,). V_r may be 0; V above is the sum of all
            V_r. All other arguments must be the same in all processes; the result is then the same in all. None: the
            head is whole; or weight and hidden are DTensors, the weight Shard(0) over one mesh dimension: the result
            then consists of plain tensors, the same in all processes of that dimension.
        backend: "auto", or a name that `mind_kernels.backends()` lists.

    Returns:
        TopK. If tokens have equal logits at the end of the list, any of them may be in it.

    Raises:
        ValueError, TypeError: an argument of the wrong shape, device, dtype or range; the message names it.
        BackendUnavailableError: the requested backend cannot run here; the message says why.
    """
    head = head_of(weight, bias, softcap, temperature)
    with torch.no_grad():  # so that it makes no difference which tensors require a gradient, in which process
        hidden, head, group = dtensors.local(hidden, head, process_group)
    hidden, head = checks.head_arguments(hidden, head, "(..., D)", or_empty=group is not None)
    checks.integer("k", k)
    if group is None:  # else `_shard` knows the vocabulary
        _check_count(k, head.vocabulary)
    name = backends.resolve(backend, hidden, operation_of(_OPERATION, group))
    bias = None if head.bias is None else head.bias.detach()
    head = Head(head.weight.detach(), bias, head.softcap, head.temperature)
    arguments = TopKArguments(flat_rows(hidden.detach(), 1), head, k, name, group)
    ids, log_prob, lse = _define(arguments) if name == "reference" else operator(arguments)
    shape = hidden.shape[:-1]
    return TopK(ids.view(*shape, k), log_prob.view(*shape, k), lse.view(shape))


_OPERATION = "linear_top_k"  # in backend.BACKENDS


def _check_count(k: int, vocabulary: int) -> None:
    if not 1 <= k <= vocabulary:
        raise ValueError(f"k is {k}: expected 1 to {vocabulary}, the vocabulary")


def _shard(a: TopKArguments) -> Shard | None:
    """This process's shard, None if the head is whole; checks that all processes got the same arguments."""
    if a.group is None:
        return None
    shard = shards.agree(
        a.group,
        "linear_top_k",
        a.head.vocabulary,
        a.hidden,
        lambda: None,
        **shards.common_facts(a.hidden, a.head, a.group, [False]),
        k=a.k,
        backend=a.backend,
    )
    _check_count(a.k, shard.vocabulary)
    return shard


def _define(a: TopKArguments) -> TopK:
    shard, hidden, head = _shard(a), a.hidden, a.head
    if shard is not None:
        assert a.group is not None
        hidden, head = shards.with_whole_head(shard, a.group, hidden, head)
    return reference.top_k(hidden, head, a.k)


def _run(a: TopKArguments, needs: list[bool]) -> tuple[TopK, HeadGradients]:
    """The top k, and no gradients."""
    shard, hidden, head = _shard(a), row_major(a.hidden), backends.head_on(a.backend, a.head)
    kernels = backends.kernels(operation_of(_OPERATION, shard), a.backend)
    found = kernels.top_k(hidden, head, a.k) if shard is None else kernels.shard_top_k(hidden, head, a.k, shard)
    return found, HeadGradients(hidden, head, needs)


def _fake(a: TopKArguments) -> TopK:
    rows, dtype = a.hidden.shape[0], accumulation_dtype(a.hidden.dtype)
    log_prob = a.hidden.new_empty(rows, a.k, dtype=dtype)
    return TopK(torch.empty_like(log_prob, dtype=torch.int64), log_prob, a.hidden.new_empty(rows, dtype=dtype))


operator = Operator("linear_top_k", TopKArguments, TopK, run=_run, fake=_fake, differentiable=("log_prob", "lse"))
