"""Splits a run into its stages: each is an ordinary run, with its own optimizer and schedule.

Earlier stages are in RUN/stages/1-sft and so on; the last stage is the run itself, which begins when they are finished.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mind.config import MindConfig, StudentConfig, TrainConfig
from mind.errors import MindError, require
from mind.methods import method_class, with_options
from mind.methods.presets import replaced
from mind.methods.stage import Stage
from mind.run_folder import RunFolder


@dataclass(frozen=True)
class StageRun:
    """One stage of a run, described as a run."""

    config: MindConfig
    """The configuration of this stage alone."""
    former: RunFolder | None
    """The stage whose student it starts with; None: it starts with `student.model`."""
    evaluated: tuple[RunFolder, Literal["before", "after"]] | None
    """The run whose evaluation (before or after its training) this stage uses as its own "before"; None: it makes its
    own."""
    earlier: tuple[RunFolder, ...] = ()
    """The stages before it."""
    until: float = 1.0
    """The share of the run's budget, if it has one, that is spent when this stage ends."""

    @property
    def folder(self) -> RunFolder:
        """Its folder, which need not exist yet."""
        return RunFolder(self.config.output)

    @property
    def student(self) -> StudentConfig:
        """The student that it starts with; one from the stage before brings its chat template. Until that stage is
        finished: `student.model`."""
        student = self.config.student
        if self.former is None or not self.former.finished:
            return student
        return dataclasses.replace(student, model=str(self.former.student), chat_template=None)


def stages_of(config: MindConfig) -> list[StageRun]:
    """The stages of a run in order, the run itself last; `config` is complete (`with_options`).

    Raises MindError for settings that a stage cannot have.
    """
    method, folder = method_class(config.method), RunFolder(config.output)
    stages = [stage for stage in method.stages(config) if not config.stages[stage.settings].skip]
    shares = _shares(stages, config, method.takes_all_steps)
    runs: list[StageRun] = []
    for number, (stage, share) in enumerate(zip(stages, shares, strict=True), start=1):
        own = _config_of(stage, config, folder.stage(number, stage.name), share)
        until = sum(shares[:number])
        runs.append(dataclasses.replace(_following(runs, own, stage.begins_with), until=until))
    last = _following(runs, config, method.begins_with)
    if runs and last.former is not None:  # the run as a whole starts with the student of its first stage
        last = dataclasses.replace(last, evaluated=(runs[0].folder, "before"))
    return [*runs, last]


def _shares(stages: Sequence[Stage], config: MindConfig, all_of_it: bool) -> list[float]:
    """The budget shares of these stages; with `all_of_it` the method's own stage gets none of the budget."""
    given = [config.stages[stage.settings].share for stage in stages]
    left = 1 - sum(share for share in given if share is not None)
    others = given.count(None) + (0 if all_of_it else 1)
    if config.train.budget is not None:
        require(
            left > 0 or (others == 0 and left > -1e-9),
            f"stages: the {len(stages)} stages before the last have shares of {1 - left:.3g} together: expected "
            f"{'less than 1' if others else 'at most 1'}",
        )
    return [left / others if share is None else share for share in given]


def _following(runs: Sequence[StageRun], config: MindConfig, begins_with: Literal["former", "base"]) -> StageRun:
    earlier = tuple(run.folder for run in runs)
    if not runs:
        return StageRun(config, None, None)
    if begins_with == "base":
        return StageRun(config, None, (runs[0].folder, "before"), earlier)
    return StageRun(config, runs[-1].folder, (runs[-1].folder, "after"), earlier)


def _config_of(stage: Stage, config: MindConfig, folder: RunFolder, share: float) -> MindConfig:
    """The configuration of an earlier stage: that of the run, with the stage's method and its own settings."""
    try:
        train = _train_of(stage, config, share)
        others = {"output": str(folder.path), "method": stage.method, "stages": {}, "options": MindConfig().options}
        own = with_options(replaced(dataclasses.replace(config, train=train, **others), stage.changes))
    except MindError as error:
        raise MindError(f"stages.{stage.settings}: {error}") from error
    return own


def _train_of(stage: Stage, config: MindConfig, share: float) -> TrainConfig:
    settings = config.stages[stage.settings]
    names = ("learning_rate", "epochs", "max_steps", "questions_per_step")
    given = {name: getattr(settings, name) for name in names if getattr(settings, name) is not None}
    if "epochs" in given:
        given = {"max_steps": -1, **given}
    if config.train.flops is not None:
        given["flops"] = config.train.flops * share
    if config.train.trained_tokens is not None:
        given["trained_tokens"] = max(1, round(config.train.trained_tokens * share))
    return dataclasses.replace(config.train, **{"learning_rate": stage.learning_rate, **given})
