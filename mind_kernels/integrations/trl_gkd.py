"""TRL's GKDTrainer (generalized knowledge distillation) without the logits of student and teacher.

    from mind_kernels.integrations.trl_gkd import FusedGKDTrainer as GKDTrainer

Separate from `trl.install()`, for two reasons: TRL's trainer is experimental and may change in any release, and it
computes its loss from logits in a method, not in a function that could be replaced by name.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from trl.experimental.gkd import GKDTrainer
from trl.models import utils

from mind_kernels import Head
from mind_kernels.integrations.condition import Condition
from mind_kernels.integrations.fused_head import IGNORED, calling, no_logits, of_labels
from mind_kernels.integrations.head import head_tensors
from mind_kernels.integrations.probe import probe_outputs, unwrapped, without_cache
from mind_kernels.integrations.signature import expect
from mind_kernels.integrations.transformers import read_condition
from mind_kernels.integrations.trl import divergence
from mind_kernels.integrations.trl_logits import check_head

expect("trl", GKDTrainer, "compute_loss", "self", "model", "inputs", "return_outputs", "num_items_in_batch")
expect(
    *("trl", GKDTrainer, "generalized_jsd_loss", "student_logits", "teacher_logits"),
    *("labels", "beta", "temperature", "reduction", "num_items_in_batch"),
)
expect(
    *("trl", utils, "_ForwardRedirection.__call__", "self"),
    *("wrapper_module", "original_module", "method", "args", "kwargs"),
)


class _Inputs:
    """A pass through the teacher's head that keeps its inputs and does not multiply."""

    keep_logits = False
    hidden: Tensor

    def compute(self, head: Any, hidden: Tensor) -> Tensor:
        _check_first(self, "hidden")
        self.hidden = hidden
        return no_logits(hidden, head.weight.shape[0])


class _Divergence:
    """A pass through the student's head that computes the sum of the divergences of all rows with a label."""

    loss: Tensor

    def __init__(self, condition: Condition, with_label: Tensor, beta: float, keep_logits: bool) -> None:
        self.condition, self.with_label, self.beta, self.keep_logits = condition, with_label, beta, keep_logits

    def from_teacher(self, hidden: Tensor, head: Head) -> None:
        self.known, self.teacher = hidden[:, :-1][self.with_label], head

    def compute(self, head: Any, hidden: Tensor) -> Tensor:
        _check_first(self, "loss")
        student = Head(*head_tensors(head), *self.condition)
        rows = hidden[:, :-1][self.with_label]
        loss, _ = divergence(rows, student, self.known, self.teacher, self.beta, "sum")
        self.loss = of_labels(loss, self.with_label.any())
        return no_logits(hidden, student.weight.shape[0])


def _whole(tensor: Any, dtype: torch.dtype) -> Any:
    """A teacher's parameter in `dtype`, gathered if FSDP has divided it (in mixed precision FSDP keeps it in another
    dtype). Only right without a gradient."""
    whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return None if whole is None else whole.to(dtype)


def _check_first(call: Any, result: str) -> None:
    """Raises ValueError if there is a result of an earlier pass through the head: it is unknown which of the two to
    use."""
    if hasattr(call, result):
        raise ValueError("the LM head was called twice in one forward pass: expected one call")


@contextmanager
def _forward_kept(module: Any) -> Iterator[None]:
    """A context that restores the module's forward pass: TRL's redirection sets one on the instance and does not remove
    it."""
    before = {name: value for name, value in vars(module).items() if name == "forward"}
    try:
        yield
    finally:
        vars(module).pop("forward", None)
        vars(module).update(before)


def _checked_condition(model: Any) -> Condition:
    """Softcap and temperature of a model, after checking that the inputs and the weight of its head explain its
    logits."""
    condition, model, call = read_condition(model), unwrapped(model), _Inputs()
    logits = probe_outputs(model).logits.float()
    with calling(model, call):
        probe_outputs(model)
    check_head(model, call.hidden, condition, logits)
    return condition


class FusedGKDTrainer(GKDTrainer):
    """TRL's GKDTrainer with a loss that `linear_divergence` computes from hidden states.

    It has the same arguments, and determines softcap and scale of student and teacher by running the models. An
    evaluation that needs the student's logits gets them, as with TRL's trainer.

    Raises:
        ValueError: `read_condition` or `head_tensors` refuses the student or the teacher, or they do not explain its
            logits; the message names the model.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._conditions = _checked_condition(self.model), _checked_condition(self.teacher_model)
        self._redirected = utils._ForwardRedirection()

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | float | None = None,
    ) -> Any:
        """The generalized Jensen-Shannon divergence, summed over the tokens with a label and divided by their number or
        by `num_items_in_batch`."""
        of_student, of_teacher = self._conditions
        with_label = inputs["labels"][:, 1:] != IGNORED
        given = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        call = _Divergence(of_student, with_label, self.beta, keep_logits=return_outputs)
        call.from_teacher(*self._teacher(given, of_teacher))
        student = self.accelerator.unwrap_model(model)
        with _forward_kept(student):  # inside the wrapper's forward pass, so that DDP and FSDP see the loss
            loss, outputs = self._redirected(model, student, self._forward, student, given, call)
        items = with_label.sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch
        loss = loss / (items.to(loss.device) if isinstance(items, Tensor) else items)
        return (loss, outputs) if return_outputs else loss

    def _teacher(self, given: dict[str, Tensor], condition: Condition) -> tuple[Tensor, Head]:
        """The teacher's hidden states (B, T, D') and its head."""
        teacher, call = self.accelerator.unwrap_model(self.teacher_model), _Inputs()
        with torch.no_grad(), calling(teacher, call):
            self.teacher_model.eval()(**given, **without_cache(teacher))
            weight, bias = (_whole(t, call.hidden.dtype) for t in head_tensors(teacher.get_output_embeddings()))
        return call.hidden, Head(weight, bias, *condition)

    def _forward(self, student: Any, given: dict[str, Tensor], call: _Divergence) -> tuple[Tensor, Any]:
        with calling(student, call):
            outputs = student.forward(**given, **without_cache(student))
        return call.loss, outputs
