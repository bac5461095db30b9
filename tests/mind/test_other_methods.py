"""The methods that MIND is compared with: worked examples in float64 through plan, packs and loss, and short runs."""

from __future__ import annotations

import dataclasses
import random

import pytest
from method_cases import (
    PACKINGS,
    build,
    config_of,
    context_of_run,
    total,
    with_wrong,
)
from tiny import build_questions
from worked_example import (
    EXPLAIN,
    EXPLAIN_ROW,
    LABEL,
    LABEL_ROW,
    QUESTION,
    RIGHT,
    WRONG,
    WRONG_ROW,
    head,
    hidden_of,
)

import mind
from mind.batches.packing import micro_batches, sequence_lengths
from mind.batches.steps import question_tokens
from mind.config import MindConfig
from mind.data.questions import load_questions, save_questions
from mind.errors import MindError
from mind.methods import METHODS
from mind.methods.edit import Edit, EditOptions, changed_tokens
from mind.methods.pairs import Pair
from mind.methods.sbs import Sbs, SbsOptions
from mind.methods.step import Step
from mind.records import Branch, PackOptions, TokenizedQuestion, WrongRationale
from mind.run.data import load_data


@pytest.mark.parametrize("packing", PACKINGS)
def test_step_by_step_by_hand(packing):
    for alpha, expected in ((0.5, 2.3445706053948925), (1.0, 2.2648795102387242), (0.3, 2.376447043457)):
        made = TokenizedQuestion.of_sequences("example", {0: LABEL, 1: EXPLAIN})
        built = build(Sbs, SbsOptions(alpha=alpha), made={"example": made})
        assert total(built, {0: LABEL_ROW, 1: EXPLAIN_ROW}, packing)[1] == pytest.approx(expected, abs=1e-12)


def test_step_by_step_takes_the_rationales_in_turn():
    others = [Branch((2, 3), (token, 5)) for token in (0, 1, 2)]
    made = TokenizedQuestion.of_sequences("example", dict(enumerate([LABEL, *others])))
    built = build(Sbs, SbsOptions(), made={"example": made})
    plans = [built.prepare(Step(0, epoch, [QUESTION], lambda chosen: chosen)) for epoch in range(4)]
    taken = [plan.questions[0].others[1] for plan in plans]
    assert set(taken[:3]) == set(others) and taken[3] == taken[0]


@pytest.mark.parametrize("packing", PACKINGS)
def test_edit_by_hand(packing):
    marks = changed_tokens(RIGHT.ids, WRONG.ids)
    assert marks == ([False, True, True, False],) * 2
    weights = [tuple(map(float, changed)) for changed in marks]
    pair = Pair(dataclasses.replace(RIGHT, weights=weights[0]), dataclasses.replace(WRONG, weights=weights[1]))

    def built(alpha=1.0, beta=0.025, pair=pair):
        return build(Edit, EditOptions(alpha=alpha, beta=beta), _pairs={"example": [pair]})

    rows = {0: 0, 1: WRONG_ROW}
    plan, loss, gradients = total(built(), rows, packing)
    assert loss == pytest.approx(1.0145282402484725, abs=1e-12)
    assert 4 * loss == pytest.approx(4.05811296099389, abs=1e-12)  # the sum that the paper prints
    assert gradients[0].any(1).tolist() == marks[0] and gradients[1].any(1).tolist() == marks[1]
    assert set(total(built(1.0, 0.0), rows, packing)[2]) == {0}  # the wrong one is only observed
    (batch,) = micro_batches(plan.questions, plan.weights.shape[1], PackOptions(64, True), plan.trained)
    sums = built().loss(hidden_of(batch, rows), head(), batch, plan).sums
    assert float(sums["right_term"]) == pytest.approx(1.045592803454, abs=1e-12)
    assert float(sums["wrong_term"]) == pytest.approx(0.031064563205, abs=1e-12)
    everything = dataclasses.replace(RIGHT, weights=(1.0,) * 4)
    same = total(built(1.0, 0.0, Pair(everything, pair.wrong)), rows, packing)[1]
    assert same == pytest.approx(2.0961229468387272, abs=1e-12)


@pytest.mark.parametrize(
    ("right", "wrong", "of_right", "of_wrong"),
    [
        ((1, 2, 4, 5), (1, 4, 0, 5), "FTFF", "FFTF"),
        ((1, 2, 4, 5), (1, 2, 3, 4, 5), "FFFF", "FFTFF"),
        ((7, 8, 9, 3), (8, 9, 3, 3), "TFFF", "FFFT"),
        ((1, 2), (2, 1), "FT", "TF"),
        ((), (1,), "", "T"),
        ((1,), (1,), "F", "F"),
    ],
)
def test_alignments_by_hand(right, wrong, of_right, of_wrong):
    assert changed_tokens(right, wrong) == ([c == "T" for c in of_right], [c == "T" for c in of_wrong])


