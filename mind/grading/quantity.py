"""Reads numbers as people write them: their exact value, and whether the text around them makes another number of them.

Every pattern takes time linear in the length of its text, because a model may write any text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction
from typing import NamedTuple

from mind.grading.number_notation import PART, in_digits, part_size, plain_number
from mind.grading.plain_text import MAX_ANSWER_CHARACTERS, plain_text
from mind.grading.units import UNIT_NAME, asks_for, conversion, is_known, is_unit, unit_at

MAX_EXPONENT = 4_000
"""Largest power of ten. Larger numbers are not answers to any question, and take long to compare."""

_CURRENCY = r"(?:(?:US|CA|AU|NZ|HK|[RACS])?[$\u20ac\u00a3\u00a5\u20b9]|\b(?:Rs\.?|USD|EUR|GBP|CHF|INR|JPY))"
_CURRENCY_SIGN = re.compile("[$\u20ac\u00a3\u00a5\u20b9]")
# A minus after a word, a digit or a bracket is a subtraction, so it is not part of the number.
_NUMBER = re.compile(
    rf"""(?<![\w.])(?P<sign>(?<![)\]}}%])[-+])?(?P<currency>{_CURRENCY})?(?(currency)\s?(?P<inner>-)?)(?:
    (?P<european>[0-9]{{1,3}}(?:\.[0-9]{{3}})++,[0-9]++|[0-9]{{1,3}}(?:\.[0-9]{{3}}){{2,}}+  # 1.234,5
      | 0,0[0-9]++ | [0-9]{{1,3}},[0-9]{{1,2}}(?=\s(?:thousand|million|billion|trillion)\b))(?![0-9])
  | (?P<whole>
      [0-9]{{1,3}}(?:,[0-9]{{3}})++(?![0-9]|,[0-9])
    | [0-9]{{1,2}}(?:,[0-9]{{2}}(?=,))++,[0-9]{{3}}(?![0-9]|,[0-9])  # 12,34,567
    | [0-9]{{1,3}}(?:[ ][0-9]{{3}})++(?![0-9]|[ ,]?[0-9]|-[a-z])
    | [0-9]{{1,3}}(?:'[0-9]{{3}})++(?!['0-9])
    | [0-9]{{1,3}}(?:_[0-9]{{3}})++(?![_0-9])
    | [0-9]++
    )(?:\.(?P<places>[0-9]*)\((?P<period>[0-9]+)\)|\.(?P<decimals>[0-9]++))?  # 0.1(6)
  | \.(?P<fractional>[0-9]++))""",
    re.VERBOSE,
)
_SPACED_SIGN = re.compile(
    r"(?:(?:\A|[=:(]|\b(?:is|are|be|was|were|to|of|at|equals|gets?|gives|becomes|reach(?:es|ed)?|about|exactly|now|then))"
    r"\s*(?P<sign>minus|[+]|-)|\b(?P<negative>negative))\s\Z",
    re.IGNORECASE,
)
_SIGNS_BEFORE = ("- ", "+ ", "inus ", "ative ")
_FRACTION = re.compile(r"/(?P<below>-?[0-9]+(?:\.[0-9]+)?)(?![/0-9])")
_MIXED = re.compile(r"\s(?:and\s)?(?P<above>[0-9]{1,9})/(?P<below>[0-9]{1,9})(?![/0-9])")
_AND_A_PART = re.compile(rf"\sand\s(?:an?|one)\s{PART}|\s[a-z]+\sand\sa\s(half)\b(?!-)", re.IGNORECASE)
_EXPONENT = re.compile(
    r"[eE](?P<e>[-+]?[0-9]{1,9})(?![0-9_])"
    r"|\s?[\u00d7*x\u00b7]\s?10\s?(?:\^|\*\*)\s?[{(]?(?P<ten>[-+]?[0-9]{1,9})[)}]?"
    r"|\s?(?:\^|\*\*)\s?[{(]?(?P<power>-?[0-9]{1,9})[)}]?(?![0-9./])"
)
_SCALES = {"dozen": 12, "hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_SCALES |= {"quadrillion": 10**15, "quintillion": 10**18, "sextillion": 10**21}
_SCALES |= {"lakh": 10**5, "crore": 10**7, "k": 10**3, "m": 10**6, "mn": 10**6, "mln": 10**6, "mio": 10**6}
_SCALES |= {"b": 10**9, "bn": 10**9, "bln": 10**9}
_SCALE = re.compile(
    r"\s?(?P<name>(?i:hundred|thousand|million|billion|trillion|quadrillion|quintillion|sextillion|lakh|crore|dozen))s?\b"
    r"|(?P<short>[kK]|bn|bln|mn|mln|mio|M|B)\b(?!\^)|\s(?P<spaced>k|bn|mln|mn)\b",
)
_REST = re.compile(
    r"\s(?:and\s)?(?P<digits>[0-9]{1,3}(?:,?[0-9]{3})*)(?:\s(?P<name>(?i:hundred|thousand|million))\b)?(?!\w|[.,/][0-9])"
)
"""Behind a scale: the 500 of "1 million 500", and "500 thousand"."""
_ASKED_SCALE = re.compile(
    r"\b(?:in|how\smany)\s(?:the\s|more\s)?(dozen|hundred|thousand|million|billion|trillion)s?\b", re.IGNORECASE
)
_PERCENT = re.compile(r"\s?(?:%|per\s?cent\b|pct\b)")
_WHOLE_HOUR = re.compile(r":00(?![0-9:])")
_MORE_DIGITS = re.compile(r"(?:(?:\.{2,3}|[.,:/_'-])?[0-9])++")
_BELOW_ZERO = re.compile(r"[^0-9.,;]{0,24}?\b(?:below|under)\s(?:zero|freezing|0\b)")
_LETTERS = re.compile("[A-Za-z\u00b5]+")
_PART_OF_FORMULA = re.compile(r"[0-9_(]|\^(?!\{?-?[0-9])")
_HALF = re.compile(r"half\b(?:\s(?:of\s)?an?(?=\s))?(?!-|\spast\b)", re.IGNORECASE)
_PARTS = re.compile(rf"\s{PART}")
# Texts that make another number of the one before or after them.
_OPERATOR_BEHIND = re.compile(
    r"\s?[\u221a\u0391-\u03a8\u03b1-\u03bb\u03bd-\u03c9]|\s?[<>\u2264\u2265]\s?[a-z](?!\w)|[\u2080-\u2089\u2030\u221e\u00b1\u2213^_(]|!(?![\w!?])|[+](?=[\s.]|\Z)"
    r"|\s?\\(?:pi|sqrt|theta|infty|pm|log|ln|sin|cos|tan)(?![a-z])"
    r"|\s?[+*\u00d7\u00f7]\s?[-$(]{0,2}[\w\\]|\s?\u00b7\s?[0-9(\\\u0391-\u03c9]|\)\s?\^|\s/\s?[$(]?[0-9]|\s(?:-|x)\s[$(]?[0-9]|\s-\s[a-z](?!\w)|\s:\s?[0-9]|\s[xyzn](?!\w)|\s[rR]\s[0-9]"
    r"|(?:\s?-|\|)[A-Za-z](?![\w-])|-\s[a-z](?![\w-])|\s?\u00b7\s?[A-Za-z](?!\w)|\s?/\s?(?![hs])[A-Za-z](?![\w-])"
    r"|\s?[-/\u00b7]\s?(?:[\u0391-\u03bb\u03bd-\u03c9]|\\[a-z])"
    r"|\s(?:hundredths?|thousandths?|millionths?|factorial|remainder|pi|mod|choose|times\s[0-9]|log|ln|sin|cos|tan|sqrt|exp)\b|\se\s?\^"
)
_OPERATOR_BEFORE = re.compile(
    r"(?:[*/^\u00b7\u00d7\u00f7\u221a\u221b\u221c\u00b1\u2213<>\u2264\u2265\u2260]|(?<!\w)-\(?\Z|(?<![\w'])[b-z]\s?-|[\w)}\]%]\s?[+]|[0-9][^0-9]{0,16}\s-|[0-9]-|[0-9]\sx|[0-9]\(|_\{|\s[rR]"
    r"|\b(?:[Rr]emainder(?:\sof)?|root)|\b(?:sqrt|floor|ceil|abs|max|min)\s?\(?|\b(?:twice|double|triple|half|third|quarter|square|cube|root)\s(?:of\s)?|(?:\\[A-Za-z]+|\b(?:log|ln|sin|cos|tan))\s?(?:_\s?(?:\w|\{[^{}]*\})|\[[^\[\]]*\])?\s?[({]?)\s?\Z|[0-9](?:\s:\s|:)\Z"
)
_ABSOLUTE = re.compile(r"(?:\||\\[lr]?vert)\s?\Z")
_DENIAL_BEFORE = re.compile(
    r"(?:\bnot|n't|\bnever|\bcannot|\b(?:rather|other)\sthan|\binstead\sof|\banything\sbut|\bfar\sfrom|\bnowhere\snear|\bno\slonger)\s(?:be\s|exactly\s|equal\s(?:to\s)?|about\s)?[($]?\Z",
    re.IGNORECASE,
)
_POWER_OF_UNIT = re.compile(r"\^\{?-?\Z")
_LOOKED_AT = 24
"""This many characters before a number are checked for such texts."""

_DIGIT = re.compile("[0-9]")
_AROUND = re.compile(r"\S*(?:\s+\S+){0,2}")
_ANY_NUMBER = re.compile(r"[0-9]+(?:[.,'_ ][0-9]+)*")
_UNIT_TEXT = re.compile(
    r"(?:[^0-9+*^=<>\\/\u00b7]|(?<=[\w.)}])[*\u00b7](?=[A-Za-z])|(?<=[A-Za-z.)}\u00b0])\^(?:-?[0-9]|\{-?[0-9]\})"
    r"|\s?/\s?(?=[A-Za-z]))*+"
)
_WRAPPED = re.compile(r"\([^(),]*\)\.*|<[^<>,]*>\.*")  # "(0,1)" is a pair
_BOUND = re.compile(r"\sor\s(?:more|less|fewer)\b")
_MORE_OF_UNIT = re.compile(rf"\s?(?:/|[*\u00b7]|per\b|an?\b|(?:square|cubic)\b|{UNIT_NAME})")
_BEFORE = re.compile(
    r"(?:[\s~\u2248\u223c*`:\"]|\b(?:about|approximately|approx\.?|around|roughly|nearly|almost|exactly|just|only|simply"
    r"|therefore|thus|so|hence|now|then|indeed|clearly|equal\sto|equals|a\stotal\sof)\b,?)*+",
    re.IGNORECASE,
)
_SEVERAL = re.compile(r"=[^=]*(?:\bor\b|\band\b|,\s)[^=]*=")
_EQUALS = re.compile(r"=(?![^{}=]*\})")
"""An equals sign, not one within braces: \\sum_{i=1}^{3} i has none."""
_MULTIPLE = re.compile(r"[0-9.]+\s?[a-z]|[0-9.]*\s?[a-z]\s?\^\s?\{?[0-9]\}?")
_NAME = re.compile(r"\s*[A-Za-z]\w?\s*")


class Quantity(NamedTuple):
    """A number within a text."""

    text: str
    """As it is written, with sign, currency, scale and percent sign, without a unit."""
    value: Fraction | None
    """None if it is unclear which number is meant, or if none is: "12x", "3-5", "2:30", "8π", "1/0"."""
    start: int
    end: int
    """The position at which its unit would begin."""
    percent: bool = False
    """Whether `value` is in percent."""
    scale: Fraction = Fraction(1)
    """12 in "7 dozen" if the question may ask for dozens: `value` is 84, and 7 is meant as well. 60 in "2 hours and 30
    minutes", which is also 2.5 hours if no unit is asked for."""
    unit: str = ""
    """The text after it, if a text is this quantity alone; else the unit of measure after it or the sign before it."""


