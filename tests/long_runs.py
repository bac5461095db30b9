"""Calls every operation very often and trains for thousands of steps; memory, files, threads and times must not grow.

    python -m tests.long_runs [--calls 100000] [--steps 2000] [--only NAME ...] [--output bench/results]

Prints a line per operation and backend with what it used at a tenth of the calls and at the end, writes all samples as
JSON lines (long_runs.jsonl), and ends with status 1 if one of them grew.
"""

from __future__ import annotations

import argparse
import functools
import gc
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "MIND_KERNELS_TUNING": "none", "TOKENIZERS_PARALLELISM": "false"}
for folder in ("kernels", "mind"):
    sys.path.insert(0, str(Path(__file__).with_name(folder)))

SAMPLES = 20
GROWTH_MIB = 4.0
"""Between a tenth of the calls and the end: less than 50 bytes per call of 100,000."""
SLOWER = 1.5
"""Processor time per call at the end, beside the median of all samples."""


def used(process: int | str = "self") -> dict[str, float]:
    """Resident memory (MiB), open files, threads and seconds of processor time of a process."""
    place = Path("/proc", str(process))
    status = dict(line.split(":", 1) for line in (place / "status").read_text().splitlines())
    ticks = sum(map(int, (place / "stat").read_text().rpartition(")")[2].split()[11:13]))
    return {
        "rss_mib": int(status["VmRSS"].split()[0]) / 1024,
        "files": len(list((place / "fd").iterdir())),
        "threads": int(status["Threads"]),
        "cpu_s": ticks / os.sysconf("SC_CLK_TCK"),
    }


def repeat(call: Callable[[], None], calls: int) -> Iterator[dict[str, float]]:
    """What the process uses before the calls, and after each twentieth of them."""
    call()
    yield {"calls": 0, **used()}
    for sample in range(1, SAMPLES + 1):
        for _ in range(calls // SAMPLES):
            call()
        gc.collect()
        yield {"calls": sample * (calls // SAMPLES), **used()}


def operations() -> Iterator[tuple[str, Callable[[], None]]]:
    """Forward and backward pass of every loss of tests/kernels/losses.py, by every backend that compiled code runs."""
    import torch
    from cases import device_of, interpreted, usable
    from losses import LOSSES, make_constants

    rows, width, vocabulary = 12, 8, 61
    for loss in LOSSES:
        for backend in usable(loss.operation):
            if interpreted(backend):
                continue
            device = device_of(backend)
            constants = {k: v.to(device) for k, v in make_constants(rows, vocabulary).items()}
            hidden = torch.randn(rows, width, device=device).requires_grad_()
            head = torch.randn(vocabulary, width, device=device).requires_grad_()

            def call(loss=loss, hidden=hidden, head=head, constants=constants, backend=backend) -> None:
                loss(hidden, head, constants, backend=backend).backward()
                hidden.grad = head.grad = None

            yield f"{loss.name}, {backend}", call


def per_call_us(samples: list[dict[str, float]]) -> list[float]:
    """Processor time between each sample and the next."""
    return [1e6 * (b["cpu_s"] - a["cpu_s"]) / (b["calls"] - a["calls"]) for a, b in itertools.pairwise(samples)]


def grew(samples: list[dict[str, float]]) -> list[str]:
    """What grew after the first tenth."""
    begin, end, times = samples[SAMPLES // 10], samples[-1], per_call_us(samples)
    found = [name for name in ("files", "threads") if end[name] > begin[name]]
    if end["rss_mib"] - begin["rss_mib"] > GROWTH_MIB:
        found.append("rss_mib")
    if statistics.median(times[-3:]) > SLOWER * statistics.median(times):
        found.append("cpu_s")
    return found


def train(steps: int) -> list[dict[str, float]]:
    """`mind train` of a tiny student in a process of its own, seen from outside; the steps' times from its metrics."""
    from test_replicas import words_of, write_questions

    with tempfile.TemporaryDirectory() as place:
        write_questions(Path(place))
        words = words_of("run", "--train.max-steps", str(steps), "--train.save-steps", str(max(1, steps // SAMPLES)))
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
        process = subprocess.Popen([sys.executable, "-m", "mind", *words], cwd=place, env=environment)
        output = Path(place) / "run"
        samples, metrics = [], output / "metrics.jsonl"
        while process.poll() is None:
            time.sleep(0.2)
            done = metrics.read_bytes().count(b'"step"') if metrics.exists() else 0
            if done > (len(samples) + 0.5) * steps / (SAMPLES + 1):  # the first are of the start
                samples.append({"calls": done, **used(process.pid)})
        if process.returncode:
            sys.exit(f"mind train ended with status {process.returncode}")
    return samples


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--calls", type=int, default=100_000)
    parser.add_argument("--steps", type=int, default=2000, help="of training; 0: none")
    parser.add_argument("--only", nargs="+", metavar="NAME", help='such as "sparse, cpp"; default: all')
    parser.add_argument("--output", type=Path, default=Path("runs"))
    options = parser.parse_args()
    from bench.measure import add_results

    failed = False
    for name, samples in measured(options.calls, options.steps, options.only):
        bad, begin, end, times = grew(samples), samples[SAMPLES // 10], samples[-1], per_call_us(samples)
        said = ", ".join(f"{key} {begin[key]:.0f} to {end[key]:.0f}" for key in ("rss_mib", "files", "threads"))
        said += f", per call {times[0]:.0f} to {times[-1]:.0f} us"
        print(f"{name}: {end['calls']:.0f} calls, {said}{', GREW: ' + ', '.join(bad) if bad else ''}", flush=True)
        add_results([{"name": name, "grew": bad, "samples": samples}], options.output / "long_runs.jsonl", "name")
        failed |= bool(bad)
    sys.exit(failed)


def measured(calls: int, steps: int, only: list[str] | None) -> Iterator[tuple[str, list[dict[str, float]]]]:
    runs: dict[str, Callable[[], Iterable[dict[str, float]]]] = {
        name: functools.partial(repeat, call, calls) for name, call in operations()
    }
    if steps:
        runs["mind train"] = functools.partial(train, steps)
    if unknown := set(only or ()) - set(runs):
        sys.exit(f"no {', nor '.join(sorted(unknown))} among:\n" + "\n".join(runs))
    for name in only or runs:
        yield name, list(runs[name]())


if __name__ == "__main__":
    main()
