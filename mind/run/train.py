"""Runs a training run from its configuration to its report; the steps are the same for every method.

data -> evaluation before -> what the method needs before training -> training -> evaluation after -> report

A run with earlier stages (mind/run/stages.py) first does all of this for each of them, in a folder of its own.

Several processes (mind/processes.py) run it together. They share the computation; only the main one writes the folder,
by `processes.by_main`, while the others wait.
"""

from __future__ import annotations

import dataclasses
import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import compress
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import set_seed

from mind import processes
from mind.config import MindConfig, StudentConfig, flat
from mind.errors import BudgetError, NotFiniteError, require
from mind.files import check_apart
from mind.methods import method_class, with_options
from mind.methods.method import Method, MethodContext
from mind.progress import tell
from mind.provenance import command, now
from mind.records import TokenizedQuestion
from mind.run.checks import check_options, check_student
from mind.run.data import RunData, described_data, load_data, trained_on, warn_of_overlap
from mind.run.ending import Budget
from mind.run.finish import finish
from mind.run.measured import check_evaluation, evaluated, evaluated_before
from mind.run.metrics import ProgressBar
from mind.run.owner import held
from mind.run.report import write_run_report
from mind.run.resume import (
    OF_STUDENT,
    check_extension,
    check_inputs,
    check_there,
    input_places,
    inputs_of,
    numeric_versions,
    saved_config,
)
from mind.run.stages import StageRun, stages_of
from mind.run.trainer import MethodTrainer
from mind.run.unused import warn_of_unused_options
from mind.run.work import flops, step_work
from mind.run_folder import RunFolder, metric_rows
from mind.student.model import check_savable, load_student
from mind.student.tokenization import embedding_rows, tokenize


@dataclass(frozen=True)
class _Clock:
    """When a run, or a stage of it, began to work (time.perf_counter), and when it pauses (time.monotonic)."""

    started: float
    pause_at: float | None


@dataclass(frozen=True)
class _Run:
    """What a run, or a stage of one, needs before it begins or goes on."""

    stage: StageRun
    method: Method
    data: RunData
    heldout: Sequence[TokenizedQuestion]
    inputs: Mapping[str, Any]


@contextmanager
def _plain_torch() -> Iterator[None]:
    """Inside the block, PyTorch's modes and defaults are those of a new process, whatever the caller has set, for
    example in a notebook."""
    dtype, device = torch.get_default_dtype(), torch.get_default_device()
    torch.set_default_dtype(torch.float32)
    if moved := device.type != "cpu":
        torch.set_default_device(None)
    try:
        with ExitStack() as modes:
            for kind in ("cpu", "cuda"):
                if torch.is_autocast_enabled(kind):
                    modes.enter_context(torch.autocast(kind, enabled=False))
            modes.enter_context(torch.inference_mode(False))
            modes.enter_context(torch.enable_grad())
            yield
    finally:
        torch.set_default_dtype(dtype)
        if moved:
            torch.set_default_device(device)


