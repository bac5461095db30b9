"""A pytest plugin that notes which backends the tests ran, and where: how many passed, and how many failed.

    RAN=file python -m pytest -p tests.ran tests/kernels/test_row_kernels.py

It adds a JSON line per backend and device to the file. bench/on_gpu.sh uses it, for tests_cuda.jsonl in its folder;
tests/front_page.py reads a file of this name in bench/results.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.measure import provenance
from mind_kernels.backend import BACKENDS

FILE = "RAN"
"""The environment variable that names the file."""
_counts: dict[str, Counter[tuple[str, str]]] = {"passed": Counter(), "failed": Counter()}


def places_of(parameters: Mapping[str, Any]) -> set[tuple[str, str]]:
    """The backends that a test's parameters name, as texts or as implementations (tests/kernels), each with its device
    type: that of the parameter `device` if there is one; else a GPU only for what computes nowhere else."""
    gpu = torch.cuda.is_available()
    found = set()
    for value in parameters.values():
        name = getattr(value, "backend", value)
        if isinstance(name, str) and name in BACKENDS:
            own = (
                "cuda" if gpu and BACKENDS[name].tensors == "cuda" and not getattr(value, "emulated", False) else "cpu"
            )
            found.add((name, str(parameters.get("device", own)).partition(":")[0]))
    return found


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo) -> Iterator[None]:
    report = yield
    parameters = getattr(getattr(item, "callspec", None), "params", {})
    if report.failed or (report.when == "call" and report.passed):
        _counts[report.outcome].update(places_of(parameters))
    return report


def pytest_sessionfinish() -> None:
    if not (file := os.environ.get(FILE)):
        return
    facts = provenance()
    names = {"cpu": "cpu", "cuda": facts["device"] if torch.cuda.is_available() else "cuda"}
    lines = []
    for backend, device in sorted(_counts["passed"] | _counts["failed"]):
        counts = {outcome: count[backend, device] for outcome, count in _counts.items()}
        lines.append({**facts, "backend": backend, "device": names[device], **counts})
    with Path(file).open("a") as out:  # test files may run side by side
        out.write("".join(json.dumps(line) + "\n" for line in lines))
