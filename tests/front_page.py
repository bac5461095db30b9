"""The tables of README.md that are computed: where each backend is tested and measured, and what was measured.

    python -m tests.front_page        # writes both into README.md

tests/test_front_page.py fails if they are out of date. Figures come from bench/results, exactly as they are there, but
rounded. To add a row, add it to `results_table`.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from bench import sparse_training
from bench.measure import RESULTS, read_results
from docs.experiment_tables import comparison
from docs.generated import replaced, table
from docs.tables import answers, rows_of
from mind.intervals import paired_difference, wilson
from mind_kernels.backend import BACKENDS

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
RAN = RESULTS / "tests_cuda.jsonl"
"""What tests/ran.py noted on a GPU; not there if they never ran on one."""
NAMING = ("provider", "way", "kernel")
"""The fields of a result that may name the backend which was timed."""

Place = tuple[str, str]
"""A backend, and where: "cpu", "cuda" (a GPU), "interpreter" or "emulator" (code for GPUs, on a CPU)."""


def tested_here() -> set[Place]:
    """What the suites of tests/kernels run on a machine without a GPU. The reference is what they all compare with."""
    os.environ.setdefault("TRITON_INTERPRET", "1")  # as tests/conftest.py does
    if (folder := str(ROOT / "tests" / "kernels")) not in sys.path:
        sys.path.append(folder)
    of = importlib.import_module("implementations").of
    operations = {operation for backend in BACKENDS.values() for operation in backend.kernels}
    found = {("reference", "cpu")}
    for one in (one for operation in operations for one in of(operation) if not one.unavailable):
        place = "interpreter" if one.interpreted else "emulator" if one.emulated else one.device
        found.add((one.backend, place))
    return found


def tested_on_gpu(lines: Iterable[dict[str, Any]]) -> set[Place]:
    """The backends of which tests passed on a GPU, and none failed."""
    on_gpu = [line for line in lines if line["device"] != "cpu"]
    failed = {line["backend"] for line in on_gpu if line["failed"]}
    return {(line["backend"], "cuda") for line in on_gpu if line["passed"] and line["backend"] not in failed}


def failures(lines: Iterable[dict[str, Any]]) -> dict[str, str]:
    """Such as "8 of 1,843 tests failed", for the backends of which tests failed on a GPU."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for line in lines:
        if line["device"] != "cpu":
            counts[line["backend"]].update({outcome: line[outcome] for outcome in ("passed", "failed")})
    return {
        name: f"{count['failed']:,} of {count.total():,} tests failed"
        for name, count in counts.items()
        if count["failed"]
    }


def measured(rows: Iterable[dict[str, Any]]) -> set[Place]:
    """The backends that results with a time name, such as "mind_kernels cpp exact" or "torch gradient"."""
    found = set()
    for row in rows:
        for text in (row[name] for name in NAMING if name in row and row.keys() & {"median_ms", "wall_ms"}):
            name = text.removeprefix("mind_kernels ").split()[0]
            if name in BACKENDS:
                found.add((name, "cpu" if row["device"] == "cpu" else "cuda"))
    return found


def status_table(
    tested: Collection[Place], timed: Collection[Place], failed: Mapping[str, str] = MappingProxyType({})
) -> str:
    """A row per backend; a dash where it does not compute. `failed`: what `failures` says of tests on a GPU."""
    stand_ins = {"interpreter": "tested in Triton's interpreter", "emulator": "tested in an emulator of CUDA"}

    def cell(name: str, place: str) -> str:
        if BACKENDS[name].tensors not in ("any", place):
            return "–"
        words = [word for word, found in (("tested", tested), ("measured", timed)) if (name, place) in found]
        if place == "cuda" and name in failed:
            words.append(failed[name])
        return ", ".join(words) or "neither"

    rows = [("backend", "what it is", "CPU", "NVIDIA GPU", "GPU code run on a CPU")]
    for name, backend in BACKENDS.items():
        elsewhere = ", ".join(text for place, text in stand_ins.items() if (name, place) in tested) or "–"
        rows.append((f"`{name}`", backend.summary, cell(name, "cpu"), cell(name, "cuda"), elsewhere))
    return markdown(rows)


