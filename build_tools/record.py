"""mind_kernels/_build.json: what a build made, with what, and why the rest is missing; pip keeps quiet about it."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import toolchain
from .settings import CPP, CUDA, PACKER, NotBuilt, mode_name

FILE = "mind_kernels/_build.json"
BACKENDS = {CPP: "cpp", CUDA: "cuda", PACKER: "packer"}
WITHOUT = {
    CPP: "backend 'torch' serves CPU tensors",
    CUDA: "backends 'torch' and 'triton' serve CUDA tensors",
    PACKER: "best-fit packing uses its Python twin: the same bins, more slowly",
}


@dataclass(frozen=True)
class Outcome:
    """A library that was built, with the facts of the build, or the reason why it was not."""

    module: str
    reason: str = ""
    facts: dict[str, Any] = field(default_factory=dict)


def line(outcomes: list[Outcome]) -> str:
    """The one line that a build ends with."""
    built = ", ".join(_built(outcome) for outcome in outcomes if not outcome.reason)
    missing = "; ".join(
        f"{BACKENDS[outcome.module]} ({outcome.reason}: {WITHOUT[outcome.module]})"
        for outcome in outcomes
        if outcome.reason
    )
    return f"mind-kernels: built {built or 'nothing'}" + (f"; not built: {missing}" if missing else "")


def _built(outcome: Outcome) -> str:
    details = outcome.facts.get("capabilities") or outcome.facts.get("architectures")
    return BACKENDS[outcome.module] + (f" ({' '.join(details)})" if details else "")


def write(path: Path, outcomes: list[Outcome]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    libraries = {
        outcome.module: {"built": not outcome.reason}
        | ({"reason": outcome.reason} if outcome.reason else outcome.facts)
        for outcome in outcomes
    }
    record = {
        "mode": mode_name(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "compiler": _compiler(),
        "libraries": libraries,
    }
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(record, indent=1) + "\n")
    os.replace(temporary, path)


def _compiler() -> str:
    try:
        return toolchain.find_compiler().version
    except NotBuilt:
        return ""
