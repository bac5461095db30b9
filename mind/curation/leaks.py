"""Finds rationales that start from the answer instead of deriving it: they were told it, or state it first.

A student that learns from them learns to guess. The patterns are narrow, so that they do not match a rationale that
merely ends with its answer, or weighs candidate answers. Each takes time linear in the length of its text.
"""

from __future__ import annotations

import re

from mind.grading import answer_type
from mind.grading.answers import with_final_answer
from mind.grading.plain_text import plain_text
from mind.records import Question

_STATEMENT_CHARACTERS = 200
"""The number of characters after an announcement in which an answer is searched."""

_ANSWER = r"(?:correct\s|right\s|final\s|true\s|exact\s)?answer"
_GIVEN = r"(?:given|provided|supplied)"
_BE = r"(?:is|was|must\sbe|should\sbe|has\sto\sbe|needs\sto\sbe|equals)"
_BEFOREHAND = r"(?:to\s(?:us|me)|above|beforehand|in\s(?:the|this)\s(?:prompt|problem|question|instructions?))\b"
# "We are told the answer must be an integer" is a condition, and "the given answer choices" are no answer.
_TOLD = re.compile(
    rf"\b(?:the|this|your)\s(?:correct\s)?(?:{_GIVEN}|reference|gold|official)\s{_ANSWER}\b(?!\s(?:choice|option))"
    rf"|\banswer\s(?:is|was|has\sbeen)\s(?:already\s)?{_GIVEN}\s(?:as\b|{_BEFOREHAND})"
    rf"|\banswer\s{_GIVEN}\s(?:is\b|was\b|{_BEFOREHAND})"
    rf"|\b(?:we|I)(?:\sare|\swere|\sam|\swas|['’]re|['’]m)\s(?:already\s)?(?:told|given)\s(?:that\s)?the\s{_ANSWER}\b"
    rf"(?!\s(?:choice|option|{_BE}))"
    rf"|\balready\sknow\sthe\s{_ANSWER}\b"
    r"|\b(?:as|per|to|from|in|with)\s(?:the|your)\sanswer\skey\b|\banswer\skey\s(?:says|states|gives|shows|lists)\b",
    re.IGNORECASE,
)
_SUPPOSED = re.compile(
    r"\b(?:since|because|(?:since|because|as)\swe\s(?:already\s)?know|knowing|given|told|says|states|tells\sus)"
    rf"\s(?:that\s)?the\s{_ANSWER}\s{_BE}\s",
    re.IGNORECASE,
)
"""Words that are an admission if the gold answer follows."""

# Neither the label in "B. bank" nor the line break in "**Answer:**\n12" ends a sentence.
_FIRST_SENTENCE = re.compile(r"\s*+(?:[A-Z]\.\s)?(?:[^.!?\n]|[.!?](?!\s|\Z)|(?<=[:*\n])\n)*+[.!?]?")
_ANSWER_FIRST = re.compile(
    rf"\W*+(?:\w{{1,12}},\s)?(?:(?:the|our|my)\s)?{_ANSWER}(?:\sto\s[^.:?!\n]{{1,100}}?)?[*_]*\s?(?:{_BE}\b|:|=)"
    r"|\s*+####|(?:[\s$*]|\\[(\[])*+\\boxed(?=\{)",
    re.IGNORECASE,
)
_IS_THE_ANSWER = re.compile(rf"\b(?:is|are|must\sbe|would\sbe)\s(?:the|our|my)\s{_ANSWER}\b", re.IGNORECASE)
_THIS_ANSWER = re.compile(
    r"\s*+To\s(?:get|find|obtain|reach|determine|calculate|arrive\sat|get\sto|come\sto)\sthis\sanswer\b", re.IGNORECASE
)
_BEFORE_AN_ANSWER = re.compile(r"(?:[\s*_`$€£(\[{\"'“‘:]|\\[(\[])*+(?:\\boxed\{)?")


def leaks_answer(text: str, question: Question) -> bool:
    """Whether the rationale `text` admits that it was told the answer of `question`, or opens with it.

    Admissions: "the given answer", "we are told the answer", "as the answer key says", "since the answer must be 12".
    Openings: "The answer is 12.", "12 is the answer because", "Answer: B", "#### 12", and a first sentence that the
    second derives ("She has 12. To get this answer, ..."). Choices count by label and by text.
    """
    text, question = plain_text(text), with_final_answer(question)
    # Most rationales do not have the word, and need no further search.
    return _opens_with_gold(text, question) or ("answer" in text.lower() and _admits(text, question))


def _admits(text: str, question: Question) -> bool:
    return _TOLD.search(text) is not None or any(
        _begins_with_gold(text, match.end(), question) for match in _SUPPOSED.finditer(text)
    )


def _opens_with_gold(text: str, question: Question) -> bool:
    sentence = _prefix(_FIRST_SENTENCE, text)
    if sentence.endswith("?"):
        return False
    stated = _ANSWER_FIRST.match(sentence)
    if stated is not None:
        return _begins_with_gold(sentence, stated.end(), question)
    if _IS_THE_ANSWER.search(sentence):
        return _begins_with_gold(sentence, 0, question)
    return _THIS_ANSWER.match(text, len(sentence)) is not None and _mentions_gold(sentence, question)


def _begins_with_gold(text: str, start: int, question: Question) -> bool:
    """Whether `text` has the gold answer at `start`, after nothing but signs."""
    statement = text[start : start + _STATEMENT_CHARACTERS]
    signs = _prefix(_BEFORE_AN_ANSWER, statement)
    return answer_type(question).begins_with_gold(statement[len(signs) :], question)


def _mentions_gold(sentence: str, question: Question) -> bool:
    """Whether `sentence` states the gold answer and computes nothing."""
    return "=" not in sentence and answer_type(question).mentions_gold(sentence, question)


def _prefix(pattern: re.Pattern[str], text: str) -> str:
    """The start of `text` that `pattern`, which matches any text, covers."""
    match = pattern.match(text)
    assert match is not None
    return match[0]
