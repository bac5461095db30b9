"""A head whose vocabulary is split over processes: time and bytes sent beside other ways to the same gradients.

    python -m bench.vocabulary_parallel [--rows 1024 4096] [--vocabulary 49152] [--size 576] [--processes 2]
        [--threshold 1.5e-5] [--repeats 3] [--output folder] [--overwrite]

Processes of one thread each over gloo, on the CPU in float32, and for the unsharded call one process with as many
threads as there are processes. All have the same rows, as peaked as real ones; a call gives the loss, the gradient of
the hidden states in every process and that of its part of the head. Ways: linear_cross_entropy on shards, exact and
sparse; the head put together by all_gather and the unsharded call, of all rows in every process or of a share of them;
PyTorch's loss_parallel on the logits. All take turns; before that their results have to agree.

Then on paper: the least that products, bytes and links of 8 GPUs take for the same ways. Writes
vocabulary_parallel.jsonl.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from bench import command, eight_gpus
from bench.linear_cross_entropy.inputs import synthetic
from bench.measure import measure_time, print_table, write_results
from bench.shard_processes import Inputs, Outputs, Processes, gradients, started, ways
from mind_kernels import linear_cross_entropy

NAME = "vocabulary_parallel"
COLUMNS = ("N", "way", "median_ms", "p20_ms", "p80_ms", "of_unsharded", "collectives", "sent_mib", "error")
LARGEST_ERROR = 1e-4
"""Relative Frobenius error of loss and gradients beside the unsharded call of the same kind, in float32."""


def unsharded(inputs: Inputs, **options: Any) -> Outputs:
    return gradients(linear_cross_entropy(*inputs, **options), inputs)


def error(found: Outputs, expected: Outputs) -> float:
    """The largest relative Frobenius error of loss and gradients."""
    return max(float((one - other).norm() / other.norm()) for one, other in zip(found, expected, strict=True))


def measure(inputs: Inputs, processes: Processes, threshold: float, repeats: int) -> list[dict[str, Any]]:
    """A row of results for each way, of all rows of `inputs`."""
    rows, sparse = len(inputs.target), {"gradient_threshold": threshold}
    alone = {"unsharded, exact": {}, "unsharded, sparse": sparse}
    calls: dict[str, Callable[[], Any]] = {
        name: partial(unsharded, inputs, **options) for name, options in alone.items()
    }
    expected = {name: call() for name, call in calls.items()}
    columns: dict[str, dict[str, Any]] = {name: {} for name in calls}
    for way in ways(threshold):
        found = processes.outputs(way, rows)
        worst = error(found, expected["unsharded, sparse" if "sparse" in way else "unsharded, exact"])
        assert worst <= LARGEST_ERROR, f"{way} differs from the unsharded call by {worst:.1e}"
        traffic = processes.traffic(way, rows)
        sent = {"sent_bytes": traffic.sent, "sent_mib": round(traffic.sent / 2**20, 3)}
        columns[way] = {"collectives": traffic.collectives, **sent, "error": worst}
        calls[way] = partial(processes.call, way, rows)
    timings = measure_time(calls, gate=None, repeats=repeats, warmup=1)
    exact = timings["unsharded, exact"].median_ms
    return [
        {"N": rows, "way": way, **timing.row(), "of_unsharded": round(timing.median_ms / exact, 3), **columns[way]}
        for way, timing in timings.items()
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command.options_of(NAME, __doc__ or "")
    parser.add_argument("--rows", nargs="+", type=command.count, default=[1024, 4096])
    for name, default in (("vocabulary", 49152), ("size", 576), ("processes", 2), ("repeats", 3)):
        parser.add_argument(f"--{name}", type=command.count, default=default, help=f"(default {default})")
    parser.add_argument("--threshold", type=command.positive, default=2.0**-16, help="default 2^-16")
    options, file = command.parse(parser, lambda _: NAME, arguments)
    for name in ("rows", "vocabulary"):
        for number in options.rows if name == "rows" else [options.vocabulary]:
            if number % options.processes:
                parser.error(f"--{name} {number}: expected a multiple of --processes {options.processes}")
    hidden, weight, target = synthetic(max(options.rows), options.vocabulary, options.size)
    inputs = Inputs(*(tensor.share_memory_() for tensor in (hidden, weight.requires_grad_(), target)))
    shape = {"V": options.vocabulary, "D": options.size, "processes": options.processes, "threshold": options.threshold}
    torch.set_num_threads(options.processes)
    rows = []
    with started(options.processes, inputs, options.threshold) as processes:
        for count in options.rows:
            found = measure(inputs.first(count), processes, options.threshold, options.repeats)
            rows += [{"case": "measured", **shape, **row} for row in found]
    print_table(rows, COLUMNS)
    print(f"\n{eight_gpus.TITLE}")
    paper = eight_gpus.predictions()
    print_table(paper, eight_gpus.COLUMNS)
    write_results([*rows, *paper], file)


if __name__ == "__main__":
    command.program(NAME, main)
