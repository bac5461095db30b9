"""A loss benchmark: its inputs, definitions and providers, and how one case of it is measured."""

from __future__ import annotations

import pkgutil
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch

from bench.comparison.gate import Definition, Gate, Gates
from bench.comparison.heads import HEADS
from bench.comparison.provider import Outputs, Provider, step
from bench.measure import Timing, measure_time, peak_extra_mib, peak_extra_mib_here
from bench.roofline import Logits, Rates, Step, milliseconds
from bench.roofline import columns as columns_of
from mind.display import one_line
from mind_kernels import BackendUnavailableError


class Size(NamedTuple):
    """A number of rows or groups: its letter in the results, and the values of a run without options."""

    letter: str
    cpu: Sequence[int]
    cuda: Sequence[int]


@dataclass(frozen=True)
class Benchmark:
    """The constant BENCHMARK of the module bench.<name>.__main__."""

    name: str
    load: Callable[..., Any]
    """A case -> its inputs, with `hidden`, `weight` and `label`: the same in any process."""
    on_meta: Callable[..., Any]
    """The same on the meta device, of a case without device and data: shapes alone."""
    describe: Callable[[Any], dict[str, float]]
    """What makes the inputs easy or hard."""
    definitions: Mapping[str, Definition]
    """By the names in Provider.judged_by; "loss" is the main one."""
    providers: Mapping[str, Provider]
    cpu: Sequence[str]
    """Providers of a run without options; on CUDA all that run there, but "auto"."""
    eager: str
    """The provider whose time and memory are 1."""
    sizes: Mapping[str, Size]
    """Options of the command line and arguments of `load`."""
    cuda_models: Sequence[str]
    columns: Sequence[str]
    """Those of the table; the results have more."""

    def defaults(self, device: str) -> list[str]:
        if device == "cpu":
            return list(self.cpu)
        return [
            name
            for name, provider in self.providers.items()
            if provider.backend != "auto" and provider.tensors in ("any", device)
        ]

    def with_own(self, names: Sequence[str]) -> Benchmark:
        """The benchmark with a provider for each of the `names` that is "module:function".

        Such a function takes the inputs and returns the loss, and is judged like a peer. Raises ImportError or
        AttributeError if there is none, and ValueError for another name that is unknown.
        """
        own = {}
        for name in names:
            if name in self.providers:
                continue
            if ":" not in name:
                raise ValueError(f"{name}: expected {', '.join(self.providers)}, or module:function")
            if not callable(pkgutil.resolve_name(name)):
                raise ValueError(f"{name} is not callable: expected a function of the inputs")
            own[name] = Provider(pkgutil.resolve_name(name), imports=name)
        return replace(self, providers={**self.providers, **own})

    def labels(self, case: Mapping[str, Any]) -> dict[str, Any]:
        """What a result row says of a case that has not been loaded."""
        vocabulary, size = HEADS[case["model"]]
        sizes = {of.letter: case[name] for name, of in self.sizes.items()}
        return {
            "kind": case["device"],
            "model": case["model"],
            **sizes,
            "V": vocabulary,
            "D": size,
            "dtype": str(case["dtype"]).removeprefix("torch."),
        }

    def work(self, name: str, case: Mapping[str, Any], facts: Mapping[str, float]) -> Sequence[Step] | None:
        """What a provider has to do in a case."""
        shapes = {key: value for key, value in case.items() if key not in ("device", "data")}
        return self.providers[name].work(self.on_meta(**shapes), facts)

    def predictions(self, rates: Rates) -> Iterator[dict[str, Any]]:
        """A row for each provider of a run without options on a GPU of these rates, in its first case."""
        sizes = {name: size.cuda[0] for name, size in self.sizes.items()}
        case = {"model": self.cuda_models[0], **sizes, "dtype": torch.bfloat16}
        labels = self.labels({**case, "device": "cuda"})
        shape = ", ".join(f"{key} {labels[key]}" for key in (*(of.letter for of in self.sizes.values()), "V", "D"))
        inputs = self.on_meta(**case)
        roof = milliseconds([Logits.of(inputs.hidden, inputs.weight).products(3)], rates)
        for name in self.defaults("cuda"):
            if (steps := self.work(name, case, {})) is not None:
                predicted = columns_of(steps, rates)
                ratio = round(predicted["predicted_ms"] / roof, 3)
                yield {"benchmark": self.name, "case": shape, "line": name, **predicted, "times_roof": ratio}


def judge(names: Sequence[str], providers: Mapping[str, Provider], gates: Gates) -> dict[str, dict[str, Any]]:
    """The errors of each provider, a remark if they are large, or a note that says why it is not to be timed.

    One of ours that is wrong, or that fails if it is available, has a `fault`.
    """
    verdicts: dict[str, dict[str, Any]] = {}
    for name in names:
        provider, verdicts[name] = providers[name], {}
        if reason := provider.reason_absent(gates.inputs):
            verdicts[name] = {"note": f"not run: {reason}"}
            continue
        for definition in provider.judged_by:
            errors, note, remark, ours = _trial(provider, gates[definition])
            verdicts[name] = {**errors, **verdicts[name]}  # those against the first definition stay
            if note:
                verdicts[name] |= {"note": note} | ({"fault": True} if ours else {})
                break
            if remark:
                verdicts[name].setdefault("remark", remark)
    return verdicts


