"""Of the judged responses to each question, a small and diverse set of rationales to train on."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mind.answer_line import rationale_of
from mind.curation.adherence import adheres
from mind.curation.leaks import leaks_answer
from mind.curation.result import EASY, KEPT, NO_RESPONSE, TOO_FEW, FilterResult, RationaleOutcome, perspective_order
from mind.data.fields import field_of
from mind.data.problems import Problems
from mind.data.rows import file_rows
from mind.errors import MindError, require
from mind.grading.answers import is_correct
from mind.records import Key, Question, Rationale, Response, Verdict, WrongRationale
from mind.similarity import distinct, most_diverse, ngram_sets, similarities
from mind.teacher.completion import is_finished
from mind.typed_json import check_fields, described

_WORD = re.compile(r"\w")


@dataclass(frozen=True)
class FilterConfig:
    """What is kept. The paper gives none of these values."""

    keep: int = 8
    """Rationales per question, at most, and at most one per perspective [ours]."""
    minimum: int = 2
    """Questions with fewer are dropped: MIND needs two to choose from [ours]."""
    keep_wrong: int = 0
    """Rationales with a wrong answer to keep beside the right ones, at most, for methods that learn from both
    [ours]."""
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
    """Drop rationales without the marks of their perspective, if it has a check; by default they are only counted
    [ours]."""
    easy_pass_rate: float = 1.0
    """A question is easy from this pass rate on: right responses among all of the teacher's, or the student's rate
    if it is given [ours]."""
    easy_fraction: float = 1.0
    """Fraction of the easy questions that is kept. It is drawn by the question's id, so that it is the same in any
    order and that a smaller fraction is a part of a larger one [ours]."""
    seed: int = 0
    """Of that draw [ours]."""

    def __post_init__(self) -> None:
        check_fields("", self)
        require(
            2 <= self.minimum <= self.keep <= 32,
            f"minimum {self.minimum} and keep {self.keep}: expected 2 <= minimum <= keep <= 32",
        )
        for name, least in (("max_characters", 1), ("ngram", 1), ("keep_wrong", 0)):
            require(getattr(self, name) >= least, f"{name} is {getattr(self, name)}: expected at least {least}")
        require(
            0 < self.duplicate_threshold <= 1,
            f"duplicate_threshold is {self.duplicate_threshold}: expected a number in (0, 1]",
        )
        for name in ("easy_pass_rate", "easy_fraction"):
            require(0 <= getattr(self, name) <= 1, f"{name} is {getattr(self, name)}: expected a number in [0, 1]")


@dataclass(frozen=True)
class FilterOptions:
    """Choose the rationales to train on from a judged data set."""

    folder: str
    """What `mind data generate` and `mind data judge` wrote."""
    output: str
    """The records to train on, .jsonl or .parquet; it must not exist. Beside it and named after it: .report.html,
    .card.json, .card.md (a dataset card for the Hub) and .dropped.jsonl."""
    filter: FilterConfig = field(default_factory=FilterConfig)
    student_grades: str | None = None
    """A file that `mind grade` wrote of a student's answers to the questions: its pass rates, in place of the
    teacher's, decide which are easy."""
    license: str | None = None
    """Of this data set, for its card."""
    source_licenses: str | None = None
    """Of the questions."""
    overwrite: bool = False
    """Replace what is there already."""

    def __post_init__(self) -> None:
        check_fields("", self)


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A response as far as the filter needs it; `text` is empty if `outcome` already has a reason."""

    outcome: RationaleOutcome
    text: str
    source: str
    wrong: WrongRationale | None = None
    """If it may be kept as a wrong one."""

    @property
    def key(self) -> Key:
        return self.outcome.key


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
    question gets at most one per perspective and at most `config.keep`, the most diverse ones, without their answer
    lines. Nothing depends on the order of the responses. `pass_rates`, question id -> fraction of right answers, such
    as a student's, replace the teacher's for the questions that they name.

    Raises MindError with its key for a response to an unknown question, for one that appears twice, one without a
    verdict, and if `pass_rates` are of other questions alone.
    """
    if pass_rates is not None and not any(question.id in pass_rates for question in questions):
        raise MindError(f"none of the {len(pass_rates)} pass rates is of one of the {len(questions)} questions")
    candidates = _candidates(questions, responses, verdicts, config)
    kept, outcomes, fates, rates = [], [], {}, {}
    for question in questions:
        rationales = sorted(candidates[question.id].values(), key=_by_perspective)
        rate = (pass_rates or {}).get(question.id, _pass_rate(rationales))
        if rate is not None:
            rates[question.id] = rate
        chosen, reasons = _choose(rationales, config)
        fate = fates[question.id] = _fate(question, len(rationales), len(chosen), rate, config)
        if fate == KEPT:
            training = tuple(Rationale(one.key.perspective, one.text, one.source) for one in chosen)
            wrong = _choose_wrong(rationales, config)
            kept.append(dataclasses.replace(question, rationales=training, wrong_rationales=wrong))
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
    """Question id -> fraction of right answers to it, from a file that `mind grade` wrote: {"id", "correct"} per line.

    Ids repeat if a question was answered several times. Raises MindError for a missing or an empty file, and
    FaultyRowsError with all rows that lack one of the two.
    """
    problems = Problems(path)
    grades: dict[str, list[bool]] = {}
    for where, row in file_rows(path, problems):
        name = problems.attempt(where, field_of, where, row, "id")
        correct = problems.attempt(where, _correct, where, row)
        if name is not None and correct is not None:
            grades.setdefault(name, []).append(correct)
    problems.check([right for of_one in grades.values() for right in of_one])
    require(bool(grades), f"{path}: the file is empty: expected one graded response per line")
    return {name: statistics.fmean(of_one) for name, of_one in grades.items()}


