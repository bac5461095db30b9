"""Tasks for lm-evaluation-harness: what is written, and the grader that they call."""

from __future__ import annotations

import importlib.util
import json
import sys

import pytest
import yaml

from mind.cli import main
from mind.data.questions import save_questions
from mind.errors import MindError
from mind.evaluation import lm_eval
from mind.evaluation.lm_eval import STOCK, graded, prompt, stock_folder
from mind.records import Question

SUM = Question("sum", "How many {{ x }}?", "12")
PLACE = Question("place", "Where?", "B", {"A": "here", "B": "there"})
FOUR = Question("four", "Which?", "C", dict(zip("ABCD", "wxyz", strict=True)))
FIVE = Question("five", "Which?", "E", dict(zip("ABCDE", "vwxyz", strict=True)))
THREE = Question("three", "Which?", "C", dict(zip("ABC", "xyz", strict=True)))


class Loader(yaml.SafeLoader):
    """As lm-eval reads a task, with the names of functions in their place."""


Loader.add_constructor("!function", lambda loader, node: "function " + node.value)


@pytest.fixture
def words(tmp_path):
    for name, questions in (("sums", [SUM, Question("two", "What is 1 + 1?", "2")]), ("places", [PLACE])):
        save_questions(questions, tmp_path / f"{name}.jsonl")
    files = ["--gsm8k", f"{tmp_path}/sums.jsonl", "--commonsense-qa", f"{tmp_path}/places.jsonl"]
    return ["lm-eval-tasks", f"{tmp_path}/tasks", *files]


def read(folder, task):
    """The task, and the rows that it reads."""
    values = yaml.load((folder / f"{task}.yaml").read_text(), Loader)
    (file,) = values["dataset_kwargs"]["data_files"].values()
    return values, [json.loads(line) for line in open(file)]


def test_the_house_protocol(words, tmp_path, capsys):
    assert main([*words, "--last-line", "Be brief.", "--questions", "1"]) == 0
    folder = tmp_path / "tasks"
    assert "lm_eval --model hf" in capsys.readouterr().out
    assert sorted(path.name for path in folder.iterdir()) == [
        "data", "mind_commonsense_qa.yaml", "mind_gsm8k.yaml", "utils.py",
    ]  # fmt: skip
    task, rows = read(folder, "mind_gsm8k")
    assert task["task"] == "mind_gsm8k" and task["num_fewshot"] == 0 and task["test_split"] == "test"
    kwargs = {"until": [], "do_sample": False, "temperature": 0.0, "max_gen_toks": 1024}
    assert task["generation_kwargs"] == kwargs
    assert task["doc_to_text"] == "function utils.prompt" and task["process_results"] == "function utils.graded"
    assert [prompt(row) for row in rows] == ["How many {{ x }}?\nBe brief."]
    task, (row,) = read(folder, "mind_commonsense_qa")
    assert prompt(row) == "Where?\n(A) here\n(B) there\nBe brief."
    assert graded(row, ["So (B)."]) == {"right": 1.0, "unparsed": 0.0}
    assert graded(row, ["#### A"]) == {"right": 0.0, "unparsed": 0.0}
    assert graded(row, ["Nobody knows."]) == {"right": 0.0, "unparsed": 1.0}
    spec = importlib.util.spec_from_file_location("tasks_utils", folder / "utils.py")
    utils = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(utils)
    assert (utils.prompt, utils.graded) == (prompt, graded)


def test_long_answers_have_more_room(tmp_path):
    save_questions([SUM], tmp_path / "math.jsonl")
    words = ["lm-eval-tasks", f"{tmp_path}/tasks", "--math500", f"{tmp_path}/math.jsonl"]
    for more, expected in (([], 2048), (["--max-new-tokens", "30", "--overwrite"], 30)):
        assert main([*words, *more]) == 0
        assert read(tmp_path / "tasks", "mind_math500")[0]["generation_kwargs"]["max_gen_toks"] == expected


