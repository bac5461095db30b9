"""Finds rationales that start from the answer instead of deriving it: they were told it, or state it first.

A student that learns from them learns to guess. The patterns are narrow, so that they do not match a rationale that
merely ends with its answer, or weighs candidate answers. Each takes time linear in the length of its text.
"""

from __future__ import annotations

import re

from mind.curation.leak_phrases import ANSWER_WORDS, IS_THE_ANSWER, OPENING, SUPPOSED, THIS_ANSWER, TOLD
from mind.grading import answer_type
from mind.grading.answers import with_final_answer
from mind.grading.plain_text import plain_text
from mind.records import Question

_STATEMENT_CHARACTERS = 200
"""The number of characters after an announcement in which an answer is searched."""

# Neither the label in "B. bank" nor the line break in "**Answer:**\n12" ends a sentence.
_FIRST_SENTENCE = re.compile(r"\s*+(?:[A-Z]\.\s)?(?:[^.!?\n]|[.!?](?!\s|\Z)|(?<=[:*\n])\n)*+[.!?]?")
_MARK_FIRST = re.compile(r"\s*+####|(?:[\s$*]|\\[(\[])*+\\boxed(?=\{)", re.IGNORECASE)
_BEFORE_AN_ANSWER = re.compile(
    r"(?:[\s*_`$€£(\[{\"'“‘:「『]|\\[(\[]|[选選][项項择擇]|選択肢|보기|선택지)*+(?:\\boxed\{)?"
)


def leaks_answer(text: str, question: Question) -> bool:
    """Whether the rationale `text` admits that it was told the answer of `question`, or opens with it.

    Admissions: "the given answer", "we are told the answer", "as the answer key says", "since the answer must be 12".
    Openings: "The answer is 12.", "12 is the answer because", "Answer: B", "#### 12", and a first sentence that the
    second derives ("She has 12. To get this answer, ..."). Choices count by label and by text.
    mind/curation/leak_phrases.py has the languages.
    """
    text, question = plain_text(text), with_final_answer(question)
    lowered = text.lower()
    # Most rationales have none of these words, and need no further search.
    return _opens_with_gold(text, question) or (
        any(word in lowered for word in ANSWER_WORDS) and _admits(text, question)
    )


def _admits(text: str, question: Question) -> bool:
    return TOLD.search(text) is not None or any(
        _begins_with_gold(text, match.end(), question) for match in SUPPOSED.finditer(text)
    )


def _opens_with_gold(text: str, question: Question) -> bool:
    sentence = _prefix(_FIRST_SENTENCE, text)
    if sentence.endswith("?"):
        return False
    stated = OPENING.match(sentence) or _MARK_FIRST.match(sentence)
    if stated is not None:
        return _begins_with_gold(sentence, stated.end(), question)
    if IS_THE_ANSWER.search(sentence):
        return _begins_with_gold(sentence, 0, question)
    rest = text[len(sentence) : len(sentence) + _STATEMENT_CHARACTERS].lstrip()
    return THIS_ANSWER.match(rest) is not None and _mentions_gold(sentence, question)


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
