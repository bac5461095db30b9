"""Checks whether a rationale has the form of its perspective, and which scripts it is written in.

A check looks for the marks in words and layout that the perspective's prompt asks for. It cannot judge whether an
analogy is apt or a plan is good; it finds rationales that ignored their prompt. The marks are English. Each pattern
takes time linear in the length of its text.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping
from itertools import pairwise

_MOST_NUMBERS = 0.3
"""Largest number of numbers per word of an intuitive rationale. Its few numbers belong in sentences: "tipping 45 and 51
into one pile makes 96 marbles" has 3 in 10 words."""

_SENTENCE_END = re.compile(r"(?<=[.!?])[\"'”’)*_]*\s+|\n")
_NUMBERED_LINE = re.compile(
    r"^[ \t>#*_-]{0,8}(?:(?:step|part|task|question|(?:sub-?)?problem)\s)?\(?(\d{1,2})[.):](?!\d)", re.I | re.M
)
_PLAN = re.compile(r"[\W_]*+plan[\s*_]{0,4}:", re.I)
_EXECUTION = re.compile(r"(?:^|[.;!?]\s)[\s*_#]{0,4}then\b[^:.\n]{0,40}:", re.I | re.M)
_INTRODUCTION = re.compile(r"\b(?:let|define|denote[sd]?|write|represents?|stands?\sfor|be\sthe|where)\b", re.I)
_SYMBOL = r"(?<![\w'’\\])[A-Za-z](?:_\w{1,8}|_\{\w{1,8}\}|\([A-Za-z]\))?"
_RELATION = r"(?:[=<>≤≥≠≈→⇒⇔∧∨∈⊆]|\\(?:leq?|geq?|neq?|approx|implies|iff|land|lor|in|subseteq)\b)"
_FORMULA = re.compile(rf"{_SYMBOL}\s?{_RELATION}|{_RELATION}\s?{_SYMBOL}(?![\w'’])|[∀∃¬]")
_NOTATION = re.compile(r"[=^≤≥≠√∑∀∃⇒→]|\\[A-Za-z(\[]|\d\s?[+*×÷·<>]\s?\d|\d\s[-−–/]\s\d")
_COMPARISON = re.compile(
    r"\b(?:similar|analog(?:y|ous|ously|ue)|alike|resembles?|compare|imagine|like\s(?:an?|the|when|if)|just\s(?:as|like)"
    r"|in\sthe\ssame\sway|the\ssame\s(?:shape|structure|pattern|idea|form|logic|moves?|reasoning|principle)"
    r"|(?:structure|shape|pattern)[\w\s]{0,12}\sthe\ssame|correspond(?:s|ing|ence)?|map(?:s|ped|ping)?|counterpart"
    r"|plays?\sthe\s(?:role|part)|in\s(?:the\s)?place\sof|carr(?:y|ied|ies)\s(?:it\s|this\s)?over|likewise"
    r"|(?:simpler|easier|smaller|familiar)\s(?:case|problem|story|version|situation|example|question))\b",
    re.I,
)
_CANDIDATES = re.compile(
    r"\b(?:candidates|options|choices|alternatives|possibilities|rivals)\b"
    r"|\b(?:tempting|plausible|possible|as|between)\sanswers\b",
    re.I,
)
_LABEL = re.compile(
    r"\(([A-H])\)|\b(?:[Oo]ption|[Cc]hoice|[Cc]andidate|[Aa]nswer)\s([A-H1-9])\b|^[*_ -]{0,4}([A-H])[.):]", re.M
)
_ELIMINATION = re.compile(
    r"\b(?:eliminat\w+|rul(?:e[sd]?|ing)\s(?:\w+\s)?out|reject\w*|discard\w*|exclud\w+|dismiss\w*|survives?"
    r"|(?:that|which)\sleaves|would\scome\sfrom|mistakes?|incorrect|wrong|fails|cannot\sbe|can['’]t\sbe|overlooks|ignores"
    r"|forgets)\b",
    re.I,
)
_SUPPOSITION = re.compile(r"\b(?:suppos(?:e|ing)|imagine|if|had|were)\b", re.I)
_CONSEQUENCE = re.compile(r"\b(?:would|instead)\b", re.I)
_RETURN = re.compile(
    r"\b(?:actual(?:ly)?|in\s(?:fact|truth|reality)|really|the\s(?:true|real)|undo(?:es|ing)?|back\sto"
    r"|return(?:s|ing)?\sto|but\s(?:in|the|since))\b",
    re.I,
)


