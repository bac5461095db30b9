"""Other ways to write a LaTeX answer: a rule maps an answer to an equal one, or to None where it does not apply."""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction

INTEGER = re.compile(r"-?[0-9]+")
NUMBER = re.compile(r"-?[0-9]*\.?[0-9]+")
FRACTION = re.compile(r"(-?)\\d?frac\{([0-9]+)\}\{([0-9]+)\}")
WORD = re.compile(r"\\text\{(\w+)\}")
CHOICE = re.compile(r"\\text\{\(([A-Z])\)\}")
TUPLE = re.compile(r"\((-?[0-9]+(?:, ?-?[0-9]+)+)\)")
LIST = re.compile(r"-?[0-9]+(?:, ?-?[0-9]+)+")
THOUSANDS = re.compile(r"(\\\$)?[0-9]{1,3}(?:(?:,|,\\! ?)[0-9]{3})+")
SUM = re.compile(r"[0-9a-z\\ ^]+(?: ?[+-] ?[0-9a-z\\ ^{}]+)+")


def replaced(pattern: str, by: str, unless: str = r"\A\Z") -> Callable[[str], str | None]:
    """Every match of `pattern` replaced; None where it or `unless` says that this does not apply."""
    return lambda a: re.sub(pattern, by, a) if re.search(pattern, a) and not re.search(unless, a) else None


def wrapped(before: str, after: str, kind: re.Pattern[str] = re.compile("(?s).*")) -> Callable[[str], str | None]:
    """Between `before` and `after`, where the answer is of the kind."""
    return lambda a: f"{before}{a}{after}" if kind.fullmatch(a) else None


def decimal(answer: str) -> str | None:
    """Of a fraction that terminates."""
    match = FRACTION.fullmatch(answer)
    if match is None or 10**12 % int(match[3]):
        return None
    return f"{match[1]}{float(Fraction(int(match[2]), int(match[3])))}"


def fraction(answer: str) -> str | None:
    """Of a number, not in lowest terms."""
    if not NUMBER.fullmatch(answer):
        return None
    value = Fraction(answer)
    return f"{'-' if value < 0 else ''}\\frac{{{2 * abs(value.numerator)}}}{{{2 * value.denominator}}}"


def improper(answer: str) -> str | None:
    """One fraction of a mixed number."""
    match = re.fullmatch(r"([0-9]+) ?\\frac\{([0-9]+)\}\{([0-9]+)\}", answer)
    return match and f"\\frac{{{int(match[1]) * int(match[3]) + int(match[2])}}}{{{match[3]}}}"


def grouped(separator: str) -> Callable[[str], str | None]:
    """An integer of four digits or more in groups of three."""
    return lambda a: f"{int(a):,}".replace(",", separator) if re.fullmatch("[0-9]{4,}", a) else None


def ungrouped(answer: str) -> str | None:
    return re.sub(r",(?:\\! ?)?", "", answer) if THOUSANDS.fullmatch(answer) else None


def named(answer: str) -> str | None:
    """With "x = " before it, where nothing like that is there and the answer is no word."""
    words = re.sub(r"\\[a-z]+", "", answer)
    return None if "=" in answer or "\\in" in answer or "\\text{" in answer or "x" in words else f"x = {answer}"


def unnamed(answer: str) -> str | None:
    match = re.fullmatch(r"[a-z] ?(?:=|\\in) ?(.*)", answer)
    return match and match[1]


def other_order(answer: str) -> str | None:
    return ",".join(reversed(answer.split(","))) if LIST.fullmatch(answer) and not THOUSANDS.fullmatch(answer) else None


def as_set(answer: str) -> str | None:
    return f"\\{{{answer}\\}}" if LIST.fullmatch(answer) and not THOUSANDS.fullmatch(answer) else None


def reversed_terms(answer: str) -> str | None:
    """A sum with its terms in the other order."""
    if not SUM.fullmatch(answer) or "pm" in answer:
        return None
    terms = re.findall(r"[+-]?[^+-]+", answer.replace(" ", "") if "\\" not in answer else answer)
    signed = [term if term.lstrip()[0] in "+-" else f"+{term}" for term in reversed(terms)]
    return "".join(signed).lstrip("+ ")


