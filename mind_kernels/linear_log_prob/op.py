"""`linear_log_prob`, log-probabilities of tokens without logits: the public function and its operator.

It uses the row kernels of linear_cross_entropy with one upstream gradient per row and result: d(loss) / d(log_prob) is
a weight of -nll, d(loss) / d(entropy) the weight of the entropy in the same kernel, and d(loss) / d(lse) a weight of
nll plus a term at the target. Upstream gradients are known in the backward pass only. It therefore projects the logits
again: four matrix products in all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, overload

import torch
from torch import Tensor

from mind_kernels import backend as backends
from mind_kernels import checks, dtensors, shards
from mind_kernels.autograd import Operator
from mind_kernels.head import Head, HeadGradients, head_of
from mind_kernels.linear_cross_entropy.contract import ROW_KERNELS, RowSpec, RowStats, RowTerms, RowWeights
from mind_kernels.linear_cross_entropy.extra_stats import checked_names
from mind_kernels.linear_cross_entropy.rows import run_shard_terms, run_terms
from mind_kernels.linear_log_prob import reference
from mind_kernels.linear_log_prob.contract import LogProbArguments, LogProbOutputs, RowLogProbs, Upstream
from mind_kernels.linear_log_prob.listed import Ids, ListWeights, run_listed
from mind_kernels.linear_log_prob.listed_shards import run_listed_shards
from mind_kernels.row_chunks import flat_rows, row_major, without_spoilt
from mind_kernels.row_loop import visit_rows
from mind_kernels.shards import Shard, operation_of

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@overload
def linear_log_prob(
    hidden: Tensor,
    weight: Tensor | Head,
    target: Tensor,
    *,
    bias: Tensor | None = None,
    ignore_index: int = -100,
    softcap: float | None = None,
    temperature: float | Tensor = 1.0,
    gradient_threshold: float | None = None,
    return_stats: Literal[False] = False,
    extra_stats: Sequence[str] = (),
    process_group: ProcessGroup | None = None,
    backend: str = "auto",
) -> RowLogProbs: ...
@overload
def linear_log_prob(
    hidden: Tensor,
    weight: Tensor | Head,
    target: Tensor,
    *,
    bias: Tensor | None = None,
    ignore_index: int = -100,
    softcap: float | None = None,
    temperature: float | Tensor = 1.0,
    gradient_threshold: float | None = None,
    return_stats: Literal[True],
    extra_stats: Sequence[str] = (),
    process_group: ProcessGroup | None = None,
    backend: str = "auto",
) -> tuple[RowLogProbs, RowStats]: ...
@dtensors.errors_reach_all
def linear_log_prob(
    hidden: Tensor,
    weight: Tensor | Head,
    target: Tensor,
    *,
    bias: Tensor | None = None,
    ignore_index: int = -100,
    softcap: float | None = None,
    temperature: float | Tensor = 1.0,
    gradient_threshold: float | None = None,
    return_stats: bool = False,
    extra_stats: Sequence[str] = (),
    process_group: ProcessGroup | None = None,
    backend: str = "auto",
) -> RowLogProbs | tuple[RowLogProbs, RowStats]:
    """Log-probability of each target, entropy and log-sum-exp of z = softcap(hidden weight^T + bias) / temperature.

    For losses that weight rows in their own way (REDI, DPO, GRPO, unlikelihood): apply any differentiable function to
    the three results. The gradient flows back through each of their numbers, and the N x V logits are never allocated.

    Args:
        hidden: (N, D) float64, float32, bfloat16 or float16: hidden states of the labeled rows. Receives a gradient.
            Any leading shape (..., D) is accepted too; each (N,) below then has the shape (...).
        weight: (V, D), dtype and device of hidden: the weight of the LM head. Or a Head, which also holds bias, softcap
            and temperature. Receives a gradient.
        target: (N,) or (N, K) int64 or int32 in [0, V), or `ignore_index`: one token id per row, or K of them, such as
            a teacher's most likely tokens. An id may occur twice. May be on the CPU, which saves one synchronization of
            the GPU.
        bias: (V,), dtype and device of hidden: added to the projected logits; -inf excludes a token. Receives a
            gradient.
        ignore_index: the id that marks an ignored entry: its log_prob is zero and has no gradient. If all ids of a row
            are ignored, all results of the row are zero, without a gradient. May be in [0, V).
        softcap: c > 0: bounds x = hidden weight^T + bias to c tanh(x / c), before the temperature. None: no bound.
        temperature: T > 0: the logits are divided by it. Or (N,) floating, on the device of hidden, without a gradient:
            one temperature per row. The logits of a chunk are then float32, whatever the dtype of hidden.
        gradient_threshold: None: the exact gradient. A share t in (0, 1), such as 2**-16 (on a GPU 2**-14), or the
            result of `threshold_for_error` for the error in the gradient of log_prob that you accept: the sparse
            gradient. The results stay exact. In the gradient of the logits, entries with a probability of at most t (1
            - p), where p is the probability of the target, are replaced by a background distribution with the same sum.
            The gradient of the entropy has about ten times the error of that of log_prob: 2**-14 is below the error of
            bfloat16 arithmetic there, 2**-12 is not. Rows for which this would be slower or too inaccurate get the
            exact gradient. RowStats.dropped_mass and RowStats.kept_entries report what was replaced and kept. Needs one
            id per row and one temperature for all rows.
        return_stats: also return RowStats, without segments. With several ids per row, nll and correct refer to the
            likeliest of them.
        extra_stats: names of further statistics for RowStats to hold: "mean_logit", "log_sum_sq", "predicted".
            Computing them needs the logits of each chunk and some more passes over them.
        process_group: the processes that share the head (tensor parallelism): each holds a block of its rows, in rank
            order, and passes these rows as weight (V_r, D) and bias (V_r,). V_r may be 0; V above is the sum of all
            V_r. All other arguments must be the same in all processes. The results are the same in all processes, and
            so is the gradient of hidden, which counts the whole head; the gradients of weight and bias are those of
            this process's rows. None: the head is whole; or weight and hidden are DTensors, the weight Shard(0) over
            one mesh dimension: the results are then plain tensors, the same in all processes of that dimension.
        backend: "auto", or a name that `mind_kernels.backends()` lists.

    Returns:
        RowLogProbs, or (RowLogProbs, RowStats).

    Raises:
        ValueError, TypeError: an argument of the wrong shape, device, dtype or range; the message names it. On a GPU, a
            target out of range fails a device-side assertion instead, since reading its values would stall the stream.
        BackendUnavailableError: the requested backend cannot run here; the message says why.
        RuntimeError: a higher-order gradient, a forward-mode derivative or a transform of torch.func (grad, vmap, ...)
            with any backend but "reference".

    Source:
        mind_kernels/linear_log_prob/README.md derives the gradient and shows losses that use it.
    """
    target, temperature = map(dtensors.whole, (target, temperature))
    of_rows = temperature if isinstance(temperature, Tensor) and temperature.dim() > 0 else None
    if of_rows is not None and isinstance(weight, Head):
        raise ValueError(
            "temperature: expected none beside a Head as weight, which has its own; pass weight, bias and softcap apart"
        )
    of_all = 1.0 if of_rows is not None else temperature
    checks.number("temperature", of_all, " or a torch.Tensor, one per row")  # pyright: ignore[reportArgumentType]
    head = head_of(weight, bias, softcap, of_all)  # pyright: ignore[reportArgumentType] # a tensor () was refused
    hidden, head, group = dtensors.local(hidden, head, process_group)
    hidden, head = checks.head_arguments(hidden, head, "(..., D)", or_empty=group is not None)
    checks.target_argument(target, hidden, ignore_index, or_list=True)
    if of_rows is not None:
        checks.tensors(temperature=of_rows)
        checks.shape("temperature", of_rows, tuple(hidden.shape[:-1]), checks.row_meaning(hidden))
        checks.constant_weight("temperature", of_rows, hidden)
    checks.probability("gradient_threshold", gradient_threshold)
    ids = flat_rows(target, 1) if target.dim() == hidden.dim() else flat_rows(target)[:, None]
    if gradient_threshold is not None and (of_rows is not None or ids.shape[1] > 1):
        more = "a temperature" if of_rows is not None else f"{ids.shape[1]} ids"
        raise ValueError(
            f"gradient_threshold is {gradient_threshold}: expected None beside {more} per row, whose gradient is exact"
        )
    checks.flag("return_stats", return_stats)
    extra = checked_names(extra_stats, return_stats)
    form = "" if gradient_threshold is None else "sparse"
    name = backends.resolve(backend, hidden, operation_of(ROW_KERNELS, group), head.vocabulary, form)
    spec = RowSpec(head, gradient_threshold=gradient_threshold)
    arguments = LogProbArguments(
        flat_rows(hidden, 1), spec, ids, flat_rows(of_rows), Upstream(), ignore_index, extra, name, group
    )
    outputs = _define(arguments) if name == "reference" else operator(arguments)
    shape, values = hidden.shape[:-1], outputs.rows.values
    found = RowLogProbs(outputs.log_prob.view(target.shape), values.entropy.view(shape), values.lse.view(shape))
    if not return_stats:
        return found
    return found, RowStats.of(outputs.rows, None, shape, sparse=gradient_threshold is not None, extra=extra)


def _valid(a: LogProbArguments) -> Tensor:
    """(N,) bool, on the device of target: which rows have an id that is not ignored."""
    return (a.target != a.ignore_index).any(1)


def _check_temperature(a: LogProbArguments) -> None:
    if a.temperature is not None:
        good = (a.temperature > 0) & (a.temperature < math.inf)
        message = "temperature: expected positive finite numbers in rows that are not ignored"
        checks.values(good | ~_valid(a).to(good.device), message, a.temperature)


def _check_values(a: LogProbArguments, vocabulary: int) -> None:
    checks.row_values(a.target, a.ignore_index, vocabulary, None, 0)
    _check_temperature(a)


def _shard(a: LogProbArguments, needs: Sequence[bool]) -> Shard | None:
    """This process's shard, None if the head is whole; checks that all processes got the same arguments."""
    if a.group is None:
        return None
    upstream = a.upstream._asdict().items()
    return shards.agree(
        a.group,
        "linear_log_prob",
        a.spec.head.vocabulary,
        a.hidden,
        lambda: _check_temperature(a),
        **shards.common_facts(a.hidden, a.spec.head, a.group, needs),
        gradient_threshold=a.spec.gradient_threshold,
        ignore_index=a.ignore_index,
        extra_stats=a.extra_stats,
        backend=a.backend,
        target=a.target,
        **{"whether temperature is one per row": a.temperature is not None},
        **{f"the gradient of {name} (which rows have one)": None if g is None else g != 0 for name, g in upstream},
    )


