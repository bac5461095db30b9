"""Writes what the present version leaves on the disk into tests/mind/formats/VERSION, for test_formats.py.

    python tests/mind/write_formats.py

Run it once for a version, before its release: the folders of earlier versions stay as they are.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[2])]

import small_experiment
from fault_proxy import FaultProxy, chat_answer
from small_run import write_student
from tiny import NAMES, build_model, build_questions

import mind_kernels
from mind.cli import main
from mind.data.questions import save_questions
from mind.errors import require

FORMATS = Path(__file__).parent / "formats"
SMALL = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
LEFT_OUT = ("report.html", "*.report.html", "*.svg", "*.png", "tensorboard", "student", "*.log", "*.lock", ".*")
"""Files that no command reads, and trained weights."""
STATES = ("calibration.pt", "metanet.safetensors")
RUN = (
    "train --student.model model --student.max-length 512 --data.train train.jsonl --data.evaluation test.jsonl "
    f"--data.perspectives {' '.join(NAMES)} --metanet.width 4 --metanet.synergy-heads 1 --metanet.warmup-epochs 2 "
    "--train.questions-per-step 2 --train.max-steps 2 --train.save-steps 1 --train.report-to none "
    "--evaluation.max-new-tokens 4"
)


def run(words: str, *more: str, status: int = 0) -> None:
    """A command, as in a shell."""
    found = main([*words.split(), *more])
    require(found == status, f"mind {words}: ended with {found}, not {status}")


def write_questions() -> None:
    questions = build_questions(8)
    save_questions(questions[:6], "train.jsonl")
    save_questions(questions[6:], "test.jsonl")
    rows = [
        {"id": f"q{n}", "question": f"Ann has {n} pears and buys 7. How many has she?", "answer": n + 7}
        for n in range(3)
    ]
    Path("questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows = [{"id": f"q{n}", "answer": str(n + 7), "response": f"It is {n + 7 + n % 2}."} for n in range(3)]
    Path("given.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def teacher() -> Callable[[bytes], bytes]:
    """Breaks off its first attempt; is wrong once, vague once, and cut off once; and its last answer is filtered."""
    plans = (f"Plan: add both. Then: {n} plus {7 + n % 2}.\n#### {n + 7 + n % 2}" for n in range(3))
    questions = [f"What is sought? The sum of {n} and 7, counted on.\n#### {n + 7}" for n in range(2)]
    rules = [chat_answer("- Add what is bought.", reasoning_content="A rule."), chat_answer("- Add wh", "length")]
    replies = {
        "plan": iter([chat_answer("Plan: add", "error"), *map(chat_answer, plans)]),
        "question": iter(map(chat_answer, [*questions, "What is sought? Nobody knows."])),
        "rule": iter([*rules, chat_answer("", "content_filter")]),
    }

    def reply(body: bytes) -> bytes:
        prompt = json.loads(body)["messages"][0]["content"].lower()
        return next(next(given for word, given in replies.items() if word in prompt))

    return reply


def write_teacher() -> None:
    """Its answers, verdicts of rules and of a model, and what a filter chose."""
    prompts = {"planning": "Plan first.", "socratic": "Ask yourself a question.", "knowledge": "State rules."}
    Path("prompts.json").write_text(json.dumps(prompts))
    job = "data generate --output teacher --questions.path questions.jsonl --prompts prompts.json --teacher.model m "
    job += "--knowledge --traffic.concurrency 1 --traffic.first-wait-seconds 0.01 --teacher.base-url"
    with FaultProxy(teacher()) as proxy:
        run(job, proxy.url, status=1)
    with FaultProxy(lambda _: chat_answer("ANSWER: none\nVERDICT: wrong")) as proxy:
        run("data judge teacher --model j --base-url", proxy.url)
    run("data filter teacher --output dataset.jsonl --keep-wrong 1")


def write_runs() -> None:
    write_student(Path("model"), build_model(**SMALL))
    run(f"{RUN} --output run")
    shutil.copytree("run", "stopped")
    for name in ("student", "checkpoint-2", "responses/after"):
        shutil.rmtree(f"stopped/{name}")
    for name in ("status.json", *STATES):
        Path("stopped", name).unlink()
    Path("stopped/checkpoint-1/training_args.bin").unlink()  # nothing reads it
    for folder in Path("run").glob("checkpoint-*"):
        shutil.rmtree(folder)
    for name in STATES:
        Path("run", name).unlink()
    run("evaluate --student.model model --files test.jsonl --evaluation.max-new-tokens 4 --output base.json")
    run("grade given.jsonl --output graded.jsonl")


def write_experiment() -> None:
    """Two methods with two seeds and one set; its questions are those of the runs."""
    sets = {"near": {"file": "test.jsonl", "group": "id", "max_new_tokens": 3}}
    data = {"train": "train.jsonl", "heldout_fraction": 0.3, "perspectives": list(NAMES)}
    small_experiment.write_plan(Path(), data=data, evaluation=sets, budget={"unit": "trained_tokens", "amount": 300})
    run("experiment plan.json --output experiment")
    for folder in Path("experiment").rglob("checkpoint-*"):
        shutil.rmtree(folder)
    for file in itertools.chain.from_iterable(map(Path("experiment").rglob, STATES)):
        file.unlink()  # of a MetaNet of its full size


def write() -> Path:
    """Everything, in a folder of its own that then gets its name."""
    target = FORMATS / mind_kernels.__version__
    require(not target.exists(), f"{target}: exists already, and stays as it is")
    with tempfile.TemporaryDirectory() as place, contextlib.chdir(place):
        os.environ["MIND_CACHE"] = str(Path(place, "cache"))
        for step in (write_questions, write_teacher, write_runs, write_experiment):
            step()
        shutil.rmtree("cache", ignore_errors=True)
        shutil.copytree(place, target, ignore=shutil.ignore_patterns(*LEFT_OUT))
    for file in target.rglob("*.json"):
        file.write_text(file.read_text().replace(place, "/former"))
    return target


if __name__ == "__main__":
    folder = write()
    sizes = [file.stat().st_size for file in folder.rglob("*") if file.is_file()]
    print(f"{folder}: {sum(sizes):,} bytes in {len(sizes)} files")
