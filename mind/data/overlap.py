"""Finds test questions that training data leaks: texts that share 13 words in a row, the criterion of GPT-3's authors.

Source: T. Brown et al., Language models are few-shot learners (arXiv 2005.14165), appendix C.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from mind.data.fields import folded
from mind.records import Question
from mind.words import is_letter_alone, word_pattern

WORDS = 13
"""Texts of the same origin share this many words in a row, other texts hardly ever. A letter of a script without spaces
between words, such as Chinese, counts as half a word: their words have about two."""
_SIGN = r"[+*/=<>^×÷−]|(?<!\w)-|-(?=\d)"
"""Signs count as words in a formula: 3 + 4 differs from 3 - 4. A hyphen between letters does not count."""


_Choices: TypeAlias = frozenset[tuple[str, ...]] | None


def words_of(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation, as `mind.data.fields.folded` makes them."""
    return _word().findall(folded(text))


@functools.cache
def _word() -> re.Pattern[str]:
    return re.compile(f"{word_pattern()}|{_SIGN}")


@dataclass(frozen=True)
class Leaks:
    """The overlap of training questions with the questions of a test set."""

    training: tuple[str, ...]
    """Ids of the training questions that share text with a test question, in their own text or in a rationale."""
    test: tuple[str, ...]
    """Ids of these test questions."""

    def counts(self) -> dict[str, int]:
        """The number of each."""
        return {"training": len(self.training), "test": len(self.test)}


def leaks(training: Iterable[Question], test: Sequence[Question]) -> Leaks:
    """The training questions that share WORDS words in a row with a question of `test`, in their text or in that of a
    rationale, right or wrong. A test question with fewer words is compared as a whole, choices included, with the
    training questions."""
    runs: dict[tuple[str, ...], set[str]] = {}
    whole: dict[tuple[str, ...], dict[_Choices, set[str]]] = {}
    for question in test:
        words = words_of(question.question)
        given_away_by = list(_runs(words))
        if not given_away_by:
            whole.setdefault(tuple(words), {}).setdefault(_choices(question), set()).add(question.id)
        for run in given_away_by:
            runs.setdefault(run, set()).add(question.id)
    found: dict[str, set[str]] = {}
    for question in training:
        words = words_of(question.question)
        own, alike = _choices(question), whole.get(tuple(words), {})
        given = set[str]().union(*(alike.values() if own is None else (alike.get(one, ()) for one in (None, own))))
        rationales = (*question.rationales, *question.wrong_rationales)
        for text in (words, *(words_of(one.text) for one in rationales)):
            for run in _runs(text):
                given |= runs.get(run, set())
        if given:
            found[question.id] = given
    hit = set().union(*found.values())
    return Leaks(tuple(found), tuple(question.id for question in test if question.id in hit))


def _choices(question: Question) -> _Choices:
    """What tells short questions such as "Which is true?" apart; None without choices."""
    if question.choices is None:
        return None
    return frozenset(tuple(words_of(text)) for text in question.choices.values())


def leaks_of(training: Sequence[Question], tests: Mapping[str, Sequence[Question]]) -> dict[str, Leaks]:
    """`leaks` for each test set that has any, by label."""
    every = {label: leaks(training, test) for label, test in tests.items()}
    return {label: found for label, found in every.items() if found.training}


def _runs(words: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """From each word on, as many as make WORDS."""
    halves = [1 if is_letter_alone(word) else 2 for word in words]
    end = length = 0
    for start in range(len(words)):
        while length < 2 * WORDS and end < len(words):
            length += halves[end]
            end += 1
        if length < 2 * WORDS:
            return
        yield tuple(words[start:end])
        length -= halves[start]
