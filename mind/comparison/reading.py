"""Reads an experiment's folder method by method: the marks of its runs, their cost, and what is missing."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import numpy as np

from mind.comparison.marks import Marks
from mind.display import listed, one_line
from mind.errors import require
from mind.experiment.folder import ExperimentFolder, Job
from mind.experiment.plan import BASE, BASE_MARKER, Plan
from mind.files import json_rows
from mind.report.reading import number_at
from mind.run_folder import RunFolder
from mind.typed_json import described, read_json, record_of


class _Question(NamedTuple):
    id: str


class _Answer(NamedTuple):
    """The entries of an outcome row that describe an answer."""

    correct: bool
    parsed: bool
    cut_off: bool


@dataclass(frozen=True)
class Answers:
    """The answers of one run to the questions of one set."""

    file: Path
    ids: list[str]
    marks: np.ndarray  # (N,) float64
    """1 for a right answer, 0 for a wrong one; the mean if there are several samples."""
    unparsed: float
    """The share of answers that state nothing comparable."""
    cut_off: float
    """The share of answers that reached the token limit before their end."""
    single: bool
    """Whether each question was answered once."""


@dataclass(frozen=True)
class Run:
    """A complete run: it has answered every question."""

    seed: int | None
    """None for the untrained student."""
    folder: RunFolder
    answers: Mapping[str, Answers]
    """Answers by set."""
    nll: float | None
    """NLL on held-out rationales, in nats per token; None if it is not known."""
    status: Mapping[str, Any]
    """Its status.json; empty for the untrained student, and if the file is missing."""

    def cost(self, *keys: str) -> float | None:
        """A number in its status; None if it is not known."""
        return number_at(self.status, *keys)


@dataclass(frozen=True)
class Method:
    """The runs of a label in the plan, or the untrained student."""

    label: str
    name: str
    """The name of its method; for the untrained student, its label."""
    trained: bool
    runs: Sequence[Run]
    missing: Mapping[str, str]
    """Planned runs that are missing, by name, such as "seed 3", with the reason as far as it is known."""

    def marks(self, sets: Sequence[str]) -> Marks:
        """The marks on some sets. There must be at least one run."""
        return Marks([np.array([run.answers[name].marks for run in self.runs]) for name in sets], self.trained)


@dataclass(frozen=True)
class Results:
    """The results of an experiment, as far as it has come."""

    folder: ExperimentFolder
    plan: Plan
    hash: str
    student: str
    """The name of the student (a model or its folder) and of the file of training questions: without folders, which may
    name a person, and with the plan's variables filled in."""
    data: str
    methods: Mapping[str, Method]
    """By label, in the plan's order; the untrained student first."""
    failures: Sequence[Mapping[str, Any]]
    """The rows of failures.json."""

    def questions(self, name: str) -> int:
        """Number of questions in the set; 0 if no run has answered them."""
        sizes = (len(run.answers[name].ids) for method in self.methods.values() for run in method.runs)
        return next(sizes, 0)


def read_results(path: str | os.PathLike[str]) -> Results:
    """The results so far of the experiment in the folder.

    Raises MindError for a folder without an experiment, for outcomes of another plan, for a malformed line in them, and
    if the outcomes of a set do not have the same questions in the same order in all runs.
    """
    folder = ExperimentFolder(Path(path))
    plan, content = folder.read_experiment()
    failures = _failures(folder.failures)
    reasons = {row["job"]: one_line(str(row.get("message")), 300) for row in failures if "job" in row}
    methods = {BASE: [Job(BASE)]}
    if plan.base_marker:
        methods[BASE_MARKER] = [Job(BASE_MARKER)]
    methods |= {label: [Job.run(label, seed) for seed in plan.seeds] for label in plan.methods}
    read = {label: _method(label, jobs, plan, folder, reasons) for label, jobs in methods.items()}
    _check_same_questions([run for method in read.values() for run in method.runs])
    student, data = (_source(folder, content, name) for name in ("student", "train"))
    return Results(folder, plan, folder.hash, student, data, read, failures)


