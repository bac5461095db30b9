"""`mind filter`: of the judged responses to each question, a small and diverse set of rationales to train on."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from mind.answer_line import without_suffix
from mind.curation.adherence import adheres
from mind.curation.leaks import leaks_answer
from mind.curation.result import EASY, KEPT, NO_RESPONSE, TOO_FEW, FilterResult, Outcome, perspective_order
from mind.curation.similarity import distinct, most_diverse, ngram_sets, similarities
from mind.errors import MindError, require
from mind.files import json_objects, record_of
from mind.records import Key, Question, Rationale, Response, Verdict

_WORD = re.compile(r"\w")


@dataclass(frozen=True)
class FilterConfig:
    """What is kept. The paper gives none of these values."""

    keep: int = 8
    """Rationales a question, at most, and at most one a perspective [ours]."""
    minimum: int = 2
    """Questions with fewer are dropped: MIND needs two to choose from [ours]."""
    max_characters: int = 4000
    """Longest rationale, without its answer line [ours]."""
    duplicate_threshold: float = 0.7
    """Jaccard index of word n-grams from which on the later of two rationales of a question is a duplicate; 1 drops
    only those with the same n-grams [ours]."""
    ngram: int = 3
    """Words of an n-gram [ours]."""
    drop_leaks: bool = True
    """Drop rationales that admit to having been told the answer, or that open with it [ours]."""
    require_adherence: bool = False
    """Drop rationales without the marks of their perspective, where it has a check; by default they are only counted
    [ours]."""
    easy_pass_rate: float = 1.0
    """A question is easy from this pass rate on: right responses among all of the teacher's, or the student's rate
    where it is given [ours]."""
    easy_fraction: float = 1.0
    """Share of the easy questions that is kept. It is drawn by the question's id, so that it is the same in any order
    and that a smaller share is a part of a larger one [ours]."""
    seed: int = 0
    """Of that draw [ours]."""

    def __post_init__(self) -> None:
        require(
            2 <= self.minimum <= self.keep <= 32,
            f"filter.minimum {self.minimum} and filter.keep {self.keep}: expected 2 <= minimum <= keep <= 32",
        )
        for name in ("max_characters", "ngram"):
            require(getattr(self, name) >= 1, f"filter.{name} is {getattr(self, name)}: expected at least 1")
        require(
            0 < self.duplicate_threshold <= 1,
            f"filter.duplicate_threshold is {self.duplicate_threshold}: expected a number in (0, 1]",
        )
        for name in ("easy_pass_rate", "easy_fraction"):
            require(
                0 <= getattr(self, name) <= 1, f"filter.{name} is {getattr(self, name)}: expected a number in [0, 1]"
            )


@dataclass(frozen=True, slots=True)
class _Read:
    """A response as far as the filter needs it; `text` is left out where `outcome` already has a reason."""

    outcome: Outcome
    text: str

    @property
    def key(self) -> Key:
        return self.outcome.key


@dataclass(frozen=True)
class _Grade:
    """What `load_pass_rates` needs of a graded response."""

    id: str
    correct: bool


def filter_responses(
    questions: Sequence[Question],
    responses: Iterable[Response],
    verdicts: Mapping[Key, Verdict],
    config: FilterConfig,
    *,
    pass_rates: Mapping[str, float] | None = None,
) -> FilterResult:
    """Training records of the right responses to `questions`, and what became of every response.

    A rationale is dropped for the first of REASONS (mind/curation/result.py) that holds. Of those that are left, a
    question gets at most one a perspective and at most `config.keep`, the most diverse ones, without their answer
    lines. Nothing depends on the order of the responses. `pass_rates`, by question id, such as the student's, stand for
    the teacher's where they are given.

    Raises MindError with its key for a response of an unknown question, one that comes twice and one without a verdict,
    and where `pass_rates` are of other questions alone.
    """
    if pass_rates is not None and not any(question.id in pass_rates for question in questions):
        raise MindError(f"none of the {len(pass_rates)} pass rates is of one of the {len(questions)} questions")
    read = _read(questions, responses, verdicts, config)
    kept, outcomes, fates, rates = [], [], {}, {}
    for question in questions:
        rationales = sorted(read[question.id].values(), key=_by_perspective)
        rate = (pass_rates or {}).get(question.id, _pass_rate(rationales))
        if rate is not None:
            rates[question.id] = rate
        chosen, reasons = _choose(rationales, config)
        fate = fates[question.id] = _fate(question, len(rationales), len(chosen), rate, config)
        if fate == KEPT:
            kept.append(
                dataclasses.replace(
                    question, rationales=tuple(Rationale(rationale.key[1], rationale.text) for rationale in chosen)
                )
            )
        else:
            reasons |= {rationale.key: fate for rationale in chosen}
        outcomes += [
            dataclasses.replace(rationale.outcome, reason=reasons[rationale.key])
            if rationale.key in reasons
            else rationale.outcome
            for rationale in rationales
        ]
    return FilterResult(tuple(kept), tuple(outcomes), fates, rates)


def load_pass_rates(path: str | os.PathLike[str]) -> dict[str, float]:
    """Question id -> share of right answers to it, from a file that `mind grade` wrote: {"id", "correct"}, one a line.

    Ids repeat where a question was answered several times. Raises MindError for a missing or an empty file and, with
    the line, for a row without one of the two.
    """
    right: dict[str, int] = {}
    total: dict[str, int] = {}
    for where, row in json_objects(path):
        grade = record_of(_Grade, where, row)
        right[grade.id] = right.get(grade.id, 0) + grade.correct
        total[grade.id] = total.get(grade.id, 0) + 1
    if not total:
        raise MindError(f"{path}: the file is empty: expected one graded response a line")
    return {name: right[name] / total[name] for name in total}


def _read(
    questions: Sequence[Question], responses: Iterable[Response], verdicts: Mapping[Key, Verdict], config: FilterConfig
) -> dict[str, dict[Key, _Read]]:
    """The responses to each question. Texts that are dropped on their own account are let go at once."""
    by_id = {question.id: question for question in questions}
    read: dict[str, dict[Key, _Read]] = {name: {} for name in by_id}
    for response in responses:
        key = response.key
        where = f"the response to question {key[0]}, perspective {key[1]}, sample {key[2]}"
        if response.id not in by_id:
            raise MindError(f"{where}: there is no such question")
        if key in read[response.id]:
            raise MindError(f"{where}: it comes twice")
        if key not in verdicts:
            raise MindError(f"{where}: it has no verdict: run `mind judge` on the folder first")
        read[response.id][key] = _read_one(response, verdicts[key], by_id[response.id], config)
    return read


def _read_one(response: Response, verdict: Verdict, question: Question, config: FilterConfig) -> _Read:
    text = without_suffix(response.text)
    reason = adherent = None
    if verdict.verdict != "right":
        reason = verdict.verdict
    elif response.finish_reason == "length":
        reason = "truncated"
    elif not _WORD.search(text):
        reason = "empty"
    elif len(text) > config.max_characters:
        reason = "too long"
    elif config.drop_leaks and leaks_answer(text, question):
        reason = "leaks the answer"
    else:
        adherent = adheres(response.perspective, text)
        if config.require_adherence and adherent is False:
            reason = "not in its perspective"
    outcome = Outcome(response.key, reason, verdict.verdict == "right", adherent, len(text))
    return _Read(outcome, text if reason is None else "")


def _choose(rationales: Sequence[_Read], config: FilterConfig) -> tuple[list[_Read], dict[Key, str]]:
    """The rationales of a question to keep, in the given order, and why others without a reason yet are not."""
    # First samples come first, so that a second one of a perspective cannot make another's first one a duplicate.
    candidates = sorted((r for r in rationales if r.outcome.reason is None), key=lambda r: r.key[2])
    similarity = similarities(ngram_sets([candidate.text for candidate in candidates], config.ngram))
    left = distinct(similarity, config.duplicate_threshold)
    by_perspective = sorted(left, key=lambda index: _by_perspective(candidates[index]))
    groups = [candidate.key[1] for candidate in candidates]
    chosen = set(most_diverse(similarity, by_perspective, groups, config.keep))
    reasons = {
        candidate.key: "not selected" if index in left else "duplicate"
        for index, candidate in enumerate(candidates)
        if index not in chosen
    }
    return [candidates[index] for index in by_perspective if index in chosen], reasons


def _by_perspective(rationale: _Read) -> tuple[tuple[int, str], int]:
    _, perspective, sample = rationale.key
    return perspective_order(perspective), sample


def _pass_rate(rationales: Sequence[_Read]) -> float | None:
    """Right ones among all that the teacher gave; None where it gave none."""
    return sum(rationale.outcome.right for rationale in rationales) / len(rationales) if rationales else None


def _fate(question: Question, read: int, chosen: int, rate: float | None, config: FilterConfig) -> str:
    if not read:
        return NO_RESPONSE
    if chosen < config.minimum:
        return TOO_FEW
    return EASY if rate >= config.easy_pass_rate and _draw(question.id, config.seed) >= config.easy_fraction else KEPT


def _draw(name: str, seed: int) -> float:
    """A number in [0, 1) that follows from `name` and `seed` alone."""
    digest = hashlib.sha256(f"{seed}:{name}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:6], "big") / 2**48
