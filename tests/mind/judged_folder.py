"""A small data set that was generated and judged: what recipes start from."""

from __future__ import annotations

import json
from pathlib import Path

from sample_records import make_response

from mind.answer_line import suffix
from mind.cli import main
from mind.data.questions import save_questions
from mind.data.sources import SourceConfig
from mind.records import Question
from mind.teacher.config import GenerateConfig, ModelConfig
from mind.teacher.folder import DatasetFolder
from mind.teacher.journal import Journal
from mind.typed_json import save_json

QUESTIONS = [Question(f"q{n}", f"Ann has {n} pears and buys 7. How many has she?", str(n + 7)) for n in range(3)]
WAYS = {"planning": "Plan: add both. Then: {} plus 7.", "socratic": "What is sought? The sum of {} and 7, counted on."}
WRONG = ("q1", "planning")
"""The one answer that is wrong."""


def judged_folder(path: Path) -> DatasetFolder:
    """Six answers, in the perspectives of WAYS, to QUESTIONS."""
    names = DatasetFolder(path)
    path.mkdir()
    save_questions(QUESTIONS, names.questions)
    with Journal(names.responses) as journal:
        journal.append(
            make_response(question.id, name, text=_text(question, name, (question.id, name) == WRONG))
            for question in QUESTIONS
            for name in WAYS
        )
    teacher = ModelConfig("m", base_url="http://127.0.0.1:9/v1", seed=1)
    save_json(GenerateConfig(str(path), SourceConfig("gone.jsonl"), teacher, samples=4), names.config)
    names.prompts.write_text(json.dumps({name: f"Be {name}." for name in WAYS}))
    assert main(["judge", str(path)]) == 0
    return names


def _text(question: Question, perspective: str, wrong: bool) -> str:
    text = WAYS[perspective].format(question.id[1:])
    return (text.replace("7", "8") if wrong else text) + suffix(str(int(question.answer) + wrong))
