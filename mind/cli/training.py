"""`mind train | report`."""

from __future__ import annotations

import dataclasses
import io
import re
import time
from collections.abc import Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from mind import processes
from mind.cli.boundary import lacks_memory
from mind.cli.evaluating import check_student
from mind.cli.launch import LaunchEnded
from mind.cli.terminal import command_line, given_option, note_loading, say, say_next
from mind.config import MindConfig, StageConfig, flat
from mind.display import listed, number_of
from mind.errors import PausedError, require
from mind.typed_json import overlaid, read_json

LESS_MEMORY = (
    "less is taken by a smaller --train.pack-length or --evaluation.batch-size, by --student.dtype bfloat16, by "
    "--train.gradient-checkpointing, and by --student.lora with a small rank"
)


@dataclass(frozen=True)
class Train:
    """Train a student by a method, or continue a run that was stopped.

    A method's own options are the flags --options.*; --method NAME --help lists them.
    """

    job: Annotated[MindConfig, tyro.conf.arg(name="")]
    file: Annotated[str | None, tyro.conf.arg(name="config", metavar="FILE")] = None
    """A JSON file with defaults of the options, such as config.json of another run or a part of one."""
    resume: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Continue the run in --output from its last checkpoint. It keeps its configuration."""
    overwrite: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Replace the run in --output, after all checks."""
    stop_after: Annotated[float | None, tyro.conf.arg(metavar="MINUTES")] = None
    """Stop after this many minutes, when the current step is done, with a checkpoint; --resume continues."""

    def __post_init__(self) -> None:
        require(self.stop_after is None or self.stop_after > 0, f"stop_after is {self.stop_after}: expected minutes")


@dataclass(frozen=True)
class Report:
    """Write report.html of a run folder again."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Folder that `mind train --output` named; the report is written into it."""


def train_defaults(words: Sequence[str]) -> Train:
    """The defaults of the flags, from --config, --method, --output and --resume.

    A resumed run has its own options as defaults, so that options which are given and differ can be found.
    """
    if not any(word.startswith(("--config", "--method", "--options.", "--resume")) for word in words):
        return Train(MindConfig())  # this does not need PyTorch
    from mind.run_folder import RunFolder

    file, method, output = (given_option(words, name) for name in ("--config", "--method", "--output"))
    given = {} if file is None else read_json(file)
    if "--resume" in words and output is not None:
        RunFolder(output).check_resumable()
    note_loading("PyTorch")
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
    config = with_options(config)
    _check_methods_own(words, config)
    return Train(config, file)


def _check_methods_own(words: Sequence[str], config: MindConfig) -> None:
    """Raises MindError for an option of another method."""
    from mind.methods import METHODS

    def names(options: Any) -> set[str]:
        return {field.name for field in dataclasses.fields(options)}

    for option in (word.partition("=")[0] for word in words if word.startswith("--options.")):
        name = option.removeprefix("--options.").replace("-", "_")
        others = [method for method, kind in METHODS.items() if name in names(kind.Options)]
        require(
            name in names(config.options) or not others,
            f"{option} is no option of method {config.method}; --method names another: {listed(others, len(others))}",
        )


def method_help(words: Sequence[str]) -> str:
    """The help on the options of the method that --method names; empty if none is named."""
    method = given_option(words, "--method")
    if method is None:
        return ""
    note_loading("PyTorch")
    from mind.methods import with_method, with_options

    config = with_options(with_method(MindConfig(), method))
    own: dict[str, Any] = {"options": config.options} if dataclasses.fields(config.options) else {}
    own |= {"stages": config.stages} if config.stages else {}
    if not own:
        return f"Method {method} has no options of its own."
    kinds = {"options": type(config.options), "stages": dict[str, StageConfig]}
    kind = dataclasses.make_dataclass("Own", [(name, kinds[name]) for name in own])
    with suppress(SystemExit), redirect_stdout(io.StringIO()) as shown:  # tyro ends the program after printing the help
        tyro.cli(kind, prog=f"mind train --method {method}", args=["--help"], default=kind(**own))
    shown_help = re.split("^.*-h, --help.*\n", shown.getvalue(), maxsplit=1, flags=re.MULTILINE)
    return f"Method {method} has options of its own.\n{shown_help[-1].rstrip()}"


def train_command(options: Train) -> None:
    started = time.monotonic()
    from mind.run.data import load_data
    from mind.run_folder import RunFolder

    config, folder = _checked_preset(options.job), RunFolder(options.job.output)
    former = folder.begun
    data = None
    if not options.resume:
        processes.by_main(lambda: folder.check_free(overwrite=options.overwrite))
        _check_names(config)
        check_student(config.student)
        data = load_data(config)
    note_loading("PyTorch", "transformers", config.student.model)
    from mind.cli.outcome import print_outcome
    from mind.run.train import train

    finished = folder.read_status() if options.resume and processes.main() else {}
    pause_at = None if options.stop_after is None else started + 60 * options.stop_after
    try:
        train(config, resume=options.resume, overwrite=options.overwrite, data=data, pause_at=pause_at)
    except PausedError as pause:
        say(str(pause))
        say_next("train", "--output", config.output, "--resume", purpose="to go on")
        return
    except (KeyboardInterrupt, LaunchEnded, OSError, MemoryError, RuntimeError) as stop:
        if lacks_memory(stop):
            stop.add_note(LESS_MEMORY)
        if (options.resume and processes.joined()) or folder.begun not in (None, former):
            again = command_line("train", "--output", config.output, "--resume")
            stop.add_note(f"{folder.way_back()}; to go on: {again}")
        raise
    if not processes.main():
        return
    if finished and folder.read_status() == finished:
        say(f"{folder.path}: the run is finished, after {number_of(finished['steps'], 'step')}; nothing was changed")
        if _extends(config, finished["steps"]):
            say_next("train", "--output", config.output, "--resume", "--train.max-steps", "N", purpose="for more steps")
        else:
            further = ["--student.model", str(folder.student), "--output", f"{folder.path}-further"]
            say_next("train", "--config", str(folder.config), *further, purpose="to train its student further")
    print_outcome(folder)


def _extends(config: MindConfig, steps: int) -> bool:
    """Whether the steps that were taken are the first ones of a longer run: neither batches nor rates depend on it."""
    from mind.methods import method_class
    from mind.run.schedule import rate_factors

    rates = [rate_factors(config.train, count) for count in (steps, 2 * steps)]
    same = all(rates[0](step) == rates[1](step) for step in range(steps))
    return same and not method_class(config.method).depends_on_length


def _checked_preset(config: MindConfig) -> MindConfig:
    """`config` with its method's name instead of an alias.

    Refuses an option that a preset fixes and that is given at its default, which `with_options` would take for one that
    was not given.
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
    """Checks names that only PyTorch and transformers know, if they were given: otherwise it is not worth loading these
    before the data."""
    given, default = (
        (some.student.attention, some.objective.backend, some.train.lr_scheduler) for some in (config, MindConfig())
    )
    if given != default:
        note_loading("PyTorch", "transformers")
        from mind.methods import with_options
        from mind.run.checks import check_options

        check_options(with_options(config))


def report_command(options: Report) -> None:
    from mind.cli.folders import check_kind
    from mind.run_folder import RunFolder

    check_kind(options.run, "a run")
    folder = RunFolder(options.run)
    folder.read_config()  # reports a folder that is not a run before PyTorch is loaded
    note_loading("PyTorch")
    from mind.run.report import write_run_report

    say(f"{write_run_report(folder)}: the report")
