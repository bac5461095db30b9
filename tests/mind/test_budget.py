"""Runs that end when their budget is spent: the right step is the last, the learning rate follows what is spent, stages
share it, and a run that pauses after each step is the same."""

from __future__ import annotations

import dataclasses
import math
import time

import pytest
from small_run import train_rows, write_student
from tiny import NAMES, build_model, build_questions

import mind
from mind.config import DataConfig, EvaluationConfig, MindConfig, StageConfig, StudentConfig, TrainConfig
from mind.data.questions import save_questions
from mind.errors import BudgetError, MindError, PausedError
from mind.methods import with_options
from mind.methods.mode_cotd import ModeCotdOptions
from mind.records import WrongRationale
from mind.run.checks import check_options
from mind.run.ending import Budget
from mind.run.stages import stages_of
from mind.run.unused import warn_of_unused_options
from mind.run_folder import RunFolder

PARAMETERS = sum(parameter.numel() for parameter in build_model().parameters())


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("budget")
    write_student(place / "model", build_model())
    questions = [
        dataclasses.replace(one, wrong_rationales=(WrongRationale(NAMES[0], one.rationales[0].text[:-2] + "!", "-7"),))
        for one in build_questions(10)
    ]
    save_questions(questions, place / "train.jsonl")
    return place


def config_of(place, name, method="sft", train=None, **changes) -> MindConfig:
    train = {"questions_per_step": 2, "save_steps": 1, "learning_rate": 1e-3, "report_to": "none"} | (train or {})
    config = MindConfig(
        output=str(place / name),
        method=method,
        student=StudentConfig(model=str(place / "model"), max_length=512),
        data=DataConfig(train=str(place / "train.jsonl"), perspectives=NAMES),
        train=TrainConfig(**train),
        evaluation=EvaluationConfig(max_new_tokens=2),
    )
    return dataclasses.replace(config, **changes)


def cost(row) -> int:
    """By design/methods.md 1.6, with all parameters trained."""
    work = row["work"]
    return PARAMETERS * (6 * work.get("trained", 0) + 2 * (work.get("observed", 0) + work.get("search", 0)))


def test_the_first_step_that_reaches_the_budget_is_the_last(place):
    """Six steps, of which the fifth begins a second epoch."""
    straight = mind.train(config_of(place, "steps", train={"max_steps": 6, "save_steps": 99}))
    costs = [cost(row) for row in train_rows(straight.path)]
    budget = sum(costs[:5]) + costs[5] / 2
    run = mind.train(config_of(place, "flops", train={"flops": budget, "warmup_ratio": 0.2}))
    rows = train_rows(run.path)
    assert len(rows) == 6 == run.read_status()["steps"] and run.read_status()["flops"] == sum(costs[:6])
    assert list(run.checkpoints()) == [5, 6] and run.finished
    assert [row["work"] for row in rows] == [row["work"] for row in train_rows(straight.path)[:6]]
    spent = 0.0
    for row, step in zip(rows, costs, strict=False):  # the cosine after a warm-up of a fifth, in the middle of the step
        middle = (spent + min(spent + step, budget)) / 2 / budget
        expected = middle / 0.2 if middle < 0.2 else (1 + math.cos(math.pi * (middle - 0.2) / 0.8)) / 2
        assert row["learning_rate"] == pytest.approx(1e-3 * expected, abs=1e-3 * 5e-3)
        spent += step
    # At the very end of a step: no other comes.
    exact = mind.train(config_of(place, "exact", train={"flops": float(sum(costs[:2]))}))
    assert len(train_rows(exact.path)) == 2


@pytest.mark.nightly
def test_a_run_that_pauses_after_each_step_is_the_same(place):
    """By MIND, whose steps cost what its selection takes; what comes before the first step counts, too."""
    settings = {"trained_tokens": 500, "log_steps": 2}
    straight = mind.train(config_of(place, "straight", "mind", settings))
    config, pauses = config_of(place, "paused", "mind", settings), 0
    with pytest.raises(PausedError, match="paused: paused after step 1; --resume goes on"):
        mind.train(config, pause_at=time.monotonic())
    while not RunFolder(config.output).finished:
        pauses += 1
        try:
            mind.train(config, resume=True, pause_at=time.monotonic())
        except PausedError as pause:
            assert f"after step {pauses + 1};" in str(pause)
    assert pauses > 1 and train_rows(place / "paused") == train_rows(straight.path)
    trained = [row["work"]["trained"] for row in train_rows(straight.path)]
    assert sum(trained) == straight.read_status()["work"]["trained"] >= 500
    assert sum(trained) - max(trained) < 500
    # As a kill behind the last step leaves it: the budget is spent, and no step comes after it.
    straight.status.unlink()
    before = train_rows(straight.path)
    assert mind.train(config_of(place, "straight", "mind", settings), resume=True).finished
    assert train_rows(straight.path) == before


