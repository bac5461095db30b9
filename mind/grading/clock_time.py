"""Clock times: 9:15, 15:20, 3:20 p.m., 10 am."""

from __future__ import annotations

import re

from mind.grading.answer_type import AnswerType
from mind.grading.plain_text import without_latex_text
from mind.records import Grade, Question

_HALF = r"(?:\s?([ap])\.?\s?m\b\.?)"
_TIME = re.compile(
    rf"(?<![\w:.])([01]?[0-9]|2[0-4])(?::([0-5][0-9])(?::([0-5][0-9]))?{_HALF}?|{_HALF})(?![\w:])", re.IGNORECASE
)
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?![ap]\.?m)|\n")
_RANGE = re.compile(r"\s?(?:-|to|and|or|until)\s?")
_HOUR_ALONE = re.compile(r"\b([0-9]{1,2})\so'clock", re.IGNORECASE)
_HALF_IN_WORDS = re.compile(
    r"(?<=[0-9])(?:\s?(?:[ap]\.?m\.?|h))?\s(?:in\sthe\s(?:(morning)|afternoon|evening))\b", re.IGNORECASE
)
_POINT = re.compile(r"(?<![0-9.])([0-9]{1,2})\.(?=[0-5][0-9]\s?[ap]\.?\s?m\b)", re.IGNORECASE)
_OTHER = re.compile(
    r"(?:\b(?:quarter|half|minutes?|hours?|(?<![:0-9])[0-9]{1,2})\s(?:past|to|before|after|of|till)|\b(?:before|after|past|than))\s\Z",
    re.IGNORECASE,
)
"""Words directly before a time that make another one of it: "half past 3 pm"."""
_TWELVE = re.compile(r"\W*(?:at\s)?(?:12(?::00)?\s)?(?:(noon|midday)|midnight)\W*", re.IGNORECASE)
Time = tuple[int, bool | None]
"""Seconds since midnight (modulo 12 hours if "am" or "pm" is known), and whether it is "am" (False) or "pm" (True);
None: unknown."""


class ClockTime(AnswerType):
    """Compared to the second. "3:20 pm" equals 15:20, and also 3:20; whether 15:20 equals 3:20 is undecided."""

    name = "time"
    request = "the time"

    def fits(self, question: Question) -> bool:
        return question.choices is None and _TIME.fullmatch(_plain(question.answer).strip()) is not None

    def marked(self, statement: str, question: Question) -> str | None:
        """The time that `statement` begins with, else as `unmarked`."""
        text = _plain(statement).strip(" \"'")
        first = _TIME.match(text)
        second = _TIME.search(text, first.end()) if first else None
        if first and not (second and _RANGE.fullmatch(text, first.end(), second.start())):
            return first[0]
        return self.unmarked(text, question)

    def unmarked(self, text: str, question: Question) -> str | None:
        """The only time in the last sentence with times, apart from those that the question states."""
        given = {_read(match) for match in _TIME.finditer(_plain(question.question))}
        for sentence in reversed(_SENTENCE_END.split(_plain(text))):
            _, _, result = sentence.rpartition("=")
            sentence = result if _TIME.search(result) else sentence
            found = {_read(match): match[0] for match in _TIME.finditer(sentence)}
            new = {time: written for time, written in found.items() if time not in given} or found
            if new:
                time = next(iter(new.values()))
                return None if len(new) > 1 or _OTHER.search(sentence.partition(time)[0]) else time
        return None

    def compare(self, stated: str, question: Question) -> tuple[Grade, str]:
        written = self.marked(stated, question)
        match = _TIME.search(written) if written else None
        gold = _TIME.search(_plain(question.answer))
        if match is None or gold is None:
            return "unparsed", "not a time"
        if _OTHER.search(_plain(stated).partition(match[0])[0]):
            return "unparsed", "before or after the time"
        if not _same(_read(match), _read(gold)):
            return "wrong", "another time"
        hours = {_hours(match), _hours(gold)}
        return ("unparsed", "morning or evening") if hours == {None, 24} else ("right", "the same time")


def _plain(text: str) -> str:
    """`text` without LaTeX, in which digits and "am" or "pm" replace "9 o'clock in the morning" or "noon"."""
    text = without_latex_text(text.replace("{:}", ":"))
    if twelve := _TWELVE.fullmatch(text):
        return "12:00 pm" if twelve[1] else "12:00 am"
    text = _POINT.sub(r"\1:", _HOUR_ALONE.sub(r"\1:00", text))
    return _HALF_IN_WORDS.sub(lambda match: " am" if match[1] else " pm", text)


def _read(match: re.Match[str]) -> Time:
    hour, half = int(match[1]), (match[4] or match[5] or "").lower()
    seconds = 60 * int(match[2] or 0) + int(match[3] or 0)
    if hour > 12 or hour == 0:
        return 3600 * (hour % 12) + seconds, 12 <= hour < 24
    return 3600 * (hour % 12) + seconds, half == "p" if half else None


def _hours(match: re.Match[str]) -> int | None:
    """12 for a time with "am" or "pm", 24 for one that only a 24-hour clock shows; None for others."""
    if match[4] or match[5]:
        return 12
    return 24 if int(match[1]) > 12 or int(match[1]) == 0 else None


def _same(one: Time, other: Time) -> bool:
    return one[0] == other[0] and (None in (one[1], other[1]) or one[1] == other[1])
