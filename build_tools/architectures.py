"""Which GPU architectures the CUDA library is compiled for."""

from __future__ import annotations

import os
import re

from .settings import NotBuilt

# Those of them that nvcc has, and PTX of the newest, which later GPUs compile when the library is loaded.
DEFAULT = ("80", "90a", "100")
VARIABLES = ("MIND_KERNELS_CUDA_ARCHS", "TORCH_CUDA_ARCH_LIST")


def architectures(codes: frozenset[str]) -> list[str]:
    """Such as sm_90a, and compute_100 for PTX; `codes` is nvcc's list of what it compiles for, without letters."""
    for variable in VARIABLES:
        if text := os.environ.get(variable, "").strip():
            return _named(variable, text, codes)
    numbers = [number for number in DEFAULT if f"sm_{number.rstrip('a')}" in codes]
    if not numbers:
        raise NotBuilt(f"nvcc compiles for none of {', '.join(f'sm_{number}' for number in DEFAULT)}")
    return [*(f"sm_{number}" for number in numbers), f"compute_{numbers[-1].rstrip('a')}"]


def _named(variable: str, text: str, codes: frozenset[str]) -> list[str]:
    names: list[str] = []
    for word in re.split(r"[;,\s]+", text):
        found = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", word)
        if found is None:
            raise NotBuilt(f"{variable} has {word!r}: expected numbers such as 8.0, 9.0a or 10.0+PTX")
        number = found.group(1) + found.group(2)
        if f"sm_{number}" not in codes:
            raise NotBuilt(f"{variable} has {word!r}, which this nvcc does not compile for")
        names += [f"sm_{number}{found.group(3)}"] + ([f"compute_{number}"] if found.group(4) else [])
    return list(dict.fromkeys(names))


def gencode(names: list[str]) -> list[str]:
    """nvcc's flags for the architectures `names`."""
    return [f"-gencode=arch=compute_{name.partition('_')[2]},code={name}" for name in names]
