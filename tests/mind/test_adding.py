"""A perspective and an answer type that are added as their guides say: the code blocks run here, and are used."""

from __future__ import annotations

import importlib.util
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from fault_proxy import FaultProxy, chat_answer

from mind import grading, word_problems
from mind.cli import main
from mind.curation.leaks import leaks_answer
from mind.data.questions import load_questions
from mind.errors import MindError
from mind.grading.answers import judge_text
from mind.perspectives import PAPER_PERSPECTIVES, PERSPECTIVES
from mind.records import Question
from mind.teacher.requests import user_turn

GUIDES = Path(__file__).resolve().parents[2] / "docs" / "how-to"
CENTURY = Question("t", "A painter was born in the century before the XX and died in it. In which one?", "XIX")


def guide_module(guide: str, folder: Path):
    """A new module of the code block in a guide."""
    page = (GUIDES / guide).read_text()
    (code,) = re.findall(r"<!-- tests/mind/test_adding.py runs this -->\n```python\n(.*?)```", page, re.DOTALL)
    path = folder / "added_by_the_guide.py"
    path.write_text(f"from __future__ import annotations\n{code}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def terse(tmp_path, monkeypatch) -> str:
    """The name of a ninth perspective."""
    added = guide_module("new-perspective.md", tmp_path).TERSE
    monkeypatch.setitem(PERSPECTIVES, added.name, added)
    return added.name


@pytest.fixture
def roman(tmp_path, monkeypatch) -> None:
    added = guide_module("new-answer-type.md", tmp_path).Roman
    monkeypatch.setattr(grading, "ANSWER_TYPES", (added(), *grading.ANSWER_TYPES))


def write_rows(path: Path, *rows: dict) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read_rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_perspective_goes_from_its_prompt_to_training_records(tmp_path, monkeypatch, terse):
    """Through `mind data generate`, `judge` and `filter`, and back as a file of training records."""
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    systems = set()

    def teacher(body: bytes) -> bytes:
        system = json.loads(body)["messages"][0]["content"]
        systems.add(system)
        return chat_answer("2 + 2 = 4\n#### 4" if "wastes no word" in system else "Plan: add.\nThen: it is 4.\n#### 4")

    questions = write_rows(tmp_path / "q.jsonl", {"id": "q", "question": "What is 2 + 2?", "answer": "4"})
    folder, output = tmp_path / "set", tmp_path / "train.jsonl"
    with FaultProxy(teacher) as server:
        options = ["--output", str(folder), "--questions.path", str(questions), "--teacher.model", "m"]
        options += ["--teacher.base-url", server.url, "--perspectives", "planning", terse]
        assert main(["data", "generate", *options]) == 0
    assert systems == {PERSPECTIVES["planning"].prompt, PERSPECTIVES[terse].prompt}
    assert main(["data", "judge", str(folder)]) == 0
    assert main(["data", "filter", str(folder), "--output", str(output), "--require-adherence"]) == 0
    (question,) = load_questions(output, perspectives=("planning", terse), require_rationales=True)
    assert [(r.perspective, r.text) for r in question.rationales] == [
        ("planning", "Plan: add.\nThen: it is 4."),
        (terse, "2 + 2 = 4"),
    ]
    counts = json.loads((tmp_path / "train.card.json").read_text())["counts"]["perspectives"]
    assert counts[terse] == {"read": 1, "right": 1, "kept": 1, "checked": 0, "adherent": 0}


def test_the_word_problems_keep_the_perspectives_that_they_have_a_writer_for(tmp_path, capsys, terse):
    (question,) = word_problems.generate(1, 0)
    assert tuple(rationale.perspective for rationale in question.rationales) == PAPER_PERSPECTIVES
    with pytest.raises(MindError, match=f"no writer for the perspective {terse}: there are writers for formal-sym"):
        word_problems.generate(1, 0, perspectives=("planning", terse))
    command = ["data", "word-problems", "--output", str(tmp_path / "w.jsonl"), "--perspectives", "planning", terse]
    assert main(command) == 2
    assert main(["train", "--output", str(tmp_path / "run"), "--data.perspectives", "planning", terse]) == 2
    assert capsys.readouterr().err.count(f"no writer for the perspective {terse}") == 2
    assert not (tmp_path / "w.jsonl").exists() and not (tmp_path / "run").exists()


def test_a_perspective_gets_a_writer(monkeypatch, terse):
    plain = word_problems.generate(3, 0)
    level = word_problems.LEVELS["multi-step"]
    writers = {**level.writers, terse: lambda problem, rng: f"{rng.random()}: {problem.answer}"}
    monkeypatch.setitem(word_problems.LEVELS, "multi-step", replace(level, writers=writers))
    nine = word_problems.generate(3, 0)
    assert [question.rationales[:8] for question in nine] == [question.rationales for question in plain]
    assert all(question.rationales[8].text.endswith(f": {question.answer}") for question in nine)
    (both,) = word_problems.generate(1, 0, levels=["one-step", "multi-step"])
    assert len(both.rationales) == 8, "the other level has no writer for it"


def test_without_the_type_a_numeral_is_compared_as_words():
    assert grading.answer_type(CENTURY).name == "words"
    assert judge_text("So it was the 19.", CENTURY).verdict == "unparsed"


@pytest.mark.parametrize(
    ("response", "judgement"),
    [
        ("The one before XX, so it is XIX.", ("right", "XIX", "the same number")),
        ("So it was\n#### 19", ("right", "19", "the same number")),
        ("#### Century\nIt is the XIX", ("right", "XIX", "the same number")),
        ("The answer is XXI.", ("wrong", "XXI", "another number")),
        ("#### the last one", ("unparsed", "the last one", "not a numeral")),
        ("Nobody knows.", ("unparsed", None, "no answer found")),
    ],
)
def test_an_answer_type_judges(roman, response, judgement):
    assert judge_text(response, CENTURY) == judgement


def test_an_answer_type_is_used_by_grade_and_import(tmp_path, roman):
    row = {"id": "t", "question": CENTURY.question, "answer": CENTURY.answer}
    source = write_rows(tmp_path / "r.jsonl", row | {"response": "It was 19."}, row | {"response": "It was XXI."})
    assert main(["grade", str(source), "--output", str(tmp_path / "g.jsonl")]) == 0
    assert [graded["correct"] for graded in read_rows(tmp_path / "g.jsonl")] == [True, False]
    texts = ["The one before XX: XIX.", "It was the 19.", "It was the XXI."]
    unnamed = write_rows(tmp_path / "u.jsonl", row | {"rationales": texts})
    assert main(["data", "import", str(unnamed), "--output", str(tmp_path / "i.jsonl")]) == 0
    (question,) = load_questions(tmp_path / "i.jsonl", require_rationales=True)
    assert [rationale.text for rationale in question.rationales] == texts[:2]


def test_an_answer_type_knows_leaks_and_what_the_teacher_is_asked_for(roman):
    assert leaks_answer("The answer is XIX. Take one from XX.", CENTURY)
    assert leaks_answer("It was the XIX. To get this answer, take one from XX.", CENTURY)
    assert not leaks_answer("The answer is one less than XX, so XIX.", CENTURY)
    assert 'holds "#### " and the numeral, and nothing else.' in user_turn(CENTURY, show_answer=False)


def test_the_other_types_stay(roman):
    assert grading.answer_type(Question("n", "?", "1,430")).name == "number"
    assert grading.answer_type(Question("c", "?", "A", {"A": "2 h", "B": "3 h"})).name == "choice"