def test_an_alignment_has_the_fewest_edits():
    """Against the plain recurrence, and what is not changed is the same in both."""
    chance = random.Random(0)
    for _ in range(200):
        a, b = (tuple(chance.choices(range(4), k=chance.randint(0, 9))) for _ in range(2))
        table = [[i + j if i * j == 0 else 0 for j in range(len(b) + 1)] for i in range(len(a) + 1)]
        for i in range(1, len(a) + 1):
            for j in range(1, len(b) + 1):
                replaced = table[i - 1][j - 1] + (a[i - 1] != b[j - 1])
                table[i][j] = min(table[i - 1][j] + 1, table[i][j - 1] + 1, replaced)
        of_a, of_b = changed_tokens(a, b)
        kept = [[t for t, changed in zip(s, marks, strict=True) if not changed] for s, marks in ((a, of_a), (b, of_b))]
        assert kept[0] == kept[1]
        edits = max(sum(of_a), sum(of_b))
        assert edits <= table[-1][-1] <= sum(of_a) + sum(of_b)


class Written:
    """In the place of Sequences: rationales whose texts are token ids already."""

    @staticmethod
    def wrong(question, rationale):
        return Branch(QUESTION.prompt, rationale.text)

    @staticmethod
    def explained(question, rationale, *, answered):
        assert answered
        return Branch(QUESTION.prompt, rationale.text)


def wrongly(ids, twin=None):
    return WrongRationale("planning", ids, "3", right=twin)


@pytest.mark.parametrize(
    ("max_changed", "most", "expected"),
    [
        (0.5, 4, [("long", "one of ten"), ("short", "one of six"), ("long", "three"), ("short", "two gone")]),
        (0.5, 2, [("long", "one of ten"), ("short", "one of six")]),
        (0.3, 4, [("long", "one of ten"), ("short", "one of six"), ("long", "three")]),
        (0.29, 4, [("long", "one of ten"), ("short", "one of six")]),
        (0.05, 4, []),
    ],
)
def test_edit_takes_the_nearest_right_rationale_of_each_wrong_one(max_changed, most, expected, monkeypatch):
    rights = {"long": (1, 2, 3, 4, 5, 6, 7, 8, 9, 0), "short": (1, 2, 3, 4, 5, 0)}
    wrongs = {
        "all": tuple(range(30, 40)),
        "two gone": (1, 2, 3, 0),
        "three": (1, 2, 20, 4, 21, 6, 22, 8, 9, 0),
        "one of six": (1, 20, 3, 4, 5, 0),
        "one of ten": (1, 2, 3, 4, 20, 6, 7, 8, 9, 0),
    }
    changes = {"one of ten": 1, "one of six": 1, "three": 3, "two gone": 2}
    aligned = []

    def spy(right, wrong):
        aligned.append((right, wrong))
        return changed_tokens(right, wrong)

    monkeypatch.setattr("mind.methods.edit.changed_tokens", spy)
    config = MindConfig(method="edit", options=EditOptions(max_changed=max_changed, pairs=most))
    question = dataclasses.replace(build_questions(1)[0], wrong_rationales=tuple(map(wrongly, wrongs.values())))
    tokens = TokenizedQuestion("q", QUESTION.prompt, {k: ids[:-1] for k, ids in enumerate(rights.values())}, (0,))
    pairs = Edit.pairs_of(config, question, tokens, Written)
    assert [(pair.right.ids, pair.wrong.ids) for pair in pairs] == [(rights[r], wrongs[w]) for r, w in expected]
    assert [sum(pair.right.weights) for pair in pairs] == [changes[wrong] for _, wrong in expected]
    # Of ten tokens six at least are gone in four: there is no need to look for which.
    assert (rights["long"], wrongs["two gone"]) not in aligned and len(aligned) == len(set(aligned))


