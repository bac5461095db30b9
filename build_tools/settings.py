"""The environment variables of a build: MIND_KERNELS_BUILD, MAX_JOBS, and their errors."""

from __future__ import annotations

import os
from dataclasses import dataclass

CPP, CUDA, PACKER = "mind_kernels._cpp", "mind_kernels._cuda", "mind._packer"


class NotBuilt(Exception):
    """A library cannot be built here; the message is the reason, one line."""


@dataclass(frozen=True)
class Mode:
    """Which libraries are tried, and which of them must be built."""

    tried: tuple[str, ...]
    required: tuple[str, ...]
    cuda_required_with_nvcc: bool = False

    @property
    def asks_for_cuda(self) -> bool:
        """Whether the CUDA library is compiled beside a CPU build of torch too, under which it is never loaded."""
        return self.cuda_required_with_nvcc or CUDA in self.required


MODES = {
    "auto": Mode((CPP, CUDA, PACKER), ()),
    "none": Mode((), ()),
    "cpu": Mode((CPP, PACKER), (CPP, PACKER)),
    "cuda": Mode((CPP, CUDA, PACKER), (CPP, CUDA, PACKER)),
    "require": Mode((CPP, CUDA, PACKER), (CPP, PACKER), cuda_required_with_nvcc=True),
}


def mode_name() -> str:
    name = os.environ.get("MIND_KERNELS_BUILD", "auto")
    if name not in MODES:
        raise SystemExit(f"MIND_KERNELS_BUILD is {name!r}: expected one of {', '.join(MODES)}")
    return name


def max_jobs() -> int:
    """How many compilers run at a time: MAX_JOBS, else the processors that this process may use."""
    text = os.environ.get("MAX_JOBS", "")
    if not text:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not text.isdecimal() or int(text) == 0:
        raise SystemExit(f"MAX_JOBS is {text!r}: expected a positive whole number")
    return int(text)
