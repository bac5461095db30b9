"""Keys: what may be one, who gets it, and that none is written, in whatever form a server or a program repeats it."""

from __future__ import annotations

import html
import json
import os
from urllib.parse import quote

import pytest
from fault_proxy import FaultProxy, chat_answer
from sample_records import make_response

from mind.cli import main
from mind.data.questions import save_questions
from mind.errors import MindError
from mind.records import Question
from mind.teacher.config import ModelConfig
from mind.teacher.journal import Journal
from mind.teacher.keys import endpoint_key, hidden_from, without_key

KEY = "sk-test-ab/cd+ef'gh\"ij\\kl&mn"
VARIABLE = "A_KEY"
LOCAL = "http://127.0.0.1:1/v1"
QUESTION = Question("q", "2 + 2?", "4")


@pytest.fixture(autouse=True)
def no_other_key(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def key_of(monkeypatch, value, base_url=LOCAL):
    monkeypatch.setenv(VARIABLE, value)
    return endpoint_key(ModelConfig("m", base_url=base_url, api_key_env=VARIABLE))


@pytest.mark.parametrize("around", ["{}\n", "{}\r\n", " {}", "\t{} \n\n", "{}\u00a0", "\u2028{}"])
def test_white_space_around_a_key_is_none_of_it(monkeypatch, around):
    assert key_of(monkeypatch, around.format(KEY)) == KEY


@pytest.mark.parametrize("within", ["\n", "\r\n", "\t", " ", "\x1b", "\x7f", "é", "\u2014", "\ufeff", "\u200b"])
def test_what_cannot_stand_in_a_header_is_refused_and_not_shown(monkeypatch, within):
    with pytest.raises(MindError, match=rf"{VARIABLE} holds U\+[0-9A-F]{{4}}, which is") as error:
        key_of(monkeypatch, f"sk-secret{within}key")
    assert "secret" not in str(error.value) and str(error.value).isprintable()


@pytest.mark.parametrize("value", [None, "", " \n"])
def test_a_key_that_is_asked_for_must_be_there(monkeypatch, value):
    monkeypatch.delenv(VARIABLE, raising=False)
    if value is not None:
        monkeypatch.setenv(VARIABLE, value)
    with pytest.raises(MindError, match=f"the environment variable {VARIABLE} is not set or empty"):
        endpoint_key(ModelConfig("m", base_url=LOCAL, api_key_env=VARIABLE))


@pytest.mark.parametrize("given", ["sk-abc", "sk abc", "a$b", "1KEY", "", "kéy", "A_KEY\n"])
def test_a_key_in_the_place_of_the_variables_name_is_refused_and_not_shown(given):
    with pytest.raises(MindError, match="--teacher.api-key-env: expected the name of an environment variable") as error:
        ModelConfig("m", api_key_env=given)
    assert not given.strip() or given.strip() not in str(error.value)


def test_a_key_that_looks_like_a_variable_is_not_shown_either():
    with pytest.raises(MindError, match="the variable that --teacher.api-key-env names is not set") as error:
        endpoint_key(ModelConfig("m", base_url=LOCAL, api_key_env="gsk_abcdef123"))
    assert "abcdef" not in str(error.value)


@pytest.mark.parametrize(
    ("base_url", "gets"),
    [
        ("https://api.openai.com/v1", True),
        ("https://eu.api.openai.com/v1", True),
        ("http://api.openai.com/v1", False),
        ("https://openrouter.ai/api/v1", False),
        ("https://api.openai.com.evil.example/v1", False),
        ("https://evil.example/api.openai.com", False),
        ("https://notapi.openai.com/v1", False),
        ("http://127.0.0.1:8000/v1", False),
    ],
)
def test_openais_key_goes_to_openai_alone(monkeypatch, base_url, gets):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    assert endpoint_key(ModelConfig("m", base_url=base_url)) == (KEY if gets else None)


@pytest.mark.parametrize(
    "base_url",
    ["http://example.com/v1", "http://10.0.0.5:8000/v1", "http://gpu-3/v1", "http://127.0.0.1.example.com/v1",
     "http://api.openai.com/v1", "http://localhost.example.com/v1"],
)  # fmt: skip
def test_no_key_goes_over_plain_http_to_another_machine(monkeypatch, base_url):
    with pytest.raises(MindError, match="would be readable on the way; use https") as error:
        key_of(monkeypatch, KEY, base_url)
    assert KEY not in str(error.value)


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "127.9.9.9", "localhost", "[::1]:8000", "a.localhost"])
def test_this_machine_may_be_asked_over_http(monkeypatch, host):
    assert key_of(monkeypatch, KEY, f"http://{host}/v1") == KEY


