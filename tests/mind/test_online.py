"""The client of OpenAI's chat completions against a server on loopback that fails in every way that servers do."""

from __future__ import annotations

import gzip
import json
import socket
import threading
import time

import pytest
from fault_proxy import FAULTS, FaultProxy, chat_answer, http_date

from mind.errors import MindError
from mind.records import Key, Response
from mind.teacher import online
from mind.teacher.completion import Problem
from mind.teacher.config import BudgetConfig, ModelConfig, TrafficConfig
from mind.teacher.online import OnlineEngine
from mind.teacher.requests import Failure, Wasted, chat_request
from mind.teacher.spending import BUDGET_USED_UP, Spending, worst_case

KEY = "sk-test-0123456789"
PATIENT = {"first_wait_seconds": 0.02, "timeout_seconds": 20.0}


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def echo(body: bytes) -> bytes:
    return chat_answer("about " + json.loads(body)["messages"][-1]["content"])


def make_requests(count, url, **options):
    teacher = ModelConfig("m", **{"base_url": url, "max_tokens": 7, "api_key_env": "OPENAI_API_KEY"} | options)
    return teacher, [
        chat_request(teacher, Key(f"q{n}", "socratic", 0), ({"role": "user", "content": f"question {n}"},))
        for n in range(count)
    ]


def answer(proxy, count=1, budget=None, price=None, traffic=None, **options):
    """The outcomes of `count` requests to `proxy`, by question, and the engine."""
    teacher, requests = make_requests(count, proxy.url, **options)
    spending = Spending(budget or BudgetConfig(), price)
    engine = OnlineEngine(teacher, TrafficConfig(**PATIENT | (traffic or {})), spending)
    stored = []
    engine.run(requests, stored.extend)
    ended = [outcome for outcome in stored if not isinstance(outcome, Wasted)]
    outcomes = {outcome.key.question: outcome for outcome in ended}
    assert len(outcomes) == len(ended), "an outcome came twice"
    assert spending.under_way == 0
    return outcomes, engine, spending


def test_an_answer_is_kept_whole():
    with FaultProxy(lambda body: chat_answer("so\n#### 4", "length", (12, 7), reasoning_content="hm")) as proxy:
        outcomes, _, spending = answer(proxy)
    response = outcomes["q0"]
    assert (response.text, response.finish_reason, response.model) == ("so\n#### 4", "length", "served-model")
    assert (response.prompt_tokens, response.completion_tokens, response.attempts) == (12, 7, 1)
    assert response.reasoning == "hm"
    assert response.seconds > 0 and response.created.endswith("Z")
    assert spending.usage.requests == 1


def test_what_is_sent():
    bodies = []

    def backend(body):
        bodies.append(json.loads(body))
        return echo(body)

    with FaultProxy(backend) as proxy:
        answer(
            proxy,
            temperature=0.3,
            top_p=None,
            seed=5,
            extra_body='{"chat_template_kwargs": {"thinking": true}}',
            token_limit_name="max_completion_tokens",
        )
        assert proxy.keys == {f"Bearer {KEY}"}
    (body,) = bodies
    assert body["model"] == "m" and body["messages"] == [{"role": "user", "content": "question 0"}]
    assert body["temperature"] == 0.3 and body["max_completion_tokens"] == 7 and isinstance(body["seed"], int)
    assert body["chat_template_kwargs"] == {"thinking": True}
    assert not {"top_p", "max_tokens", "n"} & body.keys()


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("429 with Retry-After", "status 429"),
        ("500", "status 500"),
        ("closed connection", "connection lost"),
        ("half a body", "connection lost"),
        ("malformed JSON", "malformed answer"),
        ("empty choice", "empty answer"),
        ((200, b"[]", {}), "malformed answer"),
        ((200, b'{"choices": [7]}', {}), "malformed answer"),
        ((200, b'{"choices": []}', {}), "empty answer"),
        ((200, b"\xff", {}), "malformed answer"),
        ((408, b"", {}), "status 408"),
        ((503, b"", {"Retry-After": "nonsense"}), "status 503"),
    ],
)
def test_a_passing_fault_costs_another_attempt(fault, reason):
    with FaultProxy(echo, lambda body, attempt: fault if attempt == 1 else None) as proxy:
        outcomes, engine, _ = answer(proxy)
    assert outcomes["q0"].text == "about question 0" and outcomes["q0"].attempts == 2
    assert engine.retries == {reason: 1} and engine.stopped is None


