"""bench.methods with a tiny student: methods train and refuse, each in a row; its records by hand."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

from bench import methods
from bench.measure import read_results
from mind import word_problems
from mind.data.questions import save_questions
from mind.methods import METHODS, PRESETS
from mind.records import Question, Rationale, WrongRationale


def test_every_method_and_preset_is_tried():
    assert set(methods.ALL) == {*METHODS, *PRESETS}


def test_wrong_rationales_of_word_problems_state_another_answer():
    for question in word_problems.generate(12, 0, levels=("one-step", "two-step")):
        (wrong,) = methods.slipped(question).wrong_rationales
        assert wrong.answer != question.answer and wrong.answer in wrong.text
        assert wrong.text != question.rationales[0].text and wrong.perspective == question.rationales[0].perspective


def test_the_questions_whose_rationales_are_most_alike_come_first(tmp_path):
    texts = ["2 + 3 = 5 apples", "3 + 2 = 5 apples", "all of them are 5"]
    rationales = tuple(Rationale(f"path-{k}", text) for k, text in enumerate(texts))
    wrong = {"none": (), "far": ("6 because I think so",), "near": ("2 + 3 = 6 apples",)}
    questions = [
        Question(name, "How many?", "5", None, rationales, tuple(WrongRationale("path-7", text, "6") for text in some))
        for name, some in wrong.items()
    ]
    assert [methods.likeness(question) for question in questions] == pytest.approx([-1.0, 0.0, 4 / 6], abs=0.1)
    file = tmp_path / "r.jsonl"
    save_questions(questions, file)
    train_on, held_out, names = methods.records_of(file, 1)
    assert [question.id for question in (*train_on, *held_out)] == ["near", "far", "none"] and len(names) == 3
    assert train_on[0].wrong_rationales[0].perspective == "path-0"


def test_methods_train_or_refuse(tmp_path, monkeypatch, model_of_bench, capsys):
    chosen = ["kd", "edit", "sft"]
    monkeypatch.setitem(methods.WANTED, "edit", {"train": {"lr_scheduler": "no_such"}})
    words = ["--student", model_of_bench, "--steps", "4", "--learning-rate", "3e-3", "--methods", *chosen]
    methods.main([*words, "--output", str(tmp_path)])
    rows = {row["method"]: row for row in read_results(tmp_path / "methods.jsonl")}
    assert list(rows) == ["sft", "kd", "edit"]
    assert "no_such" in rows["edit"]["refused"] and "first" not in rows["edit"]
    for name in ("sft", "kd"):
        row = rows[name]
        assert row["last"] < row["first"] == pytest.approx(sum(row["losses"][:2]) / 2, abs=1e-4)
        assert row["nll_after"] < row["nll_before"] == rows["sft"]["nll_before"] and row["report"]
        assert row["trained"] > 0 and row["observed"] == 0 and row["wall_s"] >= 0
    assert rows["kd"]["teacher_scored"] == rows["kd"]["trained"] and "teacher_scored" not in rows["sft"]
    assert json.dumps(rows["kd"]) and "nll_after" in capsys.readouterr().out


@pytest.fixture
def model_of_bench(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "mind"))
    tiny, small_run = importlib.import_module("tiny"), importlib.import_module("small_run")
    return small_run.write_student(tmp_path / "student", tiny.build_model(max_position_embeddings=4096))


def test_steps_make_whole_epochs(tmp_path, capsys):
    with pytest.raises(SystemExit):
        methods.main(["--questions", "3", "--output", str(tmp_path)])
    assert "--questions 3: expected a multiple of 2" in capsys.readouterr().err
