"""`mind data generate --rewrite` and `--prefix`: right answers said shorter or begun anew, from request to record."""

from __future__ import annotations

import json
import shutil
from collections import Counter

import pytest
from fault_proxy import FaultProxy, chat_answer
from judged_folder import QUESTIONS, WAYS, WRONG, judged_folder

from mind.answer_line import suffix
from mind.cli import main
from mind.data.questions import load_questions
from mind.teacher.journal import load_responses
from mind.teacher.online import CONTINUE
from mind.teacher.recipes import REWRITE, beginnings


@pytest.fixture
def mine(tmp_path, capsys):
    folder = judged_folder(tmp_path / "mine")
    capsys.readouterr()
    return folder


def made(mine, option, proxy, *more):
    """The folder of what the recipe made; the command that it was made by has to succeed."""
    folder = mine.path.parent / option.strip("-")
    url = ["--teacher.base-url", proxy.url]
    assert main(["data", "generate", option, str(mine.path), "--output", str(folder), *url, *more]) == 0
    return folder


def filtered(mine, folder, *more):
    """What a filter keeps of both: question -> perspective -> text."""
    records = mine.path.parent / "r.jsonl"
    assert main(["judge", str(folder)]) == 0
    assert main(["filter", str(mine.path), "--also", str(folder), "--output", str(records), "--overwrite", *more]) == 0
    return {q.id: {r.perspective: r.text for r in q.rationales} for q in load_questions(records)}


def shortened(body):
    """The socratic ones to three words, those of planning to a wrong answer."""
    system, user = (message["content"] for message in json.loads(body)["messages"])
    assert system == REWRITE
    response = user.split("Response:\n")[1].split("\n\nEnd with")[0]
    text, _, answer = response.rpartition("\n#### ")
    short = "Count on, then." if "sought" in text else "Add."
    return chat_answer(short + suffix(answer if "sought" in text else "99"))


def test_shorter_ones_are_taken_where_they_are_right(mine, capsys):
    bodies = []
    with FaultProxy(lambda body: bodies.append(json.loads(body)) or shortened(body)) as proxy:
        folder = made(mine, "--rewrite", proxy)
    assert f"--rewrite {mine.path}: 5 answers to be rewritten: 5 requests to m at" in capsys.readouterr().out
    assert {body["temperature"] for body in bodies} == {0.7}, "as in the folder"
    keys = {response.key for response in load_responses(folder / "responses.jsonl")}
    places = {(q.id, name, 0) for q in QUESTIONS for name in WAYS}
    assert keys == places - {(*WRONG, 0)}, "there is nothing to shorten in a wrong one"
    both = filtered(mine, folder, "--shortest")
    assert (
        f"next: mind data filter {mine.path} --also {folder} --output rewrite.jsonl --shortest"
        in capsys.readouterr().out
    )
    assert both == {f"q{n}": {"planning": WAYS["planning"].format(n), "socratic": "Count on, then."} for n in (0, 2)}, (
        "a wrong one replaces nothing; q1 has one right perspective alone"
    )
    assert filtered(mine, folder)["q0"]["socratic"] == WAYS["socratic"].format(0), "diversity alone: the first"


def test_a_folder_of_rewritten_ones_is_a_data_set_of_its_own(tmp_path, mine, capsys):
    texts = iter(["Add.", "Count on from seven.", "So.", "Sum up.", "Thus."])
    with FaultProxy(lambda body: chat_answer(next(texts) + suffix("7"))) as proxy:
        folder = made(mine, "--rewrite", proxy, "--traffic.concurrency", "1")
    assert main(["judge", str(folder)]) == 0
    command = ["filter", str(folder), "--output", str(tmp_path / "r.jsonl")]
    assert main([*command, "--pass-rate", "0.1", "0.9"]) == 2
    assert "--pass-rate: all answers were made from others" in capsys.readouterr().err
    assert main(command) == 0
    assert [question.id for question in load_questions(tmp_path / "r.jsonl")] == [QUESTIONS[0].id]


# Beginnings that are continued


