"""`mind train` and `mind evaluate` in several processes: the numbers of one, each file once, and one message for what
goes wrong."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time

import pytest
import torch
from every_method import write_inputs
from launches import launch
from safetensors.torch import load_file
from small_run import TIMING, replaced
from tiny import NAMES, build_questions

from mind import processes as launched
from mind.cli import main
from mind.cli.boundary import guarded
from mind.cli.launch import LaunchEnded, _by_option, _said_after
from mind.config import flat
from mind.data.questions import save_questions
from mind.errors import MindError
from mind.run import owner
from mind.run_folder import RunFolder

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available(), reason="this build of torch has no torch.distributed"
)

RANDOM_STATE = re.compile(r"rng_state(_\d+)?\.pth")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A student and questions: 7 to train on, 2 a step, and 2 in the evaluation."""
    folder = tmp_path_factory.mktemp("replicas")
    write_questions(folder)
    return folder


def write_questions(folder):
    write_inputs(folder)
    save_questions(build_questions(2), folder / "test.jsonl")


def words_of(output, *changes):
    options = (
        f"train --output {output} --student.model model --student.max-length 512 --data.train train.jsonl "
        f"--data.evaluation test.jsonl --data.perspectives {' '.join(NAMES)} --data.heldout-fraction 0.3 "
        "--train.questions-per-step 2 --train.max-steps 4 --train.save-steps 2 --train.learning-rate 1e-4 "
        "--train.report-to none --metanet.width 16 --metanet.warmup-epochs 2 --metanet.accumulation 2 "
        "--metanet.learning-rate 1e-2 --evaluation.max-new-tokens 4"
    )
    return replaced(options.split(), *changes)


def run(place, output, processes, *changes, **options):
    """The folder of a run that came to its end, and what its processes said."""
    started = launch(place, words_of(output, *changes), processes, **options)
    assert started.wait() == [0] * processes, started.said()
    return place / output, started.said()


def rows(folder):
    """The lines of metrics.jsonl without what takes time."""
    found = (flat(json.loads(line), "/") for line in (folder / "metrics.jsonl").read_text().splitlines())
    return [{name: value for name, value in row.items() if name not in TIMING} for row in found]


def read(folder, name):
    return json.loads((folder / name).read_text())


