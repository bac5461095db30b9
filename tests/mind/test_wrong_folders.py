"""A command that gets a folder of another kind says what it is and which command takes it."""

from __future__ import annotations

import json

import pytest
from judged_folder import judged_folder
from sample_experiment import write_experiment
from test_terminal import A_RUN

from mind.cli import main


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    path = tmp_path_factory.mktemp("folders")
    write_experiment(path / "experiment", {"base": 0, "mind": 1, "sbs": 0}, seeds=(0, 1))
    judged_folder(path / "data")
    for name in ("run", "model", "runs/a", "runs/b", "empty"):
        (path / name).mkdir(parents=True)
    for name in ("run", "runs/a", "runs/b"):
        (path / name / "config.json").write_text(A_RUN)
    (path / "model" / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (path / "file").touch()
    return path


COMPARE = ": `mind compare experiment` reads it"
REPORT = ": `mind report run` reads it"
RUN = "a run is expected here: the folder that `mind train` writes"


@pytest.mark.parametrize(
    "words, told",
    [
        ("report experiment", f"experiment is an experiment, and a run is expected here{COMPARE}"),
        ("report empty", f"empty is an empty folder, and {RUN}"),
        ("report file", f"file is a file, and {RUN}"),
        ("report runs", "runs is a folder of runs, and a run is expected here: runs/a, runs/b"),
        ("report data", "data is a data set, and a run is expected here: "
                        "`mind data judge data` and `mind data filter` read it"),
        ("report model", "model is a model, and a run is expected here: "
                         "`mind evaluate --student.model model --files FILE` reads it"),
        ("report rnu", "rnu: no such folder; perhaps you meant run"),
        ("judge nothing", "nothing: no such folder"),
        ("latent runs/a empty --questions file", f"empty is an empty folder, and {RUN}"),
        ("compare run", f"run is a run, and an experiment is expected here{REPORT}"),
        ("compare empty", "empty is an empty folder, and an experiment is expected here: "
                          "the folder that `mind experiment` writes"),
        ("judge file", "file is a file, and a data set is expected here: the folder that `mind data generate` writes"),
        ("compare runs", "runs is a folder of runs, and an experiment is expected here: runs/a, runs/b"),
        ("judge run", f"run is a run, and a data set is expected here{REPORT}"),
        ("filter run --output x.jsonl", f"run is a run, and a data set is expected here{REPORT}"),
        ("filter data --also experiment --output x.jsonl",
         f"experiment is an experiment, and a data set is expected here{COMPARE}"),
    ],
)  # fmt: skip
def test_a_folder_of_another_kind_is_named_with_its_command(words, told, folders, monkeypatch, capsys):
    monkeypatch.chdir(folders)
    before = sorted(folders.rglob("*"))
    assert main(words.split()) == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"mind: error: {told}"
    assert sorted(folders.rglob("*")) == before


def test_a_folder_of_the_right_kind_is_read(folders, monkeypatch, capsys):
    monkeypatch.chdir(folders)
    for words in ("compare experiment --draws 100", "judge data", "filter data --output ../right.jsonl"):
        assert main(words.split()) == 0, words
    assert main(["report", "run"]) == 2  # it is read, and its metrics are missing
    assert "expected here" not in capsys.readouterr().err


@pytest.mark.parametrize("ending", ["csv", "parquet", "XLSX"])
def test_json_is_not_written_under_the_name_of_a_table(ending, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text('{"id": "a", "answer": "2", "response": "#### 2"}\n')
    assert main(f"grade rows.jsonl --output out.{ending}".split()) == 2
    told = f"--output out.{ending}: JSON lines will be written, and no .{ending} file: name it out.jsonl"
    assert capsys.readouterr().err == f"mind: error: {told}\n"
    assert [file.name for file in tmp_path.iterdir()] == ["rows.jsonl"]
