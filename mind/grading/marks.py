r"""Answers that a text marks: behind "####", in \boxed{...}, behind "the answer is".

Every pattern here is linear in its text, because texts come from a model and may be arbitrarily odd.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from mind.answer_line import ANSWER_MARKER

LATEX_SIGNS = re.compile(r"[\\^_{]")
FORMULA = re.compile(r"\$\$[^$]+\$\$|\$(?:\\.|[^$\n\\])+\$|\\\([^\n]*?\\\)|\\\[.*?\\\]", re.DOTALL)
# "To get the answer:" and a line break introduce a calculation.
_ANSWER_PHRASE = re.compile(
    r"\banswer(?:\s+is[\s:*]*|\s*[:=][:* \t]*(?=[^\s:*])"
    r"|(?<!the answer)(?<!this answer)(?<!that answer)(?<!our answer)(?<!your answer)(?<!same answer)\s*[:=][\s:*]*)",
    re.IGNORECASE,
)
_PHRASE_END = re.compile(r"(?<!\\)[.!?](?=\s|\Z)|\n")


def behind_marker(text: str) -> tuple[str, str] | None:
    """The line behind the last "####", or below it if that line is empty, and the text below; None without "####"."""
    _, marker, rest = text.rpartition(ANSWER_MARKER)
    line, _, below = rest.strip().partition("\n")
    return (line, below) if marker else None


def boxed(text: str) -> str | None:
    r"""What the last \boxed{...} holds; None without one."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    start += len("\\boxed{")
    depth = 1
    for brace in re.finditer(r"[{}]", text[start:]):
        depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            return text[start : start + brace.start()].strip() or None
    return None


def behind_phrase(text: str, is_formula: Callable[[str], bool]) -> str | None:
    """What follows the last "answer is" or "answer:"; None without one.

    That is what stands between dollar signs right behind it, if `is_formula` says so, else the rest of the sentence.
    """
    end = max((match.end() for match in _ANSWER_PHRASE.finditer(text)), default=None)
    if end is None:
        return None
    formula = FORMULA.match(text, end)
    if formula and is_formula(formula[0]):
        return formula[0]
    return _PHRASE_END.split(text[end:], maxsplit=1)[0].strip(" \t*") or None
