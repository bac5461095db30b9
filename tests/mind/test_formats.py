"""What earlier versions wrote is still read: run folders, answers of a teacher, data, configurations."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from fault_proxy import FaultProxy, chat_answer
from small_run import train_rows, write_student
from tiny import build_model

import mind_kernels
from mind.cli import main
from mind.data.questions import load_questions
from mind.run_folder import RunFolder

FORMATS = Path(__file__).parent / "formats"
VERSIONS = sorted(folder.name for folder in FORMATS.iterdir() if folder.is_dir())


def with_a(part: str):
    """A test of the versions whose folder has this part; 0.1.0 has the least."""
    those = [version for version in VERSIONS if (FORMATS / version / part).exists()]
    assert those
    return pytest.mark.parametrize("former", those, indirect=True)


@pytest.fixture(params=VERSIONS)
def former(request, tmp_path, monkeypatch) -> Path:
    """A copy of that version's files, which a command may change, as the working folder."""
    place = tmp_path / "former"
    shutil.copytree(FORMATS / request.param, place)
    if not (place / "model").exists():
        write_student(place / "model", build_model())
    shutil.copytree(place / "model", place / "run" / "student")
    monkeypatch.chdir(place)
    return place


def test_the_present_version_is_among_them():
    """`python tests/mind/write_formats.py` adds it: what it leaves is to be read by all that come."""
    assert mind_kernels.__version__ in VERSIONS


def test_a_run_is_shown(former):
    (former / "run" / "report.html").unlink(missing_ok=True)
    assert main(["report", "run"]) == 0
    page = (former / "run" / "report.html").read_text()
    assert "0.0 %" in page
    assert RunFolder(former / "run").finished


def test_a_finished_run_is_not_run_again(former, capsys):
    before = (former / "run" / "metrics.jsonl").read_bytes()
    assert main(["train", "--output", "run", "--resume"]) == 0
    assert "the run is finished" in capsys.readouterr().out
    assert (former / "run" / "metrics.jsonl").read_bytes() == before


def test_its_configuration_begins_another_run(former):
    assert main(["train", "--config", "run/config.json", "--output", "again", "--train.max-steps", "1"]) == 0
    assert (former / "again" / "student").is_dir()


def test_the_answers_of_a_teacher_give_the_same_data(former):
    """Every answer is in the journal and judged: nothing is asked or judged again."""
    assert main(["judge", "teacher"]) == 0
    assert main(["filter", "teacher", "--output", "again.jsonl"]) == 0
    assert (former / "again.jsonl").read_bytes() == (former / "dataset.jsonl").read_bytes()


def test_its_data_are_trained_on(former):
    assert load_questions(former / "dataset.jsonl") and load_questions(former / "train.jsonl")


@with_a("teacher/failures.jsonl")
def test_nothing_is_asked_twice(former):
    """The journal answers what its own configuration asks; what failed is asked again."""
    failed = len((former / "teacher" / "failures.jsonl").read_text().splitlines())
    before = (former / "teacher" / "responses.jsonl").read_bytes()
    with FaultProxy(lambda _: chat_answer("- Add.")) as proxy:
        words = ["--teacher.base-url", proxy.url, "--questions.path", "questions.jsonl"]
        assert main(["data", "generate", "--config", "teacher/generate.json", *words]) == 0
    assert proxy.attempts.total() == failed == 1
    assert (former / "teacher" / "responses.jsonl").read_bytes().startswith(before)


@with_a("teacher/judge-replies.jsonl")
def test_a_judges_replies_are_not_bought_twice(former):
    before = (former / "teacher" / "judged.jsonl").read_bytes()
    with FaultProxy(lambda _: chat_answer("ANSWER: 9\nVERDICT: right")) as proxy:
        assert main(["data", "judge", "teacher", "--model", "j", "--base-url", proxy.url]) == 0
    assert proxy.attempts.total() == 0 and (former / "teacher" / "judged.jsonl").read_bytes() == before


@with_a("stopped")
def test_a_stopped_run_goes_on(former):
    assert main(["train", "--output", "stopped", "--resume"]) == 0
    assert [row["step"] for row in train_rows(former / "stopped")] == [1, 2]
    assert (former / "stopped" / "student" / "model.safetensors").is_file()


@with_a("graded.jsonl")
def test_grades_and_evaluations_are_used(former):
    words = ["--output", "again.jsonl", "--student-grades", "graded.jsonl", "--pass-rate", "0.5", "1"]
    assert main(["data", "filter", "teacher", *words]) == 0
    assert [question.id for question in load_questions(former / "again.jsonl")] == ["q0"]
    words = ["--config", "run/config.json", "--output", "again", "--evaluation.before", "base.json"]
    assert main(["train", *words, "--train.max-steps", "1"]) == 0
    evaluations = [json.loads((former / name).read_text()) for name in ("base.json", "again/evaluation.json")]
    assert evaluations[1]["before"]["files"] == evaluations[0]["files"]


@with_a("experiment")
def test_an_experiment_is_compared(former, capsys):
    assert main(["compare", "experiment"]) == 0
    out = capsys.readouterr().out
    assert "plain" in out and "ours" in out
