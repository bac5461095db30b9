"""A run folder as training leaves it, without the student: eight perspectives, forty steps, hostile names."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

from mind.intervals import wilson

HOSTILE = "<script>alert(1)</script> & $x$"
PERSPECTIVES = ["formal_symbolic", "intuitive", "decomposition", "planning", "analogy", "socratic", "contrastive"]
PERSPECTIVES += [HOSTILE]
WORK = {"padded": 1000, "packed": 700, "shared": 500, "trained": 200, "observed": 330}


def side(nll: float, accuracy: float) -> dict:
    heldout = {"questions": 40, "rationales": 320, "tokens": 41234, "nll": nll}
    heldout["nll_by_perspective"] = {name: nll + 0.05 * k for k, name in enumerate(PERSPECTIVES)}
    result = {"total": 50, "correct": round(50 * accuracy), "unparsed": 2, "cut_off": 3, "accuracy": accuracy}
    result["interval"] = wilson(result["correct"], 50)
    return {"heldout": heldout, "files": {"gsm8k <b>": result}}


def write_responses(run: Path, right: dict[str, list[bool]]) -> None:
    """A response to each question before and after, right or wrong."""
    for when, marks in right.items():
        folder = run / "responses" / when
        folder.mkdir(parents=True)
        rows = [
            {"id": f"q{i}", "question": f"How many? {HOSTILE} {i}", "response": f"{when} {HOSTILE} \x1b[31m {i}",
             "extracted": str(i) if good else None, "answer": str(i), "correct": good}
            for i, good in enumerate(marks)
        ]  # fmt: skip
        (folder / "gsm8k <b>.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


RIGHT = {"before": [True] * 15 + [False] * 35, "after": [False] * 4 + [True] * 21 + [False] * 25}
"""30 % before and 42 % after: ten questions gained, four lost."""


def train_line(step: int, noise: random.Random, names: list[str]) -> dict:
    fall = math.exp(-step / 20)
    share = {k: noise.uniform(0.4, 1.0) if k % 3 else 1 - step / 60 for k in range(len(names))}
    loss = 1.0 + fall + noise.gauss(0, 0.05)
    return {
        "phase": "train", "step": step, "epoch": step / 20, "loss": loss, "sft_loss": loss - 0.01,
        "consistency": 0.1 * fall + noise.uniform(0, 0.02), "jsd": 0.2 * fall + noise.uniform(0, 0.05),
        "meta_loss": 0.02 + noise.uniform(0, 0.01), "accuracy": 0.8 - 0.3 * fall + noise.gauss(0, 0.01),
        "entropy": 1.1, "l_real": {n: None if step % 5 == 0 and k == 2 else loss + 0.06 * k + noise.gauss(0, 0.05)
                                   for k, n in enumerate(names)},
        "score": {n: 0.8 - 0.03 * k + noise.gauss(0, 0.01) for k, n in enumerate(names)},
        "alpha": {n: max(0.0, 0.2 - 0.02 * k + noise.gauss(0, 0.01)) for k, n in enumerate(names)},
        "selected_share": {n: share[k] for k, n in enumerate(names)}, "selected": 4 + noise.gauss(0, 0.5),
        "alpha_entropy": 1.2 + noise.gauss(0, 0.1),
        "learning_rate": 1e-4 * (1 - step / 80), "meta_learning_rate": 1e-5 * (1 - step / 80), "grad_norm": 1.0,
        "tokens": 4096, "tokens_per_s": 2100 + noise.gauss(0, 60), "peak_rss_mib": 2200 + step, "peak_gpu_mib": 900.0,
        "step_s": 2.0, "dropped_mass": 0.0, "work": WORK,
    }  # fmt: skip


def write_run(run: Path, steps: int = 40, names: list[str] = PERSPECTIVES) -> Path:
    run.mkdir(parents=True, exist_ok=True)
    noise = random.Random(0)
    lines = [{"phase": "warmup", "epoch": e, "meta_loss": 0.5 * 0.7**e} for e in range(1, 9)]
    lines += [train_line(step, noise, names) for step in range(1, steps + 1)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = {"student": {"model": HOSTILE, "lora": False}, "data": {"perspectives": names}}
    config |= {"objective": {"beta": 0.8, "consistency_weight": 0.1}, "metanet": {"tau": 1.0, "learning_rate": None}}
    (run / "config.json").write_text(json.dumps(config))
    (run / "evaluation.json").write_text(json.dumps({"before": side(1.25, 0.3), "after": side(1.0, 0.42)}))
    status = {"wall_s": 123.456, "tokens": 163840, "steps": steps, "student_parameters": 494032768}
    (run / "status.json").write_text(json.dumps(status))
    write_responses(run, RIGHT)
    starts = [
        {"date": "2026-11-28T17:00:00Z", "command": f"mind train --output '{HOSTILE}'", "versions": {"torch": "2.11"}}
    ]
    (run / "starts.json").write_text(json.dumps(starts))
    (run / "inputs.json").write_text(json.dumps({"data.train": {"source": HOSTILE, "sha256": "ab" * 32}}))
    return run
