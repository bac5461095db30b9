"""Where the time of a loss goes, forward and backward: which kernel took how long, and when the host waited.

    python -m bench.kernel_times [--losses linear_cross_entropy] [--device cpu] [--rows 256] [--top 12] [--repeats 5]
        [--minutes 8] [--output folder] [--overwrite]

For each backend here, and for eager PyTorch, in the first case of the loss's benchmark: on CUDA kernels, on a CPU
operators, by torch.profiler in a call of its own. A first row per loss has

    wall_ms   the median call, until the device is done
    host_ms   of which the host had returned after so long: if that is all of it, the device waits for the host
    busy_ms   the sum over kernels, of those that are not listed too
    waits     places in which the host waited for the device, and how often (torch.cuda.set_sync_debug_mode)

Writes kernel_times.jsonl (CUDA: _cuda).
"""

from __future__ import annotations

import argparse
import pkgutil
import statistics
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from bench import command
from bench.comparison.benchmark import Benchmark
from bench.comparison.command import DTYPES
from bench.comparison.heads import REAL
from bench.comparison.provider import step
from bench.measure import print_table, write_results
from mind.display import one_line

NAME = "kernel_times"
LOSSES = ("linear_cross_entropy", "linear_pairwise_jsd", "linear_mind_loss")
COLUMNS = ("loss", "provider", "kernel", "launches", "ms", "wall_ms", "host_ms", "busy_ms", "waits", "note")


def providers_of(benchmark: Benchmark, device: str) -> list[str]:
    """Eager PyTorch and ours, each backend by its name."""
    ours = [name for name, provider in benchmark.providers.items() if provider.backend not in (None, "auto")]
    runs = [name for name in ours if benchmark.providers[name].tensors in ("any", device)]
    return [benchmark.eager, *(name for name in runs if not benchmark.providers[name].forward)]


def first_case(benchmark: Benchmark, device: str, rows: int | None) -> dict[str, Any]:
    sizes = {
        name: min(size.cuda[0] if device == "cuda" else size.cpu[0], rows or 1 << 62)
        for name, size in benchmark.sizes.items()
    }
    model = benchmark.cuda_models[0] if device == "cuda" else REAL
    return {"model": model, **sizes, "dtype": getattr(torch, DTYPES[device]), "device": device, "data": None}


def timed(call: Callable[[], Any], device: str, repeats: int) -> dict[str, float]:
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    found = []
    for _ in range(repeats):
        wait()
        start = time.perf_counter()
        result = call()
        host = time.perf_counter() - start
        wait()
        found.append((time.perf_counter() - start, host))
        del result
    wall, host = (statistics.median(values) for values in zip(*found, strict=True))
    return {"wall_ms": round(1e3 * wall, 3), "host_ms": round(1e3 * host, 3)}


def waits(call: Callable[[], Any], device: str) -> str:
    """Such as "head.py:40 12", the innermost line of Python and how often."""
    if device != "cuda":
        return ""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            call()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    places = Counter(f"{warning.filename.rpartition('/')[2]}:{warning.lineno}" for warning in found)
    return ", ".join(f"{place} {count}" for place, count in places.most_common())


def kernels(call: Callable[[], Any], device: str) -> list[dict[str, Any]]:
    """Each kernel with its launches and milliseconds, the longest first."""
    activities = [ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * (device == "cuda")]
    with profile(activities=activities) as found:
        call()
        if device == "cuda":
            torch.cuda.synchronize()
    on_device = [event for event in found.key_averages() if str(event.device_type).endswith(device.upper())]
    taken = "self_device_time_total" if device == "cuda" else "self_cpu_time_total"
    rows = [
        {"kernel": event.key, "launches": event.count, "ms": round(getattr(event, taken) / 1e3, 4)}
        for event in on_device
    ]
    return sorted(rows, key=lambda row: -row["ms"])


def measure(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    deadline = time.monotonic() + 60 * options.minutes
    for loss in options.losses:
        benchmark: Benchmark = pkgutil.resolve_name(f"bench.{loss}.__main__:BENCHMARK")
        case = first_case(benchmark, options.device, options.rows)
        inputs = benchmark.load(**case)
        for name in providers_of(benchmark, options.device):
            labels = {"loss": loss, **benchmark.labels(case), "provider": name}
            if reason := benchmark.providers[name].reason_absent(inputs):
                yield {**labels, "note": f"not run: {reason}"}
            elif time.monotonic() > deadline:
                yield {**labels, "note": f"not run: {options.minutes:g} minutes are over"}
            else:
                yield from of_provider(benchmark, name, inputs, labels, options)


def of_provider(
    benchmark: Benchmark, name: str, inputs: Any, labels: dict[str, Any], options: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    call = step(benchmark.providers[name], inputs)
    try:
        for _ in range(2):
            call()
    except Exception as error:  # as in other benchmarks: the rest is measured
        traceback.print_exc()
        yield {**labels, "note": f"not run: {type(error).__name__}: {one_line(str(error), 200)}", "fault": True}
        return
    times = timed(call, options.device, options.repeats)
    found = kernels(call, options.device)
    busy = round(sum(row["ms"] for row in found), 3)
    yield {**labels, "kernel": "all", **times, "busy_ms": busy, "waits": waits(call, options.device)}
    for row in found[: options.top]:
        yield {**labels, **row}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command.options_of(NAME, __doc__ or "", minutes="no backend starts later than this")
    parser.add_argument("--losses", nargs="+", choices=LOSSES, default=LOSSES)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rows", type=command.count, help="rows and groups, at most; default: those of the benchmark")
    parser.add_argument("--top", type=command.count, default=12, help="kernels that are listed (default 12)")
    parser.add_argument("--repeats", type=command.count, default=5, help="timed calls (default 5)")
    options, file = command.parse(parser, lambda o: NAME + "_cuda" * (o.device == "cuda"), arguments)
    rows = []
    for row in measure(options):
        rows.append(row)
        write_results(rows, file)  # again and again: a run that is stopped keeps what it has
    print_table([{**row, "kernel": row.get("kernel", "")[:60]} for row in rows], COLUMNS)
    if faults := [f"{row['provider']}: {row['note']}" for row in rows if "fault" in row]:
        raise AssertionError("; ".join(faults))


if __name__ == "__main__":
    command.program(NAME, main)
