"""The command line of a loss benchmark: options, cases one after another, results, table and picture."""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bench import command
from bench.comparison.benchmark import Benchmark, measure_case
from bench.comparison.heads import HEADS, REAL
from bench.comparison.picture import draw
from bench.measure import measured_rates, print_table, read_results, write_results

DTYPES = {"cpu": "float32", "cuda": "bfloat16"}
"""Of a run without options."""


def _results(benchmark: Benchmark, options: argparse.Namespace) -> str:
    """linear_cross_entropy, linear_cross_entropy_cuda, linear_cross_entropy_bfloat16, ..."""
    other_dtype = options.dtype not in (None, DTYPES[options.device])
    parts = [benchmark.name, "cuda" * (options.device == "cuda"), (options.dtype or "") * other_dtype]
    return "_".join(filter(None, parts))


def parse(
    benchmark: Benchmark, description: str, arguments: Sequence[str] | None = None
) -> tuple[Benchmark, argparse.Namespace, Path]:
    """The benchmark with the providers that the options bring, the options, and the file of the results."""
    parser = command.options_of(benchmark.name, description, draw=True, minutes="no case starts later than this")
    parser.add_argument(
        "--models", nargs="+", choices=HEADS, help=f"default: {REAL}, on CUDA {' '.join(benchmark.cuda_models)}"
    )
    for name, size in benchmark.sizes.items():
        cpu, cuda = (" ".join(map(str, values)) for values in (size.cpu, size.cuda))
        parser.add_argument(
            f"--{name}", nargs="+", type=command.count, help=f"{size.letter}; default: {cpu}, on CUDA {cuda}"
        )
    parser.add_argument(
        "--providers",
        nargs="+",
        metavar="NAME",
        help="default: by device. One of your own is module:function, which takes the inputs of "
        f"bench/{benchmark.name}/inputs.py and returns the loss. There are: {', '.join(benchmark.providers)}",
    )
    parser.add_argument("--dtype", choices=sorted(set(DTYPES.values())), help="default: float32, on CUDA bfloat16")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--data",
        type=command.readable_file,
        help="questions whose rationales give the real rows (`mind data import`); default: word problems",
    )
    parser.add_argument("--repeats", type=command.count, default=5, help="timed calls of a provider (default 5)")
    options, file = command.parse(parser, lambda options: _results(benchmark, options), arguments)
    cuda = options.device == "cuda"
    options.models = options.models or (list(benchmark.cuda_models) if cuda else [REAL])
    for name, size in benchmark.sizes.items():
        setattr(options, name, getattr(options, name) or (size.cuda if cuda else size.cpu))
    options.providers = options.providers or benchmark.defaults(options.device)
    options.dtype = getattr(torch, options.dtype or DTYPES[options.device])
    try:
        return benchmark.with_own(options.providers), options, file
    except (ImportError, AttributeError, ValueError) as error:
        parser.error(f"--providers: {error}")


def cases(benchmark: Benchmark, options: argparse.Namespace) -> list[dict[str, Any]]:
    """The arguments of benchmark.load, the most telling first."""
    shared = {"dtype": options.dtype, "device": options.device, "data": options.data}
    return [
        {"model": model, **dict(zip(benchmark.sizes, sizes, strict=True)), **shared}
        for sizes in itertools.product(*(getattr(options, name) for name in benchmark.sizes))
        for model in options.models
    ]


def main(benchmark: Benchmark, description: str, arguments: Sequence[str] | None = None) -> None:
    """Runs the benchmark as the arguments say, those of the process by default."""
    benchmark, options, path = parse(benchmark, description, arguments)
    if options.draw:
        show([row for row in read_results(path) if row["model"] in options.models], benchmark.columns, path)
        return
    deadline = time.monotonic() + 60 * options.minutes
    rates = measured_rates(options.dtype, options.device)
    rows: list[dict[str, Any]] = []
    for case in cases(benchmark, options):
        labels = benchmark.labels(case)
        if time.monotonic() > deadline:
            rows.append({**labels, "note": f"not run: {options.minutes:g} minutes are over"})
        else:
            sizes = ", ".join(f"{of.letter} {labels[of.letter]}" for of in benchmark.sizes.values())
            print(f"{case['model']}, {sizes}", file=sys.stderr, flush=True)
            before = list(rows)
            for found in measure_case(benchmark, case, options.providers, options.repeats, rates):
                rows = before + found
                write_results(rows, path)  # again and again: a run that is stopped keeps what it has
        write_results(rows, path)
    show(rows, benchmark.columns, path)
    print(f"{command.shown(path)}: all columns")
    if faults := [f"{row['provider']}: {row['note']}" for row in rows if "fault" in row]:
        raise AssertionError("; ".join(faults))


LEGEND = {
    "times_roof": "time as a multiple of that of the three matrix products alone, at the rate measured here",
    "predicted_ms": "by the products and the bytes that its passes move, at the two rates measured here",
    "times_predicted": "time as a multiple of that",
    "time_of_eager": "time as a multiple of plain PyTorch's; for scoring, that of its scoring",
    "time_of_peer": "the same of the fastest that is not ours",
    "time_of_cross_entropy": "time as a multiple of linear_cross_entropy's on the same rows",
    "peak_extra_mib": "peak memory above the inputs, gradients included",
    "d_hidden_error": "error of dH, relative to float64, as a norm",
    "d_weight_error": "the same of dW",
    "loss_error": "relative error of the loss",
}
"""What the columns of the table mean that do not say it themselves."""


def show(rows: Sequence[dict[str, Any]], columns: Sequence[str], results: Path) -> None:
    facts = {name: row[name] for row in rows for name in ("V", "D", "dtype", "inputs") if name in row}
    print(", ".join(f"{name} {value}" for name, value in facts.items()), end=":\n\n")
    print_table(rows, columns)
    print()
    print(*(f"{column}: {meaning}" for column, meaning in LEGEND.items() if column in columns), sep="\n")
    try:
        print(draw(results))
    except (ImportError, ValueError) as error:  # a bare GPU box: --draw does it elsewhere; or no measurement
        print(f"no picture: {error}")
