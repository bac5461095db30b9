"""What earlier versions wrote is still read: run folders, answers of a teacher, data, configurations."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from small_run import write_student
from tiny import build_model

from mind.cli import main
from mind.run_folder import RunFolder

FORMATS = Path(__file__).parent / "formats"
VERSIONS = sorted(folder.name for folder in FORMATS.iterdir() if folder.is_dir())


@pytest.fixture(params=VERSIONS)
def former(request, tmp_path, monkeypatch) -> Path:
    """A copy of that version's files, which a command may change, as the working folder."""
    place = tmp_path / "former"
    shutil.copytree(FORMATS / request.param, place)
    write_student(place / "model", build_model())
    write_student(place / "run" / "student", build_model())
    monkeypatch.chdir(place)
    return place


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
    from mind.data.questions import load_questions

    assert load_questions(former / "dataset.jsonl") and load_questions(former / "train.jsonl")
