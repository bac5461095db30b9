"""The end of `mind train`: what was learned, a question with both answers, where things are, and what to type next."""

from __future__ import annotations

import json
import os
import shlex
import sys

import pytest
from sample_run import write_responses, write_run

from mind.cli.outcome import print_outcome
from mind.cli.terminal import command_line
from mind.run_folder import RunFolder


@pytest.fixture
def folder(tmp_path):
    return RunFolder(write_run(tmp_path / "my run"))


def lines_of(folder, capsys):
    print_outcome(folder)
    return capsys.readouterr().out.splitlines()


def test_the_last_lines(folder, capsys):
    *_, result, report, student, following = lines_of(folder, capsys)
    assert result == (
        "result: accuracy, gsm8k <b> (50 questions): 30.0 % -> 42.0 %, +12.0 points "
        "(95 % interval −3.2 to +26.3 points)"
    )
    assert report == f"report: {folder.report}" and student == f"student: {folder.student}"
    purpose, _, command = following.partition(": ")
    assert shlex.split(command) == [
        "mind", "train", "--config", str(folder.config), "--method", "sft", "--output", f"{folder.path}-sft",
    ]  # fmt: skip
    assert purpose == "next, to compare with plain fine-tuning"


def test_a_question_that_is_solved_now_comes_with_both_answers(folder, capsys):
    lines = lines_of(folder, capsys)
    start = lines.index("a question of the evaluation, wrong before, right now:")
    question, before, after, blank = lines[start + 1 : start + 5]
    assert question.startswith("  question: How many? <script>") and question.endswith("$x$ 15 (answer: 15)")
    assert before.startswith("  before:   before <script>") and before.endswith("\ufffd[31m 15 [none]")
    assert after.startswith("  after:    after <script>") and after.endswith("15 [15]")
    assert blank == ""


def test_without_a_gain_another_question_is_shown_as_what_it_is(tmp_path, capsys):
    folder = RunFolder(write_run(tmp_path / "run"))
    for file in folder.path.glob("responses/*/*.jsonl"):
        file.unlink()
        file.parent.rmdir()
    write_responses(folder.path, {"before": [True, False], "after": [False, False]})
    assert "a question of the evaluation, right before, wrong now:" in lines_of(folder, capsys)


def test_a_run_without_accuracy_tells_its_loss(folder, capsys):
    for name in ("before", "after"):
        evaluation = folder.read_evaluation()
        folder.write_evaluation(evaluation | {name: evaluation[name] | {"files": {}}})
    for file in folder.path.glob("responses/*/*.jsonl"):
        file.unlink()
    lines = lines_of(folder, capsys)
    assert not any("a question of the evaluation" in line for line in lines)
    (result,) = [line for line in lines if line.startswith("result: ")]
    assert result == (
        "result: held-out NLL, nats per token (320 rationales of 40 questions): 1.250 -> 1.000, −0.250 (−20.0 %)"
    )


def test_after_plain_fine_tuning_comes_the_own_data(folder, capsys):
    folder.config.write_text(json.dumps(folder.read_config() | {"method": "sft"}))
    following = lines_of(folder, capsys)[-1]
    command = f"mind evaluate --student.model '{folder.student}' --files FILE.jsonl"
    assert following == f"next, to try it on your own questions: {command}"


def test_the_program_is_called_as_the_shell_finds_it(tmp_path, monkeypatch):
    script = tmp_path / "bin" / "mind"
    script.parent.mkdir()
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [os.path.join("bin", "mind")])
    monkeypatch.setenv("PATH", "/nowhere")
    assert command_line() == os.path.join("bin", "mind")
    monkeypatch.setenv("PATH", str(script.parent))
    assert command_line() == "mind"
    monkeypatch.setattr(sys, "argv", ["/usr/bin/pytest"])
    assert command_line() == "mind"
