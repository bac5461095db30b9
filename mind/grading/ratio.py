"""Ratios: 3:5, 2 : 1 : 4, 3 to 5.

Every pattern takes time linear in the length of its text, because a model may write any text.
"""

from __future__ import annotations

import math
import re
from fractions import Fraction

from mind.grading.answer_type import AnswerType
from mind.grading.number_notation import in_digits
from mind.grading.plain_text import sentences, without_latex_text
from mind.grading.quantity import number_value
from mind.records import Grade, Question

_TERM = r"(?!0[0-9])(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]{1,12})(?:\.[0-9]{1,12})?"
_COLONS = rf"{_TERM}(?:\s?:\s?{_TERM})+"
_WORDS = rf"{_TERM}(?:\s(?:is\s)?to\s{_TERM})+(?![,.]?[0-9]|\s[a-z])"
_RATIO = re.compile(rf"(?<![\w:.,/+*^-])(?:{_COLONS}|{_WORDS})(?![\w:%/^*+-]|[.,][0-9])")
_JOINT = re.compile(r"\s?(?::|(?:is\s)?to)\s?")
_DIGIT = re.compile("[0-9]")
_CLOCK = re.compile(r"[0-9]{1,2}:[0-5][0-9]")
_ASKED = re.compile(r"\b(?:ratio|proportion)", re.IGNORECASE)
_OTHER = re.compile(
    r"\b(?:not|no|never|neither|nor|or|wrong|incorrect|false|reversed?|inverse|opposite|from|between|over|under|more|less"
    r"|fewer|than|least|most)\b|n't\b",
    re.IGNORECASE,
)
"""Words that make another answer of the ratio beside them, or none."""
_PAIR = re.compile(r"\b([a-z]+)\s?(?:\bto\b|:)\s?(?:the\s)?(?:number\sof\s)?([a-z]+)\b", re.IGNORECASE)


class Ratio(AnswerType):
    """Equal if the terms are proportional: 6:10 is 3:5, and so is the fraction 3/5 if there are two terms.

    As LaTeX, 1:2:3 would be a quotient of three numbers.
    """

    name = "ratio"
    request = "the ratio"

    def fits(self, question: Question) -> bool:
        answer = _plain(question.answer).strip(" .")
        if question.choices is not None or not _RATIO.fullmatch(answer):
            return False
        # "3:15" may be a time of day, and "3 to 5" a range.
        is_certain = ":" in answer and not _CLOCK.fullmatch(answer)
        return is_certain or _ASKED.search(question.question) is not None

    def marked(self, statement: str, question: Question) -> str | None:
        return self.unmarked(statement, question) or statement

    def unmarked(self, text: str, question: Question) -> str | None:
        """The ratio in the last sentence that has any, if it has one alone and no words that make another of it."""
        for sentence in reversed(sentences(text)):
            if found := _RATIO.findall(_plain(sentence)):
                return None if self.compare(sentence, question)[0] == "unparsed" else found[-1]
        return None

    def compare(self, stated: str, question: Question) -> tuple[Grade, str]:
        gold, text = _terms(_plain(question.answer)), _plain(stated)
        found = {_terms(one) for one in _RATIO.findall(text)}
        if not found:
            return _compared_fraction(stated, gold)
        words = _RATIO.sub(" ", text)
        if len(found) > 1 or _OTHER.search(words):
            return "unparsed", "not one ratio"
        if _is_turned(words, question.question):
            return "unparsed", "of the same things in another order"
        return ("right", "equal ratios") if found == {gold} else ("wrong", "different ratios")

    def mentions_gold(self, sentence: str, question: Question) -> bool:
        gold = _terms(_plain(question.answer))
        return any(_terms(one) == gold for one in _RATIO.findall(_plain(sentence)))


def _plain(text: str) -> str:
    text = without_latex_text(text.replace("{:}", ":")).strip()
    return text if _DIGIT.search(text) else in_digits(text)


def _terms(ratio: str) -> tuple[int, ...]:
    """The terms in lowest numbers: (3, 5) of "6:10"."""
    terms = [Fraction(term.replace(",", "")) for term in _JOINT.split(ratio.strip(" ."))]
    common = math.lcm(*(term.denominator for term in terms))
    whole = [int(term * common) for term in terms]
    return tuple(term // (math.gcd(*whole) or 1) for term in whole)


def _compared_fraction(stated: str, gold: tuple[int, ...]) -> tuple[Grade, str]:
    value = number_value(stated)
    if value is None or len(gold) != 2 or not gold[1]:
        return "unparsed", "not a ratio"
    value = value / 100 if "%" in stated else value
    return ("right", "the ratio as a fraction") if value == Fraction(*gold) else ("wrong", "another fraction")


def _is_turned(words: str, question: str) -> bool:
    """Whether `words` name two things in the order opposite to that of `question`: "girls to boys"."""
    asked = {(one.lower(), other.lower()) for one, other in _PAIR.findall(question)}
    said = {(one.lower(), other.lower()) for one, other in _PAIR.findall(words)}
    return any((other, one) in asked and (one, other) not in asked for one, other in said)
