"""`linear_divergence`, distillation losses without logits: the public function and its operator."""

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
from mind_kernels.shards import Shard, operation_of

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
    """Divergence between a student's softmax q and a teacher's softmax p, in nats, without the N x V logits of either.

    q is the softmax of z = softcap(hidden weight^T + bias) / temperature, and p that of the teacher's z. Both are
    computed from float32 logits, whatever the dtype of hidden. The loss is not multiplied by temperature^2. Kinds, per
    row:
        "forward_kl": KL(p || q).
        "reverse_kl": KL(q || p).
        "jsd": beta KL(p || m) + (1 - beta) KL(q || m), m = beta p + (1 - beta) q: GKD (arXiv 2306.13649).
        "skew_forward_kl": KL(p || skew p + (1 - skew) q): DistiLLM (arXiv 2402.03898).
        "skew_reverse_kl": KL(q || (1 - skew) p + skew q): DistiLLM.
        "taid": KL(p_t || q), p_t the softmax of (1 - t) z_student + t z_teacher for t = interpolation, each z with its
        own temperature; no gradient flows through p_t: TAID (arXiv 2501.16937).

    Args:
        hidden: (N, D) float64, float32, bfloat16 or float16: the student's hidden states. Receives a gradient. Any
            leading shape (..., D) is accepted too; it then replaces the leading N of every shape below.
        weight: (V, D), dtype and device of hidden: the weight of the student's LM head. Or a Head, which also holds
            bias, softcap and temperature. Receives a gradient.
        teacher_hidden: (N, D') of any floating dtype, on the device of hidden: the teacher's hidden states. Nothing of
            the teacher receives a gradient.
        teacher_weight: (V, D'), dtype of teacher_hidden: the weight of the teacher's LM head. Or a Head, which also
            holds teacher_bias, teacher_softcap and teacher_temperature.
        teacher_ids: (N, T) int64 or int32 in [0, V): a list of tokens per row, instead of teacher_hidden and
            teacher_weight. Apart from padding, no id may occur twice in a row. The divergence is then over T + 1
            events, each listed token and all others together, and is a lower bound of the divergence over the whole
            vocabulary.
        teacher_log_prob: (N, T) float32 or float64, in nats: the teacher's log-probabilities of these tokens, at its
            temperature. All other tokens together have the rest of the probability, at least the rounding of 1 in this
            dtype. An entry of -inf is padding, and its id may be any number: it makes no statement about a token, not
            even that its probability is 0 (use a low number such as -50 for that). A row that consists of padding has
            divergence 0 and no gradient.
        teacher_mask: (N, T) bool, only with a list: False marks an entry as padding too, whatever its log-probability.
        tail: "bucket": all other tokens together are one event, as above. "renormalize", only with a list: they are no
            event; the probabilities of the T listed tokens are divided by their sum, on both sides. teacher_log_prob
            may then be shifted by a constant per row, so that logits can be passed.
        kind: the divergence: one of the names above.
        beta: in (0, 1), only for kind "jsd". None: 0.5.
        skew: in (0, 1), only for the skewed kinds. None: 0.1.
        interpolation: in [0, 1], required by kind "taid", refused by the others.
        row_weight: (N,) floating, any sign, without a gradient: the weight of each row. None: 1 for each row. Rows of
            weight zero still have statistics, and no gradient, whatever they hold.
        bias: (V,), dtype and device of hidden: added to the student's projected logits; -inf excludes a token. Receives
            a gradient.
        teacher_bias: (V,), dtype of teacher_hidden: added to the teacher's projected logits; -inf excludes a token here
            too. If a token is excluded on one side only, "forward_kl" or "reverse_kl" is infinite.
        softcap: c > 0: bounds the student's x = hidden weight^T + bias to c tanh(x / c), before the temperature. None:
            no bound.
        teacher_softcap: c > 0: bounds the teacher's x in the same way. None: no bound.
        temperature: T > 0: the student's logits are divided by it.
        teacher_temperature: T > 0: the teacher's logits are divided by it. None: the temperature of the Head in
            teacher_weight, else the student's.
        reduction: "mean": the sum of the weighted divergences over the sum of the weights (nan if there are no rows);
            "sum": the sum of the weighted divergences; "none": the weighted divergences (N,).
        return_stats: also return DivergenceStats.
        process_group: the processes that share the head (tensor parallelism): each holds a block of its rows, in rank
            order, and passes these rows as weight (V_r, D) and bias (V_r,). V_r may be 0; V above is the sum of all
            V_r. Each also passes the same vocabulary entries of the teacher, teacher_weight (V_r, D') and teacher_bias
            (V_r,); teacher_ids refer to all V entries. All other arguments must be the same in all processes. Loss and
            statistics are the same in all processes, and so is the gradient of hidden, which counts the whole head; the
            gradients of weight and bias are those of this process's rows. None: the heads are whole; or hidden and
            weight of both sides are DTensors, both weights Shard(0) over the same mesh dimension: the loss is then a
            plain tensor, the same in all processes of that dimension.
        backend: "auto", or a name that `mind_kernels.backends()` lists.

    Returns:
        The loss in nats, () or (N,) for reduction "none", in float32 (float64 for float64 input), or (loss,
        DivergenceStats).

    Raises:
        ValueError, TypeError: an argument of the wrong shape, device, dtype or range, or a constant that requires a
            gradient; the message names it. On a GPU, wrong values in teacher_ids or teacher_log_prob fail a device-side
            assertion instead, since reading them would stall the stream.
        BackendUnavailableError: the requested backend cannot run here; the message says why.
        RuntimeError: a higher-order gradient, a forward-mode derivative or a transform of torch.func (grad, vmap, ...)
            with any backend but "reference".

    Source:
        mind_kernels/linear_divergence/README.md derives the gradient of all kinds.
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
    checks.flag("return_stats", return_stats)
    name = backends.resolve(backend, hidden, operation_of(_OPERATION, group), head.vocabulary, form)
    arguments = DivergenceArguments(
        flat_rows(hidden, 1), head, teacher, flat_rows(row_weight), divergence, reduction, name, group
    )
    outputs = _define(arguments) if name == "reference" else operator(arguments)
    shape = hidden.shape[:-1]
    loss = outputs.loss.view(shape) if reduction == "none" else outputs.loss
    return (loss, DivergenceStats(*(value.view(shape) for value in outputs.values))) if return_stats else loss


_OPERATION = "linear_divergence"  # in backend.BACKENDS


def _teacher_head(
    weight: Tensor | Head, bias: Tensor | None, softcap: float | None, temperature: float | None, student: Head
) -> Head:
    """The teacher's head, with the student's temperature if the arguments give no other."""
    if not isinstance(weight, Head):
        return Head(weight, bias, softcap, student.temperature if temperature is None else temperature)
    if temperature is not None:
        raise ValueError("teacher_temperature: expected none beside a Head as teacher_weight, which has its own")
    return head_of(weight, bias, softcap, 1.0, "teacher_")


def _head_teacher(
    hidden: Tensor, head: Head, teacher_hidden: Tensor, teacher_head: Head, *, is_shard: bool
) -> HeadTeacher:
    """The teacher with these hidden states and this head, checked against the student."""
    teacher_hidden, teacher_head = checks.head_arguments(
        teacher_hidden, teacher_head, "(..., D')", "teacher_", or_empty=is_shard
    )
    checks.constants(teacher_hidden=teacher_hidden, teacher_weight=teacher_head.weight, teacher_bias=teacher_head.bias)
    checks.device("teacher_hidden", teacher_hidden, hidden)
    size = teacher_hidden.shape[-1]
    checks.shape("teacher_hidden", teacher_hidden, (*hidden.shape[:-1], size), checks.row_meaning(hidden, "D'"))
    if not is_shard:  # for a shard, `_shard` checks it in all processes
        checks.shape("teacher_weight", teacher_head.weight, (head.vocabulary, size), "(V, D')")
    return HeadTeacher(flat_rows(teacher_hidden, 1), teacher_head)


def _list_teacher(
    hidden: Tensor, head: Head, ids: Tensor, log_prob: Tensor, mask: Tensor | None, tail: str, *, is_shard: bool
) -> ListTeacher:
    """The teacher that is known by these lists (N, T), checked against the student."""
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
    if not is_shard:  # for a shard, `_shard` knows the vocabulary
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
    """This process's shard, None if the head is whole; checks that all processes got the same arguments."""
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
    """The definition, differentiable."""
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
    if isinstance(teacher, HeadTeacher):  # the student's product: equal distributions then differ by exactly 0
        teacher = HeadTeacher(row_major(teacher.hidden), backends.head_on(a.backend, teacher.head))
    else:
        teacher.check_values(a.head.vocabulary if shard is None else shard.vocabulary)
    loss, values, gradients = rows.forward(
        backends.kernels(operation_of(_OPERATION, shard), a.backend),
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
    """Arguments for the backward pass: the upstream gradient of each row's loss becomes its weight in a sum."""
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
