"""Compares the student's answers before and after training, question by question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mind.display import readable
from mind.run_folder import RunFolder

SHOWN_CHARACTERS = 1_200
"""Longest text of a sample, in characters."""

_KINDS = {
    (False, True): "wrong before, right now",
    (True, False): "right before, wrong now",
    (False, False): "wrong before and now",
    (True, True): "right before and now",
}


@dataclass(frozen=True)
class Sample:
    """A question with the student's responses before and after training, as texts that are safe to show."""

    kind: str
    """What changed, such as "wrong before, right now"."""
    question: str
    answer: str
    before: str
    after: str
    found_before: str
    """The answer that was found in the response, "none" if there is none."""
    found_after: str


class Answers:
    """The responses to questions that were answered both before and after training, by the label of their evaluation
    file."""

    def __init__(self, folder: RunFolder) -> None:
        before, after = (folder.read_responses(when) for when in ("before", "after"))
        self._pairs = {
            label: list(zip(before[label], rows, strict=True))
            for label, rows in after.items()
            if [row.get("id") for row in before.get(label, ())] == [row.get("id") for row in rows]
        }

    @property
    def right(self) -> dict[str, list[tuple[bool, bool]]]:
        """Whether each question was answered correctly (before, after), by label."""
        return {label: [_right(pair) for pair in pairs] for label, pairs in self._pairs.items()}

    def samples(self, counts: Sequence[int] = (2, 1, 1, 0)) -> list[Sample]:
        """The first questions of each kind, in this order: gained, lost, wrong both times, right both times.

        Args:
            counts: largest number of each kind.
        """
        every = [pair for pairs in self._pairs.values() for pair in pairs]
        return [
            _sample(_KINDS[kind], *pair)
            for kind, count in zip(_KINDS, counts, strict=True)
            for pair in [pair for pair in every if _right(pair) == kind][:count]
        ]


def _right(pair: tuple[Mapping[str, Any], Mapping[str, Any]]) -> tuple[bool, bool]:
    before, after = pair
    return before.get("correct") is True, after.get("correct") is True


def _sample(kind: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> Sample:
    def text(row: Mapping[str, Any], name: str, otherwise: str = "") -> str:
        value = row.get(name)
        value = otherwise if value is None else str(value)
        return readable(value, SHOWN_CHARACTERS)

    question = text(after, "question", text(after, "id"))  # older versions did not keep the question
    responses = [text(row, "response") for row in (before, after)]
    found = [text(row, "extracted", "none") for row in (before, after)]
    return Sample(kind, question, text(after, "answer"), *responses, *found)
