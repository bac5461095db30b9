"""Time of linear_cross_entropy per N V D, and its extra memory, over rows, vocabularies and sizes on a CPU.

    python -m bench.shapes [--rows 256 1024 4096 16384] [--vocabularies 8192 49152 151936] [--sizes 576 2048]
        [--few-rows 1 8 64] [--threshold 1.5e-5] [--dtype float32] [--repeats 3] [--minutes 8] [--output folder]
        [--overwrite] [--draw]

The exact gradient, the sparse one and scoring (no gradient), their calls in turn, on synthetic rows as peaked as real
ones; combinations that take too long (`LARGEST`) are left out. Few rows are beside eager PyTorch. Extra memory is the
peak of a call less its gradients. Without options seven minutes. Writes shapes.jsonl and a picture, shapes.svg.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from bench import command
from bench.linear_cross_entropy.inputs import synthetic
from bench.measure import measure_time, peak_extra_mib_here, print_table, read_results, write_results
from mind_kernels import linear_cross_entropy

NAME = "shapes"
LARGEST = 5e11  # N V D of a case: a call of ten seconds
SMALL = 2e10  # N V D up to which a case is called three times as often
FEW = 20  # calls of each with few rows
COLUMNS = ("N", "V", "D", "gradient", "median_ms", "ps_per_nvd", "times_best", "time_of_eager", "extra_mib")


class Rows(NamedTuple):
    hidden: Tensor  # (N, D)
    weight: Tensor  # (V, D)
    target: Tensor  # (N,)

    def first(self, count: int) -> Rows:
        return Rows(self.hidden[:count].detach().clone().requires_grad_(), self.weight, self.target[:count])


def inputs(rows: int, vocabulary: int, size: int, dtype: torch.dtype) -> Rows:
    hidden, weight, target = synthetic(rows, vocabulary, size)
    return Rows(hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), target)


def eager(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(hidden @ weight.T, target)


def with_gradient(loss: Callable[..., Tensor], rows: Rows) -> tuple[Tensor, ...]:
    value = loss(*rows)
    return value.detach(), *torch.autograd.grad(value, (rows.hidden, rows.weight))


def without_gradient(loss: Callable[..., Tensor], rows: Rows) -> Tensor:
    with torch.no_grad():
        return loss(*rows)


def calls_of(rows: Rows, threshold: float) -> dict[str, Callable[[], Any]]:
    sparse = partial(linear_cross_entropy, gradient_threshold=threshold)
    return {
        "exact": partial(with_gradient, linear_cross_entropy, rows),
        "sparse": partial(with_gradient, sparse, rows),
        "scoring": partial(without_gradient, linear_cross_entropy, rows),
    }


def peers_of(rows: Rows) -> dict[str, Callable[[], Any]]:
    return {
        "eager": partial(with_gradient, eager, rows),
        "eager scoring": partial(without_gradient, eager, rows),
    }


def measure(rows: Rows, calls: dict[str, Callable[[], Any]], repeats: int) -> list[dict[str, Any]]:
    """A row of results for each of the calls: memory by its first, time by the others in turn."""
    (count, size), vocabulary = rows.hidden.shape, len(rows.weight)
    work, gradients = count * vocabulary * size, rows.hidden.nbytes + rows.weight.nbytes
    peaks = {name: peak_extra_mib_here(call, device="cpu", warmup=0) for name, call in calls.items()}
    out = []
    for name, timing in measure_time(calls, gate=None, repeats=repeats, warmup=1).items():
        extra = peaks[name] - (0 if "scoring" in name else gradients / 2**20)
        shape = {"N": count, "V": vocabulary, "D": size, "dtype": str(rows.hidden.dtype).removeprefix("torch.")}
        figures = {"ps_per_nvd": round(1e9 * timing.median_ms / work, 2), "extra_mib": round(extra, 1)}
        out.append({**shape, "gradient": name, **timing.row(), **figures})
    return out


def many_rows(options: Any, deadline: float) -> list[dict[str, Any]]:
    """Beside each time how many times the best one of that gradient it is, per N V D."""
    out: list[dict[str, Any]] = []
    for vocabulary, size in itertools.product(options.vocabularies, options.sizes):
        counts = [count for count in options.rows if count * vocabulary * size <= LARGEST]
        if not counts or time.monotonic() > deadline:
            continue
        rows = inputs(max(counts), vocabulary, size, getattr(torch, options.dtype))
        for count in counts:
            if time.monotonic() > deadline:
                print(f"not run: N {count}, V {vocabulary}, D {size}: {options.minutes:g} minutes are over")
                continue
            print(f"N {count}, V {vocabulary}, D {size}", file=sys.stderr, flush=True)
            repeats = options.repeats * (3 if count * vocabulary * size <= SMALL else 1)
            part = rows.first(count)
            out += measure(part, calls_of(part, options.threshold), repeats)
    for row in out:
        best = min(other["ps_per_nvd"] for other in out if other["gradient"] == row["gradient"])
        row["times_best"] = round(row["ps_per_nvd"] / best, 3)
    return out


def few_rows(options: Any) -> list[dict[str, Any]]:
    """Beside each time how many times eager's it is; of the first size alone."""
    out = []
    for vocabulary in options.vocabularies if options.few_rows else ():
        rows = inputs(max(options.few_rows), vocabulary, options.sizes[0], getattr(torch, options.dtype))
        for part in map(rows.first, options.few_rows):
            found = measure(part, calls_of(part, options.threshold) | peers_of(part), FEW)
            of = {row["gradient"]: row["median_ms"] for row in found}
            for row in found:
                peer = "eager scoring" if "scoring" in row["gradient"] else "eager"
                row["time_of_eager"] = round(row["median_ms"] / of[peer], 3)
            out += found
    return out


