"""The commands that are disturbed: what they read, what is typed, and what they must leave in the end."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from judged_folder import judged_folder
from latent_runs import complete, grid, train_expert
from small_run import train_rows, write_student
from tiny import NAMES, build_model, build_questions

from mind.data.questions import save_questions
from mind.records import Key
from mind.teacher.journal import load_responses
from tests.chaos.disturbances import COMMON
from tests.chaos.server import KEY, TIMEOUT_S

KEY_NAME = "CHAOS_KEY"
CONCURRENCY = 3
TIMES = {"date", "command", "versions", "created", "wall_s", "train_s"}
"""What two runs never have in common."""
BATCH = 4
"""Requests that vLLM gets at a time."""

Words = Callable[[Path, Path], list[str]]
Result = Callable[[Path], Mapping[str, Any]]


@dataclass(frozen=True)
class Command:
    """`inputs` is a folder that all cases read, `disk` the one that a case writes to."""

    words: Words
    """From (inputs, disk): what a user would type now, the first time or to go on."""
    result: Result
    """Of a disk: what a disturbance must not change, by name."""
    prepare: Callable[[Path], object]
    """Writes what is read into a new folder of inputs, in a process of its own."""
    begin: Callable[[Path, Path], object] = lambda inputs, disk: None
    """Puts on the disk what the command finds there."""
    at_once: tuple[str, ...] = ()
    """Files on the disk that are, at any time, whole or not there."""
    kinds: tuple[str, ...] = COMMON
    journals: tuple[str, ...] = ()
    """Files on the disk of which a line that is there stays."""
    asks: str | None = None
    """Of a server, in the journal of this name."""
    under_way: int = 0
    """Answers that a kill may cost."""
    processes: int = 1
    prefix: Callable[[], object] = bool
    """Called in each process before the command: makes it small. By default nothing happens."""
    environment: Mapping[str, str] = field(default_factory=dict)


def _rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def _bytes(disk: Path, names: Iterable[str]) -> dict[str, bytes]:
    return {name: (disk / name).read_bytes() for name in names}


def _without(content: Any, names: Iterable[str]) -> Any:
    """JSON without the fields of these names, wherever they are."""
    if isinstance(content, dict):
        return {name: _without(value, names) for name, value in content.items() if name not in names}
    return [_without(value, names) for value in content] if isinstance(content, list) else content


# train, and the same in two processes


def _prepare_train(inputs: Path) -> None:
    write_student(inputs / "model", build_model())
    save_questions(build_questions(6), inputs / "train.jsonl")
    save_questions(build_questions(2), inputs / "test.jsonl")


def _train_words(*more: str) -> Words:
    def words(inputs: Path, disk: Path) -> list[str]:
        run = disk / "run"
        if (run / "config.json").exists():
            return ["train", "--output", str(run), "--resume"]
        options = (
            "--train.questions-per-step 2 --train.max-steps 4 --train.save-steps 1 --train.log-steps 2 "
            "--train.learning-rate 1e-3 --train.report-to none --metanet.width 16 --metanet.ema 0.5 "
            "--metanet.learning-rate 1e-2 --metanet.warmup-epochs 1 --student.max-length 512 "
            "--evaluation.max-new-tokens 2"
        )
        files = ["--student.model", str(inputs / "model"), "--data.train", str(inputs / "train.jsonl")]
        files += ["--data.evaluation", str(inputs / "test.jsonl"), "--data.perspectives", *NAMES]
        return ["train", "--output", str(run), *files, *options.split(), *more]

    return words


def _train_result(disk: Path) -> dict[str, Any]:
    run = disk / "run"
    assert (run / "report.html").stat().st_size and json.loads((run / "status.json").read_text())["steps"] == 4
    state = torch.load(run / "calibration.pt", weights_only=True)
    files = ["student/model.safetensors", "student/config.json", "student/tokenizer.json", "metanet.safetensors"]
    files += ["evaluation.json", "inputs.json"]
    files += [str(file.relative_to(run)) for file in sorted(run.glob("responses/*/*.jsonl"))]
    return {
        "steps": train_rows(run),
        "state": repr(_plain(state)),
        "checkpoints": sorted(path.name for path in run.glob("checkpoint-*")),
        **_bytes(run, files),
    }


def _plain(state: Any) -> Any:
    if isinstance(state, torch.Tensor):
        return state.tolist()
    return {name: _plain(value) for name, value in state.items()} if isinstance(state, dict) else state


def _replicas_result(disk: Path) -> dict[str, Any]:
    """Files alone of which bytes do not depend on how processes share the work, and the losses."""
    found = _train_result(disk)
    return {name: value for name, value in found.items() if not name.startswith("responses")}


# experiment


def _prepare_experiment(inputs: Path) -> None:
    from small_experiment import TUNED, write_plan

    write_plan(inputs, **TUNED | {"seeds": [3]})


def _experiment_words(inputs: Path, disk: Path) -> list[str]:
    return ["experiment", str(inputs / "plan.json"), "--output", str(disk / "experiment")]


def _experiment_result(disk: Path) -> dict[str, Any]:
    from small_experiment import result_of

    from mind.experiment.folder import ExperimentFolder

    folder = ExperimentFolder(disk / "experiment")
    assert not folder.failures.exists() or json.loads(folder.failures.read_text()) == []
    return _without(result_of(folder), TIMES)


# generate, at a server and by vLLM's stand-in; judge


def reply(body: Mapping[str, Any]) -> str:
    """What the teacher says to a request, of which a part cannot be read by rules; the judge reads those."""
    turn = body["messages"][-1]["content"]
    number = sum(turn.encode()) % 7
    if "Reference answer" in turn:
        return f"ANSWER: {number}\nVERDICT: {'right' if number % 2 else 'wrong'}"
    return "Who knows?" if number < 3 else f"First count, then add; {len(turn)} letters were read.\n#### {number}"


def _prepare_questions(inputs: Path) -> None:
    rows = [{"id": f"q{n}", "question": f"What is {n} and {n + 1}?", "answer": str(2 * n + 1)} for n in range(20)]
    (inputs / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def _endpoint(prefix: str) -> list[str]:
    """`URL` stands for the server's."""
    return [f"--{prefix}model", "m", f"--{prefix}base-url", "URL", f"--{prefix}api-key-env", KEY_NAME]


