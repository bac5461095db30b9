"""The command line: each command is a dataclass that tyro turns into flags, and a function that runs it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

import tyro

from mind.cli import dataset, training
from mind.errors import MindError

USAGE = """usage: mind COMMAND [options]; mind COMMAND --help lists them

  data generate       rationales from a teacher: questions x perspectives x samples; started again, what is missing
  data judge          a verdict on each rationale, by rules and, if they find no answer, by a model
  data filter         the rationales to train on, with a report and a data card
  data import         rationales without perspectives (e.g. ten samples per question) -> training records
  data word-problems  questions with eight rationales each, from the built-in word problems
  train               distil a student by MIND, or continue a run with --resume
  evaluate            accuracy and held-out NLL of a model
  grade               responses of any model in a file: right or wrong, and the accuracy
  report              write the report of a run again

generate, judge and filter are short for data generate, data judge and data filter.
"""


def _parsed(kind: type, run: Callable, name: str) -> Callable[[Sequence[str]], int | None]:
    return lambda arguments: run(tyro.cli(kind, prog=f"mind {name}", args=list(arguments)))


COMMANDS: dict[tuple[str, ...], Callable[[Sequence[str]], int | None]] = {
    ("data", "generate"): dataset.generate,
    ("data", "judge"): _parsed(dataset.Judge, dataset.judge, "data judge"),
    ("data", "filter"): _parsed(dataset.Filter, dataset.filter_dataset, "data filter"),
    ("data", "import"): _parsed(dataset.Import, dataset.import_rationales, "data import"),
    ("data", "word-problems"): _parsed(dataset.WordProblems, dataset.word_problems, "data word-problems"),
    ("train",): training.train,
    ("evaluate",): _parsed(training.Evaluate, training.evaluate, "evaluate"),
    ("grade",): _parsed(dataset.Grade, dataset.grade, "grade"),
    ("report",): _parsed(training.Report, training.report, "report"),
}
COMMANDS |= {(name,): COMMANDS["data", name] for name in ("generate", "judge", "filter")}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status.

    That is 0, 1 for a job that left requests unanswered, 2 for bad input, which is told in one line on standard error,
    and 130 where Ctrl-C ended it.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if arguments else 2
    for name, run in COMMANDS.items():
        if tuple(arguments[: len(name)]) == name:
            try:
                return run(arguments[len(name) :]) or 0
            except MindError as error:
                print(f"mind: error: {error}", file=sys.stderr)
                return 2
            except KeyboardInterrupt:
                print("mind: interrupted", file=sys.stderr)
                return 130
    print(f"mind: error: unknown command {' '.join(arguments[:2])}\n\n{USAGE}", file=sys.stderr)
    return 2
