"""The README's training loop runs as it stands there, and does what a plain loop over logits does."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from tests.guide import ROOT, block

K, P, T = 3, 2, 9


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


def test_ten_lines_in_somebody_elses_loop():
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=61, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    )
    plain, start = copy.deepcopy(model), copy.deepcopy(model)
    batch = {
        "input_ids": torch.randint(0, 61, (K, T)),
        "attention_mask": torch.ones(K, T, dtype=torch.long),
        "answer_positions": torch.tensor([[5, 6], [4, 5], [6, 7]]),
    }
    batch["labels"] = torch.where(torch.arange(T) < 4, -100, batch["input_ids"])
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    names = {"model": model, "loader": [batch] * 3, "optimizer": optimizer}
    exec(block(ROOT / "README.md", "tests/test_readme.py"), names)
    optimizer = torch.optim.SGD(plain.parameters(), lr=1.0)
    for _ in range(3):
        plain_loss(plain, batch).backward()
        optimizer.step()
        optimizer.zero_grad()
    for (name, found), expected, first in zip(
        model.named_parameters(), plain.parameters(), start.parameters(), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5, msg=name)
        assert not torch.equal(found, first), name