def test_a_body_without_text_is_told_as_empty():
    with FaultProxy(echo, lambda body, attempt: (200, b"", {})) as proxy:
        outcomes, _, _ = answer(proxy, traffic={"attempts": 1})
    assert outcomes["q0"].detail == "the body: is empty: expected JSON"


def test_a_stall_ends_at_the_time_out():
    with FaultProxy(echo, lambda body, attempt: "stall" if attempt == 1 else None) as proxy:
        started = time.monotonic()
        outcomes, engine, _ = answer(proxy, traffic={"timeout_seconds": 0.5})
    assert time.monotonic() - started < 15
    assert outcomes["q0"].attempts == 2 and engine.retries == {"time-out": 1}


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault not in ("429 with Retry-After", "stall")])
def test_attempts_are_bounded(fault):
    with FaultProxy(echo, lambda body, attempt: fault) as proxy:
        outcomes, engine, _ = answer(proxy, traffic={"attempts": 3})
        assert proxy.attempts.total() == 3
    assert isinstance(outcomes["q0"], Failure) and outcomes["q0"].attempts == 3
    assert engine.retries.total() == 2


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("status", [200, 500])
def test_a_reply_that_is_too_long_is_a_failed_request(status, compressed, monkeypatch):
    """A compressed one counts as what it becomes; what it may have cost counts, too."""
    monkeypatch.setattr(online, "MAX_REPLY_BYTES", 100_000)
    body = chat_answer("x" * 200_000)
    body, headers = (gzip.compress(body), {"Content-Encoding": "gzip"}) if compressed else (body, {})
    _, requests = make_requests(1, "http://127.0.0.1:1/v1")
    with FaultProxy(echo, lambda *_: (status, body, headers)) as proxy:
        outcomes, engine, spending = answer(proxy)
        assert proxy.attempts.total() == 1
    failure = outcomes["q0"]
    assert isinstance(failure, Failure) and failure.reason == "reply too long"
    assert failure.detail == "the body is longer than 100,000 bytes, of which the rest was not read"
    usage = spending.usage
    assert usage.requests == 0 and usage.prompt_tokens + usage.completion_tokens == sum(worst_case(requests[0]))
    assert engine.stopped is None and not engine.retries


def test_a_reply_of_the_largest_size_is_an_answer(monkeypatch):
    body = chat_answer("x" * 200_000)
    monkeypatch.setattr(online, "MAX_REPLY_BYTES", len(body))
    with FaultProxy(lambda _: body) as proxy:
        outcomes, _, _ = answer(proxy)
    assert len(outcomes["q0"].text) == 200_000


@pytest.mark.parametrize("header", [lambda: "1", lambda: http_date(3)], ids=["seconds", "date"])
def test_retry_after_is_waited_for_by_all(header):
    times = []

    def fault(body, attempt):
        times.append(time.monotonic())
        return (429, b"", {"Retry-After": header()}) if len(times) == 1 else None

    with FaultProxy(echo, fault) as proxy:
        outcomes, _, _ = answer(proxy, 6, traffic={"concurrency": 1})
    assert len(outcomes) == 6
    assert times[1] - times[0] >= 0.9


def test_a_wait_that_is_too_long_ends_the_job():
    with FaultProxy(echo, lambda body, attempt: (429, b"", {"Retry-After": "3600"})) as proxy:
        outcomes, engine, _ = answer(proxy, 5, traffic={"concurrency": 2})
        assert proxy.attempts.total() <= 2
    assert not outcomes and "wait for 3600 s" in engine.stopped


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (401, b'{"error": {"message": "Incorrect API key: sk-test-0123456789"}}'),
        (404, b"no such model"),
        (429, b'{"error": {"message": "pay", "code": "insufficient_quota"}}'),
    ],
)
def test_what_no_request_can_pass_ends_the_job(status, body):
    with FaultProxy(echo, lambda *_: (status, body, {})) as proxy:
        outcomes, engine, _ = answer(proxy, 50, traffic={"concurrency": 2})
        assert proxy.attempts.total() <= 2
    assert not outcomes and engine.stopped
    assert KEY not in engine.stopped