def quantities(text: str, question: str = "") -> Iterator[Quantity]:
    """The numbers of `text` in order; `question` helps to distinguish a unit ("60m") from a variable.

    "2 hours and 30 minutes" is one number.
    """
    last: Quantity | None = None
    for found in single_quantities(text, question):
        compound = _compound(text, last, found) if last else None
        if last and not compound:
            yield last
        last = compound or found
    if last:
        yield last


def single_quantities(text: str, question: str = "") -> Iterator[Quantity]:
    """The same with "2 hours and 30 minutes" as two numbers."""
    position = 0
    while (match := _NUMBER.search(text, position)) is not None:
        found = _quantity(text, match, question)
        if not _POWER_OF_UNIT.search(text, max(found.start - 4, 0), found.start):
            yield found
        position = found.end


def quantity(text: str, question: str = "") -> Quantity | None:
    """The number that `text` is, with words of approximation before it and a unit behind; None for other texts.

    Such as "-3", "$1,234.50", "1 234 km/h", "2/3", "2 1/2 cups", "50%", "1.5 million", "3 \u00d7 10^8 m/s", "x = 5",
    "about 12 apples", "forty-two". Texts longer than MAX_ANSWER_CHARACTERS give None.
    """
    if len(text) > MAX_ANSWER_CHARACTERS:
        return None
    text = right_side(text.strip())
    text = with_digits(text)
    if _WRAPPED.fullmatch(text):
        text = text.rstrip(".")[1:-1]
    found = next(quantities(text, question), None)
    if found is None or not begins_with(text, found):
        return None
    unit = _UNIT_TEXT.match(text, found.end)
    assert unit is not None
    if unit.end() < len(text):
        return None
    unit_text = unit[0].strip(" .,;:!*`")
    if not is_known(unit_text) and not _MORE_OF_UNIT.match(unit_text.removeprefix(found.unit)):
        unit_text = found.unit or unit_text  # "hours of work", "miles away"
    return found._replace(unit=unit_text, value=None if _BOUND.match(unit[0]) else found.value)


