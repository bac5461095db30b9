"""MIND: capability-aware multi-perspective distillation (arXiv 2601.03717).

MetaNet scores the rationales of each question; the student trains on those that it selects, weighted by the scores, and
on the consistency of their answers; the student's own losses on the rationales, L_real, calibrate MetaNet.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from mind.batches.cross_entropy import rationale_losses
from mind.batches.packing import present_rationales
from mind.config import MindConfig
from mind.errors import NotFiniteError
from mind.files import cache_folder
from mind.finite import named_questions
from mind.methods.method import LossTerms, Method, MethodContext, Step, StepMetrics, StepPlan
from mind.methods.mind.calibration import Calibrator
from mind.methods.mind.features import Encoder, Features, SentenceEncoder, StudentEncoder, build_features
from mind.methods.mind.metanet import MetaNet
from mind.methods.mind.objective import select, student_loss
from mind.methods.mind.report import sections
from mind.records import MicroBatch, TokenizedQuestion
from mind.report.charts import Section
from mind_kernels import Head


@dataclass(frozen=True, eq=False)
class MindPlan(StepPlan):
    """`weights` are alpha, `trained` is I_dyn."""

    scores: Tensor
    """(Q, K), of MetaNet, with its graph."""
    present: Tensor
    """(Q, K) bool, on the CPU: the rationales that there are."""


class Mind(Method):
    """MetaNet selects and weighs the rationales, the student's losses on them teach MetaNet."""

    title = "MIND"

    def __init__(self, context: MethodContext) -> None:
        super().__init__(context)
        config = context.config
        encoder = _encoder(context)
        self._encoder_name = encoder.name
        self.features = _features(context, encoder)
        torch.manual_seed(config.train.seed)  # the same MetaNet whether the run is new or resumed
        width = self.features.question.shape[1]
        metanet = MetaNet(width, context.perspectives, config.metanet.width, config.metanet.synergy_heads)
        self.calibrator = Calibrator(metanet, config.metanet, config.metanet_learning_rate)
        self._index = {question.id: q for q, question in enumerate(context.tokenized)}

    def inputs(self) -> Mapping[str, Mapping[str, str]]:
        source = self.context.config.metanet.encoder
        return {} if source == "student" else {"metanet.encoder": {"source": source, "sha256": self._encoder_name}}

    def before_training(self) -> Iterable[Mapping[str, Any]]:
        """MetaNet alone: L_real of the still student on every rationale, once, then epochs over that table."""
        context, config = self.context, self.context.config
        if config.metanet.warmup_epochs == 0:
            return
        context.model.eval()
        with tqdm(total=len(context.tokenized), unit="question", desc="MetaNet warm-up", leave=False) as bar:
            losses, tokens = rationale_losses(
                context.model, context.tokenized, context.perspectives, context.pack_options, bar.update
            )
        history = self.calibrator.warm_up(
            self.features.question, self.features.rationales, tokens > 0, losses, config.train.seed
        )
        for epoch, loss in enumerate(history, start=1):
            yield {"phase": "warmup", "epoch": epoch, "meta_loss": loss}

    def scores(self, questions: Sequence[TokenizedQuestion], present: Tensor) -> Tensor:
        """MetaNet's scores (Q, K), with its graph, of questions of the run and their `present` (Q, K) rationales."""
        index = torch.tensor([self._index[question.id] for question in questions])
        metanet = self.calibrator.metanet
        inputs = (self.features.question[index], self.features.rationales[index], present)
        return metanet(*(tensor.to(metanet.perspective.device) for tensor in inputs))

    def prepare(self, step: Step) -> MindPlan:
        config = self.context.config
        present = present_rationales(step.questions, self.context.perspectives)
        scores = self.scores(step.questions, present)
        selected, alpha = select(scores, present.to(scores.device), config.objective.beta, config.objective.tau_student)
        selected, interval = selected.cpu(), config.metanet.feedback_interval
        # The best score is always selected, unless it is nan.
        bad = {"MetaNet's scores": ~selected.any(1), "alpha, the weights": ~alpha.isfinite().all(1).cpu()}
        for name, rows in bad.items():
            if ids := [step.questions[q].id for q in rows.nonzero().flatten().tolist()]:
                raise NotFiniteError(f"{name} of {named_questions(ids)} are not finite")
        feedback = interval > 0 and step.number % interval == 0
        observed = present & ~selected if feedback else torch.zeros_like(present)
        return MindPlan(step.questions, alpha, selected, observed, scores, present)

    def loss(self, hidden: Tensor, head: Head, batch: MicroBatch, plan: StepPlan) -> LossTerms:
        return student_loss(hidden, head, batch, plan.weights, self.context.config.objective)

    def finish_step(self, plan: StepPlan, totals: Mapping[str, float], l_real: Tensor) -> StepMetrics:
        assert isinstance(plan, MindPlan)
        ids = [question.id for question in plan.questions]
        meta_loss = self.calibrator.add_feedback(ids, plan.scores, l_real.to(plan.scores))
        self.calibrator.end_step()
        tables = {"score": plan.scores, "alpha": plan.weights, "selected_share": plan.trained}
        return StepMetrics(
            means={
                "sft_loss": totals["sft"],
                "consistency": totals["consistency"],
                "jsd": totals["jsd"] / max(1, totals["pairs"]),
                "meta_loss": meta_loss,
                "selected": float(plan.trained.sum(1).double().mean()),
            },
            tables={
                name: torch.where(plan.present, table.detach().cpu().double(), torch.nan)
                for name, table in tables.items()
            },
            latest={"meta_learning_rate": self.calibrator.learning_rate},
        )

    def networks(self) -> Mapping[str, nn.Module]:
        return {"metanet": self.calibrator.metanet}

    def state_dict(self) -> dict[str, Any]:
        return self.calibrator.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.calibrator.load_state_dict(state)

    def progress(self, logs: Mapping[str, Any]) -> str:
        names = self.context.config.data.perspectives
        return "selected " + "+".join(name for name in names if logs.get(f"selected_share/{name}", 0) >= 0.5)

    @classmethod
    def sections(cls, config: MindConfig) -> Sequence[Section]:
        return sections(config)


def _encoder(context: MethodContext) -> Encoder:
    config = context.config
    if config.metanet.encoder == "student":
        return StudentEncoder(context.model, context.tokenizer, config.train.pack_length)
    return SentenceEncoder(config.metanet.encoder)


def _features(context: MethodContext, encoder: Encoder) -> Features:
    config = context.config
    context.model.eval()
    texts = sum(1 + len(question.rationales) for question in context.questions)
    with tqdm(total=texts, unit="text", desc="MetaNet features", leave=False) as bar:
        return build_features(context.questions, config.data.perspectives, encoder, cache_folder(), bar.update)
