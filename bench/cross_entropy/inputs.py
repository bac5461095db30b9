"""Inputs of the cross-entropy benchmark: heads of real models, rows whose softmax is as peaked as a trained student's.

On plain random rows every probability is about 1/V, which flatters any filter. SmolLM2-135M gets real hidden states
where the model is at hand (bench/real_rows.py). Everything else is synthetic and says so in its label: each logit is a
log-unigram prior plus Gaussian noise whose scale, the row's certainty, varies from row to row,

    z_v = -PRIOR log(v + 3) + scale_r <direction_r, head_v>.

Noise this wide leaves almost all of the mass to a few dozen of the V entries, with a power-law tail behind them (the
random energy model below its critical temperature), and the prior makes tokens repeat from row to row as in text, so
that some columns of dZ are hot. The constants below are fitted to the entries above 2^-9 and 2^-12 a row of
SmolLM2-135M on grade-school solutions: 11 and 34 on average, the 99th percentile of the latter 195. The largest
logits, about 24, are a trained model's too, and with them the error of bf16.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from mind.errors import MindError


class Head(NamedTuple):
    vocabulary: int
    size: int


# Most telling first: the time limit of a run cuts off the end.
HEADS = {
    "budget": Head(151936, 3584),  # the shape of the time and memory budgets; no model has exactly this head
    "Llama-3.1-8B": Head(128256, 4096),
    "Qwen2.5-1.5B": Head(151936, 1536),
    "Gemma-3-270m": Head(262144, 640),
    "SmolLM2-135M": Head(49152, 576),
    "Qwen2.5-7B": Head(152064, 3584),
}
REAL = "SmolLM2-135M"
SYNTHETIC = "synthetic, matched"

PRIOR = 1.6  # exponent of the unigram distribution p(v) ~ (v + 3)^-PRIOR
SCALES = 4.0, 15.0  # standard deviation of the noise in nats, uniform over rows: some are certain, some are not
TARGET_TEMPERATURE = 1.08  # targets are drawn from softmax(z / 1.08), so that the mean loss exceeds the mean entropy
SLICE = 256  # rows whose logits exist at a time


class Inputs(NamedTuple):
    """hidden (N, D) and weight (V, D), both with gradients wanted, target (N,), and where they come from."""

    hidden: Tensor
    weight: Tensor
    target: Tensor
    label: str


def load(model: str, rows: int, dtype: torch.dtype, device: str, data: Path | None = None) -> Inputs:
    """The inputs of a case: the same for the same arguments, in any process. Real rows come from `data` if given."""
    label = SYNTHETIC
    if model == REAL:
        try:
            from bench import real_rows  # needs transformers, which a GPU box may lack

            file = str(real_rows.real_rows(rows, data))
            return Inputs(**real_rows.load_rows(file, device, dtype), label=real_rows.label(data))
        except (ImportError, MindError) as error:
            if data:
                raise
            label = f"{SYNTHETIC} (no real rows: {error})"
    hidden, weight, target = synthetic(rows, *HEADS[model], device)
    return Inputs(hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), target, label)


@torch.no_grad()
def synthetic(
    rows: int, vocabulary: int, size: int, device: str = "cpu", seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """hidden (rows, size) and weight (vocabulary, size) in float32, and target (rows,), as the top of the file says.

    The prior is column 0 of the head, and column 0 of hidden is 1.
    """
    generator = torch.Generator(device).manual_seed(seed)
    hidden = torch.randn(rows, size, generator=generator, device=device)
    hidden *= torch.empty(rows, 1, device=device).uniform_(*SCALES, generator=generator)
    hidden[:, 0] = 1
    weight = torch.randn(vocabulary, size, generator=generator, device=device) / size**0.5
    weight[:, 0] = -PRIOR * torch.log(torch.arange(3, vocabulary + 3, device=device))
    target = [torch.multinomial((part @ weight.T / TARGET_TEMPERATURE).softmax(1), 1, generator=generator)
              for part in hidden.split(SLICE)]
    return hidden, weight, torch.cat(target).squeeze(1)


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
    return {"mean_nll": round(float(torch.cat(nll).mean()), 3),
            "mean_entropy": round(float(torch.cat(entropy).mean()), 3),
            "kept_mean_2^-9": round(float(kept[9].mean()), 2), "kept_mean": round(float(kept[12].mean()), 2),
            "kept_p99": round(float(kept[12].quantile(0.99)), 1)}