def markdown(rows: Sequence[Sequence[str]]) -> str:
    head, *body = rows
    return f"{table(head, body)}\n"


def seconds(milliseconds: float) -> str:
    return f"{milliseconds / 1000:.{2 if milliseconds < 10_000 else 1}f} s"


def memory(mib: float) -> str:
    return f"{mib:,.0f} MiB"


def cost(row: dict[str, Any]) -> str:
    """Its time and its memory."""
    return f"{seconds(row['median_ms'])}, {memory(row['peak_extra_mib'])}"


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def ends(low: float, high: float) -> str:
    """Of an interval, in percent or points."""
    return f"{100 * low:.1f} to {100 * high:.1f}"


def scientific(value: float) -> str:
    return f"{value:.1e}".replace("e-0", "e-")


def results_table() -> str:
    """What was measured, in the order of the page."""
    head = ("what", "compared with", "its figure", "this package", "command")
    return markdown([head, *_cross_entropy(), *_pairwise_jsd(), *_trainer(), *_step(), *_make_train(), *_experiment()])


def _cross_entropy() -> list[Sequence[str]]:
    of = {row["provider"]: row for row in rows_of("linear_cross_entropy")}
    eager, ours = of["eager"], of["mind_kernels exact"]
    chunked = [row for name, row in of.items() if name.startswith("F.linear_cross_entropy")]
    fastest = min(chunked, key=lambda row: row["median_ms"])
    what = f"`linear_cross_entropy`, {eager['N']:,} rows, vocabulary {eager['V']:,}, loss and gradients"
    sparse = f"{what}, `gradient_threshold=2**-16`"
    command = "`python -m bench.linear_cross_entropy`"
    return [
        (what, "plain PyTorch", cost(eager), cost(ours), command),
        (what, "`torch.compile`", cost(of["torch.compile"]), cost(ours), command),
        (what, "`torch.nn.functional.linear_cross_entropy`", cost(fastest), cost(ours), command),
        (sparse, "plain PyTorch", cost(eager), cost(of["mind_kernels sparse 2^-16"]), command),
    ]


def _pairwise_jsd() -> list[Sequence[str]]:
    of = {row["provider"]: row for row in rows_of("linear_pairwise_jsd")}
    plain, compiled, ours = of["eager, loop over unbound rows"], of["torch.compile"], of["mind_kernels"]
    pairs = ours["K"] * (ours["K"] - 1) // 2
    what = f"`linear_pairwise_jsd`, {pairs} pairs at {ours['P']} tokens, loss and gradients"
    command = "`python -m bench.linear_pairwise_jsd`"
    return [
        (f"{what}, backend `torch`", "plain PyTorch, pair by pair", cost(plain), cost(ours), command),
        (f"{what}, backend `torch`", "`torch.compile`, all pairs at once", cost(compiled), cost(ours), command),
    ]


def _trainer() -> list[Sequence[str]]:
    of = {row["loss"]: row for row in rows_of("trainer_memory") if row["checkpointing"]}
    what = f"a transformers Trainer's step, {of['stock']['tokens']:,} tokens, gradient checkpointing"
    stock, fused = (memory(of[loss]["peak_mib"]) for loss in ("stock", "fused"))
    return [(what, "its own loss", stock, fused, "`python -m bench.trainer_memory`")]


def _step() -> list[Sequence[str]]:
    of = {row["variant"]: row for row in rows_of("train_step")}
    naive, packed, ours = of["naive"], of["packed"], of["+ fused losses"]
    what = f"a whole step of MIND, {naive['questions']} questions with {naive['K']} rationales each"
    command = "`python -m bench.train_step --data FILE --max-length 240`"
    return [
        (what, "one padded batch, all logits", cost(naive), cost(ours), command),
        (what, "packed, logits of labeled tokens only", cost(packed), cost(ours), command),
    ]


