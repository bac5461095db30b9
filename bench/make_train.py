"""The results of `make train`: a line per run, from the folders that it wrote.

    python -m bench.make_train runs/demo runs/demo-1 runs/demo-2 [--output folder] [--overwrite]

It trains nothing: run `make train`, `make train SEED=1` and so on first. Writes make_train.jsonl, with the commit, the
versions and the threads of this call, so call it where and when the runs were made. With --overwrite, rows of other
seeds stay.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import command
from bench.measure import add_results, print_table
from mind.errors import MindError
from mind.run_folder import RunFolder

NAME = "make_train"
COLUMNS = (
    "seed",
    "questions",
    "correct_before",
    "correct_after",
    "gained",
    "lost",
    "nll_before",
    "nll_after",
    "minutes",
)


def outcome(folder: Path) -> dict[str, Any]:
    """What a finished run reached on its one file of questions.

    "correct_before" and "correct_after" of "questions"; "gained" are those that became right, "lost" those that became
    wrong, "cut_off_before" and "cut_off_after" those whose answer reached the limit of tokens; the held-out loss, in
    nats per token; the optimizer "steps", "minutes" in all, labeled tokens per second in training, and the share of a
    naive step's work. Raises MindError if the run is not complete.
    """
    run = RunFolder(folder)
    config, status, evaluation = run.read_config(), run.read_status(), run.read_evaluation()
    before, after = (run.read_responses(when) for when in ("before", "after"))
    if not status or len(before) != 1 or before.keys() != after.keys():
        raise MindError(f"{folder}: expected a finished run with one file of evaluation questions")
    label = next(iter(before))
    right = [{row["id"]: row["correct"] for row in side[label]} for side in (before, after)]
    pairs = [(right[0][name], right[1][name]) for name in right[0]]
    return {
        "seed": config["train"]["seed"],
        "questions": len(pairs),
        "correct_before": sum(first for first, _ in pairs),
        "correct_after": sum(last for _, last in pairs),
        "gained": sum(last and not first for first, last in pairs),
        "lost": sum(first and not last for first, last in pairs),
        "cut_off_before": evaluation["before"]["files"][label]["cut_off"],
        "cut_off_after": evaluation["after"]["files"][label]["cut_off"],
        "nll_before": round(evaluation["before"]["heldout"]["nll"], 4),
        "nll_after": round(evaluation["after"]["heldout"]["nll"], 4),
        "steps": status["steps"],
        "minutes": round(status["wall_s"] / 60, 2),
        "tokens_per_s": status["tokens_per_s"],
        "work_of_naive": status["work_of_naive"],
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command.options_of(NAME, __doc__ or "")
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER", help="of a finished run")
    options, file = command.parse(parser, lambda _: NAME, arguments)
    rows = [outcome(folder) for folder in options.folders]
    print_table(rows, COLUMNS)
    add_results(rows, file, "seed")
    print(command.shown(file))


if __name__ == "__main__":
    command.program(NAME, main)
