"""linear_divergence: public function, custom operator, fake kernel and autograd."""

from __future__ import annotations

from dataclasses import astuple
from typing import Any

import torch
from torch import Tensor

from mind_kernels import backend as backends
from mind_kernels import checks
from mind_kernels.autograd import (
    empty_gradients,
    forbid_higher_order,
    needs_gradient,
    save_gradients,
    scaled_gradients,
    under_autocast,
)
from mind_kernels.head import Head
from mind_kernels.linear_divergence import reference, rows
from mind_kernels.linear_divergence.contract import DivergenceStats
from mind_kernels.linear_divergence.kinds import Divergence, divergence_of
from mind_kernels.linear_divergence.rows import HeadTeacher, ListTeacher, Teacher
from mind_kernels.row_chunks import accumulation_dtype, row_major

BACKENDS = ("torch", "triton")  # backend_<name>.py each


def linear_divergence(
    hidden: Tensor,
    weight: Tensor,
    teacher_hidden: Tensor | None = None,
    teacher_weight: Tensor | None = None,
    *,
    teacher_ids: Tensor | None = None,
    teacher_log_prob: Tensor | None = None,
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
    reduction: str = "mean",
    return_stats: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, DivergenceStats]:
    """Divergence of the student's softmax q from the teacher's p, in nats, without either's N x V logits.

    q is the softmax of softcap(hidden weight^T + bias) / temperature, p the teacher's at the same temperature, both of
    logits in float32 whatever the dtype of hidden. The loss is not multiplied by temperature^2. Kinds, a row:
        "forward_kl": KL(p || q).
        "reverse_kl": KL(q || p).
        "jsd": beta KL(p || m) + (1 - beta) KL(q || m), m = beta p + (1 - beta) q: GKD (arXiv 2306.13649).
        "skew_forward_kl": KL(p || skew p + (1 - skew) q): DistiLLM (arXiv 2402.03898).
        "skew_reverse_kl": KL(q || (1 - skew) p + skew q): the same.
        "taid": KL(p_t || q), p_t the softmax of (1 - t) z_student + t z_teacher, a constant, at t = interpolation:
            TAID (arXiv 2501.16937).

    Args:
        hidden: (N, D) the student's, float64, float32, bfloat16 or float16. Takes a gradient.
        weight: (V, D) the student's LM head, dtype and device of hidden. Takes a gradient.
        teacher_hidden: (N, D') the teacher's, of a dtype of its own; a constant, as is all of the teacher.
        teacher_weight: (V, D') its LM head, dtype of teacher_hidden.
        teacher_ids: (N, T) int64 in [0, V), distinct in each row, in place of the two before: the divergence is that
            of T + 1 events, each listed token and all others together. It is a lower bound of the full divergence.
        teacher_log_prob: (N, T) float32 or float64, log-probabilities of those tokens at this temperature. All others
            together have the rest, at least the rounding of 1 in its dtype.
        beta: in (0, 1), kind "jsd" alone; None is 0.5.
        skew: in (0, 1), the skewed kinds alone; None is 0.1.
        interpolation: in [0, 1], kind "taid" alone, which requires it.
        row_weight: (N,) floating, any sign, a constant. A row of weight zero still yields its statistics.
        bias: (V,) added to the student's logits. Takes a gradient.
        teacher_bias: (V,) added to the teacher's.
        softcap, teacher_softcap: c > 0: logits x become c tanh(x / c), before the temperature.
        reduction: "mean": sum of weighted divergences / sum of weights (nan where there is none); "sum"; "none": (N,)
            weighted divergences.
        return_stats: also return DivergenceStats.
        backend: "auto" or a name that `mind_kernels.available_backends` lists.

    Returns:
        The loss in float32 (float64 for float64 input), or (loss, DivergenceStats).

    Raises:
        ValueError, TypeError: an argument of the wrong shape, device, dtype or range; it is named. On a GPU a wrong
            value of teacher_ids or teacher_log_prob is a device-side assertion: reading it would stall the stream.
        RuntimeError: a higher-order gradient through any backend but "reference".
    """
    hidden, weight, bias = under_autocast(hidden, weight, bias)
    checks.dimensions("hidden", hidden, "(N, D)")
    checks.head_arguments(hidden, weight, bias, softcap, temperature)
    checks.row_weight_argument(row_weight, hidden)
    checks.reduction(reduction)
    divergence = divergence_of(kind, beta, skew, interpolation)
    head = (teacher_hidden, teacher_weight, teacher_bias, teacher_softcap)
    teacher = _teacher_arguments(hidden, weight, head, (teacher_ids, teacher_log_prob), temperature)
    name = backends.resolve(backend, hidden, BACKENDS)
    shared = (
        hidden,
        weight,
        bias,
        *teacher,
        row_weight,
        softcap,
        teacher_softcap,
        float(temperature),
        list(astuple(divergence)),
        reduction,
    )
    if name == "reference":
        loss, *statistics = _reference(*shared)
    else:
        needs = [False] * 3 if reduction == "none" else needs_gradient(hidden, weight, bias)
        loss, *statistics = _forward(*shared, needs, name)[:3]
    return (loss, DivergenceStats(*statistics)) if return_stats else loss


