"""The definition of linear_log_prob: plain PyTorch, unchunked, differentiable any number of times."""

from __future__ import annotations

import torch
from torch import Tensor

from mind_kernels.linear_cross_entropy import reference
from mind_kernels.linear_cross_entropy.contract import RowSpec, RowWeights
from mind_kernels.linear_log_prob.contract import LogProbOutputs
from mind_kernels.row_chunks import row_weights


def forward(
    hidden: Tensor,  # (N, D)
    target: Tensor,  # (N, K), on the device of hidden
    temperature: Tensor | None,  # (N,), in addition to that of the head
    spec: RowSpec,
    *,
    ignore_index: int,
    extra: str,
) -> LogProbOutputs:
    """Log-probability of each target, and the rows' terms for the likeliest target of each row; all differentiable."""
    present = target != ignore_index
    valid = present.any(1)
    hidden = reference.without_ignored(hidden, valid)
    weights = RowWeights(row_weights(None, valid, hidden))
    if temperature is not None:
        temperature = torch.where(valid, temperature.to(weights.loss.dtype), 1)

    def terms_of(ids: Tensor):
        return reference.row_terms(hidden, ids, valid, weights, spec, temperature=temperature, extra=extra)

    if target.shape[1] == 1:
        terms = terms_of(target[:, 0])
        return LogProbOutputs(-terms.values.nll[:, None], terms)
    _, logits = reference.row_logits(hidden, weights, spec.head, temperature)
    index = torch.where(present, target, 0)
    log_prob = torch.where(present, torch.log_softmax(logits, -1).gather(1, index), 0)
    with torch.no_grad():
        listed = torch.where(present, logits.gather(1, index), -torch.inf)
        best = present & (listed == listed.amax(1, keepdim=True))
        likeliest = torch.where(best, index, spec.head.vocabulary - 1).amin(1)  # the first one if several are equal
    return LogProbOutputs(log_prob, terms_of(likeliest))