@pytest.mark.parametrize(
    ("most", "expected"),
    [
        (4, [("twin", "two off"), ("twin", "three off"), ("right", "one off")]),
        (2, [("twin", "two off"), ("twin", "three off")]),
    ],
)
def test_edit_takes_twins_first_and_with_one_another_alone(most, expected):
    """Though another right rationale is nearer; one that differs too much is left out all the same."""
    ids = {
        "right": (1, 2, 3, 4, 5, 6, 0),
        "twin": (1, 2, 3, 4, 15, 16, 0),
        "one off": (1, 2, 3, 4, 5, 20, 0),
        "two off": (1, 2, 3, 4, 5, 21, 0),
        "three off": (1, 2, 3, 22, 5, 6, 0),
        "all off": (30, 31, 32, 33, 34, 35, 0),
    }
    twins = dict.fromkeys(("two off", "three off", "all off"), ids["twin"])
    wrongs = tuple(wrongly(ids[name], twins.get(name)) for name in ids if name.endswith("off"))
    question = dataclasses.replace(build_questions(1)[0], wrong_rationales=wrongs)
    tokens = TokenizedQuestion("q", QUESTION.prompt, {0: ids["right"][:-1]}, (0,))
    config = MindConfig(method="edit", options=EditOptions(pairs=most))
    pairs = Edit.pairs_of(config, question, tokens, Written)
    assert [(pair.right.ids, pair.wrong.ids) for pair in pairs] == [(ids[r], ids[w]) for r, w in expected]
    assert [sum(pair.right.weights) for pair in pairs] == [2, 3, 1][:most]


def test_sequences_of_several_prompts_are_packed_apart_and_counted_once():
    question = TokenizedQuestion("q", (1, 2, 3), {0: (4,)}, (5,), {1: Branch((7, 8), (9,)), 2: Branch((1, 2, 3), (6,))})
    assert question_tokens(question) == 3 + 2 + 2 + 1 + 1
    assert sorted(sequence_lengths(question)) == [3, 4, 5]
    (batch,) = micro_batches([question], 3, PackOptions(64, share_prompts=True))
    assert batch.total_tokens == question_tokens(question)
    (batch,) = micro_batches([question], 3, PackOptions(64, share_prompts=False))
    assert batch.total_tokens == 3 + 4 + 5 and batch.tokens.tolist() == [[2, 1, 1]]


# Runs


def test_wrong_rationales_are_read_as_they_were_written(tmp_path):
    questions = with_wrong()
    for name in ("q.jsonl", "q.parquet"):
        save_questions(questions, tmp_path / name)
        assert load_questions(tmp_path / name) == questions


@pytest.mark.parametrize("name", ["edit", "redi"])
def test_a_method_without_the_pairs_that_it_needs_is_told_before_anything_is_written(name, tmp_path, model_folder):
    config = config_of(tmp_path, model_folder, name)
    save_questions(build_questions(10), tmp_path / "train.jsonl")
    with pytest.raises(
        MindError,
        match=rf"^method {name} needs a pair of a right and a wrong rationale: 0 of 9 questions qualify; `mind data",
    ):
        mind.train(config)
    assert not (tmp_path / "run").exists()


def test_prompts_that_a_method_makes_are_held_against_the_rows_before_anything_is_written(tmp_path, model_folder):
    config = config_of(tmp_path, model_folder, "sbs")
    prompts = [question.prompt for question in context_of_run(config, build_questions(10)).tokenized]
    length = max(map(len, prompts)) + 2
    changes = dataclasses.replace(config.train, pack_length=length)
    config = dataclasses.replace(config, train=changes)
    with pytest.raises(MindError, match=rf"its prompt alone has \d+ tokens; train.pack_length is {length}"):
        mind.train(config)
    assert not (tmp_path / "run").exists()
    assert context_of_run(dataclasses.replace(config, method="sft"), build_questions(10)).pack_options.length == length


@pytest.mark.parametrize("name", sorted(METHODS))
def test_how_many_rationales_a_method_needs(name, tmp_path, model_folder):
    config = config_of(tmp_path, model_folder, name)
    questions = [dataclasses.replace(one, rationales=one.rationales[:1]) for one in with_wrong()]
    save_questions(questions, tmp_path / "train.jsonl")
    if name in ("mind", "mcc-kd", "compact"):
        with pytest.raises(MindError, match="1 rationale: expected at least 2"):
            load_data(config)
    else:
        data = load_data(config)
        assert len(data.train) + len(data.heldout) == len(questions)


@pytest.mark.parametrize("name", ["edit", "redi"])
def test_questions_that_are_left_out_are_told(name, tmp_path, model_folder, capsys):
    context = context_of_run(config_of(tmp_path, model_folder, name), with_wrong(10))
    assert [question.id for question in context.questions] == [f"sum-{i}" for i in (1, 2, 4, 5, 7, 8)]
    line = (
        f"6 of 10 questions are trained on: method {name} needs a pair of a right and a wrong rationale that it can use"
    )
    assert capsys.readouterr().err.splitlines().count(line) == 1
    context_of_run(config_of(tmp_path, model_folder, "sft"), with_wrong(10))
    assert "trained on" not in capsys.readouterr().err
