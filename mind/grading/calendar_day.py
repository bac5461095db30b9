"""Dates in digits or with the name of a month, and moments: a date with a time of day, as tables write them
(2024-05-03 14:30:00).

Every pattern takes time linear in the length of its text, because a model may write any text.
"""

from __future__ import annotations

import calendar
import re
from typing import Literal, NamedTuple

from mind.records import Grade

_YEAR_FIRST = "(?P<year>[0-9]{4})(?P<sign>[-/.])[0-9]{1,2}(?P=sign)[0-9]{1,2}"
_YEAR_LAST = "[0-9]{1,2}(?P<by>[-/.])[0-9]{1,2}(?P=by)[0-9]{4}"
_DAY_TEXT = f"(?:{_YEAR_FIRST}|{_YEAR_LAST})"
_DAY = re.compile(rf"(?<![\w./-]){_DAY_TEXT}(?=T[0-9]|(?![\w/-]|\.[0-9]))")
_CLOCK = r"[0-9]{1,2}:[0-9]{2}(?::[0-9]{2}(?:\.0+)?)?"
_ZONE = r"(?:Z|\s?UTC|\+00:?00)?"
_TIME = re.compile(rf"(?:(?<=[0-9]T)|(?<![\w:.])){_CLOCK}(?=Z|\+00|(?![\w:]|\s?[ap]\.?m\b))", re.IGNORECASE)
_MOMENT = re.compile(rf"\s*{_DAY_TEXT}(?:T|\s+){_CLOCK}{_ZONE}\s*")

MONTHS = ("january", "february", "march", "april", "may", "june")
MONTHS += ("july", "august", "september", "october", "november", "december")
_WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_FULL_NAMES = {short: name for name in (*MONTHS, *_WEEKDAYS) for short in (name, name[:3])}
_FULL_NAMES |= {name[:length]: name for name in _WEEKDAYS for length in (4, 5)} | {"sept": "september"}
_MONTH_NAME, _WEEKDAY_NAME = (
    "(?:{})".format("|".join(sorted((short for short, name in _FULL_NAMES.items() if name in names), key=len)[::-1]))
    for names in (MONTHS, _WEEKDAYS)
)
_MONTH = re.compile(rf"(?<![^\W\d_]){_MONTH_NAME}(?![^\W_])", re.IGNORECASE)
_WEEKDAY = re.compile(rf"{_WEEKDAY_NAME}\b", re.IGNORECASE)
_DIGITS = "[0-3]?[0-9](?:st|nd|rd|th)?"
_YEAR = "[0-9]{4}(?![0-9])"
_THEN_YEAR = rf"(?:(?:\s?,\s?|\s(?:of\s|in\s)?|[-./]){_YEAR})?"
_NAMED = re.compile(
    rf"(?<![\w./-])(?:{_WEEKDAY_NAME}\.?,?\s)?(?:the\s)?(?:"
    rf"{_MONTH_NAME}(?:\.?\s|[-./])(?:the\s)?{_DIGITS}(?![0-9]){_THEN_YEAR}"
    rf"|{_DIGITS}(?:\.?\s(?:(?:day\s)?of\s)?|[-./]){_MONTH_NAME}\b(?:\.(?=\s))?{_THEN_YEAR}"
    rf"|{_YEAR}(?:,?\s|[-./]){_MONTH_NAME}(?:\.?\s|[-./]){_DIGITS})"
    r"(?![\w%/-]|[.:][0-9]|\s?,\s[0-9]{1,2}(?![0-9:]))",
    re.IGNORECASE,
)
"""With a number of a day beside the name: "May" alone may be a verb, and "May 2024" is a month."""
_LEAP_YEAR = 2024
_SAME: tuple[Grade, str] = ("right", "the same date")
_OTHER: tuple[Grade, str] = ("wrong", "another date")
Notation = Literal["year first", "year last", "named"]


class Day(NamedTuple):
    """A date within a text."""

    start: int
    end: int
    days: frozenset[tuple[int | None, int, int]]
    """Year, month and day; two of them if day and month could be meant the other way round, a year of None if there is
    none."""
    notation: Notation
    weekday: str | None = None


