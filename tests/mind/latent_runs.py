"""Run folders of experts: one that `mind train` wrote, and copies of it with other weights and another configuration."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import torch
from small_run import replaced
from tiny import NAMES, build_questions

from mind.cli import main
from mind.data.questions import save_questions


def complete(count: int, start: int = 200):
    """Sums with all three rationales that the runs have not seen."""
    questions = [question for question in build_questions(2 * (start + count))[start:] if len(question.rationales) == 3]
    return questions[:count]


def train_expert(folder: Path, arguments: list[str], *more: str) -> Path:
    """A real run of one step, of the first perspective, with all its data in files."""
    save_questions(build_questions(4), folder / "nll.jsonl")
    expert = replaced(arguments, "--method", "single", "--data.only", NAMES[0], "--train.max-steps", "1")
    expert = replaced(expert, "--train.save-steps", "1", "--train.report-to", "none", "--evaluation.max-new-tokens", "1")
    expert = replaced(expert, "--data.heldout", str(folder / "nll.jsonl"), "--train.warmup-ratio", "0")
    assert main([*expert, *more]) == 0
    return folder / "run"


def another(run: Path, name: str, perspective: str, seed: int, null: int | None = None, noise: float = 0.02) -> Path:
    """A copy of a run that says to be of another perspective and seed, and whose student is another one."""
    from safetensors.torch import load_file, save_file

    folder = run.with_name(name)
    shutil.copytree(run, folder, ignore=shutil.ignore_patterns("checkpoint-*"))
    config = json.loads((folder / "config.json").read_text())
    config["data"] |= {"only": perspective, "shuffle_perspectives": null}
    config["train"]["seed"] = seed
    (folder / "config.json").write_text(json.dumps(config))
    status = json.loads((folder / "status.json").read_text()) | {"wall_s": hash_of(name)}
    (folder / "status.json").write_text(json.dumps(status))
    file = folder / "student" / "model.safetensors"
    torch.manual_seed(hash_of(name))
    weights = {key: weight + noise * torch.randn_like(weight) for key, weight in load_file(file).items()}
    save_file(weights, file, metadata={"format": "pt"})
    return folder


def hash_of(name: str) -> int:
    return sum(place * ord(letter) for place, letter in enumerate(name, 1))


def grid(run: Path, seeds: int = 2, null: bool = True) -> list[str]:
    """Experts of all perspectives, and null experts if asked for."""
    kinds = {"expert": None} | ({"null": 7} if null else {})
    return [
        str(another(run, f"{kind}-{name}-{seed}", name, seed, dealt))
        for kind, dealt in kinds.items()
        for seed in range(seeds)
        for name in NAMES
    ]


def with_all(questions, **changes):
    """The questions with these fields in each."""
    return [dataclasses.replace(question, **changes) for question in questions]
