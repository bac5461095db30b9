"""`mind data ...` and `mind grade`: the commands that make a data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from mind.cli.check import command_to_train
from mind.cli.terminal import Unfinished, given_option, print_summary, say, say_next
from mind.curation.config import FilterConfig, FilterOptions
from mind.display import number_of
from mind.errors import MindError, require
from mind.files import check_apart
from mind.teacher.config import RECIPES, GenerateConfig, JudgeConfig
from mind.teacher.folder import DatasetFolder
from mind.typed_json import load_json, save_json
from mind.word_problems import DEFAULT_LEVELS, Lapses, LevelName, Part

if TYPE_CHECKING:
    from mind.teacher.job import JobReport


COUNTS = ".counts.json"
"""The ending of the file with the counts of an import."""


@dataclass(frozen=True)
class Generate:
    """Ask a teacher for rationales. Started again with the same --output, it asks only for what is missing."""

    job: Annotated[GenerateConfig, tyro.conf.arg(name="")]
    file: Annotated[str | None, tyro.conf.arg(name="config", metavar="FILE")] = None
    """A JSON file with defaults of the options, such as generate.json of another job."""


@dataclass(frozen=True)
class Judge(JudgeConfig):
    """Judge each rationale of a data set: by rules, and by a model, if one is named, where the rules find no answer."""

    folder: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")]
    """Folder that `mind data generate` wrote; judged.jsonl goes into it."""


@dataclass(frozen=True)
class Filter(FilterOptions):
    """Choose the rationales to train on from a judged data set."""

    folder: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")]
    """Folder that `mind data generate` and `mind data judge` wrote."""
    also: Annotated[tuple[str, ...], tyro.conf.arg(metavar="[FOLDER ...]")] = ()
    """Further folders of the same questions: from another teacher, or made from the answers of this one by --dual,
    --rewrite or --prefix."""
    filter: tyro.conf.OmitArgPrefixes[FilterConfig] = field(default_factory=FilterConfig)


@dataclass(frozen=True)
class Import:
    """Turn rationales without perspectives into training records: right ones get the names path-1, path-2, ..."""

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
    """A JSONL file of {"id", "question", "answer", "rationales": [text, ...]}."""
    output: str
    """File of records to write, .jsonl or .parquet; it must not exist. The counts go beside it, with the ending
    .counts.json."""
    keep: int = 8
    """Rationales to keep per question, at most."""
    minimum: int = 2
    """Drop questions with fewer right rationales."""
    keep_wrong: int = 0
    """Rationales with a wrong answer to keep per question, at most, for methods that learn from right and wrong
    ones."""
    knowledge: str | None = None
    """A folder that `mind data generate --knowledge` filled for these questions: its general rules are kept with them,
    for methods that learn from rules."""
    overwrite: bool = False
    """Replace an earlier output."""


@dataclass(frozen=True)
class WordProblems:
    """Write word problems with a rationale in each of several perspectives."""

    output: str
    """The file to write, .jsonl or .parquet; it must not exist."""
    count: int = 100
    """Questions to write."""
    seed: int = 0
    """Seed of all random choices."""
    levels: tuple[LevelName, ...] = DEFAULT_LEVELS
    """Difficulty of the questions: "one-step" and "two-step" have small numbers and short rationales, "multi-step" has
    three or four steps."""
    families: tuple[str, ...] = ("train",)
    """Families to generate from, by name; "train": all of these levels except those held out for tests; "ood": those
    held out."""
    apart_from: tuple[str, ...] = ()
    """JSONL files of word problems, such as training questions: their numbers are not used again. Each problem is then
    written once."""
    perspectives: tuple[str, ...] | None = None
    """Names of the perspectives; by default the paper's eight."""
    reach: float = 1.0
    """Factor by which the numbers may be larger than in the families."""
    beyond: float | None = None
    """Write only questions with a number that is too large for this reach."""
    part: Part | None = None
    """Draw only from one of three parts of all problems; no two parts share a problem (family and numbers). Problems of
    "validation" and "test" are written once each. None: all problems."""
    validation: int = 0
    """Also write this many questions of the part "validation", into a file beside the output:
    train.validation.jsonl."""
    test: int = 0
    """Also write three tests with this many questions each: train.id.jsonl, train.ood.jsonl with the families that are
    held out, and train.larger.jsonl with larger numbers."""
    lapses: Lapses = field(default_factory=Lapses)
    """Faults to put into rationales, and into which; "generated" in the records names them."""
    overwrite: bool = False
    """Replace an earlier output."""


