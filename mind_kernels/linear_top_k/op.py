"""linear_top_k: the public function and its operator."""

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
from mind_kernels.shards import Shard

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

    For a teacher's lists on disk, which `linear_divergence` takes as teacher_ids and teacher_log_prob, without the
    N x V logits. Without a gradient: `linear_log_prob` has one.

    Args:
        hidden: (..., D) float64, float32, bfloat16 or float16: hidden states.
        weight: (V, D) LM head, dtype and device of hidden; or a Head, which has bias, softcap and temperature too.
        k: from 1 to V, how many tokens.
        bias: (V,), dtype and device of hidden: added to the projected logits; -inf rules an entry out.
        softcap: c > 0: x = hidden weight^T + bias becomes c tanh(x / c), before the temperature. None: x stays.
        temperature: T > 0: what the logits are divided by.
        process_group: the processes among which the head's rows are split, in rank order (tensor parallelism): weight
            is (V_r, D) and bias (V_r,) then, this process's rows, of which there may be none, and V here the sum of the
            V_r. All else is the same in all processes, and so is the result. None: the head is whole,
            or weight and hidden are DTensors, the weight Shard(0) over one mesh dimension: the result is of plain
            tensors then, the same in all processes of that dimension.
        backend: "auto" or a name that `mind_kernels.backends` lists.

    Returns:
        TopK. Of tokens with equal logits at the end of the list, any may be in it.

    Raises:
        ValueError, TypeError: an argument of the wrong shape, device, dtype or range; it is named.
        BackendUnavailableError: the backend that was named cannot run here; the message says why.
    """
    head = head_of(weight, bias, softcap, temperature)
    with torch.no_grad():  # whatever requires a gradient, in whichever process
        hidden, head, group = dtensors.local(hidden, head, process_group)
    hidden, head = checks.head_arguments(hidden, head, "(..., D)", or_empty=group is not None)
    checks.integer("k", k)
    if group is None:  # else `_shard` knows the vocabulary
        _check_count(k, head.vocabulary)
    name = backends.resolve(backend, hidden, _OPERATION[group is not None])
    bias = None if head.bias is None else head.bias.detach()
    head = Head(head.weight.detach(), bias, head.softcap, head.temperature)
    arguments = TopKArguments(flat_rows(hidden.detach(), 1), head, k, name, group)
    ids, log_prob, lse = _define(arguments) if name == "reference" else operator(arguments)
    shape = hidden.shape[:-1]
    return TopK(ids.view(*shape, k), log_prob.view(*shape, k), lse.view(shape))


_OPERATION = "linear_top_k", "linear_top_k, shards"  # in backend.BACKENDS


def _check_count(k: int, vocabulary: int) -> None:
    if not 1 <= k <= vocabulary:
        raise ValueError(f"k is {k}: expected 1 to {vocabulary}, the vocabulary")


def _shard(a: TopKArguments) -> Shard | None:
    """The shard of this process, if the head is split; checks that all processes were called alike."""
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
    """Of constants: none of the gradients is needed."""
    shard, hidden, head = _shard(a), row_major(a.hidden), backends.head_on(a.backend, a.head)
    kernels = backends.kernels(_OPERATION[shard is not None], a.backend)
    found = kernels.top_k(hidden, head, a.k) if shard is None else kernels.shard_top_k(hidden, head, a.k, shard)
    return found, HeadGradients(hidden, head, needs)


def _fake(a: TopKArguments) -> TopK:
    rows, dtype = a.hidden.shape[0], accumulation_dtype(a.hidden.dtype)
    log_prob = a.hidden.new_empty(rows, a.k, dtype=dtype)
    return TopK(torch.empty_like(log_prob, dtype=torch.int64), log_prob, a.hidden.new_empty(rows, dtype=dtype))


operator = Operator("linear_top_k", TopKArguments, TopK, run=_run, fake=_fake, differentiable=("log_prob", "lse"))
