"""Which lines and branches of csrc/cpu, mind_kernels and mind the tests reach: a row per folder.

    python -m tests.source_coverage [--output bench/results] [PYTEST ARGUMENTS]

Runs the tests on a build of the CPU kernels that counts (in build/coverage, never installed), then two minutes of
random calls of the operators on the portable instruction set. Needs the package gcovr, and gcov of the compiler. Writes
source_coverage.jsonl, and what is not reached to build/coverage/missing.txt; ends with 1 if a test failed. Not counted:
CUDA kernels, which run in an emulator here, and processes that tests kill.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.measure import ROOT, print_table, write_results

BUILD = ROOT / "build" / "coverage"
OBJECTS = ROOT / "build" / "objects" / "coverage"
TESTS = ("-m", "pytest", "-n", "auto", "--dist", "loadfile", "--no-loadscope-reorder", "-q", "--cov", "--cov-report=")
FUZZ = ("-m", "tests.fuzz", "--minutes", "2", "--go-on")
COLUMNS = ("source", "lines", "lines_reached", "branches", "branches_reached")


def run(*words: str, **environment: str) -> int:
    print("+", *words, flush=True)
    return subprocess.run([sys.executable, *words], cwd=ROOT, env=os.environ | environment).returncode


def reached(arguments: list[str]) -> bool:
    """Builds, and runs what is to be counted; whether something failed there, which does not end it."""
    shutil.rmtree(OBJECTS, ignore_errors=True)
    if run("setup.py", "-q", "build_ext", "--variant", "coverage", "--build-lib", str(BUILD)):
        sys.exit("the kernels cannot be built")
    libraries = {"MIND_KERNELS_LIBRARIES": str(BUILD / "mind_kernels"), "OMP_NUM_THREADS": "1"}
    ended = run(*TESTS, *arguments, **libraries), run(*FUZZ, MIND_KERNELS_CPU_CAPABILITY="baseline", **libraries)
    return any(ended)


def of_python() -> Iterator[tuple[Path, dict[str, Any]]]:
    """Per file: counts, and which lines were not reached."""
    file = BUILD / "python.json"
    if run("-m", "coverage", "json", "-q", "-o", str(file)):
        sys.exit("the counts of the packages cannot be read")
    for name, found in json.loads(file.read_text())["files"].items():
        counts = found["summary"]
        yield (
            Path(name),
            {
                "lines": counts["num_statements"],
                "lines_reached": counts["covered_lines"],
                "branches": counts["num_branches"],
                "branches_reached": counts["covered_branches"],
                "missing": found["missing_lines"],
            },
        )


def of_kernels() -> Iterator[tuple[Path, dict[str, Any]]]:
    """The same for C++; a line counts once, whatever types and instruction sets it was compiled for."""
    file = BUILD / "kernels.json"
    words = ("--exclude-throw-branches", "--exclude-unreachable-branches", "--merge-mode-functions=merge-use-line-0")
    words = (*words, "--gcov-suspicious-hits-threshold", "0")  # a line of the product runs billions of times
    if run("-m", "gcovr", "-r", ".", "--filter", "csrc/", *words, "--json", str(file), str(OBJECTS)):
        sys.exit("the counts of csrc cannot be read")
    for found in json.loads(file.read_text())["files"]:
        lines, branches = Counter[int](), Counter[tuple[int, int]]()
        for line in found["lines"]:  # one per instance of a template
            if not line.get("gcovr/excluded"):
                number = line["line_number"]
                lines[number] += line["count"]
                branches.update({(number, place): one["count"] for place, one in enumerate(line["branches"])})
        yield (
            Path(found["file"]),
            {
                "lines": len(lines),
                "lines_reached": sum(count > 0 for count in lines.values()),
                "branches": len(branches),
                "branches_reached": sum(count > 0 for count in branches.values()),
                "missing": sorted(number for number, count in lines.items() if not count),
            },
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "bench")
    options, arguments = parser.parse_known_args()
    failed = reached(arguments)
    folders: dict[str, dict[str, Any]] = {}
    with (BUILD / "missing.txt").open("w") as missing:
        for path, counts in [*of_kernels(), *of_python()]:
            lines = counts.pop("missing")
            missing.writelines(f"{path}:{line}\n" for line in lines)
            total = folders.setdefault(str(path.parent), dict.fromkeys(counts, 0))
            for name, count in counts.items():
                total[name] += count
    rows = [{"source": folder, **counts} for folder, counts in sorted(folders.items())]
    print_table(rows, COLUMNS)
    write_results(rows, options.output / "source_coverage.jsonl")
    if failed:
        sys.exit("tests failed, or the fuzzer found something: see above")


if __name__ == "__main__":
    main()
