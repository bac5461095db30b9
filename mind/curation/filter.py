"""Selects from the judged responses to each question a small and diverse set of rationales to train on."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
import statistics
import warnings
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from mind.curation.candidates import Candidate, candidate_of, choose_wrong
from mind.curation.config import FilterConfig
from mind.curation.result import EASY, KEPT, NO_RESPONSE, OUTSIDE, TOO_FEW, FilterResult, perspective_order
from mind.data.fields import field_of
from mind.data.problems import Problems
from mind.data.rows import file_rows
from mind.display import number_of
from mind.errors import MindError, require
from mind.progress import tracked
from mind.records import Key, Question, Rationale, Response, Verdict
from mind.similarity import distinct, most_diverse, ngram_sets, similarities
from mind.teacher.recipes import MadeFrom
from mind.typed_json import described


def filter_responses(
    questions: Sequence[Question],
    responses: Iterable[Response],
    verdicts: Mapping[Key, Verdict],
    config: FilterConfig,
    *,
    pass_rates: Mapping[str, float] | None = None,
    made: Mapping[Key, MadeFrom] = MappingProxyType({}),
) -> FilterResult:
    """Training records from the right responses to `questions`, and what became of every response.

    A rationale is dropped for the first of REASONS (mind/curation/result.py) that applies. Of the rest, each question
    gets at most one per perspective and at most `config.keep`, the most diverse ones, without their answer lines. The
    order of the responses makes no difference. Pass rates, and their variation, are over the teachers in
    `config.source`. `pass_rates`, question id -> fraction of right answers, such as a student's, replaces these rates,
    but not their variation, for the questions that it names. `made` says which responses were made from others: they do
    not count in pass rates, and provide the twins of wrong rationales.

    Raises MindError, with the key, for a response to an unknown question, for one that appears twice and for one
    without a verdict; also if `pass_rates` only has other questions, if no response comes from `config.source`, and if
    no question has a pass rate that `config` asks for.
    """
    if pass_rates is not None:
        missing = sum(question.id not in pass_rates for question in questions)
        if missing == len(questions):
            raise MindError(
                f"--student-grades: none of its {len(pass_rates)} pass rates is of one of the {missing} questions"
            )
        if missing:
            warnings.warn(
                f"--student-grades has no pass rate for {missing:,} of {number_of(len(questions), 'question')}: the "
                "teacher's counts for these",
                RuntimeWarning,
                stacklevel=2,
            )
    candidates = _candidates(questions, responses, verdicts, config, made)
    kept, outcomes, fates, rates, answered = [], [], {}, {}, False
    for question in tracked(questions, "selection", "question"):
        rationales = sorted(candidates[question.id].values(), key=_by_perspective)
        answers = [one for one in rationales if one.key not in made and one.source in (config.source or (one.source,))]
        answered = answered or bool(answers)
        rate = (pass_rates or {}).get(question.id, _pass_rate(answers))
        if rate is not None:
            rates[question.id] = rate
        chosen, reasons = _choose(rationales, config)
        outside = _is_outside(rate, answers, config)
        fate = fates[question.id] = _fate(question, len(rationales), len(chosen), rate, outside, config)
        if fate == KEPT:
            training = tuple(Rationale(one.key.perspective, one.text, one.source) for one in chosen)
            wrong = choose_wrong(rationales, made, config)
            kept.append(dataclasses.replace(question, rationales=training, wrong_rationales=wrong))
        else:
            reasons |= {rationale.key: fate for rationale in chosen}
        outcomes += [
            dataclasses.replace(rationale.outcome, reason=reasons[rationale.key])
            if rationale.key in reasons
            else rationale.outcome
            for rationale in rationales
        ]
    sources = {one.source for one in outcomes}
    strange = [name for name in config.source if name not in sources]
    require(
        not strange, f"--source: none wrote as {', '.join(strange)}: those who did are {', '.join(sorted(sources))}"
    )
    unknown = ["--pass-rate"] if config.pass_rate != FilterConfig.pass_rate and not rates else []
    unknown += ["--variation"] if config.variation is not None and not answered else []
    whose = f"all answers of {', '.join(config.source)}" if config.source else "all answers"
    require(
        not unknown,
        f"{', '.join(unknown)}: {whose} were made from others, and tell of none: name the folder of those first",
    )
    return FilterResult(tuple(kept), tuple(outcomes), fates, rates)


def load_pass_rates(path: str | os.PathLike[str]) -> dict[str, float]:
    """Question id -> fraction of right answers to it, from a file that `mind grade` wrote: {"id", "correct"} per line.

    Ids repeat if a question was answered several times. Raises MindError for a missing or an empty file, and
    FaultyRowsError with all rows that lack one of the two fields.
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
    questions: Sequence[Question],
    responses: Iterable[Response],
    verdicts: Mapping[Key, Verdict],
    config: FilterConfig,
    made: Mapping[Key, MadeFrom],
) -> dict[str, dict[Key, Candidate]]:
    """The responses to each question. The texts of responses that a rule drops are not kept in memory."""
    by_id = {question.id: question for question in questions}
    candidates: dict[str, dict[Key, Candidate]] = {name: {} for name in by_id}
    for response in responses:
        key = response.key
        if key.question not in by_id:
            raise MindError(f"the response to {key}: there is no such question")
        if key in candidates[key.question]:
            raise MindError(f"the response to {key}: it appears twice")
        if key not in verdicts:
            raise MindError(f"the response to {key}: it has no verdict: run `mind data judge` on the folder first")
        how = made[key].made if key in made else None
        candidates[key.question][key] = candidate_of(response, verdicts[key], by_id[key.question], config, how)
    return candidates


