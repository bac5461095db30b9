"""An LM head that can compute a loss in its own forward pass, in place of its matrix product.

So everything around that product works as usual: autocast, the gathering of sharded weights, gradient synchronization.
The class of the head is changed, so that copies and pickles behave the same, and torch.compile sees one forward pass.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mind_kernels.dtensors import is_dtensor
from mind_kernels.integrations.head import active_module
from mind_kernels.integrations.tensor_parallel import same_in_all, tensor_parallel_forward

IGNORED = -100  # the label that transformers ignores


class HeadCall(Protocol):
    """One forward pass of a head that computes something other than logits."""

    keep_logits: bool
    """Whether the logits are needed too."""

    def compute(self, head: nn.Module, hidden: Tensor) -> Tensor:
        """Called instead of the head's product with hidden (..., D); returns the head's output, such as empty
        logits."""
        ...


class Fused:
    """The base of all classes that this module makes."""

    _fused_from: type
    _fused_by: Callable[[Any], type]
    _fused_call: Any = None
    _split_forward: Any = None
    """For a head that transformers' tensor parallelism has split: the forward pass that it has set on the head."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles refer to the class that this one was made from, since Python cannot find this one by
        name."""
        return _empty_instance, (type(self)._fused_by, self._fused_from), self.__getstate__()


def _empty_instance(class_of: Callable[[Any], Any], base: type) -> Any:
    fused = class_of(base)
    return fused.__new__(fused)


def fused_class(base: type, kind: type[Fused], class_of: Callable[[Any], type], body: dict[str, Any]) -> type:
    """A subclass of `base` with the name of `base`, whose attributes are `body`, then those of `kind`.

    Args:
        base: the class of a model or of a head.
        kind: Fused or a subclass, by which instances are recognized.
        class_of: a function at the top level of a module that makes this class from `base`; pickles refer to it.
        body: attributes by name.
    """
    names = {"__module__": base.__module__, "__qualname__": base.__qualname__, "__doc__": base.__doc__}
    origin = {"_fused_from": base, "_fused_by": staticmethod(class_of)}
    return type(base.__name__, (kind, base), {**body, **names, **origin})


@functools.cache
def head_class(base: Any) -> type:
    """The class of a fused LM head that was a `base`."""

    def logits_of(head: Any, *args: Any, **kwargs: Any) -> Tensor:
        split = head._split_forward
        return base.forward(head, *args, **kwargs) if split is None else split(*args, **kwargs)

    @functools.wraps(base.forward)
    def forward(self: Any, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        call: HeadCall | None = self._fused_call
        if call is None:
            return logits_of(self, hidden, *args, **kwargs)
        more = [*map(repr, args), *(name for name, value in kwargs.items() if value is not None)]
        if more:  # PEFT's adapter_names, with which each row may have another weight
            raise ValueError(f"the LM head was given {', '.join(more)} beside hidden states: unfuse the model for that")
        if self._backward_hooks or self._backward_pre_hooks:
            raise ValueError(
                "the LM head has a backward hook, which waits for the gradient of logits that are not computed: "
                "remove it, or unfuse the model"
            )
        logits = call.compute(self, hidden)
        return logits_of(self, hidden, *args, **kwargs) if call.keep_logits else logits

    return fused_class(base, Fused, head_class, {"forward": forward})


def fused_head(model: Any) -> Any:
    """The module that computes the logits, fused. PEFT may have wrapped the head in a layer, or replaced it by a
    copy."""
    head = active_module(model.get_output_embeddings())
    split = tensor_parallel_forward(head)
    if not isinstance(head, Fused):
        for inner in head.modules():
            restore_class(inner)
        head.__class__ = head_class(type(head))
        if split is not None:
            vars(head)["_split_forward"] = vars(head).pop("forward")
    elif split is not None:
        raise ValueError("the LM head was split by transformers' tensor parallelism after `fuse`: fuse the model then")
    return head


def no_logits(hidden: Tensor, vocabulary: int) -> Tensor:
    """Empty logits (..., 0, V) for hidden (..., D); a DTensor if hidden is one."""
    plain = torch.empty(*hidden.shape[:-2], 0, vocabulary, dtype=hidden.dtype, device=hidden.device)
    return same_in_all(plain, hidden.device_mesh) if is_dtensor(hidden) else plain


def of_labels(loss: Tensor, has_label: Tensor) -> Tensor:
    """A sum of losses, without a gradient unless there is a label.

    A batch without any label may be divided by a count of 0. The loss is nan then, as in transformers and TRL, whose
    gradient is zero even so; that of a sum of no rows would be 0 times infinity, and one such batch would make all
    weights nan.
    """
    return torch.where(has_label.to(loss.device), loss, loss.detach())


@contextmanager
def serving(call: HeadCall | None, *modules: Any) -> Iterator[None]:
    """A context in which these fused modules serve `call`."""
    before = [module._fused_call for module in modules]
    for module in modules:
        module._fused_call = call
    try:
        yield
    finally:
        for module, outer in zip(modules, before, strict=True):
            module._fused_call = outer


@contextmanager
def calling(model: Any, call: HeadCall) -> Iterator[None]:
    """A context in which the forward pass of the model's LM head is `call.compute`; restores the head's class
    afterwards."""
    was_fused = isinstance(active_module(model.get_output_embeddings()), Fused)
    head = fused_head(model)
    try:
        with serving(call, head):
            yield
    finally:
        if not was_fused:
            restore_class(head)


def restore_class(module: Any) -> None:
    """Gives a fused module its former class."""
    if "_fused_from" in vars(type(module)):
        vars(module).pop("_fused_call", None)
        split = vars(module).pop("_split_forward", None)
        module.__class__ = module._fused_from
        if split is not None:
            module.forward = split
