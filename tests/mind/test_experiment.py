"""Experiments: what they leave, that failures and kills cost nothing but time, and that all of it is as by hand."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
import types

import psutil
import pytest
import torch
from small_experiment import TUNED, here, result_of, write_plan
from small_run import content, train_rows
from tiny import NAMES

import mind
from mind.cli import main
from mind.config import DataConfig, EvaluationConfig, MetaNetConfig, MindConfig, StudentConfig, TrainConfig
from mind.data.questions import load_questions
from mind.errors import BudgetError, MindError, NotFiniteError, PausedError
from mind.evaluation.evaluate import evaluation_prompts
from mind.evaluation.generation import generate_responses
from mind.evaluation.outcomes import outcome
from mind.experiment.folder import ExperimentFolder, Job
from mind.experiment.job import perform
from mind.experiment.jobs import left
from mind.experiment.places import STOPPED, Processes, RayTasks
from mind.experiment.runner import Ending, prepare, run_experiment
from mind.experiment.tuning import tune, tuned
from mind.files import held
from mind.run.trainer import MethodTrainer
from mind.student.model import load_student


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> ExperimentFolder:
    """An experiment that nothing interrupts, in this process."""
    place = tmp_path_factory.mktemp("experiment")
    folder = prepare(str(write_plan(place, **TUNED)), place / "whole", {})
    progress = run_experiment(folder, here(folder))
    assert not progress.failed and left(progress.plan, folder) == 0
    return folder


def test_what_an_experiment_leaves(whole):
    plan, _ = whole.read_experiment()
    for label in ("base", "plain/seed-3", "plain/seed-4", "ours/seed-3", "ours/seed-4"):
        for name, questions in (("near", ("sum-12", "sum-13")), ("far", ("sum-14", "sum-15"))):
            rows = [json.loads(line) for line in (whole.path / "outcomes" / label / f"{name}.jsonl").open()]
            assert [row["id"] for row in rows] == list(questions)
            assert all(row.keys() >= {"id", "correct", "parsed", "cut_off", "response"} for row in rows)
        about = json.loads((whole.path / "outcomes" / label / "answers.json").read_text())
        assert about == {"hash": whole.hash, "threads": [torch.get_num_threads()]}
    assert not (whole.path / "outcomes" / "base-marker").exists()
    # C is what MIND cost at half an epoch, with the first seed; each run ends with the step that reaches its share.
    measured = whole.run(Job.budget("ours")).read_status()
    assert whole.read_result(whole.budget) == {"unit": "flops", "amount": measured["flops"], "of": "ours"}
    tuning = tuned(whole)
    assert tuning.keys() == {"plain"}
    tried = tuning["plain"]["configurations"]
    assert [one["options"]["train.learning_rate"] for one in tried] == [1e-3, 3e-2]
    assert all(one["flops"] >= measured["flops"] / 2 and one["questions"] == 2 for one in tried)
    chosen = tried[tuning["plain"]["chosen"]]
    assert (chosen["accuracy"], -chosen["nll"]) == max((one["accuracy"], -one["nll"]) for one in tried)
    for label in plan.methods:
        for seed in (3, 4):
            run = whole.run(Job.run(label, seed))
            rows, config = train_rows(run.path), run.read_config()
            assert run.read_status()["flops"] >= measured["flops"] and config["train"]["seed"] == seed
            one_less = run.read_status()["flops"] - 6 * run.read_status()["student_parameters"] * (
                rows[-1]["work"]["trained"] + rows[-1]["work"]["observed"] / 3
            )
            assert one_less < measured["flops"]
            assert run.read_evaluation()["before"] == whole.base.read_evaluation()["before"]
            assert run.report.exists() and not run.student.exists() and not run.checkpoints()
    assert config["train"]["learning_rate"] == 1e-3
    assert (
        whole.run(Job.run("plain", 3)).read_config()["train"]["learning_rate"]
        == chosen["options"]["train.learning_rate"]
    )
    assert not whole.failures.exists()


def test_a_run_is_as_by_hand(whole, tmp_path):
    """`mind train` with the same options, and its student asked the same."""
    place = whole.path.parent
    budget = json.loads(whole.budget.read_text())["amount"]
    run = mind.train(
        MindConfig(
            output=str(tmp_path / "run"),
            student=StudentConfig(model=str(place / "model"), max_length=512),
            data=DataConfig(
                train=str(place / "train.jsonl"), heldout=str(place / "validation.jsonl"), perspectives=NAMES
            ),
            metanet=MetaNetConfig(warmup_epochs=2),
            train=TrainConfig(flops=budget, questions_per_step=2, learning_rate=1e-3, seed=4, report_to="none"),
        )
    )
    own = whole.run(Job.run("ours", 4))
    assert train_rows(run.path) == train_rows(own.path)
    assert run.read_evaluation()["after"]["heldout"] == own.read_evaluation()["after"]["heldout"]
    assert run.read_evaluation()["before"]["heldout"]["nll"] == pytest.approx(
        own.read_evaluation()["before"]["heldout"]["nll"], rel=1e-6
    )
    model, tokenizer = load_student(StudentConfig(model=str(run.student), max_length=512))
    questions = load_questions(place / "far.jsonl")
    prompts = evaluation_prompts(model, tokenizer, questions, EvaluationConfig())
    replies = generate_responses(model, tokenizer, prompts, max_new_tokens=2, batch_size=2)
    expected = [outcome(*pair) for pair in zip(replies, questions, strict=True)]
    assert [json.loads(line) for line in (whole.path / "outcomes/ours/seed-4/far.jsonl").open()] == expected


def test_runs_that_fail_are_named_and_tried_again(whole, tmp_path, monkeypatch):
    """One fails in its second step, one configuration has a loss that is nan: the others go on."""
    folder = ExperimentFolder(shutil.copytree(whole.path, tmp_path / "copy"))
    for place in ("runs/ours", "outcomes/ours", "tuning", "tuning.json", "runs/plain", "outcomes/plain"):
        path = folder.path / place
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    step, faulty = MethodTrainer.training_step, [MindError("the disk is full")]

    def fail(self, *args, **kwargs):
        if "ours/seed-3" in str(self.folder.path) and self.state.global_step == 1 and faulty:
            raise faulty.pop()
        if "config-1" in str(self.folder.path):
            raise NotFiniteError("the loss is nan")
        return step(self, *args, **kwargs)

    monkeypatch.setattr(MethodTrainer, "training_step", fail)
    seen = []
    progress = run_experiment(folder, here(folder), watch=lambda progress: seen.append(set(progress.running)))
    assert [job.name for job in progress.failed] == ["runs/ours/seed-3"] and left(progress.plan, folder) == 1
    assert any(Job.run("ours", 4) in running for running in seen)
    (failure,) = json.loads(folder.failures.read_text())
    assert (failure["label"], failure["seed"], failure["message"]) == ("ours", 3, "the disk is full")
    assert failure["log"] == "runs/ours/seed-3.log"
    table = tuned(folder)["plain"]
    assert table["chosen"] == 0 and "the loss is nan" in table["configurations"][1]["failed"]
    again = run_experiment(folder, here(folder))
    assert list(again.ended) == [Job.run("ours", 3)] and left(again.plan, folder) == 0
    assert json.loads(folder.failures.read_text()) == []
    assert result_of(folder)["steps"]["runs/ours/seed-3"] == result_of(whole)["steps"]["runs/ours/seed-3"]


def test_results_are_of_one_plan(whole, tmp_path):
    """Each has its hash, and those of another are not taken for this one's."""
    results = ("budget.json", "tuning.json", "tuning/plain/config-0.json", "outcomes/ours/seed-3/answers.json")
    for name in results:
        assert json.loads((whole.path / name).read_text())["hash"] == whole.hash
        folder = ExperimentFolder(shutil.copytree(whole.path, tmp_path / name.replace("/", "-")))
        content = json.loads((folder.path / name).read_text())
        (folder.path / name).write_text(json.dumps({**content, "hash": "0" * 64}))
        with pytest.raises(MindError, match=f"{name}: \"hash\" is '{'0' * 64}': expected that of experiment.json"):
            run_experiment(folder, here(folder))


