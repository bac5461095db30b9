"""Writes the tables of these PAGES from bench/results: `python -m docs.tables` after new results.

A table is between the comments `<!-- table NAME -->` and `<!-- end -->`. tests/test_docs.py fails if one is stale.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.measure import RESULTS, read_results
from bench.roofline import DEVICES
from docs.experiment_tables import accuracies, differences, latent
from docs.generated import replaced, table
from docs.trust_tables import chaos, compatibility, fuzz, guided, long_runs, mutation, source_coverage
from mind.intervals import paired_difference, wilson

DOCS = Path(__file__).resolve().parent
PAGES = tuple(
    DOCS / page
    for page in ("performance.md", "experiments.md", "testing.md", "how-to/resume.md", "reference/compatibility.md")
)
NAME = re.compile(r"<!-- table ([\w-]+) -->")

Row = dict[str, Any]

PROVIDERS = {
    "eager": "eager PyTorch",
    "torch.compile": "`torch.compile` of it",
    "torch.compile max-autotune": "`torch.compile`, max-autotune",
    "F.linear_cross_entropy, 1024 rows": "`torch.nn.functional.linear_cross_entropy`, chunks of 1024 rows",
    "F.linear_cross_entropy, 2048 rows": "the same, chunks of 2048 rows",
    "F.linear_cross_entropy, 4096 rows": "the same, one chunk",
    "TRL": "TRL 1.16, chunked log-probabilities",
    "mind_kernels exact": "`linear_cross_entropy`",
    "mind_kernels gradient_error 3e-05": "`linear_cross_entropy`, `gradient_error=3e-5`",
    "mind_kernels sparse 2^-18": "`linear_cross_entropy`, `gradient_threshold=2**-18`",
    "mind_kernels sparse 2^-16": "`linear_cross_entropy`, `gradient_threshold=2**-16`",
    "mind_kernels sparse 2^-12": "`linear_cross_entropy`, `gradient_threshold=2**-12`",
    "eager scoring": "eager PyTorch without a gradient",
    "mind_kernels scoring": "`linear_cross_entropy` without a gradient",
    "mind_kernels torch exact": "`linear_cross_entropy`, backend `torch`",
    "mind_kernels torch sparse 2^-12": "`linear_cross_entropy`, backend `torch`, `gradient_threshold=2**-12`",
}
PAIRS = {
    "eager, loop over pairs": "eager PyTorch, loop over pairs",
    "eager, loop over unbound rows": "the same with unbound rows",
    "eager, vectorised": "eager PyTorch, all pairs at once",
    "torch.compile": "`torch.compile` of that",
    "mind_kernels torch": "`linear_pairwise_jsd`, backend `torch`",
    "mind_kernels": "`linear_pairwise_jsd`",
    "mind_kernels mixture": "`linear_pairwise_jsd`, mixture form",
}
JOINT = {
    "eager": "eager PyTorch, all pairs at once",
    "linear_cross_entropy alone": "`linear_cross_entropy` alone",
    "two calls": "`linear_cross_entropy` and `linear_pairwise_jsd`",
    "mind_kernels exact": "`linear_mind_loss`",
    "linear_cross_entropy alone, sparse 2^-12": "`linear_cross_entropy` alone, `gradient_threshold=2**-12`",
    "mind_kernels sparse 2^-12": "`linear_mind_loss`, `gradient_threshold=2**-12`",
}
STEPS = {
    "naive": "naive: padded batch, all logits, plain losses",
    "packed": "packed, logits of labeled rows",
    "+ shared prompts": "shared prompts",
    "+ selected only": "backward for the selected alone",
    "+ fused losses": "fused losses",
    "+ sparse gradient": "`gradient_threshold=2**-12`",
}


def rows_of(name: str) -> list[Row]:
    return read_results(RESULTS / f"{name}.jsonl")


def error(row: Row) -> str:
    """Of dH and dW."""
    names = ("d_hidden_error", "d_weight_error")
    return ", ".join(f"{row[name]:.1e}".replace("e-0", "e-") for name in names) if names[0] in row else ""


def losses(name: str, labels: dict[str, str]) -> str:
    """Time, memory and error of the providers of a loss; each time and memory also as a share of eager's."""
    measured = {row["provider"]: row for row in rows_of(name) if "median_ms" in row}
    body = []
    for provider, label in labels.items():
        if row := measured.get(provider):
            eager = measured["eager scoring" if "scoring" in provider else next(iter(labels))]
            time = f"{row['median_ms'] / 1000:.2f} s ({row['median_ms'] / eager['median_ms']:.2f})"
            body.append([label, time, f"{row['peak_extra_mib']:.0f} MiB ({row['memory_of_eager']:.3f})", error(row)])
    head = ["", "median time (share of eager's)", "peak extra memory (share)", "error of dH, dW against float64"]
    return table(head, body)


