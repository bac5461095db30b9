"""Names the files in the folder of an experiment, and reads and writes them.

    experiment.json                        the plan with every field, its inputs and its hash
    data/                                  the questions, as every run reads them: train, validation, sets/NAME
    base/                                  the evaluation of the untrained student that all runs share
    budget/LABEL, budget.json              the run that measures the budget of every student, and the budget
    tuning/LABEL/config-I, tuning.json     runs of configurations, their results (config-I.json), and the table
    runs/LABEL/seed-S                      the run folders of `mind train`; their logs are seed-S.log
    outcomes/LABEL/seed-S/SET.jsonl        a row per question (mind.evaluation.outcomes); base/SET.jsonl without seeds
    outcomes/LABEL/seed-S/answers.json     the plan's hash, and the number of threads that made them
    failures.json                          runs that failed, as of the latest start

budget.json, tuning.json, each config-I.json and each answers.json have the plan's hash; files with another hash are
refused.

A job is a run together with the evaluation of its student. It is named by its folder: "runs/LABEL/seed-S".
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mind.display import path_meant
from mind.errors import MindError, require
from mind.experiment.plan import BASE, BASE_MARKER, Plan
from mind.files import read_object
from mind.run_folder import RunFolder
from mind.typed_json import build, write_json


@dataclass(frozen=True)
class Job:
    """One job of an experiment, done by one process."""

    name: str
    """The folder of its run within the experiment's; for the untrained student, "base" or "base-marker"."""

    @property
    def kind(self) -> str:
        """ "base", "base-marker", "budget", "tuning" or "runs"."""
        return self.name.partition("/")[0]

    @property
    def label(self) -> str:
        """The label of its method."""
        return self.name.split("/")[1] if "/" in self.name else self.name

    @property
    def number(self) -> int | None:
        """The seed, or the number of the configuration; None if it has neither."""
        return int(self.name.rpartition("-")[2]) if self.name.count("/") == 2 else None

    @classmethod
    def budget(cls, label: str) -> Job:
        """The job whose cost becomes the budget."""
        return cls(f"budget/{label}")

    @classmethod
    def tuning(cls, label: str, number: int) -> Job:
        """The job that tries a configuration; numbers start at 0."""
        return cls(f"tuning/{label}/config-{number}")

    @classmethod
    def run(cls, label: str, seed: int) -> Job:
        """One of the runs that are compared."""
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
        """A lock held by the process that starts the jobs."""
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
        """The folder with the held-out NLL of the untrained student, in the form of a run before its training."""
        return RunFolder(self.path / BASE)

    def run(self, job: Job) -> RunFolder:
        return RunFolder(self.path / job.name)

    def beside(self, job: Job, ending: str) -> Path:
        """A file beside the run's folder: its ".log", its ".lock", or the ".json" with the result of a
        configuration."""
        return self.path / f"{job.name}{ending}"

    def outcomes(self, job: Job) -> Path:
        """The folder with the answers of a run's student, or of the untrained one."""
        return self.path / "outcomes" / job.name.removeprefix("runs/")

    @staticmethod
    def about(answers: Path) -> Path:
        """The file in a folder of answers with {"threads": thread counts of the processes that asked, each once}; the
        thread counts of training are in the run's starts.json."""
        return answers / "answers.json"

    @property
    def budget(self) -> Path:
        """{"unit": ..., "amount": ..., "of": the run that measured it, or null}."""
        return self.path / "budget.json"

    @property
    def tuning(self) -> Path:
        """{"labels": {LABEL: {"configurations": [{"options", "accuracy", "nll", "flops", ...}], "chosen": the number of
        the chosen one}}}."""
        return self.path / "tuning.json"

    @property
    def failures(self) -> Path:
        """[{"job", "label", "seed", "message", "log"}]."""
        return self.path / "failures.json"

    def read_experiment(self) -> tuple[Plan, dict[str, Any]]:
        """The plan as it was written, and the whole file. Raises MindError for a folder without an experiment."""
        missing = f"{self.path}: there is no experiment ({self.experiment.name} is missing){path_meant(self.path)}"
        require(self.experiment.is_file(), missing)
        content = read_object(self.experiment)
        fields = {name: content[name] for name in Plan.__dataclass_fields__ if name in content}
        return build(Plan, fields, str(self.experiment)), content

    @property
    def hash(self) -> str:
        """The plan's hash, which every result contains."""
        digest = read_object(self.experiment).get("hash")
        if not isinstance(digest, str):
            raise MindError(f'{self.experiment}: "hash" is {digest!r:.60}: expected a string')
        return digest

    def read_result(self, file: Path) -> dict[str, Any]:
        """The JSON object in a file, without the hash; empty if the file is missing. Raises MindError for a file of
        another plan."""
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
        """Replaces a file in one step by JSON with the hash."""
        self.write({"hash": self.hash, **value}, file)

    def write(self, value: Any, file: Path) -> None:
        """Replaces a file in one step by JSON."""
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(value, file)

    def evaluated(self, job: Job, sets: Mapping[str, Any]) -> bool:
        """Whether the answers to all the sets exist. Raises MindError if they are of another plan."""
        known = self.read_result(self.about(self.outcomes(job)))
        return bool(known) and all((self.outcomes(job) / f"{name}.jsonl").exists() for name in sets)

    def done(self, job: Job, plan: Plan) -> bool:
        """Whether a job is complete."""
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
        """Removes large files that nothing reads any more: weights and checkpoints, the trained student last."""
        run = self.run(job)
        for folder in [*run.stages, run]:
            for path in folder.weights():
                shutil.rmtree(path)
