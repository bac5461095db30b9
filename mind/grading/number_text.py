"""Numbers in free text: their exact value, and the one that a worked solution concludes with.

Every pattern here is linear in its text, because responses come from a model and may be arbitrarily odd.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction

MAX_ANSWER_CHARACTERS = 2_000
"""An extracted answer is cut to so many characters: no answer is longer, and parsers must not see a runaway text.

It is also below the 4,300 digits that Python converts to an int at most.
"""

_DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)"
_SPACED_PRICE = r"[$€£][0-9]{1,3}(?: [0-9]{3})+(?![0-9])(?:\.[0-9]+)?"
_UNSPACED = rf"[$€£]?(?:{_DIGITS}(?:\.[0-9]+)?|\.[0-9]+)(?:/{_DIGITS})?"
# A minus after a word, a digit or a bracket is a subtraction, so it is not part of the number.
_NUMBER = re.compile(rf"(?<![\w.])(?:(?<![)\]])-)?(?:{_SPACED_PRICE}|{_UNSPACED})")
_NUMBER_ALONE = re.compile(rf"{_NUMBER.pattern}\s?%?")
# "12x" and "12k" are other numbers than 12.
_NUMBER_AND_UNIT = re.compile(rf"({_NUMBER.pattern})(?!\s?[kKMnxyz]\b)[^0-9+*/^=\\]*")
_NUMBER_AND_WORDS = re.compile(rf"({_NUMBER.pattern})((?:\s[A-Za-z][\w'-]*){{0,2}})")
_LATEX_THOUSANDS = re.compile(r"(?<=[0-9])(?:\{,\}|,?\\[!,])\s?(?=[0-9]{3}(?![0-9]))")

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n")
_PARENTHESES = re.compile(r"\([^()]*\)")
_REASON_FIRST = re.compile(r"\A\s*(?:since|as|because)\b[^,]*(?:,[0-9][^,]*)*,", re.IGNORECASE)
_REASON = re.compile(r"\bbecause\b")
_CONSEQUENCE = re.compile(r"\b(?:so|meaning|therefore|thus|hence|which\s(?:is|means|rounds))\b")
_INFERENCE = re.compile(r"\b(?:so|therefore|thus|hence)\b", re.IGNORECASE)
_CONCLUSION = re.compile(r"\b(?:therefore|thus|hence)\b", re.IGNORECASE)
_CHECK = re.compile(
    r"(?:\bTo|\b[Ww]e\scan(?:\salso)?|\bYou\scan|\bLet'?s|\bLet\sus)\s"
    r"(?:(?:double|cross)[- ])?(?:check|verify|confirm)\b(?!\s(?:in|out)\b)"
)
_ROUNDED = re.compile(
    rf"\bround(?:s|ed|ing)?\s(?:it\s)?(?:(?:up|down|off)\s)?to\s((?>{_NUMBER.pattern}))"
    r"(?!\s(?:decimal|significant|digit|place))"
)
_HOW_MANY = re.compile(r"\bhow\smany\s((?:[\w'-]+\s?){1,6})", re.IGNORECASE)
_CENTS = re.compile(r"\b(?:in|many)\scents\b", re.IGNORECASE)
_COMPARATIVES = {"more", "fewer", "less"}
_BEFORE_NOUNS = _COMPARATIVES | {
    "total",
    "of",
    "the",
    "other",
    "new",
    "additional",
    "different",
    "extra",
    "full",
    "remaining",
}
_WORDS = (
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
    "twenty",
)
_NUMBER_WORD = re.compile(rf"\b(?:{'|'.join(_WORDS)})\b", re.IGNORECASE)
_LOOSE_NUMBER = re.compile(r"(?<![\w.,/])[-\u2212]?(?:\d[\d,./]*)?\d")
"""Whatever looks like a number."""


def is_number(text: str) -> bool:
    """Whether `text` is a plain integer, decimal, fraction or percentage, with or without currency sign and commas."""
    return _NUMBER_ALONE.fullmatch(plain(text)) is not None


def number_value(text: str) -> Fraction | None:
    """The exact value of a number such as "-3", "$1,234.50", "$118 000", "2/3", "50%", "x = 5" or "12 apples".

    The percent sign counts as a unit: "50%" is 50. None for anything else: another digit, an operator, a variable or a
    "k" behind the number, no number at all, a denominator of 0, more than MAX_ANSWER_CHARACTERS.
    """
    if len(text) > MAX_ANSWER_CHARACTERS:
        return None
    match = _NUMBER_AND_UNIT.fullmatch(plain(text.rpartition("=")[2]))
    if match is None:
        return None
    numerator, _, denominator = re.sub("[$€£, ]", "", match[1]).partition("/")
    below = Fraction(denominator or 1)
    return Fraction(numerator) / below if below else None


def begins_with_number(text: str, gold: str) -> bool:
    """Whether `text` begins with a number that has the value of `gold`."""
    number = _LOOSE_NUMBER.match(text)
    return number is not None and _equal(number[0], gold)


def has_number(text: str, gold: str) -> bool:
    """Whether `text` has a number with the value of `gold`."""
    return any(_equal(number, gold) for number in _LOOSE_NUMBER.findall(text))


def equal_in_cents(stated: str, gold: str, question: str) -> bool:
    """Whether `stated` is an amount of dollars, "$0.25", while the question asks for cents and `gold` says "25".

    If the text of the question is not known, only an amount below one dollar counts: a response that is off by a factor
    of exactly 100 and calls its number dollars has converted nothing, and is hardly ever wrong otherwise.
    """
    if "$" not in stated:
        return False
    value, cents = number_value(stated), number_value(gold)
    if value is None or cents is None or 100 * value != cents:
        return False
    return bool(_CENTS.search(question)) if question else 0 < value < 1 and cents.denominator == 1


def concluding_number(text: str, question: str) -> str | None:
    """The number that `text`, a worked solution of `question` in free words, concludes with; None without any.

    It is in the last sentence that has a number, except in a check of the result and in parentheses ("2 crackers
    (36 / 18 = 2)"), or the only number word of a last "so ..." ("so it took three days"). The claim counts, and not
    its reason ("$5 because 20 times .25 equals 5", "Since 1.76 < 2, it takes 2 days"). There, in this order: what it
    is rounded to; a consequence drawn from the last equation ("= 4.5 bags, so 5 bags"), else its result; and without
    an equation one of the numbers by `_answering`.

    `question` may be empty, and then it is not known which numbers it gives.
    """
    text = _without_check(_LATEX_THOUSANDS.sub("", text))
    sentences = [sentence for sentence in _SENTENCE_END.split(text) if sentence.strip()]
    last = next((i for i in reversed(range(len(sentences))) if _NUMBER.search(sentences[i])), None)
    if sentences and last != len(sentences) - 1 and (last is None or _INFERENCE.search(sentences[-1])):
        words = [word.lower() for word in _NUMBER_WORD.findall(sentences[-1])]
        if len(words) == 1 and words != ["one"]:  # which is a pronoun more often
            return str(_WORDS.index(words[0]) + 1)
    if last is None:
        return None
    claim = _claim(sentences[last])
    if rounded := _ROUNDED.findall(claim):
        return rounded[-1]
    _, equals, behind = claim.rpartition("=")
    if equals and (result := _NUMBER.search(behind)):
        consequence = _CONSEQUENCE.search(behind)
        if consequence is None or not _NUMBER.search(behind, consequence.end()):
            return result[0]
        claim = behind[consequence.end() :]
    return _answering(claim, question, sentences[: last + 1])


def plain(text: str) -> str:
    """Without what surrounds an answer: spaces, Markdown stars, a full stop; with an ASCII minus before the sign."""
    text = _LATEX_THOUSANDS.sub("", text).replace("\u2212", "-").replace("\\$", "$").replace("\\%", "%")
    text = text.strip(" \t\n*`:").removesuffix(".")
    return f"-{text[0]}{text[2:]}" if text[:2] in ("$-", "€-", "£-") else text


def _equal(number: str, gold: str) -> bool:
    value = number_value(number)
    return value is not None and value == number_value(gold)


def _without_check(text: str) -> str:
    """`text` up to "To check, ..." and its like, if a number precedes it and no conclusion follows it."""
    check = _CHECK.search(text)
    if check is None or not _NUMBER.search(text[: check.start()]):
        return text
    return text if _CONCLUSION.search(text, check.end()) else text[: check.start()]


def _claim(sentence: str) -> str:
    """`sentence` without parentheses and reasons, if a number is left without them."""
    claim = _with_number(_PARENTHESES.sub(" ", sentence)) or sentence
    claim = _with_number(_REASON.split(claim, maxsplit=1)[0]) or claim
    return _with_number(_REASON_FIRST.sub("", claim)) or claim


def _with_number(text: str) -> str | None:
    return text if _NUMBER.search(text) else None


def _answering(claim: str, question: str, sentences: Sequence[str]) -> str:
    """Which of several numbers of `claim` answers `question`.

    One that the question does not give ("67 cakes left after selling 144"): the last that stands before what it asks
    for ("How many books": "72 pens and 140 books"), else the last. Without a question, the first that an equation of
    `sentences` has computed ("15 hours for 45 rooms"), else the last. The first number if all are given.
    """
    numbers = _NUMBER.findall(claim)
    if not question:
        computed = _results(sentences)
        return next((number for number in numbers if number_value(number) in computed), numbers[-1])
    given = {number_value(number) for number in _NUMBER.findall(question)}
    new = [number for number in numbers if number_value(number) not in given]
    if not new:
        return numbers[0]
    return next((number for number in reversed(_counting_the_asked(claim, question)) if number in new), new[-1])


def _results(sentences: Sequence[str]) -> set[Fraction | None]:
    """The numbers right behind the equals signs of `sentences`."""
    sides = (side.lstrip() for sentence in sentences for side in sentence.split("=")[1:])
    return {number_value(number[0]) for side in sides if (number := _NUMBER.match(side))}


def _counting_the_asked(claim: str, question: str) -> list[str]:
    """The numbers of `claim` before the noun of "How many ..." in `question`, or before "more" for "How many more"."""
    asked = _HOW_MANY.search(question)
    if asked is None:
        return []
    words = asked[1].lower().split()
    nouns = [_singular(word) for word in words if word not in _BEFORE_NOUNS]
    wanted = _COMPARATIVES if words[0] in _COMPARATIVES else nouns[:1] if "and" not in nouns else []
    counted = ((match[1], match[2].lower().split()) for match in _NUMBER_AND_WORDS.finditer(claim))
    return [number for number, words in counted if any(word in wanted or _singular(word) in wanted for word in words)]


def _singular(word: str) -> str:
    return word.removesuffix("s").removesuffix("e")