def train(
    config: MindConfig,
    *,
    resume: bool = False,
    overwrite: bool = False,
    data: RunData | None = None,
    pause_at: float | None = None,
) -> RunFolder:
    """Trains a student as `config` says and returns the run's folder, or goes on with the run in `config.output`.

    On a CPU, a run that was killed and resumed gives the same numbers as one that was not. A finished run is left as it
    is, unless `train.max_steps` or `train.epochs` is larger now and its steps are the first steps of the longer run.
    All input is checked before the folder is changed. Modes and defaults that the caller has set in PyTorch, such as
    autocast or a default dtype, do not apply.

    Args:
        config: all settings of the run.
        resume: continue from the last complete checkpoint of the run in `config.output`; `config` is its own.
        overwrite: if `config.output` holds another run, delete that run once this one begins.
        data: the result of `mind.run.data.load_data` for `config`, if the caller has it; None: load it here.
        pause_at: a time by time.monotonic; the run pauses after the first step that ends later. None: never.

    Raises:
        MindError: for bad input, for a folder that holds something else or in which another process trains, and, if the
            run is resumed, for options and data that are not those it began with.
        PausedError: at `pause_at`, with a checkpoint of the last step.
        BudgetError: if the budget leaves nothing for training, or for a stage.
        NotFiniteError: for the first number that is nan or infinite; nothing is saved as a student then.
    """
    started = time.perf_counter()
    with _plain_torch():
        require(not (resume and overwrite), "a run is resumed or written over, not both")
        config, folder = with_options(config), RunFolder(config.output)
        clock = _Clock(started, pause_at)
        ways = {"resume": resume, "overwrite": overwrite}
        processes.check_same("the configuration", flat(dataclasses.asdict(config)) | ways)
        if resume:
            processes.by_main(folder.check_resumable)
            with held(folder):
                return _resumed(config, folder, clock, data)
        processes.by_main(lambda: _check_free(folder, config, overwrite))
        stages = stages_of(config)
        data = _data(stages, data)
        run, inputs, reserve = _checked(stages, data)
        with held(folder):
            processes.by_main(lambda: folder.start(config, inputs, overwrite=overwrite))
            return _train_stages(stages, data, run, reserve, clock)


def _check_free(folder: RunFolder, config: MindConfig, overwrite: bool) -> None:
    folder.check_free(overwrite=overwrite)
    if overwrite:
        for written in folder.written():
            check_apart(written, filter(None, input_places(config)))


def _resumed(config: MindConfig, folder: RunFolder, clock: _Clock, data: RunData | None) -> RunFolder:
    saved = processes.agreed(lambda: saved_config(config, folder))
    stages = stages_of(config)
    # The main process decides for all: another machine may see a shared file system late.
    finished, *to_come = processes.agreed(lambda: [folder.finished, *(not one.folder.finished for one in stages)])
    stages = [*compress(stages[:-1], to_come), stages[-1]]
    finished = finished and saved == config
    processes.by_main(lambda: _write_missing_reports(folder))
    if finished:
        return folder
    require(
        saved == config or len(stages) == 1,
        f"{stages[0].folder.path}: this stage is not finished: --resume without other options goes on with it, and "
        "with more steps when the run is at its last stage",
    )
    students, files = [stage.student.model for stage in stages], data is None
    processes.by_main(lambda: check_there(config, folder, students, files=files))
    data = _data(stages, data)
    run, inputs, reserve = _checked(stages, data)
    processes.by_main(lambda: check_inputs(inputs, folder, new=_new_inputs(stages[-1])))
    if run is not None and saved != config:
        check_extension(saved, run.method)
        processes.by_main(lambda: folder.reopen(config, inputs))
    return _train_stages(stages, data, run, reserve, clock)


def _write_missing_reports(folder: RunFolder) -> None:
    """Writes the reports that finished runs lack because the process was killed before."""
    for one in (folder, *folder.stages):
        if one.finished and not one.report.exists():
            write_run_report(one)


def _data(stages: Sequence[StageRun], data: RunData | None) -> RunData:
    """The questions of a run; `data` if they have been loaded before. Checks the options of all stages first."""
    for stage in stages:
        check_options(stage.config)
    config = stages[-1].config
    warn_of_unused_options(config)
    data = load_data(config) if data is None else data
    tell(described_data(data))
    warn_of_overlap(data, config.data)
    return data


def _checked(stages: Sequence[StageRun], data: RunData) -> tuple[_Run | None, Mapping[str, Any], float]:
    """Finds everything that can be wrong in the remaining stages, before the folder is changed.

    Returns the last stage (None if it is not the only one), its inputs, and what it needs of the budget if it always
    takes all its steps. If there are several stages, each is prepared with the student that exists now, and the inputs
    leave out a student that does not exist yet.
    """
    loaded: dict[StudentConfig, Any] = {}
    run = None
    for stage in stages:
        run = None  # frees its student too
        run = _prepared(stage, data, loaded)
    assert run is not None
    if len(stages) == 1:
        return run, run.inputs, 0.0
    known = {name: entry for name, entry in run.inputs.items() if name not in _new_inputs(run.stage)}
    reserve, total = _reserve(run), stages[-1].config.train.budget
    if total is not None and reserve >= total:
        raise BudgetError(
            f"the last stage, by method {run.stage.config.method}, needs all its {len(run.method.context.steps):,} "
            f"steps, which cost {reserve:,.4g} of the budget of {total:,.4g}: nothing is left for the stages before it"
        )
    return None, known, reserve


