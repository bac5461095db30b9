"""Dates with the name of a month: July 4, the 4th of July 1776, Thursday, 4 Jul 1776."""

from __future__ import annotations

from mind.grading.answer_type import AnswerType
from mind.grading.calendar_day import Day, days_in, same_day
from mind.grading.number_notation import ORDINAL, in_digits
from mind.grading.plain_text import bare, sentences
from mind.grading.words import compare_words
from mind.records import Grade, Question

_ANY_DAY = "thatday"
"""Stands for the date of a statement while the words around it are judged."""


class Date(AnswerType):
    """Compared as days of the calendar, in any notation. A date without a year may be in any year, and is undecided if
    the other one has a year."""

    name = "date"
    request = "the date"

    def fits(self, question: Question) -> bool:
        return question.choices is None and named_day(question.answer) is not None

    def marked(self, statement: str, question: Question) -> str | None:
        return statement

    def unmarked(self, text: str, question: Question) -> str | None:
        """The last sentence, if it states the gold answer: of another date it is unknown what happens then."""
        last = sentences(text)[-1:]
        return last[0] if last and self.compare(last[0], question)[0] == "right" else None

    def compare(self, stated: str, question: Question) -> tuple[Grade, str]:
        gold = named_day(question.answer)
        assert gold is not None
        return compare_day(stated, gold)

    def mentions_gold(self, sentence: str, question: Question) -> bool:
        gold = named_day(question.answer)
        return gold is not None and any(same_day(day, gold)[0] == "right" for day in days_in(_plain(sentence)))


def named_day(text: str) -> Day | None:
    """The date that `text` is, if it has the name of its month; None for another text."""
    text = _plain(text)
    day = next(iter(days_in(text)), None)
    return day if day and day.notation == "named" and (day.start, day.end) == (0, len(text)) else None


def compare_day(stated: str, gold: Day) -> tuple[Grade, str]:
    """Whether `stated` says that the day is `gold`: it has no other date, and no more words than an answer may have."""
    text = _plain(stated)
    days = days_in(text)
    if not days:
        return "unparsed", "not a date"
    if any(day.days != days[0].days for day in days):
        return "unparsed", "several dates"
    for day in reversed(days):
        text = f"{text[: day.start]}{_ANY_DAY}{text[day.end :]}"
    verdict, _ = compare_words(_ANY_DAY, text)
    return same_day(days[0], gold) if verdict == "right" else ("unparsed", "more than a date")


def _plain(text: str) -> str:
    """`text` without LaTeX and signs around it, with ordinals in digits."""
    text = bare(text)
    return in_digits(text) if ORDINAL.search(text) else text