def _trial(provider: Provider, gate: Gate) -> tuple[dict[str, float], str, str, bool]:
    """(errors, why it is not to be timed, what is to be said beside its time, whether that is a fault of ours)"""
    ours = provider.backend is not None
    try:
        found = step(provider, gate.inputs)()
    except Exception as error:
        if ours and not isinstance(error, BackendUnavailableError):
            traceback.print_exc()
        first, *_ = str(error).splitlines() or [""]
        note = f"not run: {type(error).__name__}: {one_line(first, 200)}"
        return {}, note, "", ours and not isinstance(error, BackendUnavailableError)
    note = remark = ""
    try:
        gate.check(provider, found)
        remark = gate.remark(provider, found)
    except AssertionError as error:
        note = f"wrong: {error}"
    errors = gate.errors(found)
    shown = {"loss_error": errors["loss_error"]} if provider.loss_only else errors
    return shown, note, remark, ours and bool(note)


def build(benchmark: str, provider: str, **case: Any) -> Callable[[], Outputs]:
    """`step` by names, with inputs made anew: what a fresh process starts from."""
    found: Benchmark = pkgutil.resolve_name(f"bench.{benchmark}.__main__:BENCHMARK").with_own([provider])
    return step(found.providers[provider], found.load(**case))


def peak(benchmark: Benchmark, name: str, case: Mapping[str, Any], inputs: Any) -> float:
    """On a CPU in a fresh process, whose heap holds nothing that could be used again unseen."""
    if case["device"] == "cpu":
        names = {"benchmark": benchmark.name, "provider": name}
        return peak_extra_mib("bench.comparison.benchmark:build", {**names, **case})
    return peak_extra_mib_here(step(benchmark.providers[name], inputs), device=case["device"], warmup=0)  # it was timed


def measure_case(
    benchmark: Benchmark, case: Mapping[str, Any], names: Sequence[str], repeats: int, rates: Rates
) -> Iterator[list[dict[str, Any]]]:
    """One result row a provider, for the inputs that `case` (the arguments of benchmark.load) describes.

    First the errors alone, then the times too: a run that is stopped keeps what it has.
    """
    inputs = benchmark.load(**case)
    described = benchmark.describe(inputs)
    facts = {
        **benchmark.labels(case),
        **described,
        "inputs": inputs.label,
        "roof_tflops": round(rates.tflops, 3),
        "copy_gb_s": round(rates.gb_s, 1),
    }
    gates = Gates(benchmark.definitions, inputs)
    columns = judge(names, benchmark.providers, gates)
    facts |= {f"dense_bf16_{name}": value for name, value in gates["loss"].yardstick.items()}
    del gates  # they hold dW in full precision
    yield [{**facts, "provider": name, **columns[name]} for name in names]
    timed = [name for name in names if "note" not in columns[name]]
    steps = {name: step(benchmark.providers[name], inputs) for name in timed}
    # Judging was the first call. A second one lets a GPU settle; on a CPU it would take a minute and change nothing.
    timings = measure_time(steps, gate=None, repeats=repeats, warmup=2 if inputs.hidden.is_cuda else 1)
    on_gpu = inputs.hidden.is_cuda  # on a CPU, what the caches save decides
    tflop = 6e-12 * inputs.hidden.numel() * len(inputs.weight)
    for name in timed:
        provider, rate = benchmark.providers[name], 1e3 * tflop / timings[name].median_ms
        columns[name] |= {
            **timings[name].row(),
            "tflops": round(rate, 4),
            "times_roof": round(rates.tflops / rate, 3),
            **(columns_of(benchmark.work(name, case, described), rates, timings[name].median_ms) if on_gpu else {}),
            "peak_extra_mib": round(peak(benchmark, name, case, inputs), 1),
            "package": provider.package(),
            **(provider.report(inputs) if provider.report else {}),
        }
        if notes := [note for note in (provider.note, columns[name].pop("remark", None)) if note]:
            columns[name]["note"] = "; ".join(notes)
    _add_ratios(benchmark, columns, timings)
    yield [{**facts, "provider": name, **columns[name]} for name in names]


def _add_ratios(benchmark: Benchmark, columns: Mapping[str, dict[str, Any]], timings: Mapping[str, Timing]) -> None:
    peers = [name for name in timings if not (benchmark.providers[name].backend or benchmark.providers[name].forward)]
    fastest = min(peers, key=lambda name: timings[name].median_ms, default=None)
    for name, timing in timings.items():
        if fastest is not None and not benchmark.providers[name].forward:
            columns[name]["time_of_peer"] = round(timing.median_ms / timings[fastest].median_ms, 3)
        times_of = {"time_of_eager": benchmark.eager, **benchmark.providers[name].times_of}
        for column, other in times_of.items():
            if other in timings:
                columns[name][column] = round(timing.median_ms / timings[other].median_ms, 3)
        if benchmark.eager in timings:
            memory = columns[benchmark.eager]["peak_extra_mib"]
            columns[name]["memory_of_eager"] = round(columns[name]["peak_extra_mib"] / memory, 3)
