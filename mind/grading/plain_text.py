r"""Rewrites the many notations of responses in one: Unicode signs, Markdown, HTML and LaTeX around plain text.

Every pattern takes time linear in the length of its text, because a model may write any text.
"""

from __future__ import annotations

import re
import unicodedata

from mind.words import with_seams

MAX_ANSWER_CHARACTERS = 2_000
"""An extracted answer is cut to this many characters: no real answer is longer, and parsers must not get an endless
text.

It is also below 4,300 digits, the most that Python converts to an int.
"""

LATEX_SIGNS = re.compile(r"[\\^_{]")

_SIGNS = {code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)}  # full width
_SIGNS |= dict.fromkeys(map(ord, "\u2010\u2011\u2012\u2013\u2212\ufe63"), "-")
_SIGNS |= dict.fromkeys([*range(0x2000, 0x200B), 0xA0, 0x202F, 0x205F, 0x3000], " ")
_SIGNS |= dict.fromkeys(map(ord, "\u200b\u200c\u200d\u2060\ufeff\u00ad\ufe0e\ufe0f"), "")
_SIGNS |= dict.fromkeys([0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)], "")  # of writing direction
_SIGNS |= dict.fromkeys(map(ord, "\u2018\u2019\u02bc"), "'") | dict.fromkeys(map(ord, "\u201c\u201d"), '"')
_SIGNS |= {0x066A: "%", 0x066B: ".", 0x066C: ",", 0x060C: ","}  # of Arabic
_SIGNS |= {0x3001: ", ", 0x3002: ". ", 0xFF01: "! ", 0xFF1F: "? "}  # no space follows them
_SIGNS |= {ord("\u2044"): "/", ord("\u2215"): "/", ord("\u2217"): "*", ord("\u22c5"): "\u00b7", ord("\u2236"): ":"}

_CONTROL = re.compile(r"\x1b\[[0-9;]{0,16}[A-Za-z]|[\0-\x08\x0e-\x1f\x7f]")
_DIGIT = re.compile(r"(?![0-9])\d")
_STYLED = re.compile("[\U0001d400-\U0001d7ff\u24b6-\u24e9\U0001f130-\U0001f149]")
"""Letters and digits in mathematical fonts, and letters in circles and squares."""

_SUPERSCRIPT = "\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079\u207a\u207b\u207f"
_SUPERSCRIPTS = re.compile(f"[{_SUPERSCRIPT}]+")
SUBSCRIPTS = str.maketrans("\u2080\u2081\u2082\u2083\u2084\u2085\u2086\u2087\u2088\u2089", "0123456789")
_LOWERED = str.maketrans(_SUPERSCRIPT, "0123456789+-n")
_VULGAR = dict(
    zip(
        "\u00bd\u2153\u2154\u00bc\u00be\u2155\u2156\u2157\u2158\u2159\u215a\u2150\u215b\u215c\u215d\u215e\u2151\u2152",
        [
            "1/2",
            "1/3",
            "2/3",
            "1/4",
            "3/4",
            "1/5",
            "2/5",
            "3/5",
            "4/5",
            "1/6",
            "5/6",
            "1/7",
            "1/8",
            "3/8",
            "5/8",
            "7/8",
            "1/9",
            "1/10",
        ],
        strict=True,
    )
)
_VULGARS = re.compile(f"([0-9]?)\\s?([{''.join(_VULGAR)}])")

_BOLD = re.compile(r"(?<![\w)\]}*])\*\*|\*\*(?![\w(*]|(?<=[0-9]\*\*)-[0-9])|`+")  # "2**3" is a power
_EMPHASIS = re.compile(r"(?<![\w*\\}])([*_]{1,2})(?=[^\s*_])([^*_\n]{0,200})(?<=\S)\1(?![\w*])")
_CLOSING_TAG = re.compile(r"</([A-Za-z]{1,10})\s?>")
_MEANINGFUL_TAGS = {"answer", "s"}

APPROXIMATELY = re.compile(r"\s?(?:\u2248|\\approx(?![a-z])|\bor\s(?:about|approximately|roughly|around)\b)\s?")
"""Between an exact and a rounded value, of which either may be the gold answer."""
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n")

