"""Does one job of an experiment in this process: trains a student, asks it all questions, and keeps its answers.

Everything that it reads is in the experiment's folder, and everything that it writes appears there in one step. So a
job that was killed is started again and does the rest.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mind.asking import ANSWER_LINE_WANTED, AskingConfig, EvaluationConfig
from mind.config import MindConfig, StudentConfig, TrainConfig
from mind.data.questions import load_questions
from mind.errors import BudgetError, NotFiniteError, StoppedError
from mind.experiment.answers import Asked, Student
from mind.experiment.configs import budget_fields, run_config, student_source
from mind.experiment.folder import ExperimentFolder, Job
from mind.experiment.jobs import budget_amount, job_of, require_before
from mind.experiment.plan import BASE, BASE_MARKER, Plan
from mind.experiment.tuning import configurations, require_choice, tune
from mind.files import held

VALIDATION = "validation"


def perform(path: str | os.PathLike[str], name: str, pause_at: float | None = None) -> None:
    """Does the rest of a job.

    If another process does it already, waits for that: it may be an orphan that is about to end.

    Args:
        path: the experiment's folder.
        name: the name of the job (`mind.experiment.folder.Job`).
        pause_at: a time, by time.monotonic, from which it stops between two steps or two sets; None: never.

    Raises:
        MindError: for a job that the plan has not, with the job that comes first if that is not done, and as
            `mind.run.train.train` does. But if the numbers of a configuration that tuning tries are not finite, its
            student gets worse, or its share of the budget does not pay for it, that is its result.
        PausedError: at `pause_at`.
    """
    folder = ExperimentFolder(Path(os.path.abspath(path)))
    plan, content = folder.read_experiment()
    job = job_of(name, plan)
    lock = folder.beside(job, ".lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    with held(lock):
        if folder.done(job, plan):
            return
        require_before(job, plan, folder)
        work = _Work(folder, plan, content["inputs"], job, pause_at)
        {
            BASE: work.base,
            BASE_MARKER: work.base_marker,
            "budget": work.budget,
            "tuning": work.tuning,
            "runs": work.run,
        }[job.kind]()


class _Work:
    """A job with what it needs; it has a method per kind of job."""

    def __init__(
        self,
        folder: ExperimentFolder,
        plan: Plan,
        sources: Mapping[str, Mapping[str, Any]],
        job: Job,
        pause_at: float | None,
    ) -> None:
        self.folder, self.plan, self.sources, self.job, self.pause_at = folder, plan, sources, job, pause_at
        self.sets = {name: Asked(folder.set_file(name), one.max_new_tokens) for name, one in plan.evaluation.items()}

    def base(self) -> None:
        student, base = self._untrained(), self.folder.base
        if base.read_evaluation()["before"] is None:
            base.path.mkdir(exist_ok=True)
            base.write_evaluation({"before": self._measured(student), "after": None})
        self._answer(student, self.sets, self.folder.outcomes(self.job))

    def base_marker(self) -> None:
        self._answer(self._untrained(ANSWER_LINE_WANTED), self.sets, self.folder.outcomes(self.job))

    def budget(self) -> None:
        self._train(self._config(self.plan.seeds[0], {}, {"epochs": self.plan.budget.epochs}))
        self.folder.drop_student(self.job)

    def run(self) -> None:
        plan, seed = self.plan, self.job.number
        assert seed is not None
        options = require_choice(plan, tune(plan, self.folder), self.job.label)
        config = self._config(seed, options, self._share(1.0))
        self._train(config)
        self._answer(self._trained(config), self.sets, self.folder.outcomes(self.job))
        if not plan.keep_students:
            self.folder.drop_student(self.job)

    def tuning(self) -> None:
        plan, number, run = self.plan, self.job.number, self.folder.run(self.job)
        assert number is not None
        options = configurations(plan, self.job.label)[number]
        config = self._config(plan.tuning.seed, options, self._share(plan.tuning.share))
        result = self.folder.beside(self.job, ".json")
        try:
            self._train(config)
        except (BudgetError, NotFiniteError, StoppedError) as error:  # it would fail like this every time
            self.folder.write_result({"failed": str(error)}, result)
        if not result.exists():
            asked = Asked(self.folder.validation_file, plan.tuning.max_new_tokens, plan.tuning.questions)
            place = self.folder.beside(self.job, ".outcomes")
            rows = self._answer(self._trained(config), {VALIDATION: asked}, place)[VALIDATION]
            status = run.read_status()
            found = {
                "accuracy": sum(row["correct"] for row in rows) / len(rows),
                "questions": len(rows),
                "nll": run.read_evaluation()["after"]["heldout"]["nll"],
                **{name: status[name] for name in ("steps", "flops", "wall_s")},
                "trained_tokens": status["work"]["trained"],
            }
            self.folder.write_result(found, result)
        self.folder.drop_student(self.job)

    def _share(self, share: float) -> dict[str, Any]:
        return budget_fields(self.plan.budget, budget_amount(self.plan, self.folder), share)

    def _config(self, seed: int, options: Mapping[str, Any], budget: Mapping[str, Any]) -> MindConfig:
        return run_config(self.job, self.plan, self.sources, self.folder, seed=seed, chosen=options, budget=budget)

    def _train(self, config: MindConfig) -> None:
        from mind.run.report import write_run_report
        from mind.run.train import train

        run = self.folder.run(self.job)
        if run.status.exists():  # the student has been trained, and may have been removed since
            if not run.report.exists():  # the process was killed before it wrote the report
                write_run_report(run)
            return
        train(config, resume=run.begun is not None, pause_at=self.pause_at)
        gc.collect()  # the Trainer and its student refer to each other

    def _trained(self, config: MindConfig) -> Student:
        from mind.methods import method_class

        student = StudentConfig(
            model=os.fspath(self.folder.run(self.job).student),
            dtype=config.student.dtype,
            max_length=config.student.max_length,
        )
        before = method_class(config.method).asks_with(config)
        return Student(student, AskingConfig(None, None, config.evaluation.batch_size), before, self.pause_at)

    def _untrained(self, last_line: str | None = None) -> Student:
        student = replace(self.plan.student, **student_source(self.sources), lora=False)
        batch_size = self.plan.config.get("evaluation", {}).get("batch_size", EvaluationConfig().batch_size)
        return Student(student, AskingConfig(None, None, batch_size, last_line=last_line), "", self.pause_at)

    def _answer(self, student: Student, sets: Mapping[str, Asked], place: Path) -> dict[str, list[dict[str, Any]]]:
        import torch

        place.mkdir(parents=True, exist_ok=True)
        about = self.folder.about(place)
        former = self.folder.read_result(about)
        own = {"threads": sorted({*former.get("threads", []), torch.get_num_threads()})}
        if own != former:
            self.folder.write_result(own, about)
        return student.answer(sets, place)

    def _measured(self, student: Student) -> dict[str, Any]:
        """The held-out NLL, as each run would measure it before its training, with the digests by which a run
        recognizes it."""
        from mind.batches.prompt_sharing import choose_pack_options
        from mind.evaluation.evaluate import heldout_nll
        from mind.evaluation.former import evaluation_digests
        from mind.student.model import attention_of, causal_lm
        from mind.student.tokenization import embedding_rows, tokenize

        model, tokenizer = student.loaded
        questions, names = load_questions(self.folder.validation_file), self.plan.data.perspectives
        tokenized = tokenize(questions, tokenizer, names, self.plan.student.max_length, embedding_rows(model))
        length = self.plan.config.get("train", {}).get("pack_length", TrainConfig().pack_length)
        options = choose_pack_options(model, attention_of(causal_lm(model)), tokenized, length, "auto")
        nll = heldout_nll(model, tokenized, names, options)
        digests = evaluation_digests(model, {}, {}, EvaluationConfig(), tokenized, names)
        return {"heldout": nll, "files": {}, "digests": digests}
