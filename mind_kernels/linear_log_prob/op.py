"""linear_log_prob: the public function and its operator.

The rows of linear_cross_entropy with upstream gradients per row: d(loss) / d(log_prob) is a weight of -nll,
d(loss) / d(entropy) the weight of the entropy in the same row kernel, and that of lse a weight of nll and an addition
at the target. They are known in the backward pass only, which projects the logits again: four products.
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
from mind_kernels.row_chunks import flat_rows, row_major
from mind_kernels.row_loop import visit_rows
from mind_kernels.shards import Shard

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
    """Log-probability of each target, entropy and log-sum-exp, z = softcap(hidden weight^T + bias) / temperature.

    For losses that weigh rows by what only the caller knows (REDI, DPO, GRPO, unlikelihood): any function of the three
    may follow, each number has its own upstream gradient, and the N x V logits are never held.

    Args:
        hidden: (N, D) float64, float32, bfloat16 or float16: hidden states of the labeled rows. Takes a gradient. Or
            (..., D): then all that is (N,) below has the shape (...) of its rows.
        weight: (V, D) LM head, dtype and device of hidden; or a Head, which has bias, softcap and temperature too.
            Takes a gradient.
        target: (N,) or (N, K) int64 or int32 in [0, V) or `ignore_index`: one id per row, or K of them, such as a
            teacher's most likely ones; an id may occur twice. May stay on the CPU, which spares a GPU one
            synchronization.
        bias: (V,), dtype and device of hidden: added to the projected logits; -inf rules an entry out. Takes a
            gradient.
        ignore_index: an id whose log_prob is zero, without a gradient; a row without any other id has zeros as results
            and no gradient at all. May lie in [0, V).
        softcap: c > 0: x = hidden weight^T + bias becomes c tanh(x / c), before the temperature. None: x stays.
        temperature: T > 0: what the logits are divided by. Or (N,) floating, where hidden is, a constant: one per row;
            the logits of a chunk are float32 then, whatever the dtype of hidden.
        gradient_threshold: None: the exact gradient. A share t in (0, 1), such as 2**-16 (on a GPU 2**-14), or
            what `threshold_for_error` gives for the error that you accept of log_prob: the sparse gradient. The results
            stay exact; of the gradient of the logits, entries with a probability up to t (1 - p), where p is
            that of the target, are replaced by a background distribution with the same sum. That of the entropy errs
            about ten times as much as that of log_prob: 2**-14 is below bfloat16 arithmetic there, 2**-12 is not. Rows
            where this would be slower or too rough take the exact gradient; RowStats.dropped_mass and .kept_entries
            report it. Of one id per row and one temperature.
        return_stats: also return RowStats, without segments. Of several ids, nll and correct are of the likeliest.
        extra_stats: names of statistics that RowStats hold on demand: "mean_logit", "log_sum_sq", "predicted". They
            are read from a chunk of logits, which costs some passes over it.
        process_group: the processes among which the head's rows are split, in rank order (tensor parallelism): weight
            is (V_r, D) and bias (V_r,) then, this process's rows, of which there may be none, and V in all that is said
            here is the sum of the V_r. All else is the same in all processes, and so are the results; the gradients of
            weight and bias are those of this process's rows, that of hidden is the whole one. None: the head is whole,
            or weight and hidden are DTensors, the weight Shard(0) over one mesh dimension: the results are plain
            tensors then, the same in all processes of that dimension.
        backend: "auto" or a name that `mind_kernels.backends` lists.

    Returns:
        RowLogProbs, or (RowLogProbs, RowStats).

    Raises:
        ValueError, TypeError: an argument of the wrong shape, device, dtype or range; it is named. On a GPU a target
            out of range is a device-side assertion, since reading it would stall the stream.
        BackendUnavailableError: the backend that was named cannot run here; the message says why.
        RuntimeError: a higher-order gradient, a forward-mode derivative or a transform of torch.func (grad, vmap, ...)
            through any backend but "reference".

    Source:
        mind_kernels/linear_log_prob/README.md derives the gradient and has losses on top of it.
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
    extra = checked_names(extra_stats, return_stats)
    form = "" if gradient_threshold is None else "sparse"
    name = backends.resolve(backend, hidden, ROW_KERNELS[group is not None], head.vocabulary, form)
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
    """Which rows have an id that is not ignored (N,), where target is."""
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
    """The shard of this process, if the head is split; checks that all processes were called alike."""
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
    """By the definition, differentiable."""
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
    kernels, extra = backends.kernels(ROW_KERNELS[shard is not None], a.backend), a.extra_stats
    terms = RowTerms.zeros(hidden.shape[0], hidden, sparse=spec.gradient_threshold is not None, extra=extra)
    gradients = HeadGradients(hidden, spec.head, needs)
    target = a.target.to(hidden.device).contiguous()
    listed = Ids.of(target, a.ignore_index)
    temperature = None
    if a.temperature is not None:  # of an ignored row it may be any number
        temperature = torch.where(valid.to(hidden.device), a.temperature.to(terms.values.lse.dtype), 1)
    weights = ListWeights.of(a.upstream, listed, temperature, hidden)
    gradients.choose_unit(*weights.every)
    log_prob = terms.values.nll.new_zeros(target.shape)

    def run(rows: Tensor | int, weights: RowWeights | None) -> None:
        more = weights, spec, terms, gradients, extra
        if shard is None:
            run_terms(kernels, rows, hidden, target[:, 0], *more)
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
