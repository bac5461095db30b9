"""The classes of a fused model and of its LM head: `fuse` makes them of the model's own, and puts them on."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from mind_kernels import RowStats, linear_cross_entropy
from mind_kernels.integrations.condition import Condition
from mind_kernels.integrations.head import active_module, head_tensors

IGNORED = -100  # of transformers' labels


@dataclass(frozen=True)
class Options:
    """What all calls of a fused model share."""

    condition: Condition
    loss: dict[str, Any] = field(default_factory=dict)
    eval_logits: bool = True


class _Call:
    """One call of a fused model with labels: what its forward pass hands to that of the head, and gets back."""

    def __init__(self, options: Options, target: Tensor, items: Tensor | float | None, keep_logits: bool) -> None:
        self.options, self.target, self.items, self.keep_logits = options, target, items, keep_logits
        self.loss: Tensor | None = None
        self.stats: RowStats | None = None
        self.taken = False

    def compute(self, head: nn.Module, hidden: Tensor) -> Tensor:
        """Computes the loss of hidden (..., D); returns logits of no position (..., 0, V)."""
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
        self.loss, self.stats = linear_cross_entropy(
            hidden,
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
            self.loss = self.loss / (self.items.to(hidden.device) if isinstance(self.items, Tensor) else self.items)
        return hidden.new_empty(*hidden.shape[:-2], 0, weight.shape[0])

    def take(self, *_: Any, **__: Any) -> Tensor | None:
        """In place of the model's loss function."""
        self.taken = True
        return self.loss


class _Fused:
    """A base of all classes that `fuse` makes."""

    _fused_from: type
    _fused_call: _Call | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles name the class that this one was made from: Python finds no other by its name."""
        make = _model_class if issubclass(type(self), FusedModel) else _head_class
        return _new, (make, self._fused_from), self.__getstate__()


class FusedModel(_Fused):
    _fused_options: Options | None = None
    last_row_stats: RowStats | None = None


def _new(make: Any, base: type) -> Any:
    made = make(base)
    return made.__new__(made)


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
            kwargs |= dict(zip(names[: len(args)], args, strict=True))
            args, labels = (), kwargs.pop("labels")
        options = self._fused_options
        if options is None:  # a model that was made of this class, and not by `fuse`
            given = {"labels": labels, "shift_labels": shift_labels, "num_items_in_batch": num_items_in_batch}
            return base.forward(self, *args, **kwargs, **{k: v for k, v in given.items() if v is not None})
        if kwargs.get("ignore_index", IGNORED) != IGNORED:
            raise ValueError(f"ignore_index is {kwargs['ignore_index']}: a fused model ignores labels of {IGNORED}")
        if shift_labels is not None:
            target = labels = shift_labels
        elif labels is not None:
            target = nn.functional.pad(labels, (0, 1), value=IGNORED)[..., 1:]
        else:
            return _called(self, None, base.forward, *args, **kwargs)
        keep = not self.training and options.eval_logits if skip_logits is None else not skip_logits
        call = _Call(options, target, num_items_in_batch, keep)
        output = _called(self, call, base.forward, *args, labels=labels, **kwargs)
        if call.loss is None or not call.taken:
            missed = "call its LM head" if call.loss is None else "take its loss from its loss_function"
            raise RuntimeError(f"{base.__name__}: with labels its forward pass did not {missed}: unfuse it")
        self.last_row_stats = call.stats
        return output

    def loss_function(self: Any) -> Any:
        return base.loss_function.fget(self) if self._fused_call is None else self._fused_call.take

    def set_loss_function(self: Any, value: Any) -> None:
        if self._fused_options is not None:
            raise ValueError(f"{base.__name__} is fused, and would not call another loss_function: unfuse it first")
        base.loss_function.fset(self, value)

    body = {"forward": forward, "loss_function": property(loss_function, set_loss_function)}
    return _made(base, FusedModel, body)


@functools.cache
def _head_class(base: Any) -> type:
    """The class of the LM head of a fused model that was a `base`."""

    @functools.wraps(base.forward)
    def forward(self: Any, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        call = self._fused_call
        if call is None:
            return base.forward(self, hidden, *args, **kwargs)
        more = [*map(repr, args), *(name for name, value in kwargs.items() if value is not None)]
        if more:  # PEFT's adapter_names, which give each row another weight
            raise ValueError(f"the LM head was given {', '.join(more)} beside hidden states: unfuse the model for that")
        logits = call.compute(self, hidden)
        return base.forward(self, hidden, *args, **kwargs) if call.keep_logits else logits

    return _made(base, _Fused, {"forward": forward})


def _called(model: Any, call: _Call | None, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """A forward pass in which model and head serve `call`; that of a pass around it comes back afterwards."""
    head = _fused_head(model)
    before = model._fused_call, head._fused_call
    model._fused_call = head._fused_call = call
    try:
        return forward(model, *args, **kwargs)
    finally:
        model._fused_call, head._fused_call = before


def _made(base: type, mark: type, body: dict[str, Any]) -> type:
    names = {"__module__": base.__module__, "__qualname__": base.__qualname__, "__doc__": base.__doc__}
    return type(base.__name__, (mark, base), {**body, **names, "_fused_from": base})


def become_fused(model: Any, options: Options) -> None:
    if not isinstance(model, FusedModel):
        model.__class__ = _model_class(type(model))
    model._fused_options = options
    _fused_head(model)


def _fused_head(model: Any) -> Any:
    """The module that computes the logits, fused: PEFT may have put a layer around the head, or a copy in its place."""
    head = active_module(model.get_output_embeddings())
    if not isinstance(head, _Fused):
        for inner in head.modules():
            _restore_class(inner)
        head.__class__ = _head_class(type(head))
    return head


def restore(model: Any) -> None:
    for module in model.modules():
        _restore_class(module)
    for name in ("_fused_options", "last_row_stats"):
        vars(model).pop(name, None)


def _restore_class(module: Any) -> None:
    if "_fused_from" in vars(type(module)):
        vars(module).pop("_fused_call", None)
        module.__class__ = module._fused_from
