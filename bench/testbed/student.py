"""The student of the testbed as a folder, and what it solves before any distillation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from bench.testbed.pretraining import CONTEXT, Pretraining, Shape, new_student, pretrain
from bench.testbed.texts import KNOWN, LEVEL_NAMES, REACH, Texts
from bench.testbed.tokenizer import build_tokenizer
from mind.config import EvaluationConfig
from mind.evaluation.evaluate import answer_accuracy
from mind.files import replacing_folder
from mind.provenance import versions
from mind.records import Question
from mind.typed_json import load_json, save_json
from mind.word_problems import generate

STUDENT = Path(__file__).with_name("student")
"""The one in the repository."""
RECORD = "pretraining.json"
VOCABULARY = 1400
_TEXTS = 1200
"""Questions of each group of families that the tokenizer is made from."""
_HELD_OUT = 100
"""Questions of each set that the curve is about."""
_LOOKS = 8
"""How often the accuracy is measured."""
_NEW_TOKENS = 80


@dataclass(frozen=True)
class Making:
    """What determines the student, beside the code and the versions."""

    steps: int = 1600
    seed: int = 0
    width: int = 128
    layers: int = 4
    heads: int = 4
    known: tuple[str, ...] = KNOWN


@dataclass(frozen=True)
class Record:
    """pretraining.json."""

    making: Making
    command: str
    versions: dict[str, str]
    parameters: int
    curve: list[dict[str, float]]


def is_made(folder: Path, making: Making) -> bool:
    """Whether the folder holds the student that is made so."""
    return (folder / RECORD).is_file() and load_json(folder / RECORD, Record).making == making


def make_student(making: Making, folder: Path) -> Record:
    """Pretrains the student and writes the folder in one step, in place of what is there."""
    tokenizer = build_tokenizer(_words(), VOCABULARY, CONTEXT)
    model = new_student(tokenizer, Shape(making.width, making.layers, making.heads), making.seed)
    held_out = held_out_questions(making.known)
    curve: list[dict[str, float]] = []
    look = max(making.steps // _LOOKS, 1)

    def watch(row: dict[str, float]) -> None:
        if row["step"] % look == 0 or row["step"] == making.steps:
            row |= accuracies(model, tokenizer, held_out)
        curve.append({name: round(value, 4) for name, value in row.items()})
        print("  ".join(f"{name} {value:g}" for name, value in curve[-1].items()), flush=True)

    config = Pretraining(steps=making.steps, seed=making.seed)
    pretrain(model, tokenizer, Texts(making.seed, known=making.known), config, watch, every=min(100, look))
    known = ["--known", *making.known] if making.known != KNOWN else []
    options = [f"--{name} {value}" for name, value in asdict(making).items() if name != "known"]
    record = Record(
        making,
        " ".join(["python -m bench.testbed", *options, *known]),
        versions(("torch", "transformers", "tokenizers")),
        sum(p.numel() for p in model.parameters()),
        curve,
    )
    with replacing_folder(folder) as partial:
        model.to(torch.float16).save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        save_json(record, partial / RECORD)
    return record


def held_out_questions(known: Sequence[str]) -> dict[str, list[Question]]:
    """Questions by set: of the families whose solutions the student sees, of all to train on, and of those held out."""
    groups: dict[str, str | Sequence[str]] = {"known": known, "id": "train", "ood": "ood"}
    return {
        name: generate(_HELD_OUT, 0, levels=LEVEL_NAMES, families=families, reach=REACH, part="validation")
        for name, families in groups.items()
    }


def accuracies(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, sets: Mapping[str, Sequence[Question]]
) -> dict[str, float]:
    """By set, by greedy generation."""
    config = EvaluationConfig(questions=None, batch_size=256, max_new_tokens=_NEW_TOKENS)
    results: dict[str, dict[str, Any]] = answer_accuracy(model, tokenizer, sets, config)
    return {name: result["accuracy"] for name, result in results.items()}


def _words() -> list[str]:
    """The texts that the tokenizer is made from."""
    return [
        text
        for families in ("train", "ood")
        for question in generate(_TEXTS, 0, levels=LEVEL_NAMES, families=families, reach=REACH, part="train")
        for text in (question.question, *(rationale.text for rationale in question.rationales), "\n#### 1")
    ]
