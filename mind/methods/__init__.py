"""Finds training methods by name, and completes a run's configuration with the options of its method."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from mind.config import MindConfig, StageConfig
from mind.display import meant
from mind.errors import MindError, require
from mind.methods.compact import Compact
from mind.methods.edit import Edit
from mind.methods.kd import Kd
from mind.methods.lorid import DeepReasoner, KnowledgeGenerator, Lorid
from mind.methods.mcc_kd import MccKd
from mind.methods.method import Method, with_learning_rate
from mind.methods.mind import Mind
from mind.methods.mode_cotd import ModeCotd
from mind.methods.nesycd import Nesycd
from mind.methods.presets import PRESETS, check_given, method_name, neutral, replaced, with_preset
from mind.methods.qcrd import Qcrd
from mind.methods.redi import Redi
from mind.methods.sbs import Sbs
from mind.methods.sft import Sft
from mind.methods.taid import Taid
from mind.typed_json import build, described, read_json

METHODS: dict[str, type[Method]] = {
    "compact": Compact,
    "edit": Edit,
    "kd": Kd,
    "lorid": Lorid,
    "lorid-dr": DeepReasoner,
    "lorid-kg": KnowledgeGenerator,
    "mcc-kd": MccKd,
    "mind": Mind,
    "mode-cotd": ModeCotd,
    "nesycd": Nesycd,
    "qcrd": Qcrd,
    "redi": Redi,
    "sbs": Sbs,
    "sft": Sft,
    "taid": Taid,
}
"""The names that `mind train --method` and `MindConfig.method` accept, in addition to those of PRESETS."""


def method_class(name: str) -> type[Method]:
    """The class of a method or preset; for an unknown name raises a MindError that lists the known ones."""
    name = method_name(name)
    if name in PRESETS:
        name = PRESETS[name].method
    if name not in METHODS:
        known = sorted([*METHODS, *PRESETS])
        raise MindError(f"method is {name!r}: expected one of {', '.join(known)}{meant(name, known)}")
    return METHODS[name]


def method_title(name: str) -> str:
    """The name of a method or preset as reports show it."""
    name = method_name(name)
    return PRESETS[name].title if name in PRESETS else method_class(name).title


def with_options(config: MindConfig) -> MindConfig:
    """`config` completed for its method: its options and learning rate (or their defaults), the options that a preset
    fixes, and an entry for each of its stages.

    Raises MindError for an unknown method, for options and stages of another method, and for options that differ from
    the values that a preset fixes.
    """
    config = with_preset(config)
    method = method_class(config.method)
    config = dataclasses.replace(with_learning_rate(config, method), options=method.options_in(config))
    return dataclasses.replace(config, stages=_stages(config, method))


def _stages(config: MindConfig, method: type[Method]) -> dict[str, StageConfig]:
    names = list(dict.fromkeys(stage.settings for stage in method.stages(config)))
    for name in config.stages:
        there = f"those of method {config.method} are {', '.join(names)}" if names else f"{config.method} has none"
        require(name in names, f"stages names {name!r}, an earlier stage: {there}")
    return {name: config.stages.get(name, StageConfig()) for name in names}


def with_method(config: MindConfig, method: str) -> MindConfig:
    """`config` changed to another method: a preset sets the options that it fixes, and options that the former preset
    fixed or needed return to their defaults. The rest stays, except the options and the stages of the former method,
    and the learning rate if it is the former method's own."""
    method, former = method_name(method), method_name(config.method)
    fixed = PRESETS[method].options if method in PRESETS else {}
    config = replaced(config, neutral(former))
    if config.train.learning_rate == method_class(former).learning_rate:
        config = replaced(config, {"train": {"learning_rate": None}})
    own = {"method": method, "options": MindConfig().options, "stages": {}}
    return replaced(dataclasses.replace(config, **own), fixed)


def load_run_config(path: Path) -> MindConfig:
    """Reads the config.json of a run, or a part of one; without an entry "method" it is MIND.

    Raises MindError for a missing file, bad JSON, a field that is unknown or has another type, an unknown method, and
    an option that differs from the value that a preset fixes.
    """
    return run_config(read_json(path), str(path))


def run_config(values: Any, where: str) -> MindConfig:
    """The configuration in the JSON `values`, checked as by `load_run_config`; raises a MindError that begins with
    `where`."""
    require(isinstance(values, dict), f"{where}: expected a JSON object, found {described(values)}")
    config = build(MindConfig, {name: value for name, value in values.items() if name != "options"}, where)
    check_given(config.method, values, where)
    own = build(method_class(config.method).Options, values.get("options", {}), f"{where}: options")
    return dataclasses.replace(config, options=own)
