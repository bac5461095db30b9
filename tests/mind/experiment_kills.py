"""Kills `mind experiment`, or one of its runs, at random moments and starts it again, until the experiment is whole;
then compares it with one that nothing interrupted. Runner and runs are the processes of the command line.

    python tests/mind/experiment_kills.py [KILLS] [SEED] [FILE]

FILE gets a line for each kill, once its experiment is whole, such as bench/results/experiment_kills.jsonl.
"""

from __future__ import annotations

import contextlib
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


LONGEST = 20
"""Seconds that a job, which takes ten, is left alone at most."""
PER_EXPERIMENT = 5
"""Kills of one experiment."""


def start(plan: Path, output: Path) -> psutil.Popen:
    command = [sys.executable, "-m", "mind", "experiment", str(plan), "--output", str(output), "--jobs", "2"]
    with output.with_suffix(".log").open("ab") as log:
        return psutil.Popen(command, cwd=ROOT, stdout=log, stderr=log)


def jobs_of(runner: psutil.Popen) -> dict[str, psutil.Process]:
    """Its processes by the names of their jobs."""
    found = {}
    with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
        for process in runner.children():
            words = process.cmdline()
            if "--job" in words:  # else it is about to become one
                found[words[words.index("--job") + 1]] = process
    return found


def done_in(output: Path) -> int:
    """How many jobs are done."""
    from mind.experiment.folder import ExperimentFolder
    from mind.experiment.jobs import every_job

    folder = ExperimentFolder(output)
    if not folder.experiment.exists():
        return 0
    plan, _ = folder.read_experiment()
    return sum(folder.done(job, plan) for job in every_job(plan))


def kill_one(runner: psutil.Popen, draw: random.Random) -> dict[str, Any] | None:
    """Kills the runner, or one of its jobs; None if it has ended. With the runner its jobs end, one that Python still
    loads as soon as it has begun."""
    try:
        jobs = jobs_of(runner)
        name = draw.choice(["the runner", *jobs])
        if name != "the runner":
            jobs[name].send_signal(signal.SIGKILL)
        else:
            runner.send_signal(signal.SIGKILL)
            runner.wait()
            _, alive = psutil.wait_procs(jobs.values(), timeout=60)
            assert not alive, f"{alive} goes on without its runner"
    except psutil.NoSuchProcess:
        return None
    return {"killed": name, "running": sorted(jobs)}


def kills_of(plan: Path, output: Path, kills: int, draw: random.Random) -> Iterator[dict[str, Any]]:
    """Starts the experiment until it is whole; kills so many times, if it lasts so long: at a random moment of a job,
    of the next one or of that after another one has ended."""
    while True:
        runner, disturbed = start(plan, output), False
        while kills and runner.poll() is None:
            more, seconds = draw.randrange(2), draw.uniform(0, LONGEST)
            ended = done_in(output)
            while runner.poll() is None and not (jobs_of(runner) and done_in(output) >= ended + more):
                time.sleep(0.1)
            try:
                runner.wait(seconds)
            except psutil.TimeoutExpired:
                killed = kill_one(runner, draw)
                if killed is not None:
                    kills, disturbed = kills - 1, True
                    yield {**killed, "jobs_done": done_in(output), "after_s": round(seconds, 2)}
        if runner.wait() == 0:
            return
        assert disturbed, output.with_suffix(".log").read_text()


def main(kills: int, seed: int, file: str | None) -> None:
    from small_experiment import TUNED, here, result_of, write_plan

    from bench.measure import write_results
    from mind.experiment.folder import ExperimentFolder
    from mind.experiment.runner import prepare, run_experiment

    draw, rows = random.Random(seed), []
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        plan = write_plan(place, **TUNED | {"seeds": [3]})
        whole = prepare(str(plan), place / "whole", {})
        run_experiment(whole, here(whole))
        expected = result_of(whole)
        print("the undisturbed one is there", flush=True)
        while len(rows) < kills:
            output = place / f"killed-{rows[-1]['experiment'] + 1 if rows else 1}"
            new = []
            for killed in kills_of(plan, output, min(kills - len(rows), PER_EXPERIMENT), draw):
                new.append({"experiment": int(output.name.partition("-")[2]), **killed})
                print(len(rows) + len(new), new[-1], flush=True)
            same = result_of(ExperimentFolder(output)) == expected
            print(f"{output.name}: {'identical' if same else 'DIFFERENT'}", flush=True)
            rows += [{**row, "identical": same} for row in new]
            if file is not None:
                write_results(rows, Path(file))
            if not same:
                sys.exit(f"{output} differs from {whole.path}")
    runners = sum(row["killed"] == "the runner" for row in rows)
    print(f"{len(rows)} kills, {runners} of the runner, in {rows[-1]['experiment']} experiments: all identical")


if __name__ == "__main__":
    os.chdir(ROOT)
    given = sys.argv[1:]
    os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", TQDM_DISABLE="1")
    with tempfile.TemporaryDirectory() as cache:
        os.environ.setdefault("MIND_CACHE", cache)
        kills, seed, *file = [*given, *("20", "0")[len(given) :]]
        main(int(kills), int(seed), file[0] if file else None)
