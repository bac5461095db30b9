"""A run from its configuration to its report: what it does, read from top to bottom, whatever its method.

data -> evaluation before -> what the method needs before training -> training -> evaluation after -> report
"""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn
from transformers import set_seed

from mind.config import MindConfig
from mind.errors import MindError, require
from mind.evaluation.evaluate import answer_accuracy, evaluation_prompts, heldout_nll
from mind.methods import method_class, with_options
from mind.methods.method import MethodContext
from mind.records import TokenizedQuestion
from mind.report.reading import Metrics
from mind.run.data import RunData, load_data
from mind.run.metrics import ProgressBar, peak_memory
from mind.run.report import write_run_report
from mind.run.trainer import MethodTrainer
from mind.run_folder import RunFolder
from mind.student.adapters import merged
from mind.student.model import load_student
from mind.student.tokenization import embedding_rows, tokenize

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def train(config: MindConfig, *, resume: bool = False) -> RunFolder:
    """Trains a student as `config` says and returns the run's folder, or goes on with the run in `config.output`.

    A run that was killed and resumed gives, on a CPU, the numbers of one that was not. Everything that can be wrong
    with the input is checked before the folder is touched.

    Args:
        config: everything that determines the run.
        resume: continue from the last complete checkpoint of the run in `config.output`; `config` is its own.

    Raises:
        MindError: for bad input, and for a folder that holds something else.
    """
    started = time.perf_counter()
    config, folder = with_options(config), RunFolder(config.output)
    _check_launch(config)
    if resume:
        folder.check_resumable()
    else:
        folder.check_free()
    data = load_data(config)
    set_seed(config.train.seed)
    model, tokenizer = load_student(config.student)
    _check_length(model, config)
    names, rows = config.data.perspectives, embedding_rows(model)
    heldout = tokenize(data.heldout, tokenizer, names, config.student.max_length, rows)
    for questions in data.evaluation.values():
        evaluation_prompts(model, tokenizer, questions)  # what cannot be encoded is said before the evaluation begins
    context = MethodContext.build(config, model, tokenizer, data.train, heldout)

    last_step, checkpoint = max(folder.checkpoints().items(), default=(0, None)) if resume else (0, None)
    folder.start(config, last_step)
    cast(nn.Module, model).to("cuda" if torch.cuda.is_available() else "cpu")
    evaluation = folder.read_evaluation()
    if evaluation["before"] is None:
        evaluation["before"] = _evaluate(context, data, heldout, folder.responses("before"))
        folder.write_evaluation(evaluation)

    method = method_class(config.method)(context)
    if checkpoint is None:
        folder.append_metrics(method.before_training())
    trainer = MethodTrainer(context, method, callbacks=[ProgressBar(method.progress)])
    result = trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))

    evaluation["after"] = _evaluate(context, data, heldout, folder.responses("after"))
    folder.write_evaluation(evaluation)
    folder.write_status(_status(trainer, result.metrics["train_runtime"], time.perf_counter() - started))
    _save_student(trainer)  # merges LoRA into the model, so nothing looks at the adapters after it
    write_run_report(folder)
    return folder


def _check_launch(config: MindConfig) -> None:
    processes = int(os.environ.get("WORLD_SIZE", 1))
    require(
        processes == 1,
        f"this launch has {processes} processes: a run takes one, MethodTrainer in a script several",
    )
    require(
        config.train.report_to != "wandb" or importlib.util.find_spec("wandb") is not None,
        "train.report_to is wandb, and the package wandb is not installed: pip install wandb",
    )


def _check_length(model: PreTrainedModel, config: MindConfig) -> None:
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if context is not None and config.student.max_length > context:
        raise MindError(
            f"student.max_length is {config.student.max_length}: the context of {config.student.model} "
            f"is {context} tokens"
        )


def _evaluate(
    context: MethodContext, data: RunData, heldout: Sequence[TokenizedQuestion], responses: Path
) -> dict[str, Any]:
    """The held-out NLL and the accuracies of the student as it is now; its answers go to the folder `responses`."""
    config, model = context.config, context.model
    return {
        "heldout": heldout_nll(model, heldout, config.data.perspectives, context.pack_options),
        "files": answer_accuracy(model, context.tokenizer, data.evaluation, config.evaluation, responses),
    }


def _save_student(trainer: MethodTrainer) -> None:
    """The final student, LoRA merged, as AutoModelForCausalLM.from_pretrained loads it, and the method beside it."""
    folder, method = trainer.folder, trainer.method
    merged(trainer.accelerator.unwrap_model(trainer.model)).save_pretrained(folder.student)
    trainer.context.tokenizer.save_pretrained(folder.student)
    folder.save_method(method.state_dict(), method.networks())


def _status(trainer: MethodTrainer, train_s: float, wall_s: float) -> dict[str, Any]:
    logged = Metrics(trainer.folder.metrics)
    tokens, seconds = (float(logged.series(name).sum()) for name in ("tokens", "step_s"))
    work = logged.work()
    parameters = list(trainer.context.model.parameters())
    networks = trainer.method.networks()
    return {
        "wall_s": round(wall_s, 1),
        "train_s": round(train_s, 1),
        "steps": trainer.state.global_step,
        "tokens": int(tokens),
        "tokens_per_s": round(tokens / seconds, 1),
        "work_of_naive": None if work is None else round(work.of_naive(work.trained, work.observed), 4),
        "student_parameters": sum(p.numel() for p in parameters),
        "trained_parameters": sum(p.numel() for p in parameters if p.requires_grad),
        **{f"{name}_parameters": sum(p.numel() for p in network.parameters()) for name, network in networks.items()},
        **{name: round(mib) for name, mib in peak_memory().items()},
    }
