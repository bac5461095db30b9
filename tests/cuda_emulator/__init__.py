"""The operators of csrc/cuda on CPU tensors: its .cu files compiled as C++ against cuda_runtime.h in this folder."""

from __future__ import annotations

import fcntl
import functools
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from build_tools import incremental

FOLDER = Path(__file__).parent
ROOT = FOLDER.parent.parent
SOURCES = ROOT / "csrc" / "cuda"
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
    """torch.ops.mind_kernels_emulated, compiled if its sources have changed; several processes may ask at once."""
    folder = ROOT / "build" / "cuda_emulator"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        library = incremental.build(_library(), folder, jobs=2)
    torch.ops.load_library(library)
    return torch.ops.mind_kernels_emulated


def _library() -> incremental.Library:
    host = [FOLDER / "binding.cpp", *(source for source in HOST_SOURCES if source.name != "binding.cpp")]
    translations = [(source, KERNEL_FLAGS) for source in sorted(SOURCES.glob("*.cu"))]
    translations += [(source, OPERATOR_FLAGS) for source in host]
    version = subprocess.run([COMPILER, "--version"], check=True, capture_output=True, text=True).stdout
    return incremental.Library(
        "emulated",
        tuple(incremental.Translation(str(source), (COMPILER, *flags), ()) for source, flags in translations),
        # Bsymbolic: the guard of a device and the current stream are this library's own.
        (COMPILER, "-shared", "-Wl,-Bsymbolic"),
        (f"-L{_TORCH / 'lib'}", "-ltorch_cpu", "-lc10"),
        (version, torch.__version__),
    )


def compile_one(source: Path, flags: Sequence[str], folder: Path) -> Path:
    out = folder / f"{source.name}.o"
    run([COMPILER, *flags, "-c", str(source), "-o", str(out)])
    return out


def run(command: Sequence[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{result.stderr}")
