"""Numbers: integers, decimals, fractions and percentages, with or without currency, thousands separators and unit."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from fractions import Fraction

from mind.grading.answer_type import AnswerType
from mind.grading.calendar_day import MONTHS
from mind.grading.latex import compare_latex
from mind.grading.latex_notation import FUNCTIONS
from mind.grading.number_notation import PART, in_digits, part_size, plain_number
from mind.grading.number_text import (
    alternatives,
    begins_with_number,
    concluding_number,
    equal_in_cents,
    has_number,
    spelled_numbers,
    without_enumeration,
)
from mind.grading.plain_text import APPROXIMATELY, LATEX_SIGNS, LATEX_THOUSANDS, sentences
from mind.grading.quantity import (
    SCALES,
    Quantity,
    asked_scale,
    begins_with,
    has_several_equations,
    may_be,
    not_denied,
    number_value,
    quantities,
    quantity,
    right_side,
    with_digits,
)
from mind.grading.units import conversion, is_known, is_quotient, is_symbol, unit_at
from mind.records import Grade, Question

CACHED_ANSWERS = 4_096

_DIGIT = re.compile("[0-9]")
_INFERENCE = re.compile(r"\b(?:so|therefore|thus|hence)\b", re.IGNORECASE)
_MONTH = re.compile(rf"\b(?:{'|'.join(MONTHS)})\b", re.IGNORECASE)
_NO_UNIT = re.compile(r"(?:st|nd|rd|th|[rR])\b")
_MAYBE_VARIABLE = re.compile(r"(?<![$\u20ac\u00a3])\b[0-9.,]+\s?[kKMB]\Z")
_WORD = re.compile(rf"(?<![A-Za-z\\])(?!(?:and|or|sqrt|{FUNCTIONS})(?![A-Za-z]))[A-Za-z]{{2,}}")
_CROSS = re.compile(r"(?<!\b0)(?<=[0-9])\s?x\s?(?=[0-9])")
_COMMAND = re.compile(r"\\[A-Za-z]+")
_OPERATION = re.compile(r"[+*/^|\u00d7\u00f7\u00b7\u221a\u03c0(]|\s-\s|\\|[0-9)]!")
_NO_OPERATION = re.compile(r"[0-9]-[0-9]|[0-9]:[0-9]|[0-9],[0-9](?![0-9]{2}(?![0-9]))|\b0[xXbB]|/[0-9]+/")
_CLAUSE_END = re.compile(
    r"[,;](?=\s)(?!\s+[-$]?[0-9][0-9.,/]*\s*(?:[,;]|\Z)|\s+(?:remainder|rem|r)\b)|\s\(|\((?=[a-z]{2})|\s(?:as|because|since|so|which|where|if|when|while|but|not)\s|\s-\s(?=[a-z]{2})|\u2014(?!\s?[0-9])"
)
_CALCULATION = re.compile(
    r"\|[^|]*\||[0-9)]!|[A-Za-z]\s?\(|\)\s?\(|\s%\s?[0-9]|%\sof\s[$]?[0-9]|\\[A-Za-z]"
    r"|\b(?:half|third|quarter)\sof\b"
    r"|\b(?:mod|choose|twice|double|triple|times|squared?|cubed?|root|factorial|plus|minus)\b"
    r"|\b(?:more|less|fewer|greater|smaller)\sthan\b",
    re.IGNORECASE,
)
"""Marks of a value that is none of the numbers in the text."""
_OF = re.compile(r"\s+of\s+[$\u20ac\u00a3]?")
_SHARE = re.compile(r"(?:\s(?!out\b)[a-z]+)?\s(?:(?P<out>out\sof)|of|in)\s(?:(?:every|each|the|a)\s)?", re.IGNORECASE)
"""Words between the two numbers of a share: "3 out of 5"."""
_SAID = re.compile(r"\b(?:is|be|was|equals|an?)\s\Z", re.IGNORECASE)
_PART_OF = re.compile(r"of\b", re.IGNORECASE)
_HALF = re.compile(r"\W*half\W*", re.IGNORECASE)
_PERCENT = re.compile(r"%|percent", re.IGNORECASE)
_RATIO = re.compile(r"([0-9]{1,9})\s?(?::|to)\s?([0-9]{1,9})(?![0-9:])")
_CALCULATES = re.compile(
    r"(?:\s[a-z]+)?\s(?:(?:more|less|fewer|greater|smaller)\sthan|times|plus|minus|(?:multiplied|divided)\sby)\s"
    r"[$\u20ac\u00a3]?"
)
"""Words between two numbers that make a third one of them."""
_HOW_MANY = re.compile(r"\bhow\smany(?=\s)", re.IGNORECASE)
_IF = re.compile(r"\bif\b.*[,;]\s(?:or\s)?(?:else|otherwise)\b", re.IGNORECASE)
_OR = re.compile(r"\(or\s[^()]*[0-9]", re.IGNORECASE)
_SPELLED = r"(?:one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|twenty|half)"
_IN_WORDS = re.compile(
    rf"\b(?:plus|minus|times)\s(?:an?\s)?{_SPELLED}\b|(?<!,\s)\b{_SPELLED}\s(?:more|less|fewer)\b", re.IGNORECASE
)
"""Beside digits, words that make another number of them: "12 plus one"."""
_AT_LEAST = re.compile(
    r"\W*(?:at\s(?:least|most)|no\s(?:more|less|fewer)\sthan|up\sto|an?\s(?:min|max)imum\sof)\s", re.IGNORECASE
)
_ASKS_FOR_BOUND = re.compile(
    r"\b(?:least|most|minimum|maximum|fewest|smallest|largest|greatest|up\sto)\b", re.IGNORECASE
)
_IN_UNIT = re.compile(r"\bin\s([a-z]+)\s*\?", re.IGNORECASE)
_NONE = frozenset({"none", "no one", "nobody", "nothing"})
_COUNTED_PARTS = re.compile(rf"\W*([0-9]{{1,9}})\s{PART}\W*", re.IGNORECASE)
"""3 quarters, which are no units of the question."""
_BARE = re.compile(r"\W*([0-9][0-9.,/]*%?)[.!]\s+[A-Z]")
_REASON = re.compile(r"(?P<answer>[^\s,=]+(?:\s[a-z]+)?)(?:,\s(?:since|as)|,?\sbecause)\s")
_BOUNDED = re.compile(r"\W*(?:(?:more|less|fewer|greater|smaller)\sthan|over|under|above|below)\s", re.IGNORECASE)
_JOINED = re.compile(
    r"(?:[^0-9]*?(?:\b(?:and|or|to|plus|minus|times|divided|multiplied|remainder|rem)\b|[,&+*/=-])[^0-9]*"
    r"|\s(?:more|less|fewer)\sthan\s)\Z"
)


class Number(AnswerType):
    """Compared as exact fractions, whatever their separators and percent sign, in the unit of the gold answer.

    This unit is the gold answer's own, or that of "How many minutes" in the question. A response without a unit is
    assumed to mean it; if there is no such unit, any unit is accepted. Dollars are equal to cents if the question asks
    for cents (`equal_in_cents`), "50%" is equal to both 50 and 0.5, and a formula is compared as LaTeX.
    """

    name = "number"

    def fits(self, question: Question) -> bool:
        return question.choices is None and gold_number(question.answer) is not None

    def marked(self, statement: str, question: Question) -> str | None:
        """The number or the formula that `statement` is, begins with, or concludes with."""
        number = _stated(statement, _asked(question))
        if number and number.value is not None:
            return _with_unit(number, question)
        return statement if number or _is_formula(statement) else None

    def unmarked(self, text: str, question: Question) -> str | None:
        """The number with which `text` concludes (`concluding_number`)."""
        said, reason = sentences(without_enumeration(text)), _REASON.match(text)
        if reason and quantity(plain_number(reason["answer"])) is not None:
            return reason["answer"].strip()  # "12, since there are 3 rows of 4"
        number = concluding_number(text, question.question and _asked(question))
        if said and _IF.search(said[-1]):
            return None
        alone = _BARE.match(text) if "\n" not in text and text == without_enumeration(text) else None
        if number and alone and number_value(alone[1]) != number.value:
            return None  # "12. There are 3 rows of 4."
        claim = next((one for one in reversed(sentences(text)) if _DIGIT.search(one)), "") if number else ""
        if number and (share := _share(claim, _asked(question))) and number.value in (share.value, share.scale):
            return share.text
        if number and APPROXIMATELY.search(claim) and len(list(quantities(claim))) == 2:
            return claim.strip()
        if number and _BOUNDED.match(text) and len(list(quantities(text))) == 1:
            return text.strip()
        return _with_unit(number, question) if number else None

    def compare(self, stated: str, question: Question) -> tuple[Grade, str]:
        gold, number = gold_number(question.answer), _stated(stated, _asked(question))
        assert gold is not None and gold.value is not None
        if _in_other_words(stated, question.question) == gold.value:
            return "right", "equal as numbers"
        if number is None or number.value is None:
            return _compared_undecided(stated, gold.value, is_a_number=number is not None)
        unit = _measure(question) or _named_unit(question.question, number.unit)
        ratio = conversion(number.unit, unit)
        if ratio is None and (gold.unit or not (is_quotient(number.unit) or is_quotient(unit))):
            return "unparsed", f"{number.unit}, not {unit}"
        ratio = ratio or 1  # "How many hours ... a week?" can be answered by "3 hours" or "3 hours a week"
        scale = Fraction(1) if unit and is_known(number.unit) else number.scale
        is_share = "/" in question.answer and not _PERCENT.search(question.question)
        if is_share and number.percent and number.value == gold.value < 1:
            return "unparsed", "percent, or not"  # "0.6%" for 3/5
        if grade := _compared_in_scale(gold.value, number.value * ratio, scale, question.question):
            return grade
        fraction = gold.value / 100**gold.percent
        if number.percent != gold.percent and fraction * 100**number.percent in (number.value, number.value / scale):
            return "right", "equal as percentages"
        if equal_in_cents(stated, question.answer, question.question):
            return "right", "equal in cents"
        if gold.value == number.scale > max(number.value, 1):
            return "unparsed", "perhaps the total"
        if _is_part(number, stated) and fraction >= 1 and not _PERCENT.search(question.question):
            return "unparsed", "a part of something"
        return "wrong", "different as numbers"

    def begins_with_gold(self, statement: str, question: Question) -> bool:
        return begins_with_number(statement, question.answer)

    def mentions_gold(self, sentence: str, question: Question) -> bool:
        return has_number(sentence, question.answer)


@functools.lru_cache(maxsize=CACHED_ANSWERS)  # one gold answer is compared with many answers
def gold_number(text: str) -> Quantity | None:
    """The number that a gold answer is, with or without a unit in plain words; None for a formula, a date or an
    ordinal."""
    text = LATEX_THOUSANDS.sub(",", text).replace("\\$", "$").replace("\\%", "%")
    if "=" in text or _MONTH.search(text) or (LATEX_SIGNS.search(text) and "^" not in text):
        return None
    number = quantity(text)
    if number is None or number.value is None or _NO_UNIT.match(number.unit) or _MAYBE_VARIABLE.search(number.text):
        return None
    return number


def _measure(question: Question) -> str:
    """The unit of the gold answer, or of "How many minutes", if it is a known unit or a symbol."""
    gold = gold_number(question.answer)
    if gold and (is_known(gold.unit) or is_symbol(gold.unit)):
        return gold.unit
    asked = sentences(question.question) or [""]
    last = next((one for one in reversed(asked) if "?" in one), asked[-1])
    how_many = next(reversed(list(_HOW_MANY.finditer(last))), None)
    return unit_at(last, how_many.end()) if how_many and gold and not gold.unit else ""


def _asked(question: Question) -> str:
    """The text of `question` and its unit, which help to distinguish a unit from a variable."""
    return "\n".join(filter(None, (question.question, _measure(question))))


def _with_unit(number: Quantity, question: Question) -> str:
    """`number` as it is written, with its unit if the unit of the gold answer is known."""
    if not _measure(question) or number.unit in number.text:
        return number.text
    return f"{number.text} {number.unit}"


def _stated(statement: str, question: str) -> Quantity | None:
    """The number that `statement` is, begins with or, if it is a sentence, concludes with; None for a formula."""
    text = plain_number(statement).replace("<=", "\u2264").replace(">=", "\u2265").strip()
    is_spelled, text = not _DIGIT.search(text), with_digits(text)
    if (both := list(quantities(text, question))) and _is_unsure(text, both, question):
        return both[0]._replace(value=None)
    parts = [text] if has_several_equations(text) else [text, _CLAUSE_END.split(text, maxsplit=1)[0]]
    for part in parts:
        if (number := quantity(part, question)) is not None:
            return number
    if share := _share(text, question):
        return share
    numbers = spelled_numbers(text, question) if is_spelled else list(quantities(text, question))
    numbers = not_denied(text, numbers)
    if not _WORD.search(_COMMAND.sub(" ", text)):
        is_one = len(numbers) == 1 and "=" not in right_side(text)
        return numbers[0]._replace(value=numbers[0].value if is_one else None) if numbers else None
    if not numbers or _BOUNDED.match(text) or (alternatives(text, question) and len(numbers) == 2):
        return numbers[0]._replace(value=None) if numbers else None
    if len(numbers) == 2 and begins_with(text, numbers[0]) and _is_calculated(text, *numbers):
        return numbers[0]._replace(value=None)
    if begins_with(text, numbers[0]) and (
        len(numbers) == 1 or not _JOINED.match(text, numbers[0].end, numbers[1].start)
    ):
        return _undecided_if_two(text, numbers[0], question) if _INFERENCE.search(text) else numbers[0]
    return _undecided_if_two(text, concluding_number(text, question), question)


def _named_unit(question: str, unit: str) -> str:
    """The unit of "How much in dollars?" if `unit` can be converted to it; else none."""
    named = _IN_UNIT.search(question)
    if named is None or not (is_known(named[1]) and is_known(unit)):
        return ""
    return named[1] if conversion(unit, named[1]) else ""


def _compared_in_scale(gold: Fraction, value: Fraction, scale: Fraction, question: str) -> tuple[Grade, str] | None:
    """The grade of a number that equals `gold` in some scale, such as 24 or "2 dozen" for 2 if the question asks how
    many dozen; None if it does in none."""
    asked = asked_scale(question)
    if gold == value or (scale == 1 < asked and gold * asked == value):
        return "right", "equal as numbers"
    if gold != value / scale:
        return None
    is_meant = scale == asked or scale not in SCALES or not question
    return ("right", "equal as numbers") if is_meant else ("unparsed", "perhaps in another scale")


def _in_other_words(stated: str, question: str) -> Fraction | None:
    """3/4 for "3 quarters", if the question does not count quarters, and 0 for "none"."""
    if stated.strip(" .").lower() in _NONE:
        return Fraction(0)
    parts = _COUNTED_PARTS.fullmatch(stated)
    if parts is None or parts[2].lower() in question.lower():
        return None
    return Fraction(int(parts[1]), part_size(parts[2].lower()))


def _is_unsure(text: str, numbers: Sequence[Quantity], question: str) -> bool:
    """Whether `text`, which has digits, makes another number of its `numbers` in words, or leaves open which is meant:
    "12 plus one", "12 (or 13)", "12 if he comes, else 13", "at least 12"."""
    if _IN_WORDS.search(text) or (_AT_LEAST.match(text) and not _ASKS_FOR_BOUND.search(question)):
        return True
    different = len({number.value and number.value / 100**number.percent for number in numbers}) > 1
    return different and (_IF.search(text) or _OR.search(text)) is not None


def _undecided_if_two(text: str, number: Quantity | None, question: str) -> Quantity | None:
    """`number`, without a value if the first sentence of `text` is a number alone, and the others conclude another:
    "12. That is the answer to question 3."
    """
    first, *others = sentences(without_enumeration(text)) or [""]
    alone = quantity(first, question) if others else None
    last = concluding_number(text, question) if alone else None
    if number is None or alone is None or last is None or alone.value == last.value:
        return number
    return number._replace(value=None)


def _share(text: str, question: str) -> Quantity | None:
    """The number of a `text` that says "3 out of 5", with 5 as its scale, since 3/5 is meant as well; None for other
    texts, and for "3 in 5" or "3 of 5" within more words."""
    text = text if _DIGIT.search(text) else in_digits(text)
    numbers = list(quantities(text, question))
    if len(numbers) != 2 or not (joint := _SHARE.fullmatch(text, numbers[0].end, numbers[1].start)):
        return None
    part, total = numbers
    if part.value is None or total.value is None or part.percent or total.percent or part.value.denominator > 1:
        return None
    said = joint["out"] or begins_with(text, part) or _SAID.search(text, max(part.start - 8, 0), part.start)
    is_share = said and 0 <= part.value <= total.value and total.value
    return part._replace(text=text[part.start : total.end], scale=total.value) if is_share else None


def _is_part(number: Quantity, stated: str) -> bool:
    """Whether `number` is a part of something uncounted: "half", "a third of the students", "50% of them"."""
    is_fraction = number.value is not None and (number.percent or 0 < number.value < 1)
    return is_fraction and bool(_PART_OF.match(number.unit) or _HALF.fullmatch(stated))


def _is_calculated(text: str, one: Quantity, other: Quantity) -> bool:
    """Whether the words between the two numbers of `text` make a third one: "50% of 20", "5 more than 3"."""
    is_part = one.percent or (one.value is not None and 0 < one.value < 1)
    share = is_part and not text[other.end :].strip(" .") and _OF.fullmatch(text, one.end, other.start)
    return bool(share or _CALCULATES.fullmatch(text, one.end, other.start))


def _compared_undecided(stated: str, gold: Fraction, is_a_number: bool) -> tuple[Grade, str]:
    """The grade of a formula, or of a text that may mean several numbers: wrong if none of its readings is `gold`."""
    formula = _CROSS.sub(r" \\times ", right_side(stated))
    if _is_formula(formula) and "=" not in formula:
        return compare_latex(_latex(gold), formula)
    if not is_a_number:
        return "unparsed", "not a number"
    ratio = _RATIO.search(stated)
    is_ratio = ratio is not None and int(ratio[1]) == int(ratio[2]) * gold
    undecided = is_ratio or may_be(stated, gold) or _CALCULATION.search(stated)
    return ("unparsed", "not one number") if undecided else ("wrong", "different, whatever it means")


def _is_formula(text: str) -> bool:
    """Whether `text` is something to calculate, without words other than those of LaTeX."""
    words = _COMMAND.sub(" ", text)
    return not _WORD.search(words) and _OPERATION.search(text) is not None and not _NO_OPERATION.search(text)


def _latex(value: Fraction) -> str:
    return str(value.numerator) if value.denominator == 1 else f"\\frac{{{value.numerator}}}{{{value.denominator}}}"
