"""`single`: one perspective alone, which is `sft` on its rationales; and mind-oracle, another name of mind-instant."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from small_run import content, expect_error, replaced, train_rows
from tiny import NAMES, build_questions
from worked_example import QUESTION, head, hidden_of

import mind
from mind.batches.packing import micro_batches
from mind.cli import main
from mind.config import DataConfig, MindConfig
from mind.data.questions import load_questions, save_questions
from mind.errors import MindError
from mind.methods import load_run_config, method_class, method_title, with_options
from mind.methods.method import MethodContext
from mind.methods.step import Step
from mind.records import PackOptions, TokenizedQuestion, WrongRationale
from mind.run.data import trained_on

CONFIG = MindConfig(method="single", data=DataConfig(perspectives=NAMES, only=NAMES[1]))


@pytest.mark.parametrize("length", [12, 64])
def test_single_by_hand(length):
    """Its one rationale has weight 1: the loss is its cross-entropy, and nothing else has a gradient."""
    alone = TokenizedQuestion(QUESTION.id, QUESTION.prompt, {1: QUESTION.rationales[1]}, QUESTION.suffix)
    config, packing = with_options(CONFIG), PackOptions(length, True)
    context = MethodContext(config, None, None, [], [alone], [[0]], "sdpa", packing)
    built = method_class("single")(context)
    plan = built.prepare(Step(0, 0, [alone], lambda chosen: chosen))
    assert plan.weights.tolist() == [[0, 1, 0]] and not plan.observed.any()
    (batch,) = micro_batches(plan.questions, 3, packing, plan.trained)
    terms = built.loss(hidden_of(batch), head(), batch, plan)
    assert float(terms.loss.detach()) == pytest.approx(1.590928367218, abs=1e-12)
    assert set(batch.segment.tolist()) == {1} and torch.isnan(terms.l_real).tolist() == [[True, False, True]]


def test_questions_keep_the_rationales_of_the_perspective_alone(capsys):
    questions = [
        dataclasses.replace(question, wrong_rationales=tuple(WrongRationale(name, "no", "0") for name in NAMES))
        for question in build_questions(6)
    ]
    assert trained_on(questions, dataclasses.replace(CONFIG.data, only=None)) == questions
    kept = trained_on(questions, CONFIG.data)
    assert [question.id for question in kept] == [f"sum-{i}" for i in (0, 1, 3, 4)]
    for kind in ("rationales", "wrong_rationales"):
        assert {tuple(one.perspective for one in getattr(question, kind)) for question in kept} == {(NAMES[1],)}
    assert "4 of 6 questions are used: the others have no rationale of second" in capsys.readouterr().err
    with pytest.raises(MindError, match="data.only is second: none of the 1 training questions has such a rationale"):
        trained_on(questions[2:3], CONFIG.data)


def test_a_null_expert_sees_as_many_rationales_and_of_every_perspective(tmp_path, two_steps):
    """Names are permuted within each question, by the seed and its id alone."""
    questions = [
        dataclasses.replace(question, wrong_rationales=(WrongRationale(NAMES[0], "no", "0"),))
        for question in build_questions(300)
    ]
    data = dataclasses.replace(CONFIG.data, only=None, shuffle_perspectives=7)
    dealt = trained_on(questions, data)
    counts = {(true, name): 0 for true in NAMES for name in NAMES}
    for before, after in zip(questions, dealt, strict=True):
        assert [one.text for one in before.rationales] == [one.text for one in after.rationales]
        names = [[one.perspective for one in question.rationales] for question in (before, after)]
        assert sorted(names[0]) == sorted(names[1])
        (wrong,) = after.wrong_rationales
        assert wrong.perspective == after.rationales[0].perspective, "it was that of the first rationale, and stays so"
        for pair in zip(*names, strict=True):
            counts[pair] += len(names[0]) == 3
    assert all(45 < count < 90 for count in counts.values()), counts  # of 200 questions with all three
    assert trained_on(questions[100:], data) == dealt[100:]
    assert trained_on(questions, dataclasses.replace(data, shuffle_perspectives=8)) != dealt
    alone = trained_on(questions, dataclasses.replace(data, only=NAMES[1]))
    assert len(alone) == len(trained_on(questions, CONFIG.data)) == 200
    null = [*two_steps, "--data.only", NAMES[0], "--data.shuffle-perspectives", "7"]
    assert main(replaced(null, "--method", "single")) == 0
    plain = replaced(null, "--method", "single", "--output", str(tmp_path / "plain"))
    assert main(plain[:-2]) == 0
    assert train_rows(tmp_path / "run") != train_rows(tmp_path / "plain")


def test_it_trains_as_sft_on_records_without_the_others(tmp_path, two_steps):
    assert main(replaced(two_steps, "--method", "single", "--data.only", NAMES[0])) == 0
    questions = load_questions(tmp_path / "train.jsonl")
    alone = [dataclasses.replace(question, rationales=question.rationales[:1]) for question in questions]
    save_questions(alone, tmp_path / "train.jsonl")
    assert main(replaced(two_steps, "--output", str(tmp_path / "sft"))) == 0
    assert train_rows(tmp_path / "run") == train_rows(tmp_path / "sft")
    assert "SFT on one perspective run report" in (tmp_path / "run" / "report.html").read_text()
    heldout = [
        json.loads((tmp_path / name / "evaluation.json").read_text())["before"]["heldout"] for name in ("run", "sft")
    ]
    assert [list(some["nll_by_perspective"]) for some in heldout] == [list(NAMES), [NAMES[0]]]


def test_what_is_missing_is_told_before_anything_is_written(tmp_path, two_steps, capsys):
    single = replaced(two_steps, "--method", "single")
    before = content(tmp_path)
    expect_error(single, capsys, "method single needs data.only: --data.only names it")
    expect_error(
        [*single, "--data.only", "fourth"], capsys, "data.only is fourth: expected one of data.perspectives, first"
    )
    for method in ("mind", "mcc-kd"):
        told = f"data.only is {NAMES[0]}: method {method} compares rationales, and needs 2 per question"
        expect_error(replaced(two_steps, "--method", method, "--data.only", NAMES[0]), capsys, told)
    assert content(tmp_path) == before
    with pytest.raises(MindError, match="method single needs data.only"):
        mind.train(dataclasses.replace(CONFIG, output=str(tmp_path / "run"), data=DataConfig()))


def test_an_alias_is_the_method(tmp_path, two_steps):
    oracle, instant = (with_options(MindConfig(method=name)) for name in ("mind-oracle", "mind-instant"))
    assert oracle == instant and oracle.metanet.scores == "instant"
    assert method_title("mind-oracle") == method_title("mind-instant")
    assert main(replaced(two_steps, "--method", "mind-oracle")) == 0
    assert load_run_config(tmp_path / "run" / "config.json").method == "mind-instant"
    assert main(["train", "--output", str(tmp_path / "run"), "--resume", "--method", "mind-oracle"]) == 0
