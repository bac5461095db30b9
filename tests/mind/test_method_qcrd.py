"""QCRD: its worked example in float64 through plan, packs and loss, what it chooses and learns from, and runs."""

from __future__ import annotations

import copy
import dataclasses
import json
from types import SimpleNamespace

import pytest
import torch
from method_cases import PACKINGS, build, by_tokens, config_of, context_of_run, with_wrong
from small_run import train_rows
from tiny import build_model, build_questions, build_tokenizer
from worked_example import LABEL, LABEL_ROW, QUESTION, WRONG, WRONG_ROW, Z, head, hidden_of

import mind
from mind.batches.packing import micro_batches
from mind.config import MindConfig
from mind.data.questions import save_questions
from mind.errors import MindError, NotFiniteError
from mind.methods.discriminator import Discriminator
from mind.methods.qcrd import Qcrd, QcrdOptions
from mind.methods.step import Step
from mind.records import Branch
from mind.report.reading import Metrics

SECOND = Branch(QUESTION.prompt, (1, 2, 5))
FIRST_ROW = {0: 0, 1: 4, 3: LABEL_ROW, 5: WRONG_ROW, 6: 18}
"""Slot -> first row of Z: right rationales, the answer alone, and wrong ones; slot 4 is the student's own."""
IDS = {0: (1, 2, 4, 5), 1: (3, 4, 5), 3: LABEL.ids, 5: WRONG.ids, 6: SECOND.ids}
CE = {
    slot: float(-Z.log_softmax(1)[range(FIRST_ROW[slot], FIRST_ROW[slot] + len(ids)), ids].mean())
    for slot, ids in IDS.items()
}


def example(quality=(0.9, 0.6, 0.0, 0.0, 0.5, 0.3, 0.5), seconds=False, **options):
    """The method of the example's question with two right rationales, whose discriminator gives these qualities."""
    others = {3: LABEL, 5: WRONG} | ({6: SECOND} if seconds else {})
    question = dataclasses.replace(QUESTION, rationales={k: QUESTION.rationales[k] for k in (0, 1)}, others=others)
    judge = SimpleNamespace(quality=lambda *_: torch.tensor([quality], dtype=torch.float64))
    fields = {"made": {"example": question}, "_index": {"example": 0}, "_wrongs": 2, "_samples": {}, "_epoch": 0}
    vectors = {"_question": torch.zeros(1, 2), "_vectors": torch.zeros(1, 7, 2), "_discriminator_loss": 0.0}
    return build(Qcrd, QcrdOptions(**options), discriminator=judge, **fields, **vectors)


def observed(chosen, questions):
    assert not chosen[:, 3].any()  # the answer alone is not chosen among others
    losses = torch.full(chosen.shape, torch.nan, dtype=torch.float64)
    for slot in chosen[0].nonzero().flatten().tolist():
        losses[0, slot] = CE[slot]
    return losses


def total(built, packing):
    """The plan of a step, its loss, the gradient of each slot's rows, and what the step logs."""
    plan = built.prepare(Step(3, 0, [QUESTION], observed))
    loss, gradients, sums = 0.0, {}, torch.full((1, 7), torch.nan, dtype=torch.float64)
    for batch in micro_batches(plan.questions, 7, packing, plan.trained):
        hidden = hidden_of(batch, FIRST_ROW)
        terms = built.loss(hidden, head(), batch, plan)
        terms.loss.backward()
        loss += float(terms.loss.detach())
        sums = torch.where(terms.l_real.isnan(), sums, terms.l_real)
        for slot, gradient in zip(batch.segment.tolist(), hidden.grad, strict=True):
            gradients.setdefault(slot, []).append(gradient)
    return plan, loss, gradients, built.finish_step(plan, {}, sums)


