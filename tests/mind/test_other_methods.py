"""The methods that MIND is compared with: worked examples in float64 through plan, packs and loss, and short runs."""

from __future__ import annotations

import dataclasses
import math
import random
import shutil
from contextlib import nullcontext

import pytest
import torch
from small_run import content, train_rows, write_student
from tiny import NAMES, build_model, build_questions, build_tokenizer
from worked_example import (
    EXPLAIN,
    EXPLAIN_ROW,
    FIRST_ROWS,
    LABEL,
    LABEL_ROW,
    QUESTION,
    RIGHT,
    WRONG,
    WRONG_ROW,
    ZT,
    Z,
    head,
    hidden_of,
)

import mind
from mind.batches.packing import micro_batches, sequence_lengths
from mind.batches.steps import question_tokens
from mind.config import DataConfig, EvaluationConfig, MindConfig, ObjectiveConfig, StudentConfig, TrainConfig
from mind.data.questions import load_questions, save_questions
from mind.errors import MindError
from mind.methods import METHODS, with_options
from mind.methods.edit import Edit, EditOptions, changed_tokens
from mind.methods.kd import Kd, KdOptions
from mind.methods.mcc_kd import MccKd, MccKdOptions, twice_symmetric_kl
from mind.methods.method import MethodContext, Step
from mind.methods.pairs import Pair
from mind.methods.redi import Redi, RediOptions
from mind.methods.sbs import Sbs, SbsOptions
from mind.methods.taid import Schedule, Taid, TaidOptions
from mind.records import Branch, PackOptions, TokenizedQuestion, WrongRationale
from mind.run.data import load_data
from mind_kernels import Head, linear_divergence

PACKINGS = [PackOptions(length, share) for length in (12, 64) for share in (True, False)]


def build(kind, options, name="", **fields):
    """A method of the example's question, without a model."""
    config = MindConfig(method=name or kind.__name__.lower(), data=DataConfig(perspectives=NAMES), options=options)
    built = kind.__new__(kind)
    built.context = MethodContext(with_options(config), None, None, [], [QUESTION], [[0]], "sdpa", PACKINGS[0])
    built.options = options
    for field, value in fields.items():
        setattr(built, field, value)
    return built


def total(built, first_rows, packing, epoch=0):
    """The loss of a step with the example's question alone, and the gradient of all its rows."""
    plan = built.prepare(Step(0, epoch, [QUESTION], lambda chosen: chosen))
    loss, gradients = 0.0, {}
    for batch in micro_batches(plan.questions, plan.weights.shape[1], packing, plan.trained):
        hidden = hidden_of(batch, first_rows)
        terms = built.loss(hidden, head(), batch, plan)
        terms.loss.backward()
        loss += float(terms.loss.detach())
        for row, gradient in zip(batch.segment.tolist(), hidden.grad, strict=True):
            gradients.setdefault(row, []).append(gradient)
    return plan, loss, {slot: torch.stack(rows) for slot, rows in gradients.items()}


@pytest.mark.parametrize("packing", PACKINGS)
def test_step_by_step_by_hand(packing):
    for alpha, expected in ((0.5, 2.3445706053948925), (1.0, 2.2648795102387242), (0.3, 2.376447043457)):
        built = build(Sbs, SbsOptions(alpha=alpha), _answers={"example": LABEL}, _explanations={"example": [EXPLAIN]})
        assert total(built, {0: LABEL_ROW, 1: EXPLAIN_ROW}, packing)[1] == pytest.approx(expected, abs=1e-12)


def test_step_by_step_takes_the_rationales_in_turn():
    others = [Branch((2, 3), (token, 5)) for token in (0, 1, 2)]
    built = build(Sbs, SbsOptions(), _answers={"example": LABEL}, _explanations={"example": others})
    plans = [built.prepare(Step(0, epoch, [QUESTION], lambda chosen: chosen)) for epoch in range(4)]
    taken = [plan.questions[0].others[1] for plan in plans]
    assert set(taken[:3]) == set(others) and taken[3] == taken[0]


