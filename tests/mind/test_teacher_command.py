"""The command that asks a teacher: its data set, restarts, failures and budgets."""

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
from test_teacher import KEY, QUESTION, config

from mind.cli import main
from mind.teacher.config import BudgetConfig
from mind.teacher.journal import load_responses
from mind.teacher.requests import load_prompts, teacher_requests
from mind.teacher.spending import Spending


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


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
    assert f"next: mind data judge {output}" in out
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
        (["--teacher.temperature", "0.1"], "another request: teacher.temperature was 0.7 and is 0.1; name"),
        (
            ["--teacher.model", "n", "--traffic.attempts", "9"],
            "another request: teacher.model was m and is n; name",
        ),
        (["--perspectives", "socratic"], "not asked for: perspectives left out: planning; name"),
        (["--questions.limit", "2"], "not asked for: questions left out: q2, q3, q4, ... (4 in all); name"),
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


def test_what_changed_in_prompts_and_questions_is_told(tmp_path, questions, capsys):
    output, prompts = tmp_path / "set", tmp_path / "prompts.json"
    with FaultProxy(solve) as proxy:
        prompts.write_text('{"socratic": "Ask.", "planning": "Plan."}')
        assert main(arguments(proxy, questions, output, "--prompts", str(prompts))) == 0
        prompts.write_text('{"socratic": "Ask.", "planning": "Plan first."}')
        questions.write_text(questions.read_text().replace("number 3?", "number 3 ?!"))
        assert main(arguments(proxy, questions, output, "--prompts", str(prompts))) == 2
    told = "another request: perspectives changed: planning; questions changed: q3; name a new --output"
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("file", "text", "reason"),
    [
        ("generate.json", None, "no such file"),
        ("generate.json", "[]", "expected a JSON object, found []"),
        ("generate.json", '{"since": "a later version"}', "unknown field since: the fields are"),
        (
            "generate.json",
            '{"output": "x", "questions": {"path": "q"}, "teacher": {"model": "m"}, "samples": 0}',
            "samples is 0: expected 1 to 10,000",
        ),
        ("prompts.json", "3", "expected a JSON object, not int"),
        ("prompts.json", '["socratic"]', "expected a JSON object, not list"),
        ("prompts.json", '{"socratic": 3}', "the prompt of socratic is 3: expected a string"),
        ("questions.jsonl", '{"id": "q0"}', '"question" is missing; name a new --output'),
    ],
)
def test_other_answers_are_refused_whatever_the_records_of_the_folder_hold(
    tmp_path, questions, capsys, file, text, reason
):
    output = tmp_path / "set"
    with FaultProxy(solve) as proxy:
        assert main(arguments(proxy, questions, output)) == 0
        (output / file).unlink()
        if text is not None:
            (output / file).write_text(text)
        assert main(arguments(proxy, questions, output, "--teacher.temperature", "0.1")) == 2
        assert proxy.attempts.total() == 12
    error = capsys.readouterr().err
    assert f"another request: what has changed is not known, since {output}/{file}:" in error
    assert reason in error and error.endswith("; name a new --output\n") and "Traceback" not in error


def test_answers_that_no_record_explains_are_refused(tmp_path, questions, capsys):
    output = tmp_path / "set"
    with FaultProxy(solve) as proxy:
        assert main(arguments(proxy, questions, output)) == 0
        stored = output / "responses.jsonl"
        stored.write_text(stored.read_text().replace('"request": "', '"request": "f'))
        assert main(arguments(proxy, questions, output)) == 2
    told = "another request: generate.json and the files beside it do not say what has changed; name a new --output"
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"teacher": {}}, 'teacher: "model" is missing'),
        ({"teacher": {"model": 3}}, '"model" is 3: expected a string'),
        ({"samples": "two"}, '"samples" is "two"'),
        ({"nonsense": 1}, "unknown field nonsense"),
        ({"prices": {"m": [1]}}, '"prices" holds [1]: expected a list of 2'),
        ({"budget": {"cost": 5}}, "needs the price"),
        ({"perspectives": ["socratic", "socratic"]}, "perspectives: socratic named more than once"),
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
