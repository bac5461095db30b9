"""Real rows for the loss benchmarks: hidden states, head and targets of SmolLM2-135M on teacher-forced rationales.

Random hidden states would flatter a loss: every probability is about 1/V there. These come from the built-in word
problems' rationales through the embedded student (extra `demo`), and are kept in the cache folder.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mind import word_problems
from mind.config import StudentConfig
from mind.evaluate import batches
from mind.packing import tokenize
from mind.perspectives import PAPER_PERSPECTIVES
from mind.student import cache_folder, head_tensors, labelled_hidden, load_student

LABEL = "SmolLM2-135M-Instruct, word-problem rationales"


@torch.no_grad()
def real_rows(rows: int, seed: int = 7) -> Path:
    """A safetensors file with hidden (rows, 576) and weight (49152, 576) in float32 and target (rows,)."""
    file = cache_folder() / "bench" / f"smollm2-rows-{rows}-{seed}.safetensors"
    if file.exists():
        return file
    model, tokenizer = load_student(StudentConfig())
    questions = tokenize(word_problems.generate(rows // 400 + 15, seed), tokenizer, PAPER_PERSPECTIVES, 1024)
    hidden, target, count = [], [], 0
    for batch in batches(questions, len(PAPER_PERSPECTIVES), 2, 512):
        hidden.append(labelled_hidden(model.eval(), batch))
        target.append(batch.target)
        count += len(batch.target)
        if count >= rows:
            break
    if count < rows:
        raise ValueError(f"the questions hold {count} rows, fewer than {rows}")
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    save_file({"hidden": torch.cat(hidden)[:rows].contiguous(), "target": torch.cat(target)[:rows].contiguous(),
               "weight": head_tensors(model).weight.detach().contiguous()}, partial)
    partial.replace(file)
    return file


def load_rows(file: str, device: str = "cpu") -> dict[str, Tensor]:
    """What `real_rows` wrote, on `device`, with gradients wanted for hidden and weight."""
    tensors = load_file(file, device=device)
    return {name: t.requires_grad_() if t.is_floating_point() else t for name, t in tensors.items()}
