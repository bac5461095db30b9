"""Rewrites numbers in LaTeX or in words as digits.

Every pattern takes time linear in the length of its text, because a model may write any text.
"""

from __future__ import annotations

import re

from text_to_num import alpha2digit

from mind.grading.plain_text import LATEX_THOUSANDS, unwrapped, with_overlines

_FORMULA = re.compile(
    r"\$\$([^$]+)\$\$|\$((?:\\.|[^$\n\\])*(?:\\.|[^$\s\\]))\$(?![0-9])|\\\(([^\n]{1,400}?)\\\)|\\\[([^\n]{1,400}?)\\\]"
)
_ARROW = re.compile(r"=>|->|\u21d2|\u2192|\\(?:Rightarrow|rightarrow|implies|to)(?![A-Za-z])")
_IN_WORDS = ("power", "squared", "cubed")
_POWER = re.compile(
    r"(?<=[0-9])\s(?:raised\s)?to\sthe\s(?=[^.;]{0,30}\bpower\b)(?:power\s(?:of\s)?)?"
    r"(?P<sign>(?:minus|negative)\s|-)?(?P<digits>[0-9]{1,9})(?:st|nd|rd|th)?(?:\spower)?\b"
)
_SQUARED = re.compile(r"(?<=[0-9])\s(squared|cubed)\b")
_TIMES_TEN = re.compile(r"(?<=[0-9])\stimes\s(?=10\^)")
_WORDS_BEHIND = re.compile(
    r"(?<=[0-9]\s)(?P<before>(?:hundred|thousand|million|billion)\s(?:and\s)?|(?:hours?|minutes?|feet|foot|pounds?|dollars?)"
    r"\s(?:and\s)?(?=[a-z]+(?:[ -][a-z]+)?\s(?:minutes?|seconds?|inch(?:es)?|ounces?|cents?)\b))"
    r"(?P<words>[a-z][a-z \-]{1,80})",
    re.IGNORECASE,
)
"""Words behind digits that go on with the number: "1 million and one", "1 hour and thirty minutes"."""
_HOURS = re.compile(r"\b([0-9]+)\s?h(?:rs?)?\.?,?\s?([0-9]{1,2})\s?m(?:ins?)?\b\.?")
_AN_HOUR = re.compile(r"\b(?:an|one)\s(?=hour\sand\s[0-9a-z]+\s(?:minutes?|seconds?)\b)", re.IGNORECASE)
_REPEATING = re.compile(r"(?<=\.)([0-9]*)\\(?:overline|bar|dot)\s*(?:\{([0-9]+)\}|([0-9]))")
_FRACTION = re.compile(
    r"(?P<whole>[0-9]?)\s{0,4}\\[dtc]?frac\s*(?:\{\s*(?P<above>-?[0-9.]+)\s*\}\s*\{\s*(?P<below>-?[0-9.]+)\s*\}"
    r"|\s*(?P<one>[0-9])\s*(?P<other>[0-9]))"
)
_DEGREES = re.compile(r"\s{0,4}\^\s*(?:\\circ|\{\s*\\circ\s*\})|\\degrees?(?![A-Za-z])")
_SIGNS = {
    "\\times": "\u00d7",
    "\\cdot": "\u00b7",
    "\\div": "\u00f7",
    "\\approx": "\u2248",
    "\\sim": "~",
    "\\%": "%",
    "\\$": "$",
}
_SIGNS |= {"\\left": "", "\\right": "", "\\displaystyle": ""}
_SIGN = re.compile("|".join(map(re.escape, _SIGNS)))