@pytest.mark.parametrize(
    ("text", "count", "expected"),
    [
        ("One.\n\nTwo.\nThree. Four.\n\nFive.", 1, ["One.\n\n"]),
        ("One.\n\nTwo.\nThree. Four.\n \n Five.", 2, ["One.\n\n", "One.\n\nTwo.\nThree. Four.\n \n "]),
        ("One.\n\nTwo.\nThree. Four.\n\nFive.", 3, ["One.\n\n", "One.\n\nTwo.\n", "One.\n\nTwo.\nThree. Four.\n\n"]),
        ("One. Two\nThree.", 1, ["One. Two\n"]),
        ("It is 3.5. So? Yes! No.", 2, ["It is 3.5. ", "It is 3.5. So? "]),
        ("It is 3.5. So? Yes! No.", 9, ["It is 3.5. ", "It is 3.5. So? ", "It is 3.5. So? Yes! "]),
        ("a. b. c. d. e. f. g.", 3, ["a. ", "a. b. c. ", "a. b. c. d. e. "]),
        ("One, two", 1, []),
        ("1. Add 3 and 4. Then 5.", 1, ["1. Add 3 and 4. "]),
        ("1. Add 3 and 4. 2. Then 5. So.", 2, ["1. Add 3 and 4. ", "1. Add 3 and 4. 2. Then 5. "]),
        ("1) Add.\n2) Sum up.", 1, ["1) Add.\n"]),
        ("**1.**\nAdd.\nSum up.", 1, ["**1.**\nAdd.\n"]),
        ("---\n\nAdd.\n\n12.\n\nSum up.\n\nSo.", 2, ["---\n\nAdd.\n\n", "---\n\nAdd.\n\n12.\n\nSum up.\n\n"]),
        ("3 + 4 = 7\n7 * 2 = 14\n14", 2, ["3 + 4 = 7\n", "3 + 4 = 7\n7 * 2 = 14\n"]),
        ("1. Add", 1, []),
        ("Add 3 and 4. Then 5.", 1, ["Add 3 and 4. "]),
    ],
)
def test_beginnings_end_where_something_ends(text, count, expected):
    assert beginnings(text, count) == expected


def continued(body):
    said = json.loads(body)["messages"][-1]
    assert said["role"] == "assistant" and said["content"] == said["content"].strip()
    return chat_answer(f"{'' if 'What' in said['content'] else ' '}Seven\n#### 1")


def test_beginnings_are_continued(mine, capsys):
    bodies = []
    with FaultProxy(lambda body: bodies.append(json.loads(body)) or continued(body)) as proxy:
        folder = made(mine, "--prefix", proxy, "--samples", "2", "--teacher.extra-body", '{"top_k": 5}')
    assert f"--prefix {mine.path}: 10 answers to be continued" in capsys.readouterr().out
    assert all(
        (body["continue_final_message"], body["add_generation_prompt"], body["top_k"]) == (True, False, 5)
        for body in bodies
    )
    turns = [tuple(message["content"] for message in body["messages"][:2]) for body in bodies]
    asked = "Ann has 0 pears and buys 7. How many has she?\n\nEnd with a line"
    assert Counter(system for system, user in turns if user.startswith(asked)) == {"Be planning.": 2, "Be socratic.": 2}
    texts = {response.key: response.text for response in load_responses(folder / "responses.jsonl")}
    assert texts["q0", "planning", 1] == "Plan: add both. Seven\n#### 1"
    assert texts["q2", "socratic", 0] == "What is sought? Seven\n#### 1"
    assert {key[2] for key in texts} == {0, 1}


def test_a_shorter_way_is_taken_from_the_beginning_that_leads_to_it(mine):
    """Retro-Search: of an answer and its continuations, the shortest right one."""
    rights = {"Plan: add both.": "7", "What is sought?": "8"}
    with FaultProxy(
        lambda body: chat_answer(f"So.\n#### {rights[json.loads(body)['messages'][-1]['content']]}")
    ) as proxy:
        folder = made(mine, "--prefix", proxy, "--cuts", "3")
        assert proxy.attempts.total() == 5, "there is one place to cut"
    keys = {response.key for response in load_responses(folder / "responses.jsonl")}
    assert {key.sample for key in keys} == {0}
    kept = filtered(mine, folder, "--shortest")
    assert kept["q0"] == {"planning": "Plan: add both. So.", "socratic": WAYS["socratic"].format(0)}


def test_a_server_that_does_not_continue_ends_the_job(mine, capsys):
    """As `transformers serve` refuses the fields that it does not know."""
    refusal = (422, json.dumps({"detail": f"Unexpected fields in the request: {set(CONTINUE)}"}).encode(), {})
    with FaultProxy(continued, lambda body, attempt: refusal) as proxy:
        command = ["generate", "--prefix", str(mine.path), "--output", str(mine.path.parent / "again")]
        assert main([*command, "--teacher.base-url", proxy.url, "--traffic.concurrency", "1"]) == 1
        assert proxy.attempts.total() == 1
    told = "".join(capsys.readouterr())
    assert "status 422: Unexpected fields" in told and "this server does not continue an answer; name one" in told


