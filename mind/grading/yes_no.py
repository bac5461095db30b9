"""Yes or no, true or false: as choices, or as a gold answer of these words."""

from __future__ import annotations

import re

from mind.grading.answer_type import AnswerType
from mind.grading.plain_text import bare, sentences, without_latex_text
from mind.records import Grade, Question

_YES = {"yes", "true", "correct", "right", "yeah", "yep", "y", "t", "agree", "affirmative"}
_NO = {"no", "false", "incorrect", "wrong", "untrue", "nope", "n", "f", "disagree", "negative"}
_ANY = "yes|no|true|false|correct|incorrect|right|wrong|untrue|yeah|yep|nope|agree|disagree"
_BEHIND = (
    r"(?![\"']\s(?:is|was|would\sbe)\s(?:wrong|incorrect|false|untrue|not|a\smistake)\b)"
    r"(?=\s*(?:[.,;:!)\]\"'\u2014]|\Z|-\s)|\s\(|\s(?:because|as|since|it|there|they|that|this|he|she|we)\b)"
)
"""Texts that may follow "no" as an answer, unlike "no rule"."""
_NO_DOUBT = re.compile(r"\b(?:no|without(?:\sa)?)\s(?:doubt|question)\b", re.IGNORECASE)
_SURELY = r"(?:(?!(?:partial|part|on|hard|near|rare|bare|most|supposed|alleged)ly)\w+ly)"
_FIRST = re.compile(
    rf"[\s\"'(\[<*_]*(?:(?:{_SURELY}|well|oh|okay)[\s,]+)?"
    rf"((?:not\s)?(?:{_ANY}))\b{_BEHIND}",
    re.IGNORECASE,
)
_ALONE = re.compile(
    rf"(?:[:;\u2014\u2234]\s*|\s-\s|(?:'s|\b(?:so|thus|therefore|hence|then|is|be|say|with|but|answer|conclusion))\s*,?\s|,\s(?=\w+[.!]?\s*\Z))"
    rf"(?:an?\s(?:\w+\s)?|(?:almost\s)?{_SURELY}\s)?[\"']?(yes|no)\b{_BEHIND}",
    re.IGNORECASE,
)
_NOT = r"(?:\s(?:not|never)\b|n't\b)"
_SAID = re.compile(
    r"\b(?:statement|claim|proposition|assertion|sentence|theorem|hypothesis|conjecture|answer|it|this|that)"
    r"(?:\sthat\s[^.,;:!?]{1,80}?)?"
    rf"(?:'s|\s(?:is|was|must\sbe|would\sbe|has\sto\sbe|isn't|wasn't|cannot\sbe|can't\sbe)){_NOT}?\s"
    r"(?:indeed\s|clearly\s|therefore\s|definitely\s|actually\s|simply\s|also\s)?"
    r"(?:(?:true|false|correct|incorrect|right|wrong|untrue)\b(?!\s(?:that|to|if|when|only|answer|choice|for)\b)"
    r"|an?\s(?:true|false|correct|incorrect|wrong)\s(?:statement|claim|assertion|proposition)\b)",
    re.IGNORECASE,
)
_UNSAID = re.compile(
    r"(?:(?:\A\W*|\b(?:wrong|incorrect|false|mistake|error)\s)to|(?:\b(?:not|cannot|never)|n't))\s(?:say|answer|reply)\b"
    r"(?=[^.;]{0,20}\b(?:yes|no)\b)",
    re.IGNORECASE,
)
"""Texts before an answer that is mentioned but not given."""
_TRUE_THAT = re.compile(
    r"\bit(?:\sis|'s)\s(?P<not>not\s)?(?:\w+ly\s)?(?P<word>true|false|correct|incorrect)\sthat\b(?P<what>[^.!?]*)",
    re.IGNORECASE,
)
_CONTRAST = re.compile(r"\b(?:but|however|although|though|yet)\b", re.IGNORECASE)
_DENIAL = re.compile(r"\b(?:not|never|cannot)\b|n't\b", re.IGNORECASE)
_WORD = re.compile(rf"\b(?:{_ANY})\b", re.IGNORECASE)
_BOTH = re.compile(r"(?:yes|no|true|false)\s?(?:and|or|/)\s?(?:yes|no|true|false)\b", re.IGNORECASE)
_WORDS_ALONE = re.compile(r"\W*(?:yes|no|true|false)(?:\W+(?:yes|no|true|false))+\W*\Z", re.IGNORECASE)
_QUESTION = {True: "yes", False: "no"}


