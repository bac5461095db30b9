"""`mind data check`: reports what a file of questions holds, and everything that is wrong with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mind.data.overlap import WORDS, Leaks, leaks_of
from mind.data.problems import Faults, Problems
from mind.data.questions import Asked, asked_in, knowledge, load_questions, named_rationales, wrong_rationales
from mind.data.sources import SourceConfig, read_source
from mind.grading.type_counts import type_counts
from mind.summary import Summary, counted


@dataclass(frozen=True)
class CheckReport(Summary):
    """Counts over the rows without a problem."""

    questions: int
    types: Mapping[str, int]
    """Number of questions by answer type."""
    rationales: Mapping[str, int]
    """Number of rationales by perspective."""
    unnamed_rationales: int
    with_knowledge: int
    """Number of questions with general rules in addition to rationales."""
    without_two: Sequence[str]
    """The places of questions with fewer than two named rationales, which training needs."""
    repeated: Sequence[str]
    """The places of questions that repeat an earlier one."""
    shared: Mapping[str, Sequence[str]]
    """Compared file -> ids of its questions that this file also has."""
    leaks: Mapping[str, Leaks]
    """Compared file -> its questions that this file gives away (mind/data/overlap.py); only files with any."""
    problems: str | None
    """Everything that is wrong, also with the compared files, one problem per line; None if nothing is."""

    def as_rows(self) -> list[dict[str, Any]]:
        counts: dict[str, Any] = {"questions": self.questions}
        counts |= {f"answers: {name}": count for name, count in self.types.items()}
        counts |= {f"rationales: {name}": count for name, count in self.rationales.items()}
        counts |= {"rationales without a perspective": self.unnamed_rationales} if self.unnamed_rationales else {}
        counts |= {"questions with knowledge": self.with_knowledge} if self.with_knowledge else {}
        counts |= {"questions that an earlier one asks": len(self.repeated)} if self.repeated else {}
        counts |= {f"questions that are in {file} too": len(ids) for file, ids in self.shared.items()}
        given = f"questions that share {WORDS} words in a row with"
        return counted(counts | {f"{given} {file}": len(found.training) for file, found in self.leaks.items()})


def check_source(config: SourceConfig, others: Sequence[str] = ()) -> CheckReport:
    """Reads a source, and compares it with the questions of the files `others`.

    Raises MindError if the source cannot be read at all.
    """
    problems = Problems(config.path)
    questions, repeated = [], []
    asked = Asked()
    rationales: Counter[str] = Counter()
    unnamed, with_knowledge, without_two = 0, 0, []
    for where, row, question in read_source(config, problems):
        values = row.get("rationales")
        named = problems.attempt(where, named_rationales, where, values, None, False)
        wrong = problems.attempt(where, wrong_rationales, where, row.get("wrong_rationales"), question.answer)
        rules = problems.attempt(where, knowledge, where, row.get("knowledge"))
        if named is None or wrong is None or rules is None:
            continue
        with_knowledge += bool(rules)
        rationales.update(rationale.perspective for rationale in named)
        unnamed += len(values) if isinstance(values, list) and not named else 0
        if len(named) < 2:
            without_two.append(where)
        if asked.again(question):
            repeated.append(where)
        questions.append(replace(question, rationales=named))
    faults = Faults()
    evaluation = {file: faults.attempt(load_questions, file) for file in others}
    return CheckReport(
        questions=len(questions),
        types=type_counts(questions),
        rationales=rationales,
        unnamed_rationales=unnamed,
        with_knowledge=with_knowledge,
        without_two=without_two,
        repeated=repeated,
        shared={
            file: [question.id for question in asked_in(some, questions)] for file, some in evaluation.items() if some
        },
        leaks=leaks_of(questions, {file: some for file, some in evaluation.items() if some}),
        problems="\n".join(filter(None, (problems.told(len(questions)), faults.told))) or None,
    )
