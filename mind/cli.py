"""The command line: `mind data | train | evaluate | report`, each a dataclass that tyro turns into flags."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console
from rich.table import Table

from mind.config import EvaluationConfig, MindConfig, StudentConfig, load_config
from mind.errors import MindError
from mind.files import new_file

USAGE = """usage: mind COMMAND [options]; mind COMMAND --help lists them

  data import     rationales without perspectives (e.g. ten samples a question) -> training records
  data generate   questions with eight rationales each, from the built-in word problems
  train           distil a student by MIND, or continue a run with --resume
  evaluate        accuracy and held-out NLL of a model
  report          write the report of a run again
"""


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
class Evaluate:
    """Greedy accuracy on JSONL files and teacher-forced NLL on held-out rationales."""

    student: StudentConfig = dataclasses.field(default_factory=StudentConfig)
    evaluation: EvaluationConfig = dataclasses.field(default_factory=EvaluationConfig)
    files: tuple[str, ...] = ()
    """JSONL files of {"id", "question", "answer", "choices"?}."""
    heldout: str | None = None
    """A JSONL file with rationales for the NLL."""
    perspectives: tuple[str, ...] | None = None
    """The perspectives of `heldout`; by default those that it names."""
    pack_length: int = 1024
    output: str | None = None
    """Write the results as JSON here too, and the responses beside it."""


@dataclass(frozen=True)
class Report:
    """Write report.html of a run folder again."""

    run: Annotated[str, tyro.conf.Positional]


def data_import(options: DataImport) -> None:
    from mind.data import import_rationales, save_questions

    output = new_file(options.output)
    if not 2 <= options.minimum <= options.keep <= 32:
        raise MindError(f"--minimum {options.minimum} and --keep {options.keep}: expected 2 <= minimum <= keep <= 32")
    questions, counts = import_rationales(options.source, keep=options.keep, minimum=options.minimum)
    if not questions:
        raise MindError(f"{options.source}: no question has {options.minimum} right rationales")
    output.with_suffix(".counts.json").write_text(json.dumps(counts.as_dict(), indent=2) + "\n")
    save_questions(questions, output)
    _print_table("rationales imported", [{"what": k, "count": str(v)} for k, v in counts.as_dict().items()])
    print(f"{output}: {len(questions)} questions; train on it with --data.train {output} --data.perspectives "
          + " ".join(f"path-{k}" for k in range(1, options.keep + 1)))


def data_generate(options: DataGenerate) -> None:
    from mind.data import save_questions
    from mind.word_problems import generate

    output = new_file(options.output)
    save_questions(generate(options.count, options.seed, families=options.families), output)
    print(f"{output}: {options.count} questions")


def train(arguments: Sequence[str]) -> None:
    arguments = list(arguments)
    resume = "--resume" in arguments
    if resume:
        arguments.remove("--resume")
    default = MindConfig()
    if (file := _take_option(arguments, "--config")) is not None:
        default = load_config(Path(file))
    config = tyro.cli(MindConfig, prog="mind train", args=arguments, default=default, description=(
        "Distil a student by MIND. --config FILE reads the defaults from a run's config.json; --resume continues the "
        "run in --output."))
    if resume:
        config = _resumed(config, default)
    from mind.run import train as run

    output = run(config, resume=resume)
    _print_evaluation(output)
    print(f"{output / 'report.html'}: the report; {output / 'student'}: the student")


def _resumed(config: MindConfig, default: MindConfig) -> MindConfig:
    """The configuration of the run that --output holds; options that contradict it raise MindError."""
    file = Path(config.output) / "config.json"
    if not file.exists():
        raise MindError(f"{config.output}: there is no run to resume (config.json is missing)")
    saved = load_config(file)
    given, plain, kept = (_flat(dataclasses.asdict(c)) for c in (config, default, saved))
    changed = [name for name in given if name != "output" and given[name] not in (plain[name], kept[name])]
    if changed:
        raise MindError(f"--resume keeps the configuration of {config.output}; these options differ from it: "
                        + ", ".join(f"{name} ({kept[name]} there)" for name in changed))
    return dataclasses.replace(saved, output=config.output)


def evaluate(options: Evaluate) -> None:
    from mind.data import load_questions
    from mind.evaluate import answer_accuracy, heldout_nll
    from mind.prompt_sharing import choose_packing
    from mind.student import causal_lm, load_student
    from mind.tokenization import tokenize

    if not options.files and options.heldout is None:
        raise MindError("nothing to evaluate: give --files, --heldout or both")
    files = {Path(file).stem: load_questions(file) for file in options.files}
    heldout = None if options.heldout is None else load_questions(
        options.heldout, perspectives=options.perspectives, require_rationales=True, minimum_rationales=1)
    model, tokenizer = load_student(options.student)
    results = {"heldout": None, "files": {}}
    if heldout is not None:
        names = options.perspectives or tuple(dict.fromkeys(r.perspective for q in heldout for r in q.rationales))
        tokenized = tokenize(heldout[:options.evaluation.heldout_questions], tokenizer, names,
                             options.student.max_length)
        packing = choose_packing(model, causal_lm(model).config._attn_implementation, tokenized, options.pack_length,
                                 "auto")
        results["heldout"] = heldout_nll(model, tokenized, names, packing)
    output = None if options.output is None else Path(options.output)
    results["files"] = answer_accuracy(model, tokenizer, files, options.evaluation,
                                       None if output is None else output.with_suffix(".responses"))
    if output is not None:
        output.write_text(json.dumps(results, indent=2) + "\n")
    rows = [{"what": f"{name}: accuracy", "value": f"{r['correct']} of {r['total']} ({r['accuracy']:.1%}), "
             f"{r['unparsed']} unparsed"} for name, r in results["files"].items()]
    if results["heldout"] is not None:
        rows.insert(0, {"what": "held-out NLL (nats a token)", "value": f"{results['heldout']['nll']:.4f}"})
    _print_table(options.student.model, rows)


def report(options: Report) -> None:
    from mind.report import write_report

    print(write_report(Path(options.run)))


def _take_option(arguments: list[str], name: str) -> str | None:
    for index, argument in enumerate(arguments):
        if argument == name:
            if index + 1 == len(arguments):
                raise MindError(f"{name}: expected a value")
            value = arguments[index + 1]
            del arguments[index:index + 2]
            return value
        if argument.startswith(name + "="):
            del arguments[index]
            return argument.partition("=")[2]
    return None


def _flat(tree: dict, prefix: str = "") -> dict[str, object]:
    out = {}
    for name, value in tree.items():
        out |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return out


def _print_evaluation(output: Path) -> None:
    from mind.report import evaluation_table

    _print_table("before and after", evaluation_table(json.loads((output / "evaluation.json").read_text())))


def _print_table(title: str, rows: list[dict[str, str]]) -> None:
    table = Table(*rows[0], title=title) if rows else Table(title=title)
    for row in rows:
        table.add_row(*row.values())
    Console(width=None if sys.stdout.isatty() else 110).print(table)


def _parsed(kind: type, run: Callable, name: str) -> Callable[[Sequence[str]], None]:
    return lambda arguments: run(tyro.cli(kind, prog=f"mind {name}", args=list(arguments)))


COMMANDS: dict[tuple[str, ...], Callable[[Sequence[str]], None]] = {
    ("data", "import"): _parsed(DataImport, data_import, "data import"),
    ("data", "generate"): _parsed(DataGenerate, data_generate, "data generate"),
    ("train",): train,
    ("evaluate",): _parsed(Evaluate, evaluate, "evaluate"),
    ("report",): _parsed(Report, report, "report"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status: 0, or 2 for bad input, told in one line on standard error."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if arguments else 2
    for name, run in COMMANDS.items():
        if tuple(arguments[:len(name)]) == name:
            try:
                run(arguments[len(name):])
            except MindError as error:
                print(f"mind: error: {error}", file=sys.stderr)
                return 2
            return 0
    print(f"mind: error: unknown command {' '.join(arguments[:2])}\n\n{USAGE}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
