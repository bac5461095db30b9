"""Dates in digits, and moments: a date with a time of day, as tables write them (2024-05-03 14:30:00)."""

from __future__ import annotations

import re
from typing import NamedTuple

from mind.records import Grade

_YEAR_FIRST = "(?P<year>[0-9]{4})(?P<sign>[-/.])[0-9]{1,2}(?P=sign)[0-9]{1,2}"
_YEAR_LAST = "[0-9]{1,2}(?P<by>[-/.])[0-9]{1,2}(?P=by)[0-9]{4}"
_DAY_TEXT = f"(?:{_YEAR_FIRST}|{_YEAR_LAST})"
_DAY = re.compile(rf"(?<![\w./-]){_DAY_TEXT}(?=T[0-9]|(?![\w/-]|\.[0-9]))")
_CLOCK = r"[0-9]{1,2}:[0-9]{2}(?::[0-9]{2}(?:\.0+)?)?"
_ZONE = r"(?:Z|\s?UTC|\+00:?00)?"
_TIME = re.compile(rf"(?:(?<=[0-9]T)|(?<![\w:.])){_CLOCK}(?=Z|\+00|(?![\w:]|\s?[ap]\.?m\b))", re.IGNORECASE)
_MOMENT = re.compile(rf"\s*{_DAY_TEXT}(?:T|\s+){_CLOCK}{_ZONE}\s*")


class Moment(NamedTuple):
    """A date, and a time of day if one is stated."""

    days: frozenset[tuple[int, int, int]]
    """Year, month and day; two of them if day and month could be meant the other way round."""
    year_first: bool
    time: tuple[int, int, int] | None


def is_moment(text: str) -> bool:
    """Whether `text` is a date with a time of day, and nothing else."""
    return _MOMENT.fullmatch(text) is not None


def stated_moment(sentence: str) -> str | None:
    """The only date in `sentence`, with the only time of day; None without a single date, or with several times."""
    days = {match[0] for match in _DAY.finditer(sentence)}
    times = {match[0] for match in _TIME.finditer(sentence)}
    return " ".join((*days, *times)) if len(days) == 1 and len(times) <= 1 else None


def moment_of(text: str) -> Moment | None:
    """The first date in `text` and the first time of day; None without a date."""
    day, clock = _DAY.search(text), _TIME.search(text)
    if day is None:
        return None
    first, second, third = map(int, re.findall("[0-9]+", day[0]))
    year_first = day["year"] is not None
    orders = [(first, second, third)] if year_first else [(third, second, first), (third, first, second)]
    days = frozenset(one for one in orders if 1 <= one[1] <= 12 and 1 <= one[2] <= 31)
    if clock is None:
        return Moment(days, year_first, None)
    hour, minute, second = (*map(int, clock[0].partition(".")[0].split(":")), 0)[:3]
    return Moment(days, year_first, (hour, minute, second))


def same_day(stated: Moment, gold: Moment) -> tuple[Grade, str]:
    """Whether the dates are equal, of which one has its year first and the other one last."""
    if not stated.days & gold.days:
        return "wrong", "another date"
    if len(stated.days | gold.days) > 1:
        return "unparsed", "day and month in unknown order"
    return "right", "the same date"


def same_moment(stated: str, gold: str) -> tuple[Grade, str]:
    """Whether `stated` is the moment `gold`; a date alone is enough for midnight, which tables add to dates."""
    said, asked = moment_of(stated), moment_of(gold)
    if said is None or asked is None:
        return "unparsed", "not in the notation of the answer"
    if said.year_first == asked.year_first:
        verdict, reason = ("right", "the same date") if said.days == asked.days else ("wrong", "another date")
    else:
        verdict, reason = same_day(said, asked)
    if verdict != "right" or said.time == asked.time:
        return verdict, reason
    if said.time is None:
        return ("right", reason) if asked.time == (0, 0, 0) else ("unparsed", "no time of day")
    return "wrong", "another time of day"