@pytest.mark.parametrize("packing", PACKINGS)
def test_redi_by_hand(packing):
    def built(alpha):
        return build(Redi, RediOptions(alpha=alpha), _pairs={"example": [Pair(RIGHT, WRONG)]})

    rows = {0: 0, 1: WRONG_ROW}
    assert total(built(0.8), rows, packing)[1] == pytest.approx(0.507139327517, abs=1e-12)
    plan, loss, gradients = total(built(0.0), rows, packing)
    assert loss == pytest.approx(2.0961229468387272, abs=1e-12)  # fine-tuning on the right one
    assert not gradients[1].any() and gradients[0].any()


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
    assert loss == pytest.approx(1.01452824024, abs=1e-11)
    assert 4 * loss == pytest.approx(4.058112960994, abs=1e-11)  # the sum that the paper prints
    assert gradients[0].any(1).tolist() == marks[0] and gradients[1].any(1).tolist() == marks[1]
    assert [bool(total(built(1.0, 0.0), rows, packing)[2][slot].any()) for slot in (0, 1)] == [True, False]
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
    """In the place of Sequences: wrong rationales that are token ids already."""

    @staticmethod
    def wrong(question, rationale):
        return Branch(QUESTION.prompt, rationale)


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
    question = dataclasses.replace(build_questions(1)[0], wrong_rationales=tuple(wrongs.values()))
    tokens = TokenizedQuestion("q", QUESTION.prompt, {k: ids[:-1] for k, ids in enumerate(rights.values())}, (0,))
    pairs = Edit.pairs_of(config, question, tokens, Written)
    assert [(pair.right.ids, pair.wrong.ids) for pair in pairs] == [(rights[r], wrongs[w]) for r, w in expected]
    assert [sum(pair.right.weights) for pair in pairs] == [changes[wrong] for _, wrong in expected]
    # Of ten tokens six at least are gone in four: there is no need to look for which.
    assert (rights["long"], wrongs["two gone"]) not in aligned and len(aligned) == len(set(aligned))


@pytest.mark.parametrize("packing", PACKINGS)
def test_pairs_weigh_the_same_in_whatever_questions_they_are(packing):
    """Two questions, of two pairs and of one: the loss is the mean over the three."""
    first_rows = {0: 0, 1: 12, 2: 4, 3: 16, 4: 7, 5: 18}  # segment -> first row of Z
    ids = {0: (1, 2, 4, 5), 1: (1, 3, 0, 5), 2: (3, 4, 5), 3: (4, 5), 4: (2, 0, 1, 4, 5), 5: (1, 2, 5)}
    branches = {segment: Branch(QUESTION.prompt, tokens) for segment, tokens in ids.items()}
    pairs = {
        "a": [Pair(branches[0], branches[1]), Pair(branches[2], branches[3])],
        "b": [Pair(branches[4], branches[5])],
    }
    built = build(Redi, RediOptions())
    step = Step(0, 0, [dataclasses.replace(QUESTION, id=name) for name in pairs], lambda chosen: chosen)
    plan = built.plan_of(step, 2, pairs.__getitem__, 1.0, -0.8)
    loss = sum(
        float(built.loss(hidden_of(batch, first_rows), head(), batch, plan).loss.detach())
        for batch in micro_batches(plan.questions, 4, packing, plan.trained)
    )
    log_p = Z.log_softmax(1)
    ce = {s: -log_p[range(first_rows[s], first_rows[s] + len(t)), t].mean() for s, t in ids.items()}
    assert loss == pytest.approx(float(sum(ce[s] - 0.8 * ce[s + 1] for s in (0, 2, 4))) / 3, abs=1e-12)


