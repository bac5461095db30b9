"""Runs the checks that take too long for each commit, one after the other, and writes a report of them.

    python tests/nightly.py [--only NAME ...] [--seed N] [--hours 6] [--output build/nightly]

A job that fails does not end the others, nor does one that hangs: its processes are killed after --hours, with status
-9. The output of each is in a file of its own. report.json and report.md say how each ended, and the last lines repeat
the commands of those that failed, with their seed.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
JOBS = {
    "tests": "{python} -m pytest -n auto --dist loadfile --no-loadscope-reorder -m 'nightly or not nightly'",
    "fuzz": "{python} -m tests.fuzz --minutes 30 --seed {seed}",
    "fuzz-public": "{python} -m tests.fuzz public --minutes 60 --seed {seed}",
    "fuzz-interpreter": "{python} -m tests.fuzz interpreter --minutes 20 --seed {seed}",
    "fuzz-refusals": "{python} -m tests.fuzz refusals --minutes 10 --seed {seed}",
    "fuzz-integrations": "{python} -m tests.fuzz integrations --minutes 20 --seed {seed}",
    "fuzz-parsers": "{python} -m tests.fuzz parsers --minutes 20 --seed {seed}",
    "fuzz-guided": "{python} -m tests.fuzz.guided --minutes 20 --seed {seed}",
    "fuzz-address": "env CAPABILITIES=best tests/sanitize/address.sh tests.fuzz --minutes 20 --seed {seed}",
    "address": "tests/sanitize/address.sh",
    "threads": "tests/sanitize/threads.sh --minutes 3 --operators public_functions --seed {seed}",
    "long-runs": "{python} -m tests.long_runs --output {output}",
    "mutation": "{python} -m tests.mutation --seed {seed} --output {output}/mutation.jsonl",
    "chaos": "{python} -m tests.chaos --runs 100 --seed {seed} --output {output}/chaos.jsonl",
    "kills": "{python} tests/mind/experiment_kills.py 20 {seed}",
    "install-matrix": "{python} tests/install_matrix.py",
    "integrations": "{python} tests/integrations/clients/run.py",
}
"""By name, in this order: what a shell is told in the root of the repository."""


@dataclass(frozen=True)
class Ended:
    job: str
    command: str
    seed: int
    status: int
    seconds: float
    log: str


def command_of(job: str, seed: int, folder: Path) -> str:
    return JOBS[job].format(python=shlex.quote(sys.executable), seed=seed, output=shlex.quote(str(folder)))


def run(job: str, seed: int, folder: Path, hours: float) -> Ended:
    command, log = command_of(job, seed, folder), folder / f"{job}.log"
    environment = {"OMP_NUM_THREADS": "1", "PYTHON": sys.executable} | os.environ
    begin = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            shell=True,
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status = process.wait(timeout=3600 * hours)
        except BaseException as error:  # what the job has started must not go on, also after Ctrl-C
            os.killpg(process.pid, signal.SIGKILL)
            status = process.wait()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
    return Ended(job, command, seed, status, round(time.monotonic() - begin, 1), log.name)


def page(found: Sequence[Ended]) -> str:
    """The report as Markdown."""
    rows = [
        f"| {one.job} | {'passed' if one.status == 0 else f'status {one.status}'} | {one.seconds / 60:.1f} |"
        for one in found
    ]
    return "\n".join(["| job | result | minutes |", "|---|---|---|", *rows, "", *repeats(found)]) + "\n"


def repeats(found: Iterable[Ended]) -> list[str]:
    return [f"{one.job} failed, see {one.log}; again: `{one.command}`" for one in found if one.status]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=JOBS, default=list(JOBS))
    parser.add_argument("--seed", type=int, default=int(time.time()) // 86400, help="default: the day")
    parser.add_argument("--hours", type=float, default=6, help="of a job, at most (default 6)")
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "nightly")
    options = parser.parse_args(arguments)
    options.output = options.output.resolve()  # the jobs run in the root of the repository
    options.output.mkdir(parents=True, exist_ok=True)
    found: list[Ended] = []
    for job in options.only:
        print(f"{job}: {command_of(job, options.seed, options.output)}", flush=True)
        found.append(run(job, options.seed, options.output, options.hours))
        (options.output / "report.json").write_text(json.dumps([asdict(one) for one in found], indent=2) + "\n")
        (options.output / "report.md").write_text(page(found))
    print(page(found), end="")
    sys.exit(any(one.status for one in found))


if __name__ == "__main__":
    main()
