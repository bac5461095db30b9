"""Finds the number with which a worked solution in free words concludes, and numbers that a text gives away.

Every pattern takes time linear in the length of its text, because a model may write any text.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from fractions import Fraction

from mind.grading.number_notation import in_digits, plain_number
from mind.grading.plain_text import sentences
from mind.grading.quantity import Quantity, not_denied, number_value, quantities, single_quantities, surroundings
from mind.grading.units import conversion

CACHED_QUESTIONS = 1_024

_DIGIT = re.compile(r"(?<![\w.])\.?[0-9]")
_IN_PARENTHESES = re.compile(r"\s*\([^()]*\)[.\s]*")
_PARENTHESES = re.compile(r"\((?!(?<=[0-9.]\()[0-9]+\))[^()]*\)")  # "0.1(6)" repeats a digit
_LISTED = re.compile(r"\s*-?[0-9][0-9./]*(?:,\s(?:and\s|or\s)?-?[0-9][0-9./]*)+\W*")
_REASON_FIRST = re.compile(r"\A\s*(?:since|as|because)\b[^,]*(?:,[0-9][^,]*)*,", re.IGNORECASE)
_SAME_IN_OTHER_WORDS = re.compile(r",\s(?:that\sis|i\.e\.|in\sother\swords)(?=[\s,])")
_WORD_EQUATION = re.compile(
    r"(\A[^0-9]{0,40}[0-9.,]+(?:\s\w+)?\s(?:plus|minus|less|times|divided\sby|multiplied\sby)\s[^=;]{1,60}?)\b(?:is|are|makes?|equals?|gives?|leaves?)\s"
    r"(?=[-$]?[0-9])"
)
_SINCE_THEN = re.compile(r",\s[^,=]*\b(?:after|before|later|earlier)\b[^,=]*\Z")
_CONVERSIONS = {1, 7, 10, 12, 24, 60, 100, 1000, 3600}
_REASON = re.compile(r"\bbecause\b")
_CONSEQUENCE = re.compile(r"\b(?:so|meaning|therefore|thus|hence|which\s(?:is|means|rounds))\b")
_INFERENCE = re.compile(r"\b(?:so|therefore|thus|hence)\b", re.IGNORECASE)
_CONCLUSION = re.compile(r"\b(?:therefore|thus|hence)\b", re.IGNORECASE)
_ENUMERATED = re.compile(r"^[ \t]*(?:step\s)?\(?([0-9]{1,2})[.):][ \t]+(?=\S)", re.IGNORECASE | re.MULTILINE)
_TWO_SOLUTIONS = re.compile(r"\b([A-Za-z])\s?=\s?([^=]{1,40}?)\s?\b(?:or|and)\s+\1\s?=")
_CHECK = re.compile(
    r"(?:\bTo|\b[Ww]e\scan(?:\salso)?|\bYou\scan|\bLet'?s|\bLet\sus)\s"
    r"(?:(?:double|cross)[- ])?(?:check|verify|confirm)\b(?!\s(?:in|out)\b)"
    r"|\b(?:Check|Verification)(?:ing)?\s?:"
)
_CHECKING = ("check", "Check", "verify", "confirm", "Verif")
_ROUNDED = re.compile(r"\bround(?:s|ed|ing)?\s(?:it\s)?(?:(?:up|down|off)\s)?to\s(?=[-$]?[0-9.])")
_PLACES = re.compile(r"\s(?:decimal|significant|digit|place)")
_JOINT = re.compile(
    r"(?:(?:\s[\w%\u00b0]+){0,2}?\s?\b(or|and)\b|[\w%\u00b0]{0,2}\s?\b(to)\b)\s?(?:about\s|even\s)?[-$]?"
)
_ONE_MORE = re.compile(r"\bone\s(?:more|fewer|less)\b", re.IGNORECASE)
_ORDINAL = re.compile(r"(?:st|nd|rd|th)\b")
_NUMBER_START = tuple("0123456789.-$\u20ac\u00a3")
_HOW_MANY = re.compile(r"\bhow\smany\s((?:[\w'-]+\s?){1,6})", re.IGNORECASE)
_HOW_MUCH = re.compile(r"\bhow\smuch\b(?!\s\w+er\b)", re.IGNORECASE)
_PRICE = re.compile("[$\u20ac\u00a3\u00a5\u20b9]")
_NEXT_WORDS = re.compile(r"(?:\s[A-Za-z][\w'-]*){0,2}")
_CENTS = re.compile(r"\b(?:in|many)\scents\b", re.IGNORECASE)
_COMPARATIVES = {"more", "fewer", "less"}
_BEFORE_NOUNS = _COMPARATIVES | {"total", "of", "the", "other", "new", "additional", "different", "extra"}
_BEFORE_NOUNS |= {"full", "remaining"}
_LOOSE_NUMBER = re.compile(r"(?<![\w.,/])[-\u2212]?(?:\d[\d,./]*)?\d")
"""Matches anything that looks like a number."""


def begins_with_number(text: str, gold: str) -> bool:
    """Whether `text` begins with a number equal to `gold`."""
    number = _LOOSE_NUMBER.match(text)
    return number is not None and _equal(number[0], gold)


def has_number(text: str, gold: str) -> bool:
    """Whether `text` contains a number equal to `gold`."""
    return any(_equal(number, gold) for number in _LOOSE_NUMBER.findall(text))


def equal_in_cents(stated: str, gold: str, question: str) -> bool:
    """Whether `stated` is an amount of dollars, "$0.25", while the question asks for cents and `gold` says "25".

    If the text of the question is not known, only an amount below one dollar counts: a response that is off by a factor
    of exactly 100 and says dollars has only not converted them, and is hardly ever wrong for another reason.
    """
    if "$" not in stated:
        return False
    value, cents = number_value(stated), number_value(gold)
    if value is None or cents is None or 100 * value != cents:
        return False
    return bool(_CENTS.search(question)) if question else 0 < value < 1 and cents.denominator == 1


def concluding_number(text: str, question: str) -> Quantity | None:
    """The number that `text`, a worked solution of `question` in free words, concludes with; None without any.

    It is in the last sentence that has a number, except in a check of the result and in parentheses ("2 crackers (36 /
    18 = 2)"), or the only number word of a last "so ..." ("so it took three days"). The claim of that sentence counts,
    not its reason ("$5 because 20 times .25 equals 5", "Since 1.76 < 2, it takes 2 days"). In the claim, the first of
    these is used: the number to which a result is rounded; a consequence of the last equation ("= 4.5 bags, so 5
    bags"), else its result; without an equation, one of the numbers by `_answering`. The result has no value if several
    numbers are meant ("3 or 4").

    `question` may be empty; then the numbers that it states are unknown.
    """
    text = _without_check(without_enumeration(plain_number(text)))
    said = sentences(text)
    numbered = [i for i, sentence in enumerate(said) if _DIGIT.search(sentence)]
    claiming = [i for i in numbered if not _IN_PARENTHESES.fullmatch(said[i])]
    last = next(reversed(claiming or numbered), None)
    if said and last != len(said) - 1 and (last is None or _INFERENCE.search(said[-1])):
        words = spelled_numbers(said[-1], question)
        # "One" is more often a pronoun.
        if len(words) == 1 and (words[0].text != "1" or _ONE_MORE.search(said[-1])):
            return words[0]
    if last is None:
        return None
    if (asked_for := _asked_in_parentheses(said[last], question)) is not None:
        return asked_for
    claim = _claim(said[last]).rstrip("! ")
    if rounded := list(_ROUNDED.finditer(claim)):
        number = next(quantities(claim[rounded[-1].end() :], question), None)
        if number and not _PLACES.match(claim, rounded[-1].end() + number.end):
            return number
    before, equals, behind = _WORD_EQUATION.sub(r"\1= ", claim).rpartition("=")
    if equals and (results := list(quantities(behind, question))):
        result = results[0]
        consequence = _CONSEQUENCE.search(behind)
        if consequence is None or not _DIGIT.search(behind, consequence.end()):
            if (solutions := _TWO_SOLUTIONS.search(claim)) and number_value(solutions[2]) != result.value:
                return result._replace(value=None, text=claim.strip())
            if len(results) > 1 and (_alternatives(behind, *results[:2]) or _LISTED.fullmatch(behind)):
                return result._replace(value=None, text=claim.strip())
            return result if result.value is not None else undecided(behind, result)
        claim = behind[consequence.end() :]
    elif equals and (result := _at_end(before.rstrip(), question)):  # "20 = A"
        return result
    return _answering(claim, question, said[: last + 1])


def undecided(text: str, number: Quantity) -> Quantity:
    """`number`, a part of `text`, without a value and with the words around it."""
    return number._replace(value=None, text=surroundings(text, number))


def spelled_numbers(text: str, question: str) -> list[Quantity]:
    """The numbers in words in `text`, which has no digits; no ordinals, since "second" is also a time."""
    written = in_digits(text)
    return [number for number in quantities(written, question) if not _ORDINAL.match(written, number.end)]


def alternatives(text: str, question: str) -> bool:
    """Whether `text` gives a choice or a range of numbers: "3 or 4", "3 to 4 days", "between 3 and 4"."""
    numbers = list(quantities(text, question))
    return any(_alternatives(text, *pair) for pair in zip(numbers, numbers[1:], strict=False))


def _at_end(text: str, question: str) -> Quantity | None:
    """The number at the end of `text`."""
    last = next(reversed(list(quantities(text, question))), None)
    return last if last and last.end == len(text) else None


def _equal(number: str, gold: str) -> bool:
    value = number_value(number)
    return value is not None and value == number_value(gold)


def _without_check(text: str) -> str:
    """`text` up to "To check, ..." or similar words, if a number precedes them and no conclusion follows."""
    check = _CHECK.search(text) if any(word in text for word in _CHECKING) else None
    if check is None or not _DIGIT.search(text, 0, check.start()):
        return text
    return text if _CONCLUSION.search(text, check.end()) else text[: check.start()]


def without_enumeration(text: str) -> str:
    """`text` without the numbers of its steps: "1) Add.", "2) Done."."""
    steps = [
        step for step, number in zip(_ENUMERATED.finditer(text), range(1, 100), strict=False) if int(step[1]) == number
    ]
    for step in reversed(steps if len(steps) > 1 else ()):
        text = text[: step.start()] + text[step.end() :]
    return text


def _claim(sentence: str) -> str:
    """`sentence` without parentheses and reasons, if it still has a number without them."""
    claim = _with_number(_PARENTHESES.sub(" ", sentence)) or sentence
    claim = _with_number(_REASON.split(claim, maxsplit=1)[0]) or claim
    claim = _without_conversion(claim)
    claim = _with_number(_SINCE_THEN.sub("", claim)) or claim
    return _with_number(_REASON_FIRST.sub("", claim)) or claim


def _without_conversion(claim: str) -> str:
    """`claim` without the repetition in another unit: "$4.50, that is 450 cents"."""
    phrase = _SAME_IN_OTHER_WORDS.search(claim)
    one = next(reversed(list(quantities(claim[: phrase.start()]))), None) if phrase else None
    other = next(quantities(claim[phrase.end() :]), None) if phrase else None
    if phrase is None or one is None or other is None or not one.value or not other.value:
        return claim
    factor = max(one.value / other.value, other.value / one.value)
    return claim[: phrase.start()] if factor in _CONVERSIONS else claim


def _with_number(text: str) -> str | None:
    return text if _DIGIT.search(text) else None


def _answering(claim: str, question: str, sentences: Sequence[str]) -> Quantity | None:
    """Which of several numbers of `claim` answers `question`.

    It is a number that the question does not state ("67 cakes left after selling 144"): the last one before the thing
    that is asked for ("How many books": "72 pens and 140 books"), or a price if it asks how much, else the last one.
    Without a question, it is the first number that an equation of `sentences` has computed ("15 hours for 45 rooms"),
    else the last. If the question states all of them, it is the first.
    """
    numbers = not_denied(claim, list(quantities(claim, question)))
    if not numbers:
        return None
    number = _chosen(claim, numbers, question, sentences)
    pairs = zip(numbers, numbers[1:], strict=False)
    several = any(_alternatives(claim, *pair) for pair in pairs if number in pair)
    if several:
        return number._replace(value=None, text=claim.strip())
    return undecided(claim, number) if number.value is None else number


def _chosen(claim: str, numbers: Sequence[Quantity], question: str, sentences: Sequence[str]) -> Quantity:
    if not question:
        computed = _results(sentences)
        return next((number for number in numbers if number.value in computed), numbers[-1])
    given = _values(question)
    new = [number for number in numbers if number.value not in given]
    if not new:
        return numbers[0]
    if _HOW_MUCH.search(question):
        new = [number for number in new if _PRICE.search(number.text)] or new
    counting = _counting_the_asked(claim, numbers, question)
    return next((number for number in reversed(counting) if number in new), new[-1])


@functools.lru_cache(maxsize=CACHED_QUESTIONS)  # there are many responses to one question
def _values(question: str) -> frozenset[Fraction]:
    numbers = (*quantities(question), *single_quantities(question))
    return frozenset(number.value for number in numbers if number.value is not None)


def _alternatives(claim: str, one: Quantity, other: Quantity) -> bool:
    joint = _JOINT.fullmatch(claim, one.end, other.start)
    if joint is None or _is_same(one, other):
        return False
    before = claim[max(one.start - 9, 0) : one.start].lower()
    if joint[2]:
        return not re.search(r"\b(?:from|by)\s\Z", before)
    return joint[1] != "and" or before.endswith("between ")


def _is_same(one: Quantity, other: Quantity) -> bool:
    """Whether two numbers say the same, such as "0.6 or 60%" or "$0.5 or 50 cents"."""
    ratio = conversion(one.unit, other.unit)
    if one.value is None or other.value is None or ratio is None:
        return False
    return one.value * ratio / 100**one.percent == other.value / 100**other.percent


def _results(sentences: Sequence[str]) -> set[Fraction]:
    """The numbers directly after the equals signs of `sentences`."""
    sides = (side.lstrip() for sentence in sentences for side in sentence.split("=")[1:])
    firsts = (next(quantities(side), None) for side in sides if side[:1] in _NUMBER_START)
    return {number.value for number in firsts if number and number.start == 0 and number.value is not None}


def _counting_the_asked(claim: str, numbers: Sequence[Quantity], question: str) -> list[Quantity]:
    """Those of `numbers` before the noun of "How many ..." in `question`, or before "more" for "How many more"."""
    asked = _HOW_MANY.search(question)
    if asked is None:
        return []
    words = asked[1].lower().split()
    nouns = [_singular(word) for word in words if word not in _BEFORE_NOUNS]
    wanted = _COMPARATIVES if words[0] in _COMPARATIVES else nouns[:1] if "and" not in nouns else []
    counted = ((number, _next_words(claim, number.end)) for number in numbers if not number.percent)
    return [number for number, words in counted if any(word in wanted or _singular(word) in wanted for word in words)]


def _asked_in_parentheses(sentence: str, question: str) -> Quantity | None:
    """The number in parentheses, if it alone is in the unit that is asked for: "1.5 hours (90 minutes)" for minutes."""
    outside = _PARENTHESES.sub(" ", sentence)
    if len(outside) == len(sentence) or _counting_the_asked(outside, list(quantities(outside, question)), question):
        return None
    inside = " ".join(_PARENTHESES.findall(sentence))
    counted = _counting_the_asked(inside, list(quantities(inside, question)), question)
    return counted[0] if len(counted) == 1 and counted[0].value is not None and "=" not in sentence else None


def _next_words(text: str, end: int) -> list[str]:
    match = _NEXT_WORDS.match(text, end)
    return match[0].lower().split() if match else []


def _singular(word: str) -> str:
    return word.removesuffix("s").removesuffix("e")
