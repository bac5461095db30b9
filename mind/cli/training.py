"""`mind train | evaluate | report`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from mind.cli.terminal import print_table, take_flag, take_option
from mind.config import EvaluationConfig, MindConfig, StudentConfig
from mind.errors import MindError, require
from mind.files import check_new_folder, new_file
from mind.typed_json import overlaid, read_json, write_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from mind.records import Question


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
    """Write the results as JSON here too, and the responses into a folder beside it, OUTPUT with the ending .responses.
    Neither may exist."""
    overwrite: bool = False
    """They may, and are written over."""

    def __post_init__(self) -> None:
        require(self.pack_length >= 1, f"pack_length is {self.pack_length}: expected at least 1")


@dataclass(frozen=True)
class Report:
    """Write report.html of a run folder again."""

    run: Annotated[str, tyro.conf.Positional]


def train_command(arguments: Sequence[str]) -> None:
    from mind.methods import METHODS
    from mind.run_folder import RunFolder

    arguments = list(arguments)
    resume, overwrite = (take_flag(arguments, name) for name in ("--resume", "--overwrite"))
    default = _defaults(arguments, resume)
    config = tyro.cli(
        MindConfig,
        prog="mind train",
        args=arguments,
        default=default,
        description=(
            f"Train a student by a method: {', '.join(METHODS)}. --config FILE reads the defaults from a run's "
            "config.json; --resume continues the run in --output, --overwrite puts this one in its place. A method's "
            "own options are the flags --options.*; "
            "--method NAME --help lists them."
        ),
    )
    from mind.cli.outcome import print_outcome
    from mind.run.train import train

    finished = RunFolder(config.output).read_status() if resume else {}
    folder = train(config, resume=resume, overwrite=overwrite)
    if finished and folder.read_status() == finished:
        print(f"{folder.path}: the run is finished, after {finished['steps']} steps; nothing was changed")
        print(f"more steps: --train.max-steps N with --resume, or a new run with --student.model {folder.student}")
    print_outcome(folder)


def _defaults(arguments: list[str], resume: bool) -> MindConfig:
    """What the flags default to; takes --config, --method and --output, on which that depends, out of `arguments`.

    Those of a resumed run are its own options: whatever is given and differs from them shows.
    """
    from mind.methods import load_run_config, run_config, with_options
    from mind.run_folder import RunFolder

    file, method, output = (take_option(arguments, name) for name in ("--config", "--method", "--output"))
    config = MindConfig() if file is None else load_run_config(Path(file))
    output = config.output if output is None else output
    if resume:
        folder = RunFolder(output)
        folder.check_resumable()
        given = {} if file is None else read_json(file)
        config = run_config(overlaid(folder.read_config(), given), str(folder.config))
    config = dataclasses.replace(config, output=output)
    if method is not None and method != config.method:
        config = dataclasses.replace(config, method=method, options=MindConfig().options)
    return with_options(config)


def evaluate_command(options: Evaluate) -> None:
    from mind.data.questions import load_questions
    from mind.evaluation.evaluate import answer_accuracy, evaluation_prompts
    from mind.evaluation.labels import evaluation_labels
    from mind.student.model import load_student

    if not options.files and options.heldout is None:
        raise MindError("nothing to evaluate: give --files, --heldout or both")
    output, responses = _evaluation_outputs(options)
    files = {label: load_questions(file) for label, file in evaluation_labels(options.files).items()}
    heldout = (
        None
        if options.heldout is None
        else load_questions(
            options.heldout, perspectives=options.perspectives, require_rationales=True, minimum_rationales=1
        )
    )
    model, tokenizer = load_student(options.student)
    for questions in files.values():
        evaluation_prompts(model, tokenizer, questions, options.evaluation)  # faults are said before all else
    results = {
        "heldout": None if heldout is None else _heldout_nll(options, model, tokenizer, heldout),
        "files": answer_accuracy(model, tokenizer, files, options.evaluation, responses),
    }
    if output is not None:
        write_json(results, output)
    print_table(options.student.model, _evaluation_rows(results))


def _evaluation_outputs(options: Evaluate) -> tuple[Path | None, Path | None]:
    """The file of the results and the folder of the responses, which can be written to."""
    if options.output is None:
        return None, None
    output = new_file(options.output, overwrite=options.overwrite)
    responses = output.with_suffix(".responses")
    require(responses != output, f"{output}: the ending .responses is that of the folder of the responses")
    check_new_folder(responses)
    require(options.overwrite or not responses.exists(), f"{responses}: exists already; add --overwrite")
    return output, responses


def _heldout_nll(
    options: Evaluate, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, questions: list[Question]
) -> dict[str, Any]:
    from mind.batches.prompt_sharing import choose_pack_options
    from mind.evaluation.evaluate import heldout_nll
    from mind.student.model import attention_of, causal_lm
    from mind.student.tokenization import embedding_rows, tokenize

    names = options.perspectives or tuple(dict.fromkeys(r.perspective for q in questions for r in q.rationales))
    questions = questions[: options.evaluation.heldout_questions]
    tokenized = tokenize(questions, tokenizer, names, options.student.max_length, embedding_rows(model))
    attention = attention_of(causal_lm(model))
    pack_options = choose_pack_options(model, attention, tokenized, options.pack_length, "auto")
    return heldout_nll(model, tokenized, names, pack_options)


def _evaluation_rows(results: dict[str, Any]) -> list[dict[str, str]]:
    from mind.report.tables import accuracy_interval, percent

    rows = [
        {
            "what": f"{name}: accuracy",
            "value": f"{r['correct']} of {r['total']} ({percent(r['accuracy'])}; 95 % interval "
            f"{accuracy_interval(r)}), {r['unparsed']} unparsed",
        }
        for name, r in results["files"].items()
    ]
    if results["heldout"] is not None:
        rows.insert(0, {"what": "held-out NLL (nats per token)", "value": f"{results['heldout']['nll']:.4f}"})
    return rows


def report_command(options: Report) -> None:
    from mind.run.report import write_run_report
    from mind.run_folder import RunFolder

    print(write_run_report(RunFolder(options.run)))
