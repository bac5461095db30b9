"""Tutorials of docs/, from the first command to the last: one against a server on loopback, one on the testbed."""

from __future__ import annotations

import json
import re
import sys

import pytest

from tests.docs_pages import DOCS, NOT_RUN, blocks, commands
from tests.guide import ROOT, block

sys.path.insert(0, str(ROOT / "tests" / "mind"))

from fault_proxy import FaultProxy, chat_answer
from tiny import build_model, build_tokenizer

from mind.cli import main
from mind.perspectives import PERSPECTIVES

PAGE = DOCS / "tutorials" / "distil-from-a-teacher.md"
SMALL = {
    "train": ["--student.max-length", "512", "--metanet.width", "16", "--metanet.warmup-epochs", "1"]
    + ["--evaluation.max-new-tokens", "4", "--train.report-to", "none", "--train.max-steps", "3"],
    "evaluate": ["--evaluation.max-new-tokens", "4"],
}
"""What makes a command that trains or answers quick."""


def teacher(body: bytes) -> bytes:
    """Adds the two numbers, in another manner for each perspective, and once wrongly."""
    system, user = (message["content"] for message in json.loads(body)["messages"])
    (perspective,) = [one for one in PERSPECTIVES.values() if one.prompt == system]
    a, b = map(int, re.findall(r"\d+", user)[:2])
    number = list(PERSPECTIVES).index(perspective.name)
    words = f"{perspective.description.capitalize()}. " + "Then count. " * number
    wrong = a == 4 and number == 0
    return chat_answer(f"{words}It is {a} and {b}, and {a} + {b} = {a + b + wrong}.\n#### {a + b + wrong}")


@pytest.mark.slow
def test_every_command_of_the_tutorial_does_what_the_page_says(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    build_model().save_pretrained("student")
    build_tokenizer().save_pretrained("student")
    exec(block(PAGE, "tests/test_docs_tutorial.py"), {})
    with FaultProxy(teacher) as server:
        placed = {"http://127.0.0.1:8000/v1": server.url, "Qwen/Qwen2.5-0.5B-Instruct": "student"}
        for one in blocks(PAGE):
            if one.language or one.note.startswith(NOT_RUN):
                continue
            for words in commands(one.text):
                words = [placed.get(word, word) for word in words[1:]] + SMALL.get(words[1], [])
                assert main(words) == 0, (words, capsys.readouterr())
    said = capsys.readouterr().out
    assert "next: mind data judge data/mine" in said and "next: mind data filter data/mine" in said
    assert "result:" in said and "report: runs/mine/report.html" in said
    dropped = [json.loads(row) for row in (tmp_path / "mine.dropped.jsonl").read_text().splitlines()]
    assert [row["dropped"] for row in dropped] == ["wrong"]
    for file in ("mine.report.html", "mine.card.md", "runs/mine/student/config.json", "runs/mine-sft/report.html"):
        assert (tmp_path / file).is_file(), file
    assert len((tmp_path / "after.responses" / "test.jsonl").read_text().splitlines()) == 6
    assert json.loads((tmp_path / "after.json").read_text())["files"]["test"]["interval"]


@pytest.mark.nightly
def test_an_experiment_is_compared_as_the_page_says(tmp_path, monkeypatch, capsys):
    """With a budget of a few steps, one seed and four questions of each set."""
    page = DOCS / "tutorials" / "compare-methods.md"
    (tmp_path / "bench").symlink_to(ROOT / "bench")
    (tmp_path / "testbed").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    every = list(blocks(page))
    (plan,) = [json.loads(one.text) for one in every if one.language == "json"]
    plan["budget"]["amount"], plan["seeds"] = 8e10, [0]
    plan["methods"] = {name: plan["methods"][name] for name in ("mind", "sft")}
    for one in plan["evaluation"].values():
        one |= {"questions": 4, "max_new_tokens": 8}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    problems, experiment, compare, whole = (commands(one.text)[0][1:] for one in every if not one.language)
    for words in (problems, experiment, compare):
        assert main(words) == 0, (words, capsys.readouterr())
    assert whole[:2] == ["experiment", "word-problems"]
    said = json.loads((tmp_path / "runs" / "compare" / "comparison.json").read_text())
    assert {"mind", "sft"} <= said["methods"].keys() and "It is not shown" in said["sentences"][0]
    assert (tmp_path / "runs" / "compare" / "comparison.html").is_file()