def _correct(where: str, row: Mapping[str, Any]) -> bool:
    require("correct" in row, f'{where}: "correct" is missing')
    value = row["correct"]
    require(isinstance(value, bool), f'{where}: "correct" is {described(value)}: expected true or false')
    return bool(value)


def _candidates(
    questions: Sequence[Question], responses: Iterable[Response], verdicts: Mapping[Key, Verdict], config: FilterConfig
) -> dict[str, dict[Key, _Candidate]]:
    """The responses to each question. Texts that are dropped on their own account are let go at once."""
    by_id = {question.id: question for question in questions}
    candidates: dict[str, dict[Key, _Candidate]] = {name: {} for name in by_id}
    for response in responses:
        key = response.key
        if key.question not in by_id:
            raise MindError(f"the response to {key}: there is no such question")
        if key in candidates[key.question]:
            raise MindError(f"the response to {key}: it appears twice")
        if key not in verdicts:
            raise MindError(f"the response to {key}: it has no verdict: run `mind judge` on the folder first")
        candidates[key.question][key] = _candidate(response, verdicts[key], by_id[key.question], config)
    return candidates


def _candidate(response: Response, verdict: Verdict, question: Question, config: FilterConfig) -> _Candidate:
    text = rationale_of(response.text, lambda stated: is_correct(stated, question))
    reason = adherent = None
    if verdict.verdict == "wrong":
        reason = "wrong"
    elif not is_finished(response):
        reason = "truncated"
    elif verdict.verdict == "unparsed":
        reason = "unparsed"
    elif not _WORD.search(text):
        reason = "empty"
    elif len(text) > config.max_characters:
        reason = "too long"
    elif config.drop_leaks and leaks_answer(text, question):
        reason = "leaks the answer"
    else:
        adherent = adheres(response.key.perspective, text)
        if config.require_adherence and adherent is False:
            reason = "not in its perspective"
    outcome = RationaleOutcome(response.key, reason, verdict.verdict == "right", adherent, len(text))
    wrong = _wrong_rationale(response, verdict, question, config) if reason == "wrong" else None
    return _Candidate(outcome, text if reason is None else "", response.model, wrong)


def _wrong_rationale(
    response: Response, verdict: Verdict, question: Question, config: FilterConfig
) -> WrongRationale | None:
    """What the same rules leave of a response with a wrong answer."""
    if config.keep_wrong == 0 or verdict.extracted is None or not is_finished(response):
        return None
    text = rationale_of(response.text, lambda stated: stated == verdict.extracted)
    if not _WORD.search(text) or len(text) > config.max_characters:
        return None
    if config.drop_leaks and leaks_answer(text, question):
        return None
    return WrongRationale(response.key.perspective, text, verdict.extracted, response.model)


def _choose_wrong(rationales: Sequence[_Candidate], config: FilterConfig) -> tuple[WrongRationale, ...]:
    """The first of each perspective, then the second ones, and so on; no duplicates, and at most `keep_wrong`."""
    candidates = [one.wrong for one in sorted(rationales, key=lambda one: one.key.sample) if one.wrong is not None]
    similarity = similarities(ngram_sets([wrong.text for wrong in candidates], config.ngram))
    unlike = set(distinct(similarity, config.duplicate_threshold)[: config.keep_wrong])
    return tuple(wrong for index, wrong in enumerate(candidates) if index in unlike)


def _choose(rationales: Sequence[_Candidate], config: FilterConfig) -> tuple[list[_Candidate], dict[Key, str]]:
    """The rationales of a question to keep, in the given order, and why others without a reason yet are not."""
    # First samples come first, so that a second one of a perspective cannot make another's first one a duplicate.
    candidates = sorted((r for r in rationales if r.outcome.reason is None), key=lambda r: r.key.sample)
    similarity = similarities(ngram_sets([candidate.text for candidate in candidates], config.ngram))
    unlike = distinct(similarity, config.duplicate_threshold)
    by_perspective = sorted(unlike, key=lambda index: _by_perspective(candidates[index]))
    perspectives = [candidate.key.perspective for candidate in candidates]
    chosen = set(most_diverse(similarity, by_perspective, perspectives, config.keep))
    reasons = {
        candidate.key: "not selected" if index in unlike else "duplicate"
        for index, candidate in enumerate(candidates)
        if index not in chosen
    }
    return [candidates[index] for index in by_perspective if index in chosen], reasons


def _by_perspective(rationale: _Candidate) -> tuple[tuple[int, str], int]:
    return perspective_order(rationale.key.perspective), rationale.key.sample


def _pass_rate(rationales: Sequence[_Candidate]) -> float | None:
    """Right ones among all that the teacher gave; None if it gave none."""
    return sum(rationale.outcome.right for rationale in rationales) / len(rationales) if rationales else None


def _fate(question: Question, responses: int, chosen: int, rate: float | None, config: FilterConfig) -> str:
    """What becomes of a question with so many responses, of which so many were chosen."""
    if not responses:
        return NO_RESPONSE
    if chosen < config.minimum:
        return TOO_FEW
    easy = rate is not None and rate >= config.easy_pass_rate
    return EASY if easy and _draw(question.id, config.seed) >= config.easy_fraction else KEPT


def _draw(name: str, seed: int) -> float:
    """A number in [0, 1) that follows from `name` and `seed` alone."""
    digest = hashlib.sha256(f"{seed}:{name}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:6], "big") / 2**48