@dataclass(frozen=True)
class Grade:
    """Grade responses by rules, and print the accuracy."""

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
    """A JSONL file of {"id", "answer", "response"}, with "choices" and "question" if there are any."""
    output: str
    """The JSONL file to write: each row with "correct" and "extracted". It must not exist."""
    overwrite: bool = False
    """Replace an earlier output."""


def generate_defaults(words: Sequence[str]) -> Generate:
    """The defaults of the flags: those in --config if it is given, else those of the configuration."""
    file = given_option(words, "--config")
    if file is not None:
        return Generate(load_json(file, GenerateConfig), file)
    for recipe in RECIPES:
        if (folder := given_option(words, f"--{recipe}")) is not None:
            return _made_from(recipe, folder, words)
    if not any(word in ("-h", "--help") or word.startswith(("--questions", "--teacher")) for word in words):
        raise MindError(
            "mind data generate asks a teacher: expected --questions.path and --teacher.model, or --config FILE "
            "(the built-in word problems come from `mind data word-problems`)"
        )
    return tyro.MISSING_NONPROP


def _made_from(recipe: str, folder: str, words: Sequence[str]) -> Generate:
    """The defaults of a recipe's flags: the options with which the folder was made, except the output."""
    from mind.teacher.recipes import recipe_defaults

    require(given_option(words, "--output") is not None, f"--{recipe} {folder}: expected --output, a folder of its own")
    config = load_json(DatasetFolder(Path(folder)).config, GenerateConfig)
    return Generate(recipe_defaults(config, recipe, folder))


def generate(options: Generate) -> int | Unfinished:
    from mind.teacher.generate import ask_teacher

    return _finish(ask_teacher(options.job, tell=say), ["data", "judge", options.job.output])


def kept_answers(options: Generate) -> str:
    """The number of answers in the folder, in words; empty without any."""
    return _kept(DatasetFolder(Path(options.job.output)).responses, "answer")


def judge(config: Judge) -> int | Unfinished:
    from mind.cli.folders import check_kind
    from mind.teacher.judge import judge as run

    check_kind(config.folder, "a data set")
    report = run(config)
    print_summary("verdicts", report)
    name = Path(config.folder).resolve().name
    records = f"{name}.jsonl"
    if Path(records).exists():  # these are usually the questions
        records = f"{name}.rationales.jsonl"
    following = _filtered(config.folder, records)
    if report.job is not None:
        return _finish(report.job, following)
    say_next(*following)
    return 0


def kept_replies(config: Judge) -> str:
    """The number of a model's judgements in the folder, in words; empty without any."""
    return _kept(DatasetFolder(Path(config.folder)).replies, "judgement")


def _kept(journal: Path, what: str) -> str:
    if not journal.exists():
        return ""
    with journal.open("rb") as lines:
        count = sum(line.endswith(b"\n") for line in lines)
    return f"{number_of(count, what)} {'is' if count == 1 else 'are'} stored and not asked for again" if count else ""


def _filtered(folder: str, records: str) -> list[str]:
    """The command that filters the folder together with the folder from which its answers were made."""
    file = DatasetFolder(Path(folder)).config
    config = load_json(file, GenerateConfig) if file.is_file() else None
    if config is None or config.origin is None:
        return ["data", "filter", folder, "--output", records]
    kept = ["--keep-wrong", "8"] if config.recipe == "dual" else ["--shortest"]
    return ["data", "filter", config.origin, "--also", folder, "--output", records, *kept]


def filter_dataset(options: Filter) -> None:
    from mind.cli.folders import check_kind
    from mind.curation.dataset import filter_dataset as run

    for folder in (options.folder, *options.also):
        check_kind(folder, "a data set")
    result = run(options)
    print_summary("rationales", result)
    base = Path(options.output).with_suffix("")
    rules = f", {result.with_knowledge} of them with knowledge" if result.with_knowledge else ""
    count = number_of(len(result.questions), "question")
    say(f"{options.output}: {count} to train on{rules}; {base}.report.html: the report")
    perspectives = [name for name, counts in result.perspectives.items() if counts.kept]
    say_next(*command_to_train(options.output, perspectives, options.evaluation))


