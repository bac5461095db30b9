"""NesyCD: the worked example, the errors that a student makes, runs, and the base that it looks into."""

from __future__ import annotations

import dataclasses
import json
import shutil

import pytest
from method_cases import PACKINGS, build, by_tokens, config_of, total
from small_run import train_rows
from test_method_lorid import RULES, with_rules
from tiny import build_model, build_tokenizer
from worked_example import EXPLAIN, EXPLAIN_ROW, LABEL, LABEL_ROW, QUESTION, SEQUENCES

import mind
from mind.cli import main
from mind.config import MindConfig, StageConfig
from mind.data.questions import load_questions, save_questions
from mind.errors import MindError
from mind.evaluation.retrieval import KnowledgeBase
from mind.methods.knowledge import after_rules
from mind.methods.method import MethodContext
from mind.methods.nesycd import Nesycd, NesycdOptions
from mind.methods.step import Step
from mind.records import Branch, Question, TokenizedQuestion

AFTER_RULES = Branch((3, 0, 3), SEQUENCES[0])


def example(options, wrong=()):
    """The example's question with one rationale."""
    made = TokenizedQuestion.of_sequences("example", {0: LABEL, 1: EXPLAIN})
    return build(Nesycd, options, made={"example": made}, _wrong=set(wrong))


@pytest.fixture
def one_rationale(monkeypatch):
    """The example's question with its first rationale alone."""
    monkeypatch.setattr("method_cases.QUESTION", dataclasses.replace(QUESTION, rationales={0: QUESTION.rationales[0]}))


@pytest.mark.parametrize("packing", PACKINGS)
def test_the_loss_by_hand(packing, one_rationale):
    rows = {0: LABEL_ROW, 1: EXPLAIN_ROW}
    baseline = NesycdOptions(answer=0.3, rationale=0.7)
    assert total(example(baseline), rows, packing)[1] == pytest.approx(2.376447043457, abs=1e-12)
    assert total(by_tokens(example(baseline)), rows, packing)[1] == pytest.approx(2.376447043457, abs=1e-12)
    # With rules: a CE(label) + b (CE(explain) + CE(s0)) / 2.
    rows[2] = 0
    expected = 0.3 * 2.264879510239 + 0.35 * (2.424261700551 + 2.096122946839)
    rules = example(baseline, wrong=["example"])
    rules.made["example"].others[2] = AFTER_RULES
    _, loss, gradients = total(rules, rows, packing)
    assert loss == pytest.approx(expected, abs=1e-12) and all(gradient.any() for gradient in gradients.values())
    # A right answer: the sequence with rules is not computed.
    rules._wrong = set()
    plan, loss, gradients = total(rules, rows, packing)
    assert loss == pytest.approx(2.376447043457, abs=1e-12)
    assert set(gradients) == {0, 1} and plan.trained.tolist() == [[True, True, False]]
    # a = 0, b = 1 is fine-tuning on the rationale, and the answer alone is not computed.
    plan, loss, gradients = total(example(NesycdOptions(answer=0.0, rationale=1.0)), rows, packing)
    assert loss == pytest.approx(2.424261700551, abs=1e-12) and set(gradients) == {1}


def test_rationales_take_turns_with_and_without_rules():
    sequences = {slot: Branch((2,) if slot < 4 else (3,), (slot, 5)) for slot in range(1, 7)}
    made = TokenizedQuestion.of_sequences("example", {0: LABEL, **sequences})
    built = build(Nesycd, NesycdOptions(), made={"example": made}, _wrong={"example"})
    plans = [built.prepare(Step(0, epoch, [QUESTION], lambda chosen: chosen)) for epoch in range(4)]
    taken = [plan.questions[0].others for plan in plans]
    assert {others[1].ids[0] for others in taken} == {1, 2, 3} and taken[3] == taken[0]
    assert all(others[2].ids[0] == others[1].ids[0] + 3 and others[2].prompt == (3,) for others in taken)
    assert plans[0].weights.tolist() == [[0.5, 0.25, 0.25]]


def test_the_student_is_asked_once_for_all_questions(tmp_path, model_folder, capsys):
    """Its wrong answers, and those that state none, make the base; the choice outlasts a checkpoint."""
    config = dataclasses.replace(config_of(tmp_path, model_folder, "nesycd"), options=NesycdOptions(max_new_tokens=99))
    tokenizer, questions = build_tokenizer(), with_rules()
    context = MethodContext.build(config, build_model(), tokenizer, questions, method=Nesycd)
    built, asked = Nesycd(context), []

    def sample(prompts, *, temperature, max_new_tokens, progress):
        asked.append((prompts, max_new_tokens))
        assert temperature < 1e-3
        answers = [question.answer if number < 4 else "1" for number, question in enumerate(questions)]
        answers[6] = "none"
        return [tuple(tokenizer(f"So.\n#### {answer}<|im_end|>")["input_ids"]) for answer in answers]

    (tmp_path / "run").mkdir()
    for number in range(2):
        plan = built.prepare(Step(number, 0, context.tokenized, None, sample))
    assert asked == [([one.prompt for one in context.tokenized], 99)]
    wrong = [f"sum-{number}" for number in range(4, 10)]
    base = [f"sum-{number}" for number in (4, 5, 7, 8)]  # every third question has no rules
    assert built.state_dict() == {"wrong": wrong}
    assert [one.id for one, row in zip(context.tokenized, plan.trained.tolist(), strict=True) if row[2]] == base
    stored = load_questions(tmp_path / "run" / "knowledge.jsonl")
    assert [(one.id, one.knowledge, one.rationales) for one in stored] == [(name, RULES, ()) for name in base]
    assert "the student gets 6 of 10 training questions wrong; 4 of these have rules" in capsys.readouterr().err
    again = Nesycd(context)
    again.load_state_dict(built.state_dict())
    other = again.prepare(Step(1, 0, context.tokenized, None, None))  # which has no sampler
    assert other.questions == plan.questions and other.weights.equal(plan.weights)


