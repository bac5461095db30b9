"""The training methods by name, and the configuration of a run with the options of its method."""

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
"""What `mind train --method` and `MindConfig.method` take, beside the names of PRESETS."""


def method_class(name: str) -> type[Method]:
    """The class of a method or preset; raises MindError, with the names of those there are, for another name."""
    name = method_name(name)
    if name in PRESETS:
        name = PRESETS[name].method
    if name not in METHODS:
        known = sorted([*METHODS, *PRESETS])
        raise MindError(f"method is {name!r}: expected one of {', '.join(known)}{meant(name, known)}")
    return METHODS[name]


def method_title(name: str) -> str:
    """The name in reports of a method or preset."""
    name = method_name(name)
    return PRESETS[name].title if name in PRESETS else method_class(name).title


def with_options(config: MindConfig) -> MindConfig:
    """`config` with what its method has: options and learning rate, or their defaults; options that a preset fixes; an
    entry for each of its stages.

    Raises MindError for a method that there is not, for options and stages of another one, and for options that a
    preset fixes at another value.
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
    """`config` by another method: with the options that it fixes, if it is a preset, and with the defaults of those
    that the former one fixed or needed. The rest stays, but for the options and the stages of the former method, and
    for its learning rate if that is the former method's own."""
    method, former = method_name(method), method_name(config.method)
    fixed = PRESETS[method].options if method in PRESETS else {}
    config = replaced(config, neutral(former))
    if config.train.learning_rate == method_class(former).learning_rate:
        config = replaced(config, {"train": {"learning_rate": None}})
    own = {"method": method, "options": MindConfig().options, "stages": {}}
    return replaced(dataclasses.replace(config, **own), fixed)


def load_run_config(path: Path) -> MindConfig:
    """Reads the config.json of a run, or a part of one; one without a method is of MIND.

    Raises MindError for a missing file, bad JSON, a field that is unknown or of another type, a method that there is
    not, and an option that a preset fixes at another value.
    """
    return run_config(read_json(path), str(path))


def run_config(values: Any, where: str) -> MindConfig:
    """The configuration that the JSON `values` of `load_run_config` are; raises MindError that begins with `where`."""
    require(isinstance(values, dict), f"{where}: expected a JSON object, found {described(values)}")
    config = build(MindConfig, {name: value for name, value in values.items() if name != "options"}, where)
    check_given(config.method, values, where)
    own = build(method_class(config.method).Options, values.get("options", {}), f"{where}: options")
    return dataclasses.replace(config, options=own)