def test_a_configuration_that_its_share_cannot_pay_is_none(whole, tmp_path, monkeypatch):
    folder, job = ExperimentFolder(shutil.copytree(whole.path, tmp_path / "copy")), Job.tuning("plain", 0)
    shutil.rmtree(folder.run(job).path)
    folder.beside(job, ".json").unlink()
    message = "nothing is left for training"

    def unpaid(*_, **__):
        raise BudgetError(message)

    monkeypatch.setattr("mind.run.train._count_spent", unpaid)
    perform(folder.path, job.name)
    assert folder.done(job, folder.read_experiment()[0])
    table = tune(folder.read_experiment()[0], folder)["plain"]
    assert table["chosen"] == 1 and table["configurations"][0]["failed"] == message


def test_time_that_is_over(whole, tmp_path):
    """No job begins; one that is asked to pause does so after a step, and the experiment is the same in the end."""
    folder = ExperimentFolder(shutil.copytree(whole.path, tmp_path / "copy"))
    shutil.rmtree(folder.path / "runs" / "ours")
    shutil.rmtree(folder.path / "outcomes" / "ours")
    assert run_experiment(folder, here(folder), stop_at=time.monotonic()).ended == {}
    pauses = 0
    while left(run_experiment(folder, here(folder, time.monotonic())).plan, folder):
        pauses += 1
        if pauses == 2:  # and then without
            run_experiment(folder, here(folder))
    assert pauses == 2 and result_of(folder) == result_of(whole)


