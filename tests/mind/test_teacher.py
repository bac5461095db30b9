"""Requests, the journal, the budget and `mind data generate` as a whole, against a server on loopback."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_records import make_response

from mind.curation.filter import FilterConfig
from mind.data.sources import SourceConfig
from mind.errors import MindError
from mind.perspectives import PERSPECTIVES
from mind.records import Question
from mind.teacher.config import BudgetConfig, GenerateConfig, JudgeConfig, ModelConfig, TrafficConfig
from mind.teacher.journal import Journal, load_responses
from mind.teacher.requests import load_prompts, teacher_requests, user_turn
from mind.typed_json import row_of

KEY = "sk-test-9876543210"
QUESTION = Question("q1", "What is 2 + 2?", "4")
CHOICE = Question("q2", "Where?", "B", {"A": "here", "B": "there"})


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def config(**changes):
    values = {"output": "x", "questions": SourceConfig("q.jsonl"), "teacher": ModelConfig("m", seed=1)} | changes
    return GenerateConfig(**values)


def response(number=0, **changes):
    return make_response(f"q{number}", **changes)


# Requests


def test_one_request_a_question_perspective_and_sample():
    prompts = load_prompts(("socratic", "planning"), None)
    requests = list(teacher_requests([QUESTION, CHOICE], prompts, config(samples=3)))
    assert [request.key for request in requests] == [
        (question, perspective, sample)
        for question in ("q1", "q2")
        for perspective in ("socratic", "planning")
        for sample in range(3)
    ]
    assert requests[0].messages[0] == {"role": "system", "content": PERSPECTIVES["socratic"].prompt}
    assert len({request.seed for request in requests}) == len(requests)


@pytest.mark.parametrize(
    "change",
    [
        {"teacher": ModelConfig("n", seed=1)},
        {"teacher": ModelConfig("m", seed=2)},
        {"show_answer": True},
        {"teacher": ModelConfig("m", seed=1, max_tokens=5)},
        {"teacher": ModelConfig("m", seed=1, temperature=None)},
        {"teacher": ModelConfig("m", seed=1, extra_body='{"top_k": 5}')},
    ],
)
def test_the_digest_tells_all_that_decides_an_answer(change):
    prompts = load_prompts(("socratic",), None)
    (plain,), (changed,) = (list(teacher_requests([QUESTION], prompts, config(**c))) for c in ({}, change))
    assert plain.digest != changed.digest and plain.key == changed.key
    moved = config(teacher=ModelConfig("m", seed=1, base_url="http://127.0.0.1:1/v1"))
    assert next(teacher_requests([QUESTION], prompts, moved)).digest == plain.digest
    spaced = [ModelConfig("m", seed=1, extra_body=text) for text in ('{"top_k": 5, "a": 1}', '{"a":1,"top_k":5}')]
    assert len({next(teacher_requests([QUESTION], prompts, config(teacher=teacher))).digest for teacher in spaced}) == 1


def test_the_users_turn():
    assert "What is 2 + 2?" in user_turn(QUESTION, show_answer=False)
    assert "4" not in user_turn(QUESTION, show_answer=False)
    assert "The correct answer is 4." in user_turn(QUESTION, show_answer=True)
    turn = user_turn(CHOICE, show_answer=False)
    assert "(B) there" in turn and "#### " in turn and "label" in turn


def test_prompts_of_ones_own(tmp_path):
    file = tmp_path / "prompts.json"
    file.write_text('{"socratic": "Ask.", "mine": "Do."}')
    prompts = load_prompts(("mine", "socratic", "planning"), str(file))
    assert prompts == {"mine": "Do.", "socratic": "Ask.", "planning": PERSPECTIVES["planning"].prompt}
    with pytest.raises(MindError, match="no prompt for the perspective yours"):
        load_prompts(("yours",), str(file))
    with pytest.raises(MindError, match="no prompt for the perspective yours, theirs: "):
        load_prompts(("yours", "mine", "theirs"), str(file))
    file.write_text(json.dumps({"mine": 3, "yours": " ", "line\nbreak": "Do.", " ": "Do.", "good": "Do."}))
    with pytest.raises(MindError) as error:
        load_prompts(("mine",), str(file))
    assert str(error.value).replace(f"{file}: ", "").splitlines()[:4] == [
        '"mine" is 3: expected a string',
        '"yours" is empty',
        'a perspective is named "line\\nbreak": expected a name that can be printed',
        'a perspective is named " ": expected a name that can be printed',
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": " "}, "teacher.model is ' ': expected a text that is not blank"),
        ({"base_url": "ftp://x"}, "--teacher.base-url: expected a URL"),
        ({"base_url": "127.0.0.1:8"}, "--teacher.base-url: expected a URL"),
        ({"base_url": "https://me:secret@host/v1"}, "holds credentials"),
        ({"base_url": "https://host/v1?key=secret"}, "holds credentials"),
        ({"extra_body": "[1]"}, "--teacher.extra-body: expected a JSON object, not list"),
        ({"engine_options": "{"}, "--teacher.engine-options: not JSON"),
        ({"top_p": 0.0}, "teacher.top_p is 0.0: expected a number in"),
        ({"max_tokens": 0}, "teacher.max_tokens is 0: expected at least 1"),
        ({"temperature": -1}, "teacher.temperature is -1: expected a number >= 0"),
        ({"engine": "magic"}, "teacher.engine is 'magic': expected one of openai, vllm, ray"),
        ({"temperature": float("inf")}, "teacher.temperature is inf: expected a finite number"),
        ({"seed": 1.5}, "teacher.seed is 1.5: expected an integer or null"),
        ({"token_limit_name": "limit"}, "teacher.token_limit_name is 'limit': expected one of max_tokens"),
        ({"extra_body": '{"top_k": NaN}'}, "--teacher.extra-body: cannot be sent as JSON: "),
        ({"extra_body": '{"stop": "\\ud800"}'}, "--teacher.extra-body: cannot be sent as JSON: "),
        (
            {"extra_body": '{"stream": true, "messages": []}'},
            "--teacher.extra-body has messages, stream: expected none of what other options set",
        ),
    ],
)
def test_bad_teachers_are_named(change, message):
    with pytest.raises(MindError, match=message) as error:
        ModelConfig(**{"model": "m"} | change)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: TrafficConfig(concurrency=1001), "traffic.concurrency is 1001: expected at most 1000"),
        (
            lambda: TrafficConfig(timeout_seconds=float("inf")),
            "traffic.timeout_seconds is inf: expected a finite number",
        ),
        (lambda: BudgetConfig(tokens=1.5), "budget.tokens is 1.5: expected an integer or null"),
        (lambda: config(currency=" "), "currency is ' ': expected a text that is not blank"),
        (lambda: config(prices={"m": (1.0,)}), r"prices is \(1.0,\)|prices holds \(1.0,\): expected a list of 2"),
        (lambda: config(prices={"m": (1.0, -2.0)}), "prices: m has .*: expected two numbers >= 0"),
        (lambda: config(show_answer="no"), "show_answer is 'no': expected true or false"),
        (lambda: JudgeConfig("f", model="j", base_url="ftp://x"), "--base-url: expected a URL"),
        (lambda: JudgeConfig("f", price=(float("nan"), 1.0)), "price holds nan: expected a finite number"),
        (lambda: FilterConfig(drop_leaks="no"), "drop_leaks is 'no': expected true or false"),
        (lambda: SourceConfig("x.jsonl", limit="3"), "questions.limit is '3': expected an integer or null"),
    ],
)
def test_a_configuration_that_cannot_work_is_refused(build, message):
    with pytest.raises(MindError, match=message):
        build()


# The journal


def test_what_is_appended_is_there(tmp_path):
    path = tmp_path / "responses.jsonl"
    with Journal(path) as journal:
        journal.append([response(0), response(1, text="\ud800\x00\u2028\n", reasoning="hm", prompt_tokens=None)])
        with pytest.raises(MindError, match="another process"):
            Journal(path)
    with Journal(path) as journal:
        journal.append([response(2)])
    assert [stored.key for stored in load_responses(path)] == [response(n).key for n in range(3)]
    assert list(load_responses(path))[1].text == "\ud800\x00\u2028\n"


@settings(deadline=None, max_examples=60)
@given(st.lists(st.text(max_size=20), max_size=4), st.data())
def test_a_torn_line_is_cut_off(tmp_path_factory, texts, data):
    path = tmp_path_factory.mktemp("journal") / "responses.jsonl"
    with Journal(path) as journal:
        journal.append(response(number, text=text) for number, text in enumerate(texts))
    whole = path.read_bytes()
    size = data.draw(st.integers(0, len(whole)))
    path.write_bytes(whole[:size])
    with Journal(path) as journal:
        journal.append([response(99)])
    survivors = whole[:size].count(b"\n")
    assert [stored.text for stored in load_responses(path)] == [*texts[:survivors], "t"]


def test_a_torn_line_longer_than_a_block(tmp_path):
    path = tmp_path / "responses.jsonl"
    with Journal(path) as journal:
        journal.append([response(0)])
    with path.open("ab") as file:
        file.write(b"x" * 200_000)
    with Journal(path):
        pass
    assert len(list(load_responses(path))) == 1


def test_a_folder_named_by_a_stranger_gives_no_orders_to_a_terminal(tmp_path, caplog):
    path = tmp_path / "a\x1b[31m" / "responses.jsonl"
    path.parent.mkdir()
    path.write_bytes(b"{")
    Journal(path).close()
    assert "an unfinished line of 1 bytes was cut off" in caplog.text and "\x1b" not in caplog.text


def test_all_faulty_lines_are_told_in_one_go(tmp_path):
    path = tmp_path / "responses.jsonl"
    with Journal(path) as journal:
        journal.append([response(0)])
    with path.open("a") as file:
        file.write('{"id": "q"}\n{\n' + json.dumps(row_of(response(0))) + "\n")
    with pytest.raises(MindError) as error:
        list(load_responses(path))
    told = str(error.value).splitlines()
    assert [line.removeprefix(str(path))[:3] for line in told[:3]] == [":2:", ":3:", ":4:"]
    assert told[3] == f"3 problems in {path}; 1 row without one"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": "q"}', '"perspective" is missing'),
        ("{", "not JSON"),
        (json.dumps({**row_of(response(5)), "sample": "0"}), '"sample" is "0": expected an integer'),
        (json.dumps({**row_of(response(5)), "sample": True}), '"sample" is true'),
        (json.dumps(row_of(response(0))), "also on line 1"),
    ],
)
def test_a_faulty_line_is_named(tmp_path, line, message):
    path = tmp_path / "responses.jsonl"
    with Journal(path) as journal:
        journal.append([response(0)])
    with path.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(MindError, match=message) as error:
        list(load_responses(path))
    assert f"{path}:2" in str(error.value)


# The command
