"""The fused cross-entropy for causal language models of transformers, in its Trainer or any loop that passes labels.

    from mind_kernels.integrations.transformers import fuse
    fuse(model)

`fuse` changes the class of the model and of its LM head. When called with labels, the model's forward pass hands the
targets to the head, and the head's forward pass computes the loss from its inputs and its weight. The model then uses
that loss instead of the one computed from logits. So everything around the forward passes works as usual: autocast,
DDP, FSDP2, gradient checkpointing, auxiliary losses, adapters. Without labels the model behaves as before.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from mind_kernels import RowStats, checks, linear_cross_entropy
from mind_kernels.dtensors import is_dtensor
from mind_kernels.integrations.condition import Condition, KnownOutputs
from mind_kernels.integrations.fused_head import (
    IGNORED,
    Fused,
    fused_class,
    fused_head,
    no_logits,
    of_labels,
    restore_class,
    serving,
)
from mind_kernels.integrations.head import active_module, head_tensors
from mind_kernels.integrations.probe import (
    PROBED_TOKENS,
    accepts,
    lm_head,
    probe_ids,
    probe_outputs,
    probing,
    rounding,
    unwrapped,
)
from mind_kernels.integrations.tensor_parallel import gathered_outputs, same_in_all, tensor_parallel_forward

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class _Options:
    """The options of a fused model, used in all calls."""

    condition: Condition
    loss_function: Any
    """The model's own, in whose place the loss is computed."""
    loss: dict[str, Any] = field(default_factory=dict)
    eval_logits: bool = True


@dataclass(eq=False)
class _Call:
    """One call of a fused model with labels: the data that its forward pass and that of the head exchange."""

    options: _Options
    labels: Tensor
    """Those that the model's forward pass is given."""
    target: Tensor
    items: Tensor | float | None
    keep_logits: bool
    loss: Tensor | None = None
    stats: RowStats | None = None
    taken: bool = False

    def compute(self, head: Any, hidden: Tensor) -> Tensor:
        """Computes the loss from hidden (..., D); returns empty logits (..., 0, V)."""
        if self.loss is not None:
            raise ValueError("the LM head was called twice with these labels: expected one call")
        if hidden.shape[:-1] != self.target.shape:
            raise ValueError(
                f"the LM head was given hidden states of shape {tuple(hidden.shape)} and the labels have shape "
                f"{tuple(self.target.shape)}: expected a label per position; a fused model with labels takes no "
                "logits_to_keep"
            )
        weight, bias = head_tensors(head)
        options = self.options
        of_all = hidden
        if is_dtensor(weight) and head._split_forward is not None:
            of_all = same_in_all(hidden, weight.device_mesh)
        self.loss, self.stats = linear_cross_entropy(
            of_all,
            weight,
            self.target.to(hidden.device),
            bias=bias,
            softcap=options.condition.softcap,
            temperature=options.condition.temperature,
            ignore_index=IGNORED,
            reduction="mean" if self.items is None else "sum",
            return_stats=True,
            **options.loss,
        )
        if self.items is not None:
            self.loss = of_labels(self.loss, (self.target != IGNORED).any())
            self.loss = self.loss / (self.items.to(hidden.device) if isinstance(self.items, Tensor) else self.items)
        return no_logits(hidden, weight.shape[0])

    def take(self, *args: Any, **kwargs: Any) -> Tensor | None:
        """Called instead of the model's loss function, with its arguments: logits, labels, vocab_size and others."""
        if self.taken:
            raise ValueError("its loss_function was called twice with these labels: expected one call")
        self.taken = True
        given = dict(zip(("logits", "labels"), args, strict=False)) | kwargs
        name, expected = ("labels", self.labels) if given.get("shift_labels") is None else ("shift_labels", self.target)
        found = given.get(name)
        if found is not expected:  # some models leave out more labels, such as those of padding
            message = f"its forward pass hands other {name} to its loss_function than it was given"
            if not isinstance(found, Tensor) or found.shape != expected.shape:
                raise ValueError(message)
            checks.values(found.to(expected.device) == expected, message)
        if kwargs.get("ignore_index", IGNORED) != IGNORED:
            raise ValueError(f"its forward pass ignores labels of {kwargs['ignore_index']}: expected {IGNORED}")
        return self.loss


