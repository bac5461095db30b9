"""Loads or generates the questions of an experiment once, checks them, and writes them into its folder for all runs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mind.asking import EvaluationConfig
from mind.config import MindConfig, TrainConfig
from mind.data.overlap import leaks_of
from mind.data.questions import asked_in, load_questions, question_row, save_questions
from mind.display import listed, number_of
from mind.errors import require
from mind.experiment.folder import ExperimentFolder
from mind.experiment.plan import GENERATED, Plan
from mind.provenance import file_digest, text_digest
from mind.records import Question
from mind.run.data import load_data, without_leaks


@dataclass(frozen=True)
class Inputs:
    """The questions of an experiment, and the origins of the questions and of the student."""

    train: list[Question]
    validation: list[Question]
    sets: Mapping[str, list[Question]]
    """Questions by name of their set."""
    sources: Mapping[str, Mapping[str, Any]]
    """{"train" | "validation" | "evaluation.NAME": {"source", "questions", "sha256", "leaks"?}, "student": {"source",
    "sha256"}}; "leaks" counts what training questions have in common with those of a set (mind.data.overlap)."""

    @property
    def digests(self) -> dict[str, str]:
        return {name: entry["sha256"] for name, entry in self.sources.items()}


def load_inputs(plan: Plan) -> Inputs:
    """Loads everything that a plan names; its files must have been `located`.

    Training questions that share 13 words in a row with one of a set are counted or, according to `data.leaks`, left
    out or an error. Raises MindError for bad questions, for a set with fewer questions than the plan asks for, and for
    a set that shares a whole question with training or validation.
    """
    data = load_data(
        MindConfig(
            method=_most_demanding(plan),
            data=plan.data,
            train=TrainConfig(seed=plan.data_seed),
            evaluation=EvaluationConfig(questions=None),
        )
    )
    sets = {}
    for name, one in plan.evaluation.items():
        if one.file in GENERATED:
            require(one.file in data.evaluation, f"evaluation: {name}: data.generated_* writes no {one.file}")
            questions = data.evaluation[one.file]
        else:
            questions = load_questions(one.file)
        wanted = one.questions
        require(
            wanted is None or len(questions) >= wanted,
            f"evaluation: {name} asks for {wanted} questions: {one.file} has {len(questions)}",
        )
        sets[name] = questions[:wanted]
        for what, others in (("training", data.train), ("validation", data.heldout)):
            shared = asked_in(sets[name], others)
            require(
                not shared,
                f"evaluation: {name}: {number_of(len(shared), 'question')} of {len(sets[name])} "
                f"{'is' if len(shared) == 1 else 'are'} among the {what} questions: "
                f"{listed([question.id for question in shared])}",
            )
    found = leaks_of(data.train, sets)
    train = without_leaks(data.train, found, plan.data)
    validation = plan.data.heldout or plan.data.train
    sources = {"train": _entry(plan.data.train, train), "validation": _entry(validation, data.heldout)}
    for name, questions in sets.items():
        entry = _entry(plan.evaluation[name].file, questions)
        sources[f"evaluation.{name}"] = entry | ({"leaks": found[name].counts()} if name in found else {})
    return Inputs(train, data.heldout, sets, sources | _student(plan))


def _most_demanding(plan: Plan) -> str:
    """The method that needs the most rationales per question: all runs leave out the questions that it must leave
    out."""
    from mind.methods import method_class
    from mind.methods import run_config as built

    methods = [built({"method": one.method}, f"methods.{label}").method for label, one in plan.methods.items()]
    return max(methods, key=lambda method: method_class(method).fewest_rationales)


def write_inputs(inputs: Inputs, folder: ExperimentFolder) -> None:
    """Writes the questions to the place where every run reads them."""
    folder.set_file("").parent.mkdir(parents=True, exist_ok=True)
    save_questions(inputs.train, folder.train_file)
    save_questions(inputs.validation, folder.validation_file)
    for name, questions in inputs.sets.items():
        save_questions(questions, folder.set_file(name))


def _entry(source: str, questions: Sequence[Question]) -> dict[str, Any]:
    text = "".join(json.dumps(question_row(question)) + "\n" for question in questions)
    return {"source": source, "questions": len(questions), "sha256": text_digest(text)}


def _student(plan: Plan) -> dict[str, dict[str, Any]]:
    """The origin of the student: a folder with a digest of its files, or a name."""
    model, template = plan.student.model, plan.student.chat_template
    content = model
    if Path(model).is_dir():
        files = sorted(path for path in Path(model).iterdir() if path.is_file())
        content = "".join(f"{path.name} {file_digest(path)}\n" for path in files)
    entries = {"student": {"source": model, "sha256": text_digest(content)}}
    if template not in (None, "plain"):
        entries["student.chat_template"] = {"source": template, "sha256": file_digest(template)}
    return entries
