"""Yes or no: the choices "yes" and "no", stated by these words alone."""

from __future__ import annotations

import re
from collections.abc import Mapping

from mind.grading.answer_type import GoldAnswer
from mind.grading.choice import Choice
from mind.records import Question

_YES_NO = re.compile(r"\b(?:yes|no)\b", re.IGNORECASE)


class YesNo(Choice):
    """Compared by the first "yes" or "no", in any case."""

    name = "yes_no"

    def fits(self, question: Question) -> bool:
        return question.choices is not None and {label.lower() for label in question.choices} == {"yes", "no"}

    def gold(self, value: object) -> GoldAnswer | None:
        """Of true and false."""
        return ("yes" if value else "no", {"yes": "yes", "no": "no"}) if isinstance(value, bool) else None

    def unmarked(self, text: str, question: Question) -> str | None:
        """The last "yes" or "no"."""
        words = _YES_NO.findall(text)
        return words[-1] if words else None

    def label(self, stated: str, choices: Mapping[str, str]) -> str | None:
        word = _YES_NO.search(stated)
        return next((label for label in choices if word and label.lower() == word[0].lower()), None)
