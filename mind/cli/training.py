"""`mind train | evaluate | report`."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from mind.cli.boundary import lacks_memory
from mind.cli.terminal import command_line, given_option, note, print_table, say, say_next
from mind.config import EMBEDDED_STUDENT, EvaluationConfig, MindConfig, StudentConfig, flat
from mind.display import number_of, percent
from mind.errors import MindError, PausedError, require
from mind.evaluation.config import InteractionConfig
from mind.files import check_apart, check_new_folder, new_file
from mind.hub import find_model
from mind.typed_json import overlaid, read_json, write_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from mind.evaluation.evaluate import Before
    from mind.records import Question


LESS_MEMORY = (
    "less is taken by a smaller --train.pack-length or --evaluation.batch-size, by --student.dtype bfloat16, by "
    "--train.gradient-checkpointing, and by --student.lora with a small rank"
)


@dataclass(frozen=True)
class Train:
    """Train a student by a method, or go on with a run that was stopped.

    A method's own options are the flags --options.*; --method NAME --help lists them.
    """

    job: Annotated[MindConfig, tyro.conf.arg(name="")]
    file: Annotated[str | None, tyro.conf.arg(name="config", metavar="FILE")] = None
    """A JSON file that the options default to, such as config.json of another run or a part of one."""
    resume: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Go on with the run in --output from its last checkpoint. It keeps its configuration."""
    overwrite: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Put this run in the place of the one in --output, once everything is checked."""
    stop_after: Annotated[float | None, tyro.conf.arg(metavar="MINUTES")] = None
    """End after the step that is taken then, with a checkpoint; --resume goes on."""

    def __post_init__(self) -> None:
        require(self.stop_after is None or self.stop_after > 0, f"stop_after is {self.stop_after}: expected minutes")


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
    lorid: InteractionConfig = dataclasses.field(default_factory=InteractionConfig)
    knowledge_base: str | None = None
    """Records with "knowledge", such as RUN/knowledge.jsonl of method nesycd: the rules of the most similar of their
    questions precede each question of `files`."""
    before: str = ""
    """What precedes each question of `files` in its prompt: "predict: " for a student that method sbs trained."""
    pack_length: int = 1024
    output: str | None = None
    """Write the results as JSON here too, and the responses into a folder beside it, OUTPUT with the ending .responses.
    Neither may exist."""
    overwrite: bool = False
    """They may, and are written over."""

    def __post_init__(self) -> None:
        require(self.pack_length >= 1, f"pack_length is {self.pack_length}: expected at least 1")
        ways = {
            "--before": self.before,
            "--knowledge-base": self.knowledge_base,
            "--lorid.knowledge and --lorid.deep": self.lorid.knowledge,
        }
        given = [name for name, value in ways.items() if value]
        require(len(given) < 2, f"{' beside '.join(given)}: a student is asked in one way at a time")
        require(
            bool(self.lorid.knowledge) or self.lorid == InteractionConfig(),
            "--lorid options are of three students that answer together: --lorid.knowledge and --lorid.deep name two",
        )


@dataclass(frozen=True)
class Report:
    """Write report.html of a run folder again."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The folder that `mind train --output` named; the report is written into it."""


def train_defaults(words: Sequence[str]) -> Train:
    """What the flags default to, by --config, --method, --output and --resume.

    Those of a resumed run are its own options: whatever is given and differs from them shows.
    """
    if not any(word.startswith(("--config", "--method", "--options.", "--resume")) for word in words):
        return Train(MindConfig())  # which takes no PyTorch
    from mind.run_folder import RunFolder

    file, method, output = (given_option(words, name) for name in ("--config", "--method", "--output"))
    given = {} if file is None else read_json(file)
    if "--resume" in words and output is not None:
        RunFolder(output).check_resumable()
    note("loading PyTorch")
    from mind.methods import run_config, with_method, with_options

    config = MindConfig() if file is None else run_config(given, file)
    output = config.output if output is None else output
    if "--resume" in words:
        folder = RunFolder(output)
        folder.check_resumable()
        config = run_config(overlaid(folder.read_config(), given), str(folder.config))
    config = dataclasses.replace(config, output=output)
    if method is not None and method != config.method:
        config = with_method(config, method)
    return Train(with_options(config), file)


