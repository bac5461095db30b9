"""QCRD, quality-guided contrastive rationales: learn from right rationales by their quality, and away from wrong ones.

    L = a CE(answer | predict, x) + (1 - a) [ q+ CE+ - beta (1 - q-) min(CE- - delta, 0) ]

CE+ is that of the right rationale that the student finds easiest, CE- that of the wrong one that it finds hardest
(`negative` "max") or easiest ("min"): a pass without a graph over all rationales of a question comes before each step,
and choice and clip are constants. A wrong rationale whose CE reaches delta is pushed no further, so that the loss has a
lower bound. q is the probability of being right that a discriminator gives a rationale: a small network on the vectors
that MetaNet would see, trained on all right and wrong ones, for `discriminator_epochs` at first, then once per epoch.

Wrong are the wrong rationales of the data, and an answer to each question that the student samples every
`refresh_epochs`: the student that it is compared with is up to so many epochs older. An answer that turns out right is
left out [ours]: it is no lesson to unlearn. Vectors are those of the initial student throughout, of which a copy stays
in memory: vectors of a student that moves would tell when a text was encoded, not whether it is right.

The source was not at hand; what it says is known from a review that contradicts itself on "min" and "max". Its
discriminator is an encoder of its own, and a third term decays by 0.9 per epoch, which is left out.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from mind.answer_line import rationale_of
from mind.batches.packing import present_sequences
from mind.config import MetaNetConfig, MethodOptions, MindConfig
from mind.files import cache_folder
from mind.grading.answers import judge_text
from mind.methods.discriminator import Discriminator
from mind.methods.method import OF_ANSWERS, OF_MIND, Method, MethodContext
from mind.methods.mind.features import build_features, encoder_input, encoder_of, texts_of, vectors_of
from mind.methods.pairs import WRONG_WANTED
from mind.methods.sequences import Sequences
from mind.methods.step import LossTerms, Step, StepMetrics, StepPlan, random_of
from mind.progress import Progress
from mind.records import Branch, MicroBatch, Question, TokenizedQuestion
from mind.report.charts import AMBER, BLUE, INK, Chart, Series
from mind.student.tokenization import Chat, text_of
from mind_kernels import Head

if TYPE_CHECKING:
    from mind.report.reading import Metrics


_LINES = 8
"""Of metrics.jsonl, for a remark on how a run went."""


@dataclass(frozen=True)
class QcrdOptions(MethodOptions):
    """Options of QCRD; label, beta, delta, negative and refresh_epochs are the review's."""

    label: float = 0.5
    """a: weight of the answer alone; that of the rationales is 1 - a."""
    beta: float = 0.2
    """Weight of the wrong rationale."""
    delta: float = 3.0
    """Training lowers the likelihood of a wrong rationale up to this cross-entropy, in nats per token."""
    negative: Literal["max", "min"] = "max"
    """Which wrong rationale of a question that is: the one with the largest cross-entropy, or with the smallest."""
    refresh_epochs: int = 5
    """Epochs from one round of the student's own answers to the next; 0: none, only the wrong rationales of the
    data."""
    sample_temperature: float = 1.0
    """Temperature of these answers [ours]. At the review's 1.5 the answers of a small chat model are noise: 7 to 8 nats
    per token, far beyond delta."""
    max_new_tokens: int = 256
    """Longest of these answers, in tokens [ours]."""
    label_prefix: str = "predict: "
    """Text in front of the question if the answer alone is asked for."""
    discriminator_epochs: int = 20
    """Epochs of the discriminator before the first step [ours]."""
    discriminator_learning_rate: float = 1e-3
    """Learning rate of the discriminator [ours]."""

    BOUNDS = {
        "label": "a number in [0, 1)",
        "beta": "a number >= 0",
        "delta": "a positive number",
        "sample_temperature": "a positive number",
        "discriminator_learning_rate": "a positive number",
        "refresh_epochs": "at least 0",
        "max_new_tokens": "at least 1",
        "discriminator_epochs": "at least 1",
    }


