"""What a start of the fuzzer did, as a row of a file such as bench/results/fuzz.jsonl."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from mind_kernels import extension


def keep(file: Path, tier: str, seeds: tuple[int, int], calls: Mapping[str, int], spent: float, findings: int) -> None:
    """Adds the row, with the seconds spent; SANITIZER is set by the scripts in tests/sanitize."""
    from bench.measure import add_results  # imports triton, and the tier `interpreter` has to choose how first

    row = {
        "tier": tier,
        "sanitizer": os.environ.get("SANITIZER"),
        "instructions": None if tier.startswith("parsers") or extension.unavailable("cpp") else extension.capability(),
        "first_seed": seeds[0],
        "last_seed": seeds[1],
        "calls": dict(sorted(calls.items())),
        "total": sum(calls.values()),
        "seconds": round(spent),
        "findings": findings,
    }
    add_results([row], file)
