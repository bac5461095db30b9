"""Collects what training steps report, for metrics.jsonl, and shows it in the progress bar."""

from __future__ import annotations

import math
import resource
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback
from transformers.integrations.integration_utils import TensorBoardCallback

from mind.methods.step import StepMetrics
from mind.progress import Progress
from mind.run.ending import Budget


class StepMeter:
    """Accumulates the metrics of the steps since the last `flush`."""

    def __init__(self, perspectives: Sequence[str]) -> None:
        self.perspectives = tuple(perspectives)
        self._reset()

    def _reset(self) -> None:
        self._steps = 0
        self._loss = 0.0
        self._tokens = 0
        self._seconds = 0.0
        self._sums: dict[str, tuple[float, int]] = {}  # name -> sum, and number of questions in it
        self._tables: dict[str, Tensor] = {}  # (2, K) each: sum and count
        self._latest: dict[str, Any] = {}
        self._work: Counter[str] = Counter()

    def add(
        self, metrics: StepMetrics, *, loss: float, questions: int, tokens: int, work: Mapping[str, int], seconds: float
    ) -> None:
        """Adds one step.

        Args:
            metrics: what the method reports of the step; its tables are (questions, K).
            loss: the step's loss.
            questions: number of questions in the step.
            tokens: its labeled tokens, trained on or observed.
            work: tokens by kind (mind/run/work.py).
            seconds: wall time of its forward and backward passes.
        """
        self._steps += 1
        self._loss += loss
        self._tokens += tokens
        self._seconds += seconds
        for name, value in metrics.means.items():
            total, count = self._sums.get(name, (0.0, 0))
            self._sums[name] = total + questions * value, count + questions
        for name, table in metrics.tables.items():
            known = ~table.isnan()
            added = torch.stack([torch.where(known, table.double(), 0).sum(0), known.double().sum(0)])
            self._tables[name] = self._tables[name] + added if name in self._tables else added
        self._latest.update(metrics.latest)
        self._work.update(work)

    def flush(self) -> dict[str, Any]:
        """A line of metrics.jsonl: means over the questions since the last call; tables become a mean per perspective.

        A mean that some steps do not report covers the questions of the others.

        {"loss": 1.5, "loss part": 1.0, "l_real": {"analogy": 1.0}, "work": {"trained": 99}, ...}; perspectives without
        a known value are left out. "loss" is the mean over the steps, "tokens" and "step_s" are sums, and
        "tokens_per_s" is their ratio.
        """
        row: dict[str, Any] = {"loss": self._loss / self._steps}
        row |= {name: total / count for name, (total, count) in self._sums.items()}
        for name, (total, count) in self._tables.items():
            means = zip(self.perspectives, (total / count).tolist(), strict=True)
            if known := {perspective: mean for perspective, mean in means if not math.isnan(mean)}:
                row[name] = known
        row["work"] = dict(self._work)
        row |= {"tokens": self._tokens, "step_s": self._seconds}
        row["tokens_per_s"] = self._tokens / max(1e-9, self._seconds)
        row |= self._latest
        self._reset()
        return row

    def state_dict(self) -> dict[str, Any]:
        """The steps since the last `flush`, in a form that JSON restores to the last digit."""
        return {
            "steps": self._steps,
            "loss": self._loss,
            "tokens": self._tokens,
            "seconds": self._seconds,
            "sums": self._sums,
            "tables": {name: table.tolist() for name, table in self._tables.items()},
            "latest": self._latest,
            "work": self._work,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self._steps, self._loss = state["steps"], state["loss"]
        self._tokens, self._seconds = state["tokens"], state["seconds"]
        self._latest, self._work = dict(state["latest"]), Counter(state["work"])
        self._sums = {name: (total, count) for name, (total, count) in state["sums"].items()}
        self._tables = {name: torch.tensor(rows, dtype=torch.float64) for name, rows in state["tables"].items()}


def row_metrics(totals: Mapping[str, float], l_real: Tensor) -> StepMetrics:
    """The metrics that every method reports for a step: from the sums of LossTerms.of and the (Q, K) losses of the
    rationales."""
    rows = totals["rows"]
    means = {
        "accuracy": totals["correct"] / rows,
        "entropy": totals["entropy"] / rows,
        "dropped_mass": totals.get("dropped_mass", 0.0) / rows,
    }
    return StepMetrics(means, {"l_real": l_real})


class ProgressBar(TrainerCallback):
    """A progress bar over the steps, with the loss, the speed and a few words of the method."""

    def __init__(self, words: Callable[[Mapping[str, Any]], str], budget: Budget | None = None) -> None:
        """`words` is the `progress` of a Method. With a `budget`, the number of steps is an estimate of what it pays
        for."""
        self._words, self._budget = words, budget
        self._bar: Progress | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._bar = Progress("training", state.max_steps, "step", done=state.global_step, stay=True)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if self._bar is None or logs is None or "loss" not in logs:
            return
        parts = [f"loss {logs['loss']:.3f}", f"{logs['tokens_per_s']:.0f} tokens/s", self._words(logs)]
        self._bar.say(", ".join(filter(None, parts)))

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._bar is not None:
            if self._budget is not None:
                self._bar.expect(self._budget.steps(state.global_step))
            self._bar.reach(state.global_step)

    def close(self) -> None:
        """Leaves the bar as it is, with the cursor on the next line."""
        if self._bar is not None:
            self._bar.close()


class TensorBoard(TensorBoardCallback):
    """transformers' callback, writing to the run's folder; a resumed run removes what was written after its
    checkpoint."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder

    def on_train_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        self.tb_writer = self._SummaryWriter(str(self._folder), purge_step=state.global_step + 1)
        super().on_train_begin(args, state, control, **rest)


def peak_memory() -> dict[str, float]:
    """Peak memory of this process so far, in MiB: the resident set, and PyTorch's allocator on a GPU if there is
    one."""
    peaks = {"peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}
    if torch.cuda.is_available():
        peaks["peak_gpu_mib"] = torch.cuda.max_memory_allocated() / 2**20
    return peaks
