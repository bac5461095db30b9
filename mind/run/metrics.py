"""What a training step is worth writing down, and the files and bars that it goes to."""

from __future__ import annotations

import json
import math
import resource
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import TrainerCallback

from mind.batches.packing import naive_tokens
from mind.batches.steps import question_tokens
from mind.files import replacing
from mind.methods.mind.objective import StepTerms
from mind.records import PackOptions, TokenizedQuestion

PER_PERSPECTIVE = ("l_real", "score", "alpha", "selected_share")


class StepMeter:
    """Sums over the steps since the last `flush`, as means over questions."""

    def __init__(self, perspectives: Sequence[str]) -> None:
        self.perspectives = tuple(perspectives)
        self._reset()

    def _reset(self) -> None:
        self._questions = 0
        self._tokens = 0
        self._seconds = 0.0
        self._sums: dict[str, float] = {}
        self._work: Counter[str] = Counter()
        self._tables = {name: torch.zeros(2, len(self.perspectives), dtype=torch.float64) for name in PER_PERSPECTIVE}

    def add(
        self,
        questions: Sequence[TokenizedQuestion],
        terms: StepTerms,
        present: Tensor,
        scores: Tensor,
        selected: Tensor,
        alpha: Tensor,
        meta_loss: float,
        packing: PackOptions,
    ) -> None:
        """Adds one step: present, scores, selected and alpha are (Q, K)."""
        count = len(questions)
        self._questions += count
        self._tokens += terms.rows
        values = {
            "sft_loss": terms.sft,
            "consistency": terms.consistency,
            "jsd": terms.jsd,
            "meta_loss": meta_loss,
            "accuracy": terms.accuracy,
            "entropy": terms.entropy,
            "dropped_mass": terms.dropped_mass,
            "selected": float(selected.sum(1).double().mean()),
        }
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + count * value
        self._work.update(step_work(questions, terms, packing))
        present = present.cpu()
        for name, table in zip(PER_PERSPECTIVE, (terms.l_real, scores, alpha, selected), strict=True):
            table = table.detach().cpu().double()
            there = present & ~table.isnan()
            self._tables[name][0] += torch.where(there, table, 0).sum(0)
            self._tables[name][1] += there.sum(0)

    def add_time(self, seconds: float) -> None:
        """Adds the wall time of one forward and backward."""
        self._seconds += seconds

    def flush(self) -> dict[str, float]:
        """The means since the last call, flat: "l_real/analogy" and so on; a perspective not seen is left out."""
        out = {name: total / max(1, self._questions) for name, total in self._sums.items()}
        for name, (total, count) in self._tables.items():
            for perspective, value in zip(self.perspectives, (total / count).tolist(), strict=True):
                if not math.isnan(value):
                    out[f"{name}/{perspective}"] = value
        out |= {f"work/{name}": count for name, count in self._work.items()}
        out |= {
            "tokens": self._tokens,
            "step_s": self._seconds,
            "tokens_per_s": self._tokens / max(1e-9, self._seconds),
        }
        self._reset()
        return out


def step_work(questions: Sequence[TokenizedQuestion], terms: StepTerms, packing: PackOptions) -> dict[str, int]:
    """Tokens of the trunk that a step would take, saving by saving, and what it took.

    padded: every sequence in a row of the longest one's length, all with a backward pass, which is a naive step;
    packed: without the padding; shared: with each prompt once, where this run shares them; trained and observed: those
    that were computed with a backward pass and without.
    """
    padded, packed = naive_tokens(questions)
    shared = sum(map(question_tokens, questions)) if packing.share_prompts else packed
    return {
        "padded": padded,
        "packed": packed,
        "shared": shared,
        "trained": terms.trained_tokens,
        "observed": terms.observed_tokens,
    }


class MetricsCallback(TrainerCallback):
    """Appends each logged step to metrics.jsonl and moves the progress bar."""

    def __init__(self, file: Path, perspectives: Sequence[str]) -> None:
        self.file = file
        self.perspectives = tuple(perspectives)
        self._stream: IO[str] | None = None
        self._bar: tqdm | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._stream = self.file.open("a")
        self._bar = tqdm(total=state.max_steps, initial=state.global_step, unit="step", desc="training")

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        if "loss" not in logs:
            return
        self._stream.write(json.dumps({"phase": "train", "step": state.global_step, **nested(logs)}) + "\n")
        self._stream.flush()
        chosen = [name for name in self.perspectives if logs.get(f"selected_share/{name}", 0) >= 0.5]
        self._bar.set_postfix_str(
            f"loss {logs['loss']:.3f}, {logs['tokens_per_s']:.0f} tokens/s, selected {'+'.join(chosen)}"
        )

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._bar.update(state.global_step - self._bar.n)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._bar.close()
        self._stream.close()


def nested(logs: dict[str, Any]) -> dict[str, Any]:
    """{"l_real/analogy": 1.0} -> {"l_real": {"analogy": 1.0}}; other keys stay."""
    out: dict[str, Any] = {}
    for name, value in logs.items():
        group, _, key = name.partition("/")
        if key:
            out.setdefault(group, {})[key] = value
        else:
            out[name] = value
    return out


def peak_memory() -> dict[str, float]:
    """Peaks of this process so far in MiB: the resident set, and PyTorch's allocator on a GPU where there is one."""
    peaks = {"peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}
    if torch.cuda.is_available():
        peaks["peak_gpu_mib"] = torch.cuda.max_memory_allocated() / 2**20
    return peaks


def truncate(file: Path, last_step: int) -> None:
    """Drops the training steps after `last_step`, and an incomplete last line: a resumed run writes them again."""
    kept = []
    for line in file.read_text().splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            break  # only the line that the kill cut short can be broken, and nothing follows it
        if row["phase"] != "train" or row["step"] <= last_step:
            kept.append(line + "\n")
    with replacing(file) as replacement:
        replacement.writelines(kept)
