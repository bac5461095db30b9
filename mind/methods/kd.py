"""Distillation of a teacher model's distributions over the rationales, and over the student's own answers.

    L = w CE + (1 - w) D(student, teacher)      over the rationales
    L = D(student, teacher)                     over an answer that the student has sampled, in a share of the steps

both the mean over the tokens of each sequence, over the rationales of a question and over questions (GKD's code takes
it over all tokens, as `objective.normalize` token does). D is one of the divergences of mind_kernels.linear_divergence:
forward and reverse KL, the Jensen-Shannon of GKD (arXiv 2306.13649), the skewed ones of DistiLLM (arXiv 2402.03898). It
is not multiplied by T^2, as in those.

A step on the student's own answers (GKD's on-policy one) samples one per question from the student as it is, prompt and
answer with its end, without a gradient of the sampling. It has no cross-entropy [ours]: at temperature 1 the expected
gradient of a student's cross-entropy on its own samples is 0, so that it would be noise.

The teacher computes the very rows that the student does, so it needs the student's tokenizer. Its head may have more
entries than the student's, which are padding, and a scale of its logits. With `top` the student learns from its most
probable tokens and the probability of all others together, as from a list that a server gives: forward_kl is a lower
bound of the full one then.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from mind.batches.isolation import keeps_sequences_apart
from mind.batches.packing import sequence_lengths
from mind.batches.prompt_sharing import obstacle, use_attention
from mind.batches.trunk import labeled_hidden
from mind.config import MethodOptions, MindConfig, StudentConfig
from mind.display import listed
from mind.errors import MindError, require
from mind.methods.heads import at_temperature, constant
from mind.methods.method import MethodContext
from mind.methods.sequences import Sequences
from mind.methods.sft import Sft
from mind.methods.step import LossTerms, Step, StepMetrics, StepPlan, random_of
from mind.records import Branch, MicroBatch, Question, TokenizedQuestion
from mind.report.charts import AMBER, INK, LOSS, Chart, Section, Series
from mind.student.fingerprint import fingerprint
from mind.student.model import context_of, head_of, load_student
from mind.student.templates import PLAIN
from mind_kernels import Head, linear_divergence, linear_top_k

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class TeacherOptions(MethodOptions):
    """Which model is distilled, and how its distributions are compared."""

    teacher: str | None = None
    """A Hugging Face model folder or name, with the student's tokenizer. It must be given."""
    teacher_dtype: Literal["float32", "bfloat16"] = "float32"
    """The dtype of the teacher's weights in memory."""
    temperature: float = 1.0
    """T, the temperature of both distributions."""
    top: int | None = None
    """Learn from so many of the teacher's most probable tokens per row, and from the rest as if it were one token;
    None: from its whole distribution."""

    BOUNDS = {
        "top": "None or at least 1",
        "temperature": "a positive number",
    }


@dataclass(frozen=True)
class KdOptions(TeacherOptions):
    """Options of distillation from a teacher model."""

    kind: Literal["forward_kl", "reverse_kl", "jsd", "skew_forward_kl", "skew_reverse_kl"] = "forward_kl"
    """The divergence."""
    beta: float = 0.5
    """The teacher's share in the mixture of "jsd"."""
    skew: float = 0.1
    """The other side's share in the skewed kinds."""
    ce_weight: float = 0.5
    """w: weight of the cross-entropy on the rationales; that of the divergence is 1 - w [ours; 0 in the sources]."""
    on_policy: float = 0.0
    """Probability that a step trains on the student's own answers in place of the rationales; 0.5 in TRL's GKD."""
    sample_temperature: float = 1.0
    """Temperature of these samples (0.9 in TRL); the divergence has its own."""
    max_new_tokens: int = 512
    """Longest sampled answer, in tokens; 128 in TRL."""

    BOUNDS = {
        **TeacherOptions.BOUNDS,
        "beta": "a number in (0, 1)",
        "skew": "a number in (0, 1)",
        "ce_weight": "a number in [0, 1)",
        "on_policy": "a probability in [0, 1]",
        "sample_temperature": "a positive number",
        "max_new_tokens": "at least 1",
    }

    @property
    def divergence(self) -> dict[str, Any]:
        """The arguments of `linear_divergence` that name it."""
        own = {"jsd": {"beta": self.beta}}.get(self.kind, {"skew": self.skew} if "skew" in self.kind else {})
        return {"kind": self.kind, **own}


