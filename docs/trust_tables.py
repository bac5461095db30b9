"""The tables that say what the project survived, which docs/tables.py writes: fuzzers, kills, versions."""

from __future__ import annotations

from collections import Counter
from typing import Any

from bench.measure import RESULTS, read_results
from docs.generated import table


def rows_of(name: str) -> list[dict[str, Any]]:
    return read_results(RESULTS / f"{name}.jsonl")


def fuzz() -> str:
    """Sums over all starts, by tier and sanitizer."""
    calls, seconds, findings = Counter[str](), Counter[str](), Counter[str]()
    for row in rows_of("fuzz"):
        of = row["tier"] + (f", sanitizer of {row['sanitizer']}" if row["sanitizer"] else "")
        calls[of] += row["total"]
        seconds[of] += row["seconds"]
        findings[of] += row["findings"]
    body = [[of, f"{calls[of]:,}", f"{seconds[of] / 3600:.1f}", str(findings[of])] for of in sorted(calls)]
    return table(["tier", "calls", "hours", "findings"], body)


def chaos() -> str:
    """The disturbed runs of each command, and what came of them."""
    names = ("cases", "disturbed_starts", "by_itself", "error", "killed", "violations")
    body = [[row["command"], *(f"{row[name]:,}" for name in names)] for row in rows_of("chaos")]
    return table(["command", "runs", "disturbed starts", "ended well", "by an error", "killed", "violations"], body)


def compatibility() -> str:
    names = ("python", "torch", "triton", "transformers", "trl", "peft", "numpy")
    body = [
        [*(row[name] or "–" for name in names), f"{row['passed']:,}", str(row["failed"] + row["error"])]
        for row in rows_of("compatibility")
    ]
    return table(["Python", "PyTorch", *names[2:], "tests passed", "failed"], body)
