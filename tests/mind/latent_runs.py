"""Run folders of experts: one that `mind train` wrote, and copies of it with other weights and configurations."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from small_run import write_student
from tiny import NAMES, build_model, build_questions

from mind import train
from mind.config import DataConfig, MindConfig, StudentConfig, TrainConfig
from mind.data.questions import save_questions


def complete(count: int, start: int = 200):
    """Sums with all three rationales that the runs have not seen."""
    questions = [question for question in build_questions(2 * (start + count))[start:] if len(question.rationales) == 3]
    return questions[:count]


def train_expert(folder: Path) -> Path:
    """A real run of one step with LoRA, of the first perspective, with all its data in files."""
    save_questions(build_questions(10), folder / "train.jsonl")
    save_questions(build_questions(2), folder / "nll.jsonl")
    student = write_student(folder / "model", build_model())
    files = {"train": str(folder / "train.jsonl"), "heldout": str(folder / "nll.jsonl")}
    config = MindConfig(
        output=str(folder / "run"),
        method="single",
        student=StudentConfig(student, max_length=512, lora=True, lora_rank=2),
        data=DataConfig(**files, perspectives=NAMES, only=NAMES[0]),
        train=TrainConfig(questions_per_step=2, max_steps=1, learning_rate=1e-3, report_to="none"),
    )
    return train(config).path


def another(run: Path, folder: Path, perspective: str, seed: int, null: int | None = None, noise: float = 0.02) -> Path:
    """A copy of a run that says to be of another perspective and seed, and whose student is another one."""
    shutil.copytree(run, folder, ignore=shutil.ignore_patterns("checkpoint-*"))
    config = json.loads((folder / "config.json").read_text())
    config["data"] |= {"only": perspective, "shuffle_perspectives": null}
    config["train"]["seed"] = seed
    (folder / "config.json").write_text(json.dumps(config))
    status = json.loads((folder / "status.json").read_text()) | {"wall_s": hash_of(folder.name)}
    (folder / "status.json").write_text(json.dumps(status))
    file = folder / "student" / "model.safetensors"
    torch.manual_seed(hash_of(folder.name))
    weights = {key: weight + noise * torch.randn_like(weight) for key, weight in load_file(file).items()}
    save_file(weights, file, metadata={"format": "pt"})
    return folder


def hash_of(name: str) -> int:
    return sum(place * ord(letter) for place, letter in enumerate(name, 1))


def grid(run: Path, folder: Path, seeds: int = 2, null: bool = True) -> list[str]:
    """Folders of experts of all perspectives in `folder`, and of null experts if asked for."""
    kinds = {"expert": None} | ({"null": 7} if null else {})
    return [
        str(another(run, folder / f"{kind}-{name}-{seed}", name, seed, dealt))
        for kind, dealt in kinds.items()
        for seed in range(seeds)
        for name in NAMES
    ]


def with_all(questions, **changes):
    """The questions with these fields in each."""
    return [dataclasses.replace(question, **changes) for question in questions]