def files(folder):
    """Names of all files of a run; the processes' random states count as one."""
    found = (str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    return {RANDOM_STATE.sub("rng_state.pth", name) for name in found}


def largest_difference(one, other, name):
    first, second = load_file(one / name), load_file(other / name)
    assert first.keys() == second.keys()
    return max(float((first[key].double() - second[key].double()).abs().max()) for key in first)


def assert_same_values(values, others, tolerance):
    """Numbers but for what floating-point arithmetic rounds otherwise; what else there is to the letter."""
    assert others.keys() == values.keys()
    for name, value in values.items():
        expected = pytest.approx(value, rel=tolerance, abs=tolerance) if isinstance(value, float) else value
        assert others[name] == expected, name


def assert_same_run(one, other, networks=(), paused_at=frozenset(), divided=False):
    """The same numbers to the accuracy of float32, and the same files but for those that a pause left; checkpoints of a
    student that is divided have other files."""
    for row, its in zip(rows(one), rows(other), strict=True):
        assert_same_values(row, its, 1e-5)
    assert_same_values(flat(read(one, "evaluation.json")), flat(read(other, "evaluation.json")), 1e-5)
    assert largest_difference(one, other, "student/model.safetensors") <= 1e-6
    for network in networks:
        assert largest_difference(one, other, network) <= 1e-4
    there, expected = files(other) - paused_at, files(one)
    if divided:
        there, expected = ({name for name in some if not name.startswith("checkpoint-")} for some in (there, expected))
    assert there == expected


@pytest.fixture(scope="module")
def alone(place):
    return run(place, "one", 1)[0]


@pytest.mark.parametrize("processes", [2, pytest.param(3, marks=pytest.mark.nightly)])
def test_several_processes_train_as_one(place, alone, processes):
    """A step has 2 questions, and so has the evaluation: of three processes one has no share."""
    folder, said = run(place, f"run-{processes}", processes)
    assert_same_run(alone, folder, ["metanet.safetensors"])
    assert (read(alone, "status.json")["processes"], read(folder, "status.json")["processes"]) == (1, processes)
    assert read(folder, "starts.json")[-1]["processes"] == processes
    assert [path.name for path in sorted((folder / "checkpoint-4").glob("rng_state_*"))] == [
        f"rng_state_{rank}.pth" for rank in range(processes)
    ]
    assert "before and after" in said[0] and not any("mind" in text or "questions" in text for text in said[1:])


def test_stages_adapters_and_what_another_number_of_processes_goes_on_with(place):
    """REDI is a second stage; it pauses once, and one process more goes on with it."""
    pytest.importorskip("peft")
    options = ("--method", "redi", "--stages.sft.max-steps", "2", "--options.max-drop", "None")
    lora = ["--student.lora", "--student.lora-targets", "q_proj", "v_proj"]
    started = launch(place, [*words_of("redi-one", *options), *lora], 1)
    assert started.wait() == [0], started.said()
    paused = launch(place, [*words_of("redi-two", *options), *lora, "--stop-after", "1e-6"], 2)
    assert paused.wait() == [0, 0] and "paused after step 1" in paused.said()[0], paused.said()
    resumed = launch(place, ["train", "--output", "redi-two", "--resume"], 3)
    assert resumed.wait() == [0, 0, 0], resumed.said()
    first, second = (place / name / "stages" / "1-sft" for name in ("redi-one", "redi-two"))
    assert_same_run(first, second, paused_at={name for name in files(second) if name.startswith("checkpoint-1/")})
    for row, its in zip(rows(place / "redi-one"), rows(place / "redi-two"), strict=True):
        assert_same_values(row, its, 1e-5)
    assert largest_difference(place / "redi-one", place / "redi-two", "adapter/adapter_model.safetensors") <= 1e-6
    # What is finished the main process alone says: another one may be slow to see it on a shared file system.
    (place / "redi-two" / "status.json").unlink()
    for finished in (False, True):
        again = launch(place, ["train", "--output", "redi-two", "--resume"], 2, first={1: see_nothing_finished})
        assert again.wait() == [0, 0] and ("the run is finished" in again.said()[0]) == finished, again.said()


def see_nothing_finished():
    RunFolder.finished = property(lambda self: False)


def test_a_killed_process_ends_the_others_and_the_run_goes_on(place, alone):
    started = launch(place, words_of("killed"), 3)
    metrics = place / "killed" / "metrics.jsonl"
    while not (metrics.exists() and '"step": 3' in metrics.read_text()):
        assert all(process.exitcode is None for process in started.processes), started.said()
        time.sleep(0.01)
    os.kill(started.processes[1].pid, signal.SIGKILL)
    assert started.wait() == [2, -signal.SIGKILL, 2], started.said()
    (error,) = started.errors()
    assert "another process of this launch has ended" in error and "to go on: torchrun --nproc-per-node 3" in error
    assert not any("Traceback" in said for said in started.said()), started.said()
    refused = launch(place, words_of("killed"), 2)
    expect_error(refused, "killed: already holds a run")
    resumed = launch(place, [*words_of("killed"), "--resume"], 2)  # as the script in docs/tutorials/several-devices.md
    assert resumed.wait() == [0, 0], resumed.said()
    assert_same_run(alone, place / "killed", ["metanet.safetensors"])


def expect_error(started, *parts):
    """All processes end with status 2, and one of them says why."""
    assert set(started.wait()) == {2}, started.said()
    (error,) = started.errors()
    for part in parts:
        assert part in error
    assert not any("Traceback" in said for said in started.said()), started.said()


def test_bad_input_is_told_once(place, alone, tmp_path):
    expect_error(launch(place, words_of("one"), 2), "one: already holds a run")
    expect_error(launch(place, words_of("new", "--objective.beta", "2"), 2), "objective.beta is 2")
    expect_error(
        launch(place, words_of("new"), 2, others={1: words_of("new", "--train.seed", "1")}),
        "the command line: --train.seed is 1 in process 1, on ",
        "and missing in process 0",
    )
    for name in ("model", "train.jsonl", "test.jsonl"):
        (tmp_path / name).symlink_to(place / name)
    soon = {"MIND_PROCESS_TIMEOUT": "20"}
    apart = launch(place, words_of("new"), 2, folders={1: tmp_path}, environment=soon)
    expect_error(apart, "new: process 1, on", "does not see")
    (tmp_path / "train.jsonl").unlink()
    expect_error(launch(place, words_of("new"), 3, folders={1: tmp_path}), "train.jsonl: no such file")
    (tmp_path / "train.jsonl").write_text((place / "train.jsonl").read_text().replace("count", "Count"))
    expect_error(launch(place, words_of("new"), 2, folders={1: tmp_path}), "what the run reads: data.train is")
    expect_error(launch(place, ["data", "check", "train.jsonl"], 2), "WORLD_SIZE is 2", "check` runs in one")
    wrong = launch(place, words_of("new", "--train.sead", "1"), 2)
    assert wrong.wait(launcher=True) == [2, 2]
    (error,) = wrong.errors()
    assert "unknown option --train.sead; perhaps you meant --train.seed" in error and "ended" not in error
    never = {"MIND_PROCESS_TIMEOUT": "2"}
    expect_error(launch(place, words_of("new"), 2, absent=[1], environment=never), "has ended, or does not answer")
    assert not (place / "new").exists() and not (tmp_path / "new").exists()


def test_several_processes_evaluate_as_one(place):
    words = ["evaluate", "--student.model", "model", "--files", "test.jsonl", "--heldout", "train.jsonl"]
    words += ["--evaluation.max-new-tokens", "4", "--output"]
    for processes in (1, 3):
        started = launch(place, [*words, f"evaluated-{processes}.json"], processes)
        assert started.wait() == [0] * processes, started.said()
    one, other = (flat(read(place, f"evaluated-{processes}.json")) for processes in (1, 3))
    assert any(name.startswith("digests.") for name in one)
    assert_same_values(one, other, 1e-6)
    first, second = (place / f"evaluated-{processes}.responses" / "test.jsonl" for processes in (1, 3))
    assert second.read_text() == first.read_text()


LAUNCH = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"MIND_PROCESS_TIMEOUT": "soon"}, "MIND_PROCESS_TIMEOUT is 'soon': expected seconds, at least 1"),
        ({"WORLD_SIZE": "-2"}, "WORLD_SIZE is '-2': expected a number, as torchrun sets it"),
        (
            {"MASTER_PORT": None},
            "WORLD_SIZE is 2 and MASTER_PORT is not set: torchrun sets all of them; unset WORLD_SIZE if no launcher",
        ),
        ({"RANK": None, "MASTER_PORT": None}, "WORLD_SIZE is 2 and RANK and MASTER_PORT are not set: torchrun"),
        ({"RANK": "2"}, "RANK is 2 and WORLD_SIZE 2: expected a number below that, from 0; unset WORLD_SIZE if"),
    ],
)
def test_what_no_launcher_sets_is_named(monkeypatch, changes, message):
    for key, own in (LAUNCH | changes).items():
        monkeypatch.delenv(key, raising=False) if own is None else monkeypatch.setenv(key, own)
    with pytest.raises(MindError, match=re.escape(message)):
        launched.begin()


