"""Test questions that training data gives away: texts that share 13 words in a row, as GPT-3's authors looked for them.

Source: T. Brown et al., Language models are few-shot learners (arXiv 2005.14165), appendix C.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from mind.records import Question

WORDS = 13
"""So many in a row are shared by texts of one origin, hardly ever by others."""
_WORD = re.compile(r"\w+|[+*/=<>^×÷−]|(?<!\w)-|-(?=\d)")
"""Signs count as words in a formula: 3 + 4 is not 3 - 4. A hyphen between letters is none."""


def words_of(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation; Unicode's compatible characters are the same."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


@dataclass(frozen=True)
class Leaks:
    """What training questions have in common with those of a test set."""

    training: tuple[str, ...]
    """Ids of the training questions of which a text, their own or a rationale's, is in a test question."""
    test: tuple[str, ...]
    """Ids of these test questions."""

    def counts(self) -> dict[str, int]:
        """How many there are of each."""
        return {"training": len(self.training), "test": len(self.test)}


def leaks(training: Iterable[Question], test: Sequence[Question]) -> Leaks:
    """The training questions that share WORDS words in a row with a question of `test`, in their text or in that of a
    rationale, right or wrong; a test question of fewer words is compared as a whole with the training questions."""
    runs: dict[tuple[str, ...], set[str]] = {}
    whole: dict[tuple[str, ...], set[str]] = {}
    for question in test:
        words = words_of(question.question)
        if len(words) < WORDS:
            whole.setdefault(tuple(words), set()).add(question.id)
        for run in _runs(words):
            runs.setdefault(run, set()).add(question.id)
    found: dict[str, set[str]] = {}
    for question in training:
        words = words_of(question.question)
        given = set(whole.get(tuple(words), ()))
        rationales = (*question.rationales, *question.wrong_rationales)
        for text in (words, *(words_of(one.text) for one in rationales)):
            for run in _runs(text):
                given |= runs.get(run, set())
        if given:
            found[question.id] = given
    hit = set().union(*found.values())
    return Leaks(tuple(found), tuple(question.id for question in test if question.id in hit))


def leaks_of(training: Sequence[Question], tests: Mapping[str, Sequence[Question]]) -> dict[str, Leaks]:
    """`leaks` with each of the test sets that has any, by its label."""
    every = {label: leaks(training, test) for label, test in tests.items()}
    return {label: found for label, found in every.items() if found.training}


def _runs(words: Sequence[str]) -> Iterator[tuple[str, ...]]:
    return zip(*(words[start:] for start in range(WORDS)), strict=False)