def _choose(rationales: Sequence[Candidate], config: FilterConfig) -> tuple[list[Candidate], dict[Key, str]]:
    """The rationales of a question to keep, in the given order, and the reason why others are not kept."""
    # First samples come first, so that a second sample of a perspective cannot make another perspective's first one a
    # duplicate.
    usable = [r for r in rationales if r.outcome.reason is None]
    candidates = sorted(_shortest(usable) if config.shortest else usable, key=lambda r: r.key.sample)
    similarity = similarities(ngram_sets([candidate.text for candidate in candidates], config.ngram))
    unlike = distinct(similarity, config.duplicate_threshold)
    by_perspective = sorted(unlike, key=lambda index: _by_perspective(candidates[index]))
    perspectives = [candidate.key.perspective for candidate in candidates]
    chosen = set(most_diverse(similarity, by_perspective, perspectives, config.keep))
    reasons = {one.key: "not selected" for one in usable}
    reasons |= {one.key: "duplicate" for index, one in enumerate(candidates) if index not in unlike}
    kept = [candidates[index] for index in by_perspective if index in chosen]
    return kept, {key: reason for key, reason in reasons.items() if key not in {one.key for one in kept}}


def _shortest(rationales: Sequence[Candidate]) -> list[Candidate]:
    """The shortest rationale of each perspective, the first of equally short ones."""
    shortest: dict[str, Candidate] = {}
    for one in rationales:
        best = shortest.setdefault(one.key.perspective, one)
        if len(one.text) < len(best.text):
            shortest[one.key.perspective] = one
    return list(shortest.values())


def _by_perspective(rationale: Candidate) -> tuple[tuple[int, str], int]:
    return perspective_order(rationale.key.perspective), rationale.key.sample


def _pass_rate(rationales: Iterable[Candidate]) -> float | None:
    """The share of right rationales; None without rationales."""
    right = [rationale.outcome.right for rationale in rationales]
    return statistics.fmean(right) if right else None


def _is_outside(rate: float | None, answers: Sequence[Candidate], config: FilterConfig) -> bool:
    """Whether a question's pass rate, or its variation over perspectives, is outside the range of `config`."""
    if rate is not None and not config.pass_rate[0] <= rate <= config.pass_rate[1]:
        return True
    if config.variation is None or not answers:
        return False
    by_perspective: dict[str, list[bool]] = {}
    for one in answers:
        by_perspective.setdefault(one.key.perspective, []).append(one.outcome.right)
    rates = [statistics.fmean(right) for right in by_perspective.values()]
    mean = statistics.fmean(rates)
    variation = statistics.pstdev(rates) / mean if mean else math.inf
    return not config.variation[0] <= variation <= config.variation[1]


def _fate(
    question: Question, responses: int, chosen: int, rate: float | None, outside: bool, config: FilterConfig
) -> str:
    """What becomes of a question, given the numbers of its responses and of its chosen rationales."""
    if not responses:
        return NO_RESPONSE
    if chosen < config.minimum:
        return TOO_FEW
    if outside:
        return OUTSIDE
    easy = rate is not None and rate >= config.easy_pass_rate
    return EASY if easy and _draw(question.id, config.seed) >= config.easy_fraction else KEPT


def _draw(name: str, seed: int) -> float:
    """A number in [0, 1) that depends only on `name` and `seed`."""
    digest = hashlib.sha256(f"{seed}:{name}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:6], "big") / 2**48