@pytest.mark.parametrize("packing", PACKINGS)
def test_qcrd_by_hand(packing):
    plan, loss, gradients, logged = total(example(), packing)
    assert plan.trained.tolist() == [[False, True, False, True, False, True, False]]
    assert loss == pytest.approx(1.6806821985940623, abs=1e-12)
    # A question has one sequence of each term, so that a mean over the term's tokens is that of the sequence.
    assert total(by_tokens(example()), packing)[1] == pytest.approx(loss, abs=1e-12)
    means = logged.means
    assert 0.6 * means["positive_loss"] == pytest.approx(0.9545570203306363, abs=1e-12)
    assert means["negative_loss"] - 3 == pytest.approx(-1.0137704758483148, abs=1e-12)
    assert means["label_loss"] == pytest.approx(2.2648795102387242, abs=1e-12)
    assert means["right_quality"] == pytest.approx(0.75) and means["wrong_quality"] == 0.3 and means["pushed"] == 1
    assert logged.tables["l_real"][0, [0, 1, 3, 5]].tolist() == pytest.approx([CE[k] for k in (0, 1, 3, 5)])
    # The gradient is that of the objective as it is written, of softmax rows: p - onehot.
    p = Z.softmax(1)
    for slot, weight in ((1, 0.5 * 0.6), (3, 0.5), (5, -0.5 * 0.2 * 0.7)):
        ids = IDS[slot]
        rows = slice(FIRST_ROW[slot], FIRST_ROW[slot] + len(ids))
        expected = weight / len(ids) * (p[rows] - torch.eye(6, dtype=torch.float64)[list(ids)])
        torch.testing.assert_close(torch.stack(gradients[slot]), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("packing", PACKINGS)
def test_a_wrong_rationale_beyond_delta_is_not_pushed(packing):
    plan, loss, gradients, logged = total(example(delta=1.9), packing)
    assert loss == pytest.approx(0.5 * CE[3] + 0.5 * 0.6 * CE[1], abs=1e-12)
    assert not plan.trained[0, 5] and 5 not in gradients and logged.means["pushed"] == 0


@pytest.mark.parametrize(("negative", "slot"), [("max", 6), ("min", 5)])
def test_the_wrong_rationale_is_chosen_by_its_loss(negative, slot):
    assert CE[6] > CE[5]
    plan, loss, _, _ = total(example(seconds=True, negative=negative, delta=9.0), PACKINGS[-1])
    q = {5: 0.3, 6: 0.5}[slot]
    assert plan.negative.tolist() == [slot]
    expected = 0.5 * CE[3] + 0.5 * (0.6 * CE[1] - 0.2 * (1 - q) * (CE[slot] - 9))
    assert loss == pytest.approx(expected, abs=1e-12)


def test_a_question_without_a_wrong_rationale_learns_from_the_right_one():
    built = example()
    (question,) = built.made.values()
    built.made["example"] = dataclasses.replace(question, others={3: LABEL})
    plan, loss, _, logged = total(built, PACKINGS[-1])
    assert loss == pytest.approx(0.5 * CE[3] + 0.3 * CE[1], abs=1e-12)
    assert plan.trained.sum() == 2 and "negative_loss" not in logged.means and logged.means["pushed"] == 0


def test_the_discriminator_learns_to_tell_right_from_wrong():
    generator = torch.Generator().manual_seed(0)
    right = torch.arange(120) % 3 > 0
    question = torch.randn(120, 8, generator=generator)
    rationale = torch.randn(120, 8, generator=generator) + 2 * right[:, None] * torch.eye(8)[0]
    judge = Discriminator(8, 3e-3, seed=0)
    losses = [judge.learn(question, rationale, right, epochs, generator) for epochs in (1, 30)]
    assert losses[1] < 0.6 * losses[0]
    quality = judge.quality(question, rationale[:, None])[:, 0]
    assert quality.dtype == torch.float64 and quality[right].mean() > quality[~right].mean() + 0.4
    again = Discriminator(8, 3e-3, seed=1)
    again.load_state_dict(copy.deepcopy(judge.state_dict()))
    orders = [torch.Generator().manual_seed(5) for _ in range(2)]
    assert again.learn(question, rationale, right, 2, orders[0]) == judge.learn(
        question, rationale, right, 2, orders[1]
    )
    with pytest.raises(NotFiniteError, match="the discriminator's binary cross-entropy is nan"):
        judge.learn(question * torch.nan, rationale, right, 1, generator)


def said(text):
    return tuple(build_tokenizer()(text + "<|im_end|>")["input_ids"])


def test_answers_that_turn_out_right_or_say_nothing_are_no_wrong_rationales(tmp_path, model_folder):
    """The first question, 2 + 1, is answered rightly, the second with nothing, the others wrongly."""
    config = config_of(tmp_path, model_folder, "qcrd")
    config = dataclasses.replace(config, options=QcrdOptions(max_new_tokens=40))
    built = Qcrd(context_of_run(config, with_wrong(4)))
    answers = [said("2 and 1 are 3.\n#### 3"), said(""), said("About 99.\n#### 99"), said("no idea")]
    asked = []

    def sample(prompts, progress, **options):
        asked.append(options)
        assert prompts == [question.prompt for question in built.context.tokenized]
        return answers

    before = built._vectors.clone()
    assert built._begin_epoch(Step(0, 0, [], observed, sample)) == len("About 99.") + len("no idea")
    assert asked == [{"temperature": 1.0, "max_new_tokens": 40}]
    assert built._samples == {"sum-2": answers[2], "sum-3": answers[3]}
    slot = built.slots.index("sample")
    assert built._with_sample("sum-2").others[slot].ids == answers[2] and slot not in built._with_sample("sum-0").others
    alone = built._encoder.encode(["About 99."], lambda _: None)
    torch.testing.assert_close(built._vectors[2, slot], alone[0])
    others = [other for other in range(len(built.slots)) if other != slot]
    assert torch.equal(built._vectors[:, others], before[:, others])
    for epoch in (1, 4):
        built._begin_epoch(Step(epoch, epoch, [], observed, sample))
    assert len(asked) == 1
    built._begin_epoch(Step(5, 5, [], observed, sample))
    assert len(asked) == 2


def test_vectors_are_those_of_the_initial_student(tmp_path, model_folder):
    config = config_of(tmp_path, model_folder, "qcrd")
    student = build_model()
    built = Qcrd(context_of_run(config, with_wrong(3), student))
    before = built._encoder.encode(["Some words."], lambda _: None)
    with torch.no_grad():
        student.get_input_embeddings().weight.add_(1.0)
    assert torch.equal(built._encoder.encode(["Some words."], lambda _: None), before)
    wrong = build_questions(2)[1].rationales[0].text.replace("7", "8")  # 3 + 4, with the answer that is one too large
    torch.testing.assert_close(
        built._vectors[1, built.slots.index("wrong 1")], built._encoder.encode([wrong], lambda _: None)[0]
    )


def test_a_run_samples_and_encodes_as_an_epoch_begins(tmp_path, model_folder):
    """There are two steps per epoch."""
    config = config_of(tmp_path, model_folder, "qcrd")
    train = dataclasses.replace(config.train, questions_per_step=5, save_steps=3)
    options = QcrdOptions(refresh_epochs=1, max_new_tokens=5, discriminator_epochs=2)
    config = dataclasses.replace(config, train=train, options=options)
    folder = mind.train(config)
    rows = train_rows(folder.path)
    page = folder.report.read_text()
    assert len(rows) == 4 and "QCRD run report" in page and "Quality by the discriminator" in page
    shown = {series.name for chart in Qcrd.charts for series in chart.series}
    assert all(shown <= row.keys() for row in rows)
    assert [("generated" in row["work"], "encoded" in row["work"]) for row in rows] == [
        (True, True),
        (False, False),
    ] * 2
    assert (folder.path / "discriminator.safetensors").exists()


@pytest.mark.parametrize(
    ("pushed", "count"), [([0.0] * 8, 1), ([0.5, *[0.0] * 8], 1), ([*[0.0] * 8, 0.5], 0), ([0.0] * 7, 0)]
)
def test_it_is_remarked_if_nothing_is_pushed(pushed, count, tmp_path):
    lines = [json.dumps({"phase": "train", "step": n, "pushed": share}) for n, share in enumerate(pushed, 1)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    remarks = Qcrd.remarks(MindConfig(), Metrics(tmp_path / "metrics.jsonl"))
    assert len(remarks) == count and all("no wrong rationale was pushed" in remark for remark in remarks)


def test_without_anything_wrong_to_learn_from_nothing_is_written(tmp_path, model_folder):
    config = config_of(tmp_path, model_folder, "qcrd")
    save_questions(build_questions(10), tmp_path / "train.jsonl")
    none = dataclasses.replace(config, options=QcrdOptions(refresh_epochs=0))
    with pytest.raises(
        MindError,
        match="^method qcrd needs a wrong rationale: 0 of 9 questions qualify; .*--options.refresh-epochs",
    ):
        mind.train(none)
    long = dataclasses.replace(config, options=QcrdOptions(max_new_tokens=500))
    with pytest.raises(MindError, match="its sample of up to 500 tokens makes a sequence of .* is 512"):
        mind.train(long)
    assert not (tmp_path / "run").exists()
    with pytest.raises(MindError, match=r"options.label is 1.0: expected a number in \[0, 1\)"):
        QcrdOptions(label=1.0)
    with pytest.raises(MindError, match=r"options.delta is 0: expected a positive number"):
        QcrdOptions(delta=0)