TRAFFIC = ["--traffic.concurrency", str(CONCURRENCY), "--traffic.timeout-seconds", str(TIMEOUT_S)]
TRAFFIC += ["--traffic.first-wait-seconds", "0.01", "--traffic.longest-wait-seconds", "2"]


def _generate_words(inputs: Path, disk: Path) -> list[str]:
    asked = ["--questions.path", str(inputs / "questions.jsonl"), "--perspectives", "socratic", "planning"]
    teacher = [*_endpoint("teacher."), "--teacher.max-tokens", "100", *TRAFFIC]
    return ["generate", "--output", str(disk / "set"), *asked, *teacher]


def _offline_words(inputs: Path, disk: Path, *perspectives: str) -> list[str]:
    asked = ["--questions.path", str(inputs / "questions.jsonl"), "--perspectives"]
    asked += perspectives or ("socratic", "planning")
    teacher = "--teacher.model m --teacher.engine vllm --teacher.max-tokens 100 --teacher.batch-size"
    return ["generate", "--output", str(disk / "set"), *asked, *teacher.split(), str(BATCH)]


def _answers(file: Path) -> dict[Key, str]:
    rows = list(load_responses(file))
    twice = [key for key, count in Counter(row.key for row in rows).items() if count > 1]
    assert not twice, f"{file.name} has {twice} twice"
    return {row.key: f"{row.text} {row.request}" for row in rows}


def _generate_result(disk: Path) -> dict[str, Any]:
    folder = disk / "set"
    assert not (folder / "failures.jsonl").read_text()
    return {"answers": _answers(folder / "responses.jsonl"), **_bytes(folder, ["questions.jsonl", "prompts.json"])}


def fake_vllm() -> None:
    import sys

    from fake_engines import FakeVLLM

    engine = FakeVLLM()
    engine.reply = lambda turn: reply({"messages": [{"content": turn}]})
    sys.modules.update(engine.modules())


def _prepare_judge(inputs: Path) -> None:
    """What generating leaves, by vLLM's stand-in."""
    from mind.cli import main

    _prepare_questions(inputs)
    fake_vllm()
    assert main(_offline_words(inputs, inputs, "socratic")) == 0  # of two answers alike the same would be asked


def _begin_set(inputs: Path, disk: Path) -> None:
    shutil.copytree(inputs / "set", disk / "set")


def _judge_words(inputs: Path, disk: Path) -> list[str]:
    return ["judge", str(disk / "set"), *_endpoint(""), "--max-tokens", "50", *TRAFFIC]


def _judge_result(disk: Path) -> dict[str, Any]:
    replies = _answers(disk / "set" / "judge-replies.jsonl")
    return {"replies": replies, **_bytes(disk / "set", ["judged.jsonl", "responses.jsonl"])}


# filter and grade


def _filter_words(inputs: Path, disk: Path) -> list[str]:
    output = disk / "mine.jsonl"
    more = ["--overwrite"] if any(disk.glob("mine.*")) else []
    return ["filter", str(inputs / "set"), "--output", str(output), "--license", "cc0-1.0", *more]


def _filter_result(disk: Path) -> dict[str, Any]:
    card = _without(json.loads((disk / "mine.card.json").read_text()), TIMES)
    assert (disk / "mine.card.md").stat().st_size and (disk / "mine.report.html").stat().st_size
    return {"card": card, **_bytes(disk, ["mine.jsonl", "mine.dropped.jsonl"])}