_LATEX_SPACE = re.compile(r"\\[,;:!> ]|~|\\(?:q?quad|displaystyle)(?![A-Za-z])")
_LATEX_TEXT = re.compile(
    r"\\(?:text(?:bf|it|rm|sf|tt|normal)?|mbox|math(?:rm|bf|sf|it|tt|bb)|bold(?:symbol)?|operatorname|underline|emph|[bf]box|boxed)"
    r"\s*\{([^{}]*)\}|\\color\s*\{[^{}]*\}"
)
_DOLLARS = re.compile(r"\$\$?|\\[()\[\]]")
LATEX_THOUSANDS = re.compile(r"(?<=[0-9])(?:\{,\}|,?\\[!,;: ]|~)\s?(?=[0-9]{3}(?![0-9]))")
_REPEATED = re.compile(
    r"(?<=[0-9])\.([0-9]{0,12}?)(?:([0-9])\2{2,}|([0-9]{2,6}?)\3+)(?:\.\.\.|\u2026|\\[lc]?dots(?![A-Za-z]))"
)
_WRAPPED = re.compile(r"[\s\"'`*_.,;:!?(){}\[\]<>|]*")


def plain_text(text: str) -> str:
    """`text` with one form of minus, space and quote, with ASCII digits, with letters of one font, composed with their
    accents, with a space between a digit and a letter of a script without spaces, and without control characters,
    emphasis and HTML."""
    text = _CONTROL.sub("", text)
    if not text.isascii():
        text = unicodedata.normalize("NFC", text).translate(_SIGNS)
        text = _STYLED.sub(lambda match: unicodedata.normalize("NFKC", match[0]), text)
        text = _DIGIT.sub(lambda match: str(unicodedata.decimal(match[0])), text)
        text = _SUPERSCRIPTS.sub(lambda match: f"^{{{match[0].translate(_LOWERED)}}}", text)
        text = _VULGARS.sub(lambda match: f"{match[1]}{match[1] and ' '}{_VULGAR[match[2]]}", text)
        text = with_seams(text)
    if names := {name.lower() for name in _CLOSING_TAG.findall(text)} - _MEANINGFUL_TAGS:
        text = re.sub(rf"</?(?:{'|'.join(sorted(names))})(?:\s[^<>]{{0,100}})?>", "", text, flags=re.IGNORECASE)
    if "*" in text or "`" in text or "_" in text:
        text = _EMPHASIS.sub(r"\2", _BOLD.sub("", text))
    return text


def sentences(text: str) -> list[str]:
    """The sentences and lines of `text` that are not blank."""
    return [sentence for sentence in _SENTENCE_END.split(text) if sentence.strip()]


def without_latex_text(text: str) -> str:
    r"""`text` without the LaTeX around words: "$\mathbf{B}$", "\text{(B)}\; bank" become "B", "(B)  bank"."""
    return unwrapped(_DOLLARS.sub("", text))


def unwrapped(text: str) -> str:
    r"""`text` without fonts such as \text{...}, and with plain spaces."""
    if "\\" in text or "~" in text:
        for _ in range(3):  # \textbf{\text{B}}
            text = _LATEX_TEXT.sub(lambda match: match[1] or "", text)
        text = _LATEX_SPACE.sub(" ", text)
    return text


def with_overlines(text: str) -> str:
    r"""`text` in which repeating digits of a decimal, "0.1666...", get a line above: "0.1\overline{6}"."""
    if not ("..." in text or "\u2026" in text or "dots" in text):
        return text
    return _REPEATED.sub(lambda match: rf".{match[1]}\overline{{{match[2] or match[3]}}}", text)


def bare(text: str) -> str:
    """`text` without LaTeX, quotes, brackets and full stops around it, in lower case, with single spaces and without
    subscripts: H2O."""
    text = " ".join(without_latex_text(text).translate(SUBSCRIPTS).split())
    start = _WRAPPED.match(text)
    assert start is not None
    return text[start.end() :].rstrip(" \"'`*_.,;:!?(){}[]<>|").lower()