_PART_SIZES = {"half": 2, "halv": 2, "thir": 3, "3rd": 3, "quar": 4, "four": 4, "4th": 4, "fift": 5, "5th": 5}
_PART_SIZES |= {"sixt": 6, "6th": 6, "eigh": 8, "8th": 8, "tent": 10, "10th": 10}
PART = r"(half|halves|(?:third|quarter|fourth|fifth|sixth|eighth|tenth|3rd|4th|5th|6th|8th|10th)s?)\b"
ORDINAL = re.compile(r"\b(?:first|second|third|\w{1,9}th|twentieth|thirtieth)\b", re.IGNORECASE)
"""Words that `in_digits` turns into 1st, 2nd and so on."""
_SOME = re.compile(r"\b(?:hundreds|thousands|millions|billions)\b", re.IGNORECASE)
_ONE = re.compile(
    r"\ban?\s(?=(?:hundred|thousand|million|billion|dozen|half|third|quarter)\b"
    r"|(?:fourth|fifth|sixth|eighth|tenth)(?:\W*\Z|\sof\b))",
    re.IGNORECASE,
)
_ONE_AND_A_HALF = re.compile(r"\b(?:an?|one)\s([a-z]+)\sand\sa\shalf\b(?![\s-]\w)", re.IGNORECASE)
_HYPHEN = re.compile(rf"(?<=[a-z])-(?={PART})")
_AND_A_HALF = re.compile(r"(?<=[0-9])\sand\s(?:a|1|one)\shalf\b", re.IGNORECASE)
_PARTS = re.compile(rf"\b([0-9]+)\s{PART}")
_SCALE = re.compile(r"(?<=[0-9])\s(1000|1000000|1000000000)\b")
_SCALES = {"1000": "thousand", "1000000": "million", "1000000000": "billion"}


def plain_number(text: str) -> str:
    r"""`text` with the numbers of simple LaTeX in plain notation: "2\frac{1}{2}\text{ m}", "1{,}000", "\$5"."""
    text = _FORMULA.sub(lambda match: next(filter(None, match.groups()), ""), LATEX_THOUSANDS.sub(",", text))
    text = _ARROW.sub("=", with_overlines(text)).replace("!=", "\u2260")
    if any(word in text for word in _IN_WORDS):
        text = _POWER.sub(lambda match: f"^{match['sign'] and '-' or ''}{match['digits']}", text)
        text = _SQUARED.sub(lambda match: "^2" if match[1] == "squared" else "^3", text)
        text = _TIMES_TEN.sub("\u00d7", text)
    text = _WORDS_BEHIND.sub(_rest_in_digits, _HOURS.sub(r"\1 hours \2 minutes", _AN_HOUR.sub("1 ", text)))
    if "\\" not in text:
        return text
    text = _REPEATING.sub(lambda match: f"{match[1]}({match[2] or match[3]})", text)
    text = _FRACTION.sub(_plain_fraction, text)
    text = _SIGN.sub(lambda match: _SIGNS[match[0]], _DEGREES.sub(" degrees", text))
    return unwrapped(text)


def _rest_in_digits(match: re.Match[str]) -> str:
    rest = in_digits(match["words"])
    return match["before"] + rest if rest[:1].isdecimal() else match[0]


def in_digits(text: str) -> str:
    """`text` with its numbers in words written in digits: "forty-two", "minus seven", "one and a half million"."""
    text = _SOME.sub("some", text.encode(errors="replace").decode())
    text = _ONE_AND_A_HALF.sub(r"1.5 \1s", text)
    text = _ONE.sub("one ", _HYPHEN.sub(" ", text))
    text = _AND_A_HALF.sub(".5", alpha2digit(text, "en", threshold=0))
    text = _PARTS.sub(lambda match: f"{match[1]}/{part_size(match[2])}", text)
    return _SCALE.sub(lambda match: f" {_SCALES[match[1]]}", text)


def _plain_fraction(match: re.Match[str]) -> str:
    above, below = match["above"] or match["one"], match["below"] or match["other"]
    return f"{match['whole']}{match['whole'] and ' '}{above}/{below}"


def part_size(name: str) -> int:
    """3 for "thirds" and so on."""
    return next(size for start, size in _PART_SIZES.items() if name.startswith(start))
