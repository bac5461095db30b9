"""Extracts the general rules from a teacher's answers to the prompt for knowledge. These answers cannot be judged."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from mind.answer_line import ANSWER_MARKER, answer_part
from mind.curation.leaks import leaks_answer
from mind.grading import answer_type
from mind.grading.answers import with_final_answer
from mind.grading.marks import marks
from mind.records import Question, Response
from mind.teacher.completion import is_cut_off

MAX_RULE_CHARACTERS = 500
"""Longest rule, in characters: a longer line is rather a solution [ours]."""

_ITEM = re.compile(r"\s*+(?:[-*•]|\(?\d{1,2}[.):])\s++")
"""Numbers or marks at the start of list items."""
_WORD = re.compile(r"[^\W_]")
_MARKS = "*_`# "
"""Marks that Markdown puts around a text."""


def with_knowledge(questions: Sequence[Question], responses: Sequence[Response]) -> list[Question]:
    """The questions, each with the rules of the first of its `responses` that states any; the others unchanged."""
    known = {question.id: question for question in questions}
    stated: dict[str, tuple[str, ...]] = {}
    for response in responses:
        name = response.key.question
        if name in known and name not in stated and (rules := rules_of(response, known[name])):
            stated[name] = rules
    return [replace(one, knowledge=stated[one.id]) if one.id in stated else one for one in questions]


def rules_of(response: Response, question: Question) -> tuple[str, ...]:
    """The rules that `response` states, one per line, without numbering and without repetition.

    Left out are headings ("# Rules"), and lines that announce others ("**The rules:**"), that state an answer, right or
    wrong ("The answer is 26."), or that are longer than MAX_RULE_CHARACTERS. A response that was cut off gives no
    rules, since its last rule is incomplete.
    """
    if is_cut_off(response):
        return ()
    lines = (_ITEM.sub("", line, count=1).strip() for line in answer_part(response.text).splitlines())
    rules = dict.fromkeys(line for line in lines if _WORD.search(line) and not _is_heading(line))
    return tuple(
        rule
        for rule in rules
        if len(rule) <= MAX_RULE_CHARACTERS and not leaks_answer(rule, question) and not _answers(rule, question)
    )


def _answers(line: str, question: Question) -> bool:
    """Whether the line states an answer of the question's type."""
    question = with_final_answer(question)
    kind = answer_type(question)
    return ANSWER_MARKER in line or any(kind.marked(mark.statement.strip(), question) for mark in marks(line))


def _is_heading(line: str) -> bool:
    return line.startswith("#") or line.strip(_MARKS).endswith(":")