def _source(folder: ExperimentFolder, content: Mapping[str, Any], name: str) -> str:
    """The last part of the place that an input came from."""
    place: Any = content
    for key in ("inputs", name, "source"):
        place = place.get(key) if isinstance(place, dict) else None
    require(
        isinstance(place, str), f'{folder.experiment}: "inputs.{name}.source" is {described(place)}: expected a string'
    )
    return PurePath(place).name


def _failures(file: Path) -> list[dict[str, Any]]:
    rows = read_json(file) if os.path.lexists(file) else []
    known = isinstance(rows, list) and all(isinstance(row, dict) for row in rows)
    require(known, f"{file}: expected a JSON list of objects")
    return rows


def _method(
    label: str, jobs: Sequence[Job], plan: Plan, folder: ExperimentFolder, reasons: Mapping[str, str]
) -> Method:
    runs, missing = [], {}
    for job in jobs:
        lacking = [name for name in plan.evaluation if not os.path.lexists(folder.outcomes(job) / f"{name}.jsonl")]
        if not lacking:
            runs.append(_run(job, plan, folder))
            continue
        run = "the run" if job.number is None else f"seed {job.number}"
        begun = f"no answers to {listed(lacking)}" if len(lacking) < len(plan.evaluation) else "not evaluated"
        missing[run] = reasons.get(job.name, begun)
    trained = label in plan.methods
    return Method(label, plan.methods[label].method if trained else label, trained, runs, missing)


def _run(job: Job, plan: Plan, folder: ExperimentFolder) -> Run:
    about = folder.about(folder.outcomes(job))
    require(bool(folder.read_result(about)), f"{about}: is not there: it says by what plan the answers were made")
    answers = {name: _answers(folder.outcomes(job) / f"{name}.jsonl") for name in plan.evaluation}
    untrained = job.number is None
    run = folder.base if untrained else folder.run(job)
    nll = number_at(run.read_evaluation()["before" if untrained else "after"], "heldout", "nll")
    return Run(job.number, run, answers, None if job.kind == BASE_MARKER else nll, run.read_status())


def _answers(file: Path) -> Answers:
    ids: dict[str, str] = {}
    marks, every = [], []
    for where, row in json_rows(file):
        name = record_of(_Question, where, row).id
        require(name not in ids, f"{where}: question {described(name)} is answered in {ids.get(name)}, too")
        ids[name] = where
        samples = row.get("samples", [row])
        whole = isinstance(samples, list) and len(samples) > 0 and all(isinstance(one, dict) for one in samples)
        require(whole, f'{where}: "samples" is {described(samples)}: expected a list of objects')
        answers = [record_of(_Answer, where, sample) for sample in samples]
        marks.append(sum(answer.correct for answer in answers) / len(answers))
        every += answers
    require(bool(ids), f"{file}: no questions")
    unparsed, cut_off = (
        sum(shares) / len(every) for shares in zip(*((not a.parsed, a.cut_off) for a in every), strict=True)
    )
    return Answers(file, list(ids), np.array(marks), unparsed, cut_off, single=len(every) == len(ids))


def _check_same_questions(runs: Sequence[Run]) -> None:
    for name, first in (runs[0].answers if runs else {}).items():
        for run in runs[1:]:
            other = run.answers[name]
            pairs = zip(first.ids, other.ids, strict=False)
            place = next((place for place, (one, two) in enumerate(pairs) if one != two), None)
            require(
                place is None and len(first.ids) == len(other.ids),
                f"{other.file}: its questions are not those of {first.file}, in the same order: "
                + (
                    f"{len(other.ids)} and {len(first.ids)} of them"
                    if place is None
                    else f"question {place + 1} is {described(other.ids[place])}, not {described(first.ids[place])}"
                ),
            )


def mean(values: Sequence[float | None]) -> float | None:
    """The mean of finite numbers; None if one is not known, or there are none."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    return sum(known) / len(known) if known and len(known) == len(values) else None