def _prepare_grade(inputs: Path) -> None:
    golds = ["\\frac{1}{2}", "x^2+1", "\\sqrt{8}", "12", "\\{1,2\\}"]
    said = ["0.5", "1+x^2", "2\\sqrt{2}", "12", "\\{2,1\\}", "x+1"]
    rows = [
        {"id": f"r{n}", "answer": golds[n % 5], "response": f"So it is {n}.\n#### {said[n % 6]}"} for n in range(60)
    ]
    (inputs / "responses.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def _grade_words(inputs: Path, disk: Path) -> list[str]:
    more = ["--overwrite"] if (disk / "graded.jsonl").exists() else []
    return ["grade", str(inputs / "responses.jsonl"), "--output", str(disk / "graded.jsonl"), *more]


# evaluate and latent


def _evaluate_words(inputs: Path, disk: Path) -> list[str]:
    more = ["--overwrite"] if any(disk.glob("e.*")) else []
    files = ["--files", str(inputs / "test.jsonl"), "--heldout", str(inputs / "train.jsonl")]
    asked = ["--evaluation.max-new-tokens", "4", "--student.max-length", "512"]
    return [
        "evaluate",
        "--student.model",
        str(inputs / "model"),
        *files,
        "--output",
        str(disk / "e.json"),
        *asked,
        *more,
    ]


def _evaluate_result(disk: Path) -> dict[str, Any]:
    return _bytes(disk, ["e.json", "e.responses/test.jsonl"])


def _prepare_latent(inputs: Path) -> None:
    grid(train_expert(inputs), inputs / "experts", null=False)
    save_questions(complete(6), inputs / "questions.jsonl")


def _latent_words(inputs: Path, disk: Path) -> list[str]:
    quick = "--draws 2 --permutations 1 --mixture-seeds 1 --components 4 --max-new-tokens 3"
    experts = [str(folder) for folder in sorted((inputs / "experts").iterdir())]
    more = ["--questions", str(inputs / "questions.jsonl"), "--output", str(disk / "latent")]
    return ["latent", *experts, *more, *quick.split()]


def _one_width() -> None:
    import mind.latent.clusters

    mind.latent.clusters.WIDTHS = (4,)


def _latent_result(disk: Path) -> dict[str, Any]:
    folder = disk / "latent"
    with np.load(folder / "latent.npz") as arrays:
        vectors = {name: arrays[name].tolist() for name in sorted(arrays.files)}
    assert (folder / "latent.html").stat().st_size and not (folder / "vectors").exists()
    return {"vectors": repr(vectors), "found": _without(json.loads((folder / "latent.json").read_text()), TIMES)}


KEYS = {KEY_NAME: KEY}
TRAIN = Command(_train_words(), _train_result, _prepare_train, at_once=("run/report.html",))
GENERATE = Command(
    _generate_words,
    _generate_result,
    _prepare_questions,
    kinds=(*COMMON, "lies", "lies"),
    journals=("set/responses.jsonl", "set/wasted.jsonl"),
    asks="set/wasted.jsonl",
    under_way=2 * CONCURRENCY,  # as many may wait for the disk as are asked for
    environment=KEYS,
)
COMMANDS = {
    "train": TRAIN,
    "train, two processes": dataclasses.replace(
        TRAIN, result=_replicas_result, processes=2, kinds=("kill at an operation", "kill at a time", "ENOSPC", "EIO")
    ),
    "experiment": Command(_experiment_words, _experiment_result, _prepare_experiment),
    "generate": GENERATE,
    "generate, vLLM": dataclasses.replace(
        GENERATE,
        words=_offline_words,
        kinds=(*COMMON, "engine"),
        asks=None,
        under_way=BATCH,
        prefix=fake_vllm,
        environment={},
    ),
    "judge": dataclasses.replace(
        GENERATE,
        words=_judge_words,
        result=_judge_result,
        prepare=_prepare_judge,
        begin=_begin_set,
        journals=("set/judge-replies.jsonl", "set/judge-wasted.jsonl"),
        asks="set/judge-wasted.jsonl",
        at_once=("set/responses.jsonl",),
    ),
    "filter": Command(
        _filter_words,
        _filter_result,
        lambda inputs: judged_folder(inputs / "set"),
        at_once=("mine.jsonl", "mine.dropped.jsonl"),
    ),
    "grade": Command(
        _grade_words,
        lambda disk: _bytes(disk, ["graded.jsonl"]),
        _prepare_grade,
        at_once=("graded.jsonl",),
        kinds=(*COMMON, "worker"),
    ),
    "evaluate": Command(_evaluate_words, _evaluate_result, _prepare_train, at_once=("e.json",)),
    "latent": Command(
        _latent_words, _latent_result, _prepare_latent, at_once=("latent/latent.npz",), prefix=_one_width
    ),
}
