"""Each command is a dataclass that tyro turns into flags, and a function that runs it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

import tyro

from mind.cli import dataset, training
from mind.curation.options import FilterOptions
from mind.teacher.config import JudgeConfig

USAGE = """usage: mind COMMAND [options]; mind COMMAND --help lists them

  generate        rationales from a teacher: questions x perspectives x samples; started again, what is missing
  judge           a verdict on each rationale, by rules and, where they find no answer, by a model
  filter          the rationales to train on, with a report and a data card
  train           train a student by MIND or another method, or continue a run with --resume
  evaluate        accuracy and held-out NLL of a model
  grade           responses of any model in a file: right or wrong, and the accuracy
  report          write the report of a run again
  data import     rationales without perspectives (e.g. ten samples a question) -> training records
  data generate   questions with eight rationales each, from the built-in word problems
"""


def _parsed(kind: type, run: Callable, name: str) -> Callable[[Sequence[str]], int | None]:
    return lambda arguments: run(tyro.cli(kind, prog=f"mind {name}", args=list(arguments)))


COMMANDS: dict[tuple[str, ...], Callable[[Sequence[str]], int | None]] = {
    ("data", "import"): _parsed(dataset.DataImport, dataset.data_import, "data import"),
    ("data", "generate"): _parsed(dataset.DataGenerate, dataset.data_generate, "data generate"),
    ("generate",): dataset.generate,
    ("judge",): _parsed(JudgeConfig, dataset.judge, "judge"),
    ("grade",): _parsed(dataset.Grade, dataset.grade, "grade"),
    ("filter",): _parsed(FilterOptions, dataset.filter_dataset, "filter"),
    ("train",): training.train_command,
    ("evaluate",): _parsed(training.Evaluate, training.evaluate_command, "evaluate"),
    ("report",): _parsed(training.Report, training.report_command, "report"),
}


def run(arguments: Sequence[str]) -> int:
    """Runs the command that the arguments begin with; returns the exit status. Raises MindError for bad input."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if arguments else 2
    for name, command in COMMANDS.items():
        if tuple(arguments[: len(name)]) == name:
            return command(arguments[len(name) :]) or 0
    print(f"mind: error: unknown command {' '.join(arguments[:2])}\n\n{USAGE}", file=sys.stderr)
    return 2