SCALES = frozenset(_SCALES.values())
"""The sizes of scale words: 12 of a dozen, 1000 of a thousand."""


def asked_scale(question: str) -> int:
    """12 for "How many dozen eggs ...", 10^6 for "... in millions?"; 1 for other questions."""
    asked = _ASKED_SCALE.search(question)
    return _SCALES[asked[1].lower()] if asked else 1


def with_digits(text: str) -> str:
    """`text` with its numbers in digits, if it has none in digits yet; "twelve!" is no factorial."""
    if _DIGIT.search(text):
        return text
    return plain_number(in_digits(_with_one_half(text.replace("!", "."))))


def _with_one_half(text: str) -> str:
    """`text` with "one half" for a "half" or "half an" at its start, which in a longer text is often no number."""
    start = len(before[0]) if (before := _BEFORE.match(text)) else 0
    half = _HALF.match(text, start)
    return f"{text[:start]}one half{text[half.end() :]}" if half else text


def not_denied(text: str, numbers: list[Quantity]) -> list[Quantity]:
    """The `numbers`, all parts of `text`, without denied ones such as the 99 of "100, not 99", if any others are
    left."""
    left = (text[max(number.start - _LOOKED_AT, 0) : number.start] for number in numbers)
    return [
        number for number, before in zip(numbers, left, strict=True) if not _DENIAL_BEFORE.search(before)
    ] or numbers