def _teacher_arguments(
    hidden: Tensor,
    weight: Tensor,
    head: tuple[Tensor | None, Tensor | None, Tensor | None, float | None],
    listed: tuple[Tensor | None, Tensor | None],
    temperature: float,
) -> tuple[Tensor | None, ...]:
    """Checks the teacher's hidden, weight, bias and softcap, or its ids and log_prob; all five tensors, detached."""
    with_head, with_list = head[0] is not None, listed[0] is not None
    if with_head == with_list or with_head != (head[1] is not None) or with_list != (listed[1] is not None):
        raise ValueError(
            "teacher: expected either teacher_hidden and teacher_weight, or teacher_ids and teacher_log_prob"
        )
    if with_list:
        for name, value in (("teacher_bias", head[2]), ("teacher_softcap", head[3])):
            if value is not None:
                raise ValueError(f"{name}: expected None beside teacher_log_prob, which it cannot change")
        _list_arguments(hidden, weight, *listed)
        return None, None, None, *(tensor.detach() for tensor in listed)
    theirs = under_autocast(*head[:3])
    checks.dimensions("teacher_hidden", theirs[0], "(N, D)")
    checks.device("teacher_hidden", theirs[0], hidden)
    checks.head_arguments(*theirs, head[3], temperature, "teacher_")
    checks.shape("teacher_hidden", theirs[0], (hidden.shape[0], theirs[0].shape[1]), "(N, D')")
    checks.shape("teacher_weight", theirs[1], (weight.shape[0], theirs[1].shape[1]), "(V, D')")
    return *(None if tensor is None else tensor.detach() for tensor in theirs), None, None


def _list_arguments(hidden: Tensor, weight: Tensor, ids: Tensor, log_prob: Tensor) -> None:
    """Checks teacher_ids and teacher_log_prob (N, T)."""
    checks.dimensions("teacher_ids", ids, "(N, T)")
    checks.shape("teacher_ids", ids, (hidden.shape[0], ids.shape[1]), "(N, T)")
    checks.shape("teacher_log_prob", log_prob, tuple(ids.shape), "(N, T)")
    checks.integers("teacher_ids", ids)
    if log_prob.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"teacher_log_prob has dtype {log_prob.dtype}: expected torch.float32 or torch.float64")
    if not 1 <= ids.shape[1] <= weight.shape[0]:
        raise ValueError(
            f"teacher_ids has shape {tuple(ids.shape)}: expected T in [1, {weight.shape[0]}], the vocabulary"
        )
    for name, tensor in (("teacher_ids", ids), ("teacher_log_prob", log_prob)):
        checks.device(name, tensor, hidden)


def _teacher(
    vocabulary: int,
    hidden: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    ids: Tensor | None,
    log_prob: Tensor | None,
    softcap: float | None,
    temperature: float,
    divergence: Divergence,
) -> Teacher:
    """The teacher that these tensors make up, its values checked."""
    if hidden is not None:
        return HeadTeacher(hidden, Head(weight, bias, softcap, temperature))
    teacher = ListTeacher(ids, log_prob, vocabulary)
    teacher.check_values(divergence)
    return teacher


