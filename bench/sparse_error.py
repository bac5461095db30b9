"""The sparse gradient's time against its error, over the threshold and over `gradient_error`; and whether
`threshold_for_error` and `gradient_error` hold.

    python -m bench.sparse_error [--rows 2048] [--repeats 7] [--data svamp.jsonl]
        [--output folder] [--overwrite] [--draw]

Real rows in float32, forward and backward of the mean loss. Errors are relative Frobenius norms of the difference from
float64, of dH and of dW. Times are the processor time of one thread, eager PyTorch and all thresholds in turn, the
least of the repeats: other work on the machine falls on all of them alike. Writes sparse_error.jsonl and .svg, and
fails where an error is above the one for which `threshold_for_error` gives that threshold, or above `gradient_error`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

from bench import command
from bench.comparison.heads import REAL, SLICE
from bench.comparison.provider import Provider, step
from bench.linear_cross_entropy.inputs import Inputs, load
from bench.linear_cross_entropy.providers import eager
from bench.measure import print_table, read_results, write_results
from bench.sparse_training import BLUE, VERMILION
from mind_kernels import linear_cross_entropy, threshold_for_error

NAME = "sparse_error"
RECOMMENDED = 2.0**-16  # by the documentation
EXPONENTS = (9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20)
ERRORS = (1e-3, 3e-4, 1e-4, 5e-5, 2e-5, 1e-5)  # gradient_error
COLUMNS = ("gradient", "seconds", "of_eager", "d_hidden_error", "d_weight_error", "kept", "sparse_rows")


FIELDS = {"gradient_threshold": "threshold", "gradient_error": "accepted"}  # of the results


def ours(inputs: Inputs, **options: Any) -> Any:
    return linear_cross_entropy(*inputs[:3], **options)


@torch.no_grad()
def true_gradients(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """dH (N, D) and dW (V, D) of the mean loss in float64, a slice of the rows at a time."""
    weight, count = inputs.weight.double(), len(inputs.target)
    d_hidden, d_weight = [], torch.zeros_like(weight)
    for hidden, target in zip(inputs.hidden.double().split(SLICE), inputs.target.split(SLICE), strict=True):
        dz = (hidden @ weight.T).softmax(1)
        dz -= F.one_hot(target, len(weight))
        dz /= count
        d_hidden.append(dz @ weight)
        d_weight.addmm_(dz.T, hidden)
    return torch.cat(d_hidden), d_weight


def errors(inputs: Inputs, loss: Tensor, truth: tuple[Tensor, Tensor]) -> dict[str, float]:
    found = torch.autograd.grad(loss, inputs[:2])
    dh, dw = (float((one.double() - true).norm() / true.norm()) for one, true in zip(found, truth, strict=True))
    return {"d_hidden_error": dh, "d_weight_error": dw}


def least_seconds(calls: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Of each call, the least processor time of one thread; the calls take turns."""
    before, found = torch.get_num_threads(), dict.fromkeys(calls, math.inf)
    torch.set_num_threads(1)
    try:
        for _ in range(repeats):
            for name, call in calls.items():
                start = time.process_time()
                call()
                found[name] = min(found[name], time.process_time() - start)
    finally:
        torch.set_num_threads(before)
    return found


def measure(inputs: Inputs, repeats: int) -> list[dict[str, Any]]:
    """A row of results for eager PyTorch, the exact gradient and each threshold."""
    truth, total = true_gradients(inputs), len(inputs.weight)
    losses: dict[str, Callable[..., Any]] = {"eager": eager, "exact": ours}
    facts: dict[str, dict[str, float]] = {name: {} for name in losses}
    sparse: dict[str, dict[str, float]] = {f"2^-{e}": {"gradient_threshold": 2.0**-e} for e in EXPONENTS}
    sparse |= {f"error {error:g}": {"gradient_error": error} for error in ERRORS}
    for name, option in sparse.items():
        losses[name] = partial(ours, **option)
        _, stats = losses[name](inputs, return_stats=True)
        assert stats.kept_entries is not None
        kept = stats.kept_entries.double()
        facts[name] = {
            **{field: option[given] for given, field in FIELDS.items() if given in option},
            "kept": float(kept.mean()),
            "sparse_rows": float((kept < total).double().mean()),
        }
    wrong = {name: errors(inputs, loss(inputs), truth) for name, loss in losses.items()}
    seconds = least_seconds({name: step(Provider(loss), inputs) for name, loss in losses.items()}, repeats)
    return [
        {"gradient": name, "seconds": seconds[name], "of_eager": seconds[name] / seconds["eager"]}
        | wrong[name]
        | facts[name]
        for name in losses
    ]


def check(rows: Sequence[Mapping[str, Any]]) -> None:
    """Raises AssertionError where an error is above what `threshold_for_error` promises of its threshold, or above what
    `gradient_error` accepts."""
    for row in rows:
        error = max(row["d_hidden_error"], row["d_weight_error"])
        if "threshold" in row:
            assert threshold_for_error(error) <= row["threshold"], row
        if "accepted" in row:
            assert error <= row["accepted"], row


def draw(rows: Sequence[Mapping[str, Any]], file: Path) -> None:
    """The picture: time as a share of eager's against either error, of the thresholds at which no row fell back; the
    recommended one is marked."""
    sparse = [row for row in rows if row.get("sparse_rows") == 1 and "threshold" in row]
    of_batch = [row for row in rows if row.get("sparse_rows") == 1 and "accepted" in row]
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for field, label, color in (("d_hidden_error", "dH", BLUE), ("d_weight_error", "dW", VERMILION)):
        axes.plot([r[field] for r in sparse], [r["of_eager"] for r in sparse], marker="o", color=color, label=label)
        times = [row["of_eager"] for row in of_batch]
        axes.plot([row[field] for row in of_batch], times, "s--", color=color, label=f"{label}, gradient_error")
        for row in sparse:
            if row["threshold"] == RECOMMENDED:
                axes.plot(row[field], row["of_eager"], marker="o", markersize=12, fillstyle="none", color=color)
    for row in sparse[::2]:
        name = f"$2^{{{math.log2(row['threshold']):g}}}$"
        axes.annotate(name, (row["d_hidden_error"], row["of_eager"]), (5, 5), textcoords="offset points")
    axes.set(xscale="log", xlabel="relative error of the gradient", ylabel="time, share of eager", ylim=(0, None))
    axes.set_title(rows[0]["inputs"])
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, title="circle: recommended")
    with matplotlib.rc_context({"svg.hashsalt": NAME}):
        figure.savefig(file, metadata={"Date": None})


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command.options_of(NAME, __doc__ or "", draw=True)
    parser.add_argument("--rows", type=command.count, default=2048)
    parser.add_argument("--repeats", type=command.count, default=7)
    parser.add_argument(
        "--data", type=command.readable_file, help="questions whose rationales give the rows (`mind data import`)"
    )
    options, file = command.parse(parser, lambda _: NAME, arguments)
    if not options.draw:
        inputs = load(REAL, options.rows, torch.float32, "cpu", options.data)
        case = {"rows": options.rows, "V": len(inputs.weight), "inputs": inputs.label}
        write_results([case | row for row in measure(inputs, options.repeats)], file)
    rows = read_results(file)
    print_table(rows, COLUMNS)
    draw(rows, file.with_suffix(".svg"))
    check(rows)


if __name__ == "__main__":
    command.program(NAME, main)
