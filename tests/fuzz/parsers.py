"""What reads texts that others wrote: any bytes give a result, or one error that says what is wrong, within seconds.

An error is a MindError, whose message names the file, or the Problem of a teacher's answer. Any other exception, a
message with control characters in it, and more than TIME_LIMIT seconds for one input are findings; a process that
computes for a minute on one input writes where and ends.
"""

from __future__ import annotations

import atexit
import faulthandler
import functools
import json
import logging
import os
import re
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

from mind.answer_line import answer_part, rationale_of, without_suffix
from mind.config import MindConfig
from mind.data.questions import load_questions
from mind.data.rows import keyed_records
from mind.errors import MindError
from mind.experiment.plan import PLANS, located, read_plan
from mind.grading.answers import extract_answer, is_correct, judge_text
from mind.grading.grade import grade_file
from mind.records import Grade, Key, Question, Response, Verdict
from mind.teacher.completion import Problem, read_completion
from mind.teacher.journal import Journal, load_responses, load_wasted
from mind.teacher.judge import verdict_of_reply
from mind.teacher.online import _parsed, retry_after
from mind.teacher.requests import Wasted, own_prompts
from mind.typed_json import load_json, row_of
from tests.fuzz.choices import Choices
from tests.fuzz.mutations import mutated_bytes, mutated_json, mutated_text

TIME_LIMIT = 2.0  # seconds of this process's own time, for 10 kB
HANGS = 60  # seconds of that time
MEMORY = "/dev/shm"

