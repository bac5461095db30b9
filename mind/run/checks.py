"""Checks before a run begins that its options work on this machine and with its student."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

import torch

from mind import processes
from mind.config import MindConfig
from mind.display import describe, one_line
from mind.errors import MindError, MissingError, require
from mind.methods import method_class
from mind.methods.presets import check_needs
from mind.run.arguments import training_arguments
from mind.run.schedule import rate_factors
from mind.run.sharded import blocks_of
from mind.student.model import causal_lm, check_attention, context_of
from mind_kernels import BackendUnavailableError, linear_cross_entropy

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def check_options(config: MindConfig) -> None:
    """Raises MindError for options that cannot work on this machine, whatever the data and the student are."""
    _check_service(config)
    check_needs(config)
    check_attention(config.student.attention)
    rate_factors(config.train, steps=1)
    training_arguments(config)
    _check_backend(config)
    method = method_class(config.method)
    require(
        config.data.only is None or method.fewest_rationales == 1,
        f"data.only is {config.data.only}: method {config.method} compares rationales, and needs "
        f"{method.fewest_rationales} per question",
    )
    require(
        config.train.budget is None or method.takes_all_steps or not method.depends_on_length,
        f"method {config.method} needs to know how many steps a run has: give it epochs or steps in place of a budget",
    )
    method.check(config)
    if config.train.shard != "none":
        _check_shards(config)
    if config.train.compile:
        _check_compiler()


def check_student(model: PreTrainedModel, config: MindConfig) -> None:
    """Raises MindError for options that do not work with this student."""
    own = causal_lm(model)
    if getattr(own, "is_quantized", False):
        way = getattr(own, "quantization_method", None)
        raise MindError(
            f"student.model {config.student.model}: its weights are quantized ({getattr(way, 'value', way)}), so they "
            "cannot be trained, and adapters cannot be merged into them: take the model that it was made from"
        )
    context = context_of(own)
    require(
        context is None or config.student.max_length <= context,
        f"student.max_length is {config.student.max_length}: the context of {config.student.model} is {context} tokens",
    )
    require(
        not config.train.gradient_checkpointing or own.supports_gradient_checkpointing,
        f"train.gradient_checkpointing: {type(own).__name__} cannot do that",
    )
    if config.train.shard != "none":
        blocks_of(own)


def _check_service(config: MindConfig) -> None:
    service = config.train.report_to
    if service != "none" and importlib.util.find_spec(service) is None:
        raise MissingError(
            f"train.report_to is {service}, and the package {service} is not installed: pip install {service}"
        )


def _check_shards(config: MindConfig) -> None:
    shard = f"train.shard {config.train.shard}"
    require(torch.distributed.is_available(), f"{shard}: this build of torch has no torch.distributed")
    require(not config.train.compile, f"{shard}: train.compile compiles a trunk that is whole, which this one is not")


def _check_backend(config: MindConfig) -> None:
    device = processes.device()
    hidden = torch.zeros(1, 8, dtype=getattr(torch, config.student.dtype), device=device)
    target = torch.zeros(1, dtype=torch.int64, device=device)
    threshold, backend = config.objective.gradient_threshold, config.objective.backend
    try:
        linear_cross_entropy(hidden, hidden, target, gradient_threshold=threshold, backend=backend)
    except BackendUnavailableError as error:
        raise MissingError(f"objective.backend {backend}: {error}") from error
    except (ValueError, TypeError) as error:
        raise MindError(f"objective.backend {backend}: {error}") from error


def _check_compiler() -> None:
    """Raises MissingError if torch.compile does not work on this machine, mostly for lack of a C++ compiler."""
    device = processes.device()
    try:
        torch.compile(torch.sin)(torch.zeros(2, device=device))
    except Exception as error:  # the parts of torch raise many kinds
        raise MissingError(f"train.compile: torch cannot compile here: {one_line(describe(error), 400)}") from error