def adheres(perspective: str, text: str) -> bool | None:
    """Whether `text` shows the marks of `perspective`; None for a perspective that has no check."""
    check = CHECKS.get(perspective)
    return None if check is None else check(text)


def script_shares(text: str) -> dict[str, float]:
    """Script -> its share of the letters of `text`, by the first word of the letters' Unicode names: LATIN, CYRILLIC,
    GREEK, ARABIC, CJK, HIRAGANA, HANGUL and so on. Empty for a text without letters."""
    letters = Counter(filter(str.isalpha, text))
    scripts: Counter[str] = Counter()
    for letter, count in letters.items():
        scripts[_script(letter)] += count
    return {script: count / letters.total() for script, count in scripts.items()}


@functools.cache
def known_scripts() -> frozenset[str]:
    """The scripts of letters that are in use today."""
    return frozenset(_script(letter) for letter in filter(str.isalpha, map(chr, range(0x10000)))) - {""}


def _script(letter: str) -> str:
    return unicodedata.name(letter, "").partition(" ")[0]


def _formal_symbolic(text: str) -> bool:
    """Symbols are introduced, and at least two equations, inequalities or logical formulas contain one."""
    return _INTRODUCTION.search(text) is not None and len(_FORMULA.findall(text)) >= 2


def _intuitive(text: str) -> bool:
    """No notation, no list of steps, and few numbers among the words."""
    if _NOTATION.search(text) or _NUMBERED_LINE.search(text):
        return False
    words = text.split()
    return sum(any(map(str.isdigit, word)) for word in words) <= _MOST_NUMBERS * len(words)


def _decomposition(text: str) -> bool:
    """At least two numbered lines."""
    return len(set(_NUMBERED_LINE.findall(text))) >= 2


def _planning(text: str) -> bool:
    """It begins with "Plan:", and later has "Then:" with at most a few words before the colon."""
    plan = _PLAN.match(text)
    return plan is not None and _EXECUTION.search(text, plan.end()) is not None


def _analogy(text: str) -> bool:
    """At least two different words of comparison: a single one occurs in any text."""
    return len({mark.lower() for mark in _COMPARISON.findall(text)}) >= 2


def _socratic(text: str) -> bool:
    """At least two questions, each followed by a sentence that is not a question."""
    sentences = [sentence for sentence in _SENTENCE_END.split(text) if sentence.strip()]
    return sum("?" in question[-4:] and "?" not in answer[-4:] for question, answer in pairwise(sentences)) >= 2


def _contrastive(text: str) -> bool:
    """At least two candidates, in a word for them or by two labels, and a word that eliminates one."""
    labels = {"".join(label) for label in _LABEL.findall(text)}
    return (_CANDIDATES.search(text) is not None or len(labels) >= 2) and _ELIMINATION.search(text) is not None


def _counterfactual(text: str) -> bool:
    """A supposition, its consequence, and the return to the real case, in this order."""
    end = 0
    for mark in (_SUPPOSITION, _CONSEQUENCE, _RETURN):
        match = mark.search(text, end)
        if match is None:
            return False
        end = match.end()
    return True


CHECKS: Mapping[str, Callable[[str], bool]] = {
    "formal-symbolic": _formal_symbolic,
    "intuitive": _intuitive,
    "decomposition": _decomposition,
    "planning": _planning,
    "analogy": _analogy,
    "socratic": _socratic,
    "contrastive": _contrastive,
    "counterfactual": _counterfactual,
}
"""Perspective -> its check; a perspective need not have one."""
