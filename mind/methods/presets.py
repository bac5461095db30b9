"""Presets: methods with some options fixed under a name of their own, each a small file in mind/methods/presets.

The ablations of MIND are presets: each differs from it only in one or two options.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mind.config import MindConfig, flat
from mind.errors import require
from mind.typed_json import load_json


@dataclass(frozen=True)
class Preset:
    """A method with some options fixed."""

    method: str
    """The name of the method that trains."""
    title: str
    """The name in reports."""
    purpose: str
    """What the preset is meant to show."""
    options: dict  # of any values: typed_json looks at the keys alone
    """The fixed options, nested as in config.json."""
    needs: tuple[str, ...] = ()
    """Options that the user must set, because their defaults make no sense here."""
    aliases: tuple[str, ...] = ()
    """Other names that `mind train --method` accepts."""


PRESETS: dict[str, Preset] = {
    file.stem: load_json(file, Preset) for file in sorted(Path(__file__).with_name("presets").glob("*.json"))
}
"""Presets by the name that `mind train --method` accepts."""

_NAMES = {alias: name for name, preset in PRESETS.items() for alias in preset.aliases}


def method_name(name: str) -> str:
    """The name of a method or preset, given that name or an alias of it."""
    return _NAMES.get(name, name)


def with_preset(config: MindConfig) -> MindConfig:
    """`config` with its method's name instead of an alias and, if that is a preset, with the options that it fixes.

    Raises MindError for an option that is neither at its default nor at the value that the preset fixes.
    """
    config = dataclasses.replace(config, method=method_name(config.method))
    if config.method not in PRESETS:
        return config
    preset = PRESETS[config.method]
    given, default = (flat(dataclasses.asdict(some)) for some in (config, MindConfig()))
    for name, value in flat(preset.options).items():
        require(
            given[name] in (value, default[name]),
            f"{name} is {given[name]}: method {config.method} fixes it at {value}; {preset.method} leaves it free",
        )
    return replaced(config, preset.options)


def check_needs(config: MindConfig) -> None:
    """Raises MindError if the method is a preset that needs an option which is not set."""
    if config.method in PRESETS:
        given, default = (flat(dataclasses.asdict(some)) for some in (config, MindConfig()))
        for name in PRESETS[config.method].needs:
            option = name.replace("_", "-")
            require(given[name] != default[name], f"method {config.method} needs {name}: --{option} names it")


def check_given(method: str, values: Mapping[str, Any], where: str) -> None:
    """Raises a MindError that begins with `where` if the JSON `values` of a configuration set an option to another
    value than its preset fixes, even to the option's default."""
    if (method := method_name(method)) in PRESETS:
        given = flat(values)
        for name, value in flat(PRESETS[method].options).items():
            require(
                given.get(name, value) == value,
                f"{where}: {name} is {given.get(name)}: method {method} fixes it at {value}: leave it out",
            )


def neutral(method: str) -> Any:
    """The defaults of the options that a preset fixes or needs, nested as in config.json; empty for other methods."""
    if method not in PRESETS:
        return {}
    names: dict[str, Any] = copy.deepcopy(PRESETS[method].options)
    for needed in PRESETS[method].needs:
        section, name = needed.split(".")
        names.setdefault(section, {})[name] = None
    return _parts(MindConfig(), names)


def _parts(value: Any, names: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a dataclass whose names are keys of `names`, nested in the same way."""
    return {
        name: _parts(getattr(value, name), inner) if isinstance(inner, Mapping) else getattr(value, name)
        for name, inner in names.items()
    }


def replaced(value: Any, changes: Mapping[str, Any]) -> Any:
    """A dataclass with `changes`, which may be nested: an entry for a part changes only the fields that it has."""
    return dataclasses.replace(
        value,
        **{
            name: replaced(getattr(value, name), change) if isinstance(change, Mapping) else change
            for name, change in changes.items()
        },
    )
