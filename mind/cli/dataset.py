"""The commands that make a data set: `mind data import | data generate | generate | judge | grade | filter`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from mind.cli.terminal import print_table, take_option
from mind.config import load_config
from mind.curation.options import FilterOptions
from mind.errors import MindError
from mind.files import new_file
from mind.teacher.config import GenerateConfig, JudgeConfig

if TYPE_CHECKING:
    from mind.teacher.generate import JobReport


VERDICTS = ("right", "wrong", "unparsed")


@dataclass(frozen=True)
class DataImport:
    """Turn unnamed teacher rationales into training records: wrong ones are dropped, the rest named path-1 ..."""

    source: Annotated[str, tyro.conf.Positional]
    """A JSONL file of {"id", "question", "answer", "rationales": [text, ...]}."""
    output: str
    """The JSONL file to write; it must not exist. The counts go to OUTPUT with the ending .counts.json."""
    keep: int = 8
    """Rationales kept a question, at most."""
    minimum: int = 2
    """Questions with fewer right rationales are dropped."""


@dataclass(frozen=True)
class DataGenerate:
    """Write word problems with eight rationales each."""

    output: str
    """The JSONL file to write; it must not exist."""
    count: int = 100
    seed: int = 0
    families: Literal["train", "ood"] = "train"
    """"ood" takes the families that training never sees."""


@dataclass(frozen=True)
class Grade:
    """Grade responses by rules, and print the accuracy."""

    source: Annotated[str, tyro.conf.Positional]
    """A JSONL file of {"id", "answer", "response"}, with "choices" and "question" where there are any."""
    output: str
    """The JSONL file to write: each row with "correct" and "extracted". It must not exist."""


def data_import(options: DataImport) -> None:
    from mind.curation.importing import import_rationales
    from mind.data.questions import save_questions

    output = new_file(options.output)
    if not 2 <= options.minimum <= options.keep <= 32:
        raise MindError(f"--minimum {options.minimum} and --keep {options.keep}: expected 2 <= minimum <= keep <= 32")
    questions, counts = import_rationales(options.source, keep=options.keep, minimum=options.minimum)
    if not questions:
        raise MindError(f"{options.source}: no question has {options.minimum} right rationales")
    output.with_suffix(".counts.json").write_text(json.dumps(counts.as_dict(), indent=2) + "\n")
    save_questions(questions, output)
    print_table("rationales imported", [{"what": k, "count": str(v)} for k, v in counts.as_dict().items()])
    print(
        f"{output}: {len(questions)} questions; train on it with --data.train {output} --data.perspectives "
        + " ".join(f"path-{k}" for k in range(1, options.keep + 1))
    )


def data_generate(options: DataGenerate) -> None:
    from mind.data.questions import save_questions
    from mind.word_problems import generate

    output = new_file(options.output)
    save_questions(generate(options.count, options.seed, families=options.families), output)
    print(f"{output}: {options.count} questions")


def generate(arguments: Sequence[str]) -> int:
    arguments = list(arguments)
    file = take_option(arguments, "--config")
    default = {} if file is None else {"default": load_config(Path(file), GenerateConfig)}
    config = tyro.cli(
        GenerateConfig,
        prog="mind generate",
        args=arguments,
        **default,
        description=(
            "Ask a teacher for rationales. --config FILE reads the defaults from a JSON file, such as generate.json of "
            "another job. Started again with the same --output, it asks only for what is missing."
        ),
    )
    from mind.teacher.generate import generate as run

    return _finish(run(config), f"mind judge {config.output}")


def judge(config: JudgeConfig) -> int:
    from mind.teacher.judge import judge as run

    report = run(config)
    print_table(
        "verdicts",
        [
            {"judge": name} | {verdict: f"{counts[verdict]:,}" for verdict in VERDICTS}
            for name, counts in report.counts.items()
        ],
    )
    following = f"mind filter {config.folder} --output FILE"
    if report.job is not None:
        return _finish(report.job, following)
    print(f"next: {following}")
    return 0


def filter_dataset(options: FilterOptions) -> None:
    from mind.curation.dataset import filter_dataset as run

    result = run(options)
    counts = {"read": len(result.outcomes), "kept": len(result.kept)} | result.reasons
    print_table("rationales", [{"what": name, "count": f"{count:,}"} for name, count in counts.items()])
    base = Path(options.output).with_suffix("")
    print(f"{options.output}: {len(result.questions):,} questions to train on; {base}.report.html: the report")


def grade(options: Grade) -> None:
    from mind.grading.grade import grade_file

    counts = grade_file(options.source, options.output)
    print(
        f"{options.output}: {counts.correct:,} of {counts.total:,} right ({counts.accuracy:.2%}), "
        f"{counts.unparsed:,} unparsed"
    )


def _finish(report: JobReport, following: str) -> int:
    """Prints what became of a job; the exit status is 1 where requests are unanswered."""
    usage = report.usage
    rows = {
        "requests": report.asked,
        "answered before": report.stored,
        "answered now": report.answered,
        "failed": report.failed,
        "left": report.left,
        "prompt tokens": usage.prompt_tokens,
        "answer tokens": usage.completion_tokens,
        "answers without a token count": usage.uncounted,
    }
    rows |= {f"repeated for: {reason}": count for reason, count in sorted(report.retries.items())}
    rows |= {f"failed for: {reason}": count for reason, count in sorted(report.failures.items())}
    table = [{"what": name, "count": f"{count:,}"} for name, count in rows.items()]
    if usage.cost is not None:
        table.append({"what": "cost", "count": f"{usage.cost:.4f}"})
    print_table("requests", table)
    if report.stopped is not None:
        print(f"stopped: {report.stopped}")
    print(f"next: {following}" if report.complete else "not complete: the same command asks for what is missing")
    return 0 if report.complete else 1
