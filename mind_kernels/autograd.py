"""Registers operators that compute their gradients in the forward pass, and connects them to autograd."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from mind_kernels import derivatives
from mind_kernels.backend import BACKENDS
from mind_kernels.head import Gradients, HeadGradients
from mind_kernels.namespace import NAMESPACE
from mind_kernels.records import Layout
from mind_kernels.row_chunks import chunks, gradient_dtype, rows_per_block

_REMEDY = "this backend", "backend='reference'"
_GRADIENTS = tuple(f"d_{name}" for name in Gradients._fields)


class Arguments(Protocol):
    """The arguments that every operator has, in addition to a head."""

    @property
    def hidden(self) -> Tensor: ...


Takes = TypeVar("Takes", bound=Arguments)
Gives = TypeVar("Gives")


class Operator(Generic[Takes, Gives]):
    """A torch.library operator on hidden states and a head; its arguments are one record, its outputs another.

    For a scalar loss, the weight of every row is known in the forward pass. The gradients are computed there, returned
    with the outputs, and only scaled in the backward pass. For one output per row, the upstream gradients are known in
    the backward pass only: it calls the operator again, with arguments that `recompute` makes.
    """

    def __init__(
        self,
        name: str,
        takes: type[Takes],
        gives: type[Gives],
        *,
        run: Callable[[Takes, list[bool]], tuple[Gives, HeadGradients]],
        fake: Callable[[Takes], Gives],
        head: str = "head",
        differentiable: Sequence[str] = ("loss",),
        per_row: Callable[[Takes], bool] = lambda _: False,
        recompute: Callable[[Takes, Gives], Takes] | None = None,
    ) -> None:
        """Defines the operator.

        Args:
            name: of the operator, such as "linear_cross_entropy", in the namespace of namespace.py.
            takes: the type of the record of its arguments.
            gives: the type of the record of its outputs, all tensors.
            run: computes the outputs, and those gradients of hidden, weight and bias that are needed.
            fake: returns tensors with the shapes of the outputs, without data.
            head: the path of the head in `takes`.
            differentiable: the paths in `gives` of the outputs that have a gradient. The others are statistics.
            per_row: for given arguments, whether there is one output per row.
            recompute: makes the arguments for the call in the backward pass from the arguments and a record of upstream
                gradients (None for an output that was not used).
        """
        self._takes, self._gives = Layout(takes), Layout(gives)
        self._run, self._fake, self._per_row, self._recompute = run, fake, per_row, recompute
        self._inputs = ("hidden", f"{head}.weight", f"{head}.bias")
        self._differentiable = differentiable
        # torch.compile treats a float argument of an operator as a constant: each new temperature would compile a new
        # graph.
        self._floats = [kind.startswith("float") for kind in self._takes.leaves.values()]
        kinds = [kind.replace("float", "Tensor") for kind in self._takes.leaves.values()]
        names = [path.replace(".", "_") for path in self._takes.leaves]
        arguments = ", ".join(map(" ".join, zip(kinds, names, strict=True)))
        self._outputs = (*self._gives.leaves, *_GRADIENTS)
        schema = f"({arguments}, bool[] needs) -> ({', '.join('Tensor' for _ in self._outputs)})"
        definition = torch.library.custom_op(f"{NAMESPACE}::{name}", self._forward, mutates_args=(), schema=schema)
        definition.register_fake(self._forward_fake)
        definition.register_autograd(self._backward, setup_context=self._setup_context)
        self._name = name
        self.overload = getattr(getattr(torch.ops, NAMESPACE), name).default

    def __call__(self, arguments: Takes) -> Gives:
        flat = self.flat(arguments)
        derivatives.no_transforms(self._name, flat, *_REMEDY)
        return self._gives.restore(self.overload(*flat))

    def flat(self, arguments: Takes) -> list[Any]:
        """The arguments of `overload`: those of the record, and which gradients to compute in this call."""
        flat = self._flatten(arguments)
        value = dict(zip(self._takes.leaves, flat, strict=True))
        now = torch.is_grad_enabled() and not self._per_row(arguments)
        return [*flat, [now and value[path] is not None and value[path].requires_grad for path in self._inputs]]

    def _flatten(self, arguments: Takes) -> list[Any]:
        """The arguments in the order of the schema, floats as tensors."""
        flat, like = zip(self._takes.flatten(arguments), self._floats, strict=True), arguments.hidden
        return [_as_tensor(value, like) if is_float and value is not None else value for value, is_float in flat]

    def _split(self, flat: Sequence[Tensor | None]) -> tuple[Gives, Gradients]:
        """Splits the results of `overload`, or the upstream gradients of these, into outputs and gradients."""
        count = len(self._gives.leaves)
        return self._gives.restore(flat[:count]), Gradients(*flat[count:])

    def _forward(self, *flat: Any) -> tuple[Tensor, ...]:
        *values, needs = flat
        numbers = zip(values, self._floats, strict=True)
        arguments = self._takes.restore([v.item() if is_float and v is not None else v for v, is_float in numbers])
        hidden = arguments.hidden
        with torch.autocast(hidden.device.type, enabled=False), torch.cuda.device_of(hidden):  # Triton launches on it
            outputs, gradients = self._run(arguments, needs)
            return (*self._gives.flatten(outputs), *gradients.results(hidden.shape))

    def _forward_fake(self, *flat: Any) -> tuple[Tensor, ...]:
        *values, needs = flat
        arguments = self._takes.restore(values)
        value = dict(zip(self._takes.leaves, values, strict=True))
        shapes = [value[path].shape if needed else (0,) for path, needed in zip(self._inputs, needs, strict=True)]
        outputs = self._gives.flatten(self._fake(arguments))
        dtype = gradient_dtype(arguments.hidden.dtype)
        return (*outputs, *(arguments.hidden.new_empty(shape, dtype=dtype) for shape in shapes))

    def _setup_context(self, ctx: Any, inputs: Sequence[Any], output: Sequence[Tensor]) -> None:
        *values, ctx.needs = inputs
        named = dict(zip(self._outputs, output, strict=True))
        ctx.mark_non_differentiable(*(tensor for path, tensor in named.items() if path not in self._differentiable))
        ctx.set_materialize_grads(False)
        ctx.dtype = self._takes.restore(values).hidden.dtype
        ctx.per_row = named[self._differentiable[0]].dim() > 0  # equals `per_row` of the arguments
        if ctx.per_row:
            ctx.save_for_backward(*(value if isinstance(value, Tensor) else None for value in values))
            ctx.constants = [None if isinstance(value, Tensor) else value for value in values]
        else:
            ctx.save_for_backward(*(named[name] for name in _GRADIENTS))

    def _backward(self, ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # create_graph=True: autograd records this backward pass too
            raise derivatives.unsupported(self._name, "higher-order gradients", *_REMEDY)
        given = dict(zip(self._outputs, upstream, strict=True))
        arrived = [gradient for path in self._differentiable if (gradient := given[path]) is not None]
        if not arrived:
            gradients = Gradients(None, None, None)
        elif ctx.per_row:
            gradients = self._recomputed(ctx, upstream)
        else:
            gradients = _scaled(ctx.saved_tensors, ctx.needs, *arrived, dtype=ctx.dtype)
        of_input = dict(zip(self._inputs, gradients, strict=True))
        return (*(of_input.get(path) for path in self._takes.leaves), None)

    def _recomputed(self, ctx: Any, upstream: Sequence[Tensor | None]) -> Gradients:
        saved = zip(ctx.saved_tensors, ctx.constants, strict=True)
        arguments = self._takes.restore([constant if tensor is None else tensor for tensor, constant in saved])
        arrived, _ = self._split(upstream)
        assert self._recompute is not None
        flat = self._flatten(self._recompute(arguments, arrived))
        needed = dict(zip((*self._takes.leaves, "needs"), ctx.needs_input_grad, strict=True))
        needs = [needed[path] for path in self._inputs]
        _, gradients = self._split(self.overload(*flat, needs))
        dtype = arguments.hidden.dtype
        found = zip(gradients, needs, strict=True)
        return Gradients(*(None if gradient is None or not need else gradient.to(dtype) for gradient, need in found))


def _as_tensor(value: float | Tensor, like: Tensor) -> Tensor:
    """The number as a tensor () on the CPU, fake if `like` is; made by a product, so that torch.compile lets it
    vary."""
    return value if isinstance(value, Tensor) else like.new_ones((), dtype=torch.float64, device="cpu") * value


def _scaled(gradients: Sequence[Tensor], needs: list[bool], upstream: Tensor, dtype: torch.dtype) -> Gradients:
    """The gradients times the upstream gradient of the loss, in `dtype`; None for those that were not needed.

    The product is computed in the dtype of the loss and rounded once. It is computed in place, which saves a second dW,
    with three exceptions: the graph is retained for another backward pass; it is being traced (with tensor subclasses,
    or by make_fx, which would not see what Triton launches; the compiler then reuses the buffer by itself); there are
    many upstream gradients at once (is_grads_batched).
    """
    keep = torch._C._autograd._get_current_graph_task_keep_graph()  # pyright: ignore[reportAttributeAccessIssue]
    batched = torch._C._functorch.is_legacy_batchedtensor(upstream)  # pyright: ignore[reportAttributeAccessIssue]
    is_plain = not batched and torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY) is None
    # loss.backward() starts with 1; to check this on a GPU would mean to wait for it (`triton_scale` checks it there).
    is_one = is_plain and type(upstream) is Tensor and upstream.device.type == "cpu" and float(upstream) == 1.0

    def scaled(gradient: Tensor) -> Tensor:
        if not is_plain or type(gradient) is not Tensor:
            return (gradient.to(upstream.dtype) * upstream).to(dtype)
        out = torch.empty_like(gradient, dtype=dtype) if keep or gradient.dtype != dtype else gradient
        if gradient.is_cuda and upstream.dtype == torch.float32 and BACKENDS["triton"].availability().available:
            from mind_kernels import triton_scale

            triton_scale.scale(gradient, upstream, out)
            return out
        if gradient.dtype == out.dtype == upstream.dtype:
            return gradient if is_one and out is gradient else torch.mul(gradient, upstream, out=out)
        flat, products = gradient.view(-1), out.view(-1)
        for block in chunks(len(flat), rows_per_block(1, flat.device)):
            products[block] = flat[block].to(upstream.dtype) * upstream
        return out

    return Gradients(*(scaled(g) if needed else None for g, needed in zip(gradients, needs, strict=True)))
