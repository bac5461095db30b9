r"""Removes differences in notation that do not change a LaTeX answer: typesetting, units, and other spellings of a
sign.

Every pattern takes time linear in the length of its text, because a model may write any text.
"""

from __future__ import annotations

import itertools
import re
from fractions import Fraction

from mind.grading.plain_text import LATEX_THOUSANDS, MAX_ANSWER_CHARACTERS, plain_text, with_overlines

_SIGNS = {
    "\u03c0": r"\pi ",
    "\u03b8": r"\theta ",
    "\u03b1": r"\alpha ",
    "\u03b2": r"\beta ",
    "\u03c6": r"\phi ",
    "\u03bb": r"\lambda ",
    "\u221e": r"\infty ",
    "\u2264": r"\le ",
    "\u2265": r"\ge ",
    "\u2260": r"\neq ",
    "\u00b1": r"\pm ",
    "\u00d7": r"\times ",
    "\u00b7": r"\cdot ",
    "\u00f7": "/",
    "\u222a": r"\cup ",
    "\u2229": r"\cap ",
    "\u2208": r"\in ",
    "\u2205": r"\emptyset ",
    "\u2220": r"\angle ",
    "\u25b3": r"\triangle ",
    "\u211d": r"\mathbb{R}",
    "\u00b0": "",
    "<=": r"\le ",
    ">=": r"\ge ",
    "!=": r"\neq ",
    "**": "^",
}
_SIGN = re.compile("|".join(map(re.escape, _SIGNS)))
_UNIT = r"(?:\\(?:text|mbox|mathrm|textrm)\s*\{[^{}]*\}|degrees?\b)(?:\s*\^\s*(?:[23]|\{[23]\}))?"
_WORD = r"(?:[a-z]{3,}\.?|cm|mm|km|kg|mg|ft|in\.|mi|sq\.|cu\.|ml|mL)(?:\s*\^\s*(?:[23]|\{[23]\}))?"
FUNCTIONS = "(?:arc)?(?:sin|cos|tan)h?|cot|sec|csc|ln|log|exp"
"""A pattern for the names of functions that are also written without a backslash."""
_FUNCTION = rf"(?<!\\)(?:(?<![A-Za-z])|(?<=(?<![A-Za-z\\])[nxyz]))(?!sec\W*\Z)({FUNCTIONS})(?=[nxyz]?(?![A-Za-z]))"
"""Such a name, also directly beside a variable: 2ln3, xln(x), sinx; not "sec" at the end, a unit."""
_NOTHING = (
    r"(?i:(?:(?:(?:the|this)\s(?:equation|system|inequality)|it|there)\s(?:is|are|has|have)\s|has\s)?"
    r"(?:no\s(?:solutions?|roots?)(?:\sexists?)?|(?:(?:an?|the)\s)?empty\sset)|\\\{\s?\\\})"
)
_TYPESETTING = (
    (r"(?<![A-Za-z\\])(angle|triangle)\s?(?=[A-Z]{1,3}(?![A-Za-z]))", r"\\\1 "),
    (r"[\s~]+|(?<!\\)\\(?:[,;:!> ]|q?quad(?![A-Za-z]))", " "),
    (r"\\[()\[\]$%]|[$%\"]", ""),
    (
        r"\\(?:boxed|fbox|displaystyle|approx|underline|(?:left|right|[bB]igg?[lr]?)(?![A-Za-z])\.?)|\\color\s*\{[a-z]*\}",
        "",
    ),
    (r"(?<![A-Za-z\\])(pi|infty|theta|alpha|beta)(?![A-Za-z])", r"\\\1 "),
    (r"(?<![A-Za-z\\])infinity(?![A-Za-z])", r"\\infty "),
    (_FUNCTION, r"\\\1 "),
    (r"(?<![\w\\])([0-9]*\.?[0-9]+)[eE]([-+]?[0-9]{1,4})(?![\w.])", r"\1\\times 10^{\2}"),
    (r"(?:(?<![A-Za-z\\])sqrt|\u221a)\s*(?:\(([^()]*)\)|([0-9]+))", r"\\sqrt{\1\2}"),
    (r"\^\s*\(([^()]*)\)", r"^{\1}"),
    (r"\\[dtc]?frac\s*(\\[A-Za-z]+|[0-9])", r"\\frac{\1}"),
    (r"\\[dtc]?frac(\{[^{}]*\})\s*(\\[A-Za-z]+|\w)", r"\\frac\1{\2}"),
    (r"\\[dtc]frac", r"\\frac"),
)
_UNITS_AND_NOTATION = (
    (r"\s*\^\s*(?:\\circ|\{\s*\\circ\s*\})|\\degrees?", ""),
    (rf"(?<=[\w)}}\]])\s*{_UNIT}(?:\s*/\s*{_UNIT})?\s*\Z", ""),
    (rf"(?:(?<=[0-9)}}\]])|(?<=\\pi))\s+{_WORD}(?:[\s/]+{_WORD})*\s*\Z", ""),
    (r"\\(?:text|mbox|mathrm|textrm|textbf|mathbf)\s*\{([^{}]*)\}", r"\1"),
    (r"\A\s*\(\s*([A-Z])\s*\)\s*\Z", r"\1"),
    (r"([_^])\s*\{\s*(\w)\s*\}", r"\1\2"),
    (r"(?<=[0-9])\s*(?:\\cdot|\\times|\*)\s*(?=[A-Za-z]|\\(?:pi|sqrt)(?![a-z]))", ""),
    (r"(?<![\w}/.^])([0-9]+)/([0-9]+)(?![\w{/.^])", r"\\frac{\1}{\2}"),
    (rf"\A[^\w{{\\]*{_NOTHING}\W*\Z|\\varnothing(?![A-Za-z])", r"\\emptyset "),
)
_LESS, _GREATER = r"\\l(?:t|e|eq|eqslant)(?![a-z])|<", r"\\g(?:t|e|eq|eqslant)(?![a-z])|>"
_BOTH, _EITHER = (
    re.compile(rf"\A\s*([a-z])\s*({_LESS}|{_GREATER})([^<>=,]*?){joint}\s*\1\s*({_LESS}|{_GREATER})([^<>=,]*)\Z")
    for joint in (r"(?:\s*,?\s*\band\b|,)", r"\s*,?\s*\bor\b")
)
_SINE_OF_DEGREES = re.compile(
    r"(\\(?:sin|cos|tan|cot|sec|csc)\s*(?:\\left)?[({]?\s*)([0-9.]+)\s*(?:\u00b0|\^\s*(?:\\circ(?![A-Za-z])|\{\s*\\circ\s*\}))"
)
_REPEATING = re.compile(r"([0-9]{0,99})\.([0-9]{0,99})\\(?:overline|bar|dot)\s*(?:\{\s*([0-9]{1,99})\s*\}|([0-9]))")


