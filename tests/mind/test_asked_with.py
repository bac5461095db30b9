"""What precedes a question where a trained student is asked: the words that its method trained it on."""

from __future__ import annotations

import json

import pytest
from tiny import NAMES, build_model, build_questions, build_tokenizer

import mind
from mind.cli import main
from mind.config import DataConfig, EvaluationConfig, MindConfig, StudentConfig, TrainConfig
from mind.data.questions import save_questions
from mind.errors import MindError
from mind.evaluation import engines
from mind.evaluation.evaluate import evaluation_prompts
from mind.evaluation.outcomes import Reply
from mind.methods.sbs import SbsOptions
from mind.methods.sft import Sft


@pytest.fixture
def asked(monkeypatch):
    """The prompts of each call that generates, and answers in its place."""
    calls = []

    def generate(model, tokenizer, prompts, **_):
        calls.append(prompts)
        return [Reply("The answer is: 5")] * len(prompts)

    monkeypatch.setattr(engines, "generate_responses", generate)
    return calls


def prompts_of(questions, before):
    tokenizer = build_tokenizer()
    chats = [[{"role": "user", "content": before + question.question}] for question in questions]
    return [tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False) for chat in chats]


@pytest.mark.parametrize(
    ("options", "before"),
    [
        (SbsOptions(), "predict: "),
        (SbsOptions(label_prefix="say: "), "say: "),
        (SbsOptions(explain_with_answer=True), "explain: "),
    ],
)
def test_a_student_of_sbs_is_asked_as_it_was_trained(tmp_path, model_folder, asked, options, before):
    questions = build_questions(8)
    save_questions(questions[3:], tmp_path / "train.jsonl")
    save_questions(questions[:3], tmp_path / "test.jsonl")
    config = MindConfig(
        output=str(tmp_path / "run"),
        method="sbs",
        options=options,
        student=StudentConfig(model=str(model_folder), max_length=512),
        data=DataConfig(
            train=str(tmp_path / "train.jsonl"), evaluation=(str(tmp_path / "test.jsonl"),), perspectives=NAMES
        ),
        train=TrainConfig(questions_per_step=2, max_steps=1, report_to="none"),
    )
    folder = mind.train(config)
    assert asked == [prompts_of(questions[:3], before)] * 2
    for when in ("before", "after"):
        rows = [json.loads(line) for line in (folder.responses(when) / "test.jsonl").read_text().splitlines()]
        assert [row["question"] for row in rows] == [question.question for question in questions[:3]]


def test_what_precedes_a_question_counts_in_its_length():
    questions, tokenizer = build_questions(1), build_tokenizer()
    (prompt,) = prompts_of(questions, "explain: ")
    model, config = build_model(max_position_embeddings=len(prompt) + 1), EvaluationConfig(max_new_tokens=2)
    assert evaluation_prompts(model, tokenizer, questions, config) == prompts_of(questions, "")
    with pytest.raises(MindError, match=f"its prompt has {len(prompt)} tokens"):
        evaluation_prompts(model, tokenizer, questions, config, "explain: ")


def test_other_methods_ask_the_question_alone():
    assert Sft.asks_with(MindConfig(method="sft")) == ""


def test_mind_evaluate_asks_with_the_words_that_it_is_given(tmp_path, model_folder, asked, capsys):
    questions = build_questions(2)
    save_questions(questions, tmp_path / "test.jsonl")
    words = ["evaluate", "--student.model", str(model_folder), "--files", str(tmp_path / "test.jsonl")]
    assert main([*words, "--before", "predict: "]) == 0 and main(words) == 0
    assert asked == [prompts_of(questions, "predict: "), prompts_of(questions, "")]
