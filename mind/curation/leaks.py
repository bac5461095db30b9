"""Finds rationales that do not derive the answer but start from it: told beforehand, or stated first.

A student that learns from them learns to guess. The patterns are narrow, so that a rationale which merely ends in its
answer, or weighs candidate answers, is left alone. Each is linear in its text.
"""

from __future__ import annotations

import re

from mind.grading.answers import answer_kind
from mind.grading.numeric import number_value
from mind.records import Question

_STATEMENT_CHARACTERS = 200
"""Where an answer is looked for behind the words that announce it."""

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
"""An admission where the gold answer follows."""

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
_NUMBER = re.compile(r"(?<![\w.,/])[-\u2212]?(?:\d[\d,./]*)?\d")
_BEFORE_AN_ANSWER = re.compile(r"(?:[\s*_`$€£(\[{\"'“‘:]|\\[(\[])*+(?:\\boxed\{)?")
_ARTICLE = re.compile(r"(?:an?|the)\s")
_AFTER_LABEL = r"(?!['’\w]|\s(?!(?:is|as|because|since)\b)[a-z])"
"""What tells the label in "A is the answer" from the article in "A bank is the answer"."""


def leaks_answer(text: str, question: Question) -> bool:
    """Whether the rationale `text` admits to having been told the answer of `question`, or opens with it.

    Admissions: "the given answer", "we are told the answer", "as the answer key says", "since the answer must be 12".
    Openings: "The answer is 12.", "12 is the answer because", "Answer: B", "#### 12", and a first sentence that the
    second derives ("She has 12. To get this answer, ..."). Choices count by label and by text.
    """
    # Most rationales do without the word, and are not searched further.
    return _opens_with_gold(text, question) or ("answer" in text.lower() and _admits(text, question))


def _admits(text: str, question: Question) -> bool:
    return _TOLD.search(text) is not None or any(
        _begins_with_gold(text, match.end(), question) for match in _SUPPOSED.finditer(text)
    )


def _opens_with_gold(text: str, question: Question) -> bool:
    sentence = _FIRST_SENTENCE.match(text)[0]
    if sentence.endswith("?"):
        return False
    stated = _ANSWER_FIRST.match(sentence)
    if stated is not None:
        return _begins_with_gold(sentence, stated.end(), question)
    if _IS_THE_ANSWER.search(sentence):
        return _begins_with_gold(sentence, 0, question)
    return _THIS_ANSWER.match(text, len(sentence)) is not None and _mentions_gold(sentence, question)


def _begins_with_gold(text: str, start: int, question: Question) -> bool:
    """Whether `text` has the gold answer at `start`, behind signs at most; the text of a choice behind an article."""
    statement = text[start : start + _STATEMENT_CHARACTERS]
    statement = statement[_BEFORE_AN_ANSWER.match(statement).end() :]
    if answer_kind(question) == "number":
        number = _NUMBER.match(statement)
        return number is not None and _is_gold(number[0], question)
    if question.choices is None:
        signs = map(re.escape, "".join(question.answer.strip("$").split()))
        return re.match(r"\s*".join(signs) + r"(?!\w)", statement) is not None
    if re.match(re.escape(question.answer) + _AFTER_LABEL, statement):
        return True
    described, choice = statement.lower(), question.choices[question.answer].strip().lower()
    if article := _ARTICLE.match(described):
        described = described[article.end() :]
    return described.startswith(choice) and not described[len(choice) : len(choice) + 1].isalnum()


def _mentions_gold(sentence: str, question: Question) -> bool:
    """Whether `sentence` states the gold number, or the text of the gold choice, and computes nothing."""
    if "=" in sentence:
        return False
    if question.choices is not None:
        return question.choices[question.answer].strip().lower() in sentence.lower()
    return any(_is_gold(number, question) for number in _NUMBER.findall(sentence))


def _is_gold(number: str, question: Question) -> bool:
    value = number_value(number)
    return value is not None and value == number_value(question.answer)
