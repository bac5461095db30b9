"""bench.latent with a tiny student: from its training to the rows, and what it does not mix."""

from __future__ import annotations

import functools
import importlib
import json
from pathlib import Path

import pytest

from bench import latent
from bench.measure import read_results
from mind.data.questions import load_questions
from mind.errors import MindError
from mind.word_problems import family_of
from mind.word_problems.parts import numbers_of, part_of

NAMES = ["planning", "intuitive"]


@pytest.fixture
def words(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "mind"))
    tiny, small_run = importlib.import_module("tiny"), importlib.import_module("small_run")
    student = small_run.write_student(tmp_path / "student", tiny.build_model(max_position_embeddings=1024))
    words = ["--student", student, "--folder", f"{tmp_path}/work", "--output", f"{tmp_path}/out", "--overwrite"]
    words += ["--levels", "one-step", "--perspectives", *NAMES, "--seeds", "0", "1", "--null-seeds", "--questions", "7"]
    words += ["--heldout", "6", "--steps", "1", "--max-new-tokens", "4", "--interval-draws", "2", "--permutations", "1"]
    return words


def test_from_training_to_the_rows(words, tmp_path, monkeypatch, capsys):
    analyzed = functools.cache(latent.analyze)
    monkeypatch.setattr(latent, "analyze", analyzed)
    monkeypatch.setattr("mind.latent.clusters.WIDTHS", (16,))
    monkeypatch.setattr("mind.run.finish.write_run_report", lambda folder: folder.report.touch())
    latent.main(words)
    shown, rows = capsys.readouterr().out, read_results(tmp_path / "out" / "latent.jsonl")
    analysis = json.loads((tmp_path / "work" / "analysis" / "latent.json").read_text())
    assert [row["view"] for row in rows] == list(analysis["views"]) and "V4" in shown
    for row in rows:
        experts = analysis["views"][row["view"]]["experts"]
        assert (row["questions"], row["heldout"], row["analyzed"]) == (7, 6, experts["questions"])
        assert row["new_student"] == experts["new_student"]["accuracy"]["value"]
        assert (row["steps"], row["learning_rate"], row["seeds"], row["null_seeds"]) == (1, 1e-3, [0, 1], [])
        assert row["student"] == "student" and str(tmp_path) not in json.dumps(row)
    assert {row["analyzed"] for row in rows if row["view"] == "V4"} == {6}

    # No question of the analysis is one that a student of the testbed has seen.
    for name, part in (("train", "train"), ("nll", "validation"), ("heldout", "test")):
        questions = load_questions(tmp_path / "work" / f"{name}.jsonl")
        assert {part_of(numbers_of(family_of(one), one.question)) for one in questions} == {part}

    # Finished runs are used again, but for no other options.
    runs = {file: file.read_bytes() for file in (tmp_path / "work" / "runs").rglob("status.json")}
    assert len(runs) == 4
    latent.main(words)
    assert read_results(tmp_path / "out" / "latent.jsonl")[0]["new_student"] == rows[0]["new_student"]
    monkeypatch.setattr(latent, "train", lambda *_, **__: pytest.fail("trained"))
    before = (tmp_path / "out" / "latent.jsonl").read_bytes()
    for option, value, message in (
        ("--learning-rate", "0.5", r"train.learning_rate \(0.001 there\)"),
        ("--tokens-per-step", "64", r"train.tokens_per_step \(1024 there\)"),
        ("--student", "other", r"student.model \(.*/student there\)"),
        ("--questions", "8", "train.jsonl: holds other questions than these options give: name another --folder"),
        ("--heldout", "5", "heldout.jsonl: holds other questions"),
    ):
        with pytest.raises(MindError, match=message):
            latent.main([*words, option, value])
    assert before == (tmp_path / "out" / "latent.jsonl").read_bytes()
    assert runs == {file: file.read_bytes() for file in runs}
