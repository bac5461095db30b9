"""A tiny random model on disk with its tokenizer, and rows of token ids, for trainers that read both from files."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

VOCABULARY = 99
IGNORED = -100
SPECIAL = {"pad_token": "t0", "bos_token": "t1", "eos_token": "t2", "unk_token": "t3"}


@dataclass
class Run:
    """Of one training: all weights before and after, flat, and the loss of every backward pass."""

    start: Tensor
    losses: list[float] = field(default_factory=list)
    end: Tensor | None = None

    def all_losses(self) -> Tensor:
        return torch.tensor(self.losses, dtype=torch.float64)


def config(**changes: object) -> LlamaConfig:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return LlamaConfig(vocab_size=VOCABULARY, max_position_embeddings=256, **sizes | ids | changes)


def model(**changes: object) -> LlamaForCausalLM:
    """Random, with logits that are wide enough to tell a wrong loss from the right one."""
    torch.manual_seed(0)
    made = LlamaForCausalLM(config(**changes)).float()
    with torch.no_grad():
        made.lm_head.weight.mul_(6)
    return made


def words(count: int, generator: torch.Generator) -> list[int]:
    return torch.randint(4, VOCABULARY, (count,), generator=generator).tolist()


def rows(count: int = 24) -> list[dict[str, list[int]]]:
    """Sequences of 8 to 20 tokens, whose first four are a prompt without labels."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for _ in range(count):
        ids = words(int(torch.randint(8, 21, (), generator=generator)), generator)
        made.append({"input_ids": ids, "attention_mask": [1] * len(ids), "labels": [IGNORED] * 4 + ids[4:]})
    return made


def save(folder: Path, **changes: object) -> Path:
    """The folder, which gets the model and its tokenizer: a word of the vocabulary is a token."""
    model(**changes).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({f"t{i}": i for i in range(VOCABULARY)}, unk_token="t3"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, **SPECIAL).save_pretrained(folder)
    return folder


def save_lines(file: Path, lines: list[dict]) -> Path:
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file