def surroundings(text: str, number: Quantity) -> str:
    """`number`, a part of `text`, with two words on each side, which include what makes it undecided."""
    before = _AROUND.match(text[max(number.start - 4 * _LOOKED_AT, 0) : number.start][::-1])
    behind = _AROUND.match(text, number.end)
    assert before is not None and behind is not None
    return text[number.start - before.end() : behind.end()].strip()


def may_be(text: str, value: Fraction) -> bool:
    """Whether any of the digits in `text` can mean `value` or its negative in any reading: 3 and 5 of "3-5"."""
    readings: set[str] = set()
    for match in _ANY_NUMBER.finditer(in_digits(text)):
        parts = re.split("[^0-9]", match[0][:MAX_ANSWER_CHARACTERS])
        readings.update(parts, ["".join(parts), f"{''.join(parts[:-1])}.{parts[-1]}"])
    return abs(value) in map(Fraction, readings - {"", "."})


def begins_with(text: str, number: Quantity) -> bool:
    """Whether only a sign and words of approximation precede `number`, a part of `text`."""
    before = _BEFORE.match(text)
    assert before is not None
    return text[before.end() : max(number.start, before.end())].strip().lower() in ("", "-", "+", "minus", "negative")


def number_value(text: str) -> Fraction | None:
    """The exact value of the number that `text` is (`quantity`), also in simple LaTeX; a percent sign counts as a
    unit."""
    found = quantity(plain_number(plain_text(text)))
    return found.value if found else None


