"""Kills the runner of a small experiment, or one of its runs, at random moments, and starts it again, until it is done;
then compares it with one that nothing interrupted.

    python tests/mind/experiment_kills.py [KILLS] [SEED]

Runner and runs are processes that are forked with PyTorch in them, which a start of Python would take six seconds to
load; like those of `mind experiment`, a run ends when its runner does.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from multiprocessing import connection
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]
forks = multiprocessing.get_context("forkserver")


def do_job(path: str, name: str) -> None:
    from mind.experiment.job import perform

    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
    perform(path, name)


def run_all(path: str, pids: str) -> None:
    from mind.experiment.folder import ExperimentFolder
    from mind.experiment.runner import Ending, run_experiment

    def place(job) -> Ending:
        # From here, where PyTorch is loaded and has not computed anything: nothing of a thread is lost.
        process = multiprocessing.get_context("fork").Process(target=do_job, args=(path, job.name))
        process.start()
        Path(pids, str(process.pid)).touch()
        process.join()
        Path(pids, str(process.pid)).unlink()
        return Ending("done") if process.exitcode == 0 else Ending("failed", f"exit code {process.exitcode}")

    run_experiment(ExperimentFolder(Path(path)), place, jobs=2)


def main(kills: int, seed: int) -> None:
    from small_experiment import here, write_plan
    from test_experiment import TUNED, result_of

    from mind.experiment.runner import left, prepare, run_experiment

    draw = random.Random(seed)
    place = Path(tempfile.mkdtemp())
    plan = write_plan(place, **TUNED | {"seeds": [3]})
    whole = prepare(str(plan), place / "whole", {})
    began = time.monotonic()
    run_experiment(whole, here(whole))
    length = time.monotonic() - began
    expected = result_of(whole)
    print(f"undisturbed: {length:.0f} s", flush=True)

    done = rounds = of_runs = 0
    while done < kills:
        folder = prepare(str(plan), place / f"killed-{rounds}", {})
        rounds += 1
        while left(folder.read_experiment()[0], folder):
            pids = Path(tempfile.mkdtemp(dir=place))
            runner = forks.Process(target=run_all, args=(str(folder.path), str(pids)))
            runner.start()
            if done < kills:
                runner.join(draw.uniform(0, length / 6))
                if runner.is_alive():
                    running = [int(file.name) for file in pids.iterdir()]
                    victim = draw.choice([runner.pid, *running]) if draw.random() < 0.7 else runner.pid
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(victim, signal.SIGKILL)
                        done += 1
                        of_runs += victim != runner.pid
                        print(f"kill {done}: {'the runner' if victim == runner.pid else 'a run'}", flush=True)
            runner.join()
        same = result_of(folder) == expected
        print(f"experiment {rounds}: {'identical' if same else 'DIFFERENT'}", flush=True)
        if not same:
            sys.exit(f"{folder.path} differs from {whole.path}")
    print(f"{done} kills, {of_runs} of them of runs, in {rounds} experiments: identical to the undisturbed one")
    shutil.rmtree(place)


if __name__ == "__main__":
    os.chdir(ROOT)
    os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", TQDM_DISABLE="1")
    os.environ.setdefault("MIND_CACHE", tempfile.mkdtemp())
    modules = ["torch", "mind.run.train", "mind.experiment.job", "mind.run.report", "matplotlib.pyplot"]
    forks.set_forkserver_preload(modules)
    main(*(int(word) for word in [*sys.argv[1:], *("20", "0")[len(sys.argv) - 1 :]]))
