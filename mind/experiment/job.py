"""One job of an experiment, in this process: train a student, or go on with it, ask it all questions, keep its answers.

Everything that it reads is in the experiment's folder, and everything that it writes is there at once or not at all. So
a job that was killed is started again and does what is left.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mind.config import EvaluationConfig, MindConfig, StudentConfig
from mind.data.questions import load_questions
from mind.errors import NotFiniteError, PausedError, StoppedError
from mind.experiment.configs import BATCHED, budget_fields, run_config
from mind.experiment.folder import ExperimentFolder, Job, job_of
from mind.experiment.plan import BASE, BASE_MARKER, EvaluationSet, Plan
from mind.experiment.tuning import configurations, require_choice
from mind.files import held
from mind.records import Question
from mind.typed_json import overlaid

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MARKER_LINE = "End with a line '#### answer'.\n\n"
"""What precedes each question of "base-marker"."""
VALIDATION = "validation"


def perform(path: str | os.PathLike[str], name: str, pause_at: float | None = None) -> None:
    """Does what is left of a job.

    Another process that does it already is waited for: it may be an orphan that is about to end.

    Args:
        path: the experiment's folder.
        name: of the job (`mind.experiment.folder.Job`).
        pause_at: a time, by time.monotonic, from which it stops between two steps or two sets; None: never.

    Raises:
        MindError: as `mind.run.train.train` does; a configuration that tuning tries and whose training fails by its
            numbers is none: its result says so.
        PausedError: at `pause_at`.
    """
    folder = ExperimentFolder(Path(path))
    plan, content = folder.read_experiment()
    job = job_of(name, plan)
    lock = folder.beside(job, ".lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    with held(lock):
        if not folder.done(job, plan):
            _Work(folder, plan, content["inputs"], job, pause_at).do()


class _Work:
    """A job with what it needs."""

    def __init__(
        self,
        folder: ExperimentFolder,
        plan: Plan,
        sources: Mapping[str, Mapping[str, Any]],
        job: Job,
        pause_at: float | None,
    ) -> None:
        self.folder, self.plan, self.sources, self.job, self.pause_at = folder, plan, sources, job, pause_at

    def do(self) -> None:
        if self.job.kind in (BASE, BASE_MARKER):
            self._untrained()
            return
        config = self._config()
        if self.job.kind == "tuning":
            self._try(config)
        else:
            self._train(config)
            if self.job.kind == "runs":
                self._ask_trained(config, self.folder.outcomes(self.job), self.plan.evaluation)
        if not (self.job.kind == "runs" and self.plan.keep_students):
            self.folder.drop_student(self.job)

    def _config(self) -> MindConfig:
        plan, job, folder = self.plan, self.job, self.folder

        def configured(seed: int, options: Mapping[str, Any], budget: Mapping[str, Any]) -> MindConfig:
            return run_config(job, plan, self.sources, folder, seed=seed, chosen=options, budget=budget)

        if job.kind == "budget":
            return configured(plan.seeds[0], {}, {"epochs": plan.budget.epochs})
        amount = folder.read(folder.budget)["amount"]
        assert job.number is not None
        if job.kind == "tuning":
            options = configurations(plan, job.label)[job.number]
            return configured(plan.tuning.seed, options, budget_fields(plan.budget, amount, plan.tuning.share))
        options = require_choice(plan, folder.read(folder.tuning), job.label)
        return configured(job.number, options, budget_fields(plan.budget, amount))

    def _train(self, config: MindConfig) -> None:
        from mind.run.train import train

        run = self.folder.run(self.job)
        if run.status.exists():  # the student has been trained, and may have been removed since
            return
        train(config, resume=run.begun is not None, evaluated=self.folder.base, pause_at=self.pause_at)
        gc.collect()  # the Trainer and its student refer to one another

    def _try(self, config: MindConfig) -> None:
        """A configuration that tuning tries, with its result."""
        run, file = self.folder.run(self.job), self.folder.beside(self.job, ".json")
        try:
            self._train(config)
        except (NotFiniteError, StoppedError) as error:  # which it would be every time
            self.folder.write({"failed": str(error)}, file)
            return
        if not file.exists():
            tuning = self.plan.tuning
            asked = EvaluationSet(str(self.folder.validation_file), "id", tuning.max_new_tokens, tuning.questions)
            place = self.folder.beside(self.job, ".outcomes")
            (rows,) = self._ask_trained(config, place, {VALIDATION: asked})
            status = run.read_status()
            result = {
                "accuracy": sum(row["correct"] for row in rows) / len(rows),
                "questions": len(rows),
                "nll": run.read_evaluation()["after"]["heldout"]["nll"],
                **{name: status[name] for name in ("steps", "flops", "wall_s")},
                "trained_tokens": status["work"]["trained"],
            }
            self.folder.write(result, file)

    def _ask_trained(
        self, config: MindConfig, place: Path, sets: Mapping[str, EvaluationSet]
    ) -> list[list[dict[str, Any]]]:
        from mind.methods import method_class

        student = StudentConfig(
            model=str(self.folder.run(self.job).student),
            dtype=config.student.dtype,
            max_length=config.student.max_length,
        )
        before = method_class(config.method).asks_with(config)
        with _evaluating(student, place, sets) as (model, tokenizer):
            return self._ask(model, tokenizer, place, sets, config.evaluation.batch_size, before)

    def _untrained(self) -> None:
        sources, plan = self.sources, self.plan
        values = overlaid(BATCHED, plan.config)
        batch_size = values.get("evaluation", {}).get("batch_size", EvaluationConfig().batch_size)
        template = sources.get("student.chat_template", {}).get("source", plan.student.chat_template)
        student = StudentConfig(
            model=sources["student"]["source"],
            dtype=plan.student.dtype,
            chat_template=template,
            max_length=plan.student.max_length,
        )
        place = self.folder.outcomes(self.job)
        marked = self.job.kind == BASE_MARKER
        known = marked or self.folder.base.read_evaluation()["before"] is not None
        with _evaluating(student, place, plan.evaluation, needed=not known) as (model, tokenizer):
            if not known:
                nll = heldout_nll_of(model, tokenizer, self.folder, plan)
                self.folder.base.path.mkdir(exist_ok=True)
                self.folder.base.write_evaluation({"before": {"heldout": nll, "files": {}}, "after": None})
            self._ask(model, tokenizer, place, plan.evaluation, batch_size, MARKER_LINE if marked else "")

    def _ask(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        place: Path,
        sets: Mapping[str, EvaluationSet],
        batch_size: int,
        before: str,
    ) -> list[list[dict[str, Any]]]:
        """The rows of every set, of which those are made that are not there."""
        from mind.evaluation.evaluate import answer_accuracy
        from mind.files import json_rows

        place.mkdir(parents=True, exist_ok=True)
        found = []
        for name, one in sets.items():
            file = place / f"{name}.jsonl"
            if not file.exists():
                if self.pause_at is not None and time.monotonic() >= self.pause_at:
                    raise PausedError(f"{self.job.name}: paused before its answers to {name}")
                config = EvaluationConfig(None, None, batch_size, one.max_new_tokens)
                answers = place / f".{name}"
                answer_accuracy(
                    model, tokenizer, {name: self._questions(name)[: one.questions]}, config, answers, before
                )
                os.replace(answers / file.name, file)
                answers.rmdir()
            found.append([row for _, row in json_rows(file)])
        return found

    def _questions(self, name: str) -> Sequence[Question]:
        return load_questions(self.folder.validation_file if name == VALIDATION else self.folder.set_file(name))


@contextmanager
def _evaluating(student: StudentConfig, place: Path, sets: Mapping[str, Any], needed: bool = False) -> Any:
    """The student, on its device, if an answer is missing or it is needed otherwise; else nothing is loaded."""
    if not needed and all((place / f"{name}.jsonl").exists() for name in sets):
        yield None, None
        return
    import torch

    from mind.student.model import load_student

    model, tokenizer = load_student(student)
    model.to("cuda" if torch.cuda.is_available() else "cpu")  # pyright: ignore[reportArgumentType]
    model.eval()
    yield model, tokenizer


def heldout_nll_of(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: ExperimentFolder, plan: Plan
) -> dict[str, Any]:
    """The held-out NLL of the untrained student, as each run would measure it before its training."""
    from mind.batches.prompt_sharing import choose_pack_options
    from mind.config import TrainConfig
    from mind.evaluation.evaluate import heldout_nll
    from mind.student.model import attention_of, causal_lm
    from mind.student.tokenization import embedding_rows, tokenize

    names, rows = plan.data.perspectives, embedding_rows(model)
    tokenized = tokenize(load_questions(folder.validation_file), tokenizer, names, plan.student.max_length, rows)
    length = plan.config.get("train", {}).get("pack_length", TrainConfig().pack_length)
    options = choose_pack_options(model, attention_of(causal_lm(model)), tokenized, length, "auto")
    return heldout_nll(model, tokenized, names, options)
