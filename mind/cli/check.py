"""`mind data check`, and the commands that come next in the making of a data set."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated

import tyro

from mind.cli.terminal import print_summary, say, say_next
from mind.curation.check import CheckReport, check_source
from mind.data.sources import SourceConfig
from mind.display import listed, meant
from mind.errors import MindError
from mind.perspectives import PAPER_PERSPECTIVES


@dataclass(frozen=True)
class Check(SourceConfig):
    """Say what a file of questions holds, and all that is wrong with it."""

    path: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
    """A .jsonl, .json, .csv or .parquet file, a folder that the `datasets` library reads, or a name on the Hub."""
    evaluation: tuple[str, ...] = ()
    """Files of test questions. The table counts how many of them are here too, and how many leak: a question or a
    rationale here shares 13 words in a row with them."""


def check(options: Check) -> int:
    report = check_source(options, options.evaluation)
    print_summary("questions", report)
    if report.repeated:
        say(f"questions that repeat an earlier one: {listed(list(report.repeated), 5)}")
    for name in filter(lambda name: name not in PAPER_PERSPECTIVES, report.rationales):
        if near := meant(name, PAPER_PERSPECTIVES, cutoff=0.8):
            say(f"perspective {name} is not one of the paper's{near}")
    if report.rationales and report.without_two:
        say(f"questions with fewer than the two rationales that training needs: {listed(list(report.without_two), 5)}")
    for file, ids in report.shared.items():
        if ids:
            say(f"also in {file}: {listed(list(ids), 5)}; results on them say nothing about new questions")
    for file, found in report.leaks.items():
        say(f"share 13 words in a row with questions of {file}: {listed(list(found.training), 5)}; --data.leaks drop")
    if report.problems is not None:
        raise MindError(report.problems)
    say_next(*_next(options, report))
    return 0


def command_to_train(
    data: str | Path,
    perspectives: Iterable[str],
    evaluation: Sequence[str | Path] = (),
    heldout: Sequence[str | Path] = (),
) -> list[str]:
    """The words of the command that trains on a data set; the paper's perspectives need not be named.

    `evaluation` are files of test questions, `heldout` is the file of held-out ones, if there is one.
    """
    names = list(perspectives)
    named = [] if set(names) <= set(PAPER_PERSPECTIVES) else ["--data.perspectives", *names]
    measured = ["--data.heldout", *map(str, heldout)] if heldout else []
    measured += ["--data.evaluation", *map(str, evaluation)] if evaluation else []
    return ["train", "--output", f"runs/{Path(data).stem}", "--data.train", str(data), *named, *measured]


def _next(options: Check, report: CheckReport) -> list[str]:
    stem = Path(options.path).stem
    changed = {
        field.name: str(getattr(options, field.name))
        for field in fields(SourceConfig)
        if field.name != "path" and getattr(options, field.name) != field.default
    }
    if not changed and Path(options.path).is_file():  # other sources are read by `mind data generate` alone
        if report.rationales and not report.without_two:
            return command_to_train(options.path, report.rationales, options.evaluation)
        if report.unnamed_rationales and not report.rationales:
            return ["data", "import", options.path, "--output", f"{stem}.named.jsonl"]
    mapping = [word for name, value in changed.items() for word in (f"--questions.{name.replace('_', '-')}", value)]
    source = ["--output", f"data/{stem}", "--questions.path", options.path, *mapping]
    return ["data", "generate", *source, "--teacher.model", "NAME", "--teacher.base-url", "URL"]