class Moment(NamedTuple):
    """A date, and a time of day if one is stated."""

    day: Day
    time: tuple[int, int, int] | None


def full_name(word: str) -> str:
    """The month or the day of the week that `word` abbreviates, in lower case; `word` itself if there is none."""
    return _FULL_NAMES.get(word, word)


def is_moment(text: str) -> bool:
    """Whether `text` is a date with a time of day, and nothing else."""
    return _MOMENT.fullmatch(text) is not None


def stated_moment(sentence: str) -> str | None:
    """The only date in `sentence`, with the only time of day; None without a single date, or with several times."""
    days = {sentence[day.start : day.end] for day in days_in(sentence)}
    times = {match[0] for match in _TIME.finditer(sentence)}
    return " ".join((*days, *times)) if len(days) == 1 and len(times) <= 1 else None


def moment_of(text: str) -> Moment | None:
    """The first date in `text` and the first time of day; None without a date."""
    day, clock = next(iter(days_in(text)), None), _TIME.search(text)
    if day is None or clock is None:
        return day and Moment(day, None)
    hour, minute, second = (*map(int, clock[0].partition(".")[0].split(":")), 0)[:3]
    return Moment(day, (hour, minute, second))


def days_in(text: str) -> list[Day]:
    """The dates of `text` in order: 2024-05-03, 3.5.2024, May 3, the 3rd of May 2024."""
    named = (_named(match) for match in _NAMED.finditer(text)) if _MONTH.search(text) else ()
    found = [*(_in_digits(match) for match in _DAY.finditer(text)), *filter(None, named)]
    return sorted(found, key=lambda day: day.start)


def same_day(stated: Day, gold: Day) -> tuple[Grade, str]:
    """Whether two dates are equal, as far as their years and their order of day and month are known."""
    if stated.notation == gold.notation != "named":
        return _SAME if stated.days == gold.days else _OTHER
    pairs = [(one, other) for one in stated.days for other in gold.days]
    if not any(one[1:] == other[1:] and (None in (one[0], other[0]) or one[0] == other[0]) for one, other in pairs):
        return _OTHER
    if len(pairs) > 1:
        return "unparsed", "day and month in unknown order"
    if stated.days != gold.days:
        return "unparsed", "only one has a year"
    if None not in (stated.weekday, gold.weekday) and stated.weekday != gold.weekday:
        return "unparsed", "the same date on another day of the week"
    return _SAME


def same_moment(stated: str, gold: str) -> tuple[Grade, str]:
    """Whether `stated` is the moment `gold`; a date alone is enough for midnight, which tables add to dates."""
    said, asked = moment_of(stated), moment_of(gold)
    if said is None or asked is None:
        return "unparsed", "not in the notation of the answer"
    verdict, reason = same_day(said.day, asked.day)
    if verdict != "right" or said.time == asked.time:
        return verdict, reason
    if said.time is None:
        return ("right", reason) if asked.time == (0, 0, 0) else ("unparsed", "no time of day")
    return "wrong", "another time of day"


def _in_digits(match: re.Match[str]) -> Day:
    first, second, third = map(int, re.findall("[0-9]+", match[0]))
    year_first = match["year"] is not None
    orders = [(first, second, third)] if year_first else [(third, second, first), (third, first, second)]
    days = frozenset(one for one in orders if 1 <= one[1] <= 12 and 1 <= one[2] <= 31)
    return Day(*match.span(), days, "year first" if year_first else "year last")


def _named(match: re.Match[str]) -> Day | None:
    """The date that `match` writes with the name of a month; None for a day that this month does not have."""
    weekday, month = _WEEKDAY.match(match[0]), _MONTH.search(match[0])
    assert month is not None
    number = 1 + MONTHS.index(full_name(month[0].lower()))
    numbers = re.findall("[0-9]+", match[0])
    year = next((int(digits) for digits in numbers if len(digits) == 4), None)
    day = next(int(digits) for digits in numbers if len(digits) < 4)
    if not 1 <= day <= calendar.monthrange(year or _LEAP_YEAR, number)[1]:
        return None
    name = full_name(weekday[0].lower()) if weekday else None
    return Day(*match.span(), frozenset({(year, number, day)}), "named", name)
