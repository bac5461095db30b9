"""General rules beside a question: asked for once, stored like rationales, not judged, and kept in records."""

from __future__ import annotations

import json
import shutil

import pytest
from fault_proxy import FaultProxy, chat_answer
from judged_folder import judged_folder
from sample_records import make_response

from mind.cli import main
from mind.curation.check import check_source
from mind.curation.importing import import_rationales
from mind.curation.knowledge import MAX_RULE_CHARACTERS, rules_of
from mind.data.questions import load_questions, save_questions
from mind.data.sources import SourceConfig
from mind.errors import MindError
from mind.perspectives import KNOWLEDGE, KNOWLEDGE_PROMPT, PERSPECTIVES
from mind.records import Question, Rationale
from mind.teacher.config import GenerateConfig, ModelConfig
from mind.teacher.folder import DatasetFolder
from mind.teacher.journal import Journal, load_responses
from mind.teacher.judged import load_judged
from mind.teacher.requests import load_prompts, teacher_requests
from mind.word_problems import generate
from mind.word_problems.problem import PERCENTAGE, STEPS
from mind.word_problems.problem import RULES as RULES_OF_STEPS

RULES = ("A total is the sum of its parts.", "What is bought is added.")
QUESTION = Question("q", "Ann has 5 pears and buys 7. How many pears has she?", "12", knowledge=RULES)


@pytest.mark.parametrize("name", ["q.jsonl", "q.parquet"])
def test_knowledge_is_read_as_it_was_written(tmp_path, name):
    questions = [QUESTION, Question("r", "1 + 1?", "2", rationales=(Rationale("planning", "Add."),))]
    save_questions(questions, tmp_path / name)
    assert load_questions(tmp_path / name) == questions


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("Add.", r'"knowledge" is "Add\.": expected a list of texts, a rule each'),
        ([1], r'"knowledge\[0\]" is 1: expected a string'),
        (["Add.", " "], r'"knowledge\[1\]" is empty'),
        (["\frac12 is half."], r'"knowledge\[0\]" has \\frac with one backslash'),
    ],
)
def test_knowledge_that_is_none_is_told(tmp_path, value, message, capsys):
    path = tmp_path / "q.jsonl"
    row = {"id": "q", "question": "1 + 1?", "answer": "2", "rationales": ["Add. #### 2"], "knowledge": value}
    path.write_text(json.dumps(row))
    for read in (load_questions, import_rationales):
        with pytest.raises(MindError, match=message):
            read(path)
    assert main(["data", "check", str(path)]) == 2


def test_an_import_and_a_check_keep_knowledge(tmp_path, capsys):
    path = tmp_path / "q.jsonl"
    texts = ["5 and 7 are 12.\n#### 12", "7 more than 5 are 12.\n#### 12"]
    rows = [{"id": i, "question": f"{i}?", "answer": "12", "rationales": texts} for i in "ab"]
    path.write_text("".join(json.dumps(row | {"knowledge": RULES} if row["id"] == "a" else row) + "\n" for row in rows))
    assert main(["data", "import", str(path), "--output", str(tmp_path / "named.jsonl")]) == 0
    assert [question.knowledge for question in load_questions(tmp_path / "named.jsonl")] == [RULES, ()]
    capsys.readouterr()
    assert main(["data", "check", str(tmp_path / "named.jsonl")]) == 0
    assert check_source(SourceConfig(str(tmp_path / "named.jsonl"))).with_knowledge == 1
    assert "questions with knowledge" in capsys.readouterr().out