def warm_up(threshold: float) -> None:
    """What is loaded and kept by the first call of each belongs to no case."""
    rows = inputs(32, 512, 16, torch.float32)
    for call in (calls_of(rows, threshold) | peers_of(rows)).values():
        call()


def draw(results: Path) -> Path:
    """The picture of a results file: picoseconds per N V D against N, a line for each vocabulary and size."""
    import matplotlib
    from matplotlib.figure import Figure

    rows = [row for row in read_results(results) if "times_best" in row]
    counts = sorted({row["N"] for row in rows})
    with matplotlib.rc_context({"font.size": 9, "svg.fonttype": "none", "svg.hashsalt": "bench"}):
        figure = Figure(figsize=(10, 3.8), layout="constrained")
        for axes, gradient in zip(figure.subplots(1, 3, sharey=True), ("exact", "sparse", "scoring"), strict=True):
            for size, vocabulary in sorted({(row["D"], row["V"]) for row in rows}):
                of = [row for row in rows if (row["gradient"], row["V"], row["D"]) == (gradient, vocabulary, size)]
                line = [(row["N"], row["ps_per_nvd"]) for row in sorted(of, key=lambda row: row["N"])]
                axes.plot(*zip(*line, strict=True), marker="o", markersize=3, label=f"V {vocabulary:,}, D {size}")
            axes.set(title=gradient, xlabel="N", xscale="log", ylim=(0, None))
            axes.set_xticks(counts, [f"{count:,}" for count in counts])
            axes.set_xticks([], minor=True)  # whose labels would overlap
        figure.axes[0].set_ylabel("time / (N V D), ps")
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
        path = results.with_suffix(".svg")
        figure.savefig(path, metadata={"Date": None})
    return path


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command.options_of(NAME, __doc__ or "", draw=True, minutes="no case starts later than this")
    parser.add_argument("--rows", nargs="+", type=command.count, default=[256, 1024, 4096, 16384])
    parser.add_argument("--vocabularies", nargs="+", type=command.count, default=[8192, 49152, 151936])
    parser.add_argument("--sizes", nargs="+", type=command.count, default=[576, 2048])
    parser.add_argument("--few-rows", nargs="*", type=command.count, default=[1, 8, 64])
    parser.add_argument("--threshold", type=command.positive, default=2.0**-16, help="default 2^-16")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--repeats", type=command.count, default=3, help="timed calls of a case (default 3)")
    options, file = command.parse(parser, lambda _: NAME, arguments)
    if not options.draw:
        deadline = time.monotonic() + 60 * options.minutes
        warm_up(options.threshold)
        rows = few_rows(options) + many_rows(options, deadline)
        write_results([{**row, "threshold": options.threshold} for row in rows], file)
    print_table(read_results(file), COLUMNS)
    print(draw(file))


if __name__ == "__main__":
    command.program(NAME, main)