def test_sequences_of_several_prompts_are_packed_apart_and_counted_once():
    question = TokenizedQuestion("q", (1, 2, 3), {0: (4,)}, (5,), {1: Branch((7, 8), (9,)), 2: Branch((1, 2, 3), (6,))})
    assert question_tokens(question) == 3 + 2 + 2 + 1 + 1
    assert sorted(sequence_lengths(question)) == [3, 4, 5]
    (batch,) = micro_batches([question], 3, PackOptions(64, share_prompts=True))
    assert batch.total_tokens == question_tokens(question)
    (batch,) = micro_batches([question], 3, PackOptions(64, share_prompts=False))
    assert batch.total_tokens == 3 + 4 + 5 and batch.tokens.tolist() == [[2, 1, 1]]


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize(
    ("alpha", "temperature", "expected"), [(0.01, 1.3, 1.8442402132851652), (0.1, 1.0, 1.8552125393253005)]
)
def test_mcc_kd_by_hand(alpha, temperature, expected, packing):
    built = build(MccKd, MccKdOptions(alpha=alpha, temperature=temperature), name="mcc-kd", _pools={"example": [0, 1]})
    plan, loss, _ = total(built, FIRST_ROWS, packing)
    assert plan.trained.tolist() == [[True, True, False]] and loss == pytest.approx(expected, abs=1e-12)


def test_mcc_kd_trains_both_sides_of_its_divergence():
    """The gradients of hidden states and head are those of the objective as it is written, by autograd."""
    built = build(MccKd, MccKdOptions(alpha=0.7, temperature=1.3), name="mcc-kd", _pools={"example": [0, 2]})
    plan = built.prepare(Step(0, 0, [QUESTION], lambda chosen: chosen))
    (batch,) = micro_batches(plan.questions, 3, PACKINGS[-1], plan.trained)
    gradients = []
    for written_out in (False, True):
        hidden, weight = hidden_of(batch), torch.eye(6, dtype=torch.float64, requires_grad=True)
        if written_out:
            logits = hidden @ weight.T
            nll = -logits.log_softmax(1)[torch.arange(len(hidden)), batch.target]
            loss = sum(nll[batch.segment == k].mean() for k in (0, 2)) / 2
            p, q = ((logits[batch.answer_rows[:, k]] / 1.3).log_softmax(1) for k in (0, 2))
            loss = loss + 0.35 * ((p.exp() - q.exp()) * (p - q)).sum(1).mean()
        else:
            loss = built.loss(hidden, Head(weight), batch, plan).loss
        loss.backward()
        gradients.append((loss.detach(), hidden.grad, weight.grad))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-13)


def test_mcc_kd_of_two_equal_rationales_has_no_divergence():
    built = build(MccKd, MccKdOptions(alpha=0.7), name="mcc-kd", _pools={"example": [0, 1]})
    plan = built.prepare(Step(0, 0, [QUESTION], lambda chosen: chosen))
    (batch,) = micro_batches(plan.questions, 3, PACKINGS[-1], plan.trained)
    hidden = hidden_of(batch)
    rows = batch.answer_rows[:, :2]
    hidden = hidden.detach().index_copy(0, rows[:, 1], hidden.detach()[rows[:, 0]]).requires_grad_()
    divergence = twice_symmetric_kl(hidden, head(), batch, 1)
    divergence.backward()
    assert float(divergence.detach()) == 0 and not hidden.grad.any()


def test_mcc_kd_takes_every_pair_of_its_pool_in_turn():
    built = build(MccKd, MccKdOptions(), name="mcc-kd", _pools={"example": [0, 1, 2]})
    pairs = [built._pair("example", epoch) for epoch in range(6)]
    assert sorted(pairs[:3]) == [(0, 1), (0, 2), (1, 2)] and pairs[3:] == pairs[:3]


# A teacher model, in whose place stand the logits of the example


def with_teacher(monkeypatch, kind, options, teacher=None):
    """The method with the example's teacher, or with the student as its own."""
    built = build(kind, options, teacher=torch.nn.Identity(), name=kind.__name__.lower())
    monkeypatch.setattr("mind.methods.kd.use_attention", lambda *_: nullcontext())
    monkeypatch.setattr("mind.methods.kd.head_of", lambda _: head())
    rows = ZT if teacher is None else teacher
    monkeypatch.setattr("mind.methods.kd.labeled_hidden", lambda _, batch: hidden_of(batch, FIRST_ROWS, rows).detach())
    return built


