"""The operators of csrc/cuda on CPU tensors: its .cu files compiled as C++ against cuda_runtime.h in this folder."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

FOLDER = Path(__file__).parent
SOURCES = FOLDER.parent.parent / "csrc" / "cuda"
HOST_SOURCES = (SOURCES.parent / "operators.cpp", *sorted(SOURCES.glob("*.cpp")))
COMPILER = os.environ.get("CXX", "g++").split()[0]
UNAVAILABLE = "" if shutil.which(COMPILER) else f"the emulator is compiled by {COMPILER}: not found"

_TORCH = Path(torch.__file__).parent
_COMMON = ("-fPIC", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas")
KERNEL_FLAGS = ("-std=c++17", "-O1", *_COMMON, f"-I{FOLDER}", "-x", "c++")
OPERATOR_FLAGS = (
    "-std=c++20",
    "-O0",
    "-fvisibility=hidden",
    *_COMMON,
    "-DUSE_CUDA",
    "-DTORCH_TARGET_VERSION=0x020b000000000000",
    "-isystem",
    str(_TORCH / "include"),
    "-isystem",
    str(_TORCH / "include/torch/csrc/api/include"),
)


@functools.cache
def operators() -> Any:
    """torch.ops.mind_kernels_emulated, compiled once a process."""
    folder = Path(tempfile.mkdtemp(prefix="cuda-emulator-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    commands = [(source, KERNEL_FLAGS) for source in sorted(SOURCES.glob("*.cu"))]
    commands += [(source, OPERATOR_FLAGS) for source in HOST_SOURCES if source.name != "binding.cpp"]
    commands.append((FOLDER / "binding.cpp", OPERATOR_FLAGS))
    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(lambda command: compile_one(*command, folder), commands))
    library = folder / "emulated.so"
    # Bsymbolic: the guard of a device and the current stream are this library's own.
    run(
        [
            COMPILER,
            "-shared",
            "-Wl,-Bsymbolic",
            *map(str, objects),
            "-o",
            str(library),
            f"-L{_TORCH / 'lib'}",
            "-ltorch_cpu",
            "-lc10",
        ]
    )
    torch.ops.load_library(library)
    return torch.ops.mind_kernels_emulated


def compile_one(source: Path, flags: Sequence[str], folder: Path) -> Path:
    out = folder / f"{source.name}.o"
    run([COMPILER, *flags, "-c", str(source), "-o", str(out)])
    return out


def run(command: Sequence[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{result.stderr}")
