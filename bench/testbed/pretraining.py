"""Trains the student's weights from scratch: Muon for the matrices, AdamW for the rest.

Batches are of texts of about one length instead of packed rows, so padding is a few percent. Nothing depends on time:
the same options give the same student on the same machine and versions.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from bench.testbed.texts import Piece, Texts

CONTEXT = 1024
_POOL = 1024
"""Texts that are sorted by length to make batches of."""


@dataclass(frozen=True)
class Shape:
    """Of the student."""

    width: int = 128
    layers: int = 4
    heads: int = 4


@dataclass(frozen=True)
class Pretraining:
    """How the student is trained."""

    steps: int = 1600
    tokens: int = 2048
    """Of a step, padding included, at most."""
    learning_rate: float = 3e-3
    """Of both optimizers: Muon's updates are scaled to be as large as AdamW's."""
    warmup: int = 100
    weight_decay: float = 0.05
    seed: int = 0


def new_student(tokenizer: PreTrainedTokenizerFast, shape: Shape, seed: int) -> LlamaForCausalLM:
    """A Llama with random weights whose queries look for tokens like their own from the start: copying begins so."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=shape.width,
            intermediate_size=shape.width * 8 // 3 // 16 * 16,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.heads,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.q_proj.weight.copy_(layer.self_attn.k_proj.weight)
    return model


def pretrain(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    texts: Texts,
    config: Pretraining,
    watch: Callable[[dict[str, Any]], None],
    every: int = 100,
) -> None:
    """Trains the student in place; `watch` gets step, loss, tokens and seconds of CPU after every `every` steps."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed_tokens" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed_tokens" in name]
    rate, decay = config.learning_rate, config.weight_decay
    optimizers = (
        torch.optim.Muon(matrices, lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
    )
    stream = batches(texts, tokenizer, config.tokens, random.Random(config.seed))
    losses, seen, begun = [], 0, time.process_time()
    model.train()
    for step in range(config.steps):
        pace = min(1.0, (step + 1) / config.warmup) * (
            0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / config.steps))
        )
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * pace
        ids, labeled = next(stream)
        loss = labeled_loss(model, ids, labeled)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        losses.append(loss.detach())
        seen += int((ids != tokenizer.pad_token_id).sum())
        if (step + 1) % every == 0 or step + 1 == config.steps:
            mean = float(torch.stack(losses[-every:]).mean())
            watch({"step": step + 1, "loss": mean, "tokens": seen, "cpu_s": time.process_time() - begun})


def labeled_loss(
    model: LlamaForCausalLM,
    ids: Tensor,  # (B, T)
    labeled: Tensor,  # (B, T) bool: the tokens that are to be predicted
) -> Tensor:  # scalar
    """The mean cross-entropy over labeled tokens; logits are computed for these alone."""
    hidden = model.model(input_ids=ids[:, :-1]).last_hidden_state
    return cross_entropy(model.lm_head(hidden[labeled[:, 1:]]), ids[:, 1:][labeled[:, 1:]])


def batches(
    texts: Texts, tokenizer: PreTrainedTokenizerFast, tokens: int, rng: random.Random
) -> Iterator[tuple[Tensor, Tensor]]:
    """(B, T) ids and which are labeled, without end; B T is `tokens` at most."""
    while True:
        pool = sorted((encoded(texts.draw(), tokenizer) for _ in range(_POOL)), key=lambda text: len(text[0]))
        groups: list[list[tuple[list[int], list[bool]]]] = [[]]
        for text in pool:
            if groups[-1] and (len(groups[-1]) + 1) * len(text[0]) > tokens:
                groups.append([])
            groups[-1].append(text)
        rng.shuffle(groups)
        for group in groups:
            yield padded(group, tokenizer.pad_token_id)


def encoded(pieces: Sequence[Piece], tokenizer: PreTrainedTokenizerFast) -> tuple[list[int], list[bool]]:
    """The ids of a text, and which are labeled."""
    ids: list[int] = []
    labeled: list[bool] = []
    for piece in pieces:
        some = tokenizer(piece.text, add_special_tokens=False)["input_ids"]
        ids += some
        labeled += [piece.labeled] * len(some)
    return ids, labeled


def padded(group: Sequence[tuple[list[int], list[bool]]], pad: int) -> tuple[Tensor, Tensor]:
    """Texts as rows, with padding on the right that is not labeled."""
    width = max(len(ids) for ids, _ in group)
    ids = torch.tensor([row + [pad] * (width - len(row)) for row, _ in group])
    return ids, torch.tensor([row + [False] * (width - len(row)) for _, row in group])