def test_an_experiment_has_one_runner(whole):
    with held(whole.lock), pytest.raises(MindError, match="another process runs this experiment"):
        run_experiment(whole, here(whole))


def start(folder: ExperimentFolder) -> None:
    run_experiment(folder, Processes(folder, 1, None))


@pytest.mark.nightly
def test_kills_of_a_runner_and_of_its_run(whole, tmp_path):
    """The run is a process of its own, which ends with the runner, between two steps or within one; another runner goes
    on from its last checkpoint. A run that is killed alone is a failure that the next start mends. Many more kills:
    experiment_kills.py."""
    folder = ExperimentFolder(shutil.copytree(whole.path, tmp_path / "copy"))
    job = Job.run("ours", 3)
    shutil.rmtree(folder.run(job))
    shutil.rmtree(folder.outcomes(job))

    def started(until):
        runner = multiprocessing.get_context("fork").Process(target=start, args=(folder,))
        runner.start()
        end = time.monotonic() + 300
        while not until() and time.monotonic() < end:
            time.sleep(0.005)
        return runner

    runner = started(folder.run(job).checkpoints)
    os.kill(runner.pid, signal.SIGKILL)
    runner.join()
    with held(folder.beside(job, ".lock")):  # the orphan has ended: it held this
        before = content(folder.run(job).path)
    assert folder.run(job).checkpoints() and not folder.done(job, folder.read_experiment()[0])
    assert content(folder.run(job).path) == before

    runner = started(lambda: len(folder.run(job).read_starts()) == 2)
    (run,) = psutil.Process(runner.pid).children()
    run.kill()
    runner.join()
    (failure,) = json.loads(folder.failures.read_text())
    assert failure["job"] == job.name and failure["message"].startswith("killed by signal 9")
    run_experiment(folder, here(folder))
    assert result_of(folder) == result_of(whole)
    assert len(folder.run(job).read_starts()) == 3 and json.loads(folder.failures.read_text()) == []


def test_an_experiment_goes_on_elsewhere(whole, tmp_path, monkeypatch):
    """Its folder moves, and so do the student and the questions; a job of another scheduler names it from where it
    is. A report that a kill came before is made up for."""
    folder = ExperimentFolder(shutil.copytree(whole.path, tmp_path / "copy"))
    job = Job.run("plain", 3)
    shutil.rmtree(folder.run(job))
    shutil.rmtree(folder.outcomes(job))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PausedError):
        perform("copy", job.name, time.monotonic())
    assert folder.run(job).read_config()["output"] == str(folder.run(job).path)
    moved = shutil.copytree(whole.path.parent, tmp_path / "moved", ignore=shutil.ignore_patterns("whole"))
    folder = prepare(str(moved / "plan.json"), folder.path.rename(tmp_path / "renamed"), {})
    monkeypatch.chdir(folder.path)
    perform(".", job.name)
    assert result_of(folder) == result_of(whole) and len(folder.run(job).read_starts()) == 2
    for place in folder.outcomes(job).iterdir():
        place.unlink()
    folder.run(job).student.mkdir()
    folder.run(job).report.unlink()
    with pytest.raises(PausedError):
        perform(".", job.name, time.monotonic())
    assert folder.run(job).report.exists()