class TeacherMethod(Sft):
    """Trains on all rationales, all with the same weight, beside a teacher model that sees the same rows."""

    sources = ("teacher",)

    def __init__(self, context: MethodContext) -> None:
        super().__init__(context)
        self.teacher = _load_teacher(context, self.options)

    def inputs(self) -> Mapping[str, Mapping[str, str]]:
        weights = fingerprint(dict(self.teacher.named_parameters()))
        return {"options.teacher": {"source": self.options.teacher, "sha256": weights}}

    def parameters_by_work(self) -> Mapping[str, int]:
        return {"teacher_scored": sum(p.numel() for p in self.teacher.parameters())}

    def divergence(
        self,
        hidden: Tensor,  # (N, D)
        head: Head,
        batch: MicroBatch,
        weight: Tensor,  # (N,)
        **kind: Any,
    ) -> Any:
        """What `linear_divergence` returns for this kind and the teacher: the weighted sum () of the rows' divergences,
        and its statistics if `return_stats` is among the arguments."""
        teacher: Any = self.teacher
        teacher.to(hidden.device)
        with torch.no_grad(), use_attention(teacher, self.context.attention):
            states = labeled_hidden(teacher, batch)
        options = self.options
        teacher_head = at_temperature(constant(head_of(teacher), head.vocabulary), options.temperature)
        if options.top is None:
            known: dict[str, Any] = {"teacher_hidden": states, "teacher_weight": teacher_head}
        else:
            listed = linear_top_k(states, teacher_head, options.top)
            known = {"teacher_ids": listed.ids, "teacher_log_prob": listed.log_prob}
        return linear_divergence(
            hidden,
            at_temperature(head, options.temperature),
            **known,
            row_weight=weight,
            reduction="sum",
            backend=self.context.config.objective.backend,
            **kind,
        )


@dataclass(frozen=True, eq=False)
class OnPolicyPlan(StepPlan):
    """A step on answers of the student, each in the last slot of its question."""


_LOSSES = replace(
    LOSS,
    caption="Both should fall. They are different objectives, and do not compare: one has a cross-entropy, and one is "
    "measured on texts that the student finds likely.",
    series=(
        Series("rationale_loss", "steps on rationales", INK),
        Series("sample_loss", "steps on the student's own answers", AMBER),
    ),
)
"""In place of their mixture, if there are steps of both kinds."""
_SAMPLES = Chart(
    "sample_tokens",
    "Length of the student's own answers",
    "tokens",
    "It should approach that of the rationales; at the limit the student does not end its answers.",
    (Series("sample_tokens"),),
    from_zero=True,
)


