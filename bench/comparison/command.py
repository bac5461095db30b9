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

from bench.comparison.benchmark import Benchmark, measure_case
from bench.comparison.heads import HEADS, REAL
from bench.comparison.picture import draw
from bench.measure import RESULTS, dense_tflops, print_table, read_results, write_results


def parse(benchmark: Benchmark, description: str, arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=f"python -m bench.{benchmark.name}", description=description)
    parser.add_argument(
        "--models", nargs="+", choices=HEADS, help=f"default: {REAL}, on CUDA {' '.join(benchmark.cuda_models)}"
    )
    for name, size in benchmark.sizes.items():
        cpu, cuda = (" ".join(map(str, values)) for values in (size.cpu, size.cuda))
        parser.add_argument(f"--{name}", nargs="+", type=int, help=f"{size.letter}; default: {cpu}, on CUDA {cuda}")
    parser.add_argument("--providers", nargs="+", choices=benchmark.providers, help="default: by device")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: float32, on CUDA bfloat16")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--data",
        type=Path,
        help="questions whose rationales give the real rows (`mind data import`); default: word problems",
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=8, help="no case starts later than this (default 8)")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of results and picture")
    parser.add_argument("--draw", action="store_true", help="only the table and the picture of an earlier run")
    options = parser.parse_args(arguments)
    cuda = options.device == "cuda"
    options.models = options.models or (list(benchmark.cuda_models) if cuda else [REAL])
    for name, size in benchmark.sizes.items():
        setattr(options, name, getattr(options, name) or (size.cuda if cuda else size.cpu))
    options.providers = options.providers or benchmark.defaults(options.device)
    options.dtype = getattr(torch, options.dtype or ("bfloat16" if cuda else "float32"))
    return options


def cases(benchmark: Benchmark, options: argparse.Namespace) -> list[dict[str, Any]]:
    """The arguments of benchmark.load, the most telling first."""
    shared = {"dtype": options.dtype, "device": options.device, "data": options.data}
    return [
        {"model": model, **dict(zip(benchmark.sizes, sizes, strict=True)), **shared}
        for sizes in itertools.product(*(getattr(options, name) for name in benchmark.sizes))
        for model in options.models
    ]


def main(benchmark: Benchmark, description: str) -> None:
    """Runs the benchmark as sys.argv says."""
    options = parse(benchmark, description)
    name = benchmark.name + ("" if options.device == "cpu" else "_cuda")
    path = options.output / f"{name}.jsonl"
    if options.draw:
        show([row for row in read_results(path) if row["model"] in options.models], benchmark.short, path)
        return
    deadline = time.monotonic() + 60 * options.minutes
    roof_tflops = dense_tflops(options.dtype, options.device)
    rows: list[dict[str, Any]] = []
    for case in cases(benchmark, options):
        labels = benchmark.labels(case)
        if time.monotonic() > deadline:
            rows.append({**labels, "note": f"not run: {options.minutes:g} minutes are over"})
        else:
            sizes = ", ".join(f"{of.letter} {labels[of.letter]}" for of in benchmark.sizes.values())
            print(f"{case['model']}, {sizes}", file=sys.stderr, flush=True)
            rows += measure_case(benchmark, case, options.providers, options.repeats, roof_tflops)
        write_results(name, rows, options.output)  # after each case: a run that is stopped keeps what it has
    show(rows, benchmark.columns, path)


def show(rows: Sequence[dict[str, Any]], columns: Sequence[str], results: Path) -> None:
    print_table(rows, columns)
    try:
        print(draw(results))
    except ImportError as error:  # a bare GPU box: --draw does it elsewhere
        print(f"no picture: {error}")
