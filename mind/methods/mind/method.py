"""MIND: capability-aware multi-perspective distillation (arXiv 2601.03717).

MetaNet scores the rationales of each question; the student trains on those that it selects, weighted by the scores, and
on the consistency of their answers; the student's own losses on the rationales, L_real, calibrate MetaNet.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mind.batches.packing import present_rationales
from mind.config import MindConfig
from mind.data.questions import TO_COMPARE
from mind.errors import NotFiniteError
from mind.finite import named_questions
from mind.methods.method import Method, MethodContext
from mind.methods.mind.objective import anchored, select, student_loss
from mind.methods.mind.report import remarks, sections
from mind.methods.mind.scorers import SCORERS, Scored
from mind.methods.step import LossTerms, Step, StepMetrics, StepPlan
from mind.records import MicroBatch
from mind.report.charts import Section
from mind_kernels import Head

if TYPE_CHECKING:
    from mind.report.reading import Metrics


@dataclass(frozen=True, eq=False)
class MindPlan(StepPlan):
    """In this plan, `weights` are alpha and `trained` is I_dyn."""

    scored: Scored
    present: Tensor
    """(Q, K) bool, on the CPU: the rationales that exist."""


class Mind(Method):
    """Scores select and weigh the rationales. They come from MetaNet, which learns from the student's losses, or from a
    baseline."""

    title = "MIND"
    fewest_rationales, lesson = TO_COMPARE, "two rationales of a question"

    def __init__(self, context: MethodContext) -> None:
        super().__init__(context)
        self.scorer = SCORERS[context.config.metanet.scores](context)

    def inputs(self) -> Mapping[str, Mapping[str, str]]:
        return self.scorer.inputs()

    def before_training(self) -> Iterable[Mapping[str, Any]]:
        return self.scorer.before_training()

    def prepare(self, step: Step) -> MindPlan:
        config = self.context.config
        present = present_rationales(step.questions, self.context.perspectives)
        scored = self.scorer.score(step, present)
        there = present.to(scored.scores.device)
        scores = anchored(scored.scores, there) if config.metanet.anchor == "max" else scored.scores
        selected, alpha = select(scores, there, config.objective.beta, config.objective.tau_student)
        selected, interval = selected.cpu(), config.metanet.feedback_interval if self.scorer.feedback else 0
        # The best score is always selected, unless it is nan.
        bad = {"the scores": ~selected.any(1), "alpha, the weights": ~alpha.isfinite().all(1).cpu()}
        for name, rows in bad.items():
            if ids := [step.questions[q].id for q in rows.nonzero().flatten().tolist()]:
                raise NotFiniteError(f"{name} of {named_questions(ids)} are not finite")
        feedback = interval > 0 and step.number % interval == 0
        observed = present & ~selected if feedback else torch.zeros_like(present)
        return MindPlan(step.questions, alpha, selected, observed, scored, present)

    def loss(self, hidden: Tensor, head: Head, batch: MicroBatch, plan: StepPlan) -> LossTerms:
        return student_loss(
            hidden, head, batch, plan.weights, self.row_weights(plan, batch, hidden), self.context.config.objective
        )

    def finish_step(self, plan: StepPlan, totals: Mapping[str, float], l_real: Tensor) -> StepMetrics:
        assert isinstance(plan, MindPlan)
        own = self.scorer.finish_step(plan.questions, plan.scored, l_real)
        alpha, selected = plan.weights.cpu().double(), plan.trained.sum(1).double()
        tables = {"score": plan.scored.scores, "alpha": alpha, "selected_share": plan.trained}
        return StepMetrics(
            means={
                "sft_loss": totals["sft"],
                "consistency": totals["consistency"],
                "jsd": totals["jsd"] / max(1, totals["pairs"]),
                "selected": float(selected.mean()),
                "selected_ratio": float((selected / plan.present.sum(1)).mean()),
                "alpha_entropy": float(torch.special.entr(alpha).sum(1).mean()),
                **own.means,
            },
            tables={
                name: torch.where(plan.present, table.detach().cpu().double(), torch.nan)
                for name, table in tables.items()
            },
            latest=own.latest,
        )

    def parameters_by_work(self) -> Mapping[str, int]:
        return self.scorer.parameters_by_work()

    def networks(self) -> Mapping[str, nn.Module]:
        return self.scorer.networks()

    def state_dict(self) -> dict[str, Any]:
        return self.scorer.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.scorer.load_state_dict(state)

    def progress(self, logs: Mapping[str, Any]) -> str:
        names = self.context.config.data.perspectives
        often = "+".join(name for name in names if logs.get(f"selected_share/{name}", 0) >= 0.5)
        parts = [f"selected {often or 'others each time'}"]
        if "alpha_entropy" in logs:
            parts.append(f"alpha's entropy {logs['alpha_entropy']:.2f}")
        return ", ".join(parts)

    @classmethod
    def sections(cls, config: MindConfig) -> Sequence[Section]:
        return sections(config)

    @classmethod
    def remarks(cls, config: MindConfig, metrics: Metrics) -> Sequence[str]:
        return remarks(config, metrics)