def first_alone(built):
    """A step that trains on the example's first rationale alone."""
    question = dataclasses.replace(QUESTION, rationales={0: QUESTION.rationales[0]})
    plan = built.prepare(Step(0, 0, [question], lambda chosen: chosen))
    (batch,) = micro_batches(plan.questions, 3, PACKINGS[-1], plan.trained)
    hidden = hidden_of(batch)
    terms = built.loss(hidden, head(), batch, plan)
    terms.loss.backward()
    return float(terms.loss.detach()), hidden.grad, terms


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"kind": "forward_kl"}, 0.113621529704),
        ({"kind": "reverse_kl"}, 0.136442387742),
        ({"kind": "jsd"}, 0.029821649481),
        ({"kind": "jsd", "beta": 0.1}, 0.010277350211),
        ({"kind": "skew_forward_kl"}, 0.093063276592),
        ({"kind": "skew_reverse_kl"}, 0.102688266087),
        ({"kind": "forward_kl", "temperature": 2.0}, 0.0319084823),
    ],
)
def test_divergences_from_a_teacher_by_hand(monkeypatch, changes, expected):
    built = with_teacher(monkeypatch, Kd, KdOptions(ce_weight=0.0, **changes))
    assert first_alone(built)[0] == pytest.approx(expected, abs=1e-10)
    half = with_teacher(monkeypatch, Kd, KdOptions(ce_weight=0.5, **changes))
    assert first_alone(half)[0] == pytest.approx((2.0961229468387272 + expected) / 2, abs=1e-10)


@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl", "jsd", "skew_forward_kl", "skew_reverse_kl"])
def test_a_student_learns_nothing_from_itself(monkeypatch, kind):
    built = with_teacher(monkeypatch, Kd, KdOptions(kind=kind, ce_weight=0.0), teacher=Z)
    loss, gradient, _ = first_alone(built)
    assert loss == pytest.approx(0, abs=1e-15) and gradient.abs().max() < 1e-15


def test_taid_by_hand(monkeypatch):
    built = with_teacher(monkeypatch, Taid, TaidOptions())
    built.schedule = Schedule(built.options, 10)
    assert first_alone(built)[0] == pytest.approx(0.022871269568, abs=1e-10)
    forward = first_alone(with_teacher(monkeypatch, Kd, KdOptions(ce_weight=0.0)))
    for t, expected in ((0.0, 0.0), (1.0, forward[0])):
        built.schedule.t = t
        loss, gradient, _ = first_alone(built)
        assert loss == pytest.approx(expected, abs=1e-14)
        torch.testing.assert_close(gradient, t * forward[1], rtol=0, atol=1e-14)


@pytest.mark.parametrize(("steps", "expected"), [(1000, [0.4, 0.4006, 0.4012, 0.4018]), (10, [0.4, 0.46, 0.52, 0.58])])
def test_the_schedule_of_taid_by_hand(steps, expected):
    schedule = Schedule(TaidOptions(), steps)
    found = []
    for loss in (1.0, 0.9, 0.95, 0.8):
        schedule.update(loss)
        found.append(schedule.t)
        again = Schedule(TaidOptions(), steps)
        again.load_state_dict(schedule.state_dict())
        schedule = again
    assert found == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("kind", [Kd, Taid, MccKd])
def test_divergences_are_computed_by_the_backend_that_is_configured(kind, monkeypatch):
    used = []

    def spy(*arguments, backend, **options):
        used.append(backend)
        return linear_divergence(*arguments, **options)

    for module in ("kd", "mcc_kd"):
        monkeypatch.setattr(f"mind.methods.{module}.linear_divergence", spy)
    if kind is MccKd:
        built = build(kind, MccKdOptions(), name="mcc-kd", _pools={"example": [0, 1]})
    else:
        built = with_teacher(monkeypatch, kind, kind.Options())
        built.schedule = Schedule(TaidOptions(), 10)
    config = dataclasses.replace(built.context.config, objective=ObjectiveConfig(backend="reference"))
    built.context = dataclasses.replace(built.context, config=config)
    total(built, FIRST_ROWS, PACKINGS[-1])
    assert used and set(used) == {"reference"}