def has_several_equations(text: str) -> bool:
    """Whether `text` gives values of several names: "x = 5, y = 2"."""
    return _SEVERAL.search(text) is not None


def right_side(text: str) -> str:
    """The side of an equation that is not a name: "x = 5", "12 = x", "5 + 7 = 12".

    The whole `text` if it does not give the value of one name or calculation: "x = 5 or x = 6", "2x = 5", "x^2 = 5".
    """
    sides = _EQUALS.split(text)
    if len(sides) == 1 or has_several_equations(text) or (len(sides) == 2 and _MULTIPLE.fullmatch(sides[0].strip())):
        return text
    return (sides[0] if len(sides) == 2 and _NAME.fullmatch(sides[1]) else sides[-1]).strip()


def _quantity(text: str, match: re.Match[str], question: str) -> Quantity:
    """The number with the digits in `match`, and everything before and after that belongs to it."""
    start, end = match.span()
    left = text[max(start - _LOOKED_AT, 0) : start]
    may_be_signed = left.endswith(_SIGNS_BEFORE) and not match["sign"] and not match["inner"]
    spaced_sign = _SPACED_SIGN.search(left) if may_be_signed else None
    value, end = _with_fraction(text, end, _digits_value(match), is_whole=not (match["decimals"] or match["period"]))
    asked = 1
    if exponent := _EXPONENT.match(text, end):
        value, end = _powered(value, exponent), exponent.end()
    while (scale := _SCALE.match(text, end)) and not (scale["short"] and asks_for(scale["short"], question)):
        name = (scale["name"] or scale["short"] or scale["spaced"]).lower()
        factor = _SCALES[name]
        value, end = value and value * factor, scale.end()
        asked = factor if scale["name"] and (name in question.lower() or (factor == 12 and not question)) else 1
        if (rest := _REST.match(text, end)) and value is not None:
            more = int(rest["digits"].replace(",", "")) * _SCALES.get((rest["name"] or "").lower(), 1)
            value, end = (value + more if more < factor else None), rest.end()
    if whole_hour := _WHOLE_HOUR.match(text, end):
        end = whole_hour.end()
    if percent := _PERCENT.match(text, end):
        end = percent.end()
    if rest := _MORE_DIGITS.match(text, end):
        value, end = None, rest.end()
    below_zero = _BELOW_ZERO.match(text, end)
    negative = "-" in (match["sign"], match["inner"]) or (spaced_sign is not None and spaced_sign["sign"] != "+")
    if value is not None and (negative or below_zero):
        value = None if _ABSOLUTE.search(left) else -value
    if _OPERATOR_BEHIND.match(text, end) or not _unit_behind(text, end, value, question):
        value = None
    if (not spaced_sign and _OPERATOR_BEFORE.search(left)) or _DENIAL_BEFORE.search(left):
        value = None
    if spaced_sign:
        start -= len(spaced_sign["sign"] or spaced_sign["negative"]) + 1
    written = text[start : below_zero.end() if below_zero else end]
    sign = _CURRENCY_SIGN.search(match["currency"] or "")
    unit = unit_at(text, end) or (sign[0] if sign else "")
    return Quantity(written, value, start, end, percent is not None, Fraction(asked), unit)


