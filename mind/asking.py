"""The options of every evaluation of a student, within a run and by `mind evaluate`."""

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
    """How a student answers (greedily, unless samples are asked for), and teacher-forced NLL."""

    questions: int | None = 50
    """Questions per file, from its start; None for all."""
    heldout_questions: int | None = None
    """Held-out questions whose rationales the NLL averages over; None for all."""
    batch_size: int | Literal["auto"] = 64
    """Questions per batch of generation; larger batches are faster. "auto": as many as the memory holds
    (mind/evaluation/batches.py). The size changes rounding alone, which decides between two tokens that are about
    equally probable: a number gives the same answers each time, "auto" may not."""
    max_new_tokens: int = 200
    """Longest response, in tokens."""
    last_line: str | None = None
    """An instruction that ends each prompt, such as "End with a line '#### answer'.". A model that was not trained on
    this form learns of it here, so that the grade depends on what it knows and not on how it writes."""

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
    """An earlier evaluation of the untrained student, used in place of a new one: the FILE of `mind evaluate --output
    FILE`, or the folder of another run. Student, questions and options must be the same; if its held-out rationales
    differ, the NLL is computed again. "skip": no evaluation before training."""