def _define(a: LogProbArguments) -> LogProbOutputs:
    """The definition, differentiable."""
    shard = _shard(a, [False])
    if shard is not None and a.group is not None:
        hidden, head = shards.with_whole_head(shard, a.group, a.hidden, a.spec.head)
        a = a._replace(hidden=hidden, spec=a.spec.with_head(head))
    _check_values(a, a.spec.head.vocabulary)
    target = a.target.to(a.hidden.device)
    return reference.forward(a.hidden, target, a.temperature, a.spec, ignore_index=a.ignore_index, extra=a.extra_stats)


def _run(a: LogProbArguments, needs: list[bool]) -> tuple[LogProbOutputs, HeadGradients]:
    shard = _shard(a, needs)
    _check_values(a, a.spec.head.vocabulary if shard is None else shard.vocabulary)
    valid = _valid(a)
    hidden, spec = row_major(a.hidden), a.spec.with_head(backends.head_on(a.backend, a.spec.head))
    kernels, extra = backends.kernels(operation_of(ROW_KERNELS, shard), a.backend), a.extra_stats
    terms = RowTerms.zeros(hidden.shape[0], hidden, sparse=spec.gradient_threshold is not None, extra=extra)
    gradients = HeadGradients(hidden, spec.head, needs)
    target = a.target.to(hidden.device).contiguous()
    listed = Ids.of(target, a.ignore_index)
    temperature = None
    if a.temperature is not None:  # it may be any number in an ignored row
        temperature = torch.where(valid.to(hidden.device), a.temperature.to(terms.values.lse.dtype), 1)
    weights = ListWeights.of(a.upstream, listed, temperature, hidden)
    gradients.choose_unit(*weights.every)
    if gradients.wanted:
        hidden, _ = without_spoilt(hidden, weights.magnitude() != 0)
    log_prob = terms.values.nll.new_zeros(target.shape)

    def run(rows: Tensor | int, weights: RowWeights | None) -> None:
        more = weights, spec, terms, gradients, extra
        if shard is None:
            run_terms(kernels, rows, hidden, target[:, 0], *more, alone=True)
        else:
            run_shard_terms(kernels, rows, hidden, target[:, 0], *more, shard)

    def run_lists(rows: Tensor | int, weights: ListWeights | None) -> None:
        more = temperature, weights, spec, log_prob, terms, gradients, extra
        if shard is None:
            run_listed(kernels, rows, hidden, listed, *more)
        else:
            run_listed_shards(kernels, rows, hidden, listed, *more, shard)

    if target.shape[1] == 1 and temperature is None:
        visit_rows(valid, weights.magnitude() != 0, weights.rows, gradients, run)
        log_prob = -terms.values.nll[:, None]
    else:
        visit_rows(valid, weights.magnitude() != 0, weights, gradients, run_lists)
    shards.sum_hidden(shard, a.group, gradients)
    return LogProbOutputs(log_prob, terms), gradients


def _fake(a: LogProbArguments) -> LogProbOutputs:
    rows, sparse = a.hidden.shape[0], a.spec.gradient_threshold is not None
    terms = RowTerms.zeros(rows, a.hidden, sparse=sparse, extra=a.extra_stats)
    return LogProbOutputs(terms.values.nll.new_empty(a.target.shape), terms)


def _recompute(a: LogProbArguments, upstream: LogProbOutputs) -> LogProbArguments:
    values = upstream.rows.values
    return a._replace(upstream=Upstream(upstream.log_prob, values.entropy, values.lse), extra_stats="")


operator = Operator(
    "linear_log_prob",
    LogProbArguments,
    LogProbOutputs,
    run=_run,
    fake=_fake,
    head="spec.head",
    differentiable=("log_prob", "rows.values.entropy", "rows.values.lse"),
    per_row=lambda _: True,
    recompute=_recompute,
)
