"""Turns the configuration of a run into the arguments of transformers' Trainer."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from mind import processes
from mind.config import MindConfig, TrainConfig
from mind.display import one_line
from mind.errors import MindError, require

_OTHER_WAYS = (
    "ACCELERATE_USE_DEEPSPEED",
    "ACCELERATE_USE_FSDP",
    "ACCELERATE_USE_MEGATRON_LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG",
)
"""Environment variables that ask for ways to divide a student which a run does not have, or has by `train.shard`."""


def training_arguments(config: MindConfig) -> TrainingArguments:
    """The Trainer's arguments for a configuration; raises MindError for a configuration that the Trainer refuses on
    this machine, and for environment variables of `accelerate launch` that ask for what the configuration does not."""
    _check_environment(config.train)
    try:
        with processes.without_leftovers():
            arguments = _training_arguments(config)
    except ValueError as error:
        raise MindError(f"train: transformers refuses its options: {one_line(str(error), 400)}") from error
    # In a pod of Kubeflow's transformers adds a service of its own.
    arguments.report_to = [service for service in arguments.report_to or () if service == config.train.report_to]
    state: Any = arguments.distributed_state
    there, own = state.device.type, processes.device().type
    require(
        there == own,
        f"the environment variables ACCELERATE_USE_CPU and ACCELERATE_TORCH_DEVICE choose the device {there}, and a "
        f"run uses {own}: unset them; CUDA_VISIBLE_DEVICES hides GPUs",
    )
    require(
        arguments.n_gpu <= 1,
        f"this process sees {arguments.n_gpu} GPUs and MethodTrainer uses one per process: CUDA_VISIBLE_DEVICES picks "
        "it, torchrun starts a process for each",
    )
    return arguments


def _check_environment(train: TrainConfig) -> None:
    """The Trainer would compute as these variables say, whatever the configuration in the run's folder says."""
    dtype = os.environ.get("ACCELERATE_MIXED_PRECISION", "").lower() or "no"
    require(
        dtype == "no" or (dtype == "bf16" and train.bf16),
        f"ACCELERATE_MIXED_PRECISION is {dtype:.40}: a run computes in bfloat16 by --train.bf16 alone; unset the "
        "variable, or start with --mixed_precision no",
    )
    for name in _OTHER_WAYS:
        value = os.environ.get(name, "")
        require(
            value.lower() in ("", "false"),
            f"{name} is {value:.40}: a run divides its student by --train.shard fsdp2 alone; unset the variable",
        )


def _run_name(folder: Path) -> str:
    """The name of a run in the service that it reports to: the folder's name; for a stage, the run's name and the
    stage's."""
    return f"{folder.parent.parent.name}/{folder.name}" if folder.parent.name == "stages" else folder.name


def _training_arguments(config: MindConfig) -> TrainingArguments:
    train = config.train
    if train.learning_rate is None:
        raise MindError("train.learning_rate is None: mind.methods.with_options gives it that of the method")
    # Passed only if it is set: newer releases of transformers warn that the argument has a new name.
    checkpointing: dict[str, Any] = {"gradient_checkpointing": True} if train.gradient_checkpointing else {}
    return TrainingArguments(
        output_dir=config.output,
        run_name=_run_name(Path(config.output)),
        per_device_train_batch_size=1,  # one item of the plan, which is a whole step
        num_train_epochs=1,
        learning_rate=train.learning_rate,
        weight_decay=train.weight_decay,
        max_grad_norm=train.max_grad_norm,
        bf16=train.bf16,
        logging_steps=train.log_steps,
        logging_nan_inf_filter=False,  # it would log 0.0 for nan
        save_steps=train.save_steps,
        save_total_limit=2,
        seed=train.seed,
        report_to="wandb" if train.report_to == "wandb" else "none",  # TensorBoard is added in MethodTrainer.train
        remove_unused_columns=False,
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
        **checkpointing,
    )