class Kd(TeacherMethod):
    """A fixed divergence beside the cross-entropy."""

    Options = KdOptions
    title = "Distillation from a teacher model"
    charts = (
        Chart(
            "divergence",
            "Divergence from the teacher",
            "nats per token",
            "It should fall with the loss; if the loss falls and it does not, the cross-entropy has too much weight.",
            (Series("divergence", brief="divergence {:.3f}"),),
            from_zero=True,
        ),
    )

    @classmethod
    def sequences_of(
        cls, config: MindConfig, question: Question, tokens: TokenizedQuestion, sequences: Sequences
    ) -> TokenizedQuestion:
        """Its rationales, and room for the longest sample if there are any."""
        options = cls.options_in(config)
        if options.on_policy == 0:
            return tokens
        longest = sequences.longest_sample(question, options.max_new_tokens)
        return replace(tokens, others={len(config.data.perspectives): longest})

    @property
    def slots(self) -> tuple[str, ...]:
        return super().slots if self.options.on_policy == 0 else (*super().slots, "sample")

    def prepare(self, step: Step) -> StepPlan:
        options = self.options
        drawn = torch.rand((), generator=random_of(self.context.config.train.seed, step.number, "on-policy"))
        if float(drawn) >= options.on_policy:
            return super().prepare(step)
        samples = step.sample(
            [question.prompt for question in step.questions],
            temperature=options.sample_temperature,
            max_new_tokens=options.max_new_tokens,
        )
        slot = len(self.slots) - 1
        plan = self.evenly(
            [
                TokenizedQuestion.of_sequences(question.id, {slot: Branch(question.prompt, sample)})
                for question, sample in zip(step.questions, samples, strict=True)
            ]
        )
        return OnPolicyPlan(plan.questions, plan.weights, plan.trained, plan.observed)

    def loss(self, hidden: Tensor, head: Head, batch: MicroBatch, plan: StepPlan) -> LossTerms:
        options = self.options
        weight = self.row_weights(plan, batch, hidden)
        ce_weight = 0.0 if isinstance(plan, OnPolicyPlan) else options.ce_weight
        with torch.set_grad_enabled(ce_weight > 0):  # without a weight its statistics alone are wanted
            cross, rows = self.cross_entropy(hidden, head, batch, ce_weight * weight)
        divergence = self.divergence(hidden, head, batch, weight, **options.divergence)
        loss = cross + (1 - ce_weight) * divergence
        return LossTerms.of(loss, rows, batch, divergence=divergence.detach(), teacher_scored=scored(batch))

    def finish_step(self, plan: StepPlan, totals: Mapping[str, float], l_real: Tensor) -> StepMetrics:
        means = {"divergence": totals["divergence"]}
        if self.options.on_policy == 0:
            return StepMetrics(means)
        if isinstance(plan, OnPolicyPlan):
            length = totals["rows"] / len(plan.questions)
            means |= {"on_policy": 1.0, "sample_loss": totals["loss"]}
            return StepMetrics(means, latest={"sample_tokens": length})
        return StepMetrics(means | {"on_policy": 0.0, "rationale_loss": totals["loss"]})

    @classmethod
    def sections(cls, config: MindConfig) -> Sequence[Section]:
        student, own = super().sections(config)
        share = cls.options_in(config).on_policy
        if share > 0:
            own = Section(own.title, (*own.charts, _SAMPLES))
        if 0 < share < 1:
            charts = (_LOSSES if chart.key == LOSS.key else chart for chart in student.charts)
            student = Section(student.title, tuple(charts))
        return student, own


def scored(batch: MicroBatch) -> Tensor:
    """Tokens of the teacher's trunk; the trainer counts them as work."""
    return torch.tensor(batch.total_tokens)


def _load_teacher(context: MethodContext, options: TeacherOptions) -> PreTrainedModel:
    name = options.teacher
    if name is None:
        raise MindError(f"method {context.config.method} needs a teacher model: --options.teacher names it")
    try:
        # It is given token ids, so its own chat template, which base models lack, is not asked for.
        teacher, tokenizer = load_student(StudentConfig(model=name, dtype=options.teacher_dtype, chat_template=PLAIN))
    except MindError as error:
        raise MindError(str(error).replace("student.model", "options.teacher")) from error
    own, theirs = context.tokenizer.get_vocab(), tokenizer.get_vocab()
    others = sorted(token for token in own.keys() | theirs.keys() if own.get(token) != theirs.get(token))
    require(
        not others,
        f"options.teacher {name}: its tokenizer differs from the student's in {len(others):,} of {len(own):,} tokens "
        f"({listed(others, 4)}): distributions over different tokens cannot be compared",
    )
    rows, needed = head_of(teacher).vocabulary, head_of(context.model).vocabulary
    require(rows >= needed, f"options.teacher {name}: its head has {rows:,} entries, the student's {needed:,}: too few")
    require(
        options.top is None or options.top <= needed,
        f"options.top is {options.top}: the student's head has {needed:,} entries",
    )
    _check_rows(teacher, f"options.teacher {name}", context)
    teacher.eval()
    return teacher.requires_grad_(False)


def _check_rows(teacher: PreTrainedModel, name: str, context: MethodContext) -> None:
    """Raises MindError, which begins with `name`, for a teacher that cannot compute the student's rows."""
    longest = max(length for question in context.sequences for length in sequence_lengths(question))
    limit, packs = context_of(teacher), context.pack_options
    require(
        limit is None or longest <= limit, f"{name}: its context is {limit} tokens; the longest sequence has {longest}"
    )
    reason = None
    try:
        with use_attention(teacher, context.attention):
            if packs.share_prompts:
                reason = obstacle(teacher, context.attention, longest, packs.length)
            else:
                keeps_sequences_apart(teacher, packs.length)
    except MindError as error:
        raise MindError(f"{name}: {str(error).removeprefix('student.')}") from error
    require(
        reason is None,
        f"{name}: the student's prompts are shared, and this model cannot share them: {reason}; "
        "--train.share-prompts never",
    )
