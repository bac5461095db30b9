"""Runs the tests of each trainer, installs some of them in environments of their own for that, and prints what held.

    python tests/integrations/clients/run.py [CLIENT ...] [--environments FOLDER] [--record]

Run it with a Python that has the packages of the tests, and for which mind_kernels is compiled in the source tree, as
`make integrations` does: transformers, accelerate and TRL are tested there. The environments have the clients of
constraints-integrations.txt, and take mind_kernels from the tree.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[3]
TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(TESTS)]  # the former for results_table, which imports docs
import results_table  # noqa: E402

HERE = {
    "transformers": [
        f"test_fuse_{name}.py" for name in ("trainer", "processes", "compiled", "vision", "smollm2", "families")
    ],
    "accelerate": ["test_accelerate.py"],
    "trl": ["test_trl.py", "test_trl_gkd.py"],
}
"""The tests of the clients that the tests' own environment has."""


def requirements() -> dict[str, list[str]]:
    """The lines of each section of constraints-integrations.txt."""
    sections: dict[str, list[str]] = {}
    for line in (ROOT / "constraints-integrations.txt").read_text().splitlines():
        if line.startswith("["):
            section = sections.setdefault(line.strip("[]"), [])
        elif line and not line.startswith("#"):
            section.append(line)
    return sections


def environment(client: str, folder: Path) -> str:
    """The Python of the client's environment, which is made if the folder is new."""
    python = str(folder / "bin/python")
    done = folder / "installed"
    if done.exists():
        return python
    venv.create(folder, with_pip=True)
    sections = requirements()
    (itself, *others), common = sections[client], sections["all"]
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    for packages in (common, [*others, *common], ["--no-deps", itself]):
        subprocess.run([*pip, *packages], check=True)
    done.touch()
    return python


class Outcome(NamedTuple):
    """What a client's tests recorded if they passed, and the others' names."""

    recorded: list[dict[str, str | float]]
    failed: list[str]
    skipped: list[str]


def outcome(report: Path) -> Outcome:
    """Of the tests in a report of pytest."""
    found = Outcome([], [], [])
    for case in ElementTree.parse(report).iter("testcase"):
        missed = [child for child in case if child.tag in ("failure", "error", "skipped")]
        if not missed:
            found.recorded.extend(
                json.loads(p.get("value", "")) for p in case.iter("property") if p.get("name") == "ran"
            )
        for child in missed:
            names = found.skipped if child.tag == "skipped" else found.failed
            names.append(f"{case.get('name')}: {child.tag}: {child.get('message')}")
    return found


def test(client: str, scratch: Path, environments: Path) -> Outcome:
    """The outcome of the client's tests."""
    report = scratch / "report.xml"
    python = sys.executable if client in HERE else environment(client, environments / client)
    files = [str(TESTS / name) for name in HERE.get(client, [f"clients/test_{client}.py"])]
    command = [python, "-m", "pytest", "-o", "addopts=", "-q", "-W", "ignore", f"--junitxml={report}", *files]
    variables = {"OMP_NUM_THREADS": "1", "MIND_INTEGRATIONS": "1"}
    ran = subprocess.run(command, cwd=ROOT, env=os.environ | variables)
    if not report.exists():
        return Outcome([], [f"pytest ended with status {ran.returncode}"], [])
    return outcome(report)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    clients = [*HERE, *(name for name in requirements() if name != "all")]
    parser.add_argument("clients", nargs="*", metavar="CLIENT", help=f"of {', '.join(clients)}; all if none is named")
    parser.add_argument("--environments", type=Path, help="keep the environments here, and take those that are there")
    parser.add_argument(
        "--record", action="store_true", help="if all of a client's tests ran: to results.jsonl and README"
    )
    options = parser.parse_args()
    if unknown := [name for name in options.clients if name not in clients]:
        parser.error(f"unknown client {', '.join(unknown)}: expected some of {', '.join(clients)}")
    failed = []
    for client in options.clients or clients:
        with tempfile.TemporaryDirectory() as scratch:
            found = test(client, Path(scratch), options.environments or Path(scratch))
        for line in found.recorded:
            print(json.dumps(line))
        for name in [*found.failed, *found.skipped]:
            print(f"{client}: {name}")
        if found.failed or not found.recorded:
            failed.append(client)
        elif options.record and not found.skipped:
            results_table.replace(found.recorded)
    if failed:
        print(f"failed, or none of it ran: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
