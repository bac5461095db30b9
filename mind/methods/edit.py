"""EDIT (arXiv 2405.19737): learn the key steps by which a right rationale differs from a wrong one.

    L = mean over pairs of a / T+ sum_{t changed} nll(right_t) - b / T- sum_{t changed} nll(wrong_t)

Changed are the tokens that an alignment of the two by edit distance deletes, inserts or replaces; T+ and T- count all
tokens of a sequence, changed or not, as the authors' code does (their text prints a plain sum). The authors have a
teacher correct and corrupt texts, which changes about one token in twenty: `mind data generate --dual` does so, and
these twins are taken first. Pairs that differ in most tokens say nothing about key steps, so they are left out.

It is the second stage: the student is fine-tuned on right rationales first. The loss has no lower bound, so that its
learning rate is far below that of the first (the authors': 5e-6 after 2e-4, for 10 epochs after 15).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from mind.config import MethodOptions, MindConfig
from mind.methods.pairs import Pair, PairMethod
from mind.methods.sequences import Sequences
from mind.methods.stage import Stage
from mind.methods.step import LossTerms, Step, StepMetrics, StepPlan, slot_means
from mind.records import MicroBatch, Question, Rationale, TokenizedQuestion
from mind.report.charts import AMBER, BLUE, Chart, Series
from mind_kernels import Head


@dataclass(frozen=True)
class EditOptions(MethodOptions):
    """Options of EDIT; alpha and beta are the authors'."""

    alpha: float = 1.0
    """a: weight of the changed tokens of the right rationale."""
    beta: float = 0.025
    """b: weight of the changed tokens of the wrong rationale, whose likelihood training lowers; at 0.05 the authors
    lose all of the gain."""
    pairs: int = 4
    """Pairs per question, at most: twins first, then those with the smallest changes [ours]."""
    max_changed: float = 0.5
    """Largest share of the tokens of either rationale that may be changed [ours]."""

    BOUNDS = {
        "alpha": "a number >= 0",
        "beta": "a number >= 0",
        "pairs": "at least 1",
        "max_changed": "a number in (0, 1]",
    }


class Edit(PairMethod):
    """All pairs of a question in each step that has it."""

    Options = EditOptions
    title = "EDIT"
    learning_rate = 5e-6
    charts = (
        *PairMethod.charts,
        Chart(
            "terms",
            "The two terms of the objective",
            "nats per token",
            "What the changed tokens of the right rationales cost, and what those of the wrong ones give back: the "
            "first should fall, and the second stay small beside it.",
            (
                Series("right_term", "a × changed tokens, right", BLUE, brief="a {:.3f}"),
                Series("wrong_term", "b × changed tokens, wrong", AMBER, brief="b {:.3f}"),
            ),
            from_zero=True,
        ),
    )

    @classmethod
    def stages(cls, config: MindConfig) -> Sequence[Stage]:
        """The authors train adapters, with a rate that is too high for all weights of most students."""
        return [Stage("sft", learning_rate=2e-4 if config.student.lora else None)]

    @classmethod
    def pairs_of(
        cls, config: MindConfig, question: Question, tokens: TokenizedQuestion, sequences: Sequences
    ) -> list[Pair]:
        """For each wrong rationale its twin or, without one, the right rationale that is most like it; of all these
        pairs the twins first. Weights are 1 where the two differ, and else 0."""
        options = cls.options_in(config)
        nearest: dict[tuple[int, ...], tuple[bool, float, Pair]] = {}
        for twins, pair in _pairs(question, tokens, sequences):
            shorter, longer = sorted(len(branch.ids) for branch in pair)
            if longer - shorter > options.max_changed * longer:  # so many are changed at least
                continue
            right, wrong = changed_tokens(pair.right.ids, pair.wrong.ids)
            share = max(sum(right) / len(right), sum(wrong) / len(wrong))
            marked = Pair(replace(pair.right, weights=_weights(right)), replace(pair.wrong, weights=_weights(wrong)))
            best = nearest.get(pair.wrong.ids)
            if share <= options.max_changed and (best is None or (not twins, share) < best[:2]):
                nearest[pair.wrong.ids] = not twins, share, marked
        closest = sorted(nearest.values(), key=lambda item: item[:2])
        return [pair for _, _, pair in closest[: options.pairs]]

    @property
    def slots(self) -> tuple[str, ...]:
        return tuple(f"{kind} {number}" for number in range(1, self.options.pairs + 1) for kind in ("right", "wrong"))

    def prepare(self, step: Step) -> StepPlan:
        options = self.options
        return self.plan_of(step, options.pairs, self._pairs.__getitem__, options.alpha, -options.beta)

    def loss(self, hidden: Tensor, head: Head, batch: MicroBatch, plan: StepPlan) -> LossTerms:
        weight = self.row_weights(plan, batch, hidden)
        loss, rows = self.cross_entropy(hidden, head, batch, weight)
        terms = weight * rows.nll  # positive for right rationales, negative for wrong ones
        return LossTerms.of(
            loss, rows, batch, right_term=terms.clamp(min=0).sum(), wrong_term=terms.clamp(max=0).neg().sum()
        )

    def finish_step(self, plan: StepPlan, totals: Mapping[str, float], l_real: Tensor) -> StepMetrics:
        return StepMetrics(
            {
                "right_term": totals["right_term"],
                "wrong_term": totals["wrong_term"],
                **slot_means(l_real, {"right_loss": slice(0, None, 2), "wrong_loss": slice(1, None, 2)}),
                "pairs": float((plan.trained | plan.observed).sum(1).double().mean() / 2),
            }
        )


