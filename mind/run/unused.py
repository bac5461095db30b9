"""Warns of options that were set but have no effect because of other options."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator

from mind.config import WORD_PROBLEMS, MindConfig, TrainConfig, flat
from mind.methods import method_class, with_options
from mind.run.schedule import rate_factors


def warn_of_unused_options(config: MindConfig) -> None:
    """Warns of options that differ from their defaults and have no effect, with the reason."""
    given = flat(dataclasses.asdict(config))
    default = flat(dataclasses.asdict(with_options(MindConfig(method=config.method))))
    left = [name for name, value in given.items() if value != default[name]]  # each is reported once
    for reason, names in _unread(config):
        sections = tuple(f"{name}." for name in names)
        if unused := [name for name in left if name in names or name.startswith(sections)]:
            left = [name for name in left if name not in unused]
            effect = "have no effect" if len(unused) > 1 else "has no effect"
            warnings.warn(f"{', '.join(unused)} {effect}: {reason}", RuntimeWarning, stacklevel=4)


def _unread(config: MindConfig) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Pairs of a reason and the options or sections that are not read because of it."""
    student, data, train = config.student, config.data, config.train
    method = method_class(config.method)
    yield f"method is {config.method}", method.unread
    yield from ((reason, tuple(names)) for reason, names in method.unread_because(config).items())
    if not student.lora:
        names = ("rank", "alpha", "dropout", "targets")
        yield "student.lora is off", tuple(f"student.lora_{name}" for name in names)
    if data.train == WORD_PROBLEMS:
        yield f"data.train is {WORD_PROBLEMS}, which brings its own", ("data.heldout", "data.heldout_fraction")
    else:
        options = (f"data.{option.name}" for option in dataclasses.fields(data))
        yield f"data.train is {data.train}", tuple(name for name in options if name.startswith("data.generated_"))
        if data.heldout is not None:
            yield "data.heldout is set", ("data.heldout_fraction",)
    if train.questions_per_step is not None:
        yield "train.questions_per_step is set", ("train.tokens_per_step",)
    if train.budget is not None:
        budget = "train.flops" if train.trained_tokens is None else "train.trained_tokens"
        stages = (f"stages.{name}.{option}" for name in config.stages for option in ("epochs", "max_steps"))
        yield f"{budget} is set", ("train.epochs", "train.max_steps", *stages)
    elif train.max_steps > 0:
        yield "train.max_steps is set", ("train.epochs",)
    if train.budget is None:
        yield "the run has no budget", tuple(f"stages.{name}.share" for name in config.stages)
    for name, stage in config.stages.items():
        if stage.skip:
            others = (option.name for option in dataclasses.fields(stage) if option.name != "skip")
            yield f"stages.{name}.skip is on", tuple(f"stages.{name}.{option}" for option in others)
        elif train.budget is None and stage.max_steps is not None and stage.max_steps > 0:
            yield f"stages.{name}.max_steps is set", (f"stages.{name}.epochs",)
    if not _warms_up(train):
        yield f"train.lr_scheduler {train.lr_scheduler} has no warm-up", ("train.warmup_ratio",)
    yield from _unread_of_metanet(config)
    if config.metanet.warmup_epochs == 0:
        yield "metanet.warmup_epochs is 0", ("metanet.warmup_questions", "metanet.warmup_learning_rate")


def _unread_of_metanet(config: MindConfig) -> Iterator[tuple[str, tuple[str, ...]]]:
    metanet = config.metanet
    reason = f"metanet.scores is {metanet.scores}"
    if metanet.scores != "table":
        yield reason, ("metanet.table_decay",)
    if metanet.scores not in ("metanet", "shuffled"):
        # Without an anchor, the largest score is already 1 for a table, for losses of the same step and for equal
        # scores.
        further = {"random": {"anchor"}, "instant": {"spread"}, "table": {"spread", "table_decay", "feedback"}}
        read = {"scores"} | further.get(metanet.scores, set())
        names = {f"metanet.{field.name}" for field in dataclasses.fields(metanet) if field.name not in read}
        yield reason, tuple(sorted(names))
    if metanet.scores == "uniform":
        yield reason, ("objective.beta", "objective.tau_student")
    if metanet.learning_rate is not None:
        yield "metanet.learning_rate is set", ("metanet.learning_rate_ratio",)
    if not metanet.joint:
        joint = ("learning_rate", "learning_rate_ratio", "accumulation", "feedback", "ema")
        yield "metanet.joint is off", tuple(f"metanet.{name}" for name in joint)
        if metanet.warmup_epochs == 0 and metanet.scores in ("metanet", "shuffled"):
            yield "metanet.joint is off and metanet.warmup_epochs is 0", ("metanet.tau", "metanet.spread")


def _warms_up(train: TrainConfig, steps: int = 100) -> bool:
    """Whether the warm-up ratio makes a difference in this many steps."""
    rates = [rate_factors(dataclasses.replace(train, warmup_ratio=ratio), steps) for ratio in (0.5, 0.0)]
    return any(rates[0](step) != rates[1](step) for step in range(steps))
