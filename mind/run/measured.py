"""Runs the evaluations of a run: of its student before training (or takes over an earlier one) and after training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from mind import processes
from mind.asking import SKIP
from mind.errors import NotFiniteError
from mind.evaluation.evaluate import answer_accuracy, evaluation_prompts, heldout_nll
from mind.evaluation.former import FormerEvaluation, evaluation_digests
from mind.methods import method_class
from mind.methods.method import MethodContext
from mind.progress import tell
from mind.records import Question, TokenizedQuestion
from mind.run.stages import StageRun
from mind.run_folder import RunFolder

Files = Mapping[str, Sequence[Question]]
"""The questions that the student is asked, by label."""


def check_evaluation(
    stage: StageRun, context: MethodContext, files: Files, heldout: Sequence[TokenizedQuestion]
) -> None:
    """Raises MindError for a question that the student cannot be asked, and for an earlier evaluation of another
    student or other questions."""
    config, model = context.config, context.model
    before = method_class(config.method).asks_with(config)
    for questions in files.values():
        evaluation_prompts(model, context.tokenizer, questions, config.evaluation, before)
    place = _place(stage)
    if place is not None and processes.agreed(lambda: _is_read(place, stage.folder)):
        digests = _digests(context, files, heldout)
        processes.agreed(lambda: _former(place, digests))


def evaluated_before(
    stage: StageRun, context: MethodContext, files: Files, heldout: Sequence[TokenizedQuestion]
) -> dict[str, Any] | None:
    """The evaluation before training, with digests by which another run can take it over; None if it is skipped.

    An earlier evaluation is used as it is, and its held-out NLL too if that is of the same rationales.
    """
    if context.config.evaluation.before == SKIP:
        return None
    digests, place = _digests(context, files, heldout), _place(stage)
    if place is None:
        return evaluated(context, files, heldout, stage.folder, "before") | {"digests": digests}
    former = processes.agreed(lambda: _former(place, digests))
    tell(f"the evaluation before training is that of {place}")
    nll = former.heldout(digests) or _nll(context, heldout, stage.folder, "before")
    results = processes.agreed(lambda: former.give(files, stage.folder.responses("before")))
    return {"heldout": nll, "files": results, "digests": digests}


def _former(place: str, digests: Mapping[str, str]) -> FormerEvaluation:
    former = FormerEvaluation.read(place)
    former.check(digests)
    return former


def evaluated(
    context: MethodContext,
    files: Files,
    heldout: Sequence[TokenizedQuestion],
    folder: RunFolder,
    when: Literal["before", "after"],
) -> dict[str, Any]:
    """The held-out NLL and the accuracies of the student as it is now; its answers are written to the folder's
    responses."""
    config = context.config
    nll = _nll(context, heldout, folder, when)
    before = method_class(config.method).asks_with(config)
    responses = folder.responses(when)
    results = answer_accuracy(context.model, context.tokenizer, files, config.evaluation, responses, before)
    return {"heldout": nll, "files": results}


def _is_read(place: str, folder: RunFolder) -> bool:
    return Path(place).exists() or folder.read_evaluation()["before"] is None


def _place(stage: StageRun) -> str | None:
    """The place of the evaluation that replaces the one before this stage; None if there is none: it is made, skipped,
    or taken from another stage."""
    place = stage.config.evaluation.before
    return None if place == SKIP or stage.evaluated is not None else place


def _digests(context: MethodContext, files: Files, heldout: Sequence[TokenizedQuestion]) -> dict[str, str]:
    config, model = context.config, context.model
    before = method_class(config.method).asks_with(config)
    prompts = {
        label: evaluation_prompts(model, context.tokenizer, some, config.evaluation, before)
        for label, some in files.items()
    }
    return evaluation_digests(model, files, prompts, config.evaluation, heldout, config.data.perspectives)


def _nll(
    context: MethodContext, heldout: Sequence[TokenizedQuestion], folder: RunFolder, when: Literal["before", "after"]
) -> dict[str, Any]:
    try:
        return heldout_nll(context.model, heldout, context.config.data.perspectives, context.pack_options)
    except NotFiniteError as error:
        where = "before the first step" if when == "before" else f"after step {len(context.steps)}, the last"
        raise NotFiniteError(f"held-out NLL {where}: {error}; {folder.way_back()}") from None