def step() -> str:
    body = [
        [
            STEPS[row["variant"]],
            f"{row['median_ms'] / 1000:.1f} s ({row['speedup']:.1f}x)",
            f"{row['tokens_per_s']:.0f}",
            f"{row['peak_extra_mib'] / 1024:.1f} GiB ({row['memory_of_naive']:.2f})",
            f"{row['grad_error']:.1e}".replace("e-0", "e-"),
        ]
        for row in rows_of("train_step")
    ]
    head = ["each with one change to the one before", "median time (speed-up)", "labeled tokens/s"]
    return table([*head, "peak extra memory (share of naive's)", "error of all gradients against float64"], body)


def divergences(name: str) -> str:
    ways = ("eager", "torch", "cpp")
    times = {(row["case"], row["way"]): row["median_ms"] / 1000 for row in rows_of(name)}
    cases = dict.fromkeys(case for case, _ in times)
    body = [[case, *(f"{times[case, way]:.2f} s" if (case, way) in times else "" for way in ways)] for case in cases]
    return table(["divergence, teacher", "eager PyTorch", "backend `torch`", "backend `cpp`"], body)


def row_kernels() -> str:
    body = [
        [row["kernel"], f"{row['median_ms']:.1f} ms", f"{row['gb_s']:.1f} GB/s", f"{row['share_of_copy']:.2f}"]
        for row in rows_of("row_kernels")
    ]
    return table(["on 256 rows of logits", "median time", "bandwidth", "share of a plain copy's"], body)


LOSSES = {
    "linear_cross_entropy": ("`linear_cross_entropy`", 8192),
    "linear_pairwise_jsd": ("`linear_pairwise_jsd`, 128 groups of 8", 1024),
    "linear_mind_loss": ("`linear_mind_loss`, of these 1,024 answer rows", 16384),
}
"""What is computed, and of how many rows, in kernel_times_cuda."""


def gpu_calls() -> str:
    body = []
    for row in rows_of("kernel_times_cuda"):
        if row["kernel"] == "all":
            loss, rows = LOSSES[row["loss"]]
            products = 6e-9 * rows * row["V"] * row["D"] / DEVICES[row["device"]].tflops
            backend = row["provider"].removeprefix("mind_kernels ")
            times = (f"{row[name]:.1f} ms" for name in ("wall_ms", "busy_ms"))
            body.append([f"{loss}, {rows:,} rows", backend, *times, f"{products:.1f} ms"])
    head = ["forward and backward", "backend", "call", "kernels, summed", "three dense products at 790 TFLOP/s"]
    return table(head, body)


def packing() -> str:
    body = [
        [row["lengths"], row["packer"], f"{row['median_ms'] / 1000:.2f} s", f"{row['bins']:,}", f"{row['at_least']:,}"]
        for row in rows_of("packing")
    ]
    return table(["lengths", "packer", "median time", "bins", "lower bound of bins"], body)


def trainer_memory() -> str:
    body = [
        [row["loss"], "on" if row["checkpointing"] else "off", f"{row['peak_mib']:,.0f} MiB ({row['of_stock']:.2f})"]
        for row in rows_of("trainer_memory")
    ]
    return table(["loss", "gradient checkpointing", "peak memory of a step (share of stock)"], body)


def fsdp_memory() -> str:
    body = [
        [row["shard"], f"{row['state_mib']:,.0f} MiB", f"{row['peak_mib']:,.0f} MiB ({row['of_replica']:.2f})"]
        for row in rows_of("fsdp_memory")
    ]
    return table(["`train.shard`", "weights and optimizer's state per process", "peak of a process (share)"], body)


def split_heads() -> str:
    """Time as a share of the unsharded exact call's, collectives, and MiB that a process sends, per number of rows."""
    rows = [row for row in rows_of("vocabulary_parallel") if row["case"] == "measured"]
    counts = sorted({row["N"] for row in rows})
    of = {(row["way"], row["N"]): row for row in rows}
    body = []
    for way in dict.fromkeys(row["way"] for row in rows):
        times = [f"{of[way, n]['median_ms'] / 1000:.2f} s ({of[way, n]['of_unsharded']:.2f})" for n in counts]
        last = of[way, counts[-1]]
        sent = [str(last["collectives"]), f"{last['sent_mib']:,.0f}"] if "collectives" in last else ["–", "–"]
        body.append([way, *times, *sent])
    return table(["way", *(f"{n:,} rows" for n in counts), "collectives", "MiB sent per process"], body)