def fuse(
    model: M,
    *,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    gradient_threshold: float | None = None,
    backend: str = "auto",
    eval_logits: bool = True,
    condition: Condition | None = None,
) -> M:
    """Makes a causal language model compute its loss by `linear_cross_entropy`, without the logits.

    Call it before or after get_peft_model, fully_shard, parallelize_module and DistributedDataParallel; after
    transformers' tensor parallelism, which splits a model while loading it; and before the first compiled step. In
    training the output's `logits` are empty, (B, 0, V). Softcap and scale of the model's logits are determined in this
    call: later changes of them, and a later forward hook on the head that changes the logits, go unnoticed.

    Args:
        model: a causal language model of transformers, bare or wrapped; changed in place. Its forward pass gets one
            more argument, `skip_logits: bool`: whether to leave out the logits in this call (None: as `eval_logits`
            says). Only one thread at a time may call the model.
        label_smoothing: epsilon in [0, 1]: the loss of a token becomes (1 - eps) nll + eps mean_v(-log p_v). Leave the
            Trainer's own label_smoothing_factor at 0: it removes the labels from the model's input and needs all
            logits.
        z_loss: adds z_loss * lse^2 to each token's loss, lse in nats.
        gradient_threshold: None: the exact gradient. A share in (0, 1), such as 2**-16: the sparse gradient of
            `linear_cross_entropy`.
        backend: "auto", or a name that `mind_kernels.backends()` lists.
        eval_logits: True: in evaluation mode the model returns its logits, which metrics and predictions need; False:
            only the loss.
        condition: softcap and temperature of the logits. None: `fuse` determines them by forward passes of a few
            tokens, and compares the fused loss with the model's own.

    Returns:
        The model. After a call with labels, `last_row_stats` of the transformers model (model.module.last_row_stats
        under DDP) holds its RowStats (B, T): accuracy and entropy without logits. Position t predicts token t + 1; the
        statistics are zero at the last position of a sequence and for labels of -100.

    Raises:
        ValueError: the model has no LM head, or one that is not a plain linear layer; no softcap and temperature
            explain its logits; its loss is not the cross-entropy of the next token (encoder-decoder and masked models);
            its parameters have no data (meta device) and `condition` is None; a forward pass was set on the instance;
            its loss function is not one of transformers; an option is out of range.
        TypeError: an option of the wrong type.
        BackendUnavailableError: the requested backend cannot run here.
    """
    language_model = unwrapped(model)
    if getattr(language_model, "_fused_options", None) is not None:
        raise ValueError(f"{type(language_model).__name__} is fused already")
    head = lm_head(language_model)
    _check_forward(language_model, active_module(head))
    loss = {
        "label_smoothing": label_smoothing,
        "z_loss": z_loss,
        "gradient_threshold": gradient_threshold,
        "backend": backend,
    }
    if condition is not None and not isinstance(condition, Condition):
        raise TypeError(f"condition is {condition!r}: expected a Condition, as read_condition returns it")
    checks.flag("eval_logits", eval_logits)
    own = getattr(language_model, "loss_function", None)
    _check_loss_function(language_model, own)
    with probing(language_model):  # all of it: a parametrized weight may change whenever it is read in training mode
        _check_loss(head_tensors(head)[0], loss | ({} if condition is None else condition._asdict()))
        if condition is None:
            condition = read_condition(language_model)
            _compare(language_model, _Options(condition, own, {"backend": backend}, eval_logits=False))
    _become_fused(language_model, _Options(condition, own, loss, eval_logits))
    return model


def unfuse(model: M) -> M:
    """Undoes `fuse`; returns the model. Raises ValueError if it is not fused, or was changed in other ways since."""
    language_model = unwrapped(model)
    if "_fused_from" not in vars(type(language_model)):
        raise ValueError(f"{type(language_model).__name__}: expected the model as `fuse` left it")
    if "forward" in vars(language_model):  # accelerate's forward pass, which calls the fused one
        raise ValueError(f"{type(language_model).__name__} has a forward pass of its own: `del model.forward` first")
    _restore(language_model)
    return model


