"""The sources of MIND's scores: MetaNet, and the baselines that it is compared with.

A scorer without MetaNet costs no warm-up, no features, and no observed rationales except those that it needs itself.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mind.batches.cross_entropy import losses_work, rationale_losses
from mind.batches.packing import present_rationales
from mind.errors import require
from mind.files import cache_folder
from mind.methods.method import MethodContext
from mind.methods.mind.calibration import Calibrator, LossUnit, moving_average
from mind.methods.mind.features import Encoder, Features, build_features, encoder_input, encoder_of, texts_of
from mind.methods.mind.metanet import MetaNet
from mind.methods.step import Step, StepMetrics, random_of
from mind.progress import Progress
from mind.records import TokenizedQuestion


class Scored(NamedTuple):
    """The scores of a step's questions."""

    scores: Tensor
    """(Q, K), positive for the rationales that exist; with MetaNet's graph if it made them."""
    own: Tensor
    """(Q, K) the scores before any change, which feedback is compared with; the same as `scores` if nothing changed
    them."""


class Scorer(ABC):
    """Scores the rationales of each step's questions; it may learn from L_real."""

    feedback = False
    """Whether it learns from L_real of rationales that were not selected, as `metanet.feedback` says."""

    def __init__(self, context: MethodContext) -> None:
        self.context = context
        self.config = context.config.metanet

    def inputs(self) -> Mapping[str, Mapping[str, str]]:
        """See `Method.inputs`."""
        return {}

    def before_training(self) -> Iterable[Mapping[str, Any]]:
        """See `Method.before_training`."""
        return ()

    @abstractmethod
    def score(self, step: Step, present: Tensor) -> Scored:
        """The scores of the step's questions; present (Q, K) bool, on the CPU: the rationales that exist."""

    def finish_step(self, questions: Sequence[TokenizedQuestion], scored: Scored, l_real: Tensor) -> StepMetrics:
        """Learns from L_real (Q, K) of a step, nan where it is not known."""
        return StepMetrics()

    def parameters_by_work(self) -> Mapping[str, int]:
        """See `Method.parameters_by_work`."""
        return {}

    def networks(self) -> Mapping[str, nn.Module]:
        """See `Method.networks`."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """See `Method.state_dict`."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `Method.load_state_dict`."""
        assert not state, f"{type(self).__name__} has no state"