def _new_inputs(stage: StageRun) -> tuple[str, ...]:
    """The inputs that exist when the stage begins but not when the run does."""
    return () if stage.former is None else OF_STUDENT


def _prepared(stage: StageRun, data: RunData, loaded: dict[StudentConfig, Any] | None = None) -> _Run:
    """What the stage needs, after finding everything that can be wrong with it.

    `loaded` keeps a student, unchanged, for the next stage that is checked.
    """
    config, loaded = stage.config, {} if loaded is None else loaded
    student = processes.agreed(lambda: stage.student)
    set_seed(config.train.seed)
    if student not in loaded:
        loaded.clear()  # memory may hold only one
        loaded[student] = load_student(student)
    model, tokenizer = loaded[student]
    check_student(model, config)
    check_savable(model, tokenizer, student.model)
    names, rows = config.data.perspectives, embedding_rows(model)
    heldout = tokenize(data.heldout, tokenizer, names, config.student.max_length, rows)
    chosen = method_class(config.method)
    context = MethodContext.build(config, model, tokenizer, trained_on(data.train, config.data), heldout, chosen)
    check_evaluation(stage, context, data.evaluation, heldout)  # before anything is written
    cast(nn.Module, model).to(processes.device())
    method = chosen(context)
    inputs = inputs_of(data, heldout, method, student.model)
    processes.check_same("what the run reads", inputs)
    return _Run(stage, method, data, heldout, inputs)


def _train_stages(
    stages: Sequence[StageRun], data: RunData, run: _Run | None, reserve: float, clock: _Clock
) -> RunFolder:
    """Runs the remaining stages, one after the other. `run` is the last one if it is the only one; otherwise the last
    one will need `reserve` of the budget."""
    *earlier, last = stages
    total = last.config.train.budget or 0.0
    for stage in earlier:
        tell(f"stage {stage.folder.path.name}, by method {stage.config.method}, in {stage.folder.path}")
        _train_stage(_prepared(stage, data), clock, stage.until * (total - reserve))
        gc.collect()  # a Trainer and its student refer to each other, and the next student needs the memory
        clock = dataclasses.replace(clock, started=time.perf_counter())  # each stage has a time of its own
    if run is None:
        tell(f"last stage, by method {last.config.method}")
        run = _prepared(last, data)
        inputs = run.inputs
        processes.by_main(lambda: check_inputs(inputs, last.folder, new=_new_inputs(last)))
    return _train(run, clock, total)


def _train_stage(run: _Run, clock: _Clock, until: float) -> None:
    """Begins an earlier stage or goes on with it."""
    with held(run.stage.folder):
        processes.by_main(lambda: _begin_stage(run))
        _train(run, clock, until)


def _begin_stage(run: _Run) -> None:
    folder = run.stage.folder
    if folder.begun is None:
        folder.start(run.stage.config, run.inputs)
    else:
        saved_config(run.stage.config, folder)
        check_inputs(run.inputs, folder)