def run_config(tmp_path, model_folder, **options) -> MindConfig:
    config = config_of(tmp_path, model_folder, "nesycd")
    save_questions(with_rules(), tmp_path / "train.jsonl")
    options = NesycdOptions(max_new_tokens=4, **options)
    return dataclasses.replace(config, options=options, stages={"sft": StageConfig(max_steps=1)})


def test_both_stages_train_and_go_on_where_they_were_killed(tmp_path, model_folder, capsys):
    folder = mind.train(run_config(tmp_path, model_folder))
    rows = train_rows(folder.path)
    assert [stage.path.name for stage in folder.stages] == ["1-sft"] and len(rows) == 4
    assert [row["work"].get("generated", 0) > 0 for row in rows] == [True, False, False, False]
    assert [row["with_rules"] > 0 for row in rows] == ["rules_loss" in row for row in rows]
    assert sum(row["with_rules"] for row in rows) > 0 and "NesyCD run report" in folder.report.read_text()
    base = folder.knowledge.read_bytes()
    shutil.rmtree(folder.checkpoint(4))
    mind.train(run_config(tmp_path, model_folder), resume=True)
    assert [row["loss"] for row in train_rows(folder.path)] == [row["loss"] for row in rows]
    assert folder.knowledge.read_bytes() == base

    pytest.importorskip("sklearn")
    words = ["evaluate", "--student.model", str(folder.student), "--files", str(tmp_path / "train.jsonl")]
    words += ["--evaluation.max-new-tokens", "2", "--evaluation.questions", "2", "--output", str(tmp_path / "out.json")]
    assert main([*words, "--knowledge-base", str(folder.knowledge)]) == 0
    assert json.loads((tmp_path / "out.json").read_text())["files"]["train"]["total"] == 2
    assert main([*words, "--knowledge-base", str(folder.knowledge), "--before", "x", "--overwrite"]) == 2
    assert "--before beside --knowledge-base: a student is asked in one way at a time" in capsys.readouterr().err


def test_bad_input_is_told_before_anything_is_written(tmp_path, model_folder):
    config = run_config(tmp_path, model_folder)
    save_questions([dataclasses.replace(one, knowledge=()) for one in with_rules()], tmp_path / "train.jsonl")
    with pytest.raises(
        MindError,
        match=r"^method nesycd needs knowledge: 0 of 9 questions qualify; `mind data generate --knowledge` asks",
    ):
        mind.train(config)
    save_questions(with_rules(), tmp_path / "train.jsonl")
    long = dataclasses.replace(config, options=NesycdOptions(max_new_tokens=500))
    with pytest.raises(MindError, match=r"^options.max_new_tokens is 500: with the prompt of question sum-.*of 512$"):
        mind.train(long)
    for options, message in (
        ({"answer": -1.0}, "options.answer is -1.0: expected a number >= 0"),
        ({"answer": 0.0, "rationale": 0.0}, "both 0: nothing is learned"),
        ({"max_new_tokens": 0}, "options.max_new_tokens is 0: expected at least 1"),
    ):
        with pytest.raises(MindError, match=message):
            NesycdOptions(**options)
    assert not (tmp_path / "run").exists()


def test_the_most_similar_question_lends_its_rules():
    pytest.importorskip("sklearn")
    choices = {"A": "a heron", "B": "a lorry"}
    questions = [
        Question("pears", "Ann has 5 pears and buys 7. How many pears has she?", "12", knowledge=("Add.",)),
        Question("train", "A train drives 60 km in 2 hours. How fast is it?", "30", knowledge=("Divide.",)),
        Question("bird", "Which of these flies?", "A", choices, knowledge=("Birds have wings.",)),
        Question("none", "Bob has 3 plums and buys 4.", "7"),
    ]
    base = KnowledgeBase("q.jsonl", questions)

    def asked(text, choices=None):
        return base.before(Question("x", text, "A", choices))

    assert asked("Bob has 3 plums and buys 4. How many plums has he?") == after_rules(["Add."])
    assert asked("A car drives 90 km in 3 hours.") == after_rules(["Divide."])
    assert asked("Find it!", choices) == after_rules(["Birds have wings."])  # the choices count
    assert asked("Zzz?") == ""
    with pytest.raises(MindError, match=r'^q\.jsonl: none of its 1 questions has "knowledge"'):
        KnowledgeBase("q.jsonl", questions[3:])


def test_a_base_needs_its_package(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MindError, match=r"needs the package scikit-learn: pip install 'mind-kernels\[retrieval\]'"):
        KnowledgeBase("q.jsonl", with_rules(2))
