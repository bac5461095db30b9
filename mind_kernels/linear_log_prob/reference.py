"""The definition of linear_log_prob: plain PyTorch, unchunked, differentiable any number of times."""

from __future__ import annotations

from torch import Tensor

from mind_kernels import checks
from mind_kernels.head import Head
from mind_kernels.linear_cross_entropy import reference
from mind_kernels.linear_cross_entropy.contract import RowSpec


def forward(
    hidden: Tensor,  # (N, D)
    weight: Tensor,  # (V, D)
    bias: Tensor | None,  # (V,)
    target: Tensor,  # (N,)
    ignore_index: int,
    softcap: float | None,
    temperature: float,
    gradient_threshold: float | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(log_prob, entropy, lse, correct, dropped_mass, kept), (N,) each; the first two are differentiable."""
    checks.row_values(target, ignore_index, weight.shape[0], None, 0)
    spec = RowSpec(Head(weight, bias, softcap, temperature), gradient_threshold=gradient_threshold)
    _, terms = reference.forward(
        hidden, target.to(hidden.device), None, None, spec, ignore_index=ignore_index, reduction="none"
    )
    others = (terms[name].detach() for name in ("lse", "correct", "dropped_mass", "kept"))
    return -terms["nll"], terms["entropy"], *others
