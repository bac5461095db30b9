"""Greedy answers by the number of questions that are answered together, on one thread of a CPU.

    python -m bench.generation [--questions 200] [--new-tokens 200] [--sizes 16 64 auto] [--turns 3] [--output folder]
        [--overwrite]

The sizes take turns in one process; processor time, the least of all turns, tells as much on a busy machine as on a
quiet one. "others" are answers whose text is not that of the first size: batches differ by rounding, so that a near
tie between two tokens may fall otherwise.

Writes generation.jsonl.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from bench import command
from bench.measure import print_table, provenance, write_results
from mind import word_problems
from mind.asking import AskingConfig
from mind.config import StudentConfig
from mind.evaluation.evaluate import evaluation_prompts
from mind.evaluation.generation import generate_ids
from mind.student.model import load_student
from mind.student.tokenization import Chat
from mind.word_problems import DEFAULT_LEVELS
from mind.word_problems.levels import LEVELS

NAME = "generation"
COLUMNS = ("batch_size", "cpu_s", "answers", "tokens", "tokens_per_cpu_s", "others")


def _size(text: str) -> int | str:
    return text if text == "auto" else command.count(text)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command.options_of(NAME, __doc__ or "")
    parser.add_argument("--questions", type=command.count, default=200, help="that are answered (default 200)")
    parser.add_argument("--levels", nargs="+", choices=tuple(LEVELS), default=DEFAULT_LEVELS, help="of the questions")
    parser.add_argument("--new-tokens", type=command.count, default=200, help="of an answer, at most (default 200)")
    parser.add_argument("--sizes", type=_size, nargs="+", default=[16, 64, "auto"], help="answers at once")
    parser.add_argument("--turns", type=command.count, default=3, help="of each size (default 3)")
    options, file = command.parse(parser, lambda _: NAME, arguments)
    torch.set_num_threads(1)
    model, tokenizer = load_student(StudentConfig())
    questions = word_problems.generate(options.questions, 0, levels=options.levels)
    config = AskingConfig(questions=None, max_new_tokens=options.new_tokens)
    prompts = evaluation_prompts(model, tokenizer, questions, config)
    stop = Chat(tokenizer).stop_text
    seconds: dict[int | str, list[float]] = {size: [] for size in options.sizes}
    answers = {}
    for _ in range(options.turns):
        for size in options.sizes:
            started = time.process_time()
            answers[size] = generate_ids(
                model, tokenizer, prompts, max_new_tokens=options.new_tokens, batch_size=size, stop_text=stop
            )
            seconds[size].append(time.process_time() - started)
    rows = []
    for size, found in answers.items():
        tokens, best = sum(map(len, found)), min(seconds[size])
        others = sum(one != other for one, other in zip(found, answers[options.sizes[0]], strict=True))
        row = {"batch_size": size, "cpu_s": round(best, 2), "answers": len(found), "tokens": tokens}
        row |= {"tokens_per_cpu_s": round(tokens / best, 1), "others": others, "turns": options.turns}
        rows.append(row | {"new_tokens": options.new_tokens, **provenance()})
    write_results(rows, file)
    print_table(rows, COLUMNS)


if __name__ == "__main__":
    command.program(NAME, main)
