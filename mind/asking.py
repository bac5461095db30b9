"""The options that every evaluation of a student has, within a run and in `mind evaluate`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mind.errors import require
from mind.typed_json import check_fields

ANSWER_LINE_WANTED = "End with a line '#### answer'."
"""A `last_line` that asks for the form in which students trained here answer."""
SKIP = "skip"


@dataclass(frozen=True)
class AskingConfig:
    """How a student answers questions (greedily, unless samples are asked for), and how its teacher-forced NLL is
    measured."""

    questions: int | None = 50
    """Number of questions per file, from its start; None: all."""
    heldout_questions: int | None = None
    """Number of held-out questions whose rationales the NLL averages over; None: all."""
    batch_size: int | Literal["auto"] = 64
    """Questions per batch of generation; larger batches are faster. "auto": as many as fit into memory
    (mind/evaluation/batches.py). The size changes only rounding, which can decide between two tokens of nearly equal
    probability: with a number the answers are the same each time, with "auto" they may differ."""
    max_new_tokens: int = 200
    """Longest response, in tokens."""
    last_line: str | None = None
    """An instruction at the end of each prompt, such as "End with a line '#### answer'.". It tells a model that was not
    trained on this form about it, so that its grade depends on what it knows and not on how it writes."""

    def __post_init__(self) -> None:
        check_fields("evaluation", self)
        for name in ("questions", "heldout_questions", "batch_size", "max_new_tokens"):
            value = getattr(self, name)
            require(
                value is None or value == "auto" or value >= 1, f"evaluation.{name} is {value}: expected at least 1"
            )
        require("\n" not in (self.last_line or ""), "evaluation.last_line has a line break: expected one line")


@dataclass(frozen=True)
class EvaluationConfig(AskingConfig):
    """How a student is evaluated before and after training."""

    before: str | None = None
    """An earlier evaluation of the untrained student, to use instead of a new one: the FILE of `mind evaluate --output
    FILE`, or the folder of another run. Student, questions and options must be the same; if the held-out rationales
    differ, the NLL is computed again. "skip": no evaluation before training."""