def _compound(text: str, larger: Quantity, smaller: Quantity) -> Quantity | None:
    """The sum of two quantities that form one, such as "2 hours and 30 minutes", in the smaller unit; else None."""
    if not larger.unit or not smaller.unit or larger.value is None or smaller.value is None:
        return None
    between = text[larger.end : smaller.start].strip().removeprefix(larger.unit)
    ratio = conversion(larger.unit, smaller.unit)
    if (
        between.strip(" .") not in ("", ",", "and", ", and", "&", "+")
        or not ratio
        or not 0 <= smaller.value < ratio
        or ratio == 1
    ):
        return None
    written = f"{text[larger.start : smaller.end]} {smaller.unit}"
    value = larger.value * ratio + smaller.value
    return smaller._replace(text=written, value=value, start=larger.start, scale=ratio)


def _digits_value(match: re.Match[str]) -> Fraction | None:
    if len(match[0]) > MAX_ANSWER_CHARACTERS:
        return None
    if match["european"]:
        return Fraction(match["european"].replace(".", "").replace(",", "."))
    if match["fractional"]:
        return Fraction(f".{match['fractional']}")
    whole = match["whole"] if match["whole"].isdecimal() else re.sub("[,' _]", "", match["whole"])
    if not match["decimals"] and not match["period"]:
        return Fraction(int(whole))
    if match["period"]:
        places, period = match["places"], match["period"]
        return Fraction(f"{whole}.{places}0") + Fraction(int(period), 10 ** len(places) * (10 ** len(period) - 1))
    decimals = match["decimals"]
    return Fraction(int(whole + decimals), 10 ** len(decimals))


def _with_fraction(text: str, end: int, value: Fraction | None, is_whole: bool) -> tuple[Fraction | None, int]:
    """`value` with the fraction at `end`, "/3" or " 1/2", if there is one, and the end of that."""
    if fraction := _FRACTION.match(text, end):
        return _ratio(value, fraction["below"]), fraction.end()
    if (part := _AND_A_PART.match(text, end)) and value is not None:
        return value + Fraction(1, part_size((part[1] or part[2]).lower())), part.end()
    mixed = _MIXED.match(text, end) if is_whole else None
    below_one = _ratio(Fraction(mixed["above"]), mixed["below"]) if mixed else None
    if mixed is None or below_one is None or below_one >= 1 or value is None:
        return value, end
    return value + below_one, mixed.end()


def _ratio(above: Fraction | None, below: str) -> Fraction | None:
    return above / Fraction(below) if above is not None and Fraction(below) else None


def _powered(value: Fraction | None, exponent: re.Match[str]) -> Fraction | None:
    if value is None:
        return None
    if exponent["power"] is None:
        ten = int(exponent["e"] or exponent["ten"])
        return value * Fraction(10) ** ten if abs(ten) <= MAX_EXPONENT else None
    power = int(exponent["power"])
    size = max(value.numerator.bit_length(), value.denominator.bit_length()) * abs(power)
    return value**power if size <= 3 * MAX_EXPONENT and (value or power > 0) else None


def _unit_behind(text: str, end: int, value: Fraction | None, question: str) -> bool:
    """Whether the text directly after `value`, if any, is a unit: "12kg", "3rd", but not "12x".

    "3 quarters" may be a fraction and is undecided; 8 quarters, 76 sixth graders and the quarters of the question are
    not.
    """
    if (part := _PARTS.match(text, end)) and value is not None:
        are_parts = part[1].endswith("s") and part[1] not in ("halves", "quarters")
        return (abs(value) >= part_size(part[1]) and not are_parts) or part[1][:4] in question.lower()
    letters = _LETTERS.match(text, end)
    if letters is None:
        return True
    return not _PART_OF_FORMULA.match(text, letters.end()) and is_unit(letters[0], question)
