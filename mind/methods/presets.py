"""Methods under other names: a method with some options fixed, each a small file of mind/methods/presets.

The ablations of MIND are such: they differ from it in an option or two, and in nothing else.
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
    """A method with options that are fixed."""

    method: str
    """The method that trains."""
    title: str
    """The name in reports."""
    purpose: str
    """What it is there to show."""
    options: dict  # of any values: typed_json looks at the keys alone
    """The fixed options, nested as in config.json."""
    needs: tuple[str, ...] = ()
    """Options that must be given: it has no sense at their defaults."""
    aliases: tuple[str, ...] = ()
    """Other names that `mind train --method` takes."""


PRESETS: dict[str, Preset] = {
    file.stem: load_json(file, Preset) for file in sorted(Path(__file__).with_name("presets").glob("*.json"))
}
"""By the name that `mind train --method` takes."""

_NAMES = {alias: name for name, preset in PRESETS.items() for alias in preset.aliases}


def method_name(name: str) -> str:
    """The name of a method or preset, of which `name` may be an alias."""
    return _NAMES.get(name, name)


def with_preset(config: MindConfig) -> MindConfig:
    """`config` with the name of its method, in place of an alias, and the options that it fixes, if it is a preset.

    Raises MindError for an option that the preset fixes at another value and that is not at its default.
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
    """Raises MindError if the method is a preset and an option that it needs is not given."""
    if config.method in PRESETS:
        given, default = (flat(dataclasses.asdict(some)) for some in (config, MindConfig()))
        for name in PRESETS[config.method].needs:
            option = name.replace("_", "-")
            require(given[name] != default[name], f"method {config.method} needs {name}: --{option} names it")


def check_given(method: str, values: Mapping[str, Any], where: str) -> None:
    """Raises MindError, which begins with `where`, for an option among the JSON `values` of a configuration that its
    method fixes at another value, be it the option's default."""
    if (method := method_name(method)) in PRESETS:
        given = flat(values)
        for name, value in flat(PRESETS[method].options).items():
            require(
                given.get(name, value) == value,
                f"{where}: {name} is {given.get(name)}: method {method} fixes it at {value}: leave it out",
            )


def neutral(method: str) -> Any:
    """The defaults of what a preset fixes or needs, nested as in config.json; nothing for another method."""
    if method not in PRESETS:
        return {}
    names: dict[str, Any] = copy.deepcopy(PRESETS[method].options)
    for needed in PRESETS[method].needs:
        section, name = needed.split(".")
        names.setdefault(section, {})[name] = None
    return _parts(MindConfig(), names)


def _parts(value: Any, names: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a dataclass that `names` has as keys, nested as there."""
    return {
        name: _parts(getattr(value, name), inner) if isinstance(inner, Mapping) else getattr(value, name)
        for name, inner in names.items()
    }


def replaced(value: Any, changes: Mapping[str, Any]) -> Any:
    """A dataclass with the changes, those of its parts within them."""
    return dataclasses.replace(
        value,
        **{
            name: replaced(getattr(value, name), change) if isinstance(change, Mapping) else change
            for name, change in changes.items()
        },
    )