@pytest.mark.parametrize(
    "base_url",
    [
        "https://me:secret@host/v1",
        "https://secret@host/v1",
        "https://:secret@host/v1",
        "https://host/v1?key=secret",
        "https://host/v1?",
        "https://host/v1#secret",
        "https://host/v1 secret",
        "https://host/v1\nsecret",
        "https://host/v1\x1b[31msecret",
        "https://host:secret/v1",
        "https://host:99999/secret",
        "http://[::1/secret",
        "https:///secret",
        "host/secret",
    ],
)
def test_a_url_that_may_hold_a_secret_or_is_none_is_refused_and_not_shown(base_url):
    with pytest.raises(MindError, match=r"^--teacher.base-url") as error:
        ModelConfig("m", base_url=base_url)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    "form",
    [str, repr, json.dumps, quote, lambda key: quote(key, safe=""), html.escape, lambda key: repr(key.encode()),
     lambda key: f"Illegal header value b'Bearer {key}'", lambda key: json.dumps(json.dumps(key))],
)  # fmt: skip
def test_a_key_is_cut_out_in_every_form(form):
    cut = without_key({"error": [f"bad key: {form(KEY)}!", 7], form(KEY): None}, KEY)
    assert "[key]" in cut["error"][0] and "test-ab" not in json.dumps(cut)


def test_nothing_is_cut_out_without_a_key():
    assert without_key({"a": ["none", None]}, None) == {"a": ["none", None]}


def test_other_endpoints_get_nothing_of_openais_variables(tmp_path, monkeypatch):
    for name in ("OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "OPENAI_ADMIN_KEY", "OPENAI_API_KEY"):
        monkeypatch.setenv(name, "sk-secret")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "Authorization: Bearer sk-secret\nX-Team: sk-secret")
    with hidden_from(LOCAL):
        assert not [name for name in os.environ if name.startswith("OPENAI_")]
    assert os.environ["OPENAI_ORG_ID"] == "sk-secret"
    with hidden_from("https://api.openai.com/v1"):
        assert os.environ["OPENAI_ORG_ID"] == "sk-secret"
    with FaultProxy(lambda _: chat_answer("#### 4")) as proxy:
        assert main(generate(proxy, tmp_path)) == 0
        assert proxy.keys == {"Bearer none"}
        assert "sk-secret" not in json.dumps(proxy.headers)


def generate(proxy, folder, *more):
    save_questions([QUESTION], folder / "q.jsonl")
    return ["generate", "--output", str(folder / "set"), "--questions.path", str(folder / "q.jsonl"),
            "--teacher.model", "m", "--teacher.base-url", proxy.url, "--perspectives", "socratic", "planning",
            "--traffic.concurrency", "1", "--traffic.first-wait-seconds", "0.01", "--traffic.attempts", "2",
            *more]  # fmt: skip


def everything_written(folder) -> str:
    return "".join(path.read_text() for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    "reply",
    [
        lambda key: (400, json.dumps({"error": {"message": f"bad key {key}"}}).encode(), {}),
        lambda key: (400, f"<html>bad key {html.escape(key)}".encode(), {}),
        lambda key: (200, json.dumps({"error": {"message": f"bad key {key!r}"}}).encode(), {}),
        lambda key: (200, f"bad key {key}".encode(), {}),
        lambda key: (200, chat_answer("", f"because of {key}"), {}),
        lambda key: (200, chat_answer(f"You sent {key}.\n#### 4", reasoning_content=key), {}),
    ],
)
def test_no_key_is_written_or_printed(tmp_path, monkeypatch, capsys, reply):
    """In failures, in answers, in judge's failures and replies, and on the terminal."""
    monkeypatch.setenv(VARIABLE, f"{KEY}\n")
    with FaultProxy(lambda _: b"", lambda *_: reply(KEY)) as proxy:
        main(generate(proxy, tmp_path, "--teacher.api-key-env", VARIABLE))
        assert proxy.keys == {f"Bearer {KEY}"}
        with Journal(tmp_path / "set" / "responses.jsonl") as journal:
            journal.append([make_response("q", "formal-symbolic", text="Who knows?")])
        main(["judge", str(tmp_path / "set"), "--model", "j", "--base-url", proxy.url, "--api-key-env", VARIABLE,
              "--traffic.first-wait-seconds", "0.01", "--traffic.attempts", "2"])  # fmt: skip
    printed = capsys.readouterr()
    written = everything_written(tmp_path) + printed.out + printed.err
    assert "[key]" in written and "test-ab" not in written