def split_heads_on_paper() -> str:
    """What the least that products, bytes and links take comes to on GPUs."""
    rows = [row for row in rows_of("vocabulary_parallel") if row["case"] != "measured"]
    body = [[row["way"], str(row["gpus"]), f"{row['total_ms']:.1f} ms", f"{row['sent_mib']:,.0f}"] for row in rows]
    return table(["way", "GPUs", "time", "MiB sent per GPU"], body)


def parts() -> str:
    cpu_s: dict[str, dict[str, float]] = {}
    for row in rows_of("train_parts"):
        cpu_s.setdefault(row["part"], {})[row["version"]] = row["cpu_s"]
    body = [
        [part, f"{found['before']:.1f} s", f"{found['after']:.1f} s ({found['after'] / found['before']:.2f})"]
        for part, found in cpu_s.items()
        if found["before"] >= 1
    ]
    return table(["part", "before", "after (share)"], body)


def generation() -> str:
    body = [
        [str(row["batch_size"]), f"{row['cpu_s']:.1f} s", f"{row['tokens_per_cpu_s']:.1f}"]
        for row in rows_of("generation")
    ]
    return table(["questions at once", "processor time", "tokens per second of it"], body)


def coverage() -> str:
    def percent(share: Any) -> str:
        return f"{100 * share:.1f} %"

    body = [
        [row["scenario"], percent(row["coverage"]), percent(row["bootstrap coverage"])]
        for row in rows_of("coverage")
        if "coverage" in row
    ]
    return table(["scenario", "interval of `mind compare`", "plain bootstrap"], body)


def answers(row: Row) -> list[tuple[bool, bool]]:
    """Whether each question of a run of `make train` was right before and after, as far as a difference needs it."""
    gained, lost = row["gained"], row["lost"]
    return [(False, True)] * gained + [(True, False)] * lost + [(True, True)] * (row["questions"] - gained - lost)


def make_train() -> str:
    """Accuracies with Wilson's intervals, and the difference with that of paired answers."""

    def share(correct: int, total: int) -> str:
        low, high = wilson(correct, total)
        return f"{100 * correct / total:.1f} % ({100 * low:.1f} to {100 * high:.1f})"

    body = []
    for row in rows_of("make_train"):
        before, after, total = (row[name] for name in ("correct_before", "correct_after", "questions"))
        low, high = paired_difference(answers(row))
        change = f"{100 * (after - before) / total:+.1f} points ({100 * low:.1f} to {100 * high:.1f})"
        less = 100 * (row["nll_after"] / row["nll_before"] - 1)
        body.append(
            [
                "`make train`" if row["seed"] == 0 else f"`make train SEED={row['seed']}`",
                f"{row['nll_before']:.3f} -> {row['nll_after']:.3f} ({less:.1f} %)",
                share(before, total),
                share(after, total),
                change,
                f"{row['cut_off_before']}, {row['cut_off_after']}" if "cut_off_before" in row else "–",
                f"{row['minutes']:.1f} min, {row['tokens_per_s']} labeled tokens/s",
            ]
        )
    return table(
        ["run", "held-out NLL", "accuracy before", "accuracy after", "difference", "cut off before, after", "time"],
        body,
    )


