"""Helpers of all benchmarks: times, peak memory, provenance, results as JSON lines, tables.

Times are wall-clock medians of providers called in turn, so that a slow minute of the machine falls on all of them.
"""

from __future__ import annotations

import ctypes
import datetime
import gc
import importlib.metadata
import json
import multiprocessing
import os
import pkgutil
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from bench.roofline import Rates

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
RESET_PEAK = "5"  # written to /proc/self/clear_refs: VmHWM starts again from VmRSS (proc(5))


@dataclass(frozen=True)
class Timing:
    """Milliseconds a call: the median, the 20th and the 80th percentile of `repeats` calls."""

    median_ms: float
    p20_ms: float
    p80_ms: float
    repeats: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Timing:
        milliseconds = [1e3 * second for second in seconds]
        several = milliseconds if len(milliseconds) > 1 else 2 * milliseconds
        fifths = statistics.quantiles(several, n=5, method="inclusive")
        return cls(statistics.median(milliseconds), fifths[0], fifths[3], len(milliseconds))

    def row(self) -> dict[str, float | int]:
        """The fields as columns of a result row."""
        return {name: round(value, 4) for name, value in asdict(self).items()}


def measure_time(
    providers: Mapping[str, Callable[[], Any]],
    *,
    gate: Callable[[dict[str, Any]], None] | None,
    repeats: int = 20,
    warmup: int = 3,
) -> dict[str, Timing]:
    """Times of every provider, interleaved; none is measured unless `gate` accepts what they return.

    A provider is a call with its inputs bound. `gate` gets name -> what the first call returned and raises where one is
    wrong; None where the caller has called and judged each one itself, since all results at once would not fit.
    `repeats` (at least 1) and `warmup` (at least 1, the gate's included) are calls a provider.
    """
    if repeats < 1 or warmup < 1:
        raise ValueError(f"repeats is {repeats} and warmup {warmup}: expected at least 1")
    if gate is not None:
        gate({name: call() for name, call in providers.items()})
    for _ in range(warmup - 1):
        for call in providers.values():
            call()
    seconds: dict[str, list[float]] = {name: [] for name in providers}
    for repeat in range(repeats):
        for name in _order(list(providers), repeat):
            seconds[name].append(_seconds(providers[name]))
    return {name: Timing.of(values) for name, values in seconds.items()}


def _order(names: list[str], repeat: int) -> list[str]:
    """Each name comes first, last and after each other one about as often: rotations, every second one reversed."""
    start = repeat // 2 % len(names)
    rotated = names[start:] + names[:start]
    return rotated[::-1] if repeat % 2 else rotated


def _seconds(call: Callable[[], Any]) -> float:
    _synchronize()
    start = time.perf_counter()
    result = call()
    _synchronize()
    elapsed = time.perf_counter() - start
    del result  # held until here: freeing it is not timed
    return elapsed


def _synchronize() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def peak_extra_mib(target: str, kwargs: Mapping[str, Any], *, device: str = "cpu", warmup: int = 1) -> float:
    """Peak memory of one call above what was held before it, in MiB, measured in a fresh process.

    On a CPU the peak of the resident set (Linux, /proc), good to about 1 MiB; on CUDA that of PyTorch's allocator.

    Args:
        target: "module:function"; function(**kwargs) builds the inputs and returns the call to measure.
        kwargs: picklable.
        device: "cpu", or "cuda" with or without an index.
        warmup: calls before the measured one, so that thread pools and compiled code are not counted.
    """
    give_back()
    with ProcessPoolExecutor(max_workers=1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_peak_here, target, dict(kwargs), device, warmup, torch.get_num_threads()).result()


def _peak_here(target: str, kwargs: dict[str, Any], device: str, warmup: int, threads: int) -> float:
    torch.set_num_threads(threads)
    return peak_extra_mib_here(pkgutil.resolve_name(target)(**kwargs), device=device, warmup=warmup)


def peak_extra_mib_here(call: Callable[[], Any], *, device: str, warmup: int = 1) -> float:
    """As `peak_extra_mib`, in this process: for CUDA, whose allocator counts exactly whatever ran before."""
    for _ in range(warmup):
        call()
    give_back()
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        result = call()
        torch.cuda.synchronize(device)
        peak = torch.cuda.max_memory_allocated(device)
    else:
        Path("/proc/self/clear_refs").write_text(RESET_PEAK)
        before = resident_bytes("VmRSS")
        result = call()
        peak = resident_bytes("VmHWM")
    del result
    return max(0, peak - before) / 2**20


def give_back() -> None:
    """What this process no longer uses is free for others, and for itself not there to be used again unseen."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def resident_bytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


SQUARE = {"cpu": 2048, "cuda": 16384}
"""Rows of the matrices by which the rates of a device are measured: they fill it."""


def measured_rates(dtype: torch.dtype, device: str) -> Rates:
    """Those of a product of large square matrices of random numbers, and of a copy of one: the median of five."""
    size = SQUARE[torch.device(device).type]
    a, b = torch.randn(2, size, size, device=device).to(dtype)
    out = torch.empty_like(a)
    calls = {"product": lambda: torch.mm(a, b, out=out), "copy": lambda: out.copy_(a)}
    found = measure_time(calls, gate=None, repeats=5, warmup=3)
    return Rates(2e-9 * size**3 / found["product"].median_ms, 2e-6 * a.nbytes / found["copy"].median_ms)


def free_bytes(device: str) -> int:
    """Memory of the device that a new tensor may take; what this process has freed is given back before."""
    if torch.device(device).type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    give_back()
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


def provenance() -> dict[str, Any]:
    """What a number depends on: device, threads, versions, commit ("-dirty" with uncommitted changes), time in UTC.

    Also the variables that tell glibc's malloc what to do with freed memory, if there are any.
    """
    malloc = {name: value for name, value in os.environ.items() if name.startswith("MALLOC_")}
    return ({"malloc": malloc} if malloc else {}) | {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "cpu": _cpu_model(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "python": platform.python_version(),
        "commit": _commit(),
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    if copied := os.environ.get("COMMIT"):  # of a copy of the files alone
        return copied
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True).stdout.strip() or None
    except OSError:  # no git
        return None


def write_results(rows: Iterable[Mapping[str, Any]], path: Path) -> None:
    """Replaces the file at `path`: one line per row, each with the provenance."""
    path.parent.mkdir(parents=True, exist_ok=True)
    origin = provenance()
    path.write_text("".join(json.dumps({**row, **origin}) + "\n" for row in rows))


def add_results(rows: Iterable[Mapping[str, Any]], path: Path, *keys: str) -> None:
    """Puts rows behind those of the file, each with the provenance.

    A former row with the values of a new one in all `keys` goes; without keys all stay.
    """
    origin = provenance()
    new = [{**row, **origin} for row in rows]
    replaced = [tuple(row[key] for key in keys) for row in new] if keys else []
    former = read_results(path) if path.exists() else []
    kept = [row for row in former if tuple(row[key] for key in keys) not in replaced]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in [*kept, *new]))


def read_results(path: Path) -> list[dict[str, Any]]:
    """The rows that `write_results` wrote."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def print_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """The rows as an aligned Markdown table; a missing value is a dash, and a column of them is left out."""
    columns = [column for column in columns if any(row.get(column) is not None for row in rows)]
    cells = [list(columns)] + [[_cell(row.get(column)) for column in columns] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    cells.insert(1, ["-" * width for width in widths])
    for line in cells:
        print("| " + " | ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) + " |")


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else str(value)
