"""Each command is a dataclass that tyro turns into flags, and a function that runs it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

import tyro

from mind.cli import check, dataset, training

USAGE = """usage: mind COMMAND [options]; mind COMMAND --help lists them

  data check          what a file of questions holds, and all that is wrong with it
  data generate       rationales from a teacher: questions x perspectives x samples; started again, what is missing
  data judge          a verdict on each rationale, by rules and, if they find no answer, by a model
  data filter         the rationales to train on, with a report and a data card
  data import         rationales without perspectives (e.g. ten samples per question) -> training records
  data word-problems  questions with eight rationales each, from the built-in word problems
  train               train a student by MIND or another method, or continue a run with --resume
  evaluate            accuracy and held-out NLL of a model
  grade               responses of any model in a file: right or wrong, and the accuracy
  report              write the report of a run again

generate, judge and filter are short for data generate, data judge and data filter.
"""


def _parsed(kind: type, run: Callable, name: str) -> Callable[[Sequence[str]], int | None]:
    return lambda arguments: run(tyro.cli(kind, prog=f"mind {name}", args=list(arguments)))


COMMANDS: dict[tuple[str, ...], Callable[[Sequence[str]], int | None]] = {
    ("data", "check"): _parsed(check.Check, check.check, "data check"),
    ("data", "generate"): dataset.generate,
    ("data", "judge"): _parsed(dataset.Judge, dataset.judge, "data judge"),
    ("data", "filter"): _parsed(dataset.Filter, dataset.filter_dataset, "data filter"),
    ("data", "import"): _parsed(dataset.Import, dataset.import_rationales, "data import"),
    ("data", "word-problems"): _parsed(dataset.WordProblems, dataset.word_problems, "data word-problems"),
    ("train",): training.train_command,
    ("evaluate",): _parsed(training.Evaluate, training.evaluate_command, "evaluate"),
    ("grade",): _parsed(dataset.Grade, dataset.grade, "grade"),
    ("report",): _parsed(training.Report, training.report_command, "report"),
}
COMMANDS |= {(name,): COMMANDS["data", name] for name in ("generate", "judge", "filter")}


def run(arguments: Sequence[str]) -> int:
    """Runs the command that the arguments begin with; returns the exit status. Raises MindError for bad input."""
    group = list(arguments[:1]) == ["data"]
    if not arguments[group:] or arguments[group] in ("-h", "--help"):
        print(USAGE)
        return 0 if arguments else 2
    for name, command in COMMANDS.items():
        if tuple(arguments[: len(name)]) == name:
            return command(arguments[len(name) :]) or 0
    print(f"mind: error: unknown command {' '.join(arguments[:2])}\n\n{USAGE}", file=sys.stderr)
    return 2
