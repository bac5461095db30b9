"""Best-fit packing of a million lengths: the compiled packer beside its Python twin.

    python -m bench.packing [--repeats 5] [--items 1000000] [--output folder] [--overwrite]

Writes packing.jsonl.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from bench import command
from bench.measure import measure_time, print_table, write_results
from mind.batches.bin_packing import best_fit

NAME = "packing"
CAPACITY = 2048  # tokens


def make_lengths(distribution: str, items: int) -> np.ndarray:
    """(items,) int64: uniform on 1 to 1024, or like rationales (log-normal, median 150, at most 1024)."""
    random = np.random.default_rng(0)
    if distribution == "uniform":
        return random.integers(1, 1025, items)
    return np.clip(random.lognormal(np.log(150), 0.6, items), 1, 1024).astype(np.int64)


def check_equal(bins: dict[str, Any]) -> None:
    np.testing.assert_array_equal(bins["compiled"], bins["python"])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command.options_of(NAME, __doc__ or "")
    parser.add_argument("--repeats", type=command.count, default=5, help="timed calls (default 5)")
    parser.add_argument("--items", type=command.count, default=1_000_000, help="lengths (default a million)")
    options, file = command.parse(parser, lambda _: NAME, arguments)
    rows = []
    for distribution in ("uniform", "log-normal"):
        lengths = make_lengths(distribution, options.items)
        bins = int(best_fit(lengths, CAPACITY, implementation="compiled").max()) + 1
        timings = measure_time(
            {
                "compiled": lambda lengths=lengths: best_fit(lengths, CAPACITY, implementation="compiled"),
                "python": lambda lengths=lengths: best_fit(lengths, CAPACITY, implementation="python"),
            },
            gate=check_equal,
            repeats=options.repeats,
            warmup=1,
        )
        at_least = -(-int(lengths.sum()) // CAPACITY)  # bins that the tokens fill
        case = {
            "lengths": distribution,
            "items": options.items,
            "capacity": CAPACITY,
            "bins": bins,
            "at_least": at_least,
        }
        rows += [{**case, "packer": name, **timing.row()} for name, timing in timings.items()]
    print_table(rows, ["lengths", "items", "bins", "at_least", "packer", "median_ms", "p20_ms", "p80_ms"])
    write_results(rows, file)


if __name__ == "__main__":
    command.program(NAME, main)
