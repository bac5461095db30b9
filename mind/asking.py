"""How a student is asked: the options that every evaluation of one has, in a run and out of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mind.errors import require
from mind.typed_json import check_fields

ANSWER_LINE_WANTED = "End with a line '#### answer'."
"""The `last_line` that asks for the form in which MIND's students answer."""
SKIP = "skip"


@dataclass(frozen=True)
class AskingConfig:
    """Generation, greedy unless samples are asked for, and teacher-forced NLL."""

    questions: int | None = 50
    """Questions per file, from its start; None for all."""
    heldout_questions: int | None = None
    """Held-out questions whose rationales the NLL is averaged over; None for all."""
    batch_size: int | Literal["auto"] = 64
    """Questions per batch of generation: a step reads all weights, however few answers are left. "auto": as many as
    the memory holds (mind/evaluation/batches.py). What comes out depends on it by rounding alone, which decides where
    two tokens are about as probable: with a number the same answers come again, with "auto" they need not."""
    max_new_tokens: int = 200
    """Tokens of a response, at most."""
    last_line: str | None = None
    """A line behind each question in its prompt, such as "End with a line '#### answer'.": a model that was not trained
    on that form knows of it by this line alone, and is graded by what it knows, not by how it writes."""

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
    """The evaluations before and after training."""

    before: str | None = None
    """An evaluation of the untrained student that was made before, in place of a new one: the FILE of `mind evaluate
    --output FILE`, or the folder of another run. It must be of the same student, questions and options; the held-out
    NLL is computed anew if it is of other rationales. "skip": no evaluation before training."""
