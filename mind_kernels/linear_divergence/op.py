"""linear_divergence: the public function and its operator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, overload

import torch
from torch import Tensor

from mind_kernels import backend as backends
from mind_kernels import checks, dtensors, shards
from mind_kernels.autograd import Operator
from mind_kernels.head import Head, HeadGradients, head_of
from mind_kernels.linear_divergence import reference, rows
from mind_kernels.linear_divergence.contract import (
    DivergenceArguments,
    DivergenceOutputs,
    DivergenceStats,
    RowValues,
)
from mind_kernels.linear_divergence.kinds import divergence_of
from mind_kernels.linear_divergence.teachers import TAILS, HeadTeacher, ListTeacher
from mind_kernels.row_chunks import accumulation_dtype, flat_rows, row_major, upstream_weights
from mind_kernels.shards import Shard

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@overload
def linear_divergence(
    hidden: Tensor,
    weight: Tensor | Head,
    teacher_hidden: Tensor | None = None,
    teacher_weight: Tensor | Head | None = None,
    *,
    teacher_ids: Tensor | None = None,
    teacher_log_prob: Tensor | None = None,
    teacher_mask: Tensor | None = None,
    tail: str = "bucket",
    kind: str = "forward_kl",
    beta: float | None = None,
    skew: float | None = None,
    interpolation: float | None = None,
    row_weight: Tensor | None = None,
    bias: Tensor | None = None,
    teacher_bias: Tensor | None = None,
    softcap: float | None = None,
    teacher_softcap: float | None = None,
    temperature: float = 1.0,
    teacher_temperature: float | None = None,
    reduction: str = "mean",
    return_stats: Literal[False] = False,
    process_group: ProcessGroup | None = None,
    backend: str = "auto",
) -> Tensor: ...
@overload
def linear_divergence(
    hidden: Tensor,
    weight: Tensor | Head,
    teacher_hidden: Tensor | None = None,
    teacher_weight: Tensor | Head | None = None,
    *,
    teacher_ids: Tensor | None = None,
    teacher_log_prob: Tensor | None = None,
    teacher_mask: Tensor | None = None,
    tail: str = "bucket",
    kind: str = "forward_kl",
    beta: float | None = None,
    skew: float | None = None,
    interpolation: float | None = None,
    row_weight: Tensor | None = None,
    bias: Tensor | None = None,
    teacher_bias: Tensor | None = None,
    softcap: float | None = None,
    teacher_softcap: float | None = None,
    temperature: float = 1.0,
    teacher_temperature: float | None = None,
    reduction: str = "mean",
    return_stats: Literal[True],
    process_group: ProcessGroup | None = None,
    backend: str = "auto",
) -> tuple[Tensor, DivergenceStats]: ...
@dtensors.errors_reach_all
def linear_divergence(
    hidden: Tensor,
    weight: Tensor | Head,
    teacher_hidden: Tensor | None = None,
    teacher_weight: Tensor | Head | None = None,
    *,
    teacher_ids: Tensor | None = None,
    teacher_log_prob: Tensor | None = None,
    teacher_mask: Tensor | None = None,
    tail: str = "bucket",
    kind: str = "forward_kl",
    beta: float | None = None,
    skew: float | None = None,
    interpolation: float | None = None,
    row_weight: Tensor | None = None,
    bias: Tensor | None = None,
    teacher_bias: Tensor | None = None,
    softcap: float | None = None,
    teacher_softcap: float | None = None,
    temperature: float = 1.0,
    teacher_temperature: float | None = None,
    reduction: str = "mean",
    return_stats: bool = False,
    process_group: ProcessGroup | None = None,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, DivergenceStats]:
    """Divergence of the student's softmax q from the teacher's p, in nats, without either's N x V logits.

    q is the softmax of z = softcap(hidden weight^T + bias) / temperature, p the same of the teacher, both of logits in
    float32 whatever the dtype of hidden. The loss is not multiplied by temperature^2. Kinds, per row:
        "forward_kl": KL(p || q).
        "reverse_kl": KL(q || p).
        "jsd": beta KL(p || m) + (1 - beta) KL(q || m), m = beta p + (1 - beta) q: GKD (arXiv 2306.13649).
        "skew_forward_kl": KL(p || skew p + (1 - skew) q): DistiLLM (arXiv 2402.03898).
        "skew_reverse_kl": KL(q || (1 - skew) p + skew q): the same.
        "taid": KL(p_t || q), p_t the softmax of (1 - t) z_student + t z_teacher, a constant, at t = interpolation, each
            z at its own temperature: TAID (arXiv 2501.16937).

    Args:
        hidden: (N, D) float64, float32, bfloat16 or float16: the student's hidden states. Takes a gradient. Or
            (..., D): then all that begins with N below has the leading shape (...) of its rows.
        weight: (V, D) the student's LM head, dtype and device of hidden; or a Head, which has bias, softcap and
            temperature too. Takes a gradient.
        teacher_hidden: (N, D') the teacher's hidden states, on the device of hidden, of a floating dtype of its own; a
            constant, as is all of the teacher.
        teacher_weight: (V, D') the teacher's LM head, dtype of teacher_hidden; or a Head, which has teacher_bias,
            teacher_softcap and teacher_temperature too.
        teacher_ids: (N, T) int64 or int32 in [0, V), distinct in each row save for padding, in place of the two before:
            the divergence is that of T + 1 events, each listed token and all others together. It is a lower bound of
            the full divergence.
        teacher_log_prob: (N, T) float32 or float64, log-probabilities of those tokens at this temperature, in nats. All
            others together have the rest, at least the rounding of 1 in its dtype. An entry of -inf is padding, whose
            id may be anything: it says nothing of a token, also not that its probability is 0, for which a low number
            such as -50 stands. For a row of padding alone the divergence is 0, without a gradient.
        teacher_mask: (N, T) bool, a list alone: False where an entry is padding too, whatever its log-probability.
        tail: "bucket": all others together are an event, as above. "renormalize", a list alone: they are none, and both
            sides' probabilities of the T listed tokens are divided by their sum. Then teacher_log_prob may be off by a
            constant in each row, as the logits of a list are.
        kind: the divergence, one of those above.
        beta: in (0, 1), kind "jsd" alone; None is 0.5.
        skew: in (0, 1), the skewed kinds alone; None is 0.1.
        interpolation: in [0, 1], kind "taid" alone, which requires it.
        row_weight: (N,) floating, any sign, a constant: weight of each row. None: 1 each. A row of weight zero still
            yields its statistics.
        bias: (V,), dtype and device of hidden: added to the student's projected logits; -inf rules an entry of the
            vocabulary out. Takes a gradient.
        teacher_bias: (V,), dtype of teacher_hidden: added to the teacher's; may be -inf too. Where one side alone is
            ruled out, "forward_kl" or "reverse_kl" is infinite.
        softcap: c > 0: the student's x = hidden weight^T + bias becomes c tanh(x / c), before the temperature. None: x
            stays.
        teacher_softcap: the same of the teacher.
        temperature: T > 0: what the student's logits are divided by.
        teacher_temperature: the same of the teacher. None: the student's, or that of a Head as teacher_weight.
        reduction: "mean": sum of weighted divergences / sum of weights (nan where there is none); "sum"; "none": (N,)
            weighted divergences.
        return_stats: also return DivergenceStats.
        process_group: the processes among which the head's rows are split, in rank order (tensor parallelism): weight
            is (V_r, D) and bias (V_r,) then, this process's rows, of which there may be none, and V in all that is said
            here is the sum of the V_r. teacher_weight (V_r, D') and teacher_bias (V_r,) are the same entries of the
            vocabulary; teacher_ids are of all V. All else is the same in all processes, and so are loss and statistics;
            the gradients of weight and bias are those of this process's rows, that of hidden is the whole one. None:
            the heads are whole, or hidden and weight of both sides are DTensors, both weights Shard(0) over the same
            mesh dimension: the loss is a plain tensor then, the same in all processes of that dimension.
        backend: "auto" or a name that `mind_kernels.backends` lists.

    Returns:
        The loss in nats, () or (N,) for reduction "none", in float32 (float64 for float64 input), or (loss,
        DivergenceStats).

    Raises:
        ValueError, TypeError: an argument of the wrong shape, device, dtype or range, or a constant that requires a
            gradient; it is named. On a GPU a wrong teacher_ids or teacher_log_prob is a device-side assertion, since
            reading it would stall the stream.
        BackendUnavailableError: the backend that was named cannot run here; the message says why.
        RuntimeError: a higher-order gradient, a forward-mode derivative or a transform of torch.func (grad, vmap, ...)
            through any backend but "reference".

    Source:
        mind_kernels/linear_divergence/README.md derives the gradient that all kinds share.
    """
    head = head_of(weight, bias, softcap, temperature)
    hidden, head, group = dtensors.local(hidden, head, process_group)
    row_weight = dtensors.whole(row_weight)
    hidden, head = checks.head_arguments(hidden, head, "(..., D)", or_empty=group is not None)
    checks.row_weight_argument(row_weight, hidden)
    checks.reduction(reduction)
    if tail not in TAILS:
        raise ValueError(f"tail is {tail!r}: expected one of {', '.join(map(repr, TAILS))}")
    divergence = divergence_of(kind, beta, skew, interpolation)
    if teacher_hidden is not None and teacher_weight is not None and teacher_ids is None and teacher_log_prob is None:
        if teacher_mask is not None:
            raise ValueError("teacher_mask: expected None beside teacher_hidden, which leaves out no token")
        if tail != "bucket":
            raise ValueError(f"tail is {tail!r}: expected 'bucket' beside teacher_hidden, which leaves out no token")
        teacher_head = _teacher_head(teacher_weight, teacher_bias, teacher_softcap, teacher_temperature, head)
        of_weight = None if dtensors.is_dtensor(teacher_head.weight) else process_group
        teacher_hidden, teacher_head, teacher_group = dtensors.local(teacher_hidden, teacher_head, of_weight)
        if (teacher_group and teacher_group.name) != (group and group.name):
            raise ValueError("teacher_weight: expected it to be split over the same processes as weight, or neither")
        teacher = _head_teacher(hidden, head, teacher_hidden, teacher_head, is_shard=group is not None)
    elif teacher_ids is not None and teacher_log_prob is not None and teacher_hidden is None and teacher_weight is None:
        of_logits = {"bias": teacher_bias, "softcap": teacher_softcap, "temperature": teacher_temperature}
        for name, value in of_logits.items():
            if value is not None:
                raise ValueError(f"teacher_{name}: expected None beside teacher_log_prob, which it cannot change")
        ids, log_prob, mask = map(dtensors.whole, (teacher_ids, teacher_log_prob, teacher_mask))
        teacher = _list_teacher(hidden, head, ids, log_prob, mask, tail, is_shard=group is not None)
    else:
        values = (teacher_hidden, teacher_weight, teacher_ids, teacher_log_prob, teacher_mask)
        names = ("hidden", "weight", "ids", "log_prob", "mask")
        given = ", ".join(f"teacher_{name}" for name, value in zip(names, values, strict=True) if value is not None)
        raise ValueError(
            "teacher: expected either teacher_hidden and teacher_weight, or teacher_ids and teacher_log_prob, "
            f"got {given or 'none of them'}"
        )
    form = "" if teacher_ids is None else "list"
    name = backends.resolve(backend, hidden, _OPERATION[group is not None], head.vocabulary, form)
    arguments = DivergenceArguments(
        flat_rows(hidden, 1), head, teacher, flat_rows(row_weight), divergence, reduction, name, group
    )
    outputs = _define(arguments) if name == "reference" else operator(arguments)
    shape = hidden.shape[:-1]
    loss = outputs.loss.view(shape) if reduction == "none" else outputs.loss
    return (loss, DivergenceStats(*(value.view(shape) for value in outputs.values))) if return_stats else loss


_OPERATION = "linear_divergence", "linear_divergence, shards"  # in backend.BACKENDS


def _teacher_head(
    weight: Tensor | Head, bias: Tensor | None, softcap: float | None, temperature: float | None, student: Head
) -> Head:
    """The teacher's head; its temperature is the student's if nothing gives another."""
    if not isinstance(weight, Head):
        return Head(weight, bias, softcap, student.temperature if temperature is None else temperature)
    if temperature is not None:
        raise ValueError("teacher_temperature: expected none beside a Head as teacher_weight, which has its own")
    return head_of(weight, bias, softcap, 1.0, "teacher_")


def _head_teacher(
    hidden: Tensor, head: Head, teacher_hidden: Tensor, teacher_head: Head, *, is_shard: bool
) -> HeadTeacher:
    """The teacher that these make up, checked against the student."""
    teacher_hidden, teacher_head = checks.head_arguments(
        teacher_hidden, teacher_head, "(..., D')", "teacher_", or_empty=is_shard
    )
    checks.constants(teacher_hidden=teacher_hidden, teacher_weight=teacher_head.weight, teacher_bias=teacher_head.bias)
    checks.device("teacher_hidden", teacher_hidden, hidden)
    size = teacher_hidden.shape[-1]
    checks.shape("teacher_hidden", teacher_hidden, (*hidden.shape[:-1], size), checks.row_meaning(hidden, "D'"))
    if not is_shard:  # else `_shard` checks it, in all processes
        checks.shape("teacher_weight", teacher_head.weight, (head.vocabulary, size), "(V, D')")
    return HeadTeacher(flat_rows(teacher_hidden, 1), teacher_head)


def _list_teacher(
    hidden: Tensor, head: Head, ids: Tensor, log_prob: Tensor, mask: Tensor | None, tail: str, *, is_shard: bool
) -> ListTeacher:
    """The teacher of which these (N, T) are known, checked against the student."""
    checks.tensors(teacher_ids=ids, teacher_log_prob=log_prob, teacher_mask=mask)
    checks.constants(teacher_log_prob=log_prob)
    checks.dimensions("teacher_ids", ids, "(..., T)")
    meaning = checks.row_meaning(hidden, "T")
    checks.shape("teacher_ids", ids, (*hidden.shape[:-1], ids.shape[-1]), meaning)
    checks.shape("teacher_log_prob", log_prob, tuple(ids.shape), meaning)
    checks.integers("teacher_ids", ids)
    if log_prob.dtype not in (torch.float32, torch.float64):
        expected = "torch.float32 or torch.float64; pass teacher_log_prob.float()"
        raise TypeError(f"teacher_log_prob has dtype {log_prob.dtype}: expected {expected}")
    if not is_shard:  # else `_shard` knows the vocabulary
        _list_length(ids, head.vocabulary)
    for name, tensor in (("teacher_ids", ids), ("teacher_log_prob", log_prob), ("teacher_mask", mask)):
        if tensor is not None:
            checks.device(name, tensor, hidden)
    if mask is not None:
        checks.shape("teacher_mask", mask, tuple(ids.shape), meaning)
        if mask.dtype != torch.bool:
            raise TypeError(f"teacher_mask has dtype {mask.dtype}: expected torch.bool, True where an entry is real")
        log_prob = log_prob.masked_fill(~mask, -torch.inf)
    return ListTeacher(flat_rows(ids, 1), flat_rows(log_prob, 1), tail)


def _list_length(ids: Tensor, vocabulary: int) -> None:
    if not 1 <= ids.shape[-1] <= vocabulary:
        raise ValueError(f"teacher_ids has shape {tuple(ids.shape)}: expected T in [1, {vocabulary}], the vocabulary")


def _shard(a: DivergenceArguments, needs: Sequence[bool]) -> Shard | None:
    """The shard of this process, if the head is split; checks that all processes were called alike."""
    if a.group is None:
        return None
    teacher = a.teacher
    if isinstance(teacher, HeadTeacher):
        bias, softcap, temperature = teacher.head.bias is None, teacher.head.softcap, teacher.head.temperature
        known: dict[str, object] = {
            "what is known of the teacher": "a head",
            "teacher_hidden's size or dtype": (teacher.hidden.shape[1], teacher.hidden.dtype),
            "teacher_bias, teacher_softcap or teacher_temperature": (bias, softcap, temperature),
            "whether teacher_weight has as many rows as weight": teacher.head.vocabulary == a.head.vocabulary,
        }
    else:
        known = {"what is known of the teacher": "a list", "tail": teacher.tail, **teacher.facts()}
    shard = shards.agree(
        a.group,
        "linear_divergence",
        a.head.vocabulary,
        a.hidden,
        teacher.check_log_prob if isinstance(teacher, ListTeacher) else lambda: None,
        **shards.common_facts(a.hidden, a.head, a.group, needs),
        reduction=a.reduction,
        backend=a.backend,
        **known,
        **{
            "kind, beta, skew or interpolation": a.divergence,
            "row_weight (which of it is 0)": None if a.row_weight is None else a.row_weight != 0,
        },
    )
    if isinstance(teacher, HeadTeacher):
        size = teacher.hidden.shape[1]
        checks.shape("teacher_weight", teacher.head.weight, (a.head.vocabulary, size), "(V_r, D')")
    else:
        _list_length(teacher.ids, shard.vocabulary)
    return shard


def _define(a: DivergenceArguments) -> DivergenceOutputs:
    """By the definition, differentiable."""
    shard, teacher = _shard(a, [False, False, False]), a.teacher
    if shard is not None:
        assert a.group is not None
        if isinstance(teacher, HeadTeacher):
            teacher = HeadTeacher(*shards.with_whole_head(shard, a.group, teacher.hidden, teacher.head))
        hidden, head = shards.with_whole_head(shard, a.group, a.hidden, a.head)
        a = a._replace(hidden=hidden, head=head, teacher=teacher, group=None)
    if isinstance(teacher, ListTeacher):
        teacher.check_values(a.head.vocabulary)
    return reference.forward(a.hidden, a.head, teacher, a.row_weight, a.divergence, a.reduction)


def _run(a: DivergenceArguments, needs: list[bool]) -> tuple[DivergenceOutputs, HeadGradients]:
    shard, teacher = _shard(a, needs), a.teacher
    if isinstance(teacher, HeadTeacher):  # by the student's product: equal distributions are exactly 0 apart
        teacher = HeadTeacher(row_major(teacher.hidden), backends.head_on(a.backend, teacher.head))
    else:
        teacher.check_values(a.head.vocabulary if shard is None else shard.vocabulary)
    loss, values, gradients = rows.forward(
        backends.kernels(_OPERATION[shard is not None], a.backend),
        row_major(a.hidden),
        backends.head_on(a.backend, a.head),
        teacher,
        a.row_weight,
        a.divergence,
        needs,
        a.reduction,
        shard,
    )
    shards.sum_hidden(shard, a.group, gradients)
    return DivergenceOutputs(loss, values), gradients


def _fake(a: DivergenceArguments) -> DivergenceOutputs:
    rows, dtype = a.hidden.shape[0], accumulation_dtype(a.hidden.dtype)
    loss = a.hidden.new_empty((rows,) if a.reduction == "none" else (), dtype=dtype)
    return DivergenceOutputs(loss, RowValues(*(a.hidden.new_empty(rows, dtype=dtype) for _ in RowValues._fields)))


def _recompute(a: DivergenceArguments, upstream: DivergenceOutputs) -> DivergenceArguments:
    """The gradient that arrives at a row's loss is its weight in a sum."""
    return a._replace(row_weight=upstream_weights(upstream.loss, a.row_weight), reduction="sum")


operator = Operator(
    "linear_divergence",
    DivergenceArguments,
    DivergenceOutputs,
    run=_run,
    fake=_fake,
    per_row=lambda a: a.reduction == "none",
    recompute=_recompute,
)
