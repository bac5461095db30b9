"""The run folder: what counts as a checkpoint, where metrics go on, what is refused and what is read."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_run import content

from mind.errors import MindError
from mind.run_folder import RunFolder


@dataclass(frozen=True)
class Config:
    output: str = "x"
    student: str | None = None
    data: str | None = None
    train: str | None = None


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path / "run")


def steps(folder):
    return [json.loads(line).get("step") for line in folder.metrics.read_text().splitlines()]


def test_a_folder_is_a_path(folder, tmp_path):
    assert os.fspath(folder) == str(tmp_path / "run") and RunFolder(str(folder.path)) == folder
    assert Path(folder) == folder.path


def test_a_new_run_needs_an_empty_place(folder):
    folder.check_free()
    folder.path.mkdir()
    folder.check_free()
    (folder.path / "notes.txt").write_text("mine")
    with pytest.raises(MindError, match="run: exists and is not an empty folder"):
        folder.check_free()
    with pytest.raises(MindError, match=r"there is no run to resume \(config.json is missing\)"):
        folder.check_resumable()
    folder.config.write_text(json.dumps(asdict(Config())))
    folder.check_resumable()
    with pytest.raises(MindError, match="run: already holds a run"):
        folder.check_free()


def test_of_two_runs_that_start_at_once_one_begins(folder):
    for other in (folder, RunFolder(folder.path)):
        other.check_free()
    folder.start(Config("first"), {})
    with pytest.raises(MindError, match="already holds a run"):
        RunFolder(folder.path).start(Config("second"), {})
    assert folder.read_config()["output"] == "first"


def test_metrics_go_on_after_the_last_checkpoint(folder):
    folder.start(Config(), {"data.train": {"source": "d.jsonl", "sha256": "1f"}})
    folder.begin_metrics()
    assert folder.read_config()["output"] == "x" and folder.metrics.read_text() == ""
    assert folder.read_inputs()["data.train"]["source"] == "d.jsonl"
    folder.append_metrics([{"phase": "warmup", "epoch": 1}])
    folder.append_metrics({"phase": "train", "step": step} for step in (1, 2, 3))
    with folder.metrics.open("a") as file:
        file.write('{"phase": "tr')  # what a kill leaves
    folder.begin_metrics(after=2)
    assert steps(folder) == [None, 1, 2]
    folder.begin_metrics()
    assert steps(folder) == []


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{}", 'line 2: expected an object with "phase"'),
        ('{"phase": "train"}', "line 2: a train line needs a number as its step"),
        ('{"phase": "train", "step": NaN}', "line 2: a train line needs a number as its step"),
        ("[1]", "line 2: expected a JSON object"),
        ('{"phase": "tr', "line 2: not JSON"),
    ],
)
def test_metrics_that_are_malformed_are_named_before_they_are_written_again(folder, line, message):
    folder.start(Config(), {})
    folder.metrics.write_text(f'{{"phase": "train", "step": 1}}\n{line}\n{{"phase": "train", "step": 2}}\n')
    before = folder.metrics.read_text()
    with pytest.raises(MindError, match=message):
        folder.begin_metrics(after=2)
    assert folder.metrics.read_text() == before
    folder.metrics.unlink()
    os.mkfifo(folder.metrics)
    with pytest.raises(MindError, match="is a named pipe: expected a file"):
        folder.begin_metrics(after=2)


def test_a_checkpoint_is_complete_with_its_last_file(folder):
    assert folder.checkpoints() == {}
    network = torch.nn.Linear(2, 3)
    state = {"average": {"q": torch.tensor([1.0, torch.nan])}, "steps": 3}
    for step in (9, 10, 100):
        folder.checkpoint(step).mkdir(parents=True)
        if step != 100:
            folder.save_method(state, {"metanet": network}, folder.checkpoint(step))
    assert folder.checkpoints() == {9: folder.checkpoint(9), 10: folder.checkpoint(10)}
    assert list(folder.checkpoints()) == [9, 10]
    found = RunFolder.read_method(folder.checkpoint(10))
    assert found["steps"] == 3 and torch.equal(found["average"]["q"].isnan(), torch.tensor([False, True]))
    weights = load_file(folder.checkpoint(9) / "metanet.safetensors")
    assert torch.equal(weights["weight"], network.weight)
    folder.save_method({}, {})
    assert (folder.path / "calibration.pt").exists() and not list(folder.path.rglob("*.partial"))


@pytest.mark.parametrize(
    "config", ['{"model_type": "llama", "output_attentions": false}', "[]", "{", "{}", '{"output": "x"}'], ids=repr
)
def test_another_program_has_a_config_json_too(folder, config):
    """Such as the folder of a model: it is no run, and nothing is written over."""
    folder.path.mkdir()
    folder.config.write_text(config)
    save_file({"weight": torch.ones(2)}, folder.path / "model.safetensors")
    before = content(folder.path)
    assert folder.begun is None
    for change in (folder.check_free, lambda **options: folder.start(Config(), {}, **options)):
        for overwrite in (False, True):
            with pytest.raises(MindError, match="run: exists and is not an empty folder"):
                change(overwrite=overwrite)
    assert content(folder.path) == before


def test_only_what_a_run_wrote_is_removed(folder):
    folder.start(Config(), {})
    folder.save_method({}, {"metanet": torch.nn.Linear(2, 3), "other": torch.nn.Linear(1, 1)})
    folder.append_metrics([{"phase": "warmup", "epoch": 1}])
    written = set(content(folder.path))
    own = {"mine.safetensors": b"no weights", "checkpoint-best/calibration.pt": b"a copy", "checkpoint-9.zip": b"more"}
    for name, text in own.items():
        (folder.path / name).parent.mkdir(exist_ok=True)
        (folder.path / name).write_bytes(text)
    save_file({"weight": torch.ones(2)}, folder.path / "model.safetensors", {"format": "pt"})
    (folder.path / "checkpoint-10").mkdir()
    os.mkfifo(folder.path / "pipe.safetensors")
    folder.start(Config(), {}, overwrite=True)
    assert {"metanet.safetensors", "other.safetensors", "calibration.pt", "metrics.jsonl"} <= written
    assert set(content(folder.path)) == {*own, "model.safetensors", "config.json", "inputs.json"}
    assert (folder.path / "pipe.safetensors").is_fifo() and not (folder.path / "checkpoint-10").exists()


def test_a_copy_of_a_checkpoint_is_none(folder):
    for name in ("checkpoint-9", "checkpoint-best", "checkpoint-9-copy", "checkpoint-\u00b2", "checkpoint-"):
        (folder.path / name).mkdir(parents=True)
        folder.save_method({}, {}, folder.path / name)
    assert folder.checkpoints() == {9: folder.checkpoint(9)}


def test_what_is_not_measured_yet_is_none(folder):
    folder.start(Config(), {})
    assert folder.read_evaluation() == {"before": None, "after": None} and folder.read_status() == {}
    folder.write_evaluation({"before": {"nll": 1.0}, "after": None})
    folder.write_status({"steps": 3})
    assert folder.read_evaluation()["before"] == {"nll": 1.0} and folder.read_status() == {"steps": 3}
    assert not folder.finished
    folder.student.mkdir()
    assert folder.finished
    folder.write_evaluation({"before": {"nll": 1.0}, "after": {"nll": 0.5}})
    folder.reopen(Config("z"), {"options": {"source": "z", "sha256": "2e"}})
    assert not folder.finished and folder.read_config()["output"] == "z"
    assert folder.read_evaluation() == {"before": {"nll": 1.0}, "after": None}
    assert folder.read_inputs() == {"options": {"source": "z", "sha256": "2e", "former": "2e"}}


def test_one_process_at_a_time(folder):
    with folder.held():
        with pytest.raises(MindError, match="another process trains there now"), RunFolder(folder.path).held():
            pass
        assert list(folder.path.iterdir()) == []
    with folder.held():
        pass


def test_a_stopped_run_knows_its_way_back(folder):
    assert folder.way_back() == "no step is saved yet, so --resume starts from the beginning"
    for step in (9, 10):
        folder.checkpoint(step).mkdir(parents=True)
        folder.save_method({}, {}, folder.checkpoint(step))
    assert folder.way_back() == "--resume goes on from step 10, the last one saved"
    later = RunFolder(folder.path / "later")
    stage = later.stage(1, "sft")
    stage.checkpoint(3).mkdir(parents=True)
    assert later.way_back() == "no step is saved yet, so --resume starts from the beginning"
    folder.save_method({}, {}, stage.checkpoint(3))
    assert later.way_back() == "--resume goes on from step 3 of stage sft, the last one saved"
    second = later.stage(2, "rank")
    second.student.mkdir(parents=True)
    second.status.touch()
    assert later.way_back() == "--resume goes on from the end of stage rank"
    assert folder.read_progress(folder.checkpoint(9)) == {}
    folder.write_progress(folder.checkpoint(9), {"meter": {"loss": 0.1}})
    assert folder.read_progress(folder.checkpoint(9)) == {"meter": {"loss": 0.1}}


def test_malformed_files_are_named_with_their_line(folder):
    folder.start(Config(), {})
    folder.status.write_text('{"wall_s": 1,\n oops}')
    with pytest.raises(MindError, match=r"status\.json:2: not JSON"):
        folder.read_status()
    folder.evaluation.write_text("[]")
    with pytest.raises(MindError, match=r"evaluation\.json: expected a JSON object, not list"):
        folder.read_evaluation()
    for entry in ('"1f"', "null", '{"source": "d.jsonl"}', '{"sha256": 1}'):
        folder.inputs.write_text(f'{{"data.train": {entry}}}')
        with pytest.raises(MindError, match=r"inputs\.json: data\.train: expected an object with \"sha256\", a text"):
            folder.read_inputs()
    folder.inputs.unlink()
    folder.inputs.symlink_to("nowhere")
    with pytest.raises(MindError, match=r"inputs\.json: a link to what is not there"):
        folder.read_inputs()
    with pytest.raises(MindError, match=r"nowhere/config\.json: no such file"):
        RunFolder("nowhere").read_config()
