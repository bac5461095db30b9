"""Changes modules at one place at a time and sees whether their tests notice.

    python -m tests.mutation [--modules NAME ...] [--sample 60] [--seed 0] [--output build/mutation.jsonl]

A change that no test notices survives. Either a test is missing, or the changed code computes the same: equivalent.json
lists those with the reason, and they do not count. Each change is tried in a child of a process that has imported and
collected the module's tests, so that trying one takes as long as running them. Processes that a test starts import the
changed module.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.mutation.changes import Mutant, mutants
from tests.mutation.modules import MODULES
from tests.mutation.swap import swap

ROOT = Path(__file__).resolve().parent.parent.parent
LEAST = 90.0
"""Percent of a module's changes that must be noticed; with less the program ends with 1."""
BELOW = 3
BEFORE_TESTS, NOT_TAKEN = 70, 71
"""Statuses of a child that failed before its tests, and of one whose module cannot be changed in this way."""
EQUIVALENT = Path(__file__).with_name("equivalent.json")
SITE = Path(__file__).with_name("site")
OPTIONS = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:randomly", "-m", "not nightly"]


def run_tests(tests: Sequence[str], mutant: Mutant | None, name: str, path: Path, limit_s: float) -> str:
    """ "noticed", "too slow" or "survived", in a child process."""
    with tempfile.NamedTemporaryFile("w", suffix=".py") as changed:
        if mutant is not None:
            changed.write(ast.unparse(mutant.tree))
            changed.flush()
        return _run_tests(tests, mutant, name, path, Path(changed.name), limit_s)


def _run_tests(
    tests: Sequence[str], mutant: Mutant | None, name: str, path: Path, changed: Path, limit_s: float
) -> str:
    child = os.fork()
    if child == 0:
        status = BEFORE_TESTS
        try:
            _be_silent()
            os.setsid()
            import pytest

            if mutant is not None:
                _change_processes_too(name, path, changed)
            if mutant is None or swap(name, str(path), mutant.tree, mutant.where):
                status = int(pytest.main([*OPTIONS, *tests]))
            else:
                status = NOT_TAKEN
        except ImportError:  # of the changed module: no test would begin
            status = 2
        finally:
            os._exit(status)
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return _outcome(os.waitstatus_to_exitcode(status), mutant, path)
        time.sleep(0.01)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "too slow"


def _change_processes_too(name: str, path: Path, changed: Path) -> None:
    """Processes that a test starts import the module from the file `changed`."""
    os.environ["MUTANT"] = os.pathsep.join((name, str(path), str(changed)))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(SITE), os.environ.get("PYTHONPATH"))))


def _outcome(status: int, mutant: Mutant | None, path: Path) -> str:
    if status == NOT_TAKEN and mutant is not None and not mutant.where:
        return "equivalent"  # all constants are as before
    if status in (BEFORE_TESTS, NOT_TAKEN):
        told = "no change" if mutant is None else f"{path.name}:{mutant.line}: {mutant.change}"
        sys.exit(f"{told}: the child ended with {status}, before its tests")
    return "survived" if status == 0 else "noticed"


def _be_silent() -> None:
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(nothing, stream)


def source_of(name: str) -> tuple[Path, str]:
    path = Path(importlib.import_module(name).__file__ or "")
    return path, path.read_text()


def try_module(name: str, sample: int, seed: int) -> dict:
    """What became of the changes, of which `sample` are drawn if there are more."""
    import pytest

    tests = [str(ROOT / test) for test in MODULES[name]]
    with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing):
        collected = pytest.main([*OPTIONS, "--collect-only", *tests])
    if collected != 0:
        sys.exit(f"{name}: its tests cannot be collected")
    path, source = source_of(name)
    begin = time.monotonic()
    if run_tests(tests, None, name, path, 600) != "survived":
        sys.exit(f"{name}: its tests fail without any change")
    limit = 10 + 4 * (time.monotonic() - begin)
    known = {(one["module"], one["code"], one["change"]) for one in json.loads(EQUIVALENT.read_text())}
    drawn = list(mutants(source))
    total, lines = len(drawn), source.splitlines()
    if len(drawn) > sample:
        drawn = sorted(random.Random(f"{name} {seed}").sample(drawn, sample), key=lambda one: one.line)
    counts = {"noticed": 0, "too slow": 0, "survived": 0, "equivalent": 0}
    survivors = []
    for mutant in drawn:
        code = lines[mutant.line - 1].strip()
        same = (name, code, mutant.change) in known
        result = "equivalent" if same else run_tests(tests, mutant, name, path, limit)
        counts[result] += 1
        if result == "survived":
            survivors.append({"line": mutant.line, "code": code, "change": mutant.change})
            print(f"  {path.relative_to(ROOT)}:{mutant.line}: {mutant.change}: {code}", flush=True)
    return {"module": name, "changes": total, "tried": len(drawn), "seed": seed, **counts, "survivors": survivors}


def score(found: dict) -> float:
    """The share of the changes that compute something else and were noticed, in percent."""
    caught = found["noticed"] + found["too slow"]
    return 100 * caught / max(1, caught + found["survived"])


def report(name: str, options: argparse.Namespace) -> None:
    found = try_module(name, options.sample, options.seed)
    # Imports triton, which reads TRITON_INTERPRET then.
    from bench.measure import add_results

    add_results([found], options.output, "module")
    print(f"{name}: {score(found):.0f} % of {found['tried'] - found['equivalent']} noticed", flush=True)
    sys.exit(0 if score(found) >= LEAST else BELOW)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--modules", nargs="+", choices=MODULES, default=list(MODULES))
    parser.add_argument("--sample", type=int, default=60, help="changes per module, drawn at random")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "mutation.jsonl")
    options = parser.parse_args()
    os.environ |= {
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "TRITON_INTERPRET": "1",
        "MIND_KERNELS_TUNING": "none",
    }
    below: list[str] = []
    for name in options.modules:
        # In a child of its own: what one module's tests import does not stay for the next one's.
        child = multiprocessing.get_context("fork").Process(target=report, args=(name, options))
        child.start()
        child.join()
        status = child.exitcode
        if status not in (0, BELOW):
            sys.exit(f"{name}: not tried to the end")
        below += [name] if status == BELOW else []
    if below:
        sys.exit(f"below {LEAST:.0f} %: {', '.join(below)}")


if __name__ == "__main__":
    main()
