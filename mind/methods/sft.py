"""Supervised fine-tuning on all rationales: the baseline of every other method.

    L = mean over the questions of 1/K_q sum_k CE(r_k | x)

K_q is the number of rationales that question q has, CE the mean over the tokens of a rationale and its suffix.
"""

from __future__ import annotations

import torch

from mind.batches.packing import present_rationales
from mind.methods.method import OF_MIND, Method, Step, StepPlan


class Sft(Method):
    """Every rationale of a question is trained on, all with the same weight."""

    title = "SFT"
    unread = OF_MIND

    def prepare(self, step: Step) -> StepPlan:
        present = present_rationales(step.questions, self.context.perspectives)
        weights = present.double() / present.sum(1, keepdim=True)
        return StepPlan(step.questions, weights, trained=present, observed=torch.zeros_like(present))
