"""Prints the end of `mind train`: how the student changed, where it is, and what to try next."""

from __future__ import annotations

from mind.cli.terminal import print_table, say, say_next
from mind.display import one_line
from mind.report.answers import Answers, Sample
from mind.report.tables import Row, evaluation_table
from mind.run_folder import RunFolder

SHOWN_CHARACTERS = 300
"""Longest text that is shown, in characters."""


def print_outcome(folder: RunFolder) -> None:
    """Prints the table of before and after, one question with both answers, and what to do next."""
    answers = Answers(folder)
    table = evaluation_table(folder.read_evaluation(), answers.right)
    print_table("before and after", [cells for row in table for cells in row.cells()])
    for sample in answers.samples()[:1]:
        say("\n".join([*_told(sample), ""]))
    for row in [row for row in table if row.intervals] or table[:1]:
        say(f"result: {_summed_up(row)}")
    say(f"report: {folder.report}")
    say(f"student: {folder.student}")
    _say_next(folder)


def _told(sample: Sample) -> list[str]:
    def shown(text: str) -> str:
        return one_line(text, SHOWN_CHARACTERS)

    return [
        f"a question of the evaluation, {sample.kind}:",
        f"  question: {shown(sample.question)} (answer: {shown(sample.answer)})",
        f"  before:   {shown(sample.before)} [{shown(sample.found_before)}]",
        f"  after:    {shown(sample.after)} [{shown(sample.found_after)}]",
    ]


def _summed_up(row: Row) -> str:
    interval = f" (95 % interval {row.intervals[2]})" if row.intervals else ""
    return f"{row.what}: {row.before} -> {row.after}, {row.change}{interval}"


def _say_next(folder: RunFolder) -> None:
    """Suggests the same run by plain fine-tuning, for comparison; after that, the student on the user's own
    questions."""
    if folder.read_config().get("method") == "sft":
        words = ["evaluate", "--student.model", str(folder.student), "--files", "FILE.jsonl"]
        say_next(*words, purpose="to try it on your own questions")
    else:
        words = ["train", "--config", str(folder.config), "--method", "sft", "--output", f"{folder.path}-sft"]
        say_next(*words, purpose="to compare with plain fine-tuning")
