"""LoRID: the worked example, its three students in a short run each, and how they answer together."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from small_run import replaced, train_rows, write_student
from test_other_methods import PACKINGS, build, config_of, total
from tiny import build_model, build_questions, build_tokenizer
from worked_example import EXPLAIN, EXPLAIN_ROW, FIRST_ROWS, SEQUENCES

import mind
from mind.cli import main
from mind.config import EvaluationConfig
from mind.data.questions import save_questions
from mind.errors import MindError
from mind.evaluation.config import InteractionConfig
from mind.evaluation.evaluate import answer_accuracy
from mind.evaluation.generation import _Sampling, generate_ids
from mind.evaluation.interaction import Exchange, Students, interaction_accuracy
from mind.evaluation.outcomes import Reply
from mind.methods.knowledge import RULES_WANTED, after_rules
from mind.methods.lorid import DeepReasoner, KnowledgeGenerator, Lorid
from mind.methods.method import MethodContext, MethodOptions
from mind.records import Branch, Question, TokenizedQuestion

RULES = ("A sum is counted on.", "Its parts may change places.")


def with_rules(count=10):
    """Sums, two of three with rules."""
    return [
        dataclasses.replace(question, knowledge=RULES if number % 3 else ())
        for number, question in enumerate(build_questions(count))
    ]


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("kind", [Lorid, KnowledgeGenerator, DeepReasoner])
def test_the_losses_by_hand(kind, packing):
    deep = {k: Branch((3, 0, 3), ids) for k, ids in SEQUENCES.items()}
    branches = {0: EXPLAIN} if kind is KnowledgeGenerator else deep
    made = TokenizedQuestion("example", branches[0].prompt, {}, (), branches)
    own = {} if kind is Lorid else {"made": {"example": made}}
    built = build(kind, MethodOptions(), name="lorid", **own)
    rows = {0: EXPLAIN_ROW} if kind is KnowledgeGenerator else FIRST_ROWS
    expected = 2.424261700551 if kind is KnowledgeGenerator else 1.850156541971
    plan, loss, gradients = total(built, rows, packing)
    assert loss == pytest.approx(expected, abs=1e-12)
    assert all(gradient.any() for gradient in gradients.values())


def test_what_each_student_is_asked_and_learns(tmp_path, model_folder):
    """As a text: the chat template, the words that stand before the question, and what continues it."""
    tokenizer, question, seen = build_tokenizer(), with_rules()[1], {}
    for name, kind in (("lorid-kg", KnowledgeGenerator), ("lorid-dr", DeepReasoner)):
        config = config_of(tmp_path, model_folder, name)
        context = MethodContext.build(config, build_model(), tokenizer, with_rules(), method=kind)
        assert [one.id for one in context.questions] == [f"sum-{i}" for i in (1, 2, 4, 5, 7, 8)]
        assert len(kind(context).slots) == (1 if kind is KnowledgeGenerator else 3)
        seen[name] = [tokenizer.decode([*b.prompt, *b.ids]) for b in context.sequences[0].branches.values()]
    user, between = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"
    asked = f"{user}{RULES_WANTED}{question.question}{between}"
    assert seen["lorid-kg"] == [asked + "\n".join(RULES) + "<|im_end|>"]
    asked = f"{user}{after_rules(RULES)}{question.question}{between}"
    texts = [f"{one.text}\n#### {question.answer}<|im_end|>" for one in question.rationales]
    assert seen["lorid-dr"] == [asked + text for text in texts]
    assert after_rules(()) == ""


@pytest.fixture
def config(tmp_path, model_folder):
    """A run of two steps, with as many in each of the stages before."""
    config = config_of(tmp_path, model_folder, "lorid")
    save_questions(with_rules(), tmp_path / "train.jsonl")
    return dataclasses.replace(config, train=dataclasses.replace(config.train, max_steps=2, save_steps=1))


@pytest.mark.nightly
def test_each_of_the_three_begins_with_the_same_student(config, model_folder):
    folder = mind.train(config)
    assert [stage.path.name for stage in folder.stages] == ["1-lorid-kg", "2-lorid-dr"]
    runs = [*folder.stages, folder]
    assert [len(train_rows(run.path)) for run in runs] == [2, 2, 2]
    assert len({json.dumps(run.read_evaluation()["before"]) for run in runs}) == 1
    assert all("LoRID" in run.report.read_text() for run in runs)
    alone = mind.train(dataclasses.replace(config, method="sft", output=f"{config.output}-sft"))
    assert [row["loss"] for row in train_rows(folder.path)] == [row["loss"] for row in train_rows(alone.path)]


@pytest.mark.parametrize("name", ["lorid", "lorid-kg", "lorid-dr"])
def test_without_rules_nothing_is_written(name, config, tmp_path):
    save_questions(build_questions(10), tmp_path / "train.jsonl")
    message = r"^method lorid-.. needs knowledge: 0 of 9 questions qualify; `mind data generate --knowledge` asks"
    with pytest.raises(MindError, match=message):
        mind.train(dataclasses.replace(config, method=name))
    assert not (tmp_path / "run").exists()


# How the three answer together


def exchanged(*rounds, question=None):
    exchange = Exchange(question or Question("q", "How many?", "12"))
    for number, texts in enumerate(rounds):
        assert exchange.agreed is None, number
        exchange.add(*map(Reply, texts))
    return exchange


@pytest.mark.parametrize(
    ("rounds", "response", "agreed"),
    [
        ([("It is.\n#### 12", "So.\n#### 12.0")], "It is.\n#### 12", True),
        ([("A\n#### 3", "#### 4"), ("B\n#### 4", "#### 5")], "B\n#### 4", True),  # an earlier answer of the deep one
        ([("A\n#### 3", "#### 4"), ("B\n#### 6", "#### 3")], "A\n#### 3", True),  # an earlier one of the intuitive one
        ([("A\n#### 3", "#### 4"), ("B\n#### 4", "#### 3")], "B\n#### 4", True),  # both at once: one of them counts
        ([("A\n#### 3", "?"), ("B\n#### 4", "?"), ("C\n#### 4.0", "#### 9")], "B\n#### 4", False),
        ([("A\n#### 3", "?"), ("B\n#### 4", "?")], "A\n#### 3", False),
        ([("who knows", "?"), ("B\n#### 4", "?")], "B\n#### 4", False),
        ([("who knows", "who knows"), ("nobody", "nobody")], "who knows", False),
    ],
)
def test_the_first_answer_that_both_have_given_else_the_most_frequent(rounds, response, agreed):
    exchange = exchanged(*rounds)
    assert exchange.reply == (response, False) and (exchange.agreed is not None) == agreed


def test_choices_agree_by_label():
    question = Question("q", "Where?", "B", {"A": "here", "B": "there"})
    assert exchanged(("#### B", "The answer is B."), question=question).agreed == ("#### B", False)
    assert exchanged(("#### B", "#### A"), question=question).agreed is None


CONFIG = EvaluationConfig(max_new_tokens=6, batch_size=3, questions=None)


def three():
    return Students(*((build_model(seed=seed), build_tokenizer()) for seed in range(3)))


def test_samples_do_not_depend_on_the_batch_and_their_tokens_are_counted(tmp_path, monkeypatch):
    counted = []

    def spy(*arguments, **options):
        counted.append(generate_ids(*arguments, **options))
        return counted[-1]

    monkeypatch.setattr("mind.evaluation.interaction.generate_ids", spy)
    students, questions = three(), build_questions(4)
    interaction, results = InteractionConfig(rounds=2, seed=3), []
    for batch_size, count in ((3, 4), (1, 4), (4, 2)):
        counted.clear()
        config = dataclasses.replace(CONFIG, batch_size=batch_size, questions=count)
        folder = tmp_path / f"{batch_size}-{count}"
        found = interaction_accuracy(students, {"sums": questions}, config, interaction, folder)["sums"]
        results.append([json.loads(line) for line in (folder / "sums.jsonl").read_text().splitlines()])
        assert found["total"] == count and found["generated"] == sum(len(ids) for ids in sum(counted, []))
        assert len(counted) == 6 and found["agreed"] == 0 and found["rounds"] == 2
    assert results[0] == results[1] and results[0][:2] == results[2]
    other = interaction_accuracy(students, {"sums": questions}, CONFIG, InteractionConfig(rounds=1), tmp_path / "o")
    assert set(answer_accuracy(*students.intuitive, {"sums": questions}, CONFIG)["sums"]) < set(other["sums"])
    assert (tmp_path / "o" / "sums.jsonl").read_text() != (tmp_path / "3-4" / "sums.jsonl").read_text()


def test_a_question_is_done_once_they_agree(monkeypatch):
    """The deep reasoner is asked with the rules that were sampled, which are cut to what its context holds."""
    asked = []

    def said(model, tokenizer, ids, stop_text):
        prompts.append([tokenizer.decode(some) for some in asked.pop()])
        return [Reply(text, cut_off=text == "#### 12") for text in next(answers)]

    def generate(model, tokenizer, given, **options):
        asked.append(given)
        return [[5]] * len(given)

    monkeypatch.setattr("mind.evaluation.interaction.generate_ids", generate)
    monkeypatch.setattr("mind.evaluation.interaction.replies_of", said)
    prompts = []
    rule = "Count on. " * 60
    answers = iter([["#### 3", "#### 12"], ["a\n\n b", f"c\n{rule}"], ["#### 3", "?"], ["#### 1"], ["d"], ["#### 12"]])
    questions = [Question("p", "1 + 2?", "3"), Question("q", "3 + 9?", "12")]
    found = interaction_accuracy(three(), {"sums": questions}, CONFIG, InteractionConfig(rounds=5))["sums"]
    assert (found["correct"], found["agreed"], found["rounds"], found["generated"]) == (2, 2, 1.5, 9)
    assert found["cut_off"] == 1
    assert after_rules(["a", "b"]) + "1 + 2?" in prompts[2][0]
    assert after_rules(["c"]) + "3 + 9?" in prompts[2][1] and rule not in prompts[2][1]
    assert RULES_WANTED + "3 + 9?" in prompts[4][0]


def test_nucleus_sampling_keeps_the_most_probable_tokens():
    probabilities = torch.tensor([[0.1, 0.4, 0.2, 0.3], [0.97, 0.01, 0.01, 0.01]], dtype=torch.float64)
    draws = torch.zeros(2, 1, dtype=torch.float64)
    for top_p, kept in ((1.0, [4, 4]), (0.89, [3, 1]), (0.69, [2, 1]), (0.39, [1, 1]), (1e-9, [1, 1])):
        assert (_Sampling(1.0, draws, top_p)._kept(probabilities) > 0).sum(1).tolist() == kept
    grid = ((torch.arange(1000) + 0.5) / 1000).double()[:, None]
    scores = _Sampling(2.0, grid, 0.8)(
        torch.zeros(1000, 0, dtype=torch.int64), (2 * probabilities[:1].log()).expand(1000, 4)
    )
    assert scores.argmax(1).bincount(minlength=4).tolist() == [0, 444, 223, 333]  # 4/9, 2/9 and 3/9


def test_evaluate_asks_the_three(tmp_path, model_folder, capsys):
    save_questions(build_questions(2), tmp_path / "test.jsonl")
    others = [write_student(tmp_path / name, build_model(seed=seed)) for seed, name in enumerate(("kg", "dr"), 1)]
    words = ["evaluate", "--student.model", str(model_folder), "--files", str(tmp_path / "test.jsonl")]
    words += ["--evaluation.max-new-tokens", "4", "--lorid.rounds", "2", "--output", str(tmp_path / "out.json")]
    given = ["--lorid.knowledge", others[0], "--lorid.deep", others[1]]
    assert main([*words, *given]) == 0
    result = json.loads((tmp_path / "out.json").read_text())["files"]["test"]
    assert result["total"] == 2 and result["rounds"] == 2 and 0 < result["generated"] <= 48
    assert "tokens sampled" in capsys.readouterr().out
    for wrong, message in (
        (given[:2], "lorid.knowledge and lorid.deep name two students that answer together: give both or neither"),
        (
            [*given, "--before", "x"],
            "--before beside --lorid.knowledge and --lorid.deep: a student is asked in one way",
        ),
        (replaced(given, "--lorid.deep", "no/such"), "no/such"),
    ):
        assert main([*words, *wrong, "--overwrite"]) == 2
        assert message in capsys.readouterr().err.replace("\n", " ")
