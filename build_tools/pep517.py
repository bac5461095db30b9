"""The build backend: setuptools' own, and torch as a requirement where its headers are needed and nowhere to be found.

torch is not in pyproject.toml's build requirements: an isolated build would then fetch one, gigabytes, even beside the
torch that is installed already. Its headers are taken from that one; any torch from 2.11 on serves, since the libraries
use its stable ABI.
"""

from __future__ import annotations

from typing import Any

from setuptools import build_meta
from setuptools.build_meta import (
    build_editable,
    build_sdist,
    build_wheel,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

from . import toolchain
from .settings import CPP, MODES, NotBuilt, mode_name

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]


def get_requires_for_build_wheel(config_settings: dict[str, Any] | None = None) -> list[str]:
    return [*build_meta.get_requires_for_build_wheel(config_settings), *torch_requirement()]


def get_requires_for_build_editable(config_settings: dict[str, Any] | None = None) -> list[str]:
    return [*build_meta.get_requires_for_build_editable(config_settings), *torch_requirement()]


def torch_requirement() -> list[str]:
    """torch, where there is a compiler to use its headers and no torch to take them from."""
    if CPP not in MODES[mode_name()].tried:
        return []
    try:
        toolchain.find_compiler()
    except NotBuilt:
        return []
    try:
        toolchain.find_torch()
    except NotBuilt:
        return ["torch>=" + ".".join(map(str, toolchain.OLDEST_TORCH))]
    return []