class MetaNetScorer(Scorer):
    """MetaNet's scores; L_real calibrates MetaNet before and during training."""

    def __init__(self, context: MethodContext) -> None:
        super().__init__(context)
        config = context.config
        self.feedback = self.config.joint
        self._encoder = _encoder(context)
        self.features = _features(context, self._encoder)
        torch.manual_seed(config.train.seed)  # the same MetaNet whether the run is new or resumed
        width = self.features.question.shape[1]
        metanet = MetaNet(
            width, context.perspectives, self.config.width, self.config.synergy_heads, synergy=self.config.synergy
        )
        self.calibrator = Calibrator(metanet, self.config, config.metanet_learning_rate)
        self._index = {question.id: q for q, question in enumerate(context.tokenized)}

    def inputs(self) -> Mapping[str, Mapping[str, str]]:
        return encoder_input(self.config.encoder, self._encoder)

    def before_training(self) -> Iterable[Mapping[str, Any]]:
        """Trains MetaNet alone: L_real of the untrained student on every rationale, computed once, then epochs over
        that table."""
        context = self.context
        warms_up = self.config.warmup_epochs > 0
        observed = losses_work(context.tokenized, context.perspectives, context.pack_options) if warms_up else 0
        yield {
            "phase": "warmup",
            "work": {"encoded": self._encoder.tokens(texts_of(context.questions)), "observed": observed},
        }
        if not warms_up:
            return
        context.model.eval()
        with Progress("MetaNet warm-up", len(context.tokenized), "question") as bar:
            losses, tokens = rationale_losses(
                context.model, context.tokenized, context.perspectives, context.pack_options, bar.reach
            )
        history = self.calibrator.warm_up(
            self.features.question, self.features.rationales, tokens > 0, losses, context.config.train.seed
        )
        for epoch, loss in enumerate(history, start=1):
            yield {"phase": "warmup", "epoch": epoch, "meta_loss": loss}

    def score(self, step: Step, present: Tensor) -> Scored:
        scores = self.scores(step.questions, present)
        return Scored(scores, scores)

    def scores(self, questions: Sequence[TokenizedQuestion], present: Tensor) -> Tensor:
        """MetaNet's scores (Q, K), with their graph, for questions of the run and their `present` (Q, K) rationales."""
        index = torch.tensor([self._index[question.id] for question in questions])
        metanet = self.calibrator.metanet
        inputs = (self.features.question[index], self.features.rationales[index], present)
        return metanet(*(tensor.to(metanet.perspective.device) for tensor in inputs))

    def finish_step(self, questions: Sequence[TokenizedQuestion], scored: Scored, l_real: Tensor) -> StepMetrics:
        present = present_rationales(questions, self.context.perspectives)
        means = {"saturated": saturated(scored.own.detach().cpu(), present)}
        if not self.config.joint:
            return StepMetrics(means)
        ids = [question.id for question in questions]
        meta_loss = self.calibrator.add_feedback(ids, scored.own, l_real.to(scored.own))
        self.calibrator.end_step()
        latest = {"meta_learning_rate": self.calibrator.learning_rate}
        return StepMetrics(means | {"meta_loss": meta_loss}, latest=latest)

    def parameters_by_work(self) -> Mapping[str, int]:
        return {"encoded": self._encoder.parameters}

    def networks(self) -> Mapping[str, nn.Module]:
        return {"metanet": self.calibrator.metanet}

    def state_dict(self) -> dict[str, Any]:
        return self.calibrator.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.calibrator.load_state_dict(state)


class ShuffledScorer(MetaNetScorer):
    """MetaNet's scores, permuted at random among the rationales of each question: a control for its selection.

    The number of selected rationales and their weights stay those of MetaNet's scores; MetaNet learns as usual.
    """

    def score(self, step: Step, present: Tensor) -> Scored:
        own = self.scores(step.questions, present)
        noise = torch.rand(present.shape, generator=_generator(self.context, step))
        scores = own.detach().clone()
        for q, there in enumerate(present):
            places = there.nonzero().flatten()
            scores[q, places] = own.detach()[q, places[noise[q, places].argsort()]]
        return Scored(scores, own)


class UniformScorer(Scorer):
    """The same score for every rationale: all are selected, with the same weight."""

    def score(self, step: Step, present: Tensor) -> Scored:
        scores = present.double()
        return Scored(scores, scores)


class RandomScorer(Scorer):
    """Scores drawn uniformly from (0, 1), anew in each step."""

    def score(self, step: Step, present: Tensor) -> Scored:
        drawn = torch.rand(present.shape, generator=_generator(self.context, step), dtype=torch.float64)
        scores = torch.where(present, 1 - drawn, 0)  # (0, 1]: the selection rule needs positive scores
        return Scored(scores, scores)


class InstantScorer(Scorer):
    """Scores from the student's losses in this step, which are observed first: s = 1 + min_j L_j - L_k, at least
    `_LOWEST`, with losses in the unit in which MetaNet would learn them.

    Among all scores whose largest is 1, these minimize L_meta: it is 0.
    """

    def __init__(self, context: MethodContext) -> None:
        super().__init__(context)
        self._unit = LossUnit(self.config.spread)

    def score(self, step: Step, present: Tensor) -> Scored:
        losses = step.observe(present)
        self._unit.follow(losses)
        scores = scores_of_losses(self._unit(losses), present)
        return Scored(scores, scores)

    def state_dict(self) -> dict[str, Any]:
        return {"variance": self._unit.variance}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._unit.variance = state.get("variance", math.nan)  # older versions did not need it