def normal_latex(text: str) -> str:
    """`text`, cut to MAX_ANSWER_CHARACTERS, without anything that does not change its value: see `latex_equality`."""
    text = _SINE_OF_DEGREES.sub(r"\1\\frac{\2\\pi}{180}", plain_text(text[:MAX_ANSWER_CHARACTERS]))
    text = _SIGN.sub(lambda match: _SIGNS[match[0]], text)
    text = _REPEATING.sub(_as_fraction, with_overlines(text))
    for replacements in (_TYPESETTING, _UNITS_AND_NOTATION):
        text = _stripped(text)
        for pattern, replacement in replacements:
            text = re.sub(pattern, replacement, text)
        text = _unbraced(_stripped(text))
    return _EITHER.sub(_as_union, _BOTH.sub(_as_chain, text))


def _stripped(text: str) -> str:
    """Without what surrounds an answer, and without thousands separators."""
    text = LATEX_THOUSANDS.sub("", text).replace("\\$", "$").replace("\\%", "%")
    text = text.strip(" \t\n*`:").removeprefix("=").removesuffix(".").strip()
    return f"-{text[0]}{text[2:]}" if text[:2] in ("$-", "\u20ac-", "\u00a3-") else text


def _as_fraction(match: re.Match[str]) -> str:
    """The fraction of a repeating decimal."""
    whole, places, period = match[1] or "0", match[2], match[3] or match[4]
    value = Fraction(f"{whole}.{places}0") + Fraction(int(period), 10 ** len(places) * (10 ** len(period) - 1))
    return f"\\frac{{{value.numerator}}}{{{value.denominator}}}"


def _as_chain(match: re.Match[str]) -> str:
    """Two bounds of one variable: "x \\ge 2 and x < 7" as "2 \\le x < 7"."""
    name, sign, bound, other_sign, other_bound = match.groups()
    lower, upper = re.fullmatch(_GREATER, sign), re.fullmatch(_LESS, other_sign)
    if lower is None or upper is None:
        sign, bound, other_sign, other_bound = other_sign, other_bound, sign, bound
    if not (re.fullmatch(_GREATER, sign) and re.fullmatch(_LESS, other_sign)):
        return match[0]
    less = "<" if sign in (">", "\\gt") else "\\le"
    return f"{bound.strip()} {less} {name} {other_sign} {other_bound.strip()}"


def _as_union(match: re.Match[str]) -> str:
    """Two rays of one variable: "x \\le 2 or x > 7" as "(-\\infty, 2] \\cup (7, \\infty)"."""
    name, sign, bound, other_sign, other_bound = match.groups()
    if re.fullmatch(_GREATER, sign):
        sign, bound, other_sign, other_bound = other_sign, other_bound, sign, bound
    if not (re.fullmatch(_LESS, sign) and re.fullmatch(_GREATER, other_sign)):
        return match[0]
    end = ")" if sign in ("<", "\\lt") else "]"
    start = "(" if other_sign in (">", "\\gt") else "["
    return rf"(-\infty,{bound.strip()}{end}\cup {start}{other_bound.strip()},\infty)"


def _unbraced(text: str) -> str:
    """`text` without pairs of braces around all of it."""
    depths = list(itertools.accumulate({"{": 1, "}": -1}.get(character, 0) for character in text))
    if not text or depths[-1]:
        return text
    opening, closing = len(text) - len(text.lstrip("{")), len(text) - len(text.rstrip("}"))
    pairs = max(min(opening, closing, *depths[max(opening - 1, 0) : len(text) - closing]), 0)
    return text[pairs : len(text) - pairs].strip()
