"""Fuzzes the operators of mind_kernels._cpp: each call equals its definition or raises, and stays within its tensors.

    python -m tests.fuzz --minutes 30 [--seed 0] [--operators gather_rows count]

Rounds of examples with new seeds, the operators in turn; ends with status 1 at the first finding, which hypothesis has
made small, or if public functions never call an operator, and prints how many calls there were. Under AddressSanitizer
(make fuzz) a read out of bounds is one too.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests.fuzz import calls
from tests.fuzz.operators import OPERATORS, REACHED

EXAMPLES = 200  # a round
ROUNDS = 5  # after which public functions have called every operator


def run(name: str, round_seed: int, examples: int = EXAMPLES) -> None:
    """Raises what the first failing example raises."""

    @seed(round_seed)
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(data=st.data())
    def one(data: st.DataObject) -> None:
        data.draw(OPERATORS[name]())

    one()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=0, help="of the first round")
    parser.add_argument("--operators", nargs="+", choices=OPERATORS, default=list(OPERATORS))
    options = parser.parse_args()
    end, counts = time.monotonic() + 60 * options.minutes, dict.fromkeys(options.operators, 0)
    for round_seed in itertools.count(options.seed):
        for name in options.operators:
            if time.monotonic() > end:
                print(f"no finding in {sum(counts.values())} calls, seeds {options.seed} to {round_seed}: {counts}")
                print(f"operators, as public functions call them: {dict(REACHED)}")
                missing = set(calls.operators()) - set(REACHED)
                if missing and counts.get("public_functions", 0) >= ROUNDS * EXAMPLES:
                    sys.exit(f"never called: {', '.join(sorted(missing))}")
                return
            print(f"round {round_seed}, {name}", flush=True)
            run(name, round_seed)
            counts[name] += EXAMPLES


if __name__ == "__main__":
    main()