def _reference(
    hidden,
    weight,
    bias,
    teacher_hidden,
    teacher_weight,
    teacher_bias,
    teacher_ids,
    teacher_log_prob,
    row_weight,
    softcap,
    teacher_softcap,
    temperature,
    divergence,
    reduction,
):
    """The outputs of `_forward` but the gradients, differentiable."""
    spec = Divergence(*divergence)
    teacher = _teacher(
        weight.shape[0],
        teacher_hidden,
        teacher_weight,
        teacher_bias,
        teacher_ids,
        teacher_log_prob,
        teacher_softcap,
        temperature,
        spec,
    )
    loss, values = reference.forward(
        hidden, Head(weight, bias, softcap, temperature), teacher, row_weight, spec, reduction
    )
    return loss, *values


@torch.library.custom_op("mind_kernels::linear_divergence", mutates_args=())
def _forward(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    teacher_hidden: Tensor | None,
    teacher_weight: Tensor | None,
    teacher_bias: Tensor | None,
    teacher_ids: Tensor | None,
    teacher_log_prob: Tensor | None,
    row_weight: Tensor | None,
    softcap: float | None,
    teacher_softcap: float | None,
    temperature: float,
    divergence: list[float],
    reduction: str,
    needs: list[bool],
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(loss, divergence, entropy, d_hidden, d_weight, d_bias)"""
    spec = Divergence(*divergence)
    hidden, weight = row_major(hidden), row_major(weight)
    teacher = _teacher(
        weight.shape[0],
        teacher_hidden,
        teacher_weight,
        teacher_bias,
        teacher_ids,
        teacher_log_prob,
        teacher_softcap,
        temperature,
        spec,
    )
    with torch.autocast(hidden.device.type, enabled=False), torch.cuda.device_of(hidden):  # Triton launches there
        loss, values, gradients = rows.forward(
            backends.kernels("linear_divergence", backend),
            hidden,
            Head(weight, bias, softcap, temperature),
            teacher,
            row_weight,
            spec,
            needs,
            reduction,
        )
    return loss, *values, *gradients.results()


@_forward.register_fake
def _(
    hidden,
    weight,
    bias,
    teacher_hidden,
    teacher_weight,
    teacher_bias,
    teacher_ids,
    teacher_log_prob,
    row_weight,
    softcap,
    teacher_softcap,
    temperature,
    divergence,
    reduction,
    needs,
    backend,
):
    count, dtype = hidden.shape[0], accumulation_dtype(hidden.dtype)
    return (
        hidden.new_empty((count,) if reduction == "none" else (), dtype=dtype),
        *(hidden.new_empty(count, dtype=dtype) for _ in range(2)),
        *empty_gradients((hidden, weight, bias), needs),
    )


def _setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
    ctx.reduction, ctx.needs = inputs[13], inputs[14]
    if ctx.reduction != "none":
        save_gradients(ctx, output[0], output[1:3], output[3:])
        return
    # The weights of the rows are known only in the backward pass: keep the inputs and recompute there.
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:9])
    ctx.options = inputs[9:]


def _backward(ctx: Any, upstream: Tensor | None, *_: Any) -> tuple:
    if ctx.reduction != "none":
        return (*scaled_gradients(ctx, upstream), *[None] * 13)
    forbid_higher_order()
    if upstream is None:
        return (None,) * 16
    needs = list(ctx.needs_input_grad[:3])
    *inputs, row_weight = ctx.saved_tensors
    scale = upstream.contiguous() if row_weight is None else upstream * row_weight.to(upstream.dtype)
    *options, _, _, backend = ctx.options
    gradients = _forward(*inputs, scale, *options, "sum", needs, backend)[3:]
    return (*(g if needed else None for g, needed in zip(gradients, needs, strict=True)), *[None] * 13)


_forward.register_autograd(_backward, setup_context=_setup_context)
