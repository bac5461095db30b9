"""Real rows for the loss benchmarks: hidden states, head and targets of SmolLM2-135M on teacher-forced rationales.

Random hidden states would flatter a loss: every probability is about 1/V there. These come from rationales, those of
a data file or else of the built-in word problems, through the embedded student (extra `demo`), and are kept in the
cache folder.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mind import word_problems
from mind.config import StudentConfig
from mind.data import load_questions
from mind.evaluate import batches
from mind.packing import tokenize
from mind.perspectives import PAPER_PERSPECTIVES
from mind.records import Question
from mind.student import cache_folder, head_tensors, labelled_hidden, load_student

SEED = 7  # of the word problems


def label(data: Path | None) -> str:
    """Where the rows come from, in a word."""
    return f"SmolLM2-135M-Instruct, {f'rationales of {data.name}' if data else 'word-problem rationales'}"


def questions_of(rows: int, data: Path | None) -> list[Question]:
    """Questions whose rationales hold at least `rows` tokens: the first of a file, or word problems."""
    if data is None:
        return word_problems.generate(rows // 400 + 15, SEED)
    return load_questions(data, require_rationales=True)[: rows // 50 + 15]


@torch.no_grad()
def real_rows(rows: int, data: Path | None = None) -> Path:
    """A safetensors file with hidden (rows, 576) and weight (49152, 576) in float32 and target (rows,).

    `data` is what `mind data import` writes.
    """
    source = hashlib.sha256(data.read_bytes()).hexdigest()[:12] if data else SEED
    file = cache_folder() / "bench" / f"smollm2-rows-{rows}-{source}.safetensors"
    if file.exists():
        return file
    model, tokenizer = load_student(StudentConfig())
    questions = questions_of(rows, data)
    perspectives: Sequence[str] = PAPER_PERSPECTIVES
    if data:
        perspectives = sorted({rationale.perspective for question in questions for rationale in question.rationales})
    questions = tokenize(questions, tokenizer, perspectives, 1024)
    hidden, target, count = [], [], 0
    for batch in batches(questions, len(perspectives), 2, 512):
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


def load_rows(file: str, device: str = "cpu", dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """What `real_rows` wrote, on `device`, with gradients wanted for hidden and weight, which become `dtype`."""
    tensors = load_file(file, device=device)
    return {name: t.to(dtype).requires_grad_() if t.is_floating_point() else t for name, t in tensors.items()}
