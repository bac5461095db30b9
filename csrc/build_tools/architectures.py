"""Which GPU architectures the CUDA library is compiled for."""

from __future__ import annotations

import os
import re

from .settings import NotBuilt

DEFAULT = "8.0;9.0a;10.0+PTX"  # PTX of the newest: what later GPUs compile when the library is loaded
VARIABLES = ("MIND_KERNELS_CUDA_ARCHS", "TORCH_CUDA_ARCH_LIST")


def wanted() -> tuple[str, str]:
    """The list of architectures, and the variable that it is from; an empty name for the default."""
    for variable in VARIABLES:
        if value := os.environ.get(variable, "").strip():
            return value, variable
    return DEFAULT, ""


def gencode(codes: frozenset[str]) -> tuple[list[str], list[str]]:
    """(architectures such as sm_90a and compute_100, nvcc's flags) of those that nvcc has, whose list `codes` is.

    Of the default, those that nvcc lacks are left out. A named one that it lacks is an error.
    """
    text, variable = wanted()
    names: list[str] = []
    for word in re.split(r"[;,\s]+", text):
        found = re.fullmatch(r"(?:sm_)?(\d+)\.?(\d)([af]?)(\+PTX)?", word)
        if found is None:
            raise NotBuilt(f"{variable} has {word!r}: expected numbers such as 8.0, 9.0a or 10.0+PTX")
        number, letter = found.group(1) + found.group(2), found.group(3)
        if f"sm_{number}" not in codes:  # nvcc lists no name with a letter
            if variable:
                raise NotBuilt(f"{variable} has {word!r}, which this nvcc does not compile for")
            continue
        names += [f"sm_{number}{letter}"] + ([f"compute_{number}"] if found.group(4) else [])
    if not names:
        raise NotBuilt(f"this nvcc compiles for none of {text}")
    names = list(dict.fromkeys(names))
    flags = [f"-gencode=arch=compute_{name.partition('_')[2]},code={name}" for name in names]
    return names, flags
