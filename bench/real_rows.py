"""Real rows for the loss benchmarks: hidden states, head and targets of SmolLM2-135M on teacher-forced rationales.

Random hidden states would flatter a loss: every probability is about 1/V there. These come from rationales, those of
a data file or else of the built-in word problems, through the embedded student (extra `demo`), and are kept in the
cache folder.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mind import word_problems
from mind.batches.packing import micro_batches
from mind.batches.trunk import labeled_hidden
from mind.config import StudentConfig
from mind.data.questions import load_questions
from mind.files import cache_folder
from mind.perspectives import PAPER_PERSPECTIVES
from mind.records import MicroBatch, PackOptions, Question
from mind.student.model import head_of, load_student
from mind.student.tokenization import tokenize

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SEED = 7  # of the word problems


def label(data: Path | None, rows: str) -> str:
    """Where the rows come from, in a word."""
    return f"SmolLM2-135M-Instruct, {f'{rows} of {data.name}' if data else f'word-problem {rows}'}"


def questions_of(rows: int, data: Path | None) -> list[Question]:
    """Questions whose rationales hold at least `rows` tokens: the first of a file, or word problems."""
    if data is None:
        return word_problems.generate(rows // 400 + 15, SEED)
    return load_questions(data, require_rationales=True)[: rows // 50 + 15]


def complete_questions(groups: int, rows: int, data: Path | None) -> list[Question]:
    """Questions with a rationale in every perspective, and at least `groups` answer positions and `rows` tokens."""
    if data is None:
        return word_problems.generate(max(rows // 400 + 15, groups // 3), SEED)
    questions = load_questions(data, require_rationales=True)
    count = len(perspectives_of(questions, data))
    return [question for question in questions if len(question.rationales) == count][: max(rows // 50 + 15, groups)]


def perspectives_of(questions: list[Question], data: Path | None) -> list[str]:
    if data is None:
        return list(PAPER_PERSPECTIVES)
    return sorted({rationale.perspective for question in questions for rationale in question.rationales})


@torch.no_grad()
def real_rows(rows: int, data: Path | None = None) -> Path:
    """A safetensors file with hidden (rows, 576) and weight (49152, 576) in float32 and target (rows,).

    `data` is what `mind data import` writes.
    """
    file = _file(f"rows-{rows}", data)
    if file.exists():
        return file
    student = load_student(StudentConfig())
    hidden, target, count = [], [], 0
    for states, batch in _labeled(*student, questions_of(rows, data), data):
        hidden.append(states)
        target.append(batch.target)
        count += len(batch.target)
        if count >= rows:
            break
    if count < rows:
        raise ValueError(f"the questions give {count} rows: expected at least {rows}")
    return _save(file, student[0], {"hidden": torch.cat(hidden)[:rows], "target": torch.cat(target)[:rows]})


@torch.no_grad()
def real_groups(groups: int, data: Path | None = None, rows: int | None = None) -> Path:
    """A safetensors file with answer_rows (groups, K): aligned answer positions of all K perspectives of a question.

    They index hidden (rows, 576), target (rows,) and segment (rows,), which number the rationales; weight (49152, 576)
    is the head. The other rows are the first of the same questions, or none where `rows` is None.
    """
    file = _file(f"groups-{groups}-{rows or 0}", data)
    if file.exists():
        return file
    student = load_student(StudentConfig())
    found: dict[str, list[Tensor]] = {"hidden": [], "target": [], "segment": [], "answer_rows": []}
    count = segments = positions = 0
    for states, batch in _labeled(*student, complete_questions(groups, rows or 0, data), data):
        for name, tensor in (
            ("hidden", states),
            ("target", batch.target),
            ("segment", batch.segment + segments),
            ("answer_rows", batch.answer_rows + count),
        ):
            found[name].append(tensor)
        count, segments = count + len(states), segments + batch.tokens.numel()
        positions += len(batch.answer_rows)
        if positions >= groups and count >= (rows or 0):
            break
    if positions < groups or count < (rows or 0):
        raise ValueError(
            f"the questions give {positions} groups and {count} rows: expected at least {groups} and {rows or 0}"
        )
    tensors = {name: torch.cat(parts) for name, parts in found.items()}
    return _save(file, student[0], _cut(tensors, groups, rows))


def _cut(tensors: dict[str, Tensor], groups: int, rows: int | None) -> dict[str, Tensor]:
    """The first groups, whole, and of all other rows as many of the first as make `rows` in all."""
    answer_rows = tensors["answer_rows"][:groups]
    answers = torch.zeros(len(tensors["hidden"]), dtype=torch.bool)
    answers[answer_rows.flatten()] = True
    size = rows or answer_rows.numel()
    if size < answer_rows.numel():
        raise ValueError(f"{groups} groups of {answer_rows.shape[1]} rows exceed the {size} rows")
    kept = answers.clone()
    kept[(~answers).nonzero()[: size - answer_rows.numel()]] = True
    place = kept.cumsum(0) - 1
    _, segment = tensors["segment"][kept].unique(return_inverse=True)
    return {
        "hidden": tensors["hidden"][kept],
        "target": tensors["target"][kept],
        "segment": segment,
        "answer_rows": place[answer_rows],
    }


def _labeled(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, questions: list[Question], data: Path | None
) -> Iterator[tuple[Tensor, MicroBatch]]:
    """Hidden states of the labeled rows, and their batch, two questions at a time."""
    perspectives = perspectives_of(questions, data)
    tokenized = tokenize(questions, tokenizer, perspectives, 1024)
    for start in range(0, len(tokenized), 2):
        for batch in micro_batches(
            tokenized[start : start + 2], len(perspectives), PackOptions(512, share_prompts=False)
        ):
            yield labeled_hidden(model.eval(), batch), batch


def _file(name: str, data: Path | None) -> Path:
    source = hashlib.sha256(data.read_bytes()).hexdigest()[:12] if data else SEED
    return cache_folder() / "bench" / f"smollm2-{name}-{source}.safetensors"


def _save(file: Path, model: PreTrainedModel, tensors: dict[str, Tensor]) -> Path:
    tensors["weight"] = head_of(model).weight.detach()
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial)
    return partial.replace(file)


def load_rows(file: str | Path, device: str = "cpu", dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """What a function above wrote, on `device`, with gradients wanted for hidden and weight, which become `dtype`."""
    tensors = load_file(file, device=device)
    return {name: t.to(dtype).requires_grad_() if t.is_floating_point() else t for name, t in tensors.items()}