@dataclass(frozen=True, eq=False)
class QcrdPlan(StepPlan):
    """Per question one right rationale, at most one wrong one, and the answer alone."""

    losses: Tensor
    """(Q, S) CE of all rationales, nan where there is none."""
    quality: Tensor
    """(Q, S) q of all rationales, nan where there is none."""
    positive: Tensor
    """(Q,) the slot of the right rationale."""
    negative: Tensor
    """(Q,) that of the wrong one; of a question without any it means nothing."""
    encoded: int
    """Tokens of texts that became vectors for this step."""


class Qcrd(Method):
    """Slots: the perspectives, the answer alone, the student's own answer, the wrong rationales of the data."""

    Options = QcrdOptions
    title = "QCRD"
    lesson, lesson_in_each = "a wrong rationale", False
    remedy = f"{WRONG_WANTED}, and --options.refresh-epochs samples some"
    unread = (
        *OF_MIND[1:],
        *OF_ANSWERS,
        *(f"metanet.{field.name}" for field in fields(MetaNetConfig) if field.name != "encoder"),
    )
    charts = (
        Chart(
            "l_real",
            "Loss of what is trained on",
            "nats per token",
            "That of the answer and of the right rationale should fall; that of the wrong one should rise towards "
            "delta, and no further.",
            (
                Series("label_loss", "answer alone", INK),
                Series("positive_loss", "right rationale", BLUE, brief="right {:.2f}"),
                Series("negative_loss", "wrong rationale", AMBER, brief="wrong {:.2f}"),
            ),
        ),
        Chart(
            "quality",
            "Quality by the discriminator",
            "probability of being right",
            "The lines should part: a discriminator that tells nothing gives both the share of right rationales.",
            (Series("right_quality", "right rationales", BLUE), Series("wrong_quality", "wrong rationales", AMBER)),
            from_zero=True,
        ),
        Chart(
            "pushed",
            "Questions with a wrong rationale that is pushed",
            "%",
            "It falls as wrong rationales reach delta.",
            (Series("pushed", scale=100),),
            from_zero=True,
        ),
    )

    def __init__(self, context: MethodContext) -> None:
        super().__init__(context)
        config, options = context.config, self.options
        self._index = {question.id: q for q, question in enumerate(context.questions)}
        model: Any = context.model
        if options.refresh_epochs and config.metanet.encoder == "student":
            model = copy.deepcopy(model).requires_grad_(False)
        model.eval()
        self._encoder = encoder_of(config.metanet.encoder, model, context.tokenizer, config.train.pack_length)
        wrongs = [len(question.wrong_rationales) for question in context.questions]
        self._wrongs = max(wrongs)
        self._stop_text = Chat(context.tokenizer).stop_text
        texts = [rationale.text for question in context.questions for rationale in question.wrong_rationales]
        cache = cache_folder()
        with Progress("features", len(texts) + len(texts_of(context.questions)), "text") as bar:
            right = build_features(context.questions, config.data.perspectives, self._encoder, cache, bar.update)
            others = right.question.new_zeros(len(wrongs), 2 + self._wrongs, right.question.shape[1])
            if texts:
                places = [(q, 2 + n) for q, count in enumerate(wrongs) for n in range(count)]
                others[tuple(torch.tensor(places).T)] = vectors_of(texts, self._encoder, cache, bar.update)
        self._encoded = self._encoder.tokens([*texts_of(context.questions), *texts])
        self._question = right.question
        self._vectors = torch.cat([right.rationales, others], 1)  # (Q, S, F), those of the answer alone unused
        self._samples: dict[str, tuple[int, ...]] = {}
        self._epoch, self._discriminator_loss = -1, 0.0
        width = self._question.shape[1]
        self.discriminator = Discriminator(width, options.discriminator_learning_rate, config.train.seed)

    @classmethod
    def has_lesson(cls, config: MindConfig, question: Question) -> bool:
        return bool(question.wrong_rationales) or cls.options_in(config).refresh_epochs > 0

    @classmethod
    def sequences_of(
        cls, config: MindConfig, question: Question, tokens: TokenizedQuestion, sequences: Sequences
    ) -> TokenizedQuestion:
        """Its rationales, its answer, the longest sample if there are any, and its wrong rationales."""
        options, answer = cls.options_in(config), len(config.data.perspectives)
        others = {answer: sequences.answered(question, options.label_prefix)}
        if options.refresh_epochs:
            others[answer + 1] = sequences.longest_sample(question, options.max_new_tokens)
        wrong = (sequences.wrong(question, rationale) for rationale in question.wrong_rationales)
        return replace(tokens, others=others | dict(enumerate(wrong, start=answer + 2)))

    @property
    def slots(self) -> tuple[str, ...]:
        wrong = (f"wrong {number}" for number in range(1, self._wrongs + 1))
        return (*super().slots, "answer", "sample", *wrong)

    @property
    def _answer(self) -> int:
        """The slot of the answer alone: right rationales are before it, wrong ones behind it."""
        return self.context.perspectives

    def inputs(self) -> Mapping[str, Mapping[str, str]]:
        return encoder_input(self.context.config.metanet.encoder, self._encoder)

    def before_training(self) -> Iterable[Mapping[str, Any]]:
        return [{"phase": "warmup", "work": {"encoded": self._encoded}}]

    def parameters_by_work(self) -> Mapping[str, int]:
        return {"encoded": self._encoder.parameters}

    def prepare(self, step: Step) -> QcrdPlan:
        encoded = self._begin_epoch(step) if step.epoch > self._epoch else 0
        questions = [self._with_sample(question.id) for question in step.questions]
        present = present_sequences(questions, len(self.slots))
        rationales = present.clone()
        rationales[:, self._answer] = False
        losses = step.observe(rationales, questions)
        index = [self._index[question.id] for question in questions]
        quality = self.discriminator.quality(self._question[index], self._vectors[index])
        return self.plan_of(questions, losses, torch.where(rationales, quality, torch.nan), encoded)

    def plan_of(
        self, questions: Sequence[TokenizedQuestion], losses: Tensor, quality: Tensor, encoded: int = 0
    ) -> QcrdPlan:
        """What is trained on, given CE and q (Q, S) of all rationales, nan where there is none."""
        options, answer = self.options, self._answer
        rows = torch.arange(len(questions))
        positive = losses[:, :answer].nan_to_num(nan=torch.inf).argmin(1)
        sign = 1.0 if options.negative == "max" else -1.0
        ranked = (sign * losses[:, answer + 1 :]).nan_to_num(nan=-torch.inf)
        negative = answer + 1 + ranked.argmax(1)
        weights = torch.zeros_like(losses)
        weights[:, answer] = options.label
        weights[rows, positive] = (1 - options.label) * quality[rows, positive]
        pushed = losses[rows, negative] < options.delta  # False of a question without a wrong rationale: nan
        push = (1 - options.label) * options.beta * (1 - quality[rows, negative])
        weights[rows, negative] = torch.where(pushed, -push, 0.0)
        return QcrdPlan.training(
            questions, weights, losses=losses, quality=quality, positive=positive, negative=negative, encoded=encoded
        )

    def loss(self, hidden: Tensor, head: Head, batch: MicroBatch, plan: StepPlan) -> LossTerms:
        assert isinstance(plan, QcrdPlan)
        terms = super().loss(hidden, head, batch, plan)
        # What the clip adds for each wrong rationale that is pushed, the only ones with a negative weight.
        pushes = self.sequence_weights(plan).clamp(max=0).neg()
        clipped = self.options.delta * pushes[batch.present].sum() / len(pushes)
        return terms._replace(loss=terms.loss + clipped.to(terms.loss))

    def term_of(self, slot: int) -> int:
        """Right rationales, the answer alone, wrong ones."""
        return (slot >= self._answer) + (slot > self._answer)

    def finish_step(self, plan: StepPlan, totals: Mapping[str, float], l_real: Tensor) -> StepMetrics:
        assert isinstance(plan, QcrdPlan)
        rows, answer = torch.arange(len(plan.questions)), self._answer
        means = {
            "label_loss": l_real[:, answer],
            "positive_loss": plan.losses[rows, plan.positive],
            "negative_loss": plan.losses[rows, plan.negative],
            "right_quality": plan.quality[:, :answer],
            "wrong_quality": plan.quality[:, answer + 1 :],
            "pushed": (plan.weights < 0).any(1).double(),
        }
        known = {name: float(value.nanmean()) for name, value in means.items() if not value.isnan().all()}
        return StepMetrics(
            known,
            {"l_real": torch.where(plan.losses.isnan(), l_real, plan.losses)},
            {"discriminator_loss": self._discriminator_loss, "samples": len(self._samples)},
            {"encoded": plan.encoded},
        )

    @classmethod
    def remarks(cls, config: MindConfig, metrics: Metrics) -> Sequence[str]:
        pushed = metrics.series("pushed")[-_LINES:]
        if len(pushed) < _LINES or pushed.any():
            return ()
        return (
            f"no wrong rationale was pushed in the latest {_LINES} lines: all have a loss beyond options.delta; a "
            "lower options.sample_temperature gives ones that are nearer",
        )

    def _begin_epoch(self, step: Step) -> int:
        """New answers of the student if it is time, and the discriminator's turn; returns the tokens encoded for it."""
        options, encoded = self.options, 0
        if options.refresh_epochs and step.epoch % options.refresh_epochs == 0:
            prompts = [question.prompt for question in self.context.tokenized]
            with Progress("answers of the student", len(prompts), "question") as bar:
                answers = step.sample(
                    prompts,
                    temperature=options.sample_temperature,
                    max_new_tokens=options.max_new_tokens,
                    progress=bar.reach,
                )
            encoded = self._take(self._wrong_ones(answers))
        there = torch.zeros(self._vectors.shape[:2], dtype=torch.bool)
        for q, question in enumerate(self.context.tokenized):
            there[q, list(self._with_sample(question.id).branches)] = True
        there[:, self._answer] = False
        q, slot = there.nonzero().T
        self._discriminator_loss = self.discriminator.learn(
            self._question[q],
            self._vectors[q, slot],
            slot < self._answer,
            options.discriminator_epochs if self._epoch < 0 else 1,
            random_of(self.context.config.train.seed, step.number, "discriminator"),
        )
        self._epoch = step.epoch
        return encoded

    def _wrong_ones(self, answers: Sequence[tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        """Of the answers to all questions those that say something and do not turn out right, by question."""
        texts = [text_of(self.context.tokenizer, answer, self._stop_text) for answer in answers]
        return {
            question.id: answer
            for question, answer, text in zip(self.context.questions, answers, texts, strict=True)
            if _said(text) and judge_text(text, question).verdict != "right"
        }

    def _take(self, samples: Mapping[str, tuple[int, ...]]) -> int:
        """These are the student's answers from now on; returns the tokens of their texts."""
        self._samples = dict(samples)
        texts = [_said(text_of(self.context.tokenizer, sample, self._stop_text)) for sample in samples.values()]
        if texts:
            vectors = vectors_of(texts, self._encoder, cache_folder())
            self._vectors[[self._index[name] for name in samples], self._answer + 1] = vectors
        return self._encoder.tokens(texts)

    def _with_sample(self, name: str) -> TokenizedQuestion:
        """A question with the answer that the student gave, if it is among the wrong ones, in place of the longest."""
        question, slot = self.made[name], self._answer + 1
        others = {place: branch for place, branch in question.others.items() if place != slot}
        if name in self._samples:
            others[slot] = Branch(question.prompt, self._samples[name])
        return replace(question, others=others)

    def networks(self) -> Mapping[str, nn.Module]:
        return {"discriminator": self.discriminator.network}

    def state_dict(self) -> dict[str, Any]:
        return {
            "epoch": self._epoch,
            "samples": {name: list(sample) for name, sample in self._samples.items()},
            "discriminator": self.discriminator.state_dict(),
            "discriminator_loss": self._discriminator_loss,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._epoch, self._discriminator_loss = state["epoch"], state["discriminator_loss"]
        self.discriminator.load_state_dict(state["discriminator"])
        self._take({name: tuple(sample) for name, sample in state["samples"].items()})


def _said(text: str) -> str:
    """An answer's rationale: what precedes its answer line, as the rationales of the data have it."""
    return rationale_of(text, lambda _: True)
