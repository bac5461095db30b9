"""Asks a student the questions of evaluation sets and keeps its answers; each set is written in one step."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mind.asking import AskingConfig
from mind.config import StudentConfig
from mind.data.questions import load_questions
from mind.errors import PausedError
from mind.files import json_rows

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Asked(NamedTuple):
    """One set of questions, and how it is asked."""

    file: Path
    """The file of its questions."""
    max_new_tokens: int
    questions: int | None = None
    """Number of questions to ask, from the first; None: all."""


class Student:
    """A student that is loaded at its first use."""

    def __init__(self, config: StudentConfig, asking: AskingConfig, before: str, pause_at: float | None) -> None:
        """`asking` says how it is asked, except for the token limit of a response; `before` are the words before each
        question; no set is begun after `pause_at`."""
        self._config, self._asking, self._before, self._pause_at = config, asking, before, pause_at
        self._loaded: tuple[PreTrainedModel, PreTrainedTokenizerBase] | None = None

    @property
    def loaded(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """The model, on its device and in evaluation mode, and its tokenizer."""
        if self._loaded is None:
            import torch

            from mind.student.model import load_student

            model, tokenizer = load_student(self._config)
            model.to("cuda" if torch.cuda.is_available() else "cpu")  # pyright: ignore[reportArgumentType]
            model.eval()
            self._loaded = model, tokenizer
        return self._loaded

    def answer(self, sets: Mapping[str, Asked], place: Path) -> dict[str, list[dict[str, Any]]]:
        """The rows (`mind.evaluation.outcomes.outcome`) of each set, kept as NAME.jsonl in the folder `place`. Existing
        ones are read, the others are made. Raises PausedError if one is missing and it is time to pause."""
        return {name: self._rows(name, asked, place / f"{name}.jsonl") for name, asked in sets.items()}

    def _rows(self, name: str, asked: Asked, file: Path) -> list[dict[str, Any]]:
        partial = file.with_name(f".{name}")
        if not file.exists():
            if self._pause_at is not None and time.monotonic() >= self._pause_at:
                raise PausedError(f"{file}: paused before its questions were asked")
            from mind.evaluation.evaluate import answer_accuracy

            questions = load_questions(asked.file)[: asked.questions]
            config = replace(self._asking, max_new_tokens=asked.max_new_tokens)
            answer_accuracy(*self.loaded, {name: questions}, config, partial, self._before)
            os.replace(partial / file.name, file)
        shutil.rmtree(partial, ignore_errors=True)  # also the remains of a killed process
        return [row for _, row in json_rows(file)]