def test_an_import_takes_the_rules_of_a_teacher(tmp_path, capsys):
    """Of the question that it states any for; the other keeps its own."""
    path, folder = tmp_path / "q.jsonl", DatasetFolder(tmp_path / "rules")
    texts = ["5 and 7 are 12.\n#### 12", "7 more than 5 are 12.\n#### 12"]
    rows = [{"id": i, "question": f"{i}?", "answer": "12", "rationales": texts, "knowledge": ["Own."]} for i in "ab"]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder.path.mkdir()
    save_questions([Question("b", "b?", "12"), Question("c", "c?", "1")], folder.questions)
    said = make_response("b", KNOWLEDGE, 0, text="\n".join([*RULES, "The answer is 13."]))
    with Journal(folder.responses) as journal:
        journal.append([said, make_response("b", "planning", 0, text="Add.")])
    command = ["data", "import", str(path), "--output", str(tmp_path / "n.jsonl"), "--knowledge", str(folder.path)]
    assert main(command) == 0
    assert [question.knowledge for question in load_questions(tmp_path / "n.jsonl")] == [("Own.",), RULES]
    assert json.loads((tmp_path / "n.counts.json").read_text())["questions_given_knowledge"] == 1
    save_questions([Question("b", "Another?", "12")], folder.questions)
    with pytest.raises(MindError, match=r"rules: question b is another one there"):
        import_rationales(path, knowledge_folder=folder.path)
    save_questions([Question("c", "c?", "1")], folder.questions)
    folder.responses.write_text("")
    with pytest.raises(MindError, match=r"rules: it has rules for none of the 2 questions"):
        import_rationales(path, knowledge_folder=folder.path)


def test_one_request_per_question_that_shows_no_answer():
    config = GenerateConfig(
        "x", SourceConfig("q.jsonl"), ModelConfig("m", seed=1), samples=2, show_answer=True, knowledge=True
    )
    prompts = load_prompts(("planning",), None, knowledge=True)
    requests = list(teacher_requests([QUESTION], prompts, config))
    assert [request.key[1:] for request in requests] == [("planning", 0), ("planning", 1), (KNOWLEDGE, 0)]
    assert [message["content"] for message in requests[-1].messages] == [KNOWLEDGE_PROMPT, QUESTION.question]
    assert "12" in requests[0].messages[1]["content"]


def test_the_prompt_may_be_ones_own_and_is_no_perspective(tmp_path):
    path = tmp_path / "prompts.json"
    path.write_text(json.dumps({"visual": "See.", KNOWLEDGE: "Know."}))
    assert load_prompts(None, str(path), knowledge=True) == {"visual": "See.", KNOWLEDGE: "Know."}
    with pytest.warns(RuntimeWarning, match="not asked for, as --knowledge is not given: knowledge"):
        assert load_prompts(None, str(path)) == {"visual": "See."}
    with pytest.raises(MindError, match="perspectives: knowledge is what --knowledge asks for, and no perspective"):
        GenerateConfig("x", SourceConfig("q.jsonl"), ModelConfig("m"), perspectives=("planning", KNOWLEDGE))


def test_rules_are_the_lines_of_a_response():
    text = (
        "<think>Hm.\nNo rule.</think>Here are the rules:\n1. A total is the sum of its parts.\n\n"
        "- What is bought is added.\n* What is bought is added.\n(2) The answer is 12.\n---\n#### 12\n"
        f"{'long ' * MAX_RULE_CHARACTERS}\n2 + 2 is 4."
    )
    assert rules_of(make_response(text=text), QUESTION) == (*RULES, "2 + 2 is 4.")
    assert rules_of(make_response(text=text, finish_reason="unknown"), QUESTION) == (*RULES, "2 + 2 is 4.")
    assert rules_of(make_response(text=text, finish_reason="length"), QUESTION) == ()


@pytest.mark.parametrize(
    "heading",
    ["General rules:", "**General rules:**", "**General rules**:", "__Rules:__", "*Rules:*", "# Rules", "### Rules:",
     "`Rules:`", "1. **Rules:**", "- # Rules", "**1. Rules:**  ", "___"],
)  # fmt: skip
def test_a_heading_is_no_rule(heading):
    marked = "**Total:** the sum of its parts, *all* of them"
    assert rules_of(make_response(text=f"{heading}\n- {marked}\n{RULES[0]}"), QUESTION) == (marked, RULES[0])


