"""Peak memory of a step of transformers' Trainer, with the stock loss and with the fused one.

    python -m bench.trainer_memory [--tokens 2048] [--sequences 4] [--output folder] [--overwrite]

A step is a forward and a backward pass of SmolLM2-135M in float32, with and without gradient checkpointing; each is
measured in a process of its own, after one step before it, so that the gradients are held already. Writes
trainer_memory.jsonl.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import torch

from bench import command
from bench.measure import peak_extra_mib, print_table, provenance, write_results

NAME = "trainer_memory"


def make_step(fused: bool, checkpointing: bool, sequences: int, length: int) -> Callable[[], Any]:
    """A step that returns its loss."""
    from transformers import Trainer, TrainingArguments

    from mind.config import StudentConfig
    from mind.student.model import load_student
    from mind_kernels.integrations.transformers import fuse

    student, _ = load_student(StudentConfig())
    model = fuse(student) if fused else student
    ids = torch.randint(3, 49152, (sequences, length), generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": ids, "labels": ids}
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(folder, use_cpu=True, report_to="none", gradient_checkpointing=checkpointing)
        trainer = Trainer(model, arguments)
    trainer.current_gradient_accumulation_steps = 1
    if checkpointing:
        model.gradient_checkpointing_enable()
    return lambda: float(trainer.training_step(model.train(), dict(batch)))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command.options_of(NAME, __doc__ or "")
    parser.add_argument("--tokens", type=command.count, default=2048, help="tokens per batch (default 2048)")
    parser.add_argument("--sequences", type=command.count, default=4, help="sequences per batch (default 4)")
    options, file = command.parse(parser, lambda _: NAME, arguments)
    rows = []
    for checkpointing in (False, True):
        peaks = {}
        for loss in ("stock", "fused"):
            kwargs = {"fused": loss == "fused", "checkpointing": checkpointing, "sequences": options.sequences}
            kwargs["length"] = options.tokens // options.sequences
            peaks[loss] = peak_extra_mib("bench.trainer_memory:make_step", kwargs)
            row = {"loss": loss, "checkpointing": checkpointing, "tokens": options.tokens, "peak_mib": peaks[loss]}
            rows.append(row | {"of_stock": peaks[loss] / peaks["stock"]})
    print_table(rows, ("loss", "checkpointing", "tokens", "peak_mib", "of_stock"))
    write_results([row | provenance() for row in rows], file)


if __name__ == "__main__":
    command.program(NAME, main)
