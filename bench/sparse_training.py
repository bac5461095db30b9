"""The effect of the sparse gradient on training: a fine-tuning, run with the exact gradient and with the sparse one.

    python -m bench.sparse_training --data svamp.jsonl [--steps 100] [--rationales 3] [--threshold 0.000244140625]
        [--output folder] [--overwrite]
    python -m bench.sparse_training --draw      # the picture again, from the results

`--data` is what `mind data import` writes. Both runs start from the released SmolLM2-135M-Instruct and see the same
batches: every weight in float32, AdamW at a constant rate, no weight decay, no dropout. A sparse gradient changes no
loss value, only where training goes, so the curves are compared: the claim is that no mean of ten steps differs by more
than 0.5 %. Writes sparse_training.jsonl and .svg, and fails where the claim does not hold.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import nn
from tqdm import tqdm

from bench import command
from bench.measure import print_table, read_results, write_results
from mind.batches.packing import micro_batches
from mind.batches.trunk import labeled_hidden
from mind.config import StudentConfig
from mind.data.questions import load_questions
from mind.records import MicroBatch, PackOptions
from mind.student.model import head_of, load_student
from mind.student.tokenization import tokenize
from mind_kernels import linear_cross_entropy

NAME = "sparse_training"
RUNS = ("exact", "sparse")
SEED = 0
WINDOW = 10  # steps of a mean: single steps scatter too much to be the claim
LIMIT_PERCENT = 0.5
LEFT_OUT = ("dropped_mass", "kept", "sparse_rows")
"""Means over the rows of a step: probability left out, entries kept, share of rows that did not take all entries."""
COLUMNS = ("steps", "exact", "sparse", "difference_percent", *LEFT_OUT)
BLUE, VERMILION, GREEN = "#0072b2", "#d55e00", "#009e73"  # Okabe and Ito: told apart by color-blind eyes too


def make_batches(file: Path, steps: int, rationales: int) -> list[MicroBatch]:
    """A batch a step: one rationale each of `rationales` questions, and no question comes twice."""
    questions = load_questions(file, require_rationales=True, minimum_rationales=1)
    if steps * rationales > len(questions):
        raise ValueError(f"{file} holds {len(questions)} questions: expected {steps} steps x {rationales} rationales")
    chance = random.Random(SEED)
    chosen = [
        replace(question, rationales=(chance.choice(question.rationales),))
        for question in chance.sample(questions, steps * rationales)
    ]
    config = StudentConfig()
    _, tokenizer = load_student(config)
    perspectives = sorted({question.rationales[0].perspective for question in chosen})
    tokenized = tokenize(chosen, tokenizer, perspectives, config.max_length)
    pack_options = PackOptions(rationales * config.max_length, share_prompts=False)  # a step in one micro-batch
    return [
        batch
        for start in range(0, len(tokenized), rationales)
        for batch in micro_batches(tokenized[start : start + rationales], len(perspectives), pack_options)
    ]


def train(run: str, data: Sequence[MicroBatch], learning_rate: float, threshold: float | None) -> list[dict[str, Any]]:
    """One run from the released weights, with the exact gradient where `threshold` is None: a row a step."""
    model, _ = load_student(StudentConfig())  # loaded in evaluation mode: no dropout
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.0)
    rows = []
    for step, batch in enumerate(tqdm(data, desc=run, unit="step"), 1):
        start = time.perf_counter()
        measured = add_gradients(model, batch, threshold)
        optimizer.step()
        optimizer.zero_grad()
        rows.append({"step": step, "run": run, **measured, "step_s": round(time.perf_counter() - start, 3)})
    return rows


def add_gradients(model: nn.Module, batch: MicroBatch, threshold: float | None) -> dict[str, float]:
    """Forward and backward of one batch: its mean loss a token and, with a threshold, what the gradient left out."""
    weight = head_of(model).weight
    loss, stats = linear_cross_entropy(
        labeled_hidden(model, batch), weight, batch.target, gradient_threshold=threshold, return_stats=True
    )
    loss.backward()
    measured = {"tokens": len(batch.target), "loss": loss.item()}
    if stats.kept_entries is not None and stats.dropped_mass is not None:
        kept = stats.kept_entries.double()
        measured |= {
            "dropped_mass": stats.dropped_mass.mean().item(),
            "kept": kept.mean().item(),
            "sparse_rows": (kept < weight.shape[0]).double().mean().item(),
        }
    return measured


def series(rows: Sequence[Mapping[str, Any]], run: str, field: str = "loss") -> list[float]:
    """The values of one run, in the order of its steps."""
    return [row[field] for row in rows if row["run"] == run]


def windows(values: Sequence[float]) -> list[Sequence[float]]:
    """Ten values each; the last window has fewer where they do not come out even."""
    return [values[start : start + WINDOW] for start in range(0, len(values), WINDOW)]


def window_means(values: Sequence[float]) -> list[float]:
    return [statistics.fmean(window) for window in windows(values)]


def percent_above(values: Sequence[float], base: Sequence[float]) -> list[float]:
    return [100 * (value / other - 1) for value, other in zip(values, base, strict=True)]


def window_table(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The means of ten steps of both runs, and how far apart they are."""
    steps = [f"{window[0]}-{window[-1]}" for window in windows(series(rows, "exact", "step"))]
    exact, sparse = (window_means(series(rows, run)) for run in RUNS)
    left_out = [window_means(series(rows, "sparse", field)) for field in LEFT_OUT]
    lines = zip(steps, exact, sparse, percent_above(sparse, exact), *left_out, strict=True)
    return [dict(zip(COLUMNS, line, strict=True)) for line in lines]


