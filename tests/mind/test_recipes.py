"""`mind data generate --rewrite`: shorter versions of right answers, from the request to the records."""

from __future__ import annotations

import json

import pytest
from fault_proxy import FaultProxy, chat_answer
from judged_folder import QUESTIONS, WAYS, WRONG, judged_folder

from mind.answer_line import suffix
from mind.cli import main
from mind.data.questions import load_questions
from mind.teacher.journal import load_responses
from mind.teacher.recipes import REWRITE


@pytest.fixture
def mine(tmp_path, capsys):
    folder = judged_folder(tmp_path / "mine")
    capsys.readouterr()
    return folder


def made(mine, option, proxy, *more):
    """The folder of what the recipe made; the command that it was made by has to succeed."""
    folder = mine.path.parent / option.strip("-")
    url = ["--teacher.base-url", proxy.url]
    assert main(["data", "generate", option, str(mine.path), "--output", str(folder), *url, *more]) == 0
    return folder


def filtered(mine, folder, *more):
    """What a filter keeps of both: question -> perspective -> text."""
    records = mine.path.parent / "r.jsonl"
    assert main(["judge", str(folder)]) == 0
    assert main(["filter", str(mine.path), "--also", str(folder), "--output", str(records), "--overwrite", *more]) == 0
    return {q.id: {r.perspective: r.text for r in q.rationales} for q in load_questions(records)}


def shortened(body):
    """The socratic ones to three words, those of planning to a wrong answer."""
    system, user = (message["content"] for message in json.loads(body)["messages"])
    assert system == REWRITE
    response = user.split("Response:\n")[1].split("\n\nEnd with")[0]
    text, _, answer = response.rpartition("\n#### ")
    short = "Count on, then." if "sought" in text else "Add."
    return chat_answer(short + suffix(answer if "sought" in text else "99"))


def test_shorter_ones_are_taken_where_they_are_right(mine, capsys):
    bodies = []
    with FaultProxy(lambda body: bodies.append(json.loads(body)) or shortened(body)) as proxy:
        folder = made(mine, "--rewrite", proxy)
    assert f"--rewrite {mine.path}: 5 answers to be rewritten: 5 requests to m at" in capsys.readouterr().out
    assert {body["temperature"] for body in bodies} == {0.7}, "as in the folder"
    keys = {response.key for response in load_responses(folder / "responses.jsonl")}
    places = {(q.id, name, 0) for q in QUESTIONS for name in WAYS}
    assert keys == places - {(*WRONG, 0)}, "there is nothing to shorten in a wrong one"
    both = filtered(mine, folder, "--shortest")
    assert f"next: mind filter {mine.path} --also {folder} --output rewrite.jsonl --shortest" in capsys.readouterr().out
    assert both == {f"q{n}": {"planning": WAYS["planning"].format(n), "socratic": "Count on, then."} for n in (0, 2)}, (
        "a wrong one replaces nothing; q1 has one right perspective alone"
    )
    assert filtered(mine, folder)["q0"]["socratic"] == WAYS["socratic"].format(0), "diversity alone: the first"


def test_a_folder_of_rewritten_ones_is_a_data_set_of_its_own(tmp_path, mine, capsys):
    texts = iter(["Add.", "Count on from seven.", "So.", "Sum up.", "Thus."])
    with FaultProxy(lambda body: chat_answer(next(texts) + suffix("7"))) as proxy:
        folder = made(mine, "--rewrite", proxy, "--traffic.concurrency", "1")
    assert main(["judge", str(folder)]) == 0
    command = ["filter", str(folder), "--output", str(tmp_path / "r.jsonl")]
    assert main([*command, "--pass-rate", "0.1", "0.9"]) == 2
    assert "pass_rate: all answers were made from others" in capsys.readouterr().err
    assert main(command) == 0
    assert [question.id for question in load_questions(tmp_path / "r.jsonl")] == [QUESTIONS[0].id]