def test_stages_share_the_budget(place):
    budget = 16 * PARAMETERS * 1000.0
    stages = {"sft": StageConfig(share=0.25, learning_rate=1e-3)}
    run = mind.train(
        config_of(place, "redi", "redi", {"flops": budget, "questions_per_step": 1, "save_steps": 99}, stages=stages)
    )
    (first,) = run.stages
    rows, own = train_rows(first.path), train_rows(run.path)
    assert sum(map(cost, rows[:-1])) < 0.25 * budget <= sum(map(cost, rows)) == first.read_status()["flops"]
    assert sum(map(cost, rows + own[:-1])) < budget <= sum(map(cost, rows + own)) == run.read_status()["flops"]


def test_a_search_leaves_the_rest_to_the_experts(place):
    """The trials of MoDE-CoTD cost the same whatever the budget: what they cost is kept for them."""
    student = StudentConfig(model=str(place / "model"), max_length=512, lora=True, lora_rank=2)
    options = ModeCotdOptions(budget=2, few_shot=2)
    budget = 16 * PARAMETERS * 1000.0
    train = {"flops": budget, "questions_per_step": 1, "save_steps": 99}
    run = mind.train(config_of(place, "mode", "mode-cotd", train, student=student, options=options))
    experts = [stage.read_status()["flops"] for stage in run.stages]
    last = [
        row["work"]["trained"] for stage in run.stages for row in train_rows(stage.path)[-1:]
    ]  # tokens of the step at whose end a stage is over
    spent = run.read_status()["flops"]
    assert budget <= spent < budget + 6 * PARAMETERS * max(last)
    assert spent - sum(experts) > 0 and max(experts) - min(experts) < 2 * 6 * PARAMETERS * max(last)


def test_a_budget_that_leaves_nothing(place):
    """For the experts beside the search, found before anything is written; for a stage, behind one whose only step
    costs more than both have."""
    student = StudentConfig(model=str(place / "model"), max_length=512, lora=True, lora_rank=2)
    options = ModeCotdOptions(budget=7, few_shot=2)
    poor = config_of(place, "poor", "mode-cotd", {"flops": 1e6}, student=student, options=options)
    message = (
        r"by method mode-cotd, needs all its 7 steps, which cost [\d.,e+]+ of the budget of 1e\+06: nothing is left"
    )
    with pytest.raises(BudgetError, match=message):
        mind.train(poor)
    assert not (place / "poor").exists()

    with pytest.raises(BudgetError, match=r"redi1: the stages before this one cost [\d,.e+]+, and 10 of the budget is"):
        mind.train(config_of(place, "redi1", "redi", {"flops": 10.0}))
    assert len(train_rows(RunFolder(str(place / "redi1")).stages[0].path)) == 1


def test_the_steps_that_a_budget_seems_to_pay_for():
    budget = Budget(10.0, lambda work: work["trained"])
    assert budget.steps(1) == 1  # nothing is spent yet
    budget.add({"trained": 4})
    assert budget.steps(2) == 5
    budget.add({"trained": 9})
    assert budget.steps(3) == 3


def test_the_shares_of_stages():
    def shares(method, **stages):
        config = MindConfig(method=method, train=TrainConfig(flops=100.0), student=StudentConfig(lora=True))
        runs = stages_of(with_options(dataclasses.replace(config, stages=stages)))
        assert runs[-1].config.train.flops == 100 and runs[-1].until == 1
        return [run.config.train.flops for run in runs[:-1]], [run.until for run in runs[:-1]]

    assert shares("edit") == ([50], [0.5])
    assert shares("edit", sft=StageConfig(share=0.8)) == ([80], [0.8])
    own, until = shares("mode-cotd")
    assert own == [12.5] * 8 and until == pytest.approx([n / 8 for n in range(1, 9)])
    with pytest.raises(MindError, match="stages: the 8 stages before the last have shares of 1.6 together"):
        shares("mode-cotd", experts=StageConfig(share=0.2))
    with pytest.raises(MindError, match="share is 1.5: expected a number between 0 and 1"):
        StageConfig(share=1.5)


def test_settings_that_do_not_go_together():
    with pytest.raises(MindError, match=r"train.flops is -1.0: expected a positive number"):
        TrainConfig(flops=-1.0)
    with pytest.raises(MindError, match="train.flops and train.trained_tokens are both set"):
        TrainConfig(flops=1.0, trained_tokens=1)
    taid = with_options(MindConfig(method="taid", train=TrainConfig(trained_tokens=10)))
    with pytest.raises(MindError, match="method taid needs to know how many steps a run has"):
        check_options(taid)
    both = MindConfig(train=TrainConfig(flops=10.0, max_steps=3, epochs=2))
    with pytest.warns(RuntimeWarning, match="train.epochs, train.max_steps have no effect: train.flops is set"):
        warn_of_unused_options(with_options(both))
    alone = MindConfig(method="edit", stages={"sft": StageConfig(share=0.5)})
    with pytest.warns(RuntimeWarning, match="stages.sft.share has no effect: the run has no budget"):
        warn_of_unused_options(with_options(alone))