def test_stock_tasks_get_the_fields_that_they_read(words, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(lm_eval, "stock_folder", lambda: tmp_path / "lm_eval" / "tasks")
    save_questions([FOUR], tmp_path / "four.jsonl")
    save_questions([FIVE], tmp_path / "places.jsonl")
    more = ["--math500", f"{tmp_path}/sums.jsonl", "--gpqa-diamond", f"{tmp_path}/four.jsonl"]
    assert main([*words, *more, "--stock"]) == 0
    rows = {name: read(tmp_path / "tasks", f"local_{name}") for name in STOCK}
    assert rows["gsm8k"][0]["include"] == f"{tmp_path}/lm_eval/tasks/gsm8k/gsm8k-cot.yaml"
    assert rows["gsm8k"][0]["dataset_name"] is None and rows["gsm8k"][1][0]["answer"] == "#### 12"
    assert rows["math500"][1][0]["solution"] == "\\boxed{12}"
    (row,) = rows["commonsense_qa"][1]
    assert row["choices"] == {"label": list("ABCDE"), "text": list("vwxyz")} and row["answerKey"] == "E"
    (row,) = rows["gpqa_diamond"][1]
    assert (row["choice3"], row["answer"], row["Question"]) == ("y", "(C)", "Which?")


@pytest.mark.parametrize(
    ("name", "question", "message"),
    [
        ("gpqa-diamond", FIVE, "question five: its choices are A, B, C, D, E: expected A to D for the stock task"),
        ("gpqa-diamond", THREE, "question three: its choices are A, B, C: expected A to D for the stock task"),
        ("gpqa-diamond", SUM, "question sum: it has no choices: expected A to D for the stock task"),
        ("commonsense-qa", FOUR, "question four: its choices are A, B, C, D: expected A to E for the stock task"),
    ],
)
def test_a_question_that_does_not_fit_a_stock_task_is_told_first(
    tmp_path, monkeypatch, capsys, name, question, message
):
    monkeypatch.setattr(lm_eval, "stock_folder", lambda: tmp_path / "lm_eval" / "tasks")
    save_questions([question], tmp_path / "one.jsonl")
    words = ["lm-eval-tasks", f"{tmp_path}/new/tasks", f"--{name}", f"{tmp_path}/one.jsonl"]
    assert main([*words, "--stock"]) == 2 and not (tmp_path / "new").exists()
    assert message in capsys.readouterr().err.replace("\n", " ")
    assert main(words) == 0


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (lambda words, folder: words[:2], "no set of questions: give at least one of --gsm8k, --math500, --svamp"),
        (lambda words, folder: [*words, "--questions", "0"], "questions is 0: expected at least 1"),
        (lambda words, folder: [words[0], str(folder), *words[2:]], "exists already; add --overwrite"),
        (lambda words, folder: [*words, "--svamp", "none.jsonl"], "none.jsonl: no such file"),
    ],
)
def test_bad_input_is_told_before_anything_is_written(words, tmp_path, capsys, changed, message):
    assert main(changed(words, tmp_path)) == 2
    assert message in capsys.readouterr().err.replace("\n", " ") and not (tmp_path / "tasks").exists()


@pytest.mark.parametrize("name", ["mine.yaml", "data/mine.jsonl", "notes", "mind_gsm8k.jsonl", "utils.py/x"])
def test_overwrite_removes_nothing_of_yours(words, tmp_path, capsys, name):
    assert main(words) == 0
    python = tmp_path / "tasks" / "__pycache__" / "utils.cpython-311.pyc"  # of lm-eval
    python.parent.mkdir()
    python.touch()
    mine = tmp_path / "tasks" / name
    if mine.parent.is_file():
        mine.parent.unlink()
        mine.parent.mkdir()
    mine.write_text("mine")
    assert main([*words, "--overwrite"]) == 2 and mine.read_text() == "mine"
    told = " ".join(capsys.readouterr().err.split())
    assert f"{mine}: this command did not write it, and --overwrite would remove it: move it away" in told
    mine.unlink()
    assert main([*words, "--overwrite"]) == 0 and not python.exists()


def test_stock_tasks_need_lm_eval(words, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(MindError, match="--stock needs lm-eval, which brings these tasks: pip install 'mind-kernels"):
        stock_folder()
    assert main([words[0], f"{tmp_path}/new/tasks", *words[2:], "--stock"]) == 2 and not (tmp_path / "new").exists()
