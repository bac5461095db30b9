"""Supervised fine-tuning on all rationales, the baseline for every other method.

    L = mean over the questions of 1/K_q sum_k CE(r_k | x)

K_q is the number of rationales that question q has, CE the mean over the tokens of a rationale and its suffix.
"""

from __future__ import annotations

from collections.abc import Sequence

from mind.batches.packing import present_sequences
from mind.methods.method import OF_ANSWERS, OF_MIND, Method
from mind.methods.step import Step, StepPlan
from mind.records import TokenizedQuestion


class Sft(Method):
    """Trains on every rationale of a question, all with the same weight."""

    title = "SFT"
    unread = (*OF_MIND, *OF_ANSWERS)

    def prepare(self, step: Step) -> StepPlan:
        return self.evenly(step.questions)

    def evenly(self, questions: Sequence[TokenizedQuestion]) -> StepPlan:
        """Trains on all sequences of each question, with equal weights that sum to 1."""
        present = present_sequences(questions, len(self.slots))
        return StepPlan.training(questions, present.double() / present.sum(1, keepdim=True))