def test_a_request_that_the_server_rejects_fails_alone():
    with FaultProxy(
        echo,
        lambda body, attempt: (
            (400, b'{"error": {"message": "too long"}}', {}) if body["messages"][0]["content"].endswith("3") else None
        ),
    ) as proxy:
        outcomes, engine, _ = answer(proxy, 6)
        assert proxy.attempts.total() == 6
    assert isinstance(outcomes["q3"], Failure)
    assert outcomes["q3"].reason == "status 400" and "too long" in outcomes["q3"].detail
    assert sum(isinstance(outcome, Response) for outcome in outcomes.values()) == 5
    assert engine.stopped is None


def test_a_filtered_answer_is_not_asked_for_again():
    with FaultProxy(lambda body: chat_answer("", "content_filter")) as proxy:
        outcomes, _, _ = answer(proxy)
        assert proxy.attempts.total() == 1
    assert outcomes["q0"].reason == "refused by the content filter"


def test_a_dead_server_ends_the_job():
    with FaultProxy(echo, lambda *_: "500") as proxy:
        outcomes, engine, _ = answer(proxy, 200, traffic={"attempts": 1, "stop_after_failures": 5, "concurrency": 2})
        assert proxy.attempts.total() <= 7
    assert 5 <= len(outcomes) <= 7 and "status 500" in engine.stopped


def test_a_server_that_is_not_there_yet_ends_the_job_at_once():
    """A job that has not begun cannot be lost, and waiting would hide a wrong URL."""
    with FaultProxy(echo) as proxy:
        pass
    outcomes, engine, _ = answer(proxy, 3, traffic={"first_wait_seconds": 600})
    assert outcomes == {} and not engine.retries
    assert engine.stopped.startswith(f"{proxy.url}: connection refused: [Errno 111]")
    assert engine.stopped.endswith("start the server there, or name another by --teacher.base-url")


def test_a_host_that_is_not_known_ends_the_job_at_once(monkeypatch):
    def unknown(*_, **__):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with FaultProxy(echo) as proxy:
        proxy.url = "https://nowhere.example/v1"
        _, engine, _ = answer(proxy, 2, traffic={"first_wait_seconds": 600})
    assert engine.stopped.startswith(f"{proxy.url}: unknown host: ") and not engine.retries


def test_nobody_listening_any_more(caplog, monkeypatch):
    monkeypatch.setattr(OnlineEngine, "_heard", property(lambda _: True, lambda *_: None), raising=False)
    with FaultProxy(echo) as proxy:
        pass
    outcomes, engine, _ = answer(proxy, 3, traffic={"attempts": 2, "stop_after_failures": 3})
    assert {outcome.reason for outcome in outcomes.values()} == {"connection refused"}
    assert f"3 requests in a row to {proxy.url} had no answer, the last for: connection refused: " in engine.stopped
    assert "[Errno 111]" in engine.stopped
    (told,) = [record.message for record in caplog.records if "trying again" in record.message]  # not once each
    assert proxy.url in told and "[Errno 111]" in told


def test_concurrency_is_bounded_and_used():
    barrier = threading.Barrier(4, timeout=20)

    def backend(body):
        barrier.wait()  # passes only where four are under way at once
        return echo(body)

    with FaultProxy(backend) as proxy:
        outcomes, _, _ = answer(proxy, 12, traffic={"concurrency": 4})
        assert proxy.most_at_once == 4
    assert len(outcomes) == 12


def test_every_fault_at_once_loses_and_repeats_nothing():
    """Each request meets two faults of the seven before it passes; a stall is left by time-out."""

    def fault(body, attempt):
        number = int(body["messages"][0]["content"].split()[1])
        return FAULTS[(number + attempt) % len(FAULTS)] if attempt <= 2 else None

    with FaultProxy(echo, fault) as proxy:
        outcomes, engine, spending = answer(proxy, 42, traffic={"timeout_seconds": 4.0, "concurrency": 14})
        assert set(proxy.answered.values()) == {1} and len(proxy.answered) == 42
    assert all(outcome.text == f"about question {outcome.key.question[1:]}" for outcome in outcomes.values())
    assert len(outcomes) == 42 and {outcome.attempts for outcome in outcomes.values()} == {3}
    assert engine.retries.total() == 84
    assert spending.usage.requests == 42