def read_condition(model: nn.Module) -> Condition:
    """Softcap and temperature that a causal language model applies to the outputs of its LM head.

    Runs one forward pass of a few tokens, without a gradient, in which the head returns known numbers.

    Raises:
        ValueError: the model changes these outputs in another way, has no LM head, or has no data (meta device).
    """
    language_model = unwrapped(model)
    name = type(language_model).__name__
    with KnownOutputs(active_module(lm_head(language_model))) as known:
        logits = probe_outputs(language_model).logits
    if known.inputs is None:
        raise ValueError(f"{name}: its logits do not come from the LM head that it names")
    try:
        return Condition.of(logits)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _check_forward(model: nn.Module, head: nn.Module) -> None:
    """Raises ValueError for forward passes that `fuse` cannot replace."""
    for module in (model, head):
        if "forward" in vars(module) and tensor_parallel_forward(module) is None:
            raise ValueError(
                f"{type(module).__name__} has a forward pass of its own (accelerate sets one for device_map and mixed "
                "precision, TRL for its trainers), which would pass the fused one by: fuse the model before that"
            )
    if not accepts(model, "labels"):
        raise ValueError(f"{type(model).__name__}: its forward pass takes no labels: expected a causal language model")


def _check_loss_function(model: Any, own: Any) -> None:
    """Raises ValueError for a loss function that is not one of transformers, whether it was set on the model, its class
    defines it, or transformers' table of them names it: one with class weights, for example, may equal transformers' on
    a few tokens and differ on others."""
    if own is not None and not (getattr(own, "__module__", None) or "").startswith("transformers."):
        back = ", which `del model._loss_function` gives back" if hasattr(model, "_loss_function") else ""
        raise ValueError(
            f"{type(model).__name__}: its loss_function is {_name(own)}, which `fuse` would replace: expected one of "
            f"transformers{back}"
        )


def _name(function: Any) -> str:
    return getattr(function, "__qualname__", None) or repr(function)


def _check_loss(weight: Tensor, options: dict[str, Any]) -> None:
    """Raises the errors that `linear_cross_entropy` would raise for these options, such as BackendUnavailableError."""
    if not is_dtensor(weight):  # and not one that FSDP will gather
        no_row, no_target = weight.new_zeros(0, weight.shape[1]), torch.zeros(0, dtype=torch.int64, device="cpu")
        linear_cross_entropy(no_row, weight.detach(), no_target, reduction="sum", **options)


def _compare(model: Any, options: _Options) -> None:
    """Raises ValueError unless the fused loss equals the model's own, for a few tokens and for a single token, which no
    position predicts."""
    first = torch.full((PROBED_TOKENS,), IGNORED, device="cpu")
    first[0] = 0
    for labels in (probe_ids(model, PROBED_TOKENS), first):
        with gathered_outputs(active_module(lm_head(model))):
            output = probe_outputs(model, labels)
        own = output.get("loss")
        if own is None:
            raise ValueError(f"{type(model).__name__}: with labels it gives no loss")
        _become_fused(model, options)
        try:
            fused = probe_outputs(model, labels).loss
        except ValueError as error:
            raise ValueError(
                f"{type(model).__name__}: it does not take its loss from its loss_function, or its head's inputs are "
                f"not those of the next tokens' logits ({error.__cause__})"
            ) from error
        finally:
            _restore(model)
        rtol = max(rounding(dtype) for dtype in _dtypes(model, output.logits))
        if not torch.allclose(fused.double(), own.double(), rtol=rtol, atol=1e-6, equal_nan=True):
            raise ValueError(
                f"{type(model).__name__}: its own loss of {PROBED_TOKENS} tokens is {float(own):.6g}, that of its "
                f"head's inputs {float(fused):.6g}: expected a model whose loss is the cross-entropy of the next token"
            )