class TableScorer(Scorer):
    """The same formula with a moving average of L_real per question and rationale: a MetaNet that cannot generalize."""

    feedback = True

    def __init__(self, context: MethodContext) -> None:
        super().__init__(context)
        self._average: dict[str, Tensor] = {}
        self._unit = LossUnit(self.config.spread)

    def before_training(self) -> Iterable[Mapping[str, Any]]:
        """Computes L_real of the untrained student on every rationale."""
        context = self.context
        context.model.eval()
        with Progress("L_real of all rationales", len(context.tokenized), "question") as bar:
            losses, _ = rationale_losses(
                context.model, context.tokenized, context.perspectives, context.pack_options, bar.reach
            )
        self._unit.follow(losses)
        ids = [question.id for question in context.tokenized]
        moving_average(self._average, ids, losses.double(), self.config.table_decay)
        observed = losses_work(context.tokenized, context.perspectives, context.pack_options)
        return [{"phase": "warmup", "work": {"observed": observed}}]

    def score(self, step: Step, present: Tensor) -> Scored:
        """Raises MindError for a question whose losses are not in the table."""
        for question in step.questions:
            require(
                question.id in self._average,
                f"question {question.id}: the table has no losses of it: call before_training, or load_state_dict with "
                "the state of a run that did",
            )
        losses = torch.stack([self._average[question.id] for question in step.questions])
        scores = scores_of_losses(self._unit(losses), present)
        return Scored(scores, scores)

    def finish_step(self, questions: Sequence[TokenizedQuestion], scored: Scored, l_real: Tensor) -> StepMetrics:
        self._unit.follow(l_real)
        moving_average(self._average, [question.id for question in questions], l_real, self.config.table_decay)
        return StepMetrics()

    def state_dict(self) -> dict[str, Any]:
        return {"average": self._average, "variance": self._unit.variance}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._average = dict(state["average"])
        self._unit.variance = state.get("variance", math.nan)  # older versions did not need it


SCORERS: dict[str, type[Scorer]] = {
    "metanet": MetaNetScorer,
    "shuffled": ShuffledScorer,
    "uniform": UniformScorer,
    "random": RandomScorer,
    "instant": InstantScorer,
    "table": TableScorer,
}
"""Value of `metanet.scores` -> its scorer."""

_LOWEST = 2.0**-40


def scores_of_losses(
    losses: Tensor,  # (Q, K)
    present: Tensor,  # (Q, K) bool
) -> Tensor:  # (Q, K)
    """1 + min_j L_j - L_k, at least 2^-40, and 0 for a missing rationale.

    The rule s_k >= beta max_j s_j needs positive scores. The largest is 1 here, and a score that would be negative
    becomes 2^-40, which no larger beta selects.
    """
    known = torch.where(present, losses, torch.inf)
    scores = 1 + known.amin(1, keepdim=True) - known
    return torch.where(present, scores.clamp(min=_LOWEST), 0)


def saturated(
    scores: Tensor,  # (Q, K)
    present: Tensor,  # (Q, K) bool, on the same device
) -> float:
    """The share of the `present` scores in the outer hundredths of (0, 1), where a sigmoid hardly learns."""
    return float(((scores - 0.5).abs() > 0.49)[present].double().mean())


def _generator(context: MethodContext, step: Step) -> torch.Generator:
    return random_of(context.config.train.seed, step.number, "scores")


def _encoder(context: MethodContext) -> Encoder:
    config = context.config
    return encoder_of(config.metanet.encoder, context.model, context.tokenizer, config.train.pack_length)


def _features(context: MethodContext, encoder: Encoder) -> Features:
    config = context.config
    context.model.eval()
    texts = sum(1 + len(question.rationales) for question in context.questions)
    with Progress("MetaNet features", texts, "text") as bar:
        return build_features(context.questions, config.data.perspectives, encoder, cache_folder(), bar.update)
