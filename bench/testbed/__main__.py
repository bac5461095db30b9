"""Pretrains the testbed's student: a small Llama that knows the words of the built-in word problems and some solutions.

    python -m bench.testbed [--output FOLDER] [--steps 1600] [--seed 0] [--width 128] [--layers 4] [--heads 4]
        [--known shares packs ...] [--overwrite]

The student is trained once, on texts of problems of one and two steps (bench/testbed/texts.py): lists to repeat, single
computations, questions of all families with the numbers in them, and solutions of the families --known, in plain
equations and in the perspectives. No problem of a test is among them, whatever its wording. A folder that was made with
the same options is left as it is.

Writes a Hugging Face model with its tokenizer, weights in float16, and pretraining.json: the options, the versions,
and the curve with the accuracy on problems of the part "validation".
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from bench import command
from bench.testbed.student import STUDENT, Making, is_made, make_student
from bench.testbed.texts import KNOWN

NAME = "testbed"


def main(arguments: Sequence[str] | None = None) -> None:
    making = Making()
    parser = argparse.ArgumentParser(
        prog=f"python -m bench.{NAME}", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=STUDENT, help=f"folder (default {command.shown(STUDENT)})")
    parser.add_argument("--steps", type=command.count, default=making.steps)
    parser.add_argument("--seed", type=int, default=making.seed)
    for name in ("width", "layers", "heads"):
        parser.add_argument(f"--{name}", type=command.count, default=getattr(making, name))
    parser.add_argument("--known", nargs="+", default=KNOWN, help="families whose solutions the student sees")
    parser.add_argument("--overwrite", action="store_true", help="replace another student that is there")
    given = parser.parse_args(arguments)
    making = Making(given.steps, given.seed, given.width, given.layers, given.heads, tuple(given.known))
    if is_made(given.output, making):
        print(f"{command.shown(given.output)}: was made with these options before; nothing is done")
        return
    if given.output.exists() and not given.overwrite:
        parser.error(f"{given.output} is there: name another --output, or add --overwrite to replace it")
    torch.set_num_threads(1)  # the result depends on it, and more threads are hardly faster at this size
    make_student(making, given.output)


if __name__ == "__main__":
    command.program(NAME, main)
