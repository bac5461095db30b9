"""The short tables of bench/on_gpu.sh, from the results in a folder.

    python -m bench.tables folder

Of bench.linear_cross_entropy the first head alone is shown: the others are too many for a short table.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from bench import command, kernel_times, row_kernels, train_step
from bench.comparison.benchmark import Benchmark
from bench.comparison.heads import HEADS
from bench.linear_cross_entropy.__main__ import BENCHMARK as CROSS_ENTROPY
from bench.linear_mind_loss.__main__ import BENCHMARK as MIND_LOSS
from bench.linear_pairwise_jsd.__main__ import BENCHMARK as PAIRWISE_JSD
from bench.measure import print_table, read_results

LEFT_OUT = ("model", "time_of_eager", "loss_error", "p20_ms", "p80_ms", "threads", "attention")
"""Columns that the results have and the short table has not."""


def columns_of(benchmark: Benchmark) -> list[str]:
    return [column for column in benchmark.columns if column not in LEFT_OUT]


TABLES = {
    kernel_times.NAME: [column for column in kernel_times.COLUMNS if column != "host_ms"],
    row_kernels.NAME: [column for column in row_kernels.COLUMNS if column not in LEFT_OUT],
    **{benchmark.name: columns_of(benchmark) for benchmark in (PAIRWISE_JSD, MIND_LOSS)},
    train_step.NAME: [column for column in train_step.COLUMNS if column not in LEFT_OUT],
    CROSS_ENTROPY.name: columns_of(CROSS_ENTROPY),
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.tables", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    for name, columns in TABLES.items():
        if not (file := folder / f"{name}_cuda.jsonl").is_file():
            print(f"\n{name}: no results")
            continue
        rows = read_results(file)
        if name == CROSS_ENTROPY.name:
            rows = [row for row in rows if row["model"] == next(iter(HEADS))]
        print(f"\n{name}: {command.shown(file)}")
        print_table(rows, columns)


if __name__ == "__main__":
    main()