def test_an_answer_that_is_sent_twice_is_not_taken_for_the_next_ones():
    """Neither all of it, with its head, nor its body alone, which would spoil the next answer."""
    body, head = chat_answer("twice"), "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n"
    length = {"Content-Length": str(len(body))}
    for again in (head.format(len(body)).encode() + body, body):
        with FaultProxy(echo, lambda asked, _, again=again: _sent_twice(asked, body + again, length)) as proxy:
            outcomes, engine, _ = answer(proxy, 3, traffic={"concurrency": 1})
            assert [outcomes[f"q{n}"].text for n in range(3)] == ["twice", "about question 1", "about question 2"]
            assert proxy.attempts.total() == 3 and not engine.retries


def _sent_twice(asked, body, length):
    return (200, body, length) if asked["messages"][-1]["content"] == "question 0" else None


def test_a_budget_is_not_exceeded():
    _, requests = make_requests(1, "http://127.0.0.1:1/v1")
    most = sum(worst_case(requests[0]))
    with FaultProxy(lambda body: chat_answer("yes", usage=(20, 7))) as proxy:
        outcomes, engine, spending = answer(proxy, 50, BudgetConfig(tokens=10 * 27 + most - 1), (1.0, 2.0))
    used = spending.usage.prompt_tokens + spending.usage.completion_tokens
    assert engine.stopped == BUDGET_USED_UP
    assert len(outcomes) == 10 and used == 270
    assert spending.usage.cost == pytest.approx(10 * (20 * 1.0 + 7 * 2.0) / 1e6)


def test_a_budget_of_money_and_of_requests():
    with FaultProxy(lambda body: chat_answer("yes", usage=(20, 7))) as proxy:
        outcomes, _, spending = answer(proxy, 50, BudgetConfig(cost=500e-6), (1.0, 2.0))
        assert 0 < len(outcomes) < 50 and 400e-6 < spending.usage.cost <= 500e-6
        outcomes, _, _ = answer(proxy, 50, BudgetConfig(requests=3))
        assert len(outcomes) == 3


def test_tokens_that_nobody_counted_are_the_worst_case():
    with FaultProxy(lambda body: chat_answer("yes", usage=None)) as proxy:
        outcomes, _, spending = answer(proxy, 2)
    assert outcomes["q0"].prompt_tokens is None
    assert spending.usage.uncounted == 2 and spending.usage.completion_tokens == 14


def test_a_full_disk_is_not_swallowed_and_asks_no_more():
    def store(outcomes):
        raise OSError("no space left on device")

    with FaultProxy(echo) as proxy:
        teacher, requests = make_requests(200, proxy.url)
        engine = OnlineEngine(teacher, TrafficConfig(concurrency=2), Spending(BudgetConfig(), None))
        with pytest.raises(OSError, match="no space left"):
            engine.run(requests, store)
        assert proxy.attempts.total() < 200


def test_a_key_is_needed_by_the_default_endpoint_alone(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(MindError, match="OPENAI_API_KEY"):
        OnlineEngine(ModelConfig("m"), TrafficConfig(), Spending(BudgetConfig(), None))
    with FaultProxy(echo) as proxy:
        assert isinstance(answer(proxy, api_key_env=None)[0]["q0"], Response)
        assert not any(KEY in str(key) for key in proxy.keys)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after": "-3"}, 0.0),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": f"Wed, 21 Oct {'9' * 20} 07:28:00 GMT"}, None),
        ({"retry-after": f"Wed, 21 Oct 2099 07:28:00 +{'9' * 14}"}, None),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0),
        # a clock that differs from the one here by years
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT", "date": "Wed, 21 Oct 2015 07:27:30 GMT"}, 30.0),
        ({"retry-after": "Wed, 21 Oct 2099 07:28:00 GMT", "date": "Wed, 21 Oct 2099 07:28:02 GMT"}, 0.0),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT", "date": "today"}, 0.0),
        ({"retry-after-ms": "1500"}, 1.5),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after-ms": "soon", "retry-after": "9"}, 9.0),
    ],
)
def test_retry_after(headers, seconds):
    assert online.retry_after(headers) == seconds


@pytest.mark.parametrize("begin", ["data: {}", ": OPENROUTER PROCESSING", "event: message", "id: 1", "\n\nretry: 10"])
def test_a_stream_is_known_by_its_first_line_too(begin):
    with pytest.raises(Problem) as error:
        online._parsed(f"{begin}\n\n".encode(), {"content-type": "application/json"})
    assert (error.value.reason, error.value.retry) == ("streamed answer", False)
    assert error.value.tokens == (None, None)  # it was paid for, as far as anybody can tell
