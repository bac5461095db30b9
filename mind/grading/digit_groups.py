"""Groups of digits that nobody calculates: dates 2024-01-05, scores 3-2, spans 1990-1995, telephone numbers, 0x1F."""

from __future__ import annotations

import re
from fractions import Fraction

from mind.grading.answer_type import AnswerType
from mind.grading.calendar_day import Day, days_in, is_moment, same_day, same_moment, stated_moment
from mind.grading.date import compare_day
from mind.grading.plain_text import sentences, without_latex_text
from mind.records import Grade, Question

_NUMBER = r"[$\u20ac\u00a3]?[0-9]++(?:\.[0-9]++)?"
_SPAN = rf"{_NUMBER}(?:\s?-{{1,2}}\s?{_NUMBER})+(?:\s?%|\s(?!pi\b)[A-Za-z]{{2,}}(?:\s[A-Za-z]+)*)?"
_BASED = r"0[xX][0-9A-Fa-f]+|0[oO][0-7]+|0[bB][01]+"
_GOLD = re.compile(rf"\s*(?:{_SPAN}|[0-9]+(?:/[0-9]+){{2,}}|[0-9]+(?:\.[0-9]+){{2,}}|{_BASED})\.?\s*")
_FOUND = re.compile(
    rf"(?<![\w.,/+*^=-])(?:{_BASED}"
    rf"|\(?{_NUMBER}\)?(?:(?:\s?(?:-{{1,2}}|/)\s?|\.){_NUMBER}|\s[0-9]{{3,4}}(?![0-9]))+)(?!\w|/|\s?[=+*^])"
)
_TO = re.compile(r"(?<=[0-9])\s(?:to|until|through)\s(?=[$\u20ac\u00a3]?[0-9])")
_BASE = re.compile(_BASED)
_BOUND = re.compile(r"\b(?:before|after|than|prior\sto)\s\Z", re.IGNORECASE)
_SEPARATOR = re.compile("[-/.]")


class DigitGroups(AnswerType):
    """Equal if the groups are, whatever separates them; numbers with 0x, 0o or 0b by value.

    A date may have its year first or last: 25.12.2024 is 2024-12-25; 03/05/2024 may be 2024-05-03, and is unparsed.
    As LaTeX, 2024-01-05 would equal 2024-05-01, and 3-2 would equal 2-1: differences of the same value.
    """

    name = "digit group"

    def fits(self, question: Question) -> bool:
        fits = _GOLD.fullmatch(_with_hyphen(question.answer)) is not None or is_moment(question.answer)
        return question.choices is None and fits

    def marked(self, statement: str, question: Question) -> str | None:
        """The groups in `statement`, else all of it."""
        found = self.unmarked(statement, question)
        return statement if found is None or _BOUND.search(statement.partition(found)[0]) else found

    def unmarked(self, text: str, question: Question) -> str | None:
        """The only groups of digits in the last sentence that has any."""
        moment, day = is_moment(question.answer), _day(question.answer)
        for sentence in reversed(sentences(without_latex_text(text))):
            if moment and (stated := stated_moment(sentence)):
                return stated
            if day and _is_named(sentence):
                return sentence if compare_day(sentence, day)[0] == "right" else None
            if found := {match[0] for match in _FOUND.finditer(_with_hyphen(sentence))}:
                return found.pop() if len(found) == 1 else None
        return None

    def compare(self, stated: str, question: Question) -> tuple[Grade, str]:
        day = _day(question.answer)
        if day and _is_named(stated):
            return compare_day(stated, day)
        gold, said = _with_hyphen(question.answer).strip().removesuffix("."), self.unmarked(stated, question)
        if said is not None and _BOUND.search(stated.partition(said)[0]):
            return "unparsed", "before or after it"
        if said is not None and is_moment(gold):
            return same_moment(said, gold)
        if said is None or bool(_BASE.fullmatch(said)) != bool(_BASE.fullmatch(gold)):
            return "unparsed", "not in the notation of the answer"
        if _values(said) == _values(gold):
            return "right", "the same groups of digits"
        if day:
            return _compared_dates(said, gold, day)
        return "wrong", "other groups of digits"


def _with_hyphen(text: str) -> str:
    """`text` with "3-5" for "3 to 5"."""
    return _TO.sub("-", text)


def _day(gold: str) -> Day | None:
    """The date that a gold answer is; None for other groups of digits, and for a date with a time of day."""
    return None if is_moment(gold) else next(iter(days_in(gold)), None)


def _compared_dates(said: str, gold: str, day: Day) -> tuple[Grade, str]:
    """The grade of other digits than those of `gold`, a date: 25.12.2024 is 12/25/2024, whose order is certain."""
    stated = next(iter(days_in(said)), None)
    if stated is None:
        return "unparsed", "not a date with a year of four digits"
    if stated.notation != day.notation or 1 in (len(stated.days), len(day.days)):
        return same_day(stated, day)
    unknown = stated.days == day.days and _SEPARATOR.findall(said) != _SEPARATOR.findall(gold)
    return ("unparsed", "day and month in unknown order") if unknown else ("wrong", "another date")


def _is_named(text: str) -> bool:
    """Whether `text` has a date with the name of a month."""
    return any(day.notation == "named" for day in days_in(text))


def _values(text: str) -> list[Fraction]:
    """The numbers of `text`; the points of 1.2.3 separate numbers."""
    if _BASE.fullmatch(text):
        return [Fraction(int(text, 0))]
    parts = re.findall(r"[0-9.]*[0-9]", text)
    return [Fraction(one) for part in parts for one in (part.split(".") if part.count(".") > 1 else [part])]
