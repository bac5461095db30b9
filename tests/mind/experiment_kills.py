"""Kills `mind experiment`, or one of its runs, at random moments and starts it again, until the experiment is whole;
then compares it with one that nothing interrupted. Runner and runs are the processes of the command line.

    python tests/mind/experiment_kills.py [KILLS] [SEED] [FILE]

FILE gets a line for each kill, once all experiments came out the same, such as bench/results/experiment_kills.jsonl.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]


def start(plan: Path, output: Path) -> psutil.Popen:
    command = [sys.executable, "-m", "mind", "experiment", str(plan), "--output", str(output), "--jobs", "2"]
    with output.with_suffix(".log").open("ab") as log:
        return psutil.Popen(command, cwd=ROOT, stdout=log, stderr=log)


def jobs_of(runner: psutil.Popen) -> dict[str, psutil.Process]:
    """Its processes by the names of their jobs."""
    found = {}
    for process in runner.children():
        words = process.cmdline()
        if "--job" in words:  # else it is about to become one
            found[words[words.index("--job") + 1]] = process
    return found


def kill_one(runner: psutil.Popen, draw: random.Random) -> dict[str, Any] | None:
    """Kills the runner, or one of its jobs; None if it has ended. With the runner its jobs end."""
    try:
        jobs = jobs_of(runner)
        name = draw.choice(["the runner", *jobs])
        if name != "the runner":
            jobs[name].send_signal(signal.SIGKILL)
        else:
            runner.send_signal(signal.SIGKILL)
            runner.wait()
            _, alive = psutil.wait_procs(jobs.values(), timeout=10)
            assert not alive, f"{alive} goes on without its runner"
    except psutil.NoSuchProcess:
        return None
    return {"killed": name, "running": sorted(jobs)}


def kills_of(plan: Path, output: Path, kills: int, draw: random.Random, longest: float) -> Iterator[dict[str, Any]]:
    """Starts the experiment until it is whole; at most so many kills, each at most `longest` seconds after the one
    before or the start."""
    while True:
        runner = start(plan, output)
        while kills and runner.poll() is None:
            seconds = draw.uniform(0, longest)
            try:
                runner.wait(seconds)
            except psutil.TimeoutExpired:
                killed = kill_one(runner, draw)
                if killed is not None:
                    kills -= 1
                    yield {**killed, "after_s": round(seconds, 2)}
        if runner.wait() == 0:
            return


def main(kills: int, seed: int, file: str | None) -> None:
    from small_experiment import TUNED, result_of, write_plan

    from bench.measure import write_results
    from mind.experiment.folder import ExperimentFolder

    draw, rows, experiments, begun = random.Random(seed), [], 0, time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        plan = write_plan(place, **TUNED | {"seeds": [3]})
        assert start(plan, place / "whole").wait() == 0, (place / "whole.log").read_text()
        expected, seconds = result_of(ExperimentFolder(place / "whole")), time.monotonic() - begun
        print(f"undisturbed: {seconds:.0f} s", flush=True)
        while len(rows) < kills:
            output = place / f"killed-{experiments}"
            for row in kills_of(plan, output, min(kills - len(rows), 5), draw, seconds / 2):
                rows.append({"experiment": experiments, **row})
                print(len(rows), rows[-1], flush=True)
            assert result_of(ExperimentFolder(output)) == expected, f"experiment {experiments} differs"
            experiments += 1
            print(f"experiment {experiments}: identical to the undisturbed one", flush=True)
    runners = sum(row["killed"] == "the runner" for row in rows)
    print(f"{kills} kills, {runners} of the runner, in {experiments} experiments, all identical to the undisturbed one")
    if file is not None:
        write_results([{"seed": seed, **row, "identical": True} for row in rows], Path(file))


if __name__ == "__main__":
    os.chdir(ROOT)
    given = sys.argv[1:]
    os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", TQDM_DISABLE="1")
    with tempfile.TemporaryDirectory() as cache:
        os.environ.setdefault("MIND_CACHE", cache)
        main(*(int(word) for word in [*given[:2], *("20", "0")[len(given[:2]) :]]), *(given[2:] or [None]))
