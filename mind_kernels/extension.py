"""Loads the compiled libraries `mind_kernels._cpp` (CPU) and `mind_kernels._cuda`, or says why one cannot be used.

Loading a library registers its operators, `torch.ops.mind_kernels_cpp` or `torch.ops.mind_kernels_cuda`, whose schemas
are in csrc/operators.h. MIND_KERNELS_LIBRARIES may be "none", to load neither, or, for developers, a folder with other
builds, such as a debug or sanitizer build.
"""

from __future__ import annotations

import functools
import importlib.machinery
import importlib.util
import json
import os
import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import torch

from mind_kernels.namespace import NAMESPACE

T = TypeVar("T")
OLDEST_TORCH = (2, 11)  # the libraries use the stable ABI of this version
# The environment variables that this package, its build and its tests read.
VARIABLES = (
    "MIND_KERNELS_LIBRARIES",
    "MIND_KERNELS_CPU_CAPABILITY",
    "MIND_KERNELS_BACKEND",
    "MIND_KERNELS_TUNING",
    "MIND_KERNELS_BUILD",
    "MIND_KERNELS_CUDA_ARCHS",
    "MIND_KERNELS_TEST_WITHOUT",
)
_PACKAGE = Path(__file__).parent
_COMMAND = "pip install --force-reinstall --no-deps --no-cache-dir . (or the sdist)"


def constant_in_graphs(function: Callable[..., T]) -> Callable[..., T]:
    """Makes Dynamo call the function and use its result as a constant, since it cannot trace an import, for example.

    torch.compiler.assume_constant_result imports Dynamo, which takes a second, so it is applied only when tracing.
    """

    @functools.wraps(function)
    def call(*arguments: Any) -> T:
        if torch.compiler.is_dynamo_compiling():
            from mind_kernels import dynamo

            return dynamo.constant(function, *arguments)
        return function(*arguments)

    return call


@constant_in_graphs
def unavailable(library: str) -> str:
    """Why the library "cpp" or "cuda" cannot be used; empty if it can."""
    return _problem(library)[0]


@constant_in_graphs
def remedy(library: str) -> str:
    """What the user can do to make the library usable."""
    return _problem(library)[1]


def operators(library: str) -> Any:
    """The operators of the library "cpp" or "cuda", which must be available."""
    reason = unavailable(library)
    if reason:
        raise RuntimeError(f"mind_kernels._{library}: {reason}; {remedy(library)}")
    return getattr(torch.ops, f"{NAMESPACE}_{library}")


def _module(library: str) -> str:
    return f"{__package__}._{library}"


def capability() -> str:
    """The instruction set of the CPU kernels in use: avx512, avx2 or baseline. RuntimeError if a setting forbids it.

    The library "cpp" must be available.
    """
    return sys.modules[_module("cpp")].capability()


def use_capability(name: str) -> None:
    """Chooses the instruction set of the CPU kernels by name, or the best one by "": for tests and measurements.

    RuntimeError if this processor does not have it. The library "cpp" must be available.
    """
    sys.modules[_module("cpp")].use_capability(name)


@functools.cache
def build_record() -> dict[str, Any]:
    """Which libraries the installation built and by which tools, as recorded by build_tools/record.py; else empty."""
    file = (_folder() or _PACKAGE) / "_build.json"
    return json.loads(file.read_text()) if file.is_file() else {}


def architectures() -> list[str]:
    """The architectures that the CUDA library was compiled for, such as sm_90a; compute_100 means PTX."""
    return build_record().get("libraries", {}).get("mind_kernels._cuda", {}).get("architectures", [])


def serves(names: list[str], major: int, minor: int) -> bool:
    """Whether code for the architectures `names` runs on a GPU of compute capability (major, minor)."""
    for name in names:
        found = re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", name)
        if found is None:
            raise ValueError(f"architecture {name!r}: expected a name such as sm_90a or compute_100")
        kind, *version, letter = found.groups()
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
def _problem(library: str) -> tuple[str, str]:
    """(reason, remedy), both empty if the library is loaded."""
    _warn_of_unknown_variables()
    folder = _folder()
    if folder is None:
        return "MIND_KERNELS_LIBRARIES is 'none'", "unset it"
    if not folder.is_dir():
        return f"MIND_KERNELS_LIBRARIES is {str(folder)!r}: expected 'none' or a folder", "unset it"
    file = folder / f"_{library}.abi3.so"
    if library == "cuda" and torch.version.cuda is None:
        then = "" if file.is_file() else f", then mind-kernels again: {_COMMAND}"
        return "this build of torch has no CUDA", f"install a CUDA build of torch{then}"
    if not file.is_file():
        return _not_built(library)
    try:
        _load(_module(library), file)
    except ImportError as error:
        if tuple(map(int, re.findall(r"\d+", torch.__version__)[:2])) < OLDEST_TORCH:
            oldest = ".".join(map(str, OLDEST_TORCH))
            return f"{file.name} needs torch {oldest} or later, and this is {torch.__version__}", "install one"
        return f"{file.name} cannot be loaded: {error}", f"install it again: {_COMMAND}"
    return "", ""


def _not_built(library: str) -> tuple[str, str]:
    if not build_record():
        return "it was not built: this copy of mind_kernels was not installed", "pip install -e . in the source tree"
    facts = build_record()["libraries"].get(f"mind_kernels._{library}", {"reason": "that build leaves it out"})
    reason = facts.get("reason", "its file has been removed since")
    tools = "torch, a C++ compiler" + (" and the CUDA toolkit" if library == "cuda" else "")
    return f"it was not built: {reason}", f"with {tools} there, install it again: {_COMMAND}"


def _folder() -> Path | None:
    """The folder of the libraries; None to load none."""
    setting = os.environ.get("MIND_KERNELS_LIBRARIES")
    if not setting:
        return _PACKAGE
    return None if setting == "none" else Path(setting)


def _warn_of_unknown_variables() -> None:
    for name in sorted(os.environ):
        if name.startswith("MIND_KERNELS_") and name not in VARIABLES:
            warnings.warn(f"{name} is set, and nothing reads it: expected one of {', '.join(VARIABLES)}", stacklevel=2)


def _load(name: str, file: Path) -> ModuleType:
    if name not in sys.modules:
        loader = importlib.machinery.ExtensionFileLoader(name, str(file))
        spec = importlib.machinery.ModuleSpec(name, loader, origin=str(file))
        module = importlib.util.module_from_spec(spec)
        loader.exec_module(module)
        sys.modules[name] = module
    return sys.modules[name]