def test_one_process_computes_all_and_waits_for_none():
    assert launched.spread([3, 1], lambda some: [2 * one for one in some], [1, 5]) == [6, 2]
    assert launched.spread([], lambda some: some) == []
    assert (launched.together(5), launched.agreed(lambda: 6), launched.joined()) == ([5], 6, False)


def test_what_comes_into_sight_late_is_waited_for(tmp_path, monkeypatch):
    """As on NFS, where a process goes on missing a file, or has an older one, for a while."""
    mark = tmp_path / "mark"
    for delay, limit, word in ((0.5, 60, "first"), (0.5, 60, "second"), (0.0, 0.3, "third")):
        monkeypatch.setattr(owner, "LOOK_S", limit)
        written = threading.Timer(delay, mark.write_text, [word])
        if word != "third":
            written.start()
        assert owner._comes(mark, word) == (word != "third")
        written.cancel()


def test_options_are_told_apart_by_name():
    words = ["data", "check", "--files", "a", "b", "--resume", "--seed=1"]
    assert _by_option(words) == {"the command": "data check", "--files": "a b", "--resume": "", "--seed": "1"}


@pytest.mark.parametrize(
    ("environment", "gpus", "main", "device"),
    [
        ({"RANK": "3", "LOCAL_RANK": "3"}, 8, True, 0),  # left over from a launch: there is one process
        ({"RANK": "3", "LOCAL_RANK": "3", "WORLD_SIZE": "1"}, 2, True, 0),
        ({"RANK": "3", "LOCAL_RANK": "3", "WORLD_SIZE": "4"}, 1, False, 0),  # each sees its own, by Ray or Slurm
        ({"RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8"}, 4, False, 1),
        ({"RANK": "3", "LOCAL_RANK": "3", "WORLD_SIZE": "4"}, 2, False, None),
    ],
)
def test_who_is_the_main_process_and_which_gpu_is_its_own(monkeypatch, environment, gpus, main, device):
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert launched.main() == main
    if device is None:
        with pytest.raises(MindError, match="process 3 is number 3 of its machine, from 0, and 2 GPUs are there"):
            launched.device()
    else:
        assert launched.device() == torch.device("cuda", device)


def set_launch(monkeypatch):
    """The variables of a launch, without one, in a process that SIGTERM ends as before."""
    for name, value in LAUNCH.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(signal, "signal", lambda *_: None)


def test_what_needs_no_other_process_waits_for_none(monkeypatch, capsys, tmp_path):
    set_launch(monkeypatch)
    assert main(["--version"]) == 0 and capsys.readouterr().out.startswith("mind ")
    for command in (["train"], ["data", "check"]):
        assert main([*command, "--help"]) == 0
        with pytest.raises(SystemExit, match="0"):
            main([*command, "--help-all"])
        assert capsys.readouterr().out.count("usage: mind") == 2
    assert main(["report", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "WORLD_SIZE is 2" in said and "`mind report` runs in one: unset WORLD_SIZE if no launcher" in said
    assert not launched.joined()


def test_a_process_says_what_it_waits_for(monkeypatch, capsys):
    set_launch(monkeypatch)
    with _said_after(0.0):
        time.sleep(0.2)
    with _said_after(0.2):
        pass
    expected = "mind: waits for the other processes of WORLD_SIZE 2, at 127.0.0.1:1; unset WORLD_SIZE if no launcher"
    assert capsys.readouterr().err.count(expected) == 1


def test_a_launch_that_is_told_to_end_says_so(capsys):
    def run():
        raise LaunchEnded(2)

    assert guarded("mind", run) == 2
    assert capsys.readouterr().err.startswith("mind: error: the launcher ends this process: somebody stopped")


def test_a_number_left_over_is_forgotten_before_accelerate_reads_it(monkeypatch, tmp_path):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert main(["report", str(tmp_path)]) == 2
    assert "LOCAL_RANK" not in os.environ