def train_command(options: Train) -> None:
    started = time.monotonic()
    from mind.run.data import load_data
    from mind.run_folder import RunFolder

    config, folder = _checked_preset(options.job), RunFolder(options.job.output)
    former = folder.begun
    data = None
    if not options.resume:
        folder.check_free(overwrite=options.overwrite)
        _check_names(config)
        _check_student(config.student)
        data = load_data(config)
    note(f"loading PyTorch, transformers and {config.student.model}")
    from mind.cli.outcome import print_outcome
    from mind.run.train import train

    finished = folder.read_status() if options.resume else {}
    pause_at = None if options.stop_after is None else started + 60 * options.stop_after
    try:
        train(config, resume=options.resume, overwrite=options.overwrite, data=data, pause_at=pause_at)
    except PausedError as pause:
        say(str(pause))
        say_next("train", "--output", config.output, "--resume", purpose="to go on")
        return
    except (KeyboardInterrupt, OSError, MemoryError, RuntimeError) as stop:
        if lacks_memory(stop):
            stop.add_note(LESS_MEMORY)
        if not options.resume and folder.begun not in (None, former):
            stop.add_note(f"to go on: {command_line('train', '--output', config.output, '--resume')}")
        raise
    if finished and folder.read_status() == finished:
        say(f"{folder.path}: the run is finished, after {number_of(finished['steps'], 'step')}; nothing was changed")
        from mind.methods import method_class

        if not method_class(config.method).depends_on_length:
            say_next("train", "--output", config.output, "--resume", "--train.max-steps", "N", purpose="for more steps")
    print_outcome(folder)


def _checked_preset(config: MindConfig) -> MindConfig:
    """With the name of its method in place of an alias.

    Refuses an option that a preset fixes, given at its default, which `with_options` takes for one that was not given.
    """
    if config.method == MindConfig().method:
        return config
    from mind.methods import with_options
    from mind.methods.presets import method_name

    config = dataclasses.replace(config, method=method_name(config.method))
    fixed, given = (flat(dataclasses.asdict(some)) for some in (with_options(config), config))
    changed = [f"{name} at {value}" for name, value in fixed.items() if value != given[name]]
    require(not changed, f"method {config.method} fixes {', '.join(changed)}: leave it out")
    return config


def _check_names(config: MindConfig) -> None:
    """Names that PyTorch and transformers know: only those that were given are worth loading them before the data."""
    given, default = (
        (some.student.attention, some.objective.backend, some.train.lr_scheduler) for some in (config, MindConfig())
    )
    if given != default:
        note("loading PyTorch and transformers")
        from mind.methods import with_options
        from mind.run.checks import check_options

        check_options(with_options(config))


def _check_student(config: StudentConfig) -> None:
    """Before PyTorch is loaded: a name that is neither a folder nor a model on the Hub is told at once."""
    from mind.run_folder import RunFolder

    if config.model != EMBEDDED_STUDENT:
        student = RunFolder(config.model).student
        require(
            not (student / "config.json").is_file(),
            f"student.model {config.model} is the folder of a run: name its student, {student}",
        )
        find_model("student.model", config.model)


