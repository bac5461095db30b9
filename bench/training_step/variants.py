"""The ways to take one and the same optimizer step, each the one before it with one change, and one with a peer's loss.

What MetaNet would do is given (which rationales are selected and their weights alpha), the rest of the step is here:
packing or padding, forward and backward passes, clipping, AdamW.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.linear_pairwise_jsd.providers import upcast
from bench.measure import free_bytes
from bench.training_step.inputs import Inputs
from bench.training_step.losses import EAGER, LIGER, AnswerRows, Losses, Terms, combine, product
from bench.training_step.models import Student, build_student
from mind.batches.packing import micro_batches
from mind.batches.prompt_sharing import choose_attention, choose_pack_options, use_attention
from mind.batches.trunk import labeled_hidden
from mind.records import MicroBatch
from mind.student.model import head_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

IGNORED = -100
MAX_NORM = 1.0  # of the gradient
# Tensors of the hidden and of the inner size that PyTorch saves of a layer for its backward pass.
SAVED_HIDDEN, SAVED_INNER = 11, 4


class Outcome(NamedTuple):
    """What a forward and backward pass gives beside the gradients."""

    loss: Tensor  # ()
    l_real: Tensor  # (Q, K)
    forward_tokens: int
    """Of the trunk, padding and repeated prompts included."""
    backward_tokens: int


@dataclass(frozen=True)
class Variant:
    """How the step is computed."""

    losses: Losses = EAGER
    padded: bool = False
    """All sequences in one padded batch, and the logits of every position."""
    share_prompts: bool = False
    selected_only: bool = False
    """A backward pass for the selected rationales alone; the others are observed."""
    sparse: bool = False
    """Its gradient leaves out small probabilities on purpose."""
    peer: str | None = None
    """The peer's function as "module:name": it runs on CUDA devices and is no step of the waterfall."""

    def attention(self, device: str, length: int) -> str:
        return choose_attention("auto" if self.share_prompts else "sdpa", device, length, "auto")

    def micro_batches(
        self, model: PreTrainedModel, inputs: Inputs, length: int
    ) -> tuple[list[MicroBatch], list[MicroBatch]]:
        """What is trained on and what is only observed, in rows and micro-batches of `length` tokens."""
        attention = self.attention(model.device.type, length)
        share = "always" if self.share_prompts else "never"
        pack_options = choose_pack_options(model, attention, inputs.questions, length, share)
        if not self.selected_only:
            return micro_batches(inputs.questions, inputs.perspectives, pack_options), []
        trained, observed = (
            micro_batches(inputs.questions, inputs.perspectives, pack_options, chosen)
            for chosen in (inputs.selected, ~inputs.selected)
        )
        return trained, observed

    def reason_absent(self, model: PreTrainedModel, inputs: Inputs, length: int) -> str:
        """Why it cannot run here; empty where it can."""
        if self.peer:
            if model.device.type != "cuda":
                return "needs a CUDA device"
            try:
                pkgutil.resolve_name(self.peer)
            except ModuleNotFoundError as error:
                return f"{error.name} is not installed"
            except (ImportError, AttributeError) as error:
                return str(error)
        needed, free = self.needed_bytes(model, inputs, length), free_bytes(model.device.type)
        return f"it takes about {needed >> 30} GiB of {free >> 30} free" if needed > free else ""

    def needed_bytes(self, model: PreTrainedModel, inputs: Inputs, length: int) -> int:
        """About what its largest micro-batch holds at once, with the gradients of all parameters."""
        config = model.config
        layer = (SAVED_HIDDEN * config.hidden_size + SAVED_INNER * config.intermediate_size) * model.dtype.itemsize
        gradients = sum(parameter.nbytes for parameter in model.parameters())
        return gradients + max(
            tokens * config.num_hidden_layers * layer + rows * 4 * config.vocab_size
            for tokens, rows in self._sizes(model, inputs, length)
        )

    def _sizes(self, model: PreTrainedModel, inputs: Inputs, length: int) -> list[tuple[int, int]]:
        """Of each micro-batch with a graph the tokens of the trunk, and how many rows of V float32 its losses hold.

        Those are the logits, their logarithm and the gradients of both, and six of each pair of answer positions.
        """
        if self.padded:
            batch = padded(inputs)
            return [(batch.ids.numel(), 4 * batch.ids.numel() + 6 * batch.answers.pairs)]
        trained, _ = self.micro_batches(model, inputs, length)
        answers = [AnswerRows(batch.answer_rows, batch.answer_question) for batch in trained]
        return [
            (batch.total_tokens, self.losses.logits * (4 * len(batch.target) + 6 * rows.pairs))
            for batch, rows in zip(trained, answers, strict=True)
        ]


VARIANTS = {
    "naive": Variant(padded=True),
    "packed": Variant(),
    "packed + Liger": Variant(LIGER, peer="liger_kernel.transformers.functional:liger_fused_linear_cross_entropy"),
    "+ shared prompts": Variant(share_prompts=True),
    "+ selected only": Variant(share_prompts=True, selected_only=True),
    "+ fused losses": Variant(product(), share_prompts=True, selected_only=True),
    "+ sparse gradient": Variant(product(2**-12), share_prompts=True, selected_only=True, sparse=True),
}
"""In the order of the waterfall."""
REFERENCE = "naive"