def test_falling_losses_carry_taid_beyond_its_even_rise():
    schedule = Schedule(TaidOptions(alpha=0.5), 1000)
    for loss in (1.0, 0.5):
        schedule.update(loss)
    assert schedule.t == pytest.approx(0.4 + 0.5 / (1 + math.exp(-0.01 * 0.5)) * 0.6)


# Runs


def slipped(question):
    """A rationale of its own with an answer that is one too large."""
    wrong = str(int(question.answer) + 1)
    return WrongRationale("first", question.rationales[0].text.replace(question.answer, wrong), wrong)


def with_wrong(count=10):
    """Sums, two of three with a wrong rationale."""
    return [
        dataclasses.replace(question, wrong_rationales=(slipped(question),) if number % 3 else ())
        for number, question in enumerate(build_questions(count))
    ]


def config_of(tmp_path, model_folder, method, **changes):
    save_questions(with_wrong(), tmp_path / "train.jsonl")
    return MindConfig(
        output=str(tmp_path / "run"),
        method=method,
        student=StudentConfig(model=str(model_folder), max_length=512),
        data=DataConfig(train=str(tmp_path / "train.jsonl"), perspectives=NAMES, **changes),
        train=TrainConfig(questions_per_step=2, max_steps=4, save_steps=2, learning_rate=1e-3, report_to="none"),
        evaluation=EvaluationConfig(max_new_tokens=2),
    )


@pytest.mark.parametrize("name", ["edit", "kd", "mcc-kd", "redi", "sbs", "taid"])
def test_a_method_trains_reports_and_goes_on_where_it_was_killed(name, tmp_path, model_folder):
    config = config_of(tmp_path, model_folder, name)
    if name in ("kd", "taid"):
        teacher = write_student(tmp_path / "teacher", build_model(seed=5, num_hidden_layers=1, hidden_size=16))
        options = METHODS[name].Options(teacher=teacher)
        config = dataclasses.replace(config, options=options)
    folder = mind.train(config)
    rows = train_rows(folder.path)
    assert len(rows) == 4 and f"{METHODS[name].title} run report" in folder.report.read_text()
    shown = {series.name for chart in METHODS[name].charts for series in chart.series}
    assert shown and all(shown <= row.keys() for row in rows)  # no chart is empty
    shutil.rmtree(folder.checkpoint(4))
    mind.train(config, resume=True)
    assert [row["loss"] for row in train_rows(folder.path)] == [row["loss"] for row in rows]


def test_wrong_rationales_are_read_as_they_were_written(tmp_path):
    questions = with_wrong()
    for name in ("q.jsonl", "q.parquet"):
        save_questions(questions, tmp_path / name)
        assert load_questions(tmp_path / name) == questions


def test_what_is_wrong_with_a_teacher_is_told_before_anything_is_written(tmp_path, model_folder):
    config = config_of(tmp_path, model_folder, "kd")
    with pytest.raises(MindError, match="method kd needs a teacher model: --options.teacher names it"):
        mind.train(config)
    small = write_student(tmp_path / "small", build_model(vocab_size=256))
    with pytest.raises(MindError, match=r"options.teacher .*small: its head has 256 entries, the student's 258"):
        mind.train(dataclasses.replace(config, options=KdOptions(teacher=small)))
    with pytest.raises(MindError, match=r"options.teacher no/such: "):
        mind.train(dataclasses.replace(config, options=KdOptions(teacher="no/such")))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["edit", "redi"])
def test_a_method_without_the_pairs_that_it_needs_is_told_before_anything_is_written(name, tmp_path, model_folder):
    config = config_of(tmp_path, model_folder, name)
    save_questions(build_questions(10), tmp_path / "train.jsonl")
    with pytest.raises(MindError, match=rf"method {name} learns from pairs .*none of the 9 questions .*\(0 have"):
        mind.train(config)
    assert not (tmp_path / "run").exists()


