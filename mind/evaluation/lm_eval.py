"""Writes tasks for lm-evaluation-harness: the house protocol with this project's grader, and stock tasks on local
files.

lm-eval 0.4.13 runs them offline: `lm_eval --model hf --model_args pretrained=STUDENT --tasks mind_gsm8k --include_path
DIR --apply_chat_template`. The files that a task reads are written beside it, so nothing is looked up on a Hub. The
stock task of MATH500 needs lm-eval[math], whose version of antlr4 differs from that of this project's grader: use a
separate environment. MIND need not be installed there, since stock tasks do not call it.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mind.display import number_of
from mind.errors import MissingError, require
from mind.files import write_json_rows
from mind.grading.answers import judge_text
from mind.records import Question
from mind.student.tokenization import question_text

SETS = ("gsm8k", "math500", "svamp", "commonsense_qa", "strategy_qa", "gpqa_diamond")
"""The paper's evaluation sets."""
LONG = {"math500": 2048, "gpqa_diamond": 2048}
NEW_TOKENS = 1024
"""Tokens of an answer, at most, in the house protocol; sets in LONG get more."""


@dataclass(frozen=True)
class Stock:
    """A task that comes with lm-eval, changed to read a local file."""

    source: str
    """Its file within lm_eval/tasks."""
    split: str
    """The split from which it takes its questions."""
    row: Callable[[Question], dict[str, Any]]
    """Turns a question into a row with the fields that the task reads."""
    changes: Mapping[str, Any]
    """Further entries that are replaced."""


def _gsm8k(question: Question) -> dict[str, Any]:
    return {"question": question.question, "answer": f"#### {question.answer}"}


def _math(question: Question) -> dict[str, Any]:
    return {"problem": question.question, "solution": f"\\boxed{{{question.answer}}}", "answer": question.answer}


def _commonsense(question: Question) -> dict[str, Any]:
    found = _choices(question, "ABCDE")
    choices = {"label": list(found), "text": list(found.values())}
    return {"question": question.question, "choices": choices, "answerKey": question.answer}


def _gpqa(question: Question) -> dict[str, Any]:
    choices = list(_choices(question, "ABCD").values())
    texts = {f"choice{number}": text for number, text in enumerate(choices, start=1)}
    return {"Question": question.question, **texts, "choices": choices, "answer": f"({question.answer})"}


def _choices(question: Question, labels: str) -> Mapping[str, str]:
    """The choices of a question, which must have these labels, the ones that the stock task shows."""
    choices = question.choices or {}
    found = f"its choices are {', '.join(choices)}" if choices else "it has no choices"
    require(
        list(choices) == list(labels),
        f"question {question.id}: {found}: expected {labels[0]} to {labels[-1]} for the stock task",
    )
    return choices


STOCK = {
    "gsm8k": Stock("gsm8k/gsm8k-cot.yaml", "test", _gsm8k, {"dataset_name": None}),
    "math500": Stock("minerva_math/minerva_math500.yaml", "test", _math, {"dataset_name": None}),
    "commonsense_qa": Stock("commonsense_qa/default.yaml", "validation", _commonsense, {"training_split": None}),
    # The choices keep the order of the file, as in the house protocol: the task shuffles them again.
    "gpqa_diamond": Stock(
        "gpqa/cot_zeroshot/gpqa_diamond_cot_zeroshot.yaml",
        "train",
        _gpqa,
        {"dataset_name": None, "process_docs": None, "training_split": "train", "validation_split": "train"},
    ),
}
"""By set. SVAMP has no stock task, and BIG-bench's StrategyQA has other questions."""

UTILS = '''"""What the tasks beside this file call: the grader of MIND. `mind lm-eval-tasks` wrote it."""

from mind.evaluation.lm_eval import graded, prompt

__all__ = ["graded", "prompt"]
'''


def prompt(doc: Mapping[str, Any]) -> str:
    """The user's turn for a row of a task."""
    return doc["prompt"]