class PaddedBatch(NamedTuple):
    """All sequences, padded on the right: B = Q K rows of T tokens."""

    ids: Tensor  # (B, T)
    mask: Tensor  # (B, T)
    target: Tensor  # (B, T), the token that a position predicts, IGNORED in prompts and padding
    tokens: Tensor  # (Q, K), labeled positions
    answers: AnswerRows


def padded(inputs: Inputs) -> PaddedBatch:
    pairs = [(question, question.rationales[k]) for question in inputs.questions for k in range(inputs.perspectives)]
    sequences = [(*question.prompt, *ids, *question.suffix) for question, ids in pairs]
    longest = max(map(len, sequences))
    ids, mask = torch.zeros(2, len(sequences), longest, dtype=torch.int64)
    target = torch.full_like(ids, IGNORED)
    answers, owners = [], []
    for b, (sequence, (question, _)) in enumerate(zip(sequences, pairs, strict=True)):
        end, start = len(sequence) - 1, len(question.prompt) - 1
        ids[b, : end + 1], mask[b, : end + 1] = torch.tensor(sequence), 1
        target[b, start:end] = ids[b, start + 1 : end + 1]
        answers.append(b * longest + torch.arange(end - len(question.suffix), end))
    blocks = [torch.stack(answers[b : b + inputs.perspectives], 1) for b in range(0, len(answers), inputs.perspectives)]
    owners = torch.cat([torch.full((len(block),), q) for q, block in enumerate(blocks)])
    tokens = (target != IGNORED).sum(1).view(inputs.alpha.shape)
    return PaddedBatch(ids, mask, target, tokens, AnswerRows(torch.cat(blocks), owners))


def forward_backward(variant: Variant, model: PreTrainedModel, inputs: Inputs, length: int) -> Outcome:
    """Adds the gradients of the step's loss to the parameters; `length` is that of packed rows, in tokens."""
    with use_attention(model, variant.attention(model.device.type, length)):
        return _padded(model, inputs) if variant.padded else _packed(variant, model, inputs, length)


def _padded(model: PreTrainedModel, inputs: Inputs) -> Outcome:
    batch, device = padded(inputs), model.device
    logits = model(input_ids=batch.ids.to(device), attention_mask=batch.mask.to(device), use_cache=False).logits
    logits = logits.flatten(0, 1)
    nll = F.cross_entropy(upcast(logits), batch.target.flatten().to(device), ignore_index=IGNORED, reduction="none")
    alpha = inputs.alpha.to(nll)
    terms = combine(
        nll.view(*alpha.shape, -1).sum(2),
        batch.tokens.to(device),
        batch.answers.consistency(logits[batch.answers.flat.to(device)], alpha),
        alpha,
    )
    terms.loss.backward()
    return Outcome(terms.loss.detach(), terms.l_real, batch.ids.numel(), batch.ids.numel())


def _packed(variant: Variant, model: PreTrainedModel, inputs: Inputs, length: int) -> Outcome:
    trained, observed = variant.micro_batches(model, inputs, length)
    head, parts = head_of(model), []
    for batch in observed:
        with torch.no_grad():
            l_real = variant.losses.observe(labeled_hidden(model, batch), head, batch)
            parts.append(Terms(l_real.new_zeros(()), l_real))
    for batch in trained:
        terms = variant.losses.train(labeled_hidden(model, batch), head, batch, inputs.alpha)
        terms.loss.backward()
        parts.append(Terms(terms.loss.detach(), terms.l_real))
    backward = sum(batch.total_tokens for batch in trained)
    # Every rationale is in one micro-batch, and nan in the others.
    l_real = torch.stack([part.l_real for part in parts]).nansum(0)
    loss = torch.stack([part.loss for part in parts]).sum()
    return Outcome(loss, l_real, backward + sum(batch.total_tokens for batch in observed), backward)


def take_step(variant: Variant, student: Student, inputs: Inputs, length: int) -> Outcome:
    """One whole optimizer step."""
    student.optimizer.zero_grad(set_to_none=True)
    outcome = forward_backward(variant, student.model, inputs, length)
    torch.nn.utils.clip_grad_norm_(student.model.parameters(), MAX_NORM)
    student.optimizer.step()
    return outcome


def warmed_up(variant: Variant, student: Student, inputs: Inputs, length: int) -> Callable[[], Outcome]:
    """The step after one of a single question, without the gradients of that: they count as the step's own."""
    take_step(variant, student, inputs.first(), length)
    student.optimizer.zero_grad(set_to_none=True)
    return lambda: take_step(variant, student, inputs, length)


def peak_call(variant: str, model: str, dtype: torch.dtype, inputs: Inputs, length: int) -> Callable[[], Outcome]:
    """`warmed_up` by names, on a CPU, with a student made anew: what a fresh process measures."""
    return warmed_up(VARIANTS[variant], build_student(model, dtype, "cpu"), inputs, length)
