"""Finds the answer that a response states and tells whether it is right: numbers, choices, yes/no and LaTeX.

Every pattern here is linear in its text, because responses come from a model and may be arbitrarily odd.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Literal, NamedTuple

from mind.answer_line import ANSWER_MARKER
from mind.grading.latex_equality import LATEX_TIMEOUT_SECONDS, latex_equality, normal_latex
from mind.grading.numeric import (
    MAX_ANSWER_CHARACTERS,
    concluding_number,
    equal_in_cents,
    is_number,
    number_value,
    plain,
)
from mind.records import Question

AnswerKind = Literal["number", "choice", "yes_no", "latex"]
Verdict = Literal["right", "wrong", "unparsed"]

MAX_RESPONSE_CHARACTERS = 20_000
"""Only so much of the end of a response is searched: an answer stands there, and longer texts have run away."""

_LATEX_SIGNS = re.compile(r"[\\^_{]")
_FORMULA_SIGNS = re.compile(r"[0-9\\$^_={]")
_WORD_OR_EQUATION = re.compile(r"[^\W\d_]{2}|=")
_ALTERNATIVES = re.compile(r"[0-9]%?\s+or\s+[-$]?[0-9]")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n")
# "To get the answer:" and a line break introduce a calculation.
_ANSWER_PHRASE = re.compile(
    r"\banswer(?:\s+is[\s:*]*|\s*[:=][:* \t]*(?=[^\s:*])"
    r"|(?<!the answer)(?<!this answer)(?<!that answer)(?<!our answer)(?<!your answer)(?<!same answer)\s*[:=][\s:*]*)",
    re.IGNORECASE,
)
_PHRASE_END = re.compile(r"(?<!\\)[.!?](?=\s|\Z)|\n")
_FORMULA = re.compile(r"\$\$[^$]+\$\$|\$(?:\\.|[^$\n\\])+\$|\\\([^\n]*?\\\)|\\\[.*?\\\]", re.DOTALL)
_YES_NO = re.compile(r"\b(?:yes|no)\b", re.IGNORECASE)


_LATEX_VERDICTS: dict[str, tuple[Verdict, str]] = {
    "equal": ("right", "equal as LaTeX"),
    "different": ("wrong", "different as LaTeX"),
    "unparsed": ("unparsed", "not readable as LaTeX"),
    "timeout": ("unparsed", f"no result within {LATEX_TIMEOUT_SECONDS} s"),
}


class Judgement(NamedTuple):
    """What `judge_text` finds."""

    verdict: Verdict
    """"unparsed": no answer was found in the response, or it could not be compared."""
    extracted: str | None
    """The answer that the response states."""
    reason: str
    """A short phrase: why this verdict."""


def answer_kind(question: Question) -> AnswerKind:
    """How the answer of `question` is written, and so how answers to it are compared.

    A plain integer, decimal, fraction or percentage, with or without a currency sign and thousands commas, is a
    "number"; every other answer without choices is "latex".
    """
    if question.choices is not None:
        return "yes_no" if {label.lower() for label in question.choices} == {"yes", "no"} else "choice"
    return "number" if is_number(question.answer) else "latex"


def judge_text(response: str, question: Question) -> Judgement:
    """Whether `response` states the answer of `question`, which answer it states, and why that verdict."""
    extracted = extract_answer(response, question)
    if extracted is None:
        return Judgement("unparsed", None, "no answer found")
    verdict, reason = _verdict(extracted, question)
    return Judgement(verdict, extracted, reason)


def is_correct(extracted: str | None, question: Question) -> bool:
    """Whether `extracted` is the answer of `question`; None never is.

    Numbers are equal as exact fractions, whatever their commas, currency, percent sign or trailing unit, and dollars
    where the question asks for cents (`equal_in_cents`); choices by label or by text and yes/no by word, both in any
    case; LaTeX by `latex_equality`, which counts as wrong what has no result in LATEX_TIMEOUT_SECONDS.
    """
    return extracted is not None and _verdict(extracted, question)[0] == "right"


def extract_answer(response: str, question: Question) -> str | None:
    """The answer that `response` states, at most MAX_ANSWER_CHARACTERS long; None where it states none.

    In this order: the line after the last "####", unless that is a heading, with the answer in the text below it;
    the last \\boxed{...}; what follows the last "answer is"; else, by the kind of the answer, the number that the text
    concludes with (`concluding_number`), the last "(B)" or "B." or the one choice whose text the last sentence that
    mentions any mentions, the last "yes" or "no". A LaTeX answer must be marked in one of the first three ways.

    Only the last MAX_RESPONSE_CHARACTERS of `response` are looked at.
    """
    response = response[-MAX_RESPONSE_CHARACTERS:]
    kind = answer_kind(question)
    stated = _after_marker(response, question, kind) or _boxed(response)
    if stated is None:
        stated = _after_phrase(response, kind)
        if kind != "latex" and not (stated and _FORMULA.fullmatch(stated)):
            stated = (stated and _unmarked(stated, question, kind)) or _unmarked(response, question, kind)
    return stated[:MAX_ANSWER_CHARACTERS] if stated else None


def _verdict(extracted: str, question: Question) -> tuple[Verdict, str]:
    """The verdict and its reason."""
    extracted = extracted[:MAX_ANSWER_CHARACTERS]
    kind = answer_kind(question)
    if kind == "latex":
        return _LATEX_VERDICTS[latex_equality(question.answer, extracted)]
    if kind == "number":
        return _number_verdict(extracted, question)
    label = (_stated_word if kind == "yes_no" else _stated_label)(extracted, question.choices)
    if label is None:
        return "unparsed", "none of the choices"
    return (
        ("right", f"choice {label}")
        if label == question.answer
        else ("wrong", f"choice {label}, not {question.answer}")
    )


def _number_verdict(extracted: str, question: Question) -> tuple[Verdict, str]:
    value = _stated_number(extracted, question.question)
    if value is None and _WORD_OR_EQUATION.search(extracted) and not _LATEX_SIGNS.search(extracted):
        return "unparsed", "not a number"
    if value is None:
        return _LATEX_VERDICTS[latex_equality(question.answer, extracted)]
    if value == number_value(question.answer):
        return "right", "equal as numbers"
    if equal_in_cents(extracted, question.answer, question.question):
        return "right", "equal in cents"
    return "wrong", "different as numbers"


def _after_marker(response: str, question: Question, kind: AnswerKind) -> str | None:
    _, marker, rest = response.rpartition(ANSWER_MARKER)
    line, _, below = rest.strip().partition("\n")
    if not marker or (below and _is_heading(line, below, question, kind)):
        return None
    return _after_phrase(line, kind) or line.strip() or None


def _is_heading(line: str, below: str, question: Question, kind: AnswerKind) -> bool:
    """Whether `line` only announces the answer that stands `below` it, such as "Final answer"."""
    if _boxed(below) is not None:
        return True
    if kind == "latex":
        return _FORMULA_SIGNS.search(line) is None and _after_phrase(below, kind) is not None
    return _unmarked(line, question, kind) is None


def _boxed(response: str) -> str | None:
    start = response.rfind("\\boxed{")
    if start < 0:
        return None
    start += len("\\boxed{")
    depth = 1
    for brace in re.finditer(r"[{}]", response[start:]):
        depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            return response[start : start + brace.start()].strip() or None
    return None


def _after_phrase(response: str, kind: AnswerKind) -> str | None:
    """What follows the last "answer is" or "answer:": the formula right behind it, or the rest of the sentence."""
    end = max((match.end() for match in _ANSWER_PHRASE.finditer(response)), default=None)
    if end is None:
        return None
    formula = _FORMULA.match(response, end)
    if formula and (kind == "latex" or _LATEX_SIGNS.search(formula[0])):  # and not from one price to the next
        return formula[0]
    return _PHRASE_END.split(response[end:], maxsplit=1)[0].strip(" \t*") or None


def _unmarked(text: str, question: Question, kind: AnswerKind) -> str | None:
    if kind == "number":
        return concluding_number(text, question.question)
    if kind == "choice":
        return _stated_label(text, question.choices)
    words = _YES_NO.findall(text)
    return words[-1] if words else None


def _stated_number(extracted: str, question: str) -> Fraction | None:
    """The number that `extracted` is or, where it is a sentence, concludes with; None for other formulas."""
    value = number_value(normal_latex(extracted) if _LATEX_SIGNS.search(extracted) else extracted)
    if value is not None or not _is_sentence(extracted):
        return value
    number = concluding_number(extracted, question)
    return number_value(number) if number else None


def _is_sentence(extracted: str) -> bool:
    return _WORD_OR_EQUATION.search(extracted) is not None and not (
        _LATEX_SIGNS.search(plain(extracted)) or _ALTERNATIVES.search(extracted)
    )


def _stated_word(extracted: str, choices: Mapping[str, str]) -> str | None:
    """The label "yes" or "no" of the first such word."""
    word = _YES_NO.search(extracted)
    return next((label for label in choices if word and label.lower() == word[0].lower()), None)


def _stated_label(text: str, choices: Mapping[str, str]) -> str | None:
    """The label of the choice that `text` is, else of the one that it names last."""
    bare = text.strip(" \t\n*`.:()[]").lower()
    for label, choice in choices.items():
        if bare in (label.lower(), choice.strip().lower()):
            return label
    labels = {label.lower(): label for label in choices}
    any_label = "|".join(map(re.escape, choices))
    # "(B)" in any case, but a bare label in its own only: "a." ends many sentences that do not choose "A". Of ASCII
    # letters, because "ſ" is an "s" in any case, but not in lower case.
    marked = re.findall(rf"(?ai:\(({any_label})\))|(?<![\w'])({any_label})(?:[.):](?!\w)|\Z)", text)
    if marked:
        return labels["".join(marked[-1]).lower()]
    by_text = {choice.strip().lower(): label for label, choice in choices.items()}
    # "book store" is not a mention of "store" as well.
    longest_first = "|".join(map(re.escape, sorted(by_text, key=len, reverse=True)))
    any_choice = re.compile(rf"(?<!\w)(?:{longest_first})(?!\w)")
    for sentence in reversed(_SENTENCE_END.split(text)):
        mentioned = {by_text[choice] for choice in any_choice.findall(sentence.lower())}
        if mentioned:
            return mentioned.pop() if len(mentioned) == 1 else None
    return None