def interrupted_after_a_start(progress) -> None:
    if progress.running:
        raise KeyboardInterrupt


def test_ctrl_c_ends_the_processes(whole, tmp_path, monkeypatch):
    folder = ExperimentFolder(shutil.copytree(whole.path, tmp_path / "copy"))
    shutil.rmtree(folder.path / "outcomes")
    monkeypatch.setattr("mind.experiment.places.job_command", lambda *_: ["sh", "-c", "trap '' TERM; exec sleep 300"])
    place, began = Processes(folder, 1, None), time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_experiment(folder, place, watch=interrupted_after_a_start, interrupt=place.stop)
    assert time.monotonic() - began < 200
    assert place(Job("base")) == STOPPED  # one that was about to begin does not


def test_ctrl_c_ends_the_tasks_of_ray(whole, tmp_path, monkeypatch):
    """With a cluster of one task, which ends when it is canceled."""
    folder = ExperimentFolder(shutil.copytree(whole.path, tmp_path / "copy"))
    shutil.rmtree(folder.path / "outcomes")
    canceled = threading.Event()
    ray = types.ModuleType("ray")

    class RayError(Exception):
        pass

    def get(task):
        assert canceled.wait(200), f"{task} was not canceled"
        raise RayError("canceled")

    def cancel(task, *, force):
        assert task == Job("base") and force
        canceled.set()

    vars(ray).update(
        exceptions=types.SimpleNamespace(RayError=RayError),
        init=lambda **_: None,
        cluster_resources=lambda: {"CPU": 2.0},
        remote=lambda **_: lambda task: types.SimpleNamespace(remote=lambda job, seconds: job),
        get=get,
        cancel=cancel,
    )
    monkeypatch.setitem(sys.modules, "ray", ray)
    place = RayTasks(folder, "auto", 1, None)
    assert place.at_a_time == 2
    with pytest.raises(KeyboardInterrupt):
        run_experiment(folder, place, watch=interrupted_after_a_start, interrupt=place.stop)
    assert canceled.is_set() and place(Job("base")) == STOPPED


def test_a_process_that_is_killed_is_a_failure(tmp_path, monkeypatch):
    """Its message has the signal, or the last lines of what it wrote."""
    folder, job = ExperimentFolder(tmp_path), Job.run("ours", 3)
    commands = {
        "kill -9 $$": "killed by signal 9",
        "echo first; echo 'mind: error: no room'; echo to go on; exit 2": "exit status 2; mind: error: no room",
        "exit 75": "paused",
        'test -n "$MIND_EXPERIMENT_WATCHED" && test $OMP_NUM_THREADS = 3': "done",
    }
    for command, expected in commands.items():
        monkeypatch.setattr("mind.experiment.places.job_command", lambda *_, command=command: ["sh", "-c", command])
        ending = Processes(folder, 3, None)(job)
        assert ending == (Ending(expected) if expected in ("done", "paused") else Ending("failed", expected))


def test_the_command_line(whole, tmp_path, capsys):
    file = whole.path.parent / "plan.json"
    assert main(["experiment", str(file), "--output", str(whole.path)]) == 0
    shown = capsys.readouterr().out
    assert "0 jobs to do" in shown and "2 of 2" in shown and "mind compare" in shown
    assert main(["experiment", "--job", "runs/ours/seed-3", "--output", str(whole.path)]) == 0
    for words, message in {
        ("experiment",): "PLAN is missing: expected a JSON file, or a plan of the package: paper, svamp-smollm2, ",
        ("experiment", str(file), "--job", "base"): "--job beside a plan: the plan is that of --output",
        ("experiment", str(file), "--set", "X", "--set", "A=1"): "--set X: expected NAME=VALUE",
        ("experiment", str(file), "--jobs", "0"): "jobs is 0: expected at least 1",
        ("experiment", "--job", "tuning/plain/config-9", "--output", str(whole.path)): "config-9: the plan has no such",
        ("experiment", "--job", "base", "--output", str(tmp_path / "no")): "there is no experiment (experiment.json is",
    }.items():
        assert main(list(words)) == 2
        err = capsys.readouterr().err
        assert message in err and "given 2 times" not in err