def graded(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """The metrics of a row of a task and its response: whether the response is right, and whether it is unparsed."""
    choices = json.loads(doc["choices"])
    question = Question(doc["id"], doc["question"], doc["answer"], choices)
    verdict = judge_text(results[0], question).verdict
    return {"right": float(verdict == "right"), "unparsed": float(verdict == "unparsed")}


@dataclass(frozen=True)
class Task:
    """A task in the form that lm-eval reads."""

    name: str
    rows: list[dict[str, Any]]
    """Its questions."""
    values: Mapping[str, Any]
    """The entries of its YAML file, except its name and the name of the file with its rows."""
    split: str
    """The split from which it takes its questions."""


def tasks_of(
    sets: Mapping[str, Sequence[Question]],
    *,
    max_new_tokens: int | None = None,
    last_line: str | None = None,
    stock: bool = False,
) -> list[Task]:
    """The tasks for questions by set (a key of SETS). Nothing is written.

    Args:
        sets: questions by set.
        max_new_tokens: tokens of an answer, at most; None: the limits of the house protocol.
        last_line: a line after each question (`evaluation.last_line`).
        stock: also make the stock tasks of these sets that can run on local files.

    Raises MindError for a set without questions, if stock tasks are asked for and lm-eval is not installed, and if a
    question does not fit one of them.
    """
    place = stock_folder() if stock else None
    tasks = []
    for name, questions in sets.items():
        require(len(questions) > 0, f"{name}: {number_of(0, 'question')}: expected at least one")
        limit = max_new_tokens or LONG.get(name, NEW_TOKENS)
        rows = [_row(question, last_line) for question in questions]
        tasks.append(Task(f"mind_{name}", rows, _house(limit), "test"))
        if place is not None and name in STOCK:
            one = STOCK[name]
            values = {"include": str(place / one.source), **one.changes}
            tasks.append(Task(f"local_{name}", [one.row(question) for question in questions], values, one.split))
    return tasks


def write_tasks(folder: Path, tasks: Sequence[Task], place: Path) -> None:
    """Writes the tasks into the empty folder `folder`, which will be moved to `place`."""
    (folder / "data").mkdir()
    (folder / "utils.py").write_text(UTILS, "utf-8")
    for task in tasks:
        file = f"data/{task.name}.jsonl"
        write_json_rows(task.rows, folder / file)
        source = {"data_files": {task.split: str(place.resolve() / file)}}
        values = {"task": task.name, **task.values, "dataset_path": "json", "dataset_kwargs": source}
        text = yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
        (folder / f"{task.name}.yaml").write_text(text, "utf-8")


def is_task_file(file: Path) -> bool:
    """Whether `file`, a path within a folder of tasks, has a name that `write_tasks` gives, whatever the sets, or that
    Python gives to what it compiles there."""
    own = {f"{kind}_{name}" for kind in ("mind", "local") for name in SETS}
    in_data = file.suffix == ".jsonl" and str(file.parent) == "data"
    if in_data or (file.suffix == ".yaml" and str(file.parent) == "."):
        return file.stem in own
    return str(file) == "utils.py" or (str(file.parent) == "__pycache__" and file.suffix == ".pyc")


def stock_folder() -> Path:
    """The folder of lm-eval's own tasks; raises MindError if it is not installed."""
    found = importlib.util.find_spec("lm_eval")
    if found is None or found.origin is None:
        raise MissingError("--stock needs lm-eval, which brings these tasks: pip install 'mind-kernels[lm-eval]'")
    return Path(found.origin).parent / "tasks"


def _row(question: Question, last_line: str | None) -> dict[str, Any]:
    """A row with JSON texts as values, so that all rows have the same types, whatever the labels of their choices."""
    text = "\n".join(filter(None, (question_text(question), last_line)))
    choices = None if question.choices is None else dict(question.choices)
    return {
        "id": question.id,
        "prompt": text,
        "question": question.question,
        "answer": question.answer,
        "choices": json.dumps(choices),
    }


def _house(max_new_tokens: int) -> dict[str, Any]:
    """The house protocol: zero-shot and greedy, up to the end of the turn."""
    return {
        "test_split": "test",
        "output_type": "generate_until",
        "num_fewshot": 0,
        "doc_to_text": _Function("utils.prompt"),
        "doc_to_target": "answer",
        "process_results": _Function("utils.graded"),
        "generation_kwargs": {"until": [], "do_sample": False, "temperature": 0.0, "max_gen_toks": max_new_tokens},
        "metric_list": [
            {"metric": "right", "aggregation": "mean", "higher_is_better": True},
            {"metric": "unparsed", "aggregation": "mean", "higher_is_better": False},
        ],
        "metadata": {"version": 1.0},
    }


class _Function(str):
    """The name of a function that lm-eval looks up beside the task."""


class _Dumper(yaml.SafeDumper):
    """Writes functions in the form that lm-eval reads."""


_Dumper.add_representer(_Function, lambda dumper, name: dumper.represent_scalar("!function", str(name)))