def test_a_faulty_key_stops_both_jobs_before_anything_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(VARIABLE, "sk-se\ncret")
    with FaultProxy(lambda _: chat_answer("#### 4")) as proxy:
        assert main(generate(proxy, tmp_path, "--teacher.api-key-env", VARIABLE)) == 2
        assert not (tmp_path / "set").exists()
        (tmp_path / "set").mkdir()
        save_questions([QUESTION], tmp_path / "set" / "questions.jsonl")
        with Journal(tmp_path / "set" / "responses.jsonl") as journal:
            journal.append([make_response("q", text="Who knows?")])
        before = sorted(tmp_path.rglob("*"))
        judge = ["judge", str(tmp_path / "set"), "--model", "j", "--base-url", proxy.url, "--api-key-env", VARIABLE]
        assert main(judge) == 2
        assert sorted(tmp_path.rglob("*")) == before and not proxy.attempts
    error = capsys.readouterr().err
    assert error.count("holds U+000A") == 2 and "cret" not in error and "Traceback" not in error


def test_who_got_no_key_is_told_how_to_send_one(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    unauthorized = (401, b'{"error": {"message": "who are you?"}}', {})
    with FaultProxy(lambda _: b"", lambda *_: unauthorized) as proxy:
        assert main(generate(proxy, tmp_path)) == 1
        assert proxy.keys == {"Bearer none"}
    out = " ".join(capsys.readouterr().out.split())
    assert "who are you?; no key was sent: name the environment variable that holds it by --teacher.api-key-env" in out


@pytest.mark.parametrize(
    "status, path, told",
    [
        (401, "/v1", f"the key came from the environment variable {VARIABLE}; OPTION-api-key-env names another one"),
        (403, "/v1", f"the key came from the environment variable {VARIABLE}; OPTION-api-key-env names another one"),
        (404, "", "OPTION-base-url usually ends in /v1, as in URL/v1"),
        (404, "/api/", "OPTION-base-url usually ends in /v1, as in URL/api/v1"),
        (404, "/v1", "OPTION-model is m; URL/v1/models lists what this server has"),
        (405, "", "OPTION-base-url usually ends in /v1, as in URL/v1"),
    ],
)
def test_who_is_refused_is_told_what_to_change(status, path, told, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(VARIABLE, KEY)
    page = (status, b"<html>" + b"nothing here " * 100, {})  # the advice comes after a page, too
    with FaultProxy(lambda _: b"", lambda *_: page) as proxy:
        url = proxy.url.removesuffix("/v1")
        words = generate(proxy, tmp_path, "--teacher.api-key-env", VARIABLE, "--teacher.base-url", url + path)
        assert main(words) == 1
        folder = tmp_path / "judged"
        folder.mkdir()
        save_questions([QUESTION], folder / "questions.jsonl")
        with Journal(folder / "responses.jsonl") as journal:
            journal.append([make_response("q", text="Who knows?")])
        assert main(["judge", str(folder), "--model", "m", "--base-url", url + path, "--api-key-env", VARIABLE]) == 1
    lines = capsys.readouterr().out.splitlines()
    stopped = [line for line in lines if line.startswith("stopped: ")]
    for line, option in zip(stopped, ("--teacher.", "--"), strict=True):
        assert line.endswith(told.replace("OPTION-", option).replace("URL", url))
    # the same command would be refused again
    again = [line.partition(": ")[0] for line in lines if line.startswith("to go on")]
    assert again == ["to go on once that is mended"] * 2


def test_a_redirect_takes_nothing_to_another_host(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(VARIABLE, KEY)
    with FaultProxy(lambda _: chat_answer("#### 4")) as other:
        moved = (307, b"", {"Location": f"{other.url.replace('127.0.0.1', 'localhost')}/chat/completions"})
        with FaultProxy(lambda _: b"", lambda *_: moved) as proxy:
            assert main(generate(proxy, tmp_path, "--teacher.api-key-env", VARIABLE)) == 1
            assert proxy.keys == {f"Bearer {KEY}"}
        assert not other.headers and not other.attempts
    out = " ".join(capsys.readouterr().out.split())
    assert f"redirects to {moved[2]['Location']}: set --teacher.base-url to that URL" in out