def _pairs(question: Question, tokens: TokenizedQuestion, sequences: Sequences) -> Iterator[tuple[bool, Pair]]:
    """Each wrong rationale with its twin (true) or, without one, with every right rationale."""
    for rationale in question.wrong_rationales:
        wrong = sequences.wrong(question, rationale)
        if rationale.right is not None:
            twin = Rationale(rationale.perspective, rationale.right)
            yield True, Pair(sequences.explained(question, twin, answered=True), wrong)
        else:
            for k in sorted(tokens.rationales):
                yield False, Pair(tokens.branches[k], wrong)


def changed_tokens(right: tuple[int, ...], wrong: tuple[int, ...]) -> tuple[list[bool], list[bool]]:
    """Which tokens of each an alignment with the fewest edits deletes, inserts or replaces.

    Of several such alignments the one that a walk back from the end finds which deletes where it can, else inserts: it
    keeps more tokens in common than one that replaces first.
    """
    distance = _distances(right, wrong)
    of_right, of_wrong = [False] * len(right), [False] * len(wrong)
    i, j = len(right), len(wrong)
    while i or j:
        here = distance[i, j]
        if i and here == distance[i - 1, j] + 1:
            i -= 1
            of_right[i] = True
        elif j and here == distance[i, j - 1] + 1:
            j -= 1
            of_wrong[j] = True
        else:
            i, j = i - 1, j - 1
            of_right[i] = of_wrong[j] = here != distance[i, j]
    return of_right, of_wrong


def _distances(first: Sequence[int], second: Sequence[int]) -> np.ndarray:
    """(len(first) + 1, len(second) + 1): the edit distance of the beginnings of both."""
    columns = np.arange(len(second) + 1)
    rows = [columns]
    tokens = np.asarray(second)
    for number, token in enumerate(first, start=1):
        above = rows[-1]
        best = np.minimum(above + 1, np.concatenate([[number], above[:-1] + (tokens != token)]))
        # An insertion costs 1 per column: the smallest of best[k] + (j - k) over k <= j.
        rows.append(np.minimum.accumulate(best - columns) + columns)
    return np.stack(rows)


def _weights(changed: Sequence[bool]) -> tuple[float, ...]:
    return tuple(map(float, changed))
