"""What the methods that learn from pairs share: a right and a wrong rationale of one question."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, NamedTuple

import torch

from mind.config import MindConfig
from mind.errors import require
from mind.methods.method import Method, Step, StepPlan
from mind.methods.sequences import Sequences
from mind.records import Branch, Question, TokenizedQuestion


class Pair(NamedTuple):
    """Token ids of one question: a right rationale and a wrong one, each with its answer line."""

    right: Branch
    wrong: Branch


class PairMethod(Method):
    """A signed cross-entropy over pairs, the mean over those of a step. Only questions with a pair are trained on.

    Pair i of a question has the slots 2 i (right) and 2 i + 1 (wrong).
    """

    unread: ClassVar[tuple[str, ...]] = (
        "metanet",
        "objective.beta",
        "objective.tau_student",
        "objective.consistency_weight",
    )

    @classmethod
    def choose(
        cls,
        config: MindConfig,
        questions: Sequence[Question],
        tokenized: Sequence[TokenizedQuestion],
        sequences: Sequences,
    ) -> list[int]:
        chosen = [
            q
            for q, (question, tokens) in enumerate(zip(questions, tokenized, strict=True))
            if cls.pairs_of(config, question, tokens, sequences)
        ]
        both = sum(bool(question.rationales and question.wrong_rationales) for question in questions)
        require(
            bool(chosen),
            f"method {config.method} learns from pairs of a right and a wrong rationale, and none of the "
            f"{len(questions)} questions has one that it can use ({both} have rationales of both kinds): `mind data "
            "filter` and `mind data import` keep wrong ones with --filter.keep-wrong and --keep-wrong",
        )
        return chosen

    @classmethod
    def pairs_of(
        cls, config: MindConfig, question: Question, tokens: TokenizedQuestion, sequences: Sequences
    ) -> list[Pair]:
        """The pairs of a question that the method can use; here every right rationale with every wrong one."""
        wrongs = [sequences.wrong(question, rationale) for rationale in question.wrong_rationales]
        return [Pair(tokens.branches[k], wrong) for k in sorted(tokens.rationales) for wrong in wrongs]

    def all_pairs(self) -> dict[str, list[Pair]]:
        """Of the run's questions, by id."""
        context = self.context
        sequences = Sequences(context.config, context.model, context.tokenizer)
        return {
            question.id: self.pairs_of(context.config, question, tokens, sequences)
            for question, tokens in zip(context.questions, context.tokenized, strict=True)
        }

    @staticmethod
    def plan_of(
        step: Step, most: int, pairs_of: Callable[[str], Sequence[Pair]], right: float, wrong: float
    ) -> StepPlan:
        """The step's pairs, at most `most` of a question, whose two sequences have these weights in their mean."""
        questions, filled = [], torch.zeros(len(step.questions), 2 * most, dtype=torch.bool)
        for q, question in enumerate(step.questions):
            others = {}
            for number, pair in enumerate(pairs_of(question.id)):
                others |= {2 * number: pair.right, 2 * number + 1: pair.wrong}
            filled[q, : len(others)] = True
            questions.append(TokenizedQuestion(question.id, question.prompt, {}, (), others))
        # The cross-entropy is a mean over the step's questions, and this one over its pairs.
        scale = 2 * len(questions) / int(filled.sum())
        weights = torch.tensor([right, wrong], dtype=torch.float64).repeat(most) * scale
        return StepPlan(questions, torch.where(filled, weights, 0), filled, torch.zeros_like(filled))