def summarize(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The largest and the mean difference of the runs, and the means of what the gradient left out."""
    single = [abs(value) for value in percent_above(series(rows, "sparse"), series(rows, "exact"))]
    return {
        "largest_window_percent": max(abs(window["difference_percent"]) for window in window_table(rows)),
        "largest_step_percent": max(single),
        "mean_step_percent": statistics.fmean(single),
        **{field: statistics.fmean(series(rows, "sparse", field)) for field in LEFT_OUT},
        **{f"{run}_median_step_s": statistics.median(series(rows, run, "step_s")) for run in RUNS},
    }


def draw(rows: Sequence[Mapping[str, Any]], file: Path) -> None:
    """The picture of the results as `write_results` wrote them: both loss curves, and their difference below."""
    summary = next(row for row in rows if row["run"] == "summary")
    exact, sparse = series(rows, "exact"), series(rows, "sparse")
    exact_means, sparse_means = window_means(exact), window_means(sparse)
    figure = Figure(figsize=(7, 5), layout="constrained")
    losses, difference = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    # The runs all but coincide: the sparse one is dashed and finer, so that the exact one shows behind it.
    draw_curve(losses, exact, exact_means, 4, color=BLUE, label="exact gradient")
    draw_curve(
        losses,
        sparse,
        sparse_means,
        2,
        color=VERMILION,
        linestyle=(0, (3, 2)),
        label=f"sparse gradient, $2^{{{math.log2(summary['threshold']):g}}}$",
    )
    losses.set(ylabel="loss (nats per token)", title=f"{summary['inputs']}, {summary['rationales']} per step")
    losses.legend(frameon=False, title=f"bold: means of {WINDOW} steps, thin: single steps")
    difference.axhspan(-LIMIT_PERCENT, LIMIT_PERCENT, color=GREEN, alpha=0.15, linewidth=0)
    difference.axhline(0, color="grey", linewidth=0.8)
    draw_curve(difference, percent_above(sparse, exact), percent_above(sparse_means, exact_means), 2, color="black")
    difference.set(xlabel="step", ylabel="sparse over exact\nloss (%)")
    difference.set_title(f"shaded: ±{LIMIT_PERCENT} %, where the means have to stay", loc="right", fontsize="medium")
    with matplotlib.rc_context({"svg.hashsalt": NAME}):  # and no date: the same results give the same bytes
        figure.savefig(file, metadata={"Date": None})


def draw_curve(
    axes: Axes, values: Sequence[float], means: Sequence[float], width: float, *, label: str | None = None, **look: Any
) -> None:
    """Single steps thin, means of ten steps bold at the middle of their steps."""
    steps = range(1, len(values) + 1)
    axes.plot(steps, values, linewidth=0.6, alpha=0.8, **look)
    axes.plot(window_means(steps), means, linewidth=width, marker="o", markersize=2 * width, label=label, **look)
    axes.spines[["top", "right"]].set_visible(False)


def check(rows: Sequence[Mapping[str, Any]]) -> None:
    """Ends the program with a message unless the runs are what they should be and the claim holds."""
    # Before the first update the runs differ in nothing but the gradient, and the loss value is exact in both.
    torch.testing.assert_close(*(torch.tensor(series(rows, run)[0]) for run in RUNS))
    if not any(series(rows, "sparse", "sparse_rows")):
        sys.exit("every row of the sparse run fell back to the exact gradient: the runs compare nothing")
    for window in window_table(rows):
        if not abs(window["difference_percent"]) <= LIMIT_PERCENT:  # this way round nan fails too
            sys.exit(
                f"steps {window['steps']}: the mean losses are {window['difference_percent']:.3f} % apart, "
                f"more than {LIMIT_PERCENT} %"
            )


def measure(options: argparse.Namespace, file: Path) -> None:
    """Trains twice, prints the table and writes the results."""
    data = make_batches(options.data, options.steps, options.rationales)
    rows = [
        *train("exact", data, options.learning_rate, None),
        *train("sparse", data, options.learning_rate, options.threshold),
    ]
    summary = {
        "run": "summary",
        "inputs": f"SmolLM2-135M-Instruct, rationales of {options.data.name}",
        **{name: getattr(options, name) for name in ("steps", "rationales", "threshold", "learning_rate")},
        **summarize(rows),
    }
    print_table(window_table(rows), COLUMNS)
    print_table([{"summary": name, "value": value} for name, value in summary.items()], ("summary", "value"))
    write_results([*rows, summary], file)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command.options_of(NAME, __doc__ or "", draw=True)
    parser.add_argument(
        "--data", type=command.readable_file, help="questions with rationales, as `mind data import` writes them"
    )
    parser.add_argument("--steps", type=command.count, default=100)
    parser.add_argument("--rationales", type=command.count, default=3, help="rationales per step")
    parser.add_argument(
        "--threshold", type=command.positive, default=2**-12, help="of the sparse gradient: see linear_cross_entropy"
    )
    parser.add_argument("--learning-rate", type=command.positive, default=3e-5)
    options, file = command.parse(parser, lambda _: NAME, arguments)
    if not options.draw:
        if options.data is None:
            parser.error("--data is required, unless --draw is given")
        measure(options, file)
    rows = read_results(file)
    draw(rows, file.with_suffix(".svg"))
    check(rows)


if __name__ == "__main__":
    command.program(NAME, main)