def _make_train() -> list[Sequence[str]]:
    """Of the first seed; docs/performance.md has all."""
    return [_seed(row) for row in rows_of("make_train") if row["seed"] == 0]


def _seed(row: dict[str, Any]) -> Sequence[str]:
    """Accuracy before and after with Wilson's intervals, and the change with that of a paired difference."""
    total = row["questions"]
    shares = [row[f"correct_{when}"] / total for when in ("before", "after")]
    before, after = (f"{percent(share)} ({ends(*wilson(share * total, total))})" for share in shares)
    gain = f"{100 * (shares[1] - shares[0]):+.1f} points ({ends(*paired_difference(answers(row)))})"
    command = f"make train SEED={row['seed']}" if row["seed"] else "make train"
    what = f"accuracy on {total} new word problems, 95 % intervals, {row['minutes']:.1f} minutes"
    return (what, "the student before", before, f"{after}, {gain}", f"`{command}`")


def _experiment() -> list[Sequence[str]]:
    """MIND beside plain fine-tuning, and beside the best perspective alone, in and out of distribution."""
    found = comparison("word-problems")
    of = {(one["other"], one["on"]): one for one in found["versus"]}
    seeds = len(found["planned_seeds"])
    command = "`mind experiment word-problems`, [how](docs/experiments.md#word-problems)"
    rows = []
    for group, where in (
        ("macro ID", "of the kinds trained on"),
        ("macro OOD", "of other kinds, or with larger numbers"),
    ):
        for other, name in (("sft", "plain fine-tuning"), ("single", "the best of eight perspectives alone")):
            shares = [percent(found["methods"][label]["accuracy"][group]) for label in (other, "mind")]
            one = of[other, group]
            gain = f"{100 * one['difference']:+.1f} points ({ends(*one['interval'])})"
            what = f"accuracy on word problems {where}, {seeds} seeds, equal compute, a student of 0.9 M parameters"
            rows.append((what, name, shares[0], f"`mind`: {shares[1]}, {gain}", command))
    return rows


def figures() -> dict[str, str]:
    """What the prose of README.md says, by the file of results that it comes from."""
    sparse = next(row for row in rows_of("linear_cross_entropy") if row["provider"] == "mind_kernels sparse 2^-16")
    names = ("d_hidden_error", "d_weight_error")
    hidden, head = (scientific(sparse[name]) for name in names)
    dense = " and ".join(scientific(sparse[f"dense_bf16_{name}"]) for name in names)
    error = f"its error is {hidden} (hidden states) and {head} (head); bfloat16 arithmetic has {dense}"
    whole = next(row["grad_error"] for row in rows_of("train_step") if row["variant"] == "+ sparse gradient")
    steps = [row for row in rows_of("sparse_training") if row["run"] in sparse_training.RUNS]
    window = sparse_training.summarize(steps)["largest_window_percent"]
    return {
        "linear_cross_entropy": error,
        "train_step": f"the gradient of the whole model was off by {scientific(whole)}",
        "sparse_training": f"by at most {window:.2f} %: one model, one seed, {len(steps) // 2} steps",
    }


TABLES: dict[str, Callable[[], str]] = {
    "status": lambda: status_table(
        tested_here() | tested_on_gpu(read_results(RAN) if RAN.exists() else []),
        measured(row for file in sorted(RESULTS.glob("*.jsonl")) for row in read_results(file)),
        failures(read_results(RAN) if RAN.exists() else []),
    ),
    "results": results_table,
}
"""By the name in the comment before the table."""


def begin(name: str) -> str:
    """The comment before a table."""
    return f"<!-- {name}: written by python -m tests.front_page -->"


def main() -> None:
    page = README.read_text()
    for name, table_now in TABLES.items():
        page = replaced(page, begin(name), table_now())
    README.write_text(page)


if __name__ == "__main__":
    main()
