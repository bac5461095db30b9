"""`mind train | evaluate | report`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from mind.cli.terminal import print_table, take_option
from mind.config import EvaluationConfig, MindConfig, StudentConfig, flat, load_config
from mind.errors import MindError


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


def train(arguments: Sequence[str]) -> None:
    arguments = list(arguments)
    resume = "--resume" in arguments
    if resume:
        arguments.remove("--resume")
    default = MindConfig()
    if (file := take_option(arguments, "--config")) is not None:
        default = load_config(Path(file))
    config = tyro.cli(
        MindConfig,
        prog="mind train",
        args=arguments,
        default=default,
        description=(
            "Distil a student by MIND. --config FILE reads the defaults from a run's config.json; --resume continues "
            "the run in --output."
        ),
    )
    if resume:
        config = _resumed(config, default)
    from mind.run.train import train as run

    output = run(config, resume=resume)
    _print_evaluation(output)
    print(f"{output / 'report.html'}: the report; {output / 'student'}: the student")


def _resumed(config: MindConfig, default: MindConfig) -> MindConfig:
    """The configuration of the run that --output holds; options that contradict it raise MindError."""
    file = Path(config.output) / "config.json"
    if not file.exists():
        raise MindError(f"{config.output}: there is no run to resume (config.json is missing)")
    saved = load_config(file)
    given, plain, kept = (flat(dataclasses.asdict(c)) for c in (config, default, saved))
    changed = [name for name in given if name != "output" and given[name] not in (plain[name], kept[name])]
    if changed:
        raise MindError(
            f"--resume keeps the configuration of {config.output}; these options differ from it: "
            + ", ".join(f"{name} ({kept[name]} there)" for name in changed)
        )
    return dataclasses.replace(saved, output=config.output)


def evaluate(options: Evaluate) -> None:
    from mind.batches.prompt_sharing import choose_pack_options
    from mind.data.questions import load_questions
    from mind.evaluation.evaluate import answer_accuracy, heldout_nll
    from mind.student.model import causal_lm, load_student
    from mind.student.tokenization import tokenize

    if not options.files and options.heldout is None:
        raise MindError("nothing to evaluate: give --files, --heldout or both")
    files = {Path(file).stem: load_questions(file) for file in options.files}
    heldout = (
        None
        if options.heldout is None
        else load_questions(
            options.heldout, perspectives=options.perspectives, require_rationales=True, minimum_rationales=1
        )
    )
    model, tokenizer = load_student(options.student)
    results = {"heldout": None, "files": {}}
    if heldout is not None:
        names = options.perspectives or tuple(dict.fromkeys(r.perspective for q in heldout for r in q.rationales))
        tokenized = tokenize(
            heldout[: options.evaluation.heldout_questions], tokenizer, names, options.student.max_length
        )
        pack_options = choose_pack_options(
            model, causal_lm(model).config._attn_implementation, tokenized, options.pack_length, "auto"
        )
        results["heldout"] = heldout_nll(model, tokenized, names, pack_options)
    output = None if options.output is None else Path(options.output)
    results["files"] = answer_accuracy(
        model, tokenizer, files, options.evaluation, None if output is None else output.with_suffix(".responses")
    )
    if output is not None:
        output.write_text(json.dumps(results, indent=2) + "\n")
    rows = [
        {
            "what": f"{name}: accuracy",
            "value": f"{r['correct']} of {r['total']} ({r['accuracy']:.1%}), {r['unparsed']} unparsed",
        }
        for name, r in results["files"].items()
    ]
    if results["heldout"] is not None:
        rows.insert(0, {"what": "held-out NLL (nats a token)", "value": f"{results['heldout']['nll']:.4f}"})
    print_table(options.student.model, rows)


def report(options: Report) -> None:
    from mind.report import write_report

    print(write_report(Path(options.run)))


def _print_evaluation(output: Path) -> None:
    from mind.report import evaluation_table

    print_table("before and after", evaluation_table(json.loads((output / "evaluation.json").read_text())))
