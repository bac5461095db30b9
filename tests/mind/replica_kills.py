"""Kills one process of `mind train` in several, at random moments, and goes on with the run, in as many or another
number of processes, until it is whole; then compares it with one that nothing interrupted.

    python tests/mind/replica_kills.py [KILLS] [SEED] [FILE] [SHARD]

After a kill the others must end by themselves or when a launcher tells them to, as torchrun does, and one of them must
say why. FILE gets a line for each kill, such as bench/results/replica_kills.jsonl. SHARD is that of
`--train.shard`: none (replicas) or fsdp2.
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

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

STEPS = 8
PER_RUN = 5
"""Kills of one run."""
MOST_S = 60
"""Seconds from a kill to the end of the others, on a machine that is busy."""


def words(output: str, kills: int, shard: str) -> list[str]:
    """The command that begins the run, or goes on with it."""
    from test_replicas import words_of

    if kills:
        return ["train", "--output", output, "--resume"]
    return words_of(output, "--train.max-steps", str(STEPS), "--train.save-steps", "1", "--train.shard", shard)


def kills_of(place: Path, output: str, kills: int, shard: str, draw: random.Random) -> Iterator[dict[str, Any]]:
    """Starts the run until it is whole; kills a process of it so many times, if it lasts so long."""
    from launches import launch

    folder, made, metrics = place / output, 0, place / output / "metrics.jsonl"
    while True:
        begun = (folder / "config.json").exists()
        processes, launcher = draw.choice((2, 3)), draw.random() < 0.5
        started = launch(place, words(output, int(begun), shard), processes)
        if made < kills:
            lines = count(metrics) if begun else 0
            until, more = draw.randrange(STEPS // 2), draw.uniform(0, 1)
            while alive(started) and (not metrics.exists() or count(metrics) < lines + until):
                time.sleep(0.02)
            time.sleep(more)
            rank = draw.randrange(processes)
            if alive(started):
                os.kill(started.processes[rank].pid, signal.SIGKILL)
                killed = time.monotonic()
                statuses = started.wait(launcher=launcher)
                if statuses[rank] == -signal.SIGKILL:  # else it had ended
                    took = time.monotonic() - killed
                    check(statuses, rank, started, took)
                    made += 1
                    yield {
                        "processes": processes,
                        "killed": rank,
                        "launcher": launcher,
                        "after_lines": count(metrics),
                        "others_ended_s": round(took, 2),
                    }
                    continue
        statuses = started.wait()
        assert statuses == [0] * processes, started.said()
        return


def check(statuses: list[int], rank: int, started: Any, took: float) -> None:
    """The others have ended, soon, and one has said why."""
    from mind.cli.launch import LOST, TOLD_TO_END

    others = [status for number, status in enumerate(statuses) if number != rank]
    assert all(status == 2 for status in others), (statuses, started.said())
    assert took < MOST_S, took
    errors = started.errors()
    assert len(errors) == 1 and any(text in errors[0] for text in (LOST, TOLD_TO_END)), started.said()
    assert not any("Traceback" in said for said in started.said()), started.said()


def alive(started: Any) -> bool:
    return all(process.exitcode is None for process in started.processes)


def count(metrics: Path) -> int:
    return metrics.read_text().count("\n") if metrics.exists() else 0


def main(kills: int, seed: int, file: str | None, shard: str = "none") -> None:
    from launches import launch
    from test_replicas import assert_same_run, write_questions

    from bench.measure import write_results

    draw, found = random.Random(seed), []
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        write_questions(place)
        whole = launch(place, words("whole", 0, "none"), 1)
        assert whole.wait() == [0], whole.said()
        print("the undisturbed one is there", flush=True)
        while len(found) < kills:
            output = f"killed-{len(found)}"
            for killed in kills_of(place, output, min(PER_RUN, kills - len(found)), shard, draw):
                found.append({"seed": seed, "shard": shard, "run": output, **killed})
                print(len(found), found[-1], flush=True)
            assert_same_run(place / "whole", place / output, ["metanet.safetensors"], divided=shard != "none")
            print(f"{output}: the losses of the undisturbed one", flush=True)
        if file is not None:
            write_results(found, Path(file))
    print(f"{len(found)} kills: the others ended within {max(row['others_ended_s'] for row in found)} s, same losses")


if __name__ == "__main__":
    os.chdir(ROOT)
    given = sys.argv[1:]
    kills, seed, *rest = [*given, *("10", "0")[len(given) :]]
    main(int(kills), int(seed), *rest) if rest else main(int(kills), int(seed), None)
