"""Finds the C++ compiler, the CUDA compiler and torch's headers, or says why one is missing."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import site
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from .settings import NotBuilt

COMPILERS = ("c++", "g++", "clang++")
OLDEST_TORCH = (2, 11)  # csrc is written for its stable ABI: TORCH_TARGET_VERSION in libraries.py


@dataclass(frozen=True)
class Compiler:
    command: tuple[str, ...]
    version: str  # first line of --version
    machine: str  # that it compiles for, such as x86_64-linux-gnu


@dataclass(frozen=True)
class Torch:
    folder: Path
    version: str
    cuda: str  # of its build, such as 13.0; empty for a CPU build


@dataclass(frozen=True)
class Nvcc:
    command: str
    version: str  # such as 13.0
    toolkit: Path  # the folder with include and lib64
    codes: frozenset[str]  # the architectures that it compiles for, such as sm_80


def output(*command: str) -> str:
    """What the command prints, on either stream. Raises NotBuilt where it fails or cannot be started."""
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    except OSError as error:
        raise NotBuilt(f"{command[0]} cannot be started ({error.strerror})") from error
    if done.returncode != 0:
        raise NotBuilt(f"{shlex.join(command)} ended with status {done.returncode}")
    return done.stdout


def find_compiler() -> Compiler:
    if os.name != "posix":
        raise NotBuilt("it is built on Linux and macOS only")
    named = shlex.split(os.environ.get("CXX", ""))
    candidates = [named] if named else [[name] for name in COMPILERS]
    for command in candidates:
        if shutil.which(command[0]):
            version, machine = output(*command, "--version"), output(*command, "-dumpmachine")
            return Compiler(tuple(command), version.splitlines()[0] if version else "", machine.strip())
    if named:
        raise NotBuilt(f"CXX is {shlex.join(named)!r}, which is not on PATH")
    raise NotBuilt(f"no C++ compiler: none of {', '.join(COMPILERS)} is on PATH, and CXX is not set")


def find_torch() -> Torch:
    """The torch whose headers are used: of this interpreter, or of the environment that an isolated build is for."""
    older = None
    for folder in torch_folders():
        version = _torch_setting(folder, "__version__") or "0.0"
        if tuple(map(int, re.findall(r"\d+", version)[:2])) < OLDEST_TORCH:
            older = older or version
        elif (folder / "include/torch/csrc/stable/library.h").is_file():
            return Torch(folder, version, _torch_setting(folder, "cuda"))
    oldest = ".".join(map(str, OLDEST_TORCH))
    if older:
        raise NotBuilt(f"torch {older} is too old: its headers are used from {oldest} on")
    raise NotBuilt(f"the headers of torch {oldest} or later were not found in {sys.prefix}")


def torch_folders() -> list[Path]:
    """Where torch is installed, without importing it.

    pip's isolated build runs the interpreter of the environment that is installed into, but hides that environment's
    packages from sys.path; sysconfig still knows the folders.
    """
    spec = importlib.util.find_spec("torch")
    folders = [Path(spec.origin).parent] if spec and spec.origin else []
    roots = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    if _sees_system_packages():
        bases = {"base": sys.base_prefix, "platbase": sys.base_exec_prefix}
        roots += [
            site.getusersitepackages(),
            sysconfig.get_path("purelib", vars=bases),
            sysconfig.get_path("platlib", vars=bases),
        ]
    folders += [Path(root) / "torch" for root in dict.fromkeys(roots)]
    return [folder for folder in folders if (folder / "version.py").is_file()]


def _sees_system_packages() -> bool:
    configuration = Path(sys.prefix, "pyvenv.cfg")
    if not configuration.is_file():
        return True
    return re.search(r"(?im)^include-system-site-packages\s*=\s*true", configuration.read_text()) is not None


def _torch_setting(folder: Path, name: str) -> str:
    """A string of torch/version.py; empty if it is None or not there."""
    found = re.search(rf"^{name}\b[^=\n]*= ['\"](.+?)['\"]", (folder / "version.py").read_text(), re.MULTILINE)
    return found.group(1) if found else ""


def nvcc_command() -> str:
    """nvcc of CUDA_HOME or CUDA_PATH, else the one on PATH."""
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        if home := os.environ.get(variable):
            command = os.path.join(home, "bin", "nvcc")
            if not os.path.isfile(command):
                raise NotBuilt(f"{variable} is {home!r}, which has no bin/nvcc")
            return command
    command = shutil.which("nvcc")
    if command is None:
        raise NotBuilt("no CUDA compiler: nvcc is not on PATH, and CUDA_HOME is not set")
    return command


def find_nvcc() -> Nvcc:
    command = nvcc_command()
    version = re.search(r"release (\d+\.\d+)", output(command, "--version"))
    top = re.search(r"TOP=(.*)", output(command, "--dryrun", "-x", "cu", os.devnull))  # nvcc may be a wrapper
    if version is None or top is None:
        raise NotBuilt(f"{command} is not NVIDIA's nvcc: its answer to --dryrun is not understood")
    codes = output(command, "--list-gpu-code").split()
    return Nvcc(command, version.group(1), Path(os.path.normpath(top.group(1).strip())), frozenset(codes))
