"""Choices: the answer is a label, and may be stated by its text too."""

from __future__ import annotations

import re
from collections.abc import Mapping

from mind.grading.answer_type import AnswerType
from mind.records import Grade, Question

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n")
_ARTICLE = re.compile(r"(?:an?|the)\s")
_AFTER_LABEL = r"(?!['’\w]|\s(?!(?:is|as|because|since)\b)[a-z])"
"""What tells the label in "A is the answer" from the article in "A bank is the answer"."""


class Choice(AnswerType):
    """Compared by label or by text, both in any case."""

    name = "choice"
    request = "the label of the right choice"

    def fits(self, question: Question) -> bool:
        return question.choices is not None

    def unmarked(self, text: str, question: Question) -> str | None:
        """The last "(B)" or "B.", or the one choice whose text the last sentence that mentions any mentions."""
        return stated_label(text, choices_of(question))

    def label(self, stated: str, choices: Mapping[str, str]) -> str | None:
        """The label of the choice that `stated` names; None if it names none."""
        return stated_label(stated, choices)

    def compare(self, stated: str, question: Question) -> tuple[Grade, str]:
        label = self.label(stated, choices_of(question))
        if label is None:
            return "unparsed", "none of the choices"
        if label == question.answer:
            return "right", f"choice {label}"
        return "wrong", f"choice {label}, not {question.answer}"

    def begins_with_gold(self, statement: str, question: Question) -> bool:
        """By its label, or by its text with or without an article before it."""
        if re.match(re.escape(question.answer) + _AFTER_LABEL, statement):
            return True
        described, text = statement.lower(), _gold_text(question)
        if article := _ARTICLE.match(described):
            described = described[article.end() :]
        return described.startswith(text) and not described[len(text) : len(text) + 1].isalnum()

    def mentions_gold(self, sentence: str, question: Question) -> bool:
        """By its text alone."""
        return _gold_text(question) in sentence.lower()


def choices_of(question: Question) -> Mapping[str, str]:
    """The choices of a question that has some."""
    assert question.choices is not None
    return question.choices


def stated_label(text: str, choices: Mapping[str, str]) -> str | None:
    """The label of the choice that `text` is, else of the one that it names last; None if it names none."""
    bare = text.strip(" \t\n*`.:()[]").lower()
    for label, choice in choices.items():
        if bare in (label.lower(), choice.strip().lower()):
            return label
    labels = {label.lower(): label for label in choices}
    any_label = "|".join(map(re.escape, choices))
    # "(B)" in any case, but a bare label in its own only: "a." ends many sentences that do not choose "A". Of ASCII
    # letters, because "ſ" is an "s" in any case, but not in lower case.
    marked = re.findall(rf"(?ai:\(({any_label})\))|(?<![\w'])({any_label})(?:[.):](?!\w)|\Z)", text)
    if marked:
        return labels["".join(marked[-1]).lower()]
    by_text = {choice.strip().lower(): label for label, choice in choices.items()}
    # "book store" is not a mention of "store" as well.
    longest_first = "|".join(map(re.escape, sorted(by_text, key=len, reverse=True)))
    any_choice = re.compile(rf"(?<!\w)(?:{longest_first})(?!\w)")
    for sentence in reversed(_SENTENCE_END.split(text)):
        mentioned = {by_text[choice] for choice in any_choice.findall(sentence.lower())}
        if mentioned:
            return mentioned.pop() if len(mentioned) == 1 else None
    return None


def _gold_text(question: Question) -> str:
    return choices_of(question)[question.answer].strip().lower()
