"""Inputs of the cross-entropy benchmark: real rows of SmolLM2-135M, or synthetic ones (comparison/heads.py)."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from bench.comparison import heads
from bench.comparison.heads import HEADS, SLICE

TARGET_TEMPERATURE = 1.08  # targets are drawn from softmax(z / 1.08), so that the mean loss exceeds the mean entropy


class Inputs(NamedTuple):
    """hidden (N, D) and weight (V, D), both with gradients wanted, target (N,), and where they come from."""

    hidden: Tensor
    weight: Tensor
    target: Tensor
    label: str


def load(model: str, rows: int, dtype: torch.dtype, device: str, data: Path | None = None) -> Inputs:
    """The inputs of a case: the same for the same arguments, in any process. Real rows come from `data` if given."""
    real, label = heads.real_or_label(
        model, data, lambda source: source.load_rows(source.real_rows(rows, data), device, dtype)
    )
    if real:
        return Inputs(**real, label=label)
    hidden, weight, target = synthetic(rows, *HEADS[model], device)
    return Inputs(hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), target, label)


def on_meta(model: str, rows: int, dtype: torch.dtype) -> Inputs:
    """The inputs of a case by their shapes alone."""
    vocabulary, size = HEADS[model]
    hidden, weight = (torch.empty(n, size, dtype=dtype, device="meta", requires_grad=True) for n in (rows, vocabulary))
    return Inputs(hidden, weight, torch.empty(rows, dtype=torch.int64, device="meta"), "")


@torch.no_grad()
def synthetic(
    rows: int, vocabulary: int, size: int, device: str = "cpu", seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """hidden (rows, size) and weight (vocabulary, size) in float32, and target (rows,)."""
    generator = torch.Generator(device).manual_seed(seed)
    hidden = heads.rows(rows, size, generator)
    weight = heads.head(vocabulary, size, generator)
    return hidden, weight, draw_targets(hidden, weight, generator)


def draw_targets(hidden: Tensor, weight: Tensor, generator: torch.Generator) -> Tensor:
    target = [
        torch.multinomial((part @ weight.T / TARGET_TEMPERATURE).softmax(1), 1, generator=generator)
        for part in hidden.split(SLICE)
    ]
    return torch.cat(target).squeeze(1)


@torch.no_grad()
def describe(inputs: Inputs) -> dict[str, float]:
    """What makes the rows easy or hard: mean loss and entropy, and how many entries exceed 2^-9 and 2^-12."""
    kept, entropy, nll = {9: [], 12: []}, [], []
    weight = inputs.weight.float()
    for hidden, target in zip(inputs.hidden.split(SLICE), inputs.target.split(SLICE), strict=True):
        log_p = (hidden.float() @ weight.T).log_softmax(1)
        nll.append(-log_p.gather(1, target[:, None]).squeeze(1))
        for exponent, counts in kept.items():
            counts.append((log_p > -exponent * torch.log(log_p.new_tensor(2.0))).sum(1))
        entropy.append(-(log_p.exp() * log_p).sum(1))
    kept = {exponent: torch.cat(counts).float() for exponent, counts in kept.items()}
    return {
        "mean_nll": round(float(torch.cat(nll).mean()), 3),
        "mean_entropy": round(float(torch.cat(entropy).mean()), 3),
        "kept_mean_2^-9": round(float(kept[9].mean()), 2),
        "kept_mean": round(float(kept[12].mean()), 2),
        "kept_p99": round(float(kept[12].quantile(0.99)), 1),
    }
