"""The work of a step: its products and bytes, from which bench/roofline.py predicts its time.

Left out: the products of attention, a few percent at these lengths, and the consistency of the answer rows, which are
few. The sparse gradient counts as the exact one, to which the random weights of a run on a GPU send it back.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.linear_cross_entropy.inputs import Inputs as Rows
from bench.linear_cross_entropy.providers import exact_work
from bench.linear_pairwise_jsd.providers import upcast
from bench.roofline import Logits, Step, counted
from bench.training_step.inputs import Inputs
from bench.training_step.variants import EAGER, SAVED_HIDDEN, SAVED_INNER, Variant
from mind.batches.packing import naive_tokens

OPTIMIZER_BYTES = 10
"""Per byte of a parameter: AdamW reads weight, gradient and two moments and writes three of them; the norm of the
gradient reads it, and clipping reads and writes it."""


class Tokens(NamedTuple):
    """Of the trunk, padding and repeated prompts included; and labeled ones, of which the logits are wanted."""

    forward: int
    backward: int
    labeled: int
    trained: int


def tokens_of(variant: Variant, inputs: Inputs) -> Tokens:
    """Without what packing pads."""
    if variant.padded:
        padded, _ = naive_tokens(inputs.questions)
        return Tokens(padded, padded, padded, padded)
    forward = backward = labeled = trained = 0
    for question, selected in zip(inputs.questions, inputs.selected.tolist(), strict=True):
        lengths = [len(ids) + len(question.suffix) for ids in question.rationales.values()]
        chosen = [n for n, wanted in zip(lengths, selected, strict=True) if wanted or not variant.selected_only]
        prompts = 1 if variant.share_prompts else len(chosen)
        backward += prompts * len(question.prompt) + sum(chosen)
        # What is only observed has a row of its own with a prompt of its own.
        observed = sum(lengths) - sum(chosen)
        repeated = (1 if variant.share_prompts else len(lengths) - len(chosen)) if observed else 0
        forward += repeated * len(question.prompt) + observed
        labeled, trained = labeled + sum(lengths), trained + sum(chosen)
    return Tokens(forward + backward, backward, labeled, trained)


def steps(variant: Variant, config: Any, dtype: torch.dtype, tokens: Tokens) -> list[Step]:
    """Of a student with this transformers configuration (or its entries), whose head is its embedding."""
    size, inner, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    keys = size * config["num_key_value_heads"] // config["num_attention_heads"]
    weights = layers * size * (2 * size + 2 * keys + 3 * inner)
    saved = layers * (SAVED_HIDDEN * size + SAVED_INNER * inner) * dtype.itemsize
    parameters = (weights + config["vocab_size"] * size) * dtype.itemsize
    # Each saved tensor is written and read in the forward pass, and its gradient in the backward pass.
    passes = Step(0, 2 * saved * (tokens.forward + tokens.backward))
    trunk = Step(2 * weights * (tokens.forward + 2 * tokens.backward), 0)
    head = config["vocab_size"], size
    rows, unseen = _rows(tokens.trained, *head, dtype), tokens.labeled - tokens.trained
    observed = [Logits(unseen, *head, dtype.itemsize).products()] if unseen else []
    return [trunk, passes, *observed, *_losses(variant, rows), Step(0, OPTIMIZER_BYTES * parameters)]


def _rows(count: int, vocabulary: int, size: int, dtype: torch.dtype) -> Rows:
    hidden, weight = (torch.empty(n, size, dtype=dtype, device="meta", requires_grad=True) for n in (count, vocabulary))
    return Rows(hidden, weight, torch.empty(count, dtype=torch.int64, device="meta"), "")


def _losses(variant: Variant, rows: Rows) -> list[Step]:
    return counted(_eager, rows) if variant.losses is EAGER else exact_work(rows, {}, "triton") or []


def _eager(inputs: Rows) -> Tensor:
    return F.cross_entropy(upcast(inputs.hidden @ inputs.weight.T), inputs.target, reduction="none").sum()
