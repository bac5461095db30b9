"""The compiled libraries: `mind_kernels._cpu` and `mind_kernels._cuda`, and why one cannot be used.

Loading one registers its operators, `torch.ops.mind_kernels_cpu` or `torch.ops.mind_kernels_cuda`, whose schemas are in
csrc/operators.h. MIND_KERNELS_DISABLE_EXT=1 leaves both alone. MIND_KERNELS_LIBRARY_FOLDER, for developers, names
another folder to load them from: a debug or sanitizer build.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import torch

T = TypeVar("T")
OLDEST_TORCH = (2, 11)  # whose stable ABI the libraries use
_AGAIN = "install it again: pip install --force-reinstall --no-deps --no-cache-dir . (or the sdist)"


def constant_in_graphs(function: Callable[..., T]) -> Callable[..., T]:
    """Dynamo calls the function and takes its result for a constant: it cannot trace an import, for example.

    torch.compiler.assume_constant_result imports Dynamo, which takes a second, so it is applied at the first trace.
    """

    @functools.wraps(function)
    def call(*arguments: Any) -> T:
        if torch.compiler.is_dynamo_compiling():
            from mind_kernels import dynamo

            return dynamo.constant(function, *arguments)
        return function(*arguments)

    return call


@constant_in_graphs
def unavailable(device: str) -> str:
    """Why the library for "cpu" or "cuda" tensors cannot be used; empty where it can."""
    return _problem(device)[0]


@constant_in_graphs
def remedy(device: str) -> str:
    """What to do about it."""
    return _problem(device)[1]


def operators(device: str) -> Any:
    """The operators of the library for "cpu" or "cuda" tensors, which must be available."""
    reason = unavailable(device)
    if reason:
        raise RuntimeError(f"mind_kernels._{device}: {reason}; {remedy(device)}")
    return getattr(torch.ops, f"mind_kernels_{device}")


def capability() -> str:
    """The instruction set of the CPU kernels in use: avx512, avx2 or baseline. RuntimeError where a setting forbids it.

    The library for "cpu" must be available.
    """
    return sys.modules["mind_kernels._cpu"].capability()


@functools.cache
def build_record() -> dict[str, Any]:
    """What the installation built and with what, which build_tools/record.py wrote; empty where nothing was."""
    file = _folder() / "_build.json"
    return json.loads(file.read_text()) if file.is_file() else {}


def architectures() -> list[str]:
    """What the CUDA library was compiled for, such as sm_90a; compute_100 stands for PTX."""
    return build_record().get("libraries", {}).get("mind_kernels._cuda", {}).get("architectures", [])


def serves(names: list[str], major: int, minor: int) -> bool:
    """Whether code for the architectures `names` runs on a GPU of compute capability (major, minor)."""
    for name in names:
        kind, *version, letter = re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", name).groups()
        built = tuple(map(int, version))
        if letter == "a":
            fits = (major, minor) == built
        elif kind == "sm" or letter == "f":
            fits = major == built[0] and minor >= built[1]
        else:
            fits = (major, minor) >= built
        if fits:
            return True
    return False


@functools.cache
def _problem(device: str) -> tuple[str, str]:
    """(reason, remedy), both empty where the library is loaded."""
    if os.environ.get("MIND_KERNELS_DISABLE_EXT", "0") not in ("", "0"):
        return "MIND_KERNELS_DISABLE_EXT is set", "unset it"
    if device == "cuda" and torch.version.cuda is None:
        return "this build of torch has no CUDA", "install a CUDA build of torch"
    file = _folder() / f"_{device}.abi3.so"
    if not file.is_file():
        return _not_built(device)
    try:
        _load(f"mind_kernels._{device}", file)
    except ImportError as error:
        if tuple(map(int, re.findall(r"\d+", torch.__version__)[:2])) < OLDEST_TORCH:
            oldest = ".".join(map(str, OLDEST_TORCH))
            return f"{file.name} needs torch {oldest} or later, and this is {torch.__version__}", "install one"
        return f"{file.name} cannot be loaded: {error}", _AGAIN
    return "", ""


def _not_built(device: str) -> tuple[str, str]:
    if not build_record():
        return "it was not built: this copy of mind_kernels was not installed", "pip install -e . in the source tree"
    reason = build_record()["libraries"][f"mind_kernels._{device}"].get("reason", "its file has been removed since")
    tools = "torch, a C++ compiler" + (" and the CUDA toolkit" if device == "cuda" else "")
    return f"it was not built: {reason}", f"with {tools} there, {_AGAIN}"


def _folder() -> Path:
    folder = os.environ.get("MIND_KERNELS_LIBRARY_FOLDER")
    return Path(folder) if folder else Path(__file__).parent


def _load(name: str, file: Path) -> ModuleType:
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, file)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        sys.modules[name] = module
    return sys.modules[name]
