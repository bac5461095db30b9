"""Generation, judging and filtering against a real server: `transformers serve` with SmolLM2-135M on loopback."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest
from fault_proxy import FAULTS, FaultProxy, forward_to

from mind.cli import main
from mind.config import EMBEDDED_STUDENT
from mind.data.questions import load_questions, save_questions
from mind.perspectives import PAPER_PERSPECTIVES
from mind.records import Question
from mind.teacher.journal import load_responses
from tests.forked import free_port

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
SERVE = "import sys; from transformers.cli.transformers import main; sys.exit(main())"
QUESTIONS, ANSWERS = 8, 64


@pytest.fixture(scope="module")
def server(smollm2, tmp_path_factory):
    """The URL of the endpoint and the name of its model."""
    _, _, cache = smollm2
    model = cache / EMBEDDED_STUDENT
    port = free_port()
    log = tmp_path_factory.mktemp("server") / "log"
    # 64 blocks of the cache are 0.75 GiB; batches make it three times as fast.
    command = [
        sys.executable,
        "-c",
        SERVE,
        "serve",
        str(model),
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--device",
        "cpu",
        "--continuous-batching",
        "--cb-num-blocks",
        "64",
        "--cb-max-batch-tokens",
        "1024",
    ]
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=output, stderr=output)
    try:
        wait_for(f"http://127.0.0.1:{port}/health", process, log)
        yield f"http://127.0.0.1:{port}/v1", str(model)
    finally:
        process.kill()
        process.wait()


def wait_for(url, process, log):
    deadline = time.monotonic() + 180
    while True:
        try:
            with urlopen(url, timeout=5) as answer:
                assert answer.status == 200
                return
        except (URLError, OSError):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.5)


def write_inputs(folder, count):
    """Questions and prompts of a few words: the server reads 130 tokens a second on one core."""
    questions = [Question(f"sum-{n}", f"What is {n} + {n + 3}?", str(2 * n + 3)) for n in range(count)]
    save_questions(questions, folder / "questions.jsonl")
    (folder / "prompts.json").write_text(json.dumps({name: f"Be {name}." for name in PAPER_PERSPECTIVES}))


def arguments(folder, url, model, *more):
    return [
        "generate",
        "--output",
        str(folder / "set"),
        "--questions.path",
        str(folder / "questions.jsonl"),
        "--prompts",
        str(folder / "prompts.json"),
        "--teacher.model",
        model,
        "--teacher.base-url",
        url,
        "--teacher.max-tokens",
        "4",
        *more,
    ]


def lines(path):
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.mark.nightly
def test_generate_through_two_kills_then_judge_and_filter(server, tmp_path):
    write_inputs(tmp_path, QUESTIONS)
    command = [sys.executable, "-m", "mind", *arguments(tmp_path, *server)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    stored = tmp_path / "set" / "responses.jsonl"
    for kill_at in (12, 36):
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        while lines(stored) < kill_at:
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    kept = stored.read_bytes()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert stored.read_bytes().startswith(kept[: kept.rfind(b"\n") + 1])
    responses = list(load_responses(stored))
    questions = load_questions(tmp_path / "questions.jsonl")
    assert {stored.key for stored in responses} == {(q.id, name, 0) for q in questions for name in PAPER_PERSPECTIVES}
    assert len(responses) == ANSWERS and all(0 < response.completion_tokens <= 4 for response in responses)

    assert main(["judge", str(tmp_path / "set")]) == 0
    assert lines(tmp_path / "set" / "judged.jsonl") == ANSWERS
    # Answers of four tokens are cut off: no question keeps two, and the report says why.
    assert main(["filter", str(tmp_path / "set"), "--output", str(tmp_path / "train.jsonl")]) == 2
    counts = json.loads((tmp_path / "train.card.json").read_text())["counts"]
    assert counts["read"] == ANSWERS == counts["kept"] + sum(counts["dropped"].values())
    assert counts["dropped"]["truncated"] + counts["dropped"]["wrong"] + counts["dropped"]["unparsed"] > 40
    assert lines(tmp_path / "train.dropped.jsonl") == ANSWERS - counts["kept"]
    assert (tmp_path / "train.report.html").is_file() and not (tmp_path / "train.jsonl").exists()


def test_faults_in_front_of_the_server(server, tmp_path, capsys):
    """Each request meets one fault of the seven, stalls of 30 s among them, before the server sees it."""
    url, model = server
    write_inputs(tmp_path, 2)
    order = {}

    def fault(body, attempt):
        number = order.setdefault(json.dumps(body["messages"]), len(order))
        return FAULTS[number % len(FAULTS)] if attempt == 1 else None

    with FaultProxy(forward_to(url), fault) as proxy:
        status = main(
            arguments(
                tmp_path,
                proxy.url,
                model,
                "--traffic.timeout-seconds",
                "12",
                "--traffic.concurrency",
                "8",
                "--traffic.attempts",
                "8",
            )
        )
        faults = proxy.faults
    out = capsys.readouterr().out
    assert status == 0, out
    assert set(FAULTS) <= faults.keys()
    assert len({stored.key for stored in load_responses(tmp_path / "set" / "responses.jsonl")}) == 16
    for reason in ("status 429", "status 500", "connection lost", "time-out", "malformed answer", "empty answer"):
        assert f"repeated for: {reason}" in out