def short(config, **options):
    """The run with one step, and with these options of its method."""
    changes = {"train": dataclasses.replace(config.train, max_steps=1)}
    if options:
        changes["options"] = METHODS[config.method].Options(**options)
    return dataclasses.replace(config, **changes)


def test_a_run_does_not_overwrite_its_teacher(tmp_path, model_folder):
    former = mind.train(short(config_of(tmp_path, model_folder, "sft")))
    before = content(former.path)
    config = short(config_of(tmp_path, model_folder, "kd"), teacher=str(former.student))
    with pytest.raises(MindError, match="student: this command also reads it, and would overwrite it"):
        mind.train(config, overwrite=True)
    assert content(former.path) == before


def test_a_run_of_taid_is_not_extended(tmp_path, model_folder):
    """The target of each step depends on how many there are."""
    config = short(config_of(tmp_path, model_folder, "taid"), teacher=str(model_folder))
    folder = mind.train(config)
    before = content(folder.path)
    longer = dataclasses.replace(config, train=dataclasses.replace(config.train, max_steps=2))
    with pytest.raises(
        MindError, match=r"train.max_steps is 2 and 1 in .*: the steps of method taid .* depend on it; "
    ):
        mind.train(longer, resume=True)
    assert content(folder.path) == before


def test_a_teacher_that_cannot_compute_the_rows_is_told_before_anything_is_written(tmp_path, model_folder, monkeypatch):
    config = config_of(tmp_path, model_folder, "kd")
    narrow = write_student(tmp_path / "narrow", build_model(max_position_embeddings=32))
    with pytest.raises(
        MindError, match=r"options.teacher .*narrow: its context is 32 tokens; the longest sequence has"
    ):
        mind.train(short(config, teacher=narrow))

    def lacking(model, name):
        raise MindError(f"student.attention {name}: no such attention in this model")

    monkeypatch.setattr("mind.methods.kd.use_attention", lacking)
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, share_prompts="never"))
    with pytest.raises(MindError, match=rf"^options.teacher {model_folder}: attention sdpa_spans: no such attention"):
        mind.train(short(config, teacher=str(model_folder)))
    assert not (tmp_path / "run").exists()


def context_of_run(config, questions, student=None):
    """What a run of these questions gives to its method."""
    student, method = student or build_model(), METHODS[config.method]
    return MethodContext.build(with_options(config), student, build_tokenizer(), questions, method=method)


def test_a_teacher_needs_no_chat_template(tmp_path, model_folder):
    bare = build_tokenizer()
    bare.chat_template = None
    base = build_model(seed=5)
    base.save_pretrained(tmp_path / "base")
    bare.save_pretrained(tmp_path / "base")
    config = short(config_of(tmp_path, model_folder, "kd"), teacher=str(tmp_path / "base"))
    loaded = Kd(context_of_run(config, build_questions())).teacher
    assert all(torch.equal(p, q) for p, q in zip(loaded.parameters(), base.parameters(), strict=True))


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
    if name in ("mind", "mcc-kd"):
        with pytest.raises(MindError, match="1 rationale: expected at least 2"):
            load_data(config)
    else:
        data = load_data(config)
        assert len(data.train) + len(data.heldout) == len(questions)


@pytest.mark.parametrize("name", ["edit", "redi"])
def test_questions_that_are_left_out_are_told(name, tmp_path, model_folder, capsys):
    context = context_of_run(config_of(tmp_path, model_folder, name), with_wrong(10))
    assert [question.id for question in context.questions] == [f"sum-{i}" for i in (1, 2, 4, 5, 7, 8)]
    line = f"6 of 10 questions are trained on: the others have no pair that method {name} can use"
    assert capsys.readouterr().err.splitlines().count(line) == 1
    context_of_run(config_of(tmp_path, model_folder, "sft"), with_wrong(10))
    assert "trained on" not in capsys.readouterr().err
