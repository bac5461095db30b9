"""No program reaches for another machine unless it is told to, which an audit hook of Python sees."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import only_this_machine

PROGRAM = """
import json, sys
seen = []

def watch(event, arguments):
    if event == "socket.getaddrinfo" or event == "socket.connect" and isinstance(arguments[1], tuple):
        seen.append([event, repr(arguments)])

sys.addaudithook(watch)
{call}
sys.exit(json.dumps(seen) if seen else 0)
"""
# HF_HUB_OFFLINE, which the tests set for themselves, would hide what a user without it sees.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
ROOT = str(Path(__file__).parent.parent)


def run(call: str, place: Path) -> None:
    environment = ENVIRONMENT | {"PYTHONPATH": f"{ROOT}:{ROOT}/tests/mind", "HOME": str(place)}
    command = [sys.executable, "-c", PROGRAM.format(call=call)]
    ended = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr[-3000:]


def test_the_losses_and_their_command_reach_for_no_machine(tmp_path):
    run(
        "from mind_kernels.__main__ import main; import mind_kernels.integrations.transformers; main(['info'])",
        tmp_path,
    )


def test_a_run_from_data_to_report_reaches_for_no_machine(tmp_path):
    """Features, training, generation, evaluation, report, with everything that is imported on the way."""
    run(
        """
from pathlib import Path
from test_replicas import words_of, write_questions
from mind.cli import main
write_questions(Path("."))
assert main(words_of("run", "--train.report-to", "tensorboard")) == 0
assert main(["report", "run"]) == 0
""",
        tmp_path,
    )


@pytest.mark.parametrize(
    ("event", "arguments"),
    [("socket.connect", (None, ("93.184.216.34", 443))), ("socket.getaddrinfo", ("huggingface.co", 443, 0, 0, 0))],
)
def test_the_guard_of_the_tests_sees_another_machine(event, arguments):
    with pytest.raises(AssertionError, match="another machine"):
        only_this_machine(event, arguments)


def test_the_guard_lets_this_machine_through():
    for host in ("127.0.0.1", "::1", "localhost", None):
        only_this_machine("socket.getaddrinfo", (host, 80, 0, 0, 0))
    only_this_machine("socket.connect", (None, "/run/some.socket"))