def evaluate_command(options: Evaluate) -> None:
    from mind.data.questions import load_questions
    from mind.evaluation.labels import asked_questions, evaluation_labels

    if not options.files and options.heldout is None:
        raise MindError("nothing to evaluate: give --files, --heldout or both")
    output, responses = _evaluation_outputs(options)
    files = {
        label: asked_questions(label, load_questions(file), options.evaluation.questions)
        for label, file in evaluation_labels(options.files).items()
    }
    heldout = (
        None
        if options.heldout is None
        else load_questions(
            options.heldout, perspectives=options.perspectives, require_rationales=True, minimum_rationales=1
        )
    )
    before: Before = options.before if options.knowledge_base is None else _knowledge_base(options.knowledge_base)
    others = [name for name in (options.lorid.knowledge, options.lorid.deep) if name is not None]
    others = [dataclasses.replace(options.student, model=name) for name in others]
    for student in (options.student, *others):
        _check_student(student)
    note(f"loading PyTorch, transformers and {options.student.model}")
    from mind.evaluation.evaluate import answer_accuracy, evaluation_prompts
    from mind.student.model import load_student

    model, tokenizer = load_student(options.student)
    for questions in files.values():  # faults are said before all else
        evaluation_prompts(model, tokenizer, questions, options.evaluation, before)
    loaded = [load_student(student) for student in others]
    nll = None if heldout is None else _heldout_nll(options, model, tokenizer, heldout)
    if loaded:
        from mind.evaluation.interaction import Students, interaction_accuracy

        students = Students((model, tokenizer), *loaded)
        accuracies = interaction_accuracy(students, files, options.evaluation, options.lorid, responses)
    else:
        accuracies = answer_accuracy(model, tokenizer, files, options.evaluation, responses, before)
    results = {"heldout": nll, "files": accuracies}
    if output is not None:
        write_json(results, output)
    print_table(options.student.model, _evaluation_rows(results))
    if output is not None:
        say(f"{output}: the results" + (f"; {responses}: the responses" if files else ""))
    words = ["train", "--student.model", options.student.model, "--data.train", "FILE.jsonl"]
    words += ["--data.evaluation", *options.files] if files else []
    say_next(*words, "--output", "runs/NAME", purpose="to train it and compare")


def _evaluation_outputs(options: Evaluate) -> tuple[Path | None, Path | None]:
    """The file of the results and the folder of the responses, which can be written to."""
    if options.output is None:
        return None, None
    output = new_file(options.output, overwrite=options.overwrite)
    responses = output.with_suffix(".responses")
    require(responses != output, f"{output}: the ending .responses is that of the folder of the responses")
    check_new_folder(responses)
    require(options.overwrite or not responses.exists(), f"{responses}: exists already; add --overwrite")
    inputs = (*options.files, options.heldout, options.student.model, options.student.chat_template)
    inputs += (options.lorid.knowledge, options.lorid.deep, options.knowledge_base)
    for place in (output, responses):
        check_apart(place, filter(None, inputs))
    return output, responses


def _knowledge_base(file: str) -> Before:
    from mind.data.questions import load_questions
    from mind.evaluation.retrieval import KnowledgeBase

    return KnowledgeBase(file, load_questions(file)).before


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
    from mind.report.tables import accuracy_interval

    rows = [
        {
            "what": f"{name}: accuracy",
            "value": f"{r['correct']} of {r['total']} ({percent(r['accuracy'])}; 95 % interval "
            f"{accuracy_interval(r)}), {r['unparsed']} unparsed, {r['cut_off']} cut off" + _together(r),
        }
        for name, r in results["files"].items()
    ]
    if results["heldout"] is not None:
        rows.insert(0, {"what": "held-out NLL (nats per token)", "value": f"{results['heldout']['nll']:.4f}"})
    return rows


def _together(result: dict[str, Any]) -> str:
    """How the students of method lorid came to their answers; nothing for a student alone."""
    if "agreed" not in result:
        return ""
    return f", {result['agreed']} agreed on in {result['rounds']:.1f} rounds, {result['generated']:,} tokens sampled"


def report_command(options: Report) -> None:
    from mind.run_folder import RunFolder

    folder = RunFolder(options.run)
    folder.read_config()  # what is no run is told before PyTorch is loaded
    note("loading PyTorch")
    from mind.run.report import write_run_report

    say(f"{write_run_report(folder)}: the report")
