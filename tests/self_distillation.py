"""The module of docs/tutorials/losses-in-your-trainer.md, and the same loss in plain PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from tests.guide import ROOT, block

PAGE = ROOT / "docs/tutorials/losses-in-your-trainer.md"
K, P, T = 3, 2, 9


def objective(model):
    """The module of the page around a model."""
    names: dict = {}
    exec(block(PAGE, "tests/self_distillation.py"), names)
    return names["SelfDistillation"](model)


def plain_loss(model, batch):
    logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())
    answers = torch.stack([logits[k, batch["answer_positions"][k]] for k in range(K)]).softmax(-1)
    pairs = [(i, j) for i in range(K) for j in range(i + 1, K)]
    for i, j in pairs:
        middle = ((answers[i] + answers[j]) / 2).log()
        jsd = sum((p * (p.log() - middle)).sum(-1) for p in (answers[i], answers[j])) / 2
        loss = loss + 0.1 * jsd.mean() / len(pairs)
    return loss


def small_model():
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=61, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    )


def rationales(seed: int = 0):
    """A batch of the module: K rationales of a question, whose answers begin at other positions."""
    generator = torch.Generator().manual_seed(seed)
    batch = {
        "input_ids": torch.randint(0, 61, (K, T), generator=generator),
        "attention_mask": torch.ones(K, T, dtype=torch.long),
        "answer_positions": torch.tensor([[5, 6], [4, 5], [6, 7]]),
    }
    return batch | {"labels": torch.where(torch.arange(T) < 4, -100, batch["input_ids"])}