COMMANDS = {
    "busy_machine": "python -m bench.busy_machine",
    "chaos": "python -m tests.chaos",
    "compatibility": "python tests/compatibility.py PYTHON",
    "coverage": "python -m bench.coverage",
    "dataset": "python -m bench.dataset --data RATIONALES",
    "experiment_kills": "python tests/mind/experiment_kills.py 20 0 FILE",
    "fsdp_memory": "python -m bench.fsdp_memory",
    "fuzz": "python -m tests.fuzz TIER",
    "generation": "python -m bench.generation --new-tokens 12 --turns 1",
    "kernel_resources": "python -m bench.kernel_resources",
    "kernel_times_cuda": "python -m bench.kernel_times --device cuda",
    "latent": "python -m bench.latent --student bench/testbed/student",
    "linear_cross_entropy": "python -m bench.linear_cross_entropy --data RECORDS",
    "linear_cross_entropy_avx2": "python -m bench.linear_cross_entropy --data RECORDS --providers eager ...",
    "linear_cross_entropy_kept": "MALLOC_MMAP_MAX_=0 ... python -m bench.linear_cross_entropy --data RECORDS ...",
    "linear_divergence": "python -m bench.linear_divergence",
    "linear_divergence_avx2": "python -m bench.linear_divergence",
    "linear_divergence_kept": "MALLOC_MMAP_MAX_=0 ... python -m bench.linear_divergence --repeats 11",
    "linear_mind_loss": "python -m bench.linear_mind_loss --data RECORDS",
    "linear_pairwise_jsd": "python -m bench.linear_pairwise_jsd --data RECORDS",
    "linear_pairwise_jsd_avx2": "python -m bench.linear_pairwise_jsd --data RECORDS --providers ...",
    "linear_pairwise_jsd_compiled": "python -m bench.linear_pairwise_jsd --data RECORDS",
    "long_runs": "python -m tests.long_runs",
    "make_train": "python -m bench.make_train runs/demo runs/demo-1 runs/demo-2",
    "methods": "python -m bench.methods",
    "methods-svamp": "python -m bench.methods --data RECORDS",
    "mutation": "python -m tests.mutation",
    "packing": "python -m bench.packing",
    "replica_kills": "python tests/mind/replica_kills.py",
    "replica_kills_fsdp2": "python tests/mind/replica_kills.py 10 2 FILE fsdp2",
    "row_confidence": "python -m bench.row_confidence --data RECORDS",
    "row_kernels": "python -m bench.row_kernels --data RECORDS",
    "selection": "python -m bench.selection",
    "selection-svamp": "python -m bench.selection --data RECORDS",
    "selection_tables": "python -m bench.selection_tables",
    "selection_tables-svamp": "python -m bench.selection_tables --data RECORDS",
    "shapes": "python -m bench.shapes --minutes 22",
    "source_coverage": "python -m tests.source_coverage",
    "sparse_error": "python -m bench.sparse_error",
    "sparse_training": "python -m bench.sparse_training --data RECORDS",
    "tests_cuda": "OUT=folder bench/on_gpu.sh",
    "train_parts": "python -m bench.train_parts",
    "train_step": "python -m bench.train_step --data RECORDS --questions 4 --max-length 240",
    "trainer_memory": "python -m bench.trainer_memory",
    "vocabulary_parallel": "python -m bench.vocabulary_parallel",
}
"""A file of bench/results -> the command that makes such a file."""


def files() -> str:
    body = []
    for name, command in COMMANDS.items():
        rows = [row for row in rows_of(name) if "time" in row]
        cpu = " and ".join(dict.fromkeys(row.get("cpu", "not recorded").split("(R)")[0] for row in rows))
        if rows and rows[0].get("device", "cpu") != "cpu":
            cpu = f"{rows[0]['device']} and {cpu}"
        machine = f"{cpu}, {rows[0]['threads']}" if rows else "compilers alone"
        date = max(row["time"] for row in rows)[:10] if rows else ""
        body.append([f"[{name}](../bench/results/{name}.jsonl)", f"`{command}`", machine, date])
    return table(["file", "command", "processor, threads", "date"], body)


TABLES: dict[str, Callable[[], str]] = {
    "linear_cross_entropy": lambda: losses("linear_cross_entropy", PROVIDERS),
    "linear_cross_entropy_avx2": lambda: losses("linear_cross_entropy_avx2", PROVIDERS),
    "linear_cross_entropy_kept": lambda: losses("linear_cross_entropy_kept", PROVIDERS),
    "linear_mind_loss": lambda: losses("linear_mind_loss", JOINT),
    "linear_pairwise_jsd": lambda: losses("linear_pairwise_jsd", PAIRS),
    "linear_pairwise_jsd_avx2": lambda: losses("linear_pairwise_jsd_avx2", PAIRS),
    "linear_pairwise_jsd_compiled": lambda: losses("linear_pairwise_jsd_compiled", PAIRS),
    "linear_divergence": lambda: divergences("linear_divergence"),
    "linear_divergence_avx2": lambda: divergences("linear_divergence_avx2"),
    "linear_divergence_kept": lambda: divergences("linear_divergence_kept"),
    "row_kernels": row_kernels,
    "kernel_times_cuda": gpu_calls,
    "train_step": step,
    "train_parts": parts,
    "make_train": make_train,
    "generation": generation,
    "packing": packing,
    "trainer_memory": trainer_memory,
    "fsdp_memory": fsdp_memory,
    "vocabulary_parallel": split_heads,
    "vocabulary_parallel-on-paper": split_heads_on_paper,
    "coverage": coverage,
    "files": files,
    "chaos": chaos,
    "compatibility": compatibility,
    "fuzz": fuzz,
    "fuzz-guided": guided,
    "long_runs": long_runs,
    "mutation": mutation,
    "source_coverage": source_coverage,
    "latent": latent,
    "word-problems-accuracies": lambda: accuracies("word-problems"),
    "word-problems-differences": lambda: differences("word-problems"),
    "svamp-accuracies": lambda: accuracies("svamp-smollm2"),
    "svamp-differences": lambda: differences("svamp-smollm2"),
}


def filled(text: str) -> str:
    """The page with its tables as the results have them."""
    for name in NAME.findall(text):
        text = replaced(text, f"<!-- table {name} -->", f"{TABLES[name]()}\n")
    return text


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(filled(page.read_text()))
