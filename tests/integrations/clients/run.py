"""Installs each client in an environment of its own, runs its tests there, and prints a table of what held.

    python tests/integrations/clients/run.py [CLIENT ...] [--environments FOLDER]

Run it with a Python for which mind_kernels is compiled in the source tree (`make integrations`): the environments have
the clients of constraints-integrations.txt, and take mind_kernels from there.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[3]
TESTS = Path(__file__).resolve().parent
HEADER = ("trainer", "version", "lines", "what ran", "result: distance from the stock run")


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


def rows(client: str, report: Path) -> list[tuple[str, ...]]:
    """Of the tests that a report of pytest has: what they recorded, and those that did not pass."""
    found = []
    for case in ElementTree.parse(report).iter("testcase"):
        recorded = [p.get("value", "") for p in case.iter("property") if p.get("name") == "row"]
        failed = [child.tag for child in case if child.tag in ("failure", "error", "skipped")]
        row = tuple(recorded[0].split(" | ")) if recorded else (client, "", "", case.get("name", ""), "passed")
        if recorded or failed:
            found.append((*row[:-1], ", ".join(failed).upper()) if failed else row)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    clients = [name for name in requirements() if name != "all"]
    parser.add_argument("clients", nargs="*", metavar="CLIENT", help=f"of {', '.join(clients)}; all if none is named")
    parser.add_argument("--environments", type=Path, help="keep the environments here, and take those that are there")
    options = parser.parse_args()
    if unknown := [name for name in options.clients if name not in clients]:
        parser.error(f"unknown client {', '.join(unknown)}: expected some of {', '.join(clients)}")
    table, failures = [HEADER, ("---",) * len(HEADER)], []
    for client in options.clients or clients:
        with tempfile.TemporaryDirectory() as scratch:
            report = Path(scratch) / "report.xml"
            python = environment(client, (options.environments or Path(scratch)) / client)
            command = [python, "-m", "pytest", "-o", "addopts=", "-q", "-W", "ignore", f"--junitxml={report}"]
            ran = subprocess.run(
                [*command, str(TESTS / f"test_{client}.py")], cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}
            )
            found = rows(client, report) if report.exists() else []
        if ran.returncode or not found:
            failures.append(client)
        table += found
    for row in table:
        print("|", " | ".join(row), "|")
    if failures:
        print(f"failed: {', '.join(failures)}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
