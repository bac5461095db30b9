"""Reads a data set that was generated and judged from its folder: the input of filters and recipes."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mind.data.questions import load_questions
from mind.errors import require
from mind.files import read_object
from mind.perspectives import KNOWLEDGE
from mind.provenance import file_digest
from mind.records import Key, Question, Response, Verdict
from mind.teacher.config import GenerateConfig
from mind.teacher.folder import DatasetFolder
from mind.teacher.journal import load_responses, load_wasted
from mind.teacher.judge import load_verdicts
from mind.teacher.requests import Wasted
from mind.typed_json import described, load_json


@dataclass(frozen=True)
class JudgedData:
    """Questions, the teacher's responses to them with a verdict on each rationale, and the configuration that made
    them."""

    questions: Sequence[Question]
    responses: Sequence[Response]
    """The responses that are rationales."""
    verdicts: Mapping[Key, Verdict]
    config: GenerateConfig
    prompts: Mapping[str, str]
    """Perspective -> prompt; for a recipe, its prompts by their names."""
    questions_digest: str
    """SHA-256 of the file of questions."""
    others: Sequence[Response] = ()
    """Responses that state general rules, at most one per question."""
    wasted: Sequence[Wasted] = ()
    """Attempts that gave no usable answer and may have been paid for."""

    @property
    def price(self) -> tuple[float, float] | None:
        """The teacher's price per million prompt tokens and per million answer tokens; None if none was given."""
        return self.config.prices.get(self.config.teacher.model)


def load_judged(path: Path) -> JudgedData:
    """The data set in the folder `path`; raises MindError for a missing or a faulty file."""
    folder = DatasetFolder(path)
    every = list(load_responses(folder.responses))
    questions = load_questions(folder.questions)
    command = shlex.join(["mind", "data", "judge", str(path)])
    require(folder.verdicts.is_file(), f"{folder.verdicts}: no such file: run `{command}` first")
    return JudgedData(
        questions,
        [response for response in every if response.key.perspective != KNOWLEDGE],
        load_verdicts(folder.verdicts),
        load_json(folder.config, GenerateConfig),
        stored_prompts(folder.prompts),
        file_digest(folder.questions),
        [response for response in every if response.key.perspective == KNOWLEDGE],
        list(load_wasted(folder.wasted)) if folder.wasted.exists() else [],
    )


def stored_prompts(file: Path) -> dict[str, str]:
    """The prompts by name that `mind data generate` wrote; raises MindError unless they are an object of texts."""
    prompts = read_object(file)
    for perspective, prompt in prompts.items():
        require(
            isinstance(prompt, str), f"{file}: the prompt of {perspective} is {described(prompt)}: expected a string"
        )
    return prompts
