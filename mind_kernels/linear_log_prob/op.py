"""linear_log_prob: the public function and its operator.

The rows of linear_cross_entropy with two upstream gradients per row: d(loss) / d(log_prob) is a weight of -nll, and
d(loss) / d(entropy) the weight of the entropy in the same row kernel. Both are known in the backward pass only, which
projects the logits again: four products.
"""

from __future__ import annotations

from typing import Literal, overload

import torch
from torch import Tensor

from mind_kernels import backend as backends
from mind_kernels import checks
from mind_kernels.autograd import Operator
from mind_kernels.head import Head, HeadGradients, head_of
from mind_kernels.linear_cross_entropy.contract import RowSpec, RowStats, RowTerms, RowWeights
from mind_kernels.linear_cross_entropy.rows import run_terms
from mind_kernels.linear_log_prob import reference
from mind_kernels.linear_log_prob.contract import LogProbArguments, LogProbOutputs, RowLogProbs
from mind_kernels.row_chunks import flat_rows, row_major, row_weights
from mind_kernels.row_loop import visit_rows


@overload
def linear_log_prob(
    hidden: Tensor,
    weight: Tensor | Head,
    target: Tensor,
    *,
    bias: Tensor | None = None,
    ignore_index: int = -100,
    softcap: float | None = None,
    temperature: float = 1.0,
    gradient_threshold: float | None = None,
    return_stats: Literal[False] = False,
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
    temperature: float = 1.0,
    gradient_threshold: float | None = None,
    return_stats: Literal[True],
    backend: str = "auto",
) -> tuple[RowLogProbs, RowStats]: ...
def linear_log_prob(
    hidden: Tensor,
    weight: Tensor | Head,
    target: Tensor,
    *,
    bias: Tensor | None = None,
    ignore_index: int = -100,
    softcap: float | None = None,
    temperature: float = 1.0,
    gradient_threshold: float | None = None,
    return_stats: bool = False,
    backend: str = "auto",
) -> RowLogProbs | tuple[RowLogProbs, RowStats]:
    """Log-probability of each target and entropy of each softmax(z), z = softcap(hidden weight^T + bias) / temperature.

    For losses that weigh rows by what only the caller knows (REDI, DPO, GRPO, unlikelihood): any function of the two
    may follow, each row has its own upstream gradient, and the N x V logits are never held.

    Args:
        hidden: (N, D) float64, float32, bfloat16 or float16: hidden states of the labeled rows. Takes a gradient. Or
            (..., D): then all that is (N,) below has the shape (...) of its rows.
        weight: (V, D) LM head, dtype and device of hidden; or a Head, which has bias, softcap and temperature too.
            Takes a gradient.
        target: (N,) int64 or int32 in [0, V) or `ignore_index`; may stay on the CPU, which spares a GPU one
            synchronization.
        bias: (V,), dtype and device of hidden: added to the projected logits; -inf rules an entry out. Takes a
            gradient.
        ignore_index: the target of rows whose results are zero, without a gradient; may lie in [0, V).
        softcap: c > 0: x = hidden weight^T + bias becomes c tanh(x / c), before the temperature. None: x stays.
        temperature: T > 0: what the logits are divided by.
        gradient_threshold: None: the exact gradient. A share t in (0, 1), such as 2**-14: the sparse gradient. The
            results stay exact; of the gradient of the logits, entries with a probability up to t (1 - p), where p is
            that of the target, are replaced by a background distribution with the same sum. That of the entropy errs
            about ten times as much as that of log_prob: 2**-14 is below bfloat16 arithmetic there, 2**-12 is not. Rows
            where this would be slower or too rough take the exact gradient; RowStats.dropped_mass and .kept_entries
            report it.
        return_stats: also return RowStats, without segments.
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
    head = head_of(weight, bias, softcap, temperature)
    hidden, head = checks.head_arguments(hidden, head, "(..., D)")
    checks.row_arguments(hidden, target, None, None, None)
    checks.probability("gradient_threshold", gradient_threshold)
    name = backends.resolve(backend, hidden, "linear_cross_entropy")
    spec = RowSpec(head, gradient_threshold=gradient_threshold)
    arguments = LogProbArguments(flat_rows(hidden, 1), spec, flat_rows(target), None, None, ignore_index, name)
    outputs = _define(arguments) if name == "reference" else operator(arguments)
    shape = hidden.shape[:-1]
    found = RowLogProbs(outputs.log_prob.view(shape), outputs.rows.values.entropy.view(shape))
    if not return_stats:
        return found
    return found, RowStats.of(outputs.rows, None, shape, sparse=gradient_threshold is not None)


def _define(a: LogProbArguments) -> LogProbOutputs:
    """By the definition, differentiable."""
    checks.row_values(a.target, a.ignore_index, a.spec.head.vocabulary, None, 0)
    return reference.forward(a.hidden, a.target.to(a.hidden.device), a.spec, ignore_index=a.ignore_index)


def _run(a: LogProbArguments, needs: list[bool]) -> tuple[LogProbOutputs, HeadGradients]:
    checks.row_values(a.target, a.ignore_index, a.spec.head.vocabulary, None, 0)
    hidden, spec = row_major(a.hidden), a.spec.row_major()
    kernels = backends.kernels("linear_cross_entropy", a.backend)
    terms = RowTerms.zeros(hidden.shape[0], hidden, sparse=spec.gradient_threshold is not None)
    gradients = HeadGradients(hidden, spec.head, needs)
    valid, index = a.target != a.ignore_index, a.target.to(hidden.device).contiguous()
    weights = _weights(a, valid.to(hidden.device))
    gradients.choose_unit(weights.loss, weights.entropy)

    def run(rows: Tensor | int, weights: RowWeights | None) -> None:
        run_terms(kernels, rows, hidden, index, weights, spec, terms, gradients)

    visit_rows(valid, weights.magnitude() != 0, weights, gradients, run)
    return LogProbOutputs(-terms.values.nll, terms), gradients


def _weights(a: LogProbArguments, valid: Tensor) -> RowWeights:
    """Of -log_prob and of the entropy; ones in a forward pass, which visits every valid row for its results."""
    entropy = None if a.d_entropy is None else row_weights(a.d_entropy, valid, a.hidden)
    if a.d_log_prob is not None:
        return RowWeights(row_weights(-a.d_log_prob, valid, a.hidden), entropy)
    return RowWeights(row_weights(None, valid, a.hidden) if entropy is None else torch.zeros_like(entropy), entropy)


def _fake(a: LogProbArguments) -> LogProbOutputs:
    terms = RowTerms.zeros(a.hidden.shape[0], a.hidden, sparse=a.spec.gradient_threshold is not None)
    return LogProbOutputs(torch.empty_like(terms.values.nll), terms)


operator = Operator(
    "linear_log_prob",
    LogProbArguments,
    LogProbOutputs,
    run=_run,
    fake=_fake,
    head="spec.head",
    differentiable=("log_prob", "rows.values.entropy"),
    per_row=lambda _: True,
    recompute=lambda a, upstream: a._replace(d_log_prob=upstream.log_prob, d_entropy=upstream.rows.values.entropy),
)
