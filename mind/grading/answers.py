"""Finds the answer that a response states, and says whether it is right."""

from __future__ import annotations

from typing import NamedTuple

from mind.grading import answer_type
from mind.grading.answer_type import AnswerType
from mind.grading.marks import behind_marker, behind_phrase, boxed
from mind.grading.number_text import MAX_ANSWER_CHARACTERS
from mind.records import Grade, Question

MAX_RESPONSE_CHARACTERS = 20_000
"""Only so much of the end of a response is searched: an answer stands there, and longer texts have run away."""


class Judgement(NamedTuple):
    """What `judge_text` finds."""

    verdict: Grade
    extracted: str | None
    """The answer that the response states; None if it states none."""
    reason: str
    """A short phrase: why this verdict."""


def judge_text(response: str, question: Question) -> Judgement:
    """Whether `response` states the answer of `question`, which answer it states, and why that verdict."""
    kind = answer_type(question)
    stated = _stated(response, question, kind)
    if stated is None:
        return Judgement("unparsed", None, "no answer found")
    verdict, reason = kind.compare(stated, question)
    return Judgement(verdict, stated, reason)


def is_correct(stated: str | None, question: Question) -> bool:
    """Whether the answer `stated` is that of `question`, as its answer type compares them; None never is."""
    if stated is None:
        return False
    verdict, _ = answer_type(question).compare(stated[:MAX_ANSWER_CHARACTERS], question)
    return verdict == "right"


def extract_answer(response: str, question: Question) -> str | None:
    r"""The answer that `response` states, at most MAX_ANSWER_CHARACTERS long; None if it states none.

    In this order: the line after the last "####", unless that is a heading, with the answer in the text below it;
    the last \boxed{...}; what follows the last "answer is"; else what the answer type takes for an answer without a
    mark (`AnswerType.unmarked`).

    Only the last MAX_RESPONSE_CHARACTERS of `response` are looked at.
    """
    return _stated(response, question, answer_type(question))


def _stated(response: str, question: Question, kind: AnswerType) -> str | None:
    response = response[-MAX_RESPONSE_CHARACTERS:]
    stated = _behind_marker(response, question, kind) or boxed(response)
    if stated is None:
        phrase = behind_phrase(response, kind.is_formula)
        stated = (phrase and kind.in_phrase(phrase, question)) or kind.unmarked(response, question)
    return stated[:MAX_ANSWER_CHARACTERS] if stated else None


def _behind_marker(response: str, question: Question, kind: AnswerType) -> str | None:
    marked = behind_marker(response)
    if marked is None:
        return None
    line, below = marked
    if below and (boxed(below) is not None or kind.is_heading(line, below, question)):
        return None
    return behind_phrase(line, kind.is_formula) or line.strip() or None
