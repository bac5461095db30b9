"""Inputs of the pairwise JSD benchmark: real answer spans of SmolLM2-135M, or synthetic groups as near one another."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from bench.comparison import heads
from bench.comparison.heads import HEADS
from bench.linear_pairwise_jsd.divergence import pair_divergences

PERSPECTIVES = 8  # of a synthetic group
SLICE = 4  # groups whose pairs exist at a time
SEED = 0


class Inputs(NamedTuple):
    """What the providers get, and where it comes from; gradients are wanted for hidden and weight."""

    hidden: Tensor  # (P, K, D)
    weight: Tensor  # (V, D)
    pair_weight: Tensor  # (P, K, K)
    mixture_weight: Tensor  # (P, K)
    label: str


def load(model: str, groups: int, dtype: torch.dtype, device: str, data: Path | None = None) -> Inputs:
    """The inputs of a case: the same for the same arguments, in any process. Real rows come from `data` if given."""
    real, label = heads.real_or_label(
        model, data, lambda source: source.load_rows(source.real_groups(groups, data), device, dtype), "answer spans"
    )
    if real:
        hidden, weight = real["hidden"].detach()[real["answer_rows"]], real["weight"]
    else:
        hidden, weight = (tensor.to(dtype) for tensor in synthetic(groups, *HEADS[model], device))
    alpha = uneven_weights(*hidden.shape[:2]).to(device)
    return Inputs(hidden.requires_grad_(), weight.requires_grad_(), pair_weights(alpha), alpha / groups, label)


def on_meta(model: str, groups: int, dtype: torch.dtype) -> Inputs:
    """The inputs of a case by their shapes alone."""
    vocabulary, size = HEADS[model]
    hidden = torch.empty(groups, PERSPECTIVES, size, dtype=dtype, device="meta", requires_grad=True)
    weight = torch.empty(vocabulary, size, dtype=dtype, device="meta", requires_grad=True)
    alpha = torch.empty(groups, PERSPECTIVES, device="meta")
    return Inputs(hidden, weight, pair_weights(alpha), alpha, "")


@torch.no_grad()
def synthetic(groups: int, vocabulary: int, size: int, device: str = "cpu") -> tuple[Tensor, Tensor]:
    """hidden (groups, PERSPECTIVES, size) and weight (vocabulary, size) in float32."""
    generator = torch.Generator(device).manual_seed(SEED)
    hidden = heads.groups(groups, PERSPECTIVES, size, generator)
    return hidden, heads.head(vocabulary, size, generator)


def uneven_weights(groups: int, perspectives: int) -> Tensor:
    """alpha (groups, perspectives): positive, each row of it sums to 1."""
    return torch.randn(groups, perspectives, generator=torch.Generator().manual_seed(SEED)).softmax(1)


def pair_weights(alpha: Tensor) -> Tensor:
    """alpha_i alpha_j / P, so that every pair counts."""
    return alpha[:, :, None] * alpha[:, None, :] / len(alpha)


@torch.no_grad()
def describe(hidden: Tensor, weight: Tensor) -> dict[str, float]:
    """What makes groups easy or hard: how far their rows are apart, and how certain the rows are."""
    divergences, entropy = [], []
    weight = weight.float()
    for part in hidden.split(SLICE):
        logits = (part.float() @ weight.T).double()  # single precision would not show a JSD of 1e-6
        divergences.append(pair_divergences(logits))
        entropy.append(torch.special.entr(logits.softmax(-1)).sum(-1))
    jsd = torch.cat(divergences)
    return {
        "K": hidden.shape[1],
        "mean_jsd": round(float(jsd.mean()), 4),
        "jsd_below_1e-6": round(float((jsd < 1e-6).double().mean()), 4),
        "mean_entropy": round(float(torch.cat(entropy).mean()), 3),
    }
