"""Distillation of a teacher model's distributions over the teacher's rationales.

    L = w CE + (1 - w) D(student, teacher)

both the mean over the tokens of each sequence, over the rationales of a question and over questions. D is one of the
divergences of mind_kernels.linear_divergence: forward and reverse KL, the Jensen-Shannon of GKD (arXiv 2306.13649), the
skewed ones of DistiLLM (arXiv 2402.03898). It is not multiplied by T^2, as in those.

The teacher computes the very rows that the student does, so it needs the student's tokenizer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from mind.batches.cross_entropy import cross_entropy, row_weights
from mind.batches.isolation import keeps_sequences_apart
from mind.batches.packing import sequence_lengths
from mind.batches.prompt_sharing import obstacle, use_attention
from mind.batches.trunk import labeled_hidden
from mind.config import MethodOptions, StudentConfig
from mind.display import listed
from mind.errors import MindError, require
from mind.methods.heads import at_temperature, constant
from mind.methods.method import LossTerms, MethodContext, StepMetrics, StepPlan
from mind.methods.sft import Sft
from mind.records import MicroBatch
from mind.student.fingerprint import fingerprint
from mind.student.model import context_of, head_of, load_student
from mind.student.templates import PLAIN
from mind_kernels import Head, linear_divergence

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
    """T, of both sides' distributions."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.temperature > 0, f"options.temperature is {self.temperature}: expected a positive number")


@dataclass(frozen=True)
class KdOptions(TeacherOptions):
    """Of distillation from a teacher model."""

    kind: Literal["forward_kl", "reverse_kl", "jsd", "skew_forward_kl", "skew_reverse_kl"] = "forward_kl"
    """The divergence."""
    beta: float = 0.5
    """Of "jsd": the teacher's share in the mixture."""
    skew: float = 0.1
    """Of the skewed kinds: the other side's share."""
    ce_weight: float = 0.5
    """w: weight of the cross-entropy on the rationales; the divergence has the rest [ours; 0 in the sources]."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("beta", "skew"):
            require(
                0 < getattr(self, name) < 1, f"options.{name} is {getattr(self, name)}: expected a number in (0, 1)"
            )
        require(0 <= self.ce_weight < 1, f"options.ce_weight is {self.ce_weight}: expected a number in [0, 1)")

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
    ) -> Tensor:
        """The weighted sum () of the rows' divergences from the teacher."""
        teacher: Any = self.teacher
        teacher.to(hidden.device)
        with torch.no_grad(), use_attention(teacher, self.context.attention):
            states = labeled_hidden(teacher, batch)
        temperature = self.options.temperature
        return linear_divergence(
            hidden,
            at_temperature(head, temperature),
            states,
            at_temperature(constant(head_of(teacher), head.vocabulary), temperature),
            row_weight=weight,
            reduction="sum",
            backend=self.context.config.objective.backend,
            **kind,
        )


class Kd(TeacherMethod):
    """A fixed divergence beside the cross-entropy."""

    Options = KdOptions
    title = "Distillation from a teacher model"

    def loss(self, hidden: Tensor, head: Head, batch: MicroBatch, plan: StepPlan) -> LossTerms:
        objective, options = self.context.config.objective, self.options
        weight = row_weights(plan.weights, batch, hidden)
        cross, rows = cross_entropy(
            hidden,
            head,
            batch,
            options.ce_weight * weight,
            gradient_threshold=objective.gradient_threshold,
            backend=objective.backend,
        )
        divergence = self.divergence(hidden, head, batch, weight, **options.divergence)
        loss = cross + (1 - options.ce_weight) * divergence
        return LossTerms.of(loss, rows, batch, divergence=divergence.detach(), teacher_scored=scored(batch))

    def finish_step(self, plan: StepPlan, totals: Mapping[str, float], l_real: Tensor) -> StepMetrics:
        return StepMetrics({"divergence": totals["divergence"]})


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
    _check_rows(teacher, f"options.teacher {name}", context)
    teacher.eval()
    return teacher.requires_grad_(False)


def _check_rows(teacher: PreTrainedModel, name: str, context: MethodContext) -> None:
    """Raises MindError, which begins with `name`, for a teacher that cannot compute the student's rows."""
    longest = max(length for question in context.tokenized for length in sequence_lengths(question))
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