def _dtypes(model: Any, logits: Tensor) -> Iterator[torch.dtype]:
    """Those to which the model may have rounded on the way to its logits, which some models then turn into float32."""
    yield logits.dtype
    yield head_tensors(lm_head(model))[0].dtype
    if torch.is_autocast_enabled(logits.device.type):
        yield torch.get_autocast_dtype(logits.device.type)


class _FusedModel(Fused):
    _fused_options: _Options | None = None
    last_row_stats: RowStats | None = None


@functools.cache
def _model_class(base: Any) -> type:
    """The class of a fused model that was a `base`."""
    names = [*inspect.signature(base.forward).parameters][1:]  # without self
    place = names.index("labels") if "labels" in names else len(names)

    @functools.wraps(base.forward)
    def forward(
        self: Any,
        *args: Any,
        labels: Tensor | None = None,
        shift_labels: Tensor | None = None,
        num_items_in_batch: Tensor | float | None = None,
        skip_logits: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        if len(args) > place:
            if labels is not None:
                raise TypeError(f"{base.__name__}.forward() got labels both by position and by name")
            labels = args[place]
        options = self._fused_options
        if options is None:  # an instance created directly from this class, not by `fuse`
            given = {"shift_labels": shift_labels, "num_items_in_batch": num_items_in_batch}
            given |= {} if len(args) > place else {"labels": labels}
            return base.forward(self, *args, **kwargs, **{k: v for k, v in given.items() if v is not None})
        if kwargs.get("ignore_index", IGNORED) != IGNORED:
            raise ValueError(f"ignore_index is {kwargs['ignore_index']}: a fused model ignores labels of {IGNORED}")
        if shift_labels is not None:
            target = labels = shift_labels
        elif labels is not None:
            target = nn.functional.pad(labels, (0, 1), value=IGNORED)[..., 1:]
        elif self._fused_call is None:  # the head may be serving FusedGKDTrainer, not this model
            return base.forward(self, *args, **kwargs)
        else:
            with serving(None, fused_head(self), self):
                return base.forward(self, *args, **kwargs)
        keep = not self.training and options.eval_logits if skip_logits is None else not skip_logits
        call = _Call(options, labels, target, num_items_in_batch, keep)
        with serving(call, fused_head(self), self):
            if len(args) > place:
                output = base.forward(self, *args[:place], labels, *args[place + 1 :], **kwargs)
            else:
                output = base.forward(self, *args, labels=labels, **kwargs)
        if call.loss is None or not call.taken:
            missed = "call its LM head" if call.loss is None else "take its loss from its loss_function"
            raise RuntimeError(f"{base.__name__}: with labels its forward pass did not {missed}: unfuse it")
        self.last_row_stats = call.stats
        return output

    def loss_function(self: Any) -> Any:
        own = self._own_loss_function
        if self._fused_call is None:
            return own
        if own is not self._fused_options.loss_function:  # another loss_type, for example
            was = _name(self._fused_options.loss_function)
            raise ValueError(f"{base.__name__}: its loss_function is {_name(own)}, and was {was} when it was fused")
        return self._fused_call.take

    def set_loss_function(self: Any, value: Any) -> None:
        if self._fused_options is not None:
            raise ValueError(f"{base.__name__} is fused, and would not call another loss_function: unfuse it first")
        base.loss_function.fset(self, value)

    # The property of the base under another name, since torch.compile does not trace its fget.
    own = inspect.getattr_static(base, "loss_function", None)
    body = {
        "forward": forward,
        "_own_loss_function": own,
        "loss_function": property(loss_function, set_loss_function),
    }
    return fused_class(base, _FusedModel, _model_class, body)


def _become_fused(model: Any, options: _Options) -> None:
    if not isinstance(model, _FusedModel):
        model.__class__ = _model_class(type(model))
    model._fused_options = options
    fused_head(model)


def _restore(model: Any) -> None:
    for module in model.modules():
        restore_class(module)
    for name in ("_fused_options", "last_row_stats"):
        vars(model).pop(name, None)
