"""Distillation from a teacher model, kd and taid: worked examples in float64 through plan, packs and loss, and runs."""

from __future__ import annotations

import dataclasses
import math
from contextlib import nullcontext

import pytest
import torch
from method_cases import PACKINGS, build, config_of, context_of_run, short, total
from small_run import content, train_rows, write_student
from tiny import build_family, build_model, build_questions, build_tokenizer
from worked_example import FIRST_ROWS, QUESTION, ZT, Z, head, hidden_of

import mind
from mind.batches.packing import micro_batches
from mind.config import ObjectiveConfig
from mind.errors import MindError
from mind.methods.kd import Kd, KdOptions, OnPolicyPlan
from mind.methods.step import Step
from mind.methods.taid import Schedule, Taid, TaidOptions
from mind.records import Branch, PackOptions, TokenizedQuestion
from mind_kernels import Head, linear_divergence

KINDS = ["forward_kl", "reverse_kl", "jsd", "skew_forward_kl", "skew_reverse_kl"]


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
        ({"kind": "forward_kl"}, 0.11362152970406522),
        ({"kind": "reverse_kl"}, 0.13644238774166217),
        ({"kind": "jsd"}, 0.029821649481028535),
        ({"kind": "jsd", "beta": 0.1}, 0.010277350211423852),
        ({"kind": "skew_forward_kl"}, 0.09306327659214052),
        ({"kind": "skew_reverse_kl"}, 0.10268826608677709),
        ({"kind": "forward_kl", "temperature": 2.0}, 0.03190848229974077),
    ],
)
def test_divergences_from_a_teacher_by_hand(monkeypatch, changes, expected):
    built = with_teacher(monkeypatch, Kd, KdOptions(ce_weight=0.0, **changes))
    assert first_alone(built)[0] == pytest.approx(expected, abs=1e-12)
    half = with_teacher(monkeypatch, Kd, KdOptions(ce_weight=0.5, **changes))
    assert first_alone(half)[0] == pytest.approx((2.0961229468387272 + expected) / 2, abs=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_a_student_learns_nothing_from_itself(monkeypatch, kind):
    built = with_teacher(monkeypatch, Kd, KdOptions(kind=kind, ce_weight=0.0), teacher=Z)
    loss, gradient, _ = first_alone(built)
    assert loss == pytest.approx(0, abs=1e-15) and gradient.abs().max() < 1e-15


def test_taid_by_hand(monkeypatch):
    built = with_teacher(monkeypatch, Taid, TaidOptions())
    built.schedule = Schedule(built.options, 10)
    assert first_alone(built)[0] == pytest.approx(0.022871269568162336, abs=1e-12)
    _, _, terms = first_alone(built)
    assert float((terms.loss + terms.sums["target_entropy"]).detach()) == pytest.approx(1.7299257563042416, abs=1e-12)
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


@pytest.mark.parametrize("kind", [Kd, Taid])
def test_divergences_are_computed_by_the_backend_that_is_configured(kind, monkeypatch):
    used = []

    def spy(*arguments, backend, **options):
        used.append(backend)
        return linear_divergence(*arguments, **options)

    monkeypatch.setattr("mind.methods.kd.linear_divergence", spy)
    built = with_teacher(monkeypatch, kind, kind.Options())
    built.schedule = Schedule(TaidOptions(), 10)
    config = dataclasses.replace(built.context.config, objective=ObjectiveConfig(backend="reference"))
    built.context = dataclasses.replace(built.context, config=config)
    total(built, FIRST_ROWS, PACKINGS[-1])
    assert used and set(used) == {"reference"}


def test_the_most_probable_tokens_of_the_teacher_by_hand(monkeypatch):
    lower_first = ZT - 1e-14 * torch.arange(6)  # of tokens that are as probable
    listed = with_teacher(monkeypatch, Kd, KdOptions(ce_weight=0.0, top=3), teacher=lower_first)
    assert first_alone(listed)[0] == pytest.approx(0.074822779076, abs=1e-12)


@pytest.mark.parametrize("kind", [*KINDS, "taid"])
def test_a_list_of_all_tokens_is_the_teacher(kind, monkeypatch):
    results = []
    for top in (None, 6):
        if kind == "taid":
            built = with_teacher(monkeypatch, Taid, TaidOptions(top=top, temperature=1.5))
            built.schedule = Schedule(built.options, 10)
        else:
            built = with_teacher(monkeypatch, Kd, KdOptions(kind=kind, ce_weight=0.3, top=top, temperature=1.5))
        results.append(first_alone(built))
    assert results[1][0] == pytest.approx(results[0][0], abs=1e-12)
    torch.testing.assert_close(results[1][1], results[0][1], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("family", "settings"), [("granite", {"logits_scaling": 4.0}), ("cohere", {"logit_scale": 0.25})]
)
def test_a_teacher_may_scale_its_logits_and_have_further_entries(family, settings):
    """Against the teacher's own logits, a sequence at a time."""
    teacher = build_family(family, seed=3, vocab_size=264, **settings).double()
    tokens = TokenizedQuestion("q", (5, 6, 7), {0: (8, 9), 1: (10,)}, (11, 1))
    built = build(Kd, KdOptions(temperature=1.5), teacher=teacher)
    (batch,) = micro_batches([tokens], 3, PackOptions(64, share_prompts=True))
    hidden = torch.randn(len(batch.target), 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weight = torch.randn(258, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    ones = torch.ones(len(hidden), dtype=torch.float64)
    found = float(built.divergence(hidden, Head(weight), batch, ones, kind="forward_kl"))
    expected = 0.0
    for branch in tokens.branches.values():
        with torch.no_grad():
            logits = teacher(torch.tensor([[*branch.prompt, *branch.ids]])).logits[0, 2:-1, :258].double()
        p, rows = (logits / 1.5).log_softmax(1), slice(int(expected != 0) * 4, None)
        q = (hidden[rows][: len(p)] @ weight.T / 1.5).log_softmax(1)
        expected += float((p.exp() * (p - q)).sum())
    assert found == pytest.approx(expected, rel=1e-6)


def on_policy_step(number=0, sample=(3, 4, 5)):
    """A step whose student answers with what is the example's second rationale."""
    asked = []

    def answer(prompts, **options):
        asked.append((list(prompts), options))
        return [sample] * len(prompts)

    return Step(number, 0, [QUESTION], lambda chosen: chosen, answer), asked


@pytest.mark.parametrize("packing", PACKINGS)
def test_a_step_on_an_answer_of_the_student_is_the_divergence_alone(packing, monkeypatch):
    options = KdOptions(on_policy=1.0, sample_temperature=0.9, max_new_tokens=7)
    built = with_teacher(monkeypatch, Kd, options)
    monkeypatch.setattr("mind.methods.kd.labeled_hidden", lambda _, batch: hidden_of(batch, {3: 4}, ZT).detach())
    step, asked = on_policy_step()
    plan = built.prepare(step)
    assert asked == [([QUESTION.prompt], {"temperature": 0.9, "max_new_tokens": 7})]
    assert built.slots[3] == "sample" and plan.trained.tolist() == [[False, False, False, True]]
    assert plan.questions[0].branches == {3: Branch(QUESTION.prompt, (3, 4, 5))}  # its end, and no suffix
    (batch,) = micro_batches(plan.questions, 4, packing, plan.trained)
    hidden = hidden_of(batch, {3: 4})
    terms = built.loss(hidden, head(), batch, plan)
    p, q = ZT[4:7].log_softmax(1), Z[4:7].log_softmax(1)
    assert float(terms.loss.detach()) == pytest.approx(float((p.exp() * (p - q)).sum(1).mean()), abs=1e-14)
    terms.loss.backward()
    torch.testing.assert_close(hidden.grad, (q.exp() - p.exp()) / 3, rtol=0, atol=1e-14)
    shown = built.finish_step(plan, {"divergence": 0.5, "rows": 3.0, "loss": 0.7}, terms.l_real)
    assert shown.means == {"divergence": 0.5, "on_policy": 1, "sample_loss": 0.7}
    assert shown.latest == {"sample_tokens": 3}


def test_steps_are_on_policy_with_the_probability_that_is_given(monkeypatch):
    built = with_teacher(monkeypatch, Kd, KdOptions(on_policy=0.3))
    chosen = [isinstance(built.prepare(on_policy_step(number)[0]), OnPolicyPlan) for number in range(1000)]
    assert abs(sum(chosen) - 300) < 60
    assert [isinstance(built.prepare(on_policy_step(n)[0]), OnPolicyPlan) for n in range(50)] == chosen[:50]
    plan = built.prepare(on_policy_step(chosen.index(False))[0])
    assert plan.weights.tolist() == [[1 / 3] * 3 + [0]] and plan.questions == [QUESTION]


def test_a_run_tells_its_steps_on_the_students_own_answers(tmp_path, model_folder):
    teacher = write_student(tmp_path / "teacher", build_model(seed=5, num_hidden_layers=1, hidden_size=16))
    config = config_of(tmp_path, model_folder, "kd")
    options = KdOptions(teacher=teacher, on_policy=0.6, max_new_tokens=6, top=20)
    folder = mind.train(dataclasses.replace(config, options=options))
    rows = train_rows(folder.path)
    assert {row["on_policy"] for row in rows} == {0, 1} and "own answers" in folder.report.read_text()
    assert [row["on_policy"] for row in rows] == [float("sample" in row["l_real"]) for row in rows]
    assert [row["on_policy"] for row in rows] == [float("generated" in row["work"]) for row in rows]
    losses = [row["sample_loss" if row["on_policy"] else "rationale_loss"] for row in rows]
    assert losses == [row["loss"] for row in rows] and not any(
        "sample_loss" in row for row in rows if not row["on_policy"]
    )
    of_rationales = [f"{row['rationale_loss']:.3f}" for row in rows if not row["on_policy"]]
    page = folder.report.read_text()
    assert "train loss of steps on rationales, first and last step" in page
    headline = page[page.index("train loss of steps") :][:400]
    assert of_rationales[0] in headline and of_rationales[-1] in headline


def test_falling_losses_carry_taid_beyond_its_even_rise():
    schedule = Schedule(TaidOptions(alpha=0.5), 1000)
    for loss in (1.0, 0.5):
        schedule.update(loss)
    assert schedule.t == pytest.approx(0.4 + 0.5 / (1 + math.exp(-0.01 * 0.5)) * 0.6)


def test_a_loss_of_nothing_leaves_a_schedule_that_can_be_computed():
    schedule = Schedule(TaidOptions(t_start=0.0), 10)
    for loss in (1e-9, 2e-9, 1e-3, 0.0, 1e-2, 1e-2):
        schedule.update(loss)
    assert schedule.t == pytest.approx(0.5)  # the even rise


@pytest.mark.parametrize(("momentum_of", "losses"), [("kl", [1.0, 0.5]), ("ce", [3.0, 2.5])])
def test_taid_follows_the_loss_that_is_configured(monkeypatch, momentum_of, losses):
    """The divergences 1 and 0.5, and an entropy of the target of 2 nats in both steps."""
    built = with_teacher(monkeypatch, Taid, TaidOptions(momentum_of=momentum_of, alpha=0.5))
    built.schedule, expected = Schedule(built.options, 1000), Schedule(built.options, 1000)
    for divergence, loss in zip((1.0, 0.5), losses, strict=True):
        metrics = built.finish_step(None, {"loss": divergence, "target_entropy": 2.0}, None)
        expected.update(loss)
        assert metrics.means == {"target_entropy": 2.0} and built.schedule.t == expected.t
    assert built.schedule.t > 0.4


@pytest.mark.parametrize("steps", [100, 10_000])
def test_the_adaptive_rise_of_taid_that_follows_the_steps(steps):
    """Twice the even one at first for a loss that stands still, until that overtakes it where exp(-2 x) = 1 - x."""
    schedule = Schedule(TaidOptions(alpha="auto"), steps)
    found = []
    for _ in range(steps + 1):
        found.append(schedule.t)
        schedule.update(1.0)
    even = [0.4 + 0.6 * max(0, n - 1) / steps for n in range(steps + 1)]
    assert found[2] - found[1] == pytest.approx(2 * 0.6 / steps)
    leads = [n / steps for n in range(2, steps) if found[n] > even[n] + 1e-12]
    assert max(leads) == pytest.approx(0.7968, abs=2 / steps) and found[-1] == pytest.approx(1, abs=1 / steps)


def test_what_is_wrong_with_a_teacher_is_told_before_anything_is_written(tmp_path, model_folder):
    config = config_of(tmp_path, model_folder, "kd")
    with pytest.raises(MindError, match="method kd needs a teacher model: --options.teacher names it"):
        mind.train(config)
    small = write_student(tmp_path / "small", build_model(vocab_size=256))
    with pytest.raises(MindError, match=r"options.teacher .*small: its head has 256 entries, the student's 258"):
        mind.train(dataclasses.replace(config, options=KdOptions(teacher=small)))
    with pytest.raises(MindError, match=r"options.top is 259: the student's head has 258 entries"):
        mind.train(dataclasses.replace(config, options=KdOptions(teacher=str(model_folder), top=259)))
    with pytest.raises(
        MindError, match=r"its sample of up to 500 tokens makes a sequence of .*student.max_length is 512"
    ):
        mind.train(dataclasses.replace(config, options=KdOptions(teacher=small, on_policy=0.1, max_new_tokens=500)))
    with pytest.raises(MindError, match=r"options.teacher no/such: "):
        mind.train(dataclasses.replace(config, options=KdOptions(teacher="no/such")))
    assert not (tmp_path / "run").exists()


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


def test_a_teacher_needs_no_chat_template(tmp_path, model_folder):
    bare = build_tokenizer()
    bare.chat_template = None
    base = build_model(seed=5)
    base.save_pretrained(tmp_path / "base")
    bare.save_pretrained(tmp_path / "base")
    config = short(config_of(tmp_path, model_folder, "kd"), teacher=str(tmp_path / "base"))
    loaded = Kd(context_of_run(config, build_questions())).teacher
    assert all(torch.equal(p, q) for p, q in zip(loaded.parameters(), base.parameters(), strict=True))