def test_the_first_folder_that_states_rules_gives_them(tmp_path):
    """Of three folders, the first asked for none, and the second got a heading alone for q2; q1 is not kept."""
    first = judged_folder(tmp_path / "a")
    for name, texts in {"b": ("Add.", "Count.", "# Rules:"), "c": ("Sum up.", "Count on.", "Join both.")}.items():
        folder = DatasetFolder(tmp_path / name)
        shutil.copytree(first.path, folder.path)
        with Journal(folder.responses) as journal:
            journal.append(make_response(f"q{n}", KNOWLEDGE, 0, text=text) for n, text in enumerate(texts))
    folders = [str(tmp_path / name) for name in "abc"]
    assert main(["filter", folders[0], "--also", *folders[1:], "--output", str(tmp_path / "r.jsonl")]) == 0
    kept = {question.id: question.knowledge for question in load_questions(tmp_path / "r.jsonl")}
    card = json.loads((tmp_path / "r.card.json").read_text())
    assert kept == {"q0": ("Add.",), "q2": ("Join both.",)}
    assert card["counts"]["knowledge"] == 2 and "general rules" in card["limits"][-1]


def test_from_the_teacher_to_the_records(tmp_path, capsys):
    """Asked once in a second start, stored, not judged, filtered and told; its tokens are in the card."""
    save_questions([Question("q", QUESTION.question, "12")], tmp_path / "q.jsonl")
    folder, records = tmp_path / "set", tmp_path / "records.jsonl"
    command = ["data", "generate", "--output", str(folder), "--questions.path", str(tmp_path / "q.jsonl")]
    command += ["--teacher.model", "m", "--perspectives", "planning", "analogy"]

    def teach(body):
        prompt = json.loads(body)["messages"][0]["content"]
        own = (
            "First 5, then 7."
            if prompt == PERSPECTIVES["planning"].prompt
            else "Two shoes and three shoes; so 5 and 7."
        )
        return chat_answer("\n".join(RULES) if prompt == KNOWLEDGE_PROMPT else f"{own}\n#### 12")

    with FaultProxy(teach) as proxy:
        command += ["--teacher.base-url", proxy.url]
        assert main(command) == 0 and proxy.attempts.total() == 2
        assert main(["data", "judge", str(folder)]) == 0
        for _ in range(2):
            assert main([*command, "--knowledge"]) == 0 and proxy.attempts.total() == 3
        assert main(command) == 2  # the folder has more than is asked for
    assert "and the knowledge of each question: 1 request to" in capsys.readouterr().out
    assert [r.key.perspective for r in load_responses(folder / "responses.jsonl")].count(KNOWLEDGE) == 1
    assert main(["data", "judge", str(folder)]) == 0
    data = load_judged(folder)
    assert len(data.verdicts) == len(data.responses) == 2 and len(data.others) == 1
    assert main(["data", "filter", str(folder), "--output", str(records), "--duplicate-threshold", "1"]) == 0
    assert "1 question to train on, 1 of them with knowledge;" in capsys.readouterr().out
    (kept,) = load_questions(records)
    assert kept.knowledge == RULES and {one.perspective for one in kept.rationales} == {"planning", "analogy"}
    card = json.loads((tmp_path / "records.card.json").read_text())
    assert card["counts"]["knowledge"] == 1 and set(card["prompts"]) == {"planning", "analogy", KNOWLEDGE}
    assert sum(card["teacher"]["models"].values()) == 3 and "general rules" in card["limits"][-1]
    assert RULES[0] in (tmp_path / "records.report.html").read_text()


def test_word_problems_state_the_rules_of_their_steps():
    (question,) = generate(1, seed=0, families=("discount",), levels=("multi-step",))
    assert question.knowledge == (*(RULES_OF_STEPS[kind] for kind in "*/-"), PERCENTAGE, STEPS)
    (question,) = generate(1, seed=0, families=("gain",), levels=("one-step",))
    assert question.knowledge == (RULES_OF_STEPS["+"],)
    assert not any(character.isdigit() for rule in (*RULES_OF_STEPS.values(), PERCENTAGE, STEPS) for character in rule)
