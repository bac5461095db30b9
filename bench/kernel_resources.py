"""Registers, shared memory, spills and occupancy of every kernel, compiled for GPUs that this machine lacks.

    python -m bench.kernel_resources [--output folder] [--overwrite] [--draw]

The Triton kernels' variants (`python -m mind_kernels ahead --candidates`) and those of csrc/cuda, by nvcc
(build_tools/cuda_resources.py), for sm_80, sm_90 and sm_100. Occupancy is the share of a multiprocessor's threads that
run at once, by the limits in NVIDIA's programming guide; `limit` is what keeps it from being more. Writes
kernel_resources.jsonl; that in bench/results is what tests compare with.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bench import command
from bench.measure import RESULTS, print_table
from build_tools import cuda_resources

NAME = "kernel_resources"
FILE = RESULTS / f"{NAME}.jsonl"
CAPABILITIES = (80, 90, 100)
COLUMNS = ("kernel", "sm", "threads", "registers", "spills", "shared_bytes", "blocks", "occupancy", "limit")
WARP = 32
UNBOUNDED = 256


class Limits(NamedTuple):
    """Of a multiprocessor, the same on sm_80, sm_90 and sm_100 but for the shared memory."""

    shared_bytes: int
    """Of all blocks, of which each takes RESERVED more than it asks for; a block may have as much less than that."""
    registers: int = 1 << 16
    warps: int = 64
    blocks: int = 32


LIMITS = {80: Limits(164 << 10), 90: Limits(228 << 10), 100: Limits(228 << 10)}
RESERVED = 1 << 10
REGISTER_UNIT = 256
"""Registers are given to a warp in multiples of this."""
SCHEDULERS = 4
"""Of a multiprocessor."""


class Occupancy(NamedTuple):
    blocks: int
    """Of a multiprocessor at once; 0: the kernel does not start."""
    share: float
    """Of its threads."""
    limit: str
    """"registers", "shared memory", "threads" or "blocks"."""


def occupancy(threads: int, registers: int, shared_bytes: int, capability: int) -> Occupancy:
    """Of blocks with so many threads, registers per thread and bytes of shared memory."""
    limits, warps = LIMITS[capability], -(-threads // WARP)
    of_warp = -(-registers * WARP // REGISTER_UNIT) * REGISTER_UNIT
    # Each of the four schedulers has a quarter of the registers, and the warps of a block are dealt out to them.
    with_registers = SCHEDULERS * (limits.registers // SCHEDULERS // of_warp)
    fits = {
        "threads": limits.warps // warps,
        "blocks": limits.blocks,
        "registers": with_registers // warps,
        "shared memory": limits.shared_bytes // (shared_bytes + RESERVED),
    }
    limit = min(fits, key=lambda name: fits[name])
    return Occupancy(fits[limit], fits[limit] * warps / limits.warps, limit)


def row(kernel: str, capability: int, threads: int, registers: int, spills: int, shared_bytes: int, by: str) -> dict:
    found = occupancy(threads, registers, shared_bytes, capability)
    return {
        "kernel": kernel,
        "sm": capability,
        "threads": threads,
        "registers": registers,
        "spills": spills,
        "shared_bytes": shared_bytes,
        "blocks": found.blocks,
        "occupancy": round(found.share, 3),
        "limit": found.limit,
        "compiler": by,
    }


def of_variant(variant: Any, capability: int) -> dict[str, Any]:
    """Of a variant of a Triton kernel, compiled here."""
    from mind_kernels.commands.ahead import compile_variant

    report = compile_variant(variant, capability)
    threads = WARP * variant.options.get("num_warps", 4)
    by = f"triton {importlib.metadata.version('triton')}"
    return row(variant.name, capability, threads, report.registers, report.spills, report.shared_bytes, by)


def of_triton() -> Iterator[dict[str, Any]]:
    from mind_kernels.commands.ahead import modules, variants

    for variant in variants(modules(), candidates=True):
        for capability in variant.capabilities or CAPABILITIES:
            yield of_variant(variant, capability)


def of_cuda(usages: Sequence[cuda_resources.Usage], threads: dict[str, int], by: str) -> Iterator[dict[str, Any]]:
    """Of the kernels that nvcc has compiled; `threads`: the most of a block of each, from its launch bounds."""
    for usage in sorted(usages, key=lambda usage: (usage.file, usage.kernel)):
        capability = int(re.sub(r"\D", "", usage.architecture))
        name = f"{usage.file.removesuffix('.cu')}: {usage.kernel}"
        most = threads[usage.kernel]
        yield row(name, capability, most, usage.registers, usage.spill_bytes, usage.shared_bytes, by)


def launch_bounds(folder: Path) -> dict[str, int]:
    """The most threads of a block of each kernel, from the PTX that a compilation has left in a folder.

    The few that give no bounds are launched with UNBOUNDED.
    """
    names, found = [], []
    for file in folder.glob("*.ptx"):
        for kernel in file.read_text().split(".entry ")[1:]:
            bound = re.search(r"^\.maxntid (\d+)", kernel, re.MULTILINE)
            names.append(kernel.partition("(")[0].strip())
            found.append(int(bound[1]) if bound else UNBOUNDED)
    return dict(zip(cuda_resources.readable(names), found, strict=True))


def nvcc_version(nvcc: str = "nvcc") -> str:
    told = subprocess.run([nvcc, "--version"], check=True, capture_output=True, text=True).stdout
    return f"nvcc {told.rpartition('V')[2].split()[0]}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser: argparse.ArgumentParser = command.options_of(NAME, __doc__ or "", draw=True)
    options, path = command.parse(parser, lambda _: NAME, arguments)
    if not options.draw:
        with tempfile.TemporaryDirectory() as folder:
            usages = cuda_resources.measure(cuda_resources.sources(), objects=Path(folder))
            rows = list(of_cuda(usages, launch_bounds(Path(folder)), nvcc_version()))
        rows += of_triton()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(each) + "\n" for each in rows))
    print_table(read(path), COLUMNS)


def read(path: Path = FILE) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


if __name__ == "__main__":
    command.program(NAME, main)
