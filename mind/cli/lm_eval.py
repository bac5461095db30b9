"""`mind lm-eval-tasks`."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from mind.cli.terminal import say
from mind.display import listed
from mind.errors import require
from mind.files import check_apart, check_new_folder, check_replaceable, replacing_folder


@dataclass(frozen=True)
class LmEvalTasks:
    """Write tasks for lm-evaluation-harness: the paper's sets by the house protocol, with MIND's grader."""

    folder: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]
    """Folder to write; it must be new. The tasks read their questions only from it."""
    gsm8k: str | None = None
    """File of questions of GSM8K, as for `mind evaluate`."""
    math500: str | None = None
    """File of questions of MATH-500."""
    svamp: str | None = None
    """File of questions of SVAMP."""
    commonsense_qa: str | None = None
    """File of questions of CommonsenseQA."""
    strategy_qa: str | None = None
    """File of questions of StrategyQA."""
    gpqa_diamond: str | None = None
    """File of questions of GPQA Diamond."""
    questions: int | None = None
    """Number of questions per set, from its start; None: all."""
    max_new_tokens: int | None = None
    """Longest response, in tokens. None: 1024, and 2048 for MATH-500 and GPQA, as in the house protocol."""
    last_line: str | None = None
    """An instruction at the end of each prompt, like --evaluation.last-line of `mind evaluate`."""
    stock: bool = False
    """Also write lm-eval's own tasks on these files, with its prompts, examples and grading."""
    overwrite: bool = False
    """Replace what an earlier call wrote into DIR; a folder that holds other files, too, is refused."""

    def __post_init__(self) -> None:
        for name in ("questions", "max_new_tokens"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"{name} is {value}: expected at least 1")


def lm_eval_tasks(options: LmEvalTasks) -> None:
    from mind.data.questions import load_questions
    from mind.evaluation.lm_eval import SETS, is_task_file, tasks_of, write_tasks

    files = {name: file for name in SETS if (file := getattr(options, name)) is not None}
    names = ", ".join(f"--{name.replace('_', '-')}" for name in SETS)
    require(bool(files), f"no set of questions: give at least one of {names}")
    folder = Path(options.folder)
    check_new_folder(folder)
    require(options.overwrite or not folder.exists(), f"{folder}: exists already; add --overwrite")
    check_apart(folder, files.values())
    check_replaceable(folder, lambda file: is_task_file(file.relative_to(folder)), "move it away, or name another DIR")
    sets = {name: load_questions(file)[: options.questions] for name, file in files.items()}
    limits = {"max_new_tokens": options.max_new_tokens, "last_line": options.last_line}
    tasks = tasks_of(sets, stock=options.stock, **limits)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with replacing_folder(folder) as partial:
        write_tasks(partial, tasks, folder)
    say(f"{folder}: tasks {listed([task.name for task in tasks], 20)}")
    words = ["--model", "hf", "--model_args", "pretrained=STUDENT,dtype=float32", "--tasks", "mind_" + next(iter(sets))]
    words += ["--include_path", str(folder), "--apply_chat_template", "--log_samples", "--output_path", "OUT"]
    say(f"next, with lm-eval 0.4.13: {shlex.join(['lm_eval', *words])}")