class YesNo(AnswerType):
    """Compared by meaning, in any words: "no", "False", "the claim is not true"."""

    name = "yes_no"
    request = "yes or no"
    reads_denials = True

    def fits(self, question: Question) -> bool:
        if question.choices is None:
            return bare(question.answer) in ("yes", "no", "true", "false")
        return {label.lower() for label in question.choices} in ({"yes", "no"}, {"true", "false"})

    def marked(self, statement: str, question: Question) -> str | None:
        """The word that `statement` is or begins with, else as `unmarked`."""
        return _marked(statement)

    def unmarked(self, text: str, question: Question) -> str | None:
        """The answer of the first word of `text` and of the last sentence that says yes or no, unless they disagree."""
        return _unmarked(text)

    def compare(self, stated: str, question: Question) -> tuple[Grade, str]:
        word = self.marked(stated, question)
        if word is None:
            return "unparsed", "neither yes nor no"
        says, means = _is_yes(word), bare(question.answer) in _YES
        if says == means:
            return "right", _QUESTION[says]
        return "wrong", f"{_QUESTION[says]}, not {_QUESTION[means]}"

    def begins_with_gold(self, statement: str, question: Question) -> bool:
        word = _opening(statement)
        return word is not None and _is_yes(word) == (bare(question.answer) in _YES)

    def mentions_gold(self, sentence: str, question: Question) -> bool:
        return re.search(rf"\b{re.escape(bare(question.answer))}\b", sentence.lower()) is not None


def marked_yes(statement: str) -> bool | None:
    """Whether `statement`, a text after a mark, says yes; None if it says neither yes nor no."""
    word = _marked(statement)
    return None if word is None else _is_yes(word)


def unmarked_yes(text: str) -> bool | None:
    """Whether `text` says yes; None if it says neither yes nor no."""
    word = _unmarked(text)
    return None if word is None else _is_yes(word)


def _marked(statement: str) -> str | None:
    text = without_latex_text(statement)
    if _BOTH.match(text.lstrip(" \"'(")) or _says_both(text):
        return None
    return _opening(text) or _unmarked(text)


def _unmarked(text: str) -> str | None:
    text = _NO_DOUBT.sub("surely", without_latex_text(text))
    parts = sentences(text)
    if parts and _says_both(parts[-1]):
        return None
    opening = _opening(parts[0]) if parts else None
    said = (_said(sentence) for sentence in reversed(parts) if not sentence.endswith("?"))
    last = next(filter(None, said), None)
    if opening and last and _is_yes(opening) != _is_yes(last):
        return None
    return last or opening or (text.strip() if bare(text) in _YES | _NO else None)


def _says_both(text: str) -> bool:
    """Whether `text` has no words but "yes" and "no" (or "true" and "false"), and has both: "no, yes"."""
    return _WORDS_ALONE.match(text) is not None and len({_is_yes(word) for word in _WORD.findall(text)}) > 1


def _opening(text: str) -> str | None:
    match = _FIRST.match(text)
    return match[1] if match else None


def _said(sentence: str) -> str | None:
    """The answer of `sentence`: a "yes" or "no" that stands alone, or "the claim is not true"."""
    if first := _opening(sentence):
        return first
    if _UNSAID.search(sentence):
        return None
    if (true_that := _TRUE_THAT.search(sentence)) and not _CONTRAST.search(sentence):
        return true_that[0]
    found = [*_ALONE.finditer(sentence), *_SAID.finditer(sentence)]
    last = max(found, key=lambda match: match.end(), default=None)
    return last and (last[1] if last.re is _ALONE else last[0])


def _is_yes(said: str) -> bool:
    said = without_latex_text(said)
    if true_that := _TRUE_THAT.search(said):
        says = true_that["word"].lower() in _YES
        return says ^ (true_that["not"] is not None) ^ (_DENIAL.search(true_that["what"]) is not None)
    words = _WORD.findall(said)
    says = (words[-1].lower() if words else bare(said)) in _YES
    return says != (_DENIAL.search(said) is not None)
