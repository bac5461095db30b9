"""One whole optimizer step of MIND, from the naive way to the product's, a change at a time: time and peak memory.

    python -m bench.train_step [--data svamp.jsonl] [--questions 4] [--pack-length 512] [--providers naive packed]
        [--model SmolLM2-135M] [--dtype float32] [--device cpu] [--repeats 3] [--minutes 8] [--output folder]
        [--overwrite] [--draw]
    python -m bench.train_step --save-tokens step.json     # and where there is no tokenizer: --tokens step.json

The step trains on given rationales with given weights, half of the K of each question, and wants L_real of all. Every
variant computes the same (bench/training_step/variants.py), each with one change to the one before:
- naive: one padded batch, the logits of every position, plain losses, each pair of answers on its own;
- packed: rows without padding, a micro-batch at a time, the logits of the labeled positions alone;
- + shared prompts: a question's prompt computed once for its rationales;
- + selected only: no backward pass for rationales of no weight;
- + fused losses: those of mind_kernels;
- + sparse gradient: with gradient_threshold=2**-12.
And beside them, on CUDA, packed + Liger: packed, with Liger's cross-entropy.

Without options: one word problem and SmolLM2-135M in float32 on a CPU, some minutes; on CUDA four of them and random
weights in Qwen2.5-1.5B's shape in bfloat16, whose all but uniform distributions send the sparse gradient back to the
exact one. The questions are typical in length. Loss, L_real and gradients are judged before any time is taken
(bench/training_step/gate.py); peak memory is what the step adds to weights and optimizer state, gradients included.
Writes train_step.jsonl (CUDA: _cuda) and a picture.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench import command
from bench.measure import (
    measure_time,
    measured_rates,
    peak_extra_mib,
    peak_extra_mib_here,
    print_table,
    read_results,
    write_results,
)
from bench.roofline import Rates
from bench.roofline import columns as columns_of
from bench.training_step.gate import Gate
from bench.training_step.inputs import MAX_LENGTH, Inputs, load_tokens, save_tokens, tokenized_step
from bench.training_step.models import MODELS, QWEN, RANDOM, SMOLLM2, Student, build_student
from bench.training_step.picture import draw
from bench.training_step.variants import REFERENCE, VARIANTS, Outcome, forward_backward, take_step, warmed_up
from bench.training_step.work import Tokens, steps, tokens_of
from mind.batches.packing import naive_tokens

NAME = "train_step"
STEP = Path(__file__).parent / "training_step" / "step.json"
"""What --questions 4 --save-tokens wrote: for machines without the tokenizer."""
COLUMNS = (
    "variant",
    "attention",
    "forward_tokens",
    "backward_tokens",
    "median_ms",
    "predicted_ms",
    "times_predicted",
    "tokens_per_s",
    "speedup",
    "peak_extra_mib",
    "memory_of_naive",
    "loss_error",
    "grad_error",
    "note",
)


def facts(options: argparse.Namespace, inputs: Inputs) -> dict[str, Any]:
    """What is the same in every result row."""
    return {
        "kind": options.device,
        "model": options.model,
        "dtype": str(options.dtype).removeprefix("torch."),
        "questions": len(inputs.questions),
        "K": inputs.perspectives,
        "selected_share": float(inputs.selected.double().mean()),
        "pack_length": options.pack_length,
        "supervision_tokens": inputs.supervision_tokens,
        "padded_tokens": naive_tokens(inputs.questions)[0],
        "inputs": inputs.label,
    }


def judge(options: argparse.Namespace, student: Student, inputs: Inputs) -> tuple[dict[str, dict[str, Any]], float]:
    """The columns of each variant, with a note where it is not to be timed, and the seconds that all of them take.

    One of ours that is wrong or fails raises.
    """
    gate, columns, seconds = Gate(student.model, inputs, options.pack_length), {}, 0.0
    for name in options.providers:
        variant = VARIANTS[name]
        if reason := variant.reason_absent(student.model, inputs, options.pack_length):
            columns[name] = {"note": f"not run: {reason}"}
            continue
        columns[name] = {"attention": variant.attention(options.device, options.pack_length)}
        try:
            outcome, taken = trial(options, name, student, inputs)
            errors = gate.errors(outcome, student.model)
            columns[name] |= {
                "forward_tokens": outcome.forward_tokens,
                "backward_tokens": outcome.backward_tokens,
                **errors,
            }
            gate.check(variant, errors)
            seconds += taken
        except Exception as error:
            if not variant.peer:
                error.add_note(f"in variant {name!r}")
                raise
            columns[name]["note"] = f"not timed: {type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
    return columns, seconds


def trial(options: argparse.Namespace, name: str, student: Student, inputs: Inputs) -> tuple[Outcome, float]:
    """A forward and backward pass, whose gradients stay, and its seconds."""
    print(name, file=sys.stderr, flush=True)
    if options.device == "cuda":  # the first call compiles
        forward_backward(VARIANTS[name], student.model, inputs, options.pack_length).loss.item()
    student.optimizer.zero_grad(set_to_none=True)
    start = time.perf_counter()
    outcome = forward_backward(VARIANTS[name], student.model, inputs, options.pack_length)
    outcome.loss.item()
    return outcome, time.perf_counter() - start


def add_times(
    options: argparse.Namespace, student: Student, inputs: Inputs, columns: dict[str, dict[str, Any]], repeats: int
) -> None:
    steps = {
        name: partial(take_step, VARIANTS[name], student, inputs, options.pack_length)
        for name, values in columns.items()
        if "note" not in values
    }
    timings = measure_time(steps, gate=None, repeats=repeats, warmup=2 if options.device == "cuda" else 1)
    for name, timing in timings.items():
        columns[name] |= {**timing.row(), "tokens_per_s": round(1e3 * inputs.supervision_tokens / timing.median_ms, 2)}
        if REFERENCE in timings:
            columns[name]["speedup"] = round(timings[REFERENCE].median_ms / timing.median_ms, 3)


def add_predictions(
    options: argparse.Namespace, student: Student, inputs: Inputs, columns: dict[str, dict[str, Any]]
) -> None:
    """At the rates measured here; on CUDA, since on a CPU the caches decide."""
    rates, config = measured_rates(options.dtype, options.device), student.model.config.to_dict()
    for name, values in columns.items():
        if "median_ms" in values:
            counted = tokens_of(VARIANTS[name], inputs)
            tokens = Tokens(values["forward_tokens"], values["backward_tokens"], counted.labeled, counted.trained)
            work = steps(VARIANTS[name], config, options.dtype, tokens)
            columns[name] |= columns_of(work, rates, values["median_ms"])


def predictions(rates: Rates) -> Iterator[dict[str, Any]]:
    """A row for each variant of the step in the repository, in bfloat16 on a GPU of these rates."""
    inputs = load_tokens(STEP)
    for name, variant in VARIANTS.items():
        work = steps(variant, QWEN, torch.bfloat16, tokens_of(variant, inputs))
        case = f"{RANDOM}, {inputs.supervision_tokens} labeled tokens"
        yield {"benchmark": NAME, "case": case, "line": name, **columns_of(work, rates)}


def add_peak(
    options: argparse.Namespace, student: Student | None, inputs: Inputs, name: str, columns: dict[str, dict[str, Any]]
) -> None:
    """On a CPU in a fresh process, whose heap holds nothing that could be used again unseen."""
    print(f"{name}: peak memory", file=sys.stderr, flush=True)
    if student is None:
        peak = peak_extra_mib(
            "bench.training_step.variants:peak_call",
            warmup=0,
            kwargs={
                "variant": name,
                "model": options.model,
                "dtype": options.dtype,
                "inputs": inputs,
                "length": options.pack_length,
            },
        )
    else:
        call = warmed_up(VARIANTS[name], student, inputs, options.pack_length)
        peak = peak_extra_mib_here(call, device=options.device, warmup=0)
    columns[name]["peak_extra_mib"] = round(peak, 1)
    if "peak_extra_mib" in columns.get(REFERENCE, {}):
        columns[name]["memory_of_naive"] = round(peak / columns[REFERENCE]["peak_extra_mib"], 3)


def measure(options: argparse.Namespace, inputs: Inputs) -> Iterator[list[dict[str, Any]]]:
    """The result rows, again and again with one more peak of memory: a run that is stopped keeps what it has."""
    deadline = time.monotonic() + 60 * options.minutes
    student = build_student(options.model, options.dtype, options.device)
    columns, seconds = judge(options, student, inputs)
    rounds = int((deadline - time.monotonic()) / max(seconds, 1e-3)) - 1  # one is for the memory
    add_times(options, student, inputs, columns, max(min(2, options.repeats), min(options.repeats, rounds)))
    if options.device == "cuda":
        add_predictions(options, student, inputs, columns)
    else:
        student = None  # a fresh process builds its own, and needs the room
    shared = facts(options, inputs)
    for name in [None, *(name for name, values in columns.items() if "median_ms" in values)]:
        if name:
            add_peak(options, student, inputs, name, columns)
        yield [{**shared, "variant": variant, **values} for variant, values in columns.items()]


def parse(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, Path]:
    """The options, and the file of the results."""
    parser = command.options_of(
        NAME,
        __doc__ or "",
        draw=True,
        minutes="fewer repeats, but at least two, if they would end later than this",
    )
    parser.add_argument(
        "--data",
        type=command.readable_file,
        help="questions with rationales (`mind data import`); default: word problems",
    )
    parser.add_argument(
        "--questions",
        type=command.count,
        help="of the step, each with all its rationales; default: 4, but one "
        "word problem on a CPU, for a run of minutes",
    )
    parser.add_argument(
        "--max-length",
        type=command.count,
        default=MAX_LENGTH,
        help=f"only questions whose sequences have at most so many tokens (default {MAX_LENGTH})",
    )
    parser.add_argument("--tokens", type=command.readable_file, help="the step of --save-tokens, in place of both")
    parser.add_argument("--save-tokens", type=Path, help="only write the step's tokens")
    parser.add_argument("--model", choices=MODELS, help=f"default: {SMOLLM2}, on CUDA {RANDOM}")
    parser.add_argument(
        "--pack-length", type=command.count, help="tokens of a row and a micro-batch; default: 512, on CUDA 4096"
    )
    parser.add_argument("--providers", nargs="+", choices=VARIANTS, help="default: all that run on the device")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: float32, on CUDA bfloat16")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--repeats", type=command.count, default=3, help="timed steps (default 3)")
    options, file = command.parse(
        parser,
        lambda options: NAME + "_cuda" * (options.device == "cuda"),
        arguments,
        measures=lambda options: options.save_tokens is None,
    )
    cuda = options.device == "cuda"
    options.questions = options.questions or (4 if cuda or options.data else 1)
    options.model = options.model or (RANDOM if cuda else SMOLLM2)
    options.pack_length = options.pack_length or (4096 if cuda else 512)
    options.dtype = getattr(torch, options.dtype or ("bfloat16" if cuda else "float32"))
    options.providers = options.providers or [name for name, variant in VARIANTS.items() if cuda or not variant.peer]
    return options, file


def main(arguments: Sequence[str] | None = None) -> None:
    options, path = parse(arguments)
    if not options.draw:
        inputs = (
            load_tokens(options.tokens)
            if options.tokens
            else tokenized_step(options.questions, options.data, options.max_length)
        )
        if options.save_tokens:
            save_tokens(inputs, options.save_tokens)
            return
        for rows in measure(options, inputs):
            write_results(rows, path)
    print_table(read_results(path), COLUMNS)
    try:
        print(draw(path))
    except ImportError as error:  # a bare GPU box: --draw does it elsewhere
        print(f"no picture: {error}")


if __name__ == "__main__":
    command.program(NAME, main)
