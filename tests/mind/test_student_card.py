"""The model card beside the weights: what it says, that its code asks as the student was trained, and what it leaves
out."""

from __future__ import annotations

import json

import pytest
import yaml
from markdown_it import MarkdownIt
from sample_run import HOSTILE, write_run
from tiny import NAMES, build_questions

import mind
from mind.config import DataConfig, EvaluationConfig, MindConfig, StudentConfig, TrainConfig
from mind.data.questions import save_questions
from mind.methods.sbs import SbsOptions
from mind.records import Question
from mind.report.student_card import student_card
from mind.run_folder import RunFolder
from mind.student.tokenization import Chat


def parts(card: str) -> tuple[dict, str]:
    """The front matter, and the Markdown below it."""
    start, front, body = card.split("---\n", 2)
    assert start == ""
    return yaml.safe_load(front), body


def test_a_trained_student_has_a_card_that_says_how_to_ask_it(tmp_path, model_folder, monkeypatch, capsys):
    pytest.importorskip("peft")
    questions = build_questions(8)
    save_questions(questions[3:], tmp_path / "train.jsonl")
    save_questions(questions[:3], tmp_path / "test.jsonl")
    student = StudentConfig(
        model=str(model_folder), max_length=512, lora=True, lora_rank=2, lora_targets=("q_proj", "v_proj")
    )
    data = DataConfig(
        train=str(tmp_path / "train.jsonl"), evaluation=(str(tmp_path / "test.jsonl"),), perspectives=NAMES
    )
    config = MindConfig(
        output=str(tmp_path / "run"),
        method="sbs",
        options=SbsOptions(label_prefix="say ```: "),
        student=student,
        data=data,
        train=TrainConfig(questions_per_step=2, max_steps=1, report_to="none"),
        evaluation=EvaluationConfig(max_new_tokens=2),
    )
    folder = mind.train(config)
    front, body = parts((folder.student / "README.md").read_text())
    assert front["library_name"] == "transformers" and "base_model" not in front
    accuracy = folder.read_evaluation()["after"]["files"]["test"]["accuracy"]
    assert f"`accuracy, test (3 questions)`: {100 * accuracy:.1f} % (" in body
    assert f"`data.train`: `train.jsonl`, start of its SHA-256 `{folder.read_inputs()['data.train']['sha256']}`" in body
    assert str(tmp_path) not in body and "`tokens`" not in body

    (code,) = [token for token in MarkdownIt().parse(body) if token.type == "fence"]
    found: dict = {}
    monkeypatch.chdir(folder.student)
    capsys.readouterr()
    exec(code.content.replace("max_new_tokens=200", "max_new_tokens=2"), found)
    assert found["prompt"]["input_ids"][0].tolist() == Chat(found["tokenizer"]).prompt(
        Question("q", "say ```: What is 2 + 3?", "5")
    )
    assert capsys.readouterr().out.endswith("\n")

    front, body = parts((folder.adapter / "README.md").read_text())
    assert front["library_name"] == "peft" and "More Information Needed" not in body and "```python" not in body


@pytest.mark.parametrize(
    ("model", "base", "shown"),
    [
        ("Qwen/Qwen2.5-0.5B-Instruct", "Qwen/Qwen2.5-0.5B-Instruct", "`Qwen/Qwen2.5-0.5B-Instruct`"),
        ("secret/model", None, "`model`"),  # a folder
        ("/home/ann/model", None, "`model`"),
        ("../ann", None, "`ann`"),
        ("smollm2-135m-instruct", None, "`smollm2-135m-instruct`"),
        (HOSTILE, None, f"`{HOSTILE}`"),
    ],
)
def test_the_student_before_training_is_named_without_its_folders(tmp_path, monkeypatch, model, base, shown):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret" / "model").mkdir(parents=True)
    folder = RunFolder(write_run(tmp_path / "run"))
    config = json.loads(folder.config.read_text())
    config["student"]["model"] = model
    folder.config.write_text(json.dumps(config))
    front, body = parts(student_card(folder, "MIND"))
    assert front.get("base_model") == base
    assert f"- student before training: {shown}\n" in body and "secret" not in body and "/home" not in body


def test_texts_from_outside_are_shown_and_nothing_else(tmp_path):
    folder = RunFolder(write_run(tmp_path / "a [link](x) `b`"))
    _, body = parts(student_card(folder, HOSTILE, f"``` {HOSTILE} \x1b[31m: "))
    page = MarkdownIt("commonmark", {"html": True}).render(body)
    assert "<script" not in page and "<a " not in page and "\x1b" not in page and "gsm8k &lt;b&gt;" in page
    assert "mind train --output" not in body  # a command may hold what is nobody's business
