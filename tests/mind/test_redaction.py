"""Secrets that somebody types on a command line: no file that keeps the command holds them."""

from __future__ import annotations

import shlex
import time

import pytest

from mind.provenance import command
from mind.redaction import without_secrets

SECRET = "s3cr3t-0123456789abcdef"


@pytest.mark.parametrize(
    "typed",
    [
        f"--teacher.headers {SECRET}",
        f"--teacher.headers 'X-Team: a' 'X-Other: {SECRET}'",
        f"--teacher.headers={SECRET}",
        f"--teacher.api-key {SECRET}",
        f"--api_key={SECRET}",
        f"--hub-token {SECRET}",
        f"--x.password '{SECRET} and more'",
        f"--model https://user:{SECRET}@example.org/v1",
        f"--model https://{SECRET}@example.org/v1",
        f"--model 'https://example.org/v1?a=1&access_token={SECRET}'",
        f"--model=https://user:{SECRET}@example.org",
        f'--teacher.extra-body \'{{"api_key": "{SECRET}", "n": 1}}\'',
        f'--teacher.extra-body \'{{"headers": {{"Authorization": "Bearer {SECRET}"}}}}\'',
        f"--set api_key={SECRET}",
        f"--set 'Authorization: Bearer {SECRET}'",
        f"--note 'Bearer {SECRET}'",
        f"--note sk-proj-{SECRET}",
        "--note hf_s3cr3tABCDEFGHIJKLMNOPQRSTUVWXYZabcd",
        "ghp_s3cr3t0123456789abcdefghijklmnopqrst",
        f"--set OPENAI_KEY={SECRET}",
        f"--set accessToken={SECRET}",
        f'--x \'{{"accessToken": "{SECRET}"}}\'',
        f'--x \'{{"headers": {{"X-Auth": "{SECRET}"}}}}\'',
        "--x '{\"password\": s3cr3t}'",
        f"--x \"{{'password': '{SECRET}'}}\"",
        f'--x \'"{{\\"api_key\\": \\"{SECRET}\\"}}"\'',
    ],
)
def test_a_secret_is_not_kept(typed, monkeypatch):
    monkeypatch.setattr("sys.argv", ["/home/me/bin/mind", "train", *shlex.split(typed), "--train.seed", "3"])
    kept = command()
    assert "s3cr3t" not in kept and "REDACTED" in kept
    assert kept.startswith("mind train ") and kept.endswith(" --train.seed 3")


def test_the_rest_of_a_url_and_of_an_object_stays():
    words = [f"http://me:{SECRET}@host/v1?key={SECRET}&n=1", f'{{"n": 1, "api_key": "{SECRET}", "m": 2}}']
    assert without_secrets(words) == [
        "http://REDACTED@host/v1?key=REDACTED&n=1",
        '{"n": 1, "api_key": "REDACTED", "m": 2}',
    ]


def test_what_is_no_secret_stays():
    typed = (
        "train --output runs/token-study --data.train a@b/keys.jsonl --train.tokens-per-step 4096 "
        "--teacher.api-key-env OPENAI_API_KEY --teacher.base-url https://example.org:8000/v1 --budget.tokens 100 "
        "--teacher.token-limit-name max_completion_tokens --train.trained-tokens=1e9 --student.model org/sk-small "
        '--teacher.extra-body \'{"max_tokens": 3, "chat_template_kwargs": {"thinking": true}}\' --before "predict: "'
    )
    assert without_secrets(shlex.split(typed)) == shlex.split(typed)


@pytest.mark.parametrize(
    "word",
    [
        "hf-internal-testing/tiny-random-LlamaForCausalLM",
        "runs/hf_smollm2_135m_instruct_run",
        "data/pk_word_problems_train.jsonl",
        "sk-my-very-long-model-name-here",
        "multi-token=runs/x/student",
        "runs/token=3/x.jsonl",
        "Password: give the answer",
        "Basic Step",
        '{"stop": ["token: end"], "max": 5}',
    ],
)
def test_names_and_texts_stay_so_that_the_command_can_be_repeated(word):
    assert without_secrets(["--x", word]) == ["--x", word]


@pytest.mark.parametrize(
    "word", ["." * 100_000, "-a" * 50_000, '"' + "a." * 50_000, "'a" * 50_000, "sk-" + "a-" * 50_000]
)
def test_a_long_word_takes_no_time(word):
    begin = time.process_time()
    assert without_secrets(["--x", word]) == ["--x", word]
    assert time.process_time() - begin < 2
