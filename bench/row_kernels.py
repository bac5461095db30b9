"""The row kernels alone beside a plain copy of the same logits: which share of the memory's bandwidth they reach.

    python -m bench.row_kernels [--rows 256] [--dtype float32] [--device cpu] [--data svamp.jsonl] [--repeats 9]
        [--backends torch cpp] [--output folder] [--overwrite] [--draw]

Bytes are those that have to move: logits that are read once, and written once where they become their gradient. Every
timed call gets logits that no cache holds, a fresh copy where they are overwritten. One chunk of SmolLM2-135M's
logits, of real rows on a CPU, synthetic ones on CUDA. Writes row_kernels.jsonl (CUDA: _cuda).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from bench import command
from bench.comparison.heads import HEADS, REAL
from bench.comparison.provider import backends_here
from bench.linear_cross_entropy.inputs import load
from bench.measure import measure_time, print_table, read_results, write_results
from bench.roofline import Rates, Step, columns
from mind_kernels import Head
from mind_kernels.backend import kernels
from mind_kernels.linear_cross_entropy.contract import RowKernels, RowSpec, RowValues, RowWeights
from mind_kernels.testing import error

NAME = "row_kernels"
MODEL = REAL
THRESHOLD = 2.0**-12
WARMUP = 2
ROWS = {"cpu": 256, "cuda": 2048}
COLUMNS = (
    "kernel",
    "dtype",
    "rows",
    "V",
    "threads",
    "median_ms",
    "predicted_ms",
    "times_predicted",
    "gb_s",
    "share_of_copy",
)


class FixedHead(Head):
    """A head whose hidden states are logits already: the kernels of a chunk without its product."""

    def project(self, hidden: Tensor) -> Tensor:
        return hidden


def passes(kernels: RowKernels, logits: Tensor, target: Tensor, copies: int) -> dict[str, Callable[[], Any]]:
    """name -> call: statistics; what the sparse gradient needs of every row; the gradient in place of the logits."""
    spec = RowSpec(FixedHead(logits.new_empty(logits.shape[1], 0)), gradient_threshold=THRESHOLD)
    weights = RowWeights(torch.full_like(target, 1 / len(target), dtype=torch.float32))
    fresh = [logits.clone() for _ in range(copies)]

    def sparse() -> tuple[RowValues, Any]:
        found = kernels.sparse_rows(logits, target, spec)
        found.means()
        return found.values, found.entries(weights)

    def gradient() -> tuple[RowValues, Tensor]:
        part = fresh.pop()
        return kernels.row_kernel_(part, target, weights, spec), part

    return {
        "statistics": lambda: kernels.row_kernel_(logits, target, None, spec),
        "statistics and entries": sparse,
        "gradient": gradient,
    }


MOVED = {"statistics": 1, "statistics and entries": 1, "gradient": 2}
"""How many times a pass reads or writes the logits, at least."""


def check(results: dict[str, Any], logits: Tensor, target: Tensor) -> None:
    """Raises AssertionError unless every backend gives the nll, and the gradient, of float64."""
    log_p = logits.double().log_softmax(1)
    nll = -log_p.gather(1, target[:, None]).squeeze(1)
    gradient = log_p.exp_()
    gradient[torch.arange(len(target), device=target.device), target] -= 1
    gradient /= len(target)
    allowed = 8 * torch.finfo(logits.dtype).eps * float(gradient.square().mean().sqrt())
    for name, result in results.items():
        if name == "copy":
            continue
        values = result if isinstance(result, RowValues) else result[0]
        assert error(values.nll, nll).largest < 1e-5, name
        if isinstance(result, tuple) and isinstance(result[1], Tensor) and result[1].shape == gradient.shape:
            assert error(result[1], gradient).rms < allowed, name


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    inputs = load(MODEL, options.rows, options.dtype, options.device, options.data)
    with torch.no_grad():
        logits = inputs.hidden @ inputs.weight.T
    copy = torch.empty_like(logits)
    calls, moved = {"copy": lambda: copy.copy_(logits)}, {"copy": 2}
    for backend in options.backends:
        found = kernels("linear_cross_entropy", backend)
        for name, call in passes(found, logits, inputs.target, options.repeats + WARMUP).items():
            calls[f"{backend} {name}"], moved[f"{backend} {name}"] = call, MOVED[name]
    timings = measure_time(
        calls, gate=lambda results: check(results, logits, inputs.target), repeats=options.repeats, warmup=WARMUP
    )
    dtype = str(logits.dtype).removeprefix("torch.")
    case = {
        "model": MODEL,
        "rows": len(logits),
        "V": logits.shape[1],
        "dtype": dtype,
        "threads": torch.get_num_threads(),
        "inputs": inputs.label,
    }
    rates = {name: moved[name] * logits.nbytes / timing.median_ms / 1e6 for name, timing in timings.items()}
    return [
        {
            **case,
            "kernel": name,
            **timing.row(),
            **columns([Step(0, moved[name] * logits.nbytes)], Rates(1, rates["copy"]), timing.median_ms),
            "gb_s": round(rates[name], 2),
            "share_of_copy": round(rates[name] / rates["copy"], 3),
        }
        for name, timing in timings.items()
    ]


def predictions(rates: Rates) -> Iterator[dict[str, Any]]:
    """A row for each pass in bfloat16 on a GPU of these rates."""
    rows, vocabulary = ROWS["cuda"], HEADS[MODEL].vocabulary
    for name, moved in {"copy": 2, **MOVED}.items():
        found = columns([Step(0, moved * rows * vocabulary * 2)], rates)
        yield {"benchmark": NAME, "case": f"N {rows}, V {vocabulary}", "line": name, **found}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command.options_of(
        NAME, __doc__ or "", draw=True, minutes="accepted for bench/on_gpu.sh; this takes seconds"
    )
    parser.add_argument("--rows", type=command.count, help="default: 256, on CUDA 2048")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), help="default: float32, on CUDA bfloat16"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--backends", nargs="+", help="default: those that this machine has")
    parser.add_argument(
        "--data", type=command.readable_file, help="questions whose rationales give the rows (`mind data import`)"
    )
    parser.add_argument("--repeats", type=command.count, default=9)
    options, file = command.parse(parser, lambda options: NAME + "_cuda" * (options.device == "cuda"), arguments)
    cuda = options.device == "cuda"
    if options.draw:
        print_table(read_results(file), COLUMNS)
        return
    options.rows = options.rows or ROWS[options.device]
    options.dtype = getattr(torch, options.dtype or ("bfloat16" if cuda else "float32"))
    # triton_streaming has no kernels on logits that are its own.
    here = [name for name in backends_here("linear_cross_entropy", options.device) if name != "triton_streaming"]
    if unknown := set(options.backends or ()) - set(here):
        parser.error(f"--backends {' '.join(sorted(unknown))}: expected some of {' '.join(here)}")
    options.backends = options.backends or here
    rows = measure(options)
    print_table(rows, COLUMNS)
    write_results(rows, file)


if __name__ == "__main__":
    command.program(NAME, main)
