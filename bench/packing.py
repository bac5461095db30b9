"""Best-fit packing of a million lengths: the compiled packer beside its Python twin.

python -m bench.packing
"""

from __future__ import annotations

from typing import Any

import numpy as np

from bench.measure import measure_time, print_table, write_results
from mind.batches.bin_packing import best_fit

ITEMS = 1_000_000
CAPACITY = 2048  # tokens


def make_lengths(distribution: str) -> np.ndarray:
    """(ITEMS,) int64: uniform on 1 to 1024, or like rationales (log-normal, median 150, at most 1024)."""
    random = np.random.default_rng(0)
    if distribution == "uniform":
        return random.integers(1, 1025, ITEMS)
    return np.clip(random.lognormal(np.log(150), 0.6, ITEMS), 1, 1024).astype(np.int64)


def check_equal(bins: dict[str, Any]) -> None:
    np.testing.assert_array_equal(bins["compiled"], bins["python"])


def main() -> None:
    rows = []
    for distribution in ("uniform", "log-normal"):
        lengths = make_lengths(distribution)
        bins = int(best_fit(lengths, CAPACITY, implementation="compiled").max()) + 1
        timings = measure_time(
            {
                "compiled": lambda lengths=lengths: best_fit(lengths, CAPACITY, implementation="compiled"),
                "python": lambda lengths=lengths: best_fit(lengths, CAPACITY, implementation="python"),
            },
            gate=check_equal,
            repeats=5,
            warmup=1,
        )
        at_least = -(-int(lengths.sum()) // CAPACITY)  # bins that the tokens fill
        case = {"lengths": distribution, "items": ITEMS, "capacity": CAPACITY, "bins": bins, "at_least": at_least}
        rows += [{**case, "packer": name, **timing.row()} for name, timing in timings.items()]
    print_table(rows, ["lengths", "items", "bins", "at_least", "packer", "median_ms", "p20_ms", "p80_ms"])
    write_results("packing", rows)


if __name__ == "__main__":
    main()
