"""Requests, the journal, the budget and `mind generate` as a whole, against a server on loopback."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fault_proxy import FAULTS, FaultProxy, chat_answer
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_records import make_response

from mind.cli import main
from mind.curation.filter import FilterConfig
from mind.data.sources import SourceConfig
from mind.errors import MindError
from mind.perspectives import PERSPECTIVES
from mind.records import Question
from mind.teacher.config import BudgetConfig, GenerateConfig, JudgeConfig, ModelConfig, TrafficConfig
from mind.teacher.journal import Journal, load_responses
from mind.teacher.requests import load_prompts, teacher_requests, user_turn
from mind.teacher.spending import Spending
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
        ({"model": " "}, "model is ' ': expected a text that is not blank"),
        ({"base_url": "ftp://x"}, "base_url"),
        ({"base_url": "127.0.0.1:8"}, "base_url"),
        ({"base_url": "https://me:secret@host/v1"}, "holds credentials"),
        ({"base_url": "https://host/v1?key=secret"}, "holds credentials"),
        ({"extra_body": "[1]"}, "extra_body"),
        ({"engine_options": "{"}, "engine_options"),
        ({"top_p": 0.0}, "top_p"),
        ({"engine": "magic"}, "engine is 'magic': expected one of openai, vllm, ray"),
        ({"temperature": float("inf")}, "temperature is inf: expected a finite number"),
        ({"seed": 1.5}, "seed is 1.5: expected an integer or null"),
        ({"token_limit_name": "limit"}, "token_limit_name is 'limit': expected one of max_tokens, max_completion"),
        ({"extra_body": '{"top_k": NaN}'}, "extra_body: cannot be sent as JSON: "),
        ({"extra_body": '{"stop": "\\ud800"}'}, "extra_body: cannot be sent as JSON: "),
        ({"extra_body": '{"stream": true, "messages": []}'}, "extra_body has messages, stream: expected what no other"),
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
        (lambda: JudgeConfig("f", model="j", base_url="ftp://x"), "base_url: expected a URL"),
        (lambda: JudgeConfig("f", price=(float("nan"), 1.0)), "price holds nan: expected a finite number"),
        (lambda: FilterConfig(drop_leaks="no"), "filter.drop_leaks is 'no': expected true or false"),
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


@pytest.fixture
def questions(tmp_path):
    path = tmp_path / "questions.jsonl"
    path.write_text(
        "".join(json.dumps({"id": f"q{n}", "question": f"number {n}?", "answer": str(n)}) + "\n" for n in range(6))
    )
    return path


def arguments(proxy, questions, output, *more):
    return [
        "generate",
        "--output",
        str(output),
        "--questions.path",
        str(questions),
        "--teacher.model",
        "m",
        "--teacher.base-url",
        proxy.url,
        "--perspectives",
        "socratic",
        "planning",
        "--traffic.first-wait-seconds",
        "0.02",
        *more,
    ]


def solve(body):
    content = json.loads(body)["messages"][-1]["content"]
    return chat_answer(f"It is.\n#### {content.split()[1].rstrip('?')}")


def test_a_data_set_and_its_second_start(tmp_path, questions, capsys):
    output = tmp_path / "set"
    with FaultProxy(solve) as proxy:
        assert main(arguments(proxy, questions, output)) == 0
        assert proxy.attempts.total() == 12
        assert main(arguments(proxy, questions, output)) == 0
        assert proxy.attempts.total() == 12
        assert main(arguments(proxy, questions, output, "--samples", "2")) == 0
        assert proxy.attempts.total() == 24
    assert len({stored.key for stored in load_responses(output / "responses.jsonl")}) == 24
    out = capsys.readouterr().out
    assert f"next: mind judge {output}" in out
    assert {path.name for path in output.iterdir()} == {
        "questions.jsonl",
        "generate.json",
        "prompts.json",
        "responses.jsonl",
        "failures.jsonl",
        "wasted.jsonl",
    }


def test_no_key_is_written_or_printed(tmp_path, questions, capsys):
    output = tmp_path / "set"

    def fault(body, attempt):
        statuses = {"number 0": 400, "number 4": 401}
        status = statuses.get(body["messages"][-1]["content"][:8])
        return status and (status, json.dumps({"error": {"message": f"bad key {KEY}"}}).encode(), {})

    with FaultProxy(solve, fault) as proxy:
        more = ["--traffic.concurrency", "1", "--teacher.api-key-env", "OPENAI_API_KEY"]
        assert main(arguments(proxy, questions, output, *more)) == 1
    printed = capsys.readouterr()
    assert "[key]" in (output / "failures.jsonl").read_text() + printed.out
    assert KEY not in printed.out + printed.err
    assert not any(KEY.encode() in path.read_bytes() for path in output.iterdir())


def test_failures_are_told_and_asked_again(tmp_path, questions, capsys):
    output = tmp_path / "set"
    faults = {"number 2": "500", "number 3": "malformed JSON"}
    with FaultProxy(solve, lambda body, attempt: faults.get(body["messages"][-1]["content"][:8])) as proxy:
        assert main(arguments(proxy, questions, output, "--traffic.attempts", "2")) == 1
        out = capsys.readouterr().out
        assert "failed for: status 500" in out and "failed for: malformed answer" in out
        assert "to go on: mind data generate --output" in out
        failures = [json.loads(line) for line in (output / "failures.jsonl").read_text().splitlines()]
        assert {failure["id"] for failure in failures} == {"q2", "q3"} and len(failures) == 4
        faults.clear()
        assert main(arguments(proxy, questions, output)) == 0
        assert set(proxy.answered.values()) == {1}
    assert len(list(load_responses(output / "responses.jsonl"))) == 12
    assert not (output / "failures.jsonl").read_text()


def test_a_budget_ends_it_and_counts_earlier_starts(tmp_path, questions, capsys):
    output = tmp_path / "set"
    with FaultProxy(solve) as proxy:
        for _ in range(2):
            assert main(arguments(proxy, questions, output, "--budget.requests", "5")) == 1
            assert proxy.attempts.total() == 5
    assert "stopped: the budget is used up" in capsys.readouterr().out


def test_prices_from_a_file(tmp_path, questions, capsys):
    file = tmp_path / "config.json"
    with FaultProxy(solve) as proxy:
        file.write_text(
            json.dumps(
                {
                    "output": str(tmp_path / "set"),
                    "questions": {"path": str(questions)},
                    "prices": {"m": [1.0, 100.0]},
                    "teacher": {"model": "m", "base_url": proxy.url},
                    "perspectives": ["socratic"],
                    "budget": {"cost": 1},
                }
            )
        )
        assert main(["generate", "--config", str(file)]) == 0
    assert f"{6 * (10 * 1 + 5 * 100) / 1e6:.4f}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--teacher.temperature", "0.1"], "sampling parameter"),
        (["--teacher.model", "n"], "another request"),
        (["--perspectives", "socratic"], "not asked for"),
        (["--questions.limit", "2"], "not asked for"),
    ],
)
def test_a_folder_with_other_answers_is_refused(tmp_path, questions, capsys, change, message):
    output = tmp_path / "set"
    with FaultProxy(solve) as proxy:
        assert main(arguments(proxy, questions, output)) == 0
        before = {path.name: path.read_bytes() for path in output.iterdir()}
        assert main(arguments(proxy, questions, output, *change)) == 2
        assert proxy.attempts.total() == 12
    error = capsys.readouterr().err
    assert message in error and "name a new --output" in error
    assert {path.name: path.read_bytes() for path in output.iterdir()} == before


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"teacher": {}}, 'teacher: "model" is missing'),
        ({"teacher": {"model": 3}}, '"model" is 3: expected a string'),
        ({"samples": "two"}, '"samples" is "two"'),
        ({"nonsense": 1}, "unknown field nonsense"),
        ({"prices": {"m": [1]}}, '"prices" holds [1]: expected a list of 2'),
        ({"budget": {"cost": 5}}, "needs the price"),
        ({"perspectives": ["socratic", "socratic"]}, "perspectives names socratic twice"),
    ],
)
def test_bad_configurations_are_named(tmp_path, questions, capsys, values, message):
    file = tmp_path / "config.json"
    file.write_text(
        json.dumps(
            {"output": str(tmp_path / "set"), "questions": {"path": str(questions)}, "teacher": {"model": "m"}} | values
        )
    )
    assert main(["generate", "--config", str(file)]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "set").exists()


def test_killed_at_any_answer_and_started_again(tmp_path, questions):
    """SIGKILL from the server's side, as the answer of one request is under way; with faults on the way."""
    output = tmp_path / "set"
    kill_at = iter([3, 4, 7])
    state = {"left": next(kill_at), "process": None}

    def backend(body):
        state["left"] -= 1
        if state["left"] == 0 and state["process"] is not None:
            state["process"].kill()
        return solve(body)

    def fault(body, attempt):
        return FAULTS[(len(body["messages"][-1]["content"]) + attempt) % 2] if attempt == 1 else None

    with FaultProxy(backend, fault) as proxy:
        command = [sys.executable, "-m", "mind", *arguments(proxy, questions, output, "--traffic.concurrency", "2")]
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
        codes = []
        while not codes or codes[-1] == -9:
            state["process"] = subprocess.Popen(
                command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
            )
            _, errors = state["process"].communicate(timeout=120)
            codes.append(state["process"].returncode)
            state["left"] = next(kill_at, 10**6)
        assert codes == [-9, -9, -9, 0], errors
        # An answer that was under way when the process died is the most that a kill may cost: two at a time.
        assert all(count <= 4 for count in proxy.answered.values()) and proxy.answered.total() <= 12 + 3 * 2
    assert len({stored.key for stored in load_responses(output / "responses.jsonl")}) == 12


