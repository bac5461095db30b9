"""Kills the commands and feeds them with faults, starts them again, and checks that nothing is lost, bought twice or
broken: tests/chaos/cases.py says what.

    python -m tests.chaos [--commands train grade ...] [--runs 100] [--seed 0] [--output FILE] [--say]

A row per command: cases, each on a folder of its own with one or two disturbed starts; how these ended; what was
violated, with the seed of the first case and the command that repeats that case alone. Ends with status 1 if anything
was.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}

from bench.measure import add_results, print_table
from tests.chaos.cases import Outcome, benches
from tests.chaos.commands import COMMANDS

COLUMNS = ("command", "cases", "disturbed_starts", "by_itself", "error", "killed", "violations", "seed", "again")


def row_of(name: str, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The row of a command."""
    ended = sum((outcome.ended for outcome in outcomes), Counter())
    bad = [outcome for outcome in outcomes if outcome.violations]
    row = {"command": name, "first_seed": outcomes[0].seed, "cases": len(outcomes), "disturbed_starts": ended.total()}
    row |= {"by_itself": ended["by itself"], "error": ended["error"], "killed": ended["killed"]}
    row |= {"kinds": dict(Counter(one.kind for outcome in outcomes for one in outcome.disturbances))}
    row |= {"violations": sum(len(outcome.violations) for outcome in bad)}
    row |= {"seconds": round(sum(outcome.seconds for outcome in outcomes))}
    if bad:
        seed = bad[0].seed
        again = f"make chaos ARGS=\"--commands '{name}' --runs 1 --seed {seed} --say\""
        row |= {"seed": seed, "again": again, "what": sorted({text for one in bad for text in one.violations})}
    return row


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--commands", nargs="+", choices=COMMANDS, default=list(COMMANDS), metavar="COMMAND")
    parser.add_argument("--runs", type=int, default=100, help="cases of each command")
    parser.add_argument("--seed", type=int, default=0, help="of the first case; the others count on")
    parser.add_argument("--output", type=Path, help="a file of JSON lines, such as bench/results/chaos.jsonl")
    parser.add_argument("--say", action="store_true", help="print what each start printed")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what is mounted is unmounted
    rows = []
    with benches(options.commands) as each:
        for bench in each:
            took = bench.reference
            print(f"{bench.name}: undisturbed {took.seconds:.1f} s, {sum(took.operations)} operations", flush=True)
            outcomes = []
            for seed in range(options.seed, options.seed + options.runs):
                outcome = bench.case(seed)
                outcomes.append(outcome)
                told = "; ".join(map(str, outcome.disturbances))
                print(f"  {seed}: {told}: {dict(outcome.ended)}, {outcome.seconds:.1f} s", flush=True)
                for text in [*(outcome.said if options.say else []), *outcome.violations]:
                    print(f"    {text}", flush=True)
                if options.output is not None:  # after each case, since all of them take an hour
                    add_results([row_of(bench.name, outcomes)], options.output, "command")
            rows.append(row_of(bench.name, outcomes))
    print_table(rows, COLUMNS)
    return int(any(row["violations"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
