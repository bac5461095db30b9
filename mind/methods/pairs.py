"""The base of methods that learn from pairs of a right and a wrong rationale of one question."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch

from mind.batches.packing import present_sequences
from mind.config import MindConfig
from mind.methods.method import OF_ANSWERS, OF_MIND, Method, MethodContext
from mind.methods.sequences import Sequences
from mind.methods.step import Step, StepPlan
from mind.records import Branch, Question, TokenizedQuestion
from mind.report.charts import AMBER, BLUE, LOSS, Chart, Series

WRONG_WANTED = "`mind data filter` and `mind data import` keep wrong rationales with --keep-wrong"
"""What to do about questions without wrong rationales."""


class Pair(NamedTuple):
    """Token ids of one question's right rationale and wrong rationale, each with its answer line."""

    right: Branch
    wrong: Branch


class PairMethod(Method):
    """A signed cross-entropy over pairs, averaged over the pairs of a step. Only questions with a pair are trained on.

    Pair i of a question uses the slots 2 i (right) and 2 i + 1 (wrong).
    """

    unread = (*OF_MIND, *OF_ANSWERS)
    lesson, remedy = "a pair of a right and a wrong rationale", WRONG_WANTED
    charts = (
        replace(
            LOSS,
            title="Loss of right minus wrong rationales",
            caption="It has no lower bound: a fall that grows faster is the likelihood of wrong rationales collapsing.",
        ),
        Chart(
            "l_real",
            "Right and wrong rationales",
            "nats per token",
            "The right ones should not rise, the wrong ones rise slowly. If both rise the student forgets: a smaller "
            "learning rate, or fewer steps.",
            (
                Series("right_loss", "right", BLUE, brief="right {:.2f}"),
                Series("wrong_loss", "wrong", AMBER, brief="wrong {:.2f}"),
            ),
        ),
    )

    def __init__(self, context: MethodContext) -> None:
        super().__init__(context)
        self._pairs = {name: _pairs_in(one) for name, one in self.made.items()}

    @classmethod
    def has_lesson(cls, config: MindConfig, question: Question) -> bool:
        return bool(question.wrong_rationales)

    @classmethod
    def sequences_of(
        cls, config: MindConfig, question: Question, tokens: TokenizedQuestion, sequences: Sequences
    ) -> TokenizedQuestion | None:
        pairs = cls.pairs_of(config, question, tokens, sequences)
        return _with_pairs(tokens, pairs) if pairs else None

    @classmethod
    def pairs_of(
        cls, config: MindConfig, question: Question, tokens: TokenizedQuestion, sequences: Sequences
    ) -> list[Pair]:
        """The pairs of a question that the method can use; here every right rationale with every wrong one."""
        wrongs = [sequences.wrong(question, rationale) for rationale in question.wrong_rationales]
        return [Pair(tokens.branches[k], wrong) for k in sorted(tokens.rationales) for wrong in wrongs]

    def term_of(self, slot: int) -> int:
        """Term 0 is the right rationales, term 1 the wrong ones."""
        return slot % 2

    @staticmethod
    def plan_of(
        step: Step, most: int, pairs_of: Callable[[str], Sequence[Pair]], right: float, wrong: float
    ) -> StepPlan:
        """The step's pairs, at most `most` per question. `right` and `wrong` are the weights of the two sequences in
        the mean over pairs; sequences of weight 0 are only observed."""
        questions = [_with_pairs(question, pairs_of(question.id)) for question in step.questions]
        filled = present_sequences(questions, 2 * most)
        # Turns the cross-entropy's mean over the step's questions into a mean over its pairs.
        scale = 2 * len(questions) / int(filled.sum())
        weights = torch.tensor([right, wrong], dtype=torch.float64).repeat(most) * scale
        weights = torch.where(filled, weights, 0)
        return replace(StepPlan.training(questions, weights), observed=filled & (weights == 0))


def _with_pairs(question: TokenizedQuestion, pairs: Sequence[Pair]) -> TokenizedQuestion:
    """The question with its pairs as sequences, in the slots of PairMethod."""
    others = dict(enumerate(branch for pair in pairs for branch in pair))
    return TokenizedQuestion(question.id, question.prompt, {}, (), others)


def _pairs_in(question: TokenizedQuestion) -> list[Pair]:
    branches = [question.others[slot] for slot in range(len(question.others))]
    return [Pair(*both) for both in zip(branches[0::2], branches[1::2], strict=True)]
