"""The fused log-probabilities in verl, enabled by its configuration.

    actor_rollout_ref.model.external_lib: mind_kernels.integrations.verl
    actor_rollout_ref.model.use_fused_kernels: true

verl imports this module in every worker before it builds the model. The import replaces the functions that verl's own
forward passes call to compute log-probabilities and entropy from hidden states, for every
`fused_kernel_options.impl_backend`.
"""

from __future__ import annotations

import sys
from typing import Any

from torch import Tensor, distributed
from verl.utils.experimental import torch_functional  # pyright: ignore[reportMissingImports]
from verl.utils.kernel import linear_cross_entropy as kernel  # pyright: ignore[reportMissingImports]

from mind_kernels import linear_log_prob
from mind_kernels.integrations.signature import expect
from mind_kernels.integrations.tensor_parallel import part_of


def forward(
    self: Any,
    hidden_states: Tensor,  # (..., D)
    vocab_weights: Tensor,  # (V, D)
    input_ids: Tensor,  # (...)
    temperature: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Replaces FusedLinearForPPO.forward: log-probability and entropy, (...) each, float32."""
    return _rows(hidden_states, vocab_weights, input_ids, temperature, None)


def linear_cross_entropy(
    hidden: Tensor,  # (..., D)
    weight: Tensor,  # (V, D), or this process's part of it
    labels: Tensor,  # (...), of the whole vocabulary
    temperature: float = 1.0,
    reduction: str = "none",
    dist_process_group: distributed.ProcessGroup | None = None,
) -> tuple[Tensor, Tensor]:
    """Replaces verl.utils.kernel.linear_cross_entropy: log-probability and entropy, (N,) each, float32.

    With a group, each process has a part of the vocabulary (Megatron's tensor parallelism). The gradient of hidden is
    then that of this process's part, as with verl's own kernel: Megatron's sequence parallelism sums it.

    Raises:
        ValueError: `reduction` is not "none".
    """
    if reduction != "none":
        raise ValueError(f"reduction is {reduction!r}: expected 'none'")
    log_prob, entropy = _rows(hidden, weight, labels, temperature, dist_process_group)
    return log_prob.flatten(), entropy.flatten()


def _rows(
    hidden: Tensor, weight: Tensor, labels: Tensor, temperature: float, group: distributed.ProcessGroup | None
) -> tuple[Tensor, Tensor]:
    """Log-probability and entropy, in the shape of the labels."""
    split = None if group is None else part_of(group)
    found = linear_log_prob(hidden, weight, labels, temperature=temperature, process_group=split)
    return found.log_prob, found.entropy


def _install() -> None:
    names = ("hidden_states", "vocab_weights", "input_ids", "temperature")
    expect("verl", torch_functional.FusedLinearForPPO, "forward", "self", *names)
    names = ("hidden", "weight", "labels", "temperature", "reduction", "dist_process_group")
    expect("verl", kernel.LinearCrossEntropy, "forward", "ctx", *names)
    torch_functional.FusedLinearForPPO.forward = forward
    original = kernel.linear_cross_entropy
    for module in [*sys.modules.values()]:  # some of verl's modules have imported the function by name
        if vars(module).get("linear_cross_entropy") is original:
            module.linear_cross_entropy = linear_cross_entropy  # pyright: ignore[reportAttributeAccessIssue]


_install()