QUESTIONS = (
    Question("n", "How many apples are left?", "1,234.5"),
    Question("f", "What is the ratio?", "3/4"),
    Question("p", "What share is that?", "12 %"),
    Question("c", "Which one?", "B", {"A": "a library", "B": "the post office", "C": "both", "D": "neither"}),
    Question("y", "Is it?", "yes"),
    Question("t", "When does it arrive?", "11:45 PM"),
    Question("w", "Who wrote it?", "Jane Austen"),
    Question("l", "Solve.", "\\frac{1}{2}x^2 + \\sqrt{3}"),
    Question("s", "Solve.", "So we add them: <<2+3=5>>\n#### 5"),
)
RESPONSES = (
    "The answer is 12.",
    "First, 1,200 + 34.5 = 1,234.5.\n#### 1,234.5",
    "<think>Maybe 7?</think>So \\boxed{\\frac{3}{4}} it is. Wait, no: 3/4 of 12 is 9.",
    '{"answer": "B"} because (A) and (C) are wrong',
    "**Final answer:** yes, at 11:45 p.m.",
    "x = 5 or x = -2, so <answer>5, -2</answer>",
)
KEY = Key("q1", "planning", 0)
RESPONSE = Response(KEY, "d1", "teacher", "Text.\n#### 5", "stop", 12, 34, 1, 0.5, "2026-11-21T19:00:00Z", "thoughts")
ROWS: dict[str, tuple[dict[str, Any], ...]] = {
    "records": (
        row_of(RESPONSE),
        row_of(Verdict(KEY, "right", "5", "equal numbers", "rules")),
        row_of(Wasted(KEY, "time-out", 5, 6, True, "2026-11-21T19:00:00Z")),
    ),
    "questions": (
        {"id": "q1", "question": "How many?", "answer": "5"},
        {"question": "Which?", "answer": "A", "choices": {"A": "one", "B": "two"}},
        {"question": "Which?", "answer": "two", "choices": ["one", "two"]},
        {"question": "Which?", "answer": "b", "choices": {"label": ["a", "b"], "text": ["one", "two"]}},
        {
            "id": 7,
            "question": "How many?",
            "answer": 5,
            "rationales": [
                {"perspective": "planning", "text": "Add.", "source": "t"},
                {"perspective": "x", "text": "y"},
            ],
            "wrong_rationales": [{"perspective": "planning", "text": "Add.", "answer": "6", "right": "Add."}],
            "knowledge": ["Sums commute."],
            "generated": {"level": "one-step"},
        },
    ),
    "responses": (
        {"id": "q1", "answer": "5", "response": "#### 5", "question": "How many?"},
        {"id": "q2", "answer": "B", "choices": {"A": "one", "B": "two"}, "response": "(B)"},
    ),
    "bodies": (
        {
            "model": "teacher",
            "choices": [{"message": {"content": "It is 5.\n#### 5"}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 5, "completion_tokens": 7},
        },
        {
            "choices": [
                {
                    "message": {"content": [{"type": "thinking", "thinking": "so"}, {"type": "text", "text": "5"}]},
                    "finish_reason": "length",
                }
            ]
        },
        {
            "choices": [
                {"message": {"content": None, "refusal": "no", "reasoning_content": "hm"}, "finish_reason": None}
            ]
        },
        {"error": {"message": "busy", "code": 429, "type": "rate_limit"}},
    ),
    "prompts": ({"planning": "Plan first.", "own": "Think about it."},),
}
SETTINGS = {
    "method": "mind",
    "student": {"model": "STUDENT"},
    "data": {"train": "a.jsonl", "evaluation": "b.jsonl", "perspectives": ["planning", "own"]},
    "objective": {"consistency_weight": 0.1},
    "train": {"learning_rate": 1e-4, "epochs": 2, "seed": 3},
    "evaluation": {"batch_size": 8},
}
PLAN_FILES = tuple(json.loads(file.read_text()) for file in sorted(PLANS.glob("*.json")))


def _lines(choices: Choices, kind: str) -> bytes:
    """A file of JSON lines, or one list."""
    rows = [mutated_json(choices, choices.among(ROWS[kind])) for _ in range(1 + choices.number(3))]
    text = "\n".join(map(json.dumps, rows)) if not choices.rarely() else json.dumps(rows)
    return _damaged(choices, text)


def _object(choices: Choices, values: tuple[Any, ...]) -> bytes:
    return _damaged(choices, json.dumps(mutated_json(choices, choices.among(values))))


def _damaged(choices: Choices, text: str) -> bytes:
    """The text as a file that somebody has edited, and a disk has damaged: mostly not at all."""
    if choices.rarely(3):
        text = mutated_text(choices, text)
    data = text.encode("utf-8", "surrogatepass")
    return mutated_bytes(choices, data) if choices.rarely(5) else data


def _grade(choices: Choices, folder: Path) -> None:
    question = choices.among(QUESTIONS)
    if choices.rarely(3) and question.choices is None:
        question = Question(question.id, question.question, mutated_text(choices, question.answer) or "1")
    response = mutated_text(choices, choices.among(RESPONSES))
    judgement = judge_text(response, question)
    assert judgement.verdict in get_args(Grade), judgement
    assert judgement.extracted == extract_answer(response, question), judgement
    assert (judgement.verdict == "right") == is_correct(judgement.extracted, question), judgement
    for text in (answer_part(response), without_suffix(response), rationale_of(response, lambda _: True)):
        assert isinstance(text, str)


def _verdict(choices: Choices, folder: Path) -> None:
    text = mutated_text(choices, "ANSWER: 5\nVERDICT: right", ("VERDICT: right", "ANSWER: none", "right or wrong", "*"))
    reply = Response(KEY, "d", "judge", text, "stop", 1, 1, 1, 0.1, "2026-11-21T19:00:00Z")
    found = verdict_of_reply(Verdict(KEY, "unparsed", None, "no answer", "rules"), reply)
    assert found.verdict in get_args(Grade), found


def _answer(choices: Choices, folder: Path) -> None:
    read_completion(_parsed(_object(choices, ROWS["bodies"]), {"content-type": "application/json"}))


def _wait(choices: Choices, folder: Path) -> None:
    header = mutated_text(choices, choices.among(("12", "Fri, 21 Nov 2026 19:00:00 GMT", "1e400", "nan", "-5")))
    seconds = retry_after({choices.among(("retry-after", "retry-after-ms")): header})
    assert seconds is None or seconds >= 0, seconds


def _records(choices: Choices, folder: Path) -> None:
    path = _written(folder / "responses.jsonl", _lines(choices, "records"))
    kind = choices.among((Response, Verdict, Wasted))
    list(load_wasted(path) if kind is Wasted else keyed_records(kind, path))


def _journal(choices: Choices, folder: Path) -> None:
    """What a killed process left: it is cut back to whole lines, and can be written on."""
    path = _written(folder / "responses.jsonl", _lines(choices, "records"))
    logging.getLogger("mind.teacher.journal").setLevel(logging.ERROR)  # each cut is a warning
    with Journal(path) as journal:
        before = path.read_bytes()
        assert not before or before.endswith(b"\n"), before[-80:]
        journal.append([RESPONSE])
    assert path.read_bytes().startswith(before)
    list(load_responses(path))


def _questions(choices: Choices, folder: Path) -> None:
    ending = choices.among((".jsonl", ".json", ".csv"))
    data = _lines(choices, "questions")
    if ending == ".csv":
        data = _damaged(
            choices, mutated_text(choices, 'id,question,answer\r\n1,"How, many?",5\r\n2,Which?,"a ""b"""\r\n')
        )
    load_questions(_written(folder / f"questions{ending}", data), require_rationales=choices.rarely())


def _grade_file(choices: Choices, folder: Path) -> None:
    path = _written(folder / "responses.jsonl", _lines(choices, "responses"))
    counts = grade_file(path, folder / "graded.jsonl")
    lines = (folder / "graded.jsonl").read_text().splitlines()
    assert len(lines) == counts.total, (len(lines), counts)


def _settings(choices: Choices, folder: Path) -> None:
    load_json(_written(folder / "config.json", _object(choices, (SETTINGS,))), MindConfig)


def _plan(choices: Choices, folder: Path) -> None:
    """The files that it names are there, and its variables have values."""
    for name in re.findall(r"[\w.-]+\.jsonl", json.dumps(PLAN_FILES)):
        (folder / name).touch()
    data = _object(choices, PLAN_FILES)
    names = set(re.findall(rb"\${([A-Z]+)}", data))
    variables = {
        name.decode(): str(folder if name in (b"DATA", b"STUDENT") else folder / "train.jsonl") for name in names
    }
    (folder / "train.jsonl").touch()
    located(*read_plan(str(_written(folder / "plan.json", data))), variables)


def _prompts(choices: Choices, folder: Path) -> None:
    own_prompts(str(_written(folder / "prompts.json", _object(choices, ROWS["prompts"]))))


def _written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


PARSERS: dict[str, Callable[[Choices, Path], None]] = {
    "grading": _grade,
    "grade_file": _grade_file,
    "verdict": _verdict,
    "teacher_answer": _answer,
    "retry_after": _wait,
    "records": _records,
    "journal": _journal,
    "questions": _questions,
    "settings": _settings,
    "plan": _plan,
    "prompts": _prompts,
}


def example(name: str, choices: Choices, counts: Counter[str]) -> None:
    """One input of this parser; raises what is a finding."""
    folder, begin = _empty_folder(), time.process_time()
    try:
        with _ends_if_it_hangs():
            PARSERS[name](choices, folder)
        counts[f"{name}, read"] += 1
    except MindError as error:
        _check_message(name, str(error), str(folder))
        counts[f"{name}, refused"] += 1
    except Problem as problem:
        assert problem.reason.strip() and "\n" not in problem.reason, problem
        counts[f"{name}, refused"] += 1
    spent = time.process_time() - begin
    assert spent < TIME_LIMIT, f"{name} took {spent:.1f} s"


def _empty_folder() -> Path:
    """The same for one input after another."""
    folder = _folder()
    for entry in os.scandir(folder):
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry)
        else:
            os.unlink(entry)
    return folder


def memory() -> str | None:
    """Where temporary folders go: into memory, if that is a folder here, since a disk would take longer than most
    parsers; None: where TMPDIR says, or the system."""
    return MEMORY if "TMPDIR" not in os.environ and os.access(MEMORY, os.W_OK) else None


@functools.cache
def _folder() -> Path:
    folder = tempfile.mkdtemp(dir=memory())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


@contextmanager
def _ends_if_it_hangs() -> Iterator[None]:
    faulthandler.register(signal.SIGPROF, chain=True)  # and then what the signal does by itself: the process ends
    signal.setitimer(signal.ITIMER_PROF, HANGS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        faulthandler.unregister(signal.SIGPROF)


def _check_message(name: str, message: str, folder: str) -> None:
    """Raises AssertionError unless each line of a message can be printed, and the first one names the file or field."""
    assert message.strip(), f"{name}: an empty message"
    lines = message.split("\n")  # several faulty rows have one line each
    assert folder in message or name in ("settings", "plan"), f"{name}: {message!r} does not name the file"
    assert max(map(len, lines)) < 2000, f"{name}: a message of {len(message):,} characters"
