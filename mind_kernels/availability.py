"""Whether the backends can run on this machine, and if not, why and what to do about it."""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from mind_kernels import extension

_HAS_TRITON = importlib.util.find_spec("triton") is not None


@dataclass(frozen=True)
class Availability:
    """Whether a backend can run on this machine."""

    available: bool
    """It can."""
    reason: str = ""
    """Why the backend cannot run; empty if it can."""
    remedy: str = ""
    """What the user can do about it; empty if the backend can run."""


def interpreted() -> bool:
    """Whether Triton kernels run in its interpreter, on a CPU: TRITON_INTERPRET, read before they are imported."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")


def of_library(library: str) -> Availability:
    """Whether a compiled library, "cpp" or "cuda", was built and fits this processor and this version of torch."""
    reason = extension.unavailable(library)
    return Availability(False, reason, extension.remedy(library)) if reason else Availability(True)


def of_cuda() -> Availability:
    """Whether the library "cuda" was built for the GPUs that are here."""
    compiled = of_library("cuda")
    if not compiled.available:
        return compiled
    if not torch.cuda.is_available():
        return Availability(False, "no CUDA device is here", "run it on a machine with an NVIDIA GPU")
    if gpu := _unserved_gpu():
        return Availability(False, f"it was not compiled for {gpu}", "name it in MIND_KERNELS_CUDA_ARCHS and build")
    return Availability(True)


@extension.constant_in_graphs
def _unserved_gpu() -> str:
    """A GPU of this machine for which the CUDA library has no code; empty if there is none."""
    for device in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(device)
        if not extension.serves(extension.architectures(), major, minor):
            return f"cuda:{device}, a {torch.cuda.get_device_name(device)} of compute capability {major}.{minor}"
    return ""


def of_triton() -> Availability:
    """Whether Triton is installed, and can compile for the GPUs that are here or is interpreted."""
    if not _HAS_TRITON:
        return Availability(False, "the package triton is not installed", "pip install 'mind-kernels[triton]'")
    if not (torch.cuda.is_available() or interpreted()):
        return Availability(
            False, "no CUDA device is here, and TRITON_INTERPRET=1 is not set", "run it on a machine with an NVIDIA GPU"
        )
    reason, remedy = ("", "") if interpreted() else _untranslatable()
    return Availability(not reason, reason, remedy)


@extension.constant_in_graphs
def _untranslatable() -> tuple[str, str]:
    """The result of `_triton_lacks`; a plain function, since Dynamo cannot treat a cached one as a constant."""
    return _triton_lacks()


@functools.cache
def _triton_lacks() -> tuple[str, str]:
    """Why Triton cannot compile for the GPUs of this machine, and what to do about it; both empty if it can.

    Triton uses a C compiler, when a kernel first runs, to build its interface to the driver.
    """
    import sysconfig

    if torch.version.hip is not None:
        return "this is a ROCm build of torch, and the kernels are written for NVIDIA GPUs", "run it on an NVIDIA GPU"
    for device in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(device)
        if major < 8:
            gpu = f"cuda:{device}, a {torch.cuda.get_device_name(device)}"
            return f"{gpu}, has compute capability {major}.{minor}: Triton needs 8.0", "hide it by CUDA_VISIBLE_DEVICES"
    compilers = [os.environ["CC"]] if "CC" in os.environ else ["gcc", "clang"]
    if not any(map(shutil.which, compilers)):
        return f"Triton needs a C compiler: {' or '.join(compilers)} is not here", "install one, or name another by CC"
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if not header.is_file():
        return f"Triton needs {header}, which is not here", "install the headers of Python, such as python3-dev"
    return "", ""
