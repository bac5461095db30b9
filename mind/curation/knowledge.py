"""The general rules in what a teacher answered to the prompt for knowledge. No answer of theirs can be judged."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from mind.answer_line import ANSWER_MARKER, answer_part
from mind.curation.leaks import leaks_answer
from mind.records import Question, Response
from mind.teacher.completion import UNKNOWN, is_finished

MAX_RULE_CHARACTERS = 500
"""A longer line is no rule but a solution [ours]."""

_ITEM = re.compile(r"\s*+(?:[-*•]|\(?\d{1,2}[.):])\s++")
"""What numbers or marks the line of a list."""
_WORD = re.compile(r"[^\W_]")
_MARKS = "*_`# "
"""What Markdown puts around a text."""


def with_knowledge(questions: Sequence[Question], responses: Sequence[Response]) -> list[Question]:
    """The questions with the rules that `responses` to them state; those without a response as they are."""
    stated = {response.key.question: response for response in responses}
    return [
        replace(question, knowledge=rules_of(stated[question.id], question)) if question.id in stated else question
        for question in questions
    ]


def rules_of(response: Response, question: Question) -> tuple[str, ...]:
    """The rules that `response` states, a line each, without numbering and each once.

    None is a heading ("# Rules"), or a line that announces others ("**The rules:**"), that states the answer or that is
    longer than MAX_RULE_CHARACTERS. A response that was cut off has none at all: its last rule is a part of one.
    """
    if not is_finished(response) and response.finish_reason != UNKNOWN:
        return ()
    lines = (_ITEM.sub("", line, count=1).strip() for line in answer_part(response.text).splitlines())
    rules = dict.fromkeys(line for line in lines if _WORD.search(line) and not _is_heading(line))
    return tuple(
        rule
        for rule in rules
        if len(rule) <= MAX_RULE_CHARACTERS and ANSWER_MARKER not in rule and not leaks_answer(rule, question)
    )


def _is_heading(line: str) -> bool:
    return line.startswith("#") or line.strip(_MARKS).endswith(":")
