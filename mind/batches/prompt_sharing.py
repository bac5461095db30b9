"""Decides whether the rationales of a question can share its prompt in a model, and which attention computes them.

A branch sees its document's prompt and itself, at the same positions as if it were alone. This needs an attention that
accepts masks: PyTorch's SDPA with a dense mask, or FlexAttention, which skips masked blocks. Flash attention accepts no
masks; it computes plain sequences, each with its own prompt.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from mind import processes
from mind.batches.isolation import branch_fault, keeps_sequences_apart
from mind.batches.packing import check_prompt, sequence_lengths
from mind.config import MindConfig
from mind.errors import MindError, require
from mind.records import PackOptions, TokenizedQuestion
from mind.student.model import (
    SPAN_ATTENTION,
    attention_of,
    causal_lm,
    check_trainable,
    context_of,
    head_of,
    set_attention,
)

MASKED_ATTENTION = (SPAN_ATTENTION, "sdpa", "eager", "flex_attention")
FLEX_LENGTH = 2048
"""Row length in tokens from which skipping masked blocks is worth FlexAttention's compilation [not measured on a
GPU]."""


def obstacle(model: nn.Module, attention: str, longest: int, length: int) -> str | None:
    """Why the branches of a prompt cannot share it in this model; None if they can.

    `attention` is the implementation that will compute them, `longest` the tokens of the longest sequence, `length`
    those of a row.
    """
    if attention not in MASKED_ATTENTION:
        return f"{attention} takes no attention mask"
    return branch_fault(causal_lm(model), longest, length)


def attention_and_pack_options(
    model: nn.Module, config: MindConfig, questions: Sequence[TokenizedQuestion], device: str
) -> tuple[str, PackOptions]:
    """The training attention, by transformers' name, and how the questions are packed for it.

    The model is moved to `device` ("cpu" or "cuda"), so that the probed model is the one that trains. Raises MindError
    for an attention that is not available or cannot train on the device, for a model whose own training loss has more
    terms than the cross-entropy, and as `choose_pack_options` does.
    """
    train = config.train
    attention = choose_attention(config.student.attention, device, train.pack_length, train.share_prompts)
    model.to(processes.device() if device == "cuda" else device)
    check_trainable(model)
    with use_attention(model, attention), torch.autocast(device, torch.bfloat16, enabled=train.bf16):
        return attention, choose_pack_options(model, attention, questions, train.pack_length, train.share_prompts)


def choose_pack_options(
    model: nn.Module, attention: str, questions: Sequence[TokenizedQuestion], length: int, share_prompts: str
) -> PackOptions:
    """How to pack these questions into rows of `length` tokens: with shared prompts if `share_prompts` is "auto" and
    the model can compute them, or if it is "always".

    Warns, with the reason, if it is "auto" and the model cannot. Raises MindError if it is "always" and the model
    cannot, for a prompt longer than `length`, for a sequence longer than the model's context, for a model whose logits
    are not computed by trunk and head alone, and for one that computes no layout of rows like single sequences.
    """
    for question in questions:
        check_prompt(question, length)
    longest, context = max((n for q in questions for n in sequence_lengths(q)), default=0), context_of(model)
    require(
        context is None or longest <= context,
        f"the longest sequence has {longest} tokens; the context of {type(causal_lm(model)).__name__} is {context}",
    )
    head_of(model)
    apart = keeps_sequences_apart(causal_lm(model), length)
    if share_prompts == "never":
        return PackOptions(length, False)
    reason = obstacle(model, attention, longest, length)
    if reason is None:
        return PackOptions(length, True)
    if share_prompts == "always":
        raise MindError(f"train.share_prompts is always, but prompts cannot be shared: {reason}")
    if apart:  # otherwise another warning has said that every sequence has its own row
        message = f"each rationale is computed with its own copy of the prompt: {reason}"
        warnings.warn(message, RuntimeWarning, stacklevel=2)
    return PackOptions(length, False)


def choose_attention(attention: str, device: str, length: int, share_prompts: str) -> str:
    """transformers' name of the training attention: `attention`, or the choice for "auto".

    On a CPU: SDPA span by span (mind/student/span_attention.py). On a GPU: FlexAttention for shared prompts in rows of
    at least FLEX_LENGTH tokens, flash-attention for plain rows if it is installed, otherwise SDPA.
    """
    if attention != "auto":
        return attention
    if device == "cpu":
        return SPAN_ATTENTION
    if share_prompts == "never":
        return "flash_attention_2" if importlib.util.find_spec("flash_attn") else "sdpa"
    return "flex_attention" if length >= FLEX_LENGTH else "sdpa"


@contextmanager
def use_attention(model: nn.Module, name: str) -> Iterator[None]:
    """Inside the block, the model uses the attention `name`; generation outside keeps the one that it was loaded with.

    Raises MindError if that attention is not installed or the model does not support it.
    """
    model = causal_lm(model)
    before = attention_of(model)
    set_attention(model, name)
    try:
        yield
    finally:
        set_attention(model, before)
