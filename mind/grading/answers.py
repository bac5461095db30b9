"""Finds the answer that a response states, and decides whether it is right.

First, mind/grading/marks.py finds the part of the response that is marked as its answer, or that concludes it. Then an
answer type (in mind.grading.ANSWER_TYPES) finds the answer in that part and compares it with the gold answer. What
cannot be decided is "unparsed", never "right".
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

from mind.answer_line import ANSWER_MARKER, answer_part
from mind.grading import answer_type
from mind.grading.answer_type import AnswerType
from mind.grading.marks import corrections, is_denied, is_heading, marks, replacement, turns, without_chatter
from mind.grading.plain_text import APPROXIMATELY, MAX_ANSWER_CHARACTERS, plain_text, sentences
from mind.records import Grade, Question

MAX_RESPONSE_CHARACTERS = 20_000
"""Only this many characters at the end of a response are searched: the answer is there, and longer texts ran out of
control."""


class Judgement(NamedTuple):
    """The result of `judge_text`."""

    verdict: Grade
    extracted: str | None
    """The answer that the response states; None if it states none."""
    reason: str
    """A short phrase with the reason for the verdict."""


def judge_text(response: str, question: Question) -> Judgement:
    """Whether `response` states the answer of `question`, which answer it states, and the reason for the verdict."""
    question = with_final_answer(question)
    kind = answer_type(question)
    stated = _stated(response, question, kind)
    if stated is None:
        return Judgement("unparsed", None, "no answer found")
    verdict, reason = _compared(stated, question, kind)
    return Judgement(verdict, stated, reason)


def is_correct(stated: str | None, question: Question) -> bool:
    """Whether the answer `stated` is that of `question`, compared by its answer type; False for None."""
    if stated is None:
        return False
    question = with_final_answer(question)
    verdict, _ = _compared(plain_text(stated[:MAX_ANSWER_CHARACTERS]), question, answer_type(question))
    return verdict == "right"


def extract_answer(response: str, question: Question) -> str | None:
    r"""The answer that `response` states, at most MAX_ANSWER_CHARACTERS long; None if it states none.

    In this order: the line after the last "####", unless that is a heading, with the answer in the text below it;
    the last \boxed{...}; <answer>...</answer> or {"answer": ...}; what follows the last "answer is"; else what the
    answer type takes for an answer without a mark (`AnswerType.unmarked`). A mark that holds no answer of the type is
    passed over. What follows a correction ("Wait, ...") comes first, and a question that the response asks itself, and
    answers, is no part of it.

    Only the last MAX_RESPONSE_CHARACTERS of `response` are looked at.
    """
    question = with_final_answer(question)
    return _stated(response, question, answer_type(question))


def with_final_answer(question: Question) -> Question:
    r"""`question` with its gold answer as the plain text that responses become, and only the final answer, if the gold
    answer is published with a solution.

    The final answer is the text after the last "####" (GSM8K), in the last \boxed{...} (MATH), or after "the answer
    is".
    """
    if question.choices is not None:
        return question
    answer = plain_text(question.answer)
    if any(mark in answer for mark in (ANSWER_MARKER, "\\boxed", "nswer")):
        marked = (mark.statement.strip() for mark in marks(answer))
        answer = next(filter(None, marked), answer)
    return question if answer == question.answer else dataclasses.replace(question, answer=answer)


def _compared(stated: str, question: Question, kind: AnswerType) -> tuple[Grade, str]:
    """The grade of `stated`; undecided if it denies its answer, takes it back, or says another one instead."""
    grade = kind.compare(stated, question)
    if grade[0] != "right" and len(parts := APPROXIMATELY.split(stated)) == 2:
        grades = [kind.compare(part, question) for part in parts]
        grade = next((one for one in grades if one[0] == "right"), grade)
    if grade[0] != "unparsed" and _denies(stated, question, kind):
        return "unparsed", "denied"
    new = replacement(stated) if grade[0] != "unparsed" else None
    if new is None:
        return grade
    verdict = kind.compare(new.answer, question)[0] if new.answer else "unparsed"
    if verdict == grade[0] or (verdict == "unparsed" and not new.is_withdrawn):
        return grade
    return "unparsed", "replaced by another answer"


def _denies(text: str, question: Question, kind: AnswerType) -> bool:
    """Whether `text` denies the answer that it states, which is no part of a gold answer such as "not enough"."""
    return not kind.reads_denials and is_denied(text) and not is_denied(f"It is {question.answer}")


def _stated(response: str, question: Question, kind: AnswerType) -> str | None:
    for turn in turns(plain_text(answer_part(response[-MAX_RESPONSE_CHARACTERS:]))):
        text = kind.readable(without_chatter(turn))
        for part, counts_unmarked in corrections(text):
            stated = _marked(part, question, kind, 0) or (counts_unmarked and _unmarked(part, question, kind))
            if stated:
                return stated[:MAX_ANSWER_CHARACTERS]
    return None


def _unmarked(text: str, question: Question, kind: AnswerType) -> str | None:
    """The answer that `text` states without a mark, if its last sentence does not deny it."""
    return (
        None if _denies(sentences(text)[-1] if text.strip() else "", question, kind) else kind.unmarked(text, question)
    )


def _marked(text: str, question: Question, kind: AnswerType, depth: int) -> str | None:
    """The answer in the most explicit mark of `text` that contains one; if there is none, the content of a mark
    itself."""
    unread = None
    for mark in marks(text):
        statement = mark.statement.strip()
        if not statement:
            continue
        is_answer = not is_heading(statement) and not (depth == 0 and "\\boxed" in mark.below)
        if is_answer and (reading := kind.marked(statement, question)):
            return statement if mark.is_whole or replacement(statement) or is_denied(statement) else reading
        if mark.is_whole:
            if depth == 0 and (
                below := _marked(mark.below, question, kind, 1) or _unmarked(mark.below, question, kind)
            ):
                return below
            unread = unread or (None if is_heading(statement) else statement)
    return unread
