"""Training records from several samples of one teacher without perspective names; wrong rationales are dropped."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mind.answer_line import without_suffix
from mind.data.questions import question_records
from mind.errors import MindError
from mind.grading.answers import extract_answer, is_correct
from mind.records import Question, Rationale


@dataclass(frozen=True)
class ImportReport:
    """What `import_rationales` read, kept and dropped, and why: counts of questions and of rationales.

    Each pair of a read count and what follows it adds up.
    """

    questions_read: int = 0
    questions_kept: int = 0
    questions_dropped_too_few: int = 0
    rationales_read: int = 0
    rationales_kept: int = 0
    rationales_empty: int = 0
    rationales_duplicate: int = 0
    rationales_no_answer: int = 0
    rationales_wrong_answer: int = 0
    rationales_over_the_limit: int = 0
    rationales_of_dropped_questions: int = 0
    """Right ones, of questions that had too few of them."""

    def as_dict(self) -> dict[str, int]:
        """The counts by name."""
        return dataclasses.asdict(self)


def import_perspectives(keep: int = 8) -> tuple[str, ...]:
    """The names that `import_rationales` gives to rationales without one: "path-1" to "path-<keep>"."""
    return tuple(f"path-{number}" for number in range(1, keep + 1))


def import_rationales(
    path: str | os.PathLike[str], *, keep: int = 8, minimum: int = 2
) -> tuple[list[Question], ImportReport]:
    """Questions with named rationales from records whose "rationales" are plain strings, and what became of them.

    The first `keep` rationales of a question that are right are named in their order; empty ones, copies of an
    earlier one but for spaces, and those that end in no answer or a wrong one are dropped, and so is a question with
    fewer than `minimum` right ones. An answer suffix of theirs is cut off. Whether one is right is judged from its
    text alone (`mind.grading.answers.extract_answer`), so a right one that is worded oddly may be dropped.

    Raises MindError as `load_questions` does, for rationales that are not strings, and unless 1 <= minimum <= keep.
    """
    if not 1 <= minimum <= keep:
        raise MindError(f"minimum {minimum} and keep {keep}: expected 1 <= minimum <= keep")
    names = import_perspectives(keep)
    questions = []
    counts = ImportReport().as_dict()
    for where, record, question in question_records(Path(path)):
        texts = record.get("rationales")
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise MindError(f'{where}: "rationales" is not a list of strings: there is nothing to import')
        counts["questions_read"] += 1
        counts["rationales_read"] += len(texts)
        right = _right_rationales(texts, question, counts)
        if len(right) < minimum:
            counts["questions_dropped_too_few"] += 1
            counts["rationales_of_dropped_questions"] += len(right)
            continue
        counts["questions_kept"] += 1
        counts["rationales_kept"] += min(len(right), keep)
        counts["rationales_over_the_limit"] += max(len(right) - keep, 0)
        rationales = tuple(Rationale(name, text) for name, text in zip(names, right, strict=False))
        questions.append(dataclasses.replace(question, rationales=rationales))
    return questions, ImportReport(**counts)


def _right_rationales(texts: Sequence[str], question: Question, counts: dict[str, int]) -> list[str]:
    """The right ones of `texts`, each once and without its answer suffix; adds the others to `counts` by reason."""
    seen = set()
    right = []
    for text in texts:
        rationale = without_suffix(text)
        normal = " ".join(rationale.split())
        answer = extract_answer(text, question)
        if not normal:
            counts["rationales_empty"] += 1
        elif normal in seen:
            counts["rationales_duplicate"] += 1
        elif answer is None:
            counts["rationales_no_answer"] += 1
        elif not is_correct(answer, question):
            counts["rationales_wrong_answer"] += 1
        else:
            right.append(rationale)
        seen.add(normal)
    return right