def import_rationales(options: Import) -> None:
    from mind.curation.importing import import_perspectives
    from mind.curation.importing import import_rationales as run
    from mind.curation.outputs import beside, new_data_set
    from mind.data.questions import save_questions

    output = new_data_set(
        options.output,
        [COUNTS],
        overwrite=options.overwrite,
        inputs=[options.source, *filter(None, [options.knowledge])],
    )
    if not 2 <= options.minimum <= options.keep <= 32:
        raise MindError(f"--minimum {options.minimum} and --keep {options.keep}: expected 2 <= minimum <= keep <= 32")
    require(options.keep_wrong >= 0, f"--keep-wrong is {options.keep_wrong}: expected at least 0")
    questions, report = run(
        options.source,
        keep=options.keep,
        minimum=options.minimum,
        keep_wrong=options.keep_wrong,
        knowledge_folder=options.knowledge,
    )
    if not questions:
        read = f"{number_of(report.questions_read, 'question')} and {number_of(report.rationales_read, 'rationale')}"
        raise MindError(
            f"{options.source}: no question has {options.minimum} right rationales: of {read}, "
            f"{report.rationales_wrong_answer:,} have a wrong answer, {report.rationales_no_answer:,} none, "
            f"{report.rationales_duplicate:,} are duplicates, {report.rationales_empty:,} empty"
        )
    save_json(report, beside(output, COUNTS))
    save_questions(questions, output)
    print_summary("rationales imported", report)
    named = {rationale.perspective for question in questions for rationale in question.rationales}
    perspectives = [name for name in import_perspectives(options.keep) if name in named]
    say(f"{output}: {number_of(len(questions), 'question')}")
    say_next(*command_to_train(output, perspectives))


def word_problems(options: WordProblems) -> None:
    from mind.curation.outputs import beside, new_data_set
    from mind.data.questions import load_questions, save_questions
    from mind.word_problems import generate
    from mind.word_problems.splits import make_splits

    common = {
        "levels": options.levels,
        "families": options.families,
        "perspectives": options.perspectives,
        "reach": options.reach,
        "lapses": options.lapses,
    }
    suffix = Path(options.output).suffix
    names = ["validation"] * (options.validation != 0) + ["id", "ood", "larger"] * (options.test != 0)
    endings = {name: f".{name}{suffix}" for name in names}
    output = new_data_set(
        options.output, list(endings.values()), overwrite=options.overwrite, inputs=options.apart_from
    )
    if endings:
        require(
            not options.apart_from and options.beyond is None and options.part is None,
            "--validation and --test make sets that are apart: expected none of --apart-from, --beyond and --part",
        )
        counts = {"validation": options.validation, "test": options.test}
        sets = make_splits(options.count, options.seed, **counts, **common)
    else:
        known = [question for file in options.apart_from for question in load_questions(file)]
        tests = bool(known) or options.part in ("validation", "test")
        more = {"apart_from": known, "beyond": options.beyond, "part": options.part, "distinct": tests}
        sets = {"train": generate(options.count, options.seed, **more, **common)}
    files = {name: beside(output, endings[name]) if name in endings else output for name in sets}
    for name, questions in sets.items():
        save_questions(questions, files[name])
        say(f"{files[name]}: {number_of(len(questions), 'question')}")
    perspectives = dict.fromkeys(rationale.perspective for rationale in sets["train"][0].rationales)
    training = options.apart_from[0] if options.apart_from else output
    evaluation = [output] if options.apart_from else [files[name] for name in ("id", "ood", "larger") if name in files]
    heldout = [files[name] for name in ("validation",) if name in files]
    say_next(*command_to_train(training, perspectives, evaluation, heldout))


def grade(options: Grade) -> None:
    from mind.cli.folders import check_json_name
    from mind.grading.grade import grade_file

    check_json_name(options.output, ".jsonl")
    check_apart(Path(options.output), [options.source])
    say(f"{options.output}: {grade_file(options.source, options.output, overwrite=options.overwrite)}")
    words = ["data", "filter", "FOLDER", "--output", "FILE.jsonl", "--student-grades", options.output]
    say_next(*words, "--easy-fraction", "0.5", purpose="to keep half of the questions that this model finds easy")


def _finish(report: JobReport, following: Sequence[str]) -> int | Unfinished:
    """Prints the outcome of a job."""
    from mind.teacher.spending import BUDGET_USED_UP

    if not report.is_nothing:  # a table of zeros would stand before the line that counts
        print_summary("requests", report)
    if report.stopped is not None:
        say(f"stopped: {report.stopped}")
    elif report.last_failure is not None:
        say(f"the last failure: {report.last_failure}")
    if report.complete:
        say_next(*following)
        return 0
    if report.stopped is None:
        return Unfinished()
    # What stopped the job, such as a wrong key, would stop the same command again.
    if report.stopped == BUDGET_USED_UP:
        return Unfinished(" with a larger budget", changing="--budget.")
    return Unfinished(" once that is mended")
