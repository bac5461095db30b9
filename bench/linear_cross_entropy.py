"""linear_cross_entropy beside its peers: time, peak extra memory and gradient error of forward and backward.

    python -m bench.linear_cross_entropy [--models SmolLM2-135M] [--rows 4096] [--providers eager "mind_kernels exact"]
        [--dtype float32] [--device cpu] [--data svamp.jsonl] [--repeats 5] [--minutes 8] [--output folder] [--draw]

Without options: on a CPU one model and four providers, about five minutes; on CUDA every model, row count and provider
in bf16. Every result passes the gate of bench/cross_entropy/gate.py before it is timed; peers that are absent or wrong
are listed with the reason. The roof is the time of the three dense products at the rate measured on the spot. Extra
memory counts the gradients. Writes linear_cross_entropy.jsonl (CUDA: _cuda) and a picture of its first case.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import torch

from bench.cross_entropy import inputs as inputs_of
from bench.cross_entropy.gate import Gate, Outputs
from bench.cross_entropy.inputs import HEADS, REAL, Inputs
from bench.cross_entropy.picture import draw
from bench.cross_entropy.providers import DEFAULTS, PROVIDERS, Provider, step
from bench.measure import (
    RESULTS,
    dense_tflops,
    free_bytes,
    measure_time,
    peak_extra_mib,
    peak_extra_mib_here,
    print_table,
    read_results,
    write_results,
)
from mind_kernels import BackendUnavailableError

COLUMNS = ("model", "N", "V", "D", "dtype", "provider", "median_ms", "p20_ms", "p80_ms", "tflops", "times_roof",
           "time_of_eager", "peak_extra_mib", "memory_of_eager", "d_hidden_error", "d_weight_error", "kept_mean",
           "kept_p99", "dropped_mass", "inputs", "note")
SHORT = ("model", "N", "provider", "median_ms", "times_roof", "time_of_eager", "peak_extra_mib", "d_hidden_error",
         "d_weight_error", "note")


def judge(names: list[str], inputs: Inputs, gate: Gate) -> dict[str, dict[str, Any]]:
    """The errors of each provider, or a note that says why it is not to be timed.

    One of ours that is wrong, or that fails where it is available, raises.
    """
    eager, verdicts = None, {}
    for name in sorted(names, key=lambda name: name != "eager"):  # eager first: our budget is twice its error
        provider = PROVIDERS[name]
        if reason := provider.reason_absent(inputs.hidden.device.type) or lack_of_memory(provider, inputs):
            verdicts[name] = {"note": f"not run: {reason}"}
            continue
        try:
            found = Outputs(*step(provider, inputs)())
        except Exception as error:
            if provider.backend and not isinstance(error, BackendUnavailableError):
                raise
            verdicts[name] = {"note": f"not run: {type(error).__name__}: {next(iter(str(error).splitlines()), '')}"}
            continue
        verdicts[name] = gate.errors(found)
        try:
            gate.check(provider, found, eager)
        except AssertionError as error:
            if provider.backend:
                raise AssertionError(f"{name}: {error}") from error
            verdicts[name]["note"] = f"wrong: {error}"
        if name == "eager":
            eager = found
    return verdicts


def lack_of_memory(provider: Provider, inputs: Inputs) -> str:
    """Says so where the logits that the provider holds at once exceed the free memory; else empty."""
    needed = provider.logits * len(inputs.hidden) * len(inputs.weight) * inputs.hidden.itemsize
    free = free_bytes(inputs.hidden.device.type)
    return f"its logits take {needed >> 30} GiB of {free >> 30} free" if needed > free else ""


def mean_dropped_mass(provider: Provider, inputs: Inputs) -> dict[str, float]:
    if not provider.sparse:
        return {}
    _, stats = provider.loss(inputs.hidden, inputs.weight, inputs.target, return_stats=True)
    return {"dropped_mass": float(stats.dropped_mass.mean())}


def peak(name: str, case: dict[str, Any], inputs: Inputs) -> float:
    """On a CPU in a fresh process, whose heap holds nothing that could be used again unseen."""
    if case["device"] == "cpu":
        return peak_extra_mib("bench.cross_entropy.providers:build", {"provider": name, **case})
    return peak_extra_mib_here(step(PROVIDERS[name], inputs), device=case["device"])


def measure_case(case: dict[str, Any], names: list[str], repeats: int, roof_tflops: float) -> list[dict[str, Any]]:
    """One result row a provider, for the inputs that `case` (the arguments of inputs.load) describes."""
    inputs = inputs_of.load(**case)
    facts = {**labels(case), **inputs_of.describe(inputs), "inputs": inputs.label, "roof_tflops": round(roof_tflops, 3)}
    gate = Gate(inputs)
    facts |= {f"dense_bf16_{name}": value for name, value in gate.yardstick.items()}
    columns = judge(names, inputs, gate)
    del gate  # it holds dW in full precision
    timed = [name for name in names if "note" not in columns[name]]
    timings = measure_time({name: step(PROVIDERS[name], inputs) for name in timed}, gate=None,  # judged above
                           repeats=repeats, warmup=2)
    tflop = 6e-12 * inputs.hidden.numel() * len(inputs.weight)
    for name in timed:
        provider, rate = PROVIDERS[name], 1e3 * tflop / timings[name].median_ms
        columns[name] |= {
            **timings[name].row(), "tflops": round(rate, 4), "times_roof": round(roof_tflops / rate, 3),
            "peak_extra_mib": round(peak(name, case, inputs), 1), "package": provider.package(),
            **mean_dropped_mass(provider, inputs)}
    if "eager" in timed:
        for name in timed:
            columns[name] |= {"time_of_eager": round(timings[name].median_ms / timings["eager"].median_ms, 3),
                              "memory_of_eager": round(columns[name]["peak_extra_mib"]
                                                       / columns["eager"]["peak_extra_mib"], 3)}
    return [{**facts, "provider": name, **columns[name]} for name in names]


def labels(case: dict[str, Any]) -> dict[str, Any]:
    """What identifies a case in a result row."""
    vocabulary, size = HEADS[case["model"]]
    return {"kind": case["device"], "model": case["model"], "N": case["rows"], "V": vocabulary, "D": size,
            "dtype": str(case["dtype"]).removeprefix("torch.")}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=HEADS, help="default: SmolLM2-135M, on CUDA all")
    parser.add_argument("--rows", nargs="+", type=int, help="default: 4096, on CUDA 8192 16384 4096 1024")
    parser.add_argument("--providers", nargs="+", choices=PROVIDERS, help="default: by device")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: float32, on CUDA bfloat16")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--data", type=Path, help="questions whose rationales give the real rows (`mind data import`); "
                        "default: word problems")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=8, help="no case starts later than this (default 8)")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of results and picture")
    parser.add_argument("--draw", action="store_true", help="only the table and the picture of an earlier run")
    options = parser.parse_args()
    cuda = options.device == "cuda"
    options.models = options.models or (list(HEADS) if cuda else [REAL])
    options.rows = options.rows or ([8192, 16384, 4096, 1024] if cuda else [4096])
    options.providers = options.providers or list(DEFAULTS[options.device])
    options.dtype = getattr(torch, options.dtype or ("bfloat16" if cuda else "float32"))
    return options


def main() -> None:
    options = parse()
    name = "linear_cross_entropy" + ("" if options.device == "cpu" else "_cuda")
    path = options.output / f"{name}.jsonl"
    if options.draw:
        show([row for row in read_results(path) if row["model"] in options.models], SHORT, path)
        return
    deadline = time.monotonic() + 60 * options.minutes
    roof_tflops = dense_tflops(options.dtype, options.device)
    rows: list[dict[str, Any]] = []
    for count in options.rows:
        for model in options.models:
            case = {"model": model, "rows": count, "dtype": options.dtype, "device": options.device,
                    "data": options.data}
            if time.monotonic() > deadline:
                rows.append({**labels(case), "note": f"not run: {options.minutes:g} minutes are over"})
            else:
                print(f"{model}, N {count}", file=sys.stderr, flush=True)
                rows += measure_case(case, options.providers, options.repeats, roof_tflops)
            write_results(name, rows, options.output)  # after each case: a run that is stopped keeps what it has
    show(rows, COLUMNS, path)


def show(rows: list[dict[str, Any]], columns: tuple[str, ...], results: Path) -> None:
    print_table(rows, columns)
    try:
        print(draw(results))
    except ImportError as error:  # a bare GPU box: --draw does it elsewhere
        print(f"no picture: {error}")


if __name__ == "__main__":
    main()
