"""bench.train_parts with a tiny student: every part of a run is timed, and the parts of a step are no more than it."""

from __future__ import annotations

import importlib
from pathlib import Path

from bench import train_parts
from bench.measure import read_results


def test_every_part_is_timed_and_counted(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MIND_CACHE", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "mind"))
    tiny = importlib.import_module("tiny")
    monkeypatch.setattr(
        train_parts,
        "load_student",
        lambda _: (tiny.build_model(max_position_embeddings=4096), tiny.build_tokenizer()),
    )
    sizes = ("--questions", "4", "--steps", "1", "--answers", "3", "--new-tokens", "4")
    train_parts.main([*sizes, "--output", str(tmp_path)])
    rows = {row["part"]: row for row in read_results(tmp_path / "train_parts.jsonl")}
    whole = rows["step: the whole step"]
    parts = [row for name, row in rows.items() if name.startswith("step: ") and row is not whole]
    assert len(parts) == len(train_parts.STEP) - 1
    outside = {"step: clipping", "step: AdamW"}
    assert sum(row["wall_s"] for row in parts if row["part"] not in outside) <= whole["wall_s"] + 0.01
    assert rows["features"]["count"] == 4 * 9 and rows["answers"]["count"] == 3 and whole["count"] > 0
    assert len(whole["loss"]) == 2 and rows["answers"]["digest"] and "features" in capsys.readouterr().out
    assert not (tmp_path / "cache" / "features").exists()
