"""Heads of real models, and rows for them whose softmax is as peaked as a trained student's.

On plain random rows every probability is about 1/V, which flatters any filter. SmolLM2-135M gets real hidden states
where the model is at hand (bench/real_rows.py). Everything else is synthetic and says so in its label: each logit is a
log-unigram prior plus Gaussian noise whose scale, the row's certainty, varies from row to row,

    z_v = -PRIOR log(v + 3) + scale_r <direction_r, head_v>.

Noise this wide leaves almost all of the mass to a few dozen of the V entries, with a power-law tail behind them (the
random energy model below its critical temperature), and the prior makes tokens repeat from row to row as in text, so
that some columns of dZ are hot. The constants below are fitted to the entries above 2^-9 and 2^-12 a row of
SmolLM2-135M on grade-school solutions: 11 and 34 on average, the 99th percentile of the latter 195. The largest
logits, about 24, are a trained model's too, and with them the error of bf16.

Rows of a group, the perspectives at one answer position, share a direction up to some noise, and are more certain. On
the same student's answer spans the JSD of a pair is 0.085 on average, its quartiles 0.001, 0.011 and 0.067, the mean
entropy 0.5; the constants give 0.076, then 0.002, 0.016 and 0.092, and 0.6.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Generator, Tensor

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
GROUP_SCALES = 10.0, 18.0
OWN_SHARE = 0.0, 0.17  # of a row's direction, uniform over groups: the rest is its group's
SLICE = 256  # rows whose logits exist at a time


def rows(count: int, size: int, generator: Generator) -> Tensor:
    """(count, size) hidden states in float32."""
    hidden = torch.randn(count, size, generator=generator, device=generator.device)
    hidden *= torch.empty(count, 1, device=generator.device).uniform_(*SCALES, generator=generator)
    hidden[:, 0] = 1  # the prior is column 0 of the head
    return hidden


def groups(count: int, perspectives: int, size: int, generator: Generator) -> Tensor:
    """(count, perspectives, size) hidden states in float32, those of a group near one another."""
    shape, device = (count, 1, 1), generator.device
    shared = torch.randn(count, 1, size, generator=generator, device=device)
    own = torch.randn(count, perspectives, size, generator=generator, device=device)
    share = torch.empty(shape, device=device).uniform_(*OWN_SHARE, generator=generator)
    hidden = (1 - share.square()).sqrt() * shared + share * own
    hidden *= torch.empty(shape, device=device).uniform_(*GROUP_SCALES, generator=generator)
    hidden[..., 0] = 1
    return hidden


def head(vocabulary: int, size: int, generator: Generator) -> Tensor:
    """(vocabulary, size) in float32."""
    weight = torch.randn(vocabulary, size, generator=generator, device=generator.device) / size**0.5
    weight[:, 0] = -PRIOR * torch.log(torch.arange(3, vocabulary + 3, device=generator.device))
    return weight


def real_or_label(
    model: str, data: Path | None, read: Callable[[ModuleType], dict[str, Tensor]], rows: str | None = None
) -> tuple[dict[str, Tensor] | None, str]:
    """What `read` takes from bench.real_rows with its label, for the model that has real rows.

    Else None and the label of synthetic ones. Where `data` is given, a failure to read it is an error. `rows` says
    which rows they are, if not those of rationales.
    """
    label = f"{SYNTHETIC} to {rows}" if rows else SYNTHETIC
    if model != REAL:
        return None, label
    try:
        from bench import real_rows  # needs transformers, which a GPU box may lack

        return read(real_rows), real_rows.label(data, rows or "rationales")
    except (ImportError, MindError) as error:
        if data:
            raise
        return None, f"{label} (no real rows: {error})"