def under_one_root(answer: str) -> str | None:
    """2 \\sqrt{5} as \\sqrt{20}."""
    match = re.fullmatch(r"([0-9]+) ?\\sqrt\{?([0-9]+)\}?", answer)
    return match and f"\\sqrt{{{int(match[1]) ** 2 * int(match[2])}}}"


def in_parentheses(answer: str) -> str | None:
    """An expression, so no list, interval, equation, matrix, or text."""
    return None if re.search(r"[,=\]\[]|\\in|text|mbox|matrix|_|\\\$", answer) else f"\\left({answer}\\right)"


def without_spaces(answer: str) -> str | None:
    """Without those that do not end a command or part two numbers."""
    shorter = re.sub(r"(?<![0-9a-zA-Z\\]) +| +(?![0-9a-zA-Z ])|(?<=[0-9]) +(?=\\)", "", answer)
    return shorter if shorter != answer else None


RULES: dict[str, Callable[[str], str | None]] = {
    "in dollars": wrapped("$", "$"),
    "in double dollars": wrapped("$$", "$$"),
    "boxed": wrapped("\\boxed{", "}"),
    "braced": wrapped("{", "}"),
    "in \\(": wrapped("\\(", "\\)"),
    "displayed, with a stop": wrapped("\\[ ", " \\]."),
    "spaces around": wrapped("\\; ", " \\,"),
    "display style": wrapped("\\displaystyle ", ""),
    "\\dfrac": replaced(r"\\frac", r"\\dfrac"),
    "\\tfrac": replaced(r"\\d?frac", r"\\tfrac"),
    "a/b": replaced(r"\\d?frac\{([0-9]+)\}\{([0-9]+)\}", r"\1/\2", unless=r"[0-9] ?\\frac"),
    "\\pi/b": replaced(r"\\frac\{\\pi\}\{([0-9]+)\}", r"\\pi/\1"),
    "\\frac ab": replaced(r"([0-9]+)/([0-9]+)", r"\\frac{\1}{\2}"),
    "braces of \\frac": replaced(r"\\frac ?([0-9])([0-9])(?![0-9])", r"\\frac{\1}{\2}"),
    "no braces of \\frac": replaced(r"\\frac\{([0-9])\}\{([0-9])\}", r"\\frac\1\2"),
    "decimal": decimal,
    "fraction": fraction,
    "improper fraction": improper,
    "places": wrapped("", ".00", INTEGER),
    "zero before the point": replaced(r"\A\.", "0."),
    "no zero before the point": replaced(r"\A0\.", "."),
    "a unit": wrapped("", " \\text{ cm}", NUMBER),
    "a squared unit": wrapped("", "\\mbox{ m}^2", NUMBER),
    "\\mathrm unit": wrapped("", "\\,\\mathrm{kg}", NUMBER),
    "no unit": replaced(r"(?<=.)\\(?:text|mbox)\{.*\}(?:\^2)?\Z", ""),
    "plain degrees": replaced(r"\^\\circ", " degrees"),
    "braced degree sign": replaced(r"\^\\circ", r"^{\\circ}"),
    "no degree sign": replaced(r"\^\\circ", ""),
    "\\text degrees": replaced(r"\^\\circ", r"\\text{ degrees}"),
    "\\degree": replaced(r"\^\\circ", r"\\degree"),
    "a degree sign": wrapped("", "^\\circ", NUMBER),
    "a percent sign": wrapped("", "\\%", NUMBER),
    "a dollar sign": wrapped("\\$", "", re.compile("[0-9.]+")),
    "no dollar sign": replaced(r"\A\\\$", ""),
    "plain dollar sign": replaced(r"\A\\\$", "$"),
    "\\left and \\right": replaced(r"(?<!\\)([\[(])(.*?)([\])])", r"\\left\1 \2 \\right\3", unless=r"\\left|text"),
    "no \\left and \\right": replaced(r"\\(?:left|right) ?", ""),
    "\\bigl and \\bigr": replaced(r"\\left(.*)\\right", r"\\bigl\1\\bigr"),
    "spaces behind commas": replaced(r",(?! )(?!\\!)", ", ", unless=THOUSANDS.pattern),
    "thin spaces behind commas": replaced(r", ", r",\\,"),
    "no spaces": without_spaces,
    "spaces around signs": replaced(r"(?<=[0-9a-z}]) ?([+-]) ?(?=[0-9a-z\\])", r" \1 "),
    "+\\infty": replaced(r"(?<!-)\\infty", r"+\\infty"),
    "x =": named,
    "no x =": unnamed,
    "y=": replaced(r"\A([a-z]) = ", r"\1="),
    "commas of thousands": grouped(","),
    "{,} of thousands": grouped("{,}"),
    "\\! of thousands": grouped(",\\!"),
    "no commas of thousands": ungrouped,
    "other order": other_order,
    "set": as_set,
    "no set": replaced(r"\A\\\{(.*)\\\}\Z", r"\1"),
    "other order of terms": reversed_terms,
    "braces of \\sqrt": replaced(r"\\sqrt ?([0-9])", r"\\sqrt{\1}"),
    "no braces of \\sqrt": replaced(r"\\sqrt\{([0-9])\}", r"\\sqrt\1"),
    "\\sqrt and a space": replaced(r"([0-9])\\sqrt", r"\1 \\sqrt"),
    "\\cdot before \\sqrt": replaced(r"([0-9]) ?\\sqrt", r"\1 \\cdot \\sqrt"),
    "one root": under_one_root,
    "\\sqrt[2]": replaced(r"\\sqrt\{", r"\\sqrt[2]{"),
    "power of 1/2": replaced(r"\\sqrt\{([0-9]+)\}\Z", r"\1^{1/2}", unless=r"[0-9] ?\\sqrt"),
    "in parentheses": in_parentheses,
    "\\cdot before \\pi": replaced(r"([0-9]) ?\\pi", r"\1 \\cdot \\pi"),
    "\\pi first": replaced(r"\A([0-9]+) ?\\pi\Z", r"\\pi \\cdot \1"),
    "bracketed matrix": replaced("pmatrix", "bmatrix"),
    "no spaces in a matrix": replaced(r" ?(\\\\|&) ?", r"\1", unless=r"\A[^&\\]*\Z"),
    "braced power": replaced(r"\^([0-9])", r"^{\1}", unless="mbox|text"),
    "times": replaced(r"(?<![0-9a-z^_\\])([0-9]+) ?([a-zR])(?![a-z])", r"\1 \\cdot \2", unless=r"\\"),
    "braced base": replaced(r"_([0-9])\Z", r"_{\1}"),
    "plain base": replaced(r"_\{([0-9])\}", r"_\1"),
    "no base": replaced(r"_\{?[0-9]\}?\Z", ""),
    "plain letter": replaced(rf"\A{CHOICE.pattern}\Z", r"\1"),
    "letter in brackets": replaced(rf"\A{CHOICE.pattern}\Z", r"(\1)"),
    "bold letter": replaced(rf"\A{CHOICE.pattern}\Z", r"\\textbf{(\1)}"),
    "letter as text": replaced(rf"\A{CHOICE.pattern}\Z", r"\\text{\1}"),
    "\\mathrm letter": replaced(rf"\A{CHOICE.pattern}\Z", r"\\mathrm{(\1)}"),
    "plain word": replaced(rf"\A{WORD.pattern}\Z", r"\1"),
    "bold word": replaced(rf"\A{WORD.pattern}\Z", r"\\textbf{\1}"),
    "\\mbox word": replaced(rf"\A{WORD.pattern}\Z", r"\\mbox{ \1 }"),
    "\\mathrm word": replaced(rf"\A{WORD.pattern}\Z", r"\\mathrm{\1}"),
    "lower case word": lambda a: a.lower() if WORD.fullmatch(a) and a.lower() != a else None,
    "function of (x)": replaced(r"\A\\cot x\Z", r"\\cot(x)"),
}


def forms(answer: str) -> dict[str, str]:
    """Other ways to write `answer`, by the names of their rules."""
    return {name: form for name, apply in RULES.items() if (form := apply(answer)) is not None and form != answer}