def test_an_extra_body_has_the_last_word(mine):
    bodies = []
    extra = '{"continue_final_message": false, "add_generation_prompt": true}'
    with FaultProxy(lambda body: bodies.append(json.loads(body)) or continued(body)) as proxy:
        made(mine, "--prefix", proxy, "--teacher.extra-body", extra)
    assert {(body["continue_final_message"], body["add_generation_prompt"]) for body in bodies} == {(False, True)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--dual", "mine", "--cuts", "2"], "cuts is 2: expected it with --prefix alone"),
        (["--prefix", "mine", "--cuts", "0"], "cuts is 0: expected at least 1"),
        (["--prefix", "mine", "--rewrite", "mine"], "--rewrite and --prefix: expected one of them"),
        (
            ["--prefix", "mine", "--prompts", "p.json"],
            "p.json: --prefix asks with no prompt plan, knowledge: expected planning, socratic",
        ),
        (
            ["--prefix", "mine", "--prompts", "q.json", "--perspectives", "socratic"],
            "q.json: --prefix asks with no prompt planning: expected socratic",
        ),
        (["--prefix", "bare"], "--prefix bare: no prompt for planning: give one by --prompts"),
    ],
)
def test_a_recipe_that_cannot_work_is_told(tmp_path, mine, capsys, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(mine.path, "bare")
    (tmp_path / "bare" / "prompts.json").write_text("{}")
    (tmp_path / "p.json").write_text('{"plan": "Plan.", "socratic": "Ask.", "knowledge": "Know."}')
    (tmp_path / "q.json").write_text('{"planning": "Plan.", "socratic": "Ask."}')
    assert main(["generate", *options, "--output", "set"]) == 2
    assert message in " ".join(capsys.readouterr().err.split()) and not (tmp_path / "set").exists()


def test_a_perspective_without_a_prompt_is_given_one(tmp_path, mine):
    mine.prompts.write_text('{"socratic": "Be socratic.", "knowledge": "Know."}')
    (tmp_path / "p.json").write_text('{"planning": "Have a plan."}')
    systems = Counter()
    with FaultProxy(
        lambda body: systems.update([json.loads(body)["messages"][0]["content"]]) or continued(body)
    ) as proxy:
        folder = made(mine, "--prefix", proxy, "--prompts", str(tmp_path / "p.json"))
    prompts = json.loads((folder / "prompts.json").read_text())
    assert prompts == {"planning": "Have a plan.", "socratic": "Be socratic."}, "no knowledge is asked for"
    assert systems == {"Have a plan.": 2, "Be socratic.": 3}


@pytest.mark.parametrize("option", ["--rewrite", "--prefix"])
def test_a_folder_made_from_other_answers_is_refused(mine, capsys, option):
    with FaultProxy(lambda body: chat_answer("Add." + suffix("7"))) as proxy:
        folder = made(mine, option, proxy)
        asked = proxy.attempts.total()
        mine.responses.write_text(mine.responses.read_text().replace("What is sought?", "What is it?"))
        assert main(["judge", str(mine.path)]) == 0
        words = ["--output", str(folder), "--teacher.base-url", proxy.url]
        assert main(["data", "generate", option, str(mine.path), *words]) == 2
        assert proxy.attempts.total() == asked
    told = f"another request: the answers in {mine.path}, or the verdicts on them, have changed; name a new --output"
    assert told in capsys.readouterr().err


def test_the_answers_of_two_teachers_are_one_data_set(tmp_path, mine):
    other = tmp_path / "other"
    shutil.copytree(mine.path, other)
    answers = (other / "responses.jsonl").read_text()
    (other / "responses.jsonl").write_text(
        answers.replace('"model": "m"', '"model": "n"').replace("counted on", "told")
    )
    options = ["--source", "n", "m", "--scripts", "LATIN", "0.9", "1", "--pass-rate", "0.6", "1", "--keep-wrong", "4"]
    both = filtered(mine, other, *options)
    assert both == {f"q{n}": {name: way.format(n) for name, way in WAYS.items()} for n in (0, 2)}
    teachers = json.loads((tmp_path / "r.card.json").read_text())["counts"]["teachers"]
    assert {name: (counts["read"], counts["right"], counts["kept"]) for name, counts in teachers.items()} == {
        "m": (6, 5, 4), "n": (6, 5, 0),
    }  # fmt: skip
    other_alone = filtered(mine, other, "--source", "n")
    assert other_alone["q2"]["socratic"] == WAYS["socratic"].format(2).replace("counted on", "told")
