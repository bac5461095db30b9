"""The tables that say what the project survived, which docs/tables.py writes: fuzzers, kills, mutations, long runs,
versions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from bench.measure import RESULTS, read_results
from docs.generated import table

REACHED = ("lines", "lines_reached", "branches", "branches_reached")


def rows_of(name: str) -> list[dict[str, Any]]:
    return read_results(RESULTS / f"{name}.jsonl")


def fuzz() -> str:
    """Sums over all starts, by tier and sanitizer."""

    def tier(row: Mapping[str, Any]) -> str:
        return row["tier"] + (f", sanitizer of {row['sanitizer']}" if row["sanitizer"] else "")

    sums = _of_starts(rows_of("fuzz"), tier)
    body = [[of, f"{calls:,}", f"{seconds / 3600:.1f}", str(findings)] for of, (calls, seconds, findings) in sums]
    return table(["tier", "calls", "hours", "findings"], body)


def guided() -> str:
    """Sums over all starts of the guided fuzzer, by parser; a start takes one."""
    rows = [row for row in rows_of("fuzz") if row["tier"] == "parsers, guided"]
    sums = _of_starts(rows, lambda row: "".join(row["calls"]))
    body = [[f"`{of}`", f"{inputs:,}", str(seconds // 60), str(findings)] for of, (inputs, seconds, findings) in sums]
    return table(["parser", "inputs", "minutes", "findings"], body)


def _of_starts(
    rows: Iterable[Mapping[str, Any]], of: Callable[[Mapping[str, Any]], str]
) -> list[tuple[str, list[int]]]:
    """The sums of calls, seconds and findings of the fuzzer's starts, by `of` a row, in order."""
    sums: dict[str, list[int]] = {}
    for row in rows:
        before = sums.get(of(row), [0, 0, 0])
        sums[of(row)] = [before[n] + row[name] for n, name in enumerate(("total", "seconds", "findings"))]
    return sorted(sums.items())


def chaos() -> str:
    """The disturbed runs of each command, and what came of them."""
    names = ("cases", "disturbed_starts", "by_itself", "error", "killed", "violations")
    body = [[row["command"], *(f"{row[name]:,}" for name in names)] for row in rows_of("chaos")]
    return table(["command", "runs", "disturbed starts", "ended well", "by an error", "killed", "violations"], body)


def mutation() -> str:
    """The share of the changes that tests noticed, by module."""
    body = []
    for row in sorted(rows_of("mutation"), key=lambda row: row["module"]):
        counted = row["tried"] - row["equivalent"]
        noticed = counted - row["survived"]
        share = f"{100 * noticed / max(1, counted):.0f} %"
        body.append([f"`{row['module']}`", f"{row['changes']:,}", str(row["tried"]), str(row["equivalent"]), share])
    return table(["module", "possible changes", "tried", "of these without an effect", "of the others noticed"], body)


def source_coverage() -> str:
    """Lines and branches that the tests reach, by the first two folders."""
    totals: dict[str, Counter[str]] = {}
    for row in rows_of("source_coverage"):
        folder = "/".join(row["source"].split("/")[:2])
        totals.setdefault(folder, Counter()).update({k: row[k] for k in REACHED})
    body = [
        [folder, f"{found['lines']:,}", _percent(found, "lines"), f"{found['branches']:,}", _percent(found, "branches")]
        for folder, found in sorted(totals.items())
    ]
    return table(["folder", "lines", "reached", "branches", "reached"], body)


def long_runs() -> str:
    """What a process used after a tenth of the calls and at the end; what a call took in the first and last tenth."""
    body = []
    for row in rows_of("long_runs"):
        samples, tenth = row["samples"], len(row["samples"]) // 10
        begin, end = samples[tenth], samples[-1]
        of_calls = (
            1e3 * (last["cpu_s"] - first["cpu_s"]) / (last["calls"] - first["calls"])
            for first, last in ((samples[0], begin), (samples[-1 - tenth], end))
        )
        used = (f"{begin[name]:,.0f}, {end[name]:,.0f}" for name in ("rss_mib", "files", "threads"))
        times = ", ".join(f"{time:.2f}" for time in of_calls)
        body.append([row["name"], f"{end['calls']:,.0f}", *used, times, ", ".join(row["grew"]) or "nothing"])
    return table(["operation, backend", "calls", "memory in MiB", "files", "threads", "ms per call", "grew"], body)


def _percent(found: Mapping[str, int], name: str) -> str:
    return f"{100 * found[f'{name}_reached'] / found[name]:.1f} %" if found[name] else "–"


def compatibility() -> str:
    names = ("python", "torch", "triton", "transformers", "trl", "peft", "numpy")
    body = [
        [*(row[name] or "–" for name in names), f"{row['passed']:,}", str(row["failed"] + row["error"])]
        for row in rows_of("compatibility")
    ]
    return table(["Python", "PyTorch", *names[2:], "tests passed", "failed"], body)