def _train(run: _Run, clock: _Clock, until: float) -> RunFolder:
    """Trains from the last checkpoint, if there is one, to the report. If the run has a budget, this stage ends when
    the share `until` is spent, including what the stages before it spent."""
    context, method, data, heldout, folder = run.method.context, run.method, run.data, run.heldout, run.stage.folder
    last_step, checkpoint, evaluation = processes.agreed(lambda: _begun(run.stage))
    evaluation |= {"leaks": {label: one.counts() for label, one in data.leaks.items()}}
    if evaluation["before"] is None:
        evaluation["before"] = evaluated_before(run.stage, context, data.evaluation, heldout)
        processes.by_main(lambda: folder.write_evaluation(evaluation))

    if checkpoint is None:
        try:
            rows = list(method.before_training())
            processes.by_main(lambda: folder.append_metrics(rows))
        except NotFiniteError as error:
            raise NotFiniteError(f"before the first step: {error}; {folder.way_back()}") from None
    budget = _budget(run, until)
    with closing(ProgressBar(method.progress, budget)) as bar:
        trainer = MethodTrainer(
            context, method, started=clock.started, budget=budget, pause_at=clock.pause_at, callbacks=[bar]
        )
        if budget is not None:
            _count_spent(budget, folder, checkpoint)
            if budget.reached and checkpoint is None:
                raise BudgetError(
                    f"{folder.path}: what comes before the first step cost {budget.spent:,.4g} of the budget of "
                    f"{budget.total:,.4g}: nothing is left for training"
                )
            if budget.reached:
                trainer.end_at(last_step)
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    train_s = trainer.seconds()["train_s"]

    trainer.forget_optimizer()
    with trainer.student.whole():
        evaluation["after"] = evaluated(context, data.evaluation, heldout, folder, "after")
    processes.by_main(lambda: folder.write_evaluation(evaluation))
    finish(trainer, train_s)
    return folder


def _begun(stage: StageRun) -> tuple[int, Path | None, dict[str, Any]]:
    """The step of the last checkpoint, the checkpoint if there is one, and the evaluations so far. Cuts the run's
    record back to that step and adds this start to it."""
    folder = stage.folder
    start = {"date": now(), "command": command(), "versions": numeric_versions(), "threads": torch.get_num_threads()}
    folder.append_start(start | {"processes": processes.count()})
    last_step, checkpoint = max(folder.checkpoints().items(), default=(0, None))
    folder.begin_metrics(after=last_step)
    if folder.read_evaluation()["before"] is None and stage.evaluated is not None:
        folder.take_evaluation(*stage.evaluated)
    return last_step, checkpoint, folder.read_evaluation()


def _cost(run: _Run) -> Callable[[Mapping[str, int]], int]:
    """The function that computes the cost of tokens by kind, in the unit of the run's budget."""
    train, model, others = run.method.context.config.train, run.method.context.model, run.method.parameters_by_work()
    if train.trained_tokens is not None:
        return lambda work: work.get("trained", 0)
    parameters = list(model.parameters())
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    return partial(flops, parameters=sum(p.numel() for p in parameters), trained=trained, others=others)


def _budget(run: _Run, until: float) -> Budget | None:
    """What the stage itself may spend; None if it takes all its steps."""
    if run.method.context.config.train.budget is None or run.method.takes_all_steps:
        return None
    tokens = run.method.context.config.train.trained_tokens is not None
    before = processes.agreed(lambda: [stage.read_status() for stage in run.stage.earlier])
    spent = sum(status["work"]["trained"] if tokens else status["flops"] for status in before)
    if spent >= until:
        raise BudgetError(
            f"{run.stage.folder.path}: the stages before this one cost {spent:,.4g}, and {until:,.4g} of the budget is "
            "theirs and its: nothing is left for it"
        )
    return Budget(until - spent, _cost(run))


def _reserve(run: _Run) -> float:
    """The cost of a stage that takes all its steps whatever the budget: it reads each of their questions once."""
    context = run.method.context
    if context.config.train.budget is None or not run.method.takes_all_steps:
        return 0.0
    steps = ([context.tokenized[index] for index in step] for step in context.steps)
    tokens = sum(step_work(step, context.pack_options, {"trained": 1})["shared"] for step in steps)
    return float(_cost(run)({"search": tokens}))


def _count_spent(budget: Budget, folder: RunFolder, checkpoint: Path | None) -> None:
    """Adds what was spent up to the checkpoint, or before the first step."""
    if checkpoint is not None:
        budget.spent = processes.agreed(lambda: folder.read_progress(checkpoint)["spent"])
    else:
        for work in processes.agreed(lambda: [(row or {}).get("work", {}) for _, row in metric_rows(folder.metrics)]):
            budget.add(work)