# A job in the background ignores SIGINT, and so would its children.
INTERRUPTIBLE = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from mind.cli import main
sys.exit(main())
"""


def test_ctrl_c_keeps_what_has_come(tmp_path, questions):
    output = tmp_path / "set"
    state = {"left": 5, "process": None}

    def backend(body):
        state["left"] -= 1
        if state["left"] == 0:
            state["process"].send_signal(signal.SIGINT)
            time.sleep(0.5)  # the answer under way is too late
        return solve(body)

    with FaultProxy(backend) as proxy:
        command = [
            sys.executable,
            "-c",
            INTERRUPTIBLE,
            *arguments(proxy, questions, output, "--traffic.concurrency", "1"),
        ]
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
        state["process"] = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        _, errors = state["process"].communicate(timeout=120)
        assert state["process"].returncode == 130 and b"mind: interrupted" in errors and b"Traceback" not in errors
        assert len(list(load_responses(output / "responses.jsonl"))) == 4
        assert main(arguments(proxy, questions, output)) == 0
    assert len(list(load_responses(output / "responses.jsonl"))) == 12


def test_the_worst_case_is_held_back():
    request = next(teacher_requests([QUESTION], load_prompts(("socratic",), None), config()))
    spending = Spending(BudgetConfig(requests=2), None)
    assert spending.reserve(request) and spending.reserve(request) and not spending.reserve(request)
    spending.release(request)
    assert spending.reserve(request)
