"""Supervised fine-tuning on all rationales: the baseline of every other method.

    L = mean over the questions of 1/K_q sum_k CE(r_k | x)

K_q is the number of rationales that question q has, CE the mean over the tokens of a rationale and its suffix.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mind.batches.cross_entropy import cross_entropy, row_weights
from mind.batches.packing import present_rationales
from mind.methods.method import LossTerms, Method, Step, StepPlan
from mind.records import MicroBatch
from mind_kernels import Head


class Sft(Method):
    """Every rationale of a question is trained on, all with the same weight."""

    title = "SFT"
    unread = ("metanet", "objective.beta", "objective.tau_student", "objective.consistency_weight")

    def prepare(self, step: Step) -> StepPlan:
        present = present_rationales(step.questions, self.context.perspectives)
        weights = present.double() / present.sum(1, keepdim=True)
        return StepPlan(step.questions, weights, trained=present, observed=torch.zeros_like(present))

    def loss(self, hidden: Tensor, head: Head, batch: MicroBatch, plan: StepPlan) -> LossTerms:
        objective = self.context.config.objective
        loss, rows = cross_entropy(
            hidden,
            head,
            batch,
            row_weights(plan.weights, batch, hidden),
            gradient_threshold=objective.gradient_threshold,
            backend=objective.backend,
        )
        return LossTerms.of(loss, rows, batch)
