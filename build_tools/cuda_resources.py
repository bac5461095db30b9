"""The result of compiling the CUDA kernels by nvcc, without a GPU: registers, spills, stack and shared memory of each.

    python build_tools/cuda_resources.py [--architecture sm_90a ...] [--nvcc nvcc] [file.cu ...]

prints a table and fails where a kernel spills registers to memory or keeps anything else on its stack.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / "csrc" / "cuda"
ARCHITECTURES = ("sm_80", "sm_90a", "sm_100")
FLAGS = ("-std=c++17", "-O3", "-Xcompiler=-fPIC,-fvisibility=hidden,-Wall,-Wextra")  # those of the library

_KERNEL = re.compile(
    r"Compiling entry function '(?P<name>\w+)' for '(?P<architecture>\w+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers(?P<more>[^\n]*)",
    re.DOTALL,
)


class CompileError(RuntimeError):
    """nvcc failed; the message has its command and its output."""


@dataclass(frozen=True)
class Usage:
    """One kernel on one architecture."""

    file: str
    kernel: str
    architecture: str
    registers: int  # per thread
    spill_bytes: int  # stored and loaded, per thread
    stack_bytes: int  # per thread
    shared_bytes: int  # per block, static

    @property
    def fault(self) -> str:
        """What forbids it; empty where nothing does."""
        if self.spill_bytes:
            return "spills"
        return "uses the stack" if self.stack_bytes else ""


def sources() -> list[Path]:
    return sorted(FOLDER.glob("*.cu"))


def measure(
    files: Sequence[Path],
    architectures: Sequence[str] = ARCHITECTURES,
    nvcc: str = "nvcc",
    processes: int = 2,
    objects: Path | None = None,
) -> list[Usage]:
    """Compiles every file for every architecture. What nvcc makes stays in the folder `objects`, where it is given: the
    object of each file, and PTX such as rows.compute_90a.ptx."""
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(processes) as pool:
        largest_first = sorted(files, key=lambda file: -file.stat().st_size)
        parts = pool.map(lambda file: _measure_one(file, architectures, nvcc, objects or Path(folder)), largest_first)
        return [usage for part in parts for usage in part]


def _measure_one(file: Path, architectures: Sequence[str], nvcc: str, folder: Path) -> list[Usage]:
    codes = [f"-gencode=arch={name.replace('sm', 'compute')},code={name}" for name in architectures]
    kept = ["--keep", f"--keep-dir={folder}"]
    command = [nvcc, *FLAGS, *codes, "-Xptxas=-v", *kept, "-c", str(file), "-o", str(folder / f"{file.stem}.o")]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise CompileError(f"{' '.join(command)}\n{result.stdout}{result.stderr}")
    return parse(file.name, result.stdout + result.stderr)


def parse(file: str, output: str) -> list[Usage]:
    """The kernels in what ptxas prints with -v."""
    found = list(_KERNEL.finditer(output))
    names = readable([match["name"] for match in found])
    shared = [re.search(r"(\d+) bytes smem", match["more"]) for match in found]
    return [
        Usage(
            file,
            name,
            match["architecture"],
            int(match["registers"]),
            int(match["stores"]) + int(match["loads"]),
            int(match["stack"]),
            int(memory[1]) if memory else 0,
        )
        for name, match, memory in zip(names, found, shared, strict=True)
    ]


def readable(names: Sequence[str]) -> list[str]:
    """row_kernel<__half, true, false>: without namespaces, result and arguments."""
    result = subprocess.run(["c++filt"], input="\n".join(names), check=True, capture_output=True, text=True)
    out = []
    for name in result.stdout.splitlines():
        name = re.sub(r"\([^()]*\)$", "", name.replace("(anonymous namespace)::", ""))  # arguments
        name = re.sub(r"\((?:bool|int)\)", "", name)  # of a template argument
        name = re.sub(r"^(?:void )?(?:\w+::)*", "", name)
        out.append(name.replace("__nv_", "").replace("__half", "half"))
    return out


def table(usages: Sequence[Usage]) -> str:
    """One line a kernel, and the architectures side by side."""
    architectures = list(dict.fromkeys(usage.architecture for usage in usages))
    rows: dict[tuple[str, str], dict[str, Usage]] = {}
    for usage in usages:
        rows.setdefault((usage.file, usage.kernel), {})[usage.architecture] = usage
    lines = [
        "bytes of static shared memory a block; registers, spilled bytes and bytes of stack a thread",
        f"{'file':14} {'kernel':38} {'shared':>6}" + "".join(f"{name:>16}" for name in architectures),
    ]
    for (file, kernel), row in sorted(rows.items()):
        cells = [
            f"{row[name].registers:8}{row[name].spill_bytes:4}{row[name].stack_bytes:4}" if name in row else " " * 16
            for name in architectures
        ]
        shared = max(usage.shared_bytes for usage in row.values())
        faults = sorted({f"{usage.fault} on {usage.architecture}" for usage in row.values() if usage.fault})
        lines.append(f"{file:14} {kernel:38} {shared:6}{''.join(cells)}  {', '.join(faults)}".rstrip())
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    description = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(prog="python build_tools/cuda_resources.py", description=description)
    parser.add_argument("files", type=Path, nargs="*", help="CUDA sources; all of them by default")
    parser.add_argument("--architecture", nargs="+", default=ARCHITECTURES, help="such as sm_90a")
    parser.add_argument("--nvcc", default="nvcc", help="the compiler")
    parser.add_argument("--processes", type=int, default=2, help="how many compilers run at once")
    options = parser.parse_args(arguments)
    usages = measure(options.files or sources(), options.architecture, options.nvcc, options.processes)
    print(table(usages))
    return min(1, sum(bool(usage.fault) for usage in usages))


if __name__ == "__main__":
    sys.exit(main())
