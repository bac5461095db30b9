"""`mind data judge` and `mind data filter` on 100,000 stored answers, as a user calls them: seconds and peak memory.

    python -m bench.dataset --data rationales.jsonl [--latex questions.jsonl] [--responses 100000] [--output folder]
        [--overwrite]

`--data` are questions with several rationales each ({"id", "question", "answer", "rationales": [text, ...]}): answers
are drawn from them, with a few words changed so that they differ. `--latex` are questions with LaTeX answers, a tenth
of all: right in five notations, or another question's. Writes dataset.jsonl.
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench import command
from bench.measure import print_table, write_results
from mind.data.questions import save_questions
from mind.data.sources import SourceConfig
from mind.files import json_rows, replacing
from mind.perspectives import PAPER_PERSPECTIVES
from mind.records import Key, Question, Response
from mind.teacher.config import GenerateConfig, ModelConfig
from mind.teacher.folder import DatasetFolder
from mind.typed_json import row_of, save_json

NAME = "dataset"
SAMPLES = 6
CHANGED = 0.1  # of the words
NOTATIONS = ("\\boxed{{{}}}", "The answer is ${}$.", "#### {}", "\\boxed{{ {} }}", "#### $\\displaystyle {}$")


def questions_of(path: Path, latex: bool) -> list[tuple[Question, list[str]]]:
    """Each question and the texts that its answers are drawn from."""
    sources = []
    for _, row in json_rows(path):
        question = Question(row["id"], row["question"], str(row["answer"]))
        sources.append((question, [] if latex else row["rationales"]))
    if latex:
        golds = [question.answer for question, _ in sources]
        for index, (question, texts) in enumerate(sources):
            texts += [f"So it follows. {notation.format(question.answer)}" for notation in NOTATIONS]
            texts += [f"So it follows. {NOTATIONS[0].format(golds[index - other])}" for other in (1, 2)]
    return sources


def answers(sources: list[tuple[Question, list[str]]], count: int, rng: random.Random) -> Iterator[Response]:
    """`count` answers to copies of the questions, 48 to each: eight perspectives, six samples."""
    words = sorted({word for _, texts in sources for text in texts for word in text.split()})
    keys = (
        (Key(f"{copy}-{index}", perspective, sample), texts)
        for copy in range(count)
        for index, (_, texts) in enumerate(sources)
        for perspective in PAPER_PERSPECTIVES
        for sample in range(SAMPLES)
    )
    for _, (key, texts) in zip(range(count), keys, strict=False):
        *lines, last = rng.choice(texts).split("\n")  # the answer stays
        changed = [
            " ".join(rng.choice(words) if rng.random() < CHANGED else word for word in line.split(" "))
            for line in lines
        ]
        yield Response(
            key,
            "0" * 16,
            "m",
            "\n".join([*changed, last]),
            "stop",
            200,
            100,
            1,
            1.0,
            "2026-11-21T10:00:00Z",
        )


def write_folder(folder: Path, sources: list[tuple[Question, list[str]]], count: int) -> None:
    """What `mind data generate` leaves."""
    files = DatasetFolder(folder)
    with replacing(files.responses) as file:
        names = dict.fromkeys(_written(file, answers(sources, count, random.Random(0))))
    save_questions(
        (dataclasses.replace(sources[int(name.rpartition("-")[2])][0], id=name) for name in names),
        files.questions,
    )
    save_json(GenerateConfig(str(folder), SourceConfig("questions.jsonl"), ModelConfig("m")), files.config)
    files.prompts.write_text(json.dumps(dict.fromkeys(PAPER_PERSPECTIVES, "Explain.")))


def _written(file, responses: Iterator[Response]) -> Iterator[str]:
    for response in responses:
        file.write(json.dumps(row_of(response)) + "\n")
        yield response.key.question


def measured(*arguments: str) -> dict[str, float]:
    """Seconds of the command, and the peak of the largest of its processes."""
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "mind", *arguments], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"mind {' '.join(arguments)} ended with status {os.waitstatus_to_exitcode(status)}")
    return {"seconds": round(time.perf_counter() - started, 1), "peak_mib": round(usage.ru_maxrss / 1024)}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command.options_of(NAME, __doc__ or "")
    parser.add_argument("--data", type=command.readable_file, required=True)
    parser.add_argument("--latex", type=command.readable_file)
    parser.add_argument("--responses", type=command.count, default=100_000)
    options, file = command.parse(parser, lambda _: NAME, arguments)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        sources = questions_of(options.data, latex=False)
        if options.latex:
            latex = questions_of(options.latex, latex=True)
            step = -(-9 * len(latex) // len(sources)) or 1  # nine numbers for one LaTeX answer
            sources = (sources * step)[: 9 * len(latex)] + latex
            random.Random(0).shuffle(sources)
        write_folder(Path(name), sources, options.responses)
        size = (Path(name) / "responses.jsonl").stat().st_size / 2**20
        case = {"responses": options.responses, "file_mib": round(size), "latex": bool(options.latex)}
        rows.append(case | {"command": "mind judge"} | measured("judge", name))
        verdicts = [row["verdict"] for _, row in json_rows(DatasetFolder(Path(name)).verdicts)]
        rows[0] |= {verdict: verdicts.count(verdict) for verdict in ("right", "wrong", "unparsed")}
        rows.append(case | {"command": "mind filter"} | measured("filter", name, "--output", f"{name}/kept.jsonl"))
        rows[1] |= {"questions_kept": sum(1 for _ in json_rows(f"{name}/kept.jsonl"))}
    print_table(rows, ["command", "responses", "file_mib", "seconds", "peak_mib"])
    write_results(rows, file)


if __name__ == "__main__":
    command.program(NAME, main)
