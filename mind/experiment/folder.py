"""The folder of an experiment: the one place that knows the names of its files.

    experiment.json                        the plan with every field, its inputs and its hash
    data/                                  the questions, as every run reads them: train, validation, sets/NAME
    base/                                  the evaluation of the untrained student that all runs share
    budget/LABEL, budget.json              the run that says what a student may cost, and that
    tuning/LABEL/config-I, tuning.json     runs of configurations, what came of each (config-I.json), and the table
    runs/LABEL/seed-S                      the run folders of `mind train`; their logs are seed-S.log
    outcomes/LABEL/seed-S/SET.jsonl        a row per question (mind.evaluation.outcomes); base/SET.jsonl without seeds
    outcomes/LABEL/seed-S/answers.json     by what plan and by how many threads they were made
    failures.json                          runs that failed, as of the latest start

budget.json, tuning.json, each config-I.json and each answers.json have the plan's hash, and are refused if it is
another one.

A job is a run with what is made of its student, by the name of its folder: "runs/LABEL/seed-S".
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mind.errors import MindError, require
from mind.experiment.plan import BASE, BASE_MARKER, Plan
from mind.files import path_meant, read_object
from mind.run_folder import RunFolder
from mind.typed_json import build, write_json


@dataclass(frozen=True)
class Job:
    """One process of an experiment."""

    name: str
    """The folder of its run within the experiment's; that of the untrained student: "base" or "base-marker"."""

    @property
    def kind(self) -> str:
        """ "base", "base-marker", "budget", "tuning" or "runs"."""
        return self.name.partition("/")[0]

    @property
    def label(self) -> str:
        """The method's."""
        return self.name.split("/")[1] if "/" in self.name else self.name

    @property
    def number(self) -> int | None:
        """The seed, or the number of the configuration; None without one."""
        return int(self.name.rpartition("-")[2]) if self.name.count("/") == 2 else None

    @classmethod
    def budget(cls, label: str) -> Job:
        """The run whose cost is the budget."""
        return cls(f"budget/{label}")

    @classmethod
    def tuning(cls, label: str, number: int) -> Job:
        """The run of a configuration, from 0."""
        return cls(f"tuning/{label}/config-{number}")

    @classmethod
    def run(cls, label: str, seed: int) -> Job:
        """One of those that count."""
        return cls(f"runs/{label}/seed-{seed}")


@dataclass(frozen=True)
class ExperimentFolder:
    """The folder of one experiment, which need not exist yet."""

    path: Path

    @property
    def experiment(self) -> Path:
        return self.path / "experiment.json"

    @property
    def lock(self) -> Path:
        """Held by the one who starts the jobs."""
        return self.path / ".experiment.lock"

    @property
    def train_file(self) -> Path:
        return self.path / "data" / "train.jsonl"

    @property
    def validation_file(self) -> Path:
        return self.path / "data" / "validation.jsonl"

    def set_file(self, name: str) -> Path:
        """The questions of an evaluation set."""
        return self.path / "data" / "sets" / f"{name}.jsonl"

    @property
    def base(self) -> RunFolder:
        """Where the held-out NLL of the untrained student is, as in a run before its training."""
        return RunFolder(self.path / BASE)

    def run(self, job: Job) -> RunFolder:
        return RunFolder(self.path / job.name)

    def beside(self, job: Job, ending: str) -> Path:
        """A file beside the run's folder: its ".log", its ".lock", the ".json" of what came of a configuration."""
        return self.path / f"{job.name}{ending}"

    def outcomes(self, job: Job) -> Path:
        """The folder of the answers of a run's student, or of the untrained one."""
        return self.path / "outcomes" / job.name.removeprefix("runs/")

    @staticmethod
    def about(answers: Path) -> Path:
        """In a folder of answers: {"threads": of the processes that asked, each number once}; those that trained are in
        the starts.json of their run."""
        return answers / "answers.json"

    @property
    def budget(self) -> Path:
        """{"unit": ..., "amount": ..., "of": the run that it was measured by, or null}."""
        return self.path / "budget.json"

    @property
    def tuning(self) -> Path:
        """{"labels": {LABEL: {"configurations": [{"options", "accuracy", "nll", "flops", ...}], "chosen": the number of
        one}}}."""
        return self.path / "tuning.json"

    @property
    def failures(self) -> Path:
        """[{"job", "label", "seed", "message", "log"}]."""
        return self.path / "failures.json"

    def read_experiment(self) -> tuple[Plan, dict[str, Any]]:
        """The plan, as it was written, and the whole file. Raises MindError for a folder without an experiment."""
        missing = f"{self.path}: there is no experiment ({self.experiment.name} is missing){path_meant(self.path)}"
        require(self.experiment.is_file(), missing)
        content = read_object(self.experiment)
        fields = {name: content[name] for name in Plan.__dataclass_fields__ if name in content}
        return build(Plan, fields, str(self.experiment)), content

    @property
    def hash(self) -> str:
        """The plan's, which every result has."""
        digest = read_object(self.experiment).get("hash")
        if not isinstance(digest, str):
            raise MindError(f'{self.experiment}: "hash" is {digest!r:.60}: expected a string')
        return digest

    def read_result(self, file: Path) -> dict[str, Any]:
        """The JSON object in a file, without the hash; empty if it is not there. Raises MindError for one of another
        plan."""
        if not file.exists():
            return {}
        content, own = read_object(file), self.hash
        digest = content.pop("hash", None)
        require(
            digest == own,
            f'{file}: "hash" is {digest!r:.80}: expected that of {self.experiment.name}, {own}; it is of another plan',
        )
        return content

    def write_result(self, value: Mapping[str, Any], file: Path) -> None:
        """Replaces a file at once by JSON, with the hash."""
        self.write({"hash": self.hash, **value}, file)

    def write(self, value: Any, file: Path) -> None:
        """Replaces a file at once by JSON."""
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(value, file)

    def evaluated(self, job: Job, sets: Mapping[str, Any]) -> bool:
        """Whether the answers to all the sets are there. Raises MindError if they are of another plan."""
        known = self.read_result(self.about(self.outcomes(job)))
        return bool(known) and all((self.outcomes(job) / f"{name}.jsonl").exists() for name in sets)

    def done(self, job: Job, plan: Plan) -> bool:
        """Whether nothing of a job is left to do."""
        if job.kind == BASE:
            return self.base.read_evaluation()["before"] is not None and self.evaluated(job, plan.evaluation)
        if job.kind == BASE_MARKER:
            return self.evaluated(job, plan.evaluation)
        run = self.run(job)
        if job.kind == "tuning":
            return self.beside(job, ".json").exists() and not run.student.exists()
        if job.kind == "budget":
            return run.status.exists() and not run.student.exists()
        kept = plan.keep_students or not run.student.exists()
        return run.status.exists() and self.evaluated(job, plan.evaluation) and kept

    def drop_student(self, job: Job) -> None:
        """Removes what is large and that nothing reads any more: weights and checkpoints, the trained student last."""
        run = self.run(job)
        for folder in [*run.stages, run]:
            for path in folder.weights():
                shutil.rmtree(path)
