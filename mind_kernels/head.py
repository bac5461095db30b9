"""The LM head: the logits of rows, and the gradients of hidden states, weight and bias summed over chunks of rows.

Two steps lead to the logits z: projected logits, hidden weight^T + bias, then softcap and temperature. Exact: nothing
is dropped. The gradients of weight and bias are summed in float32 (float64 for float64 input).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mind_kernels.row_chunks import Rows, accumulation_dtype, chunks, row_major, rows_per_block


@dataclass(frozen=True, eq=False)  # two heads are equal if they are the same: tensors compare by entry
class Head:
    """An LM head: z = softcap(hidden weight^T + bias) / temperature, with softcap(x) = c tanh(x / c).

    Every operation takes one in place of its argument `weight`; its own arguments `bias`, `softcap` and `temperature`
    are left alone then.
    """

    weight: Tensor
    """(V, D) float64, float32, bfloat16 or float16: the embedding of each vocabulary entry. Takes a gradient."""
    bias: Tensor | None = None
    """(V,), dtype and device of weight: added to the projected logits; -inf rules an entry out. Takes a gradient."""
    softcap: float | None = None
    """c > 0: the largest absolute logit before the temperature. None: no bound."""
    temperature: float = 1.0
    """T > 0: what the logits are divided by."""

    @property
    def vocabulary(self) -> int:
        """V."""
        return self.weight.shape[0]

    def logits(self, hidden: Tensor) -> Tensor:
        """z (..., V) of hidden (..., D), differentiable, in float32 or better after the product: the definition."""
        return self.to_logits(self.project(hidden).to(accumulation_dtype(hidden.dtype)))

    def project(self, hidden: Tensor) -> Tensor:
        """The projected logits (..., V) of hidden (..., D), differentiable, in the dtype of hidden."""
        return torch.nn.functional.linear(hidden, self.weight, self.bias)

    def project_wide(self, hidden: Tensor) -> Tensor:
        """The projected logits (n, V) of hidden (n, D), in float32 or better.

        A GPU multiplies half precision as it is and sums in float32; elsewhere a half-precision head is widened a
        vocabulary tile at a time.
        """
        dtype = accumulation_dtype(hidden.dtype)
        if hidden.dtype == dtype:
            return self.project(hidden)
        if hidden.is_cuda:
            out = torch.mm(hidden, self.weight.T, out_dtype=dtype)
            return out if self.bias is None else out.add_(self.bias)
        wide = hidden.to(dtype)
        out = wide.new_empty(hidden.shape[0], self.vocabulary)
        tile = rows_per_block(hidden.shape[1], hidden.device)
        for columns in chunks(self.vocabulary, tile):
            torch.mm(wide, self.weight[columns].to(dtype).T, out=out[:, columns])
        return out if self.bias is None else out.add_(self.bias)

    def to_logits(self, projected: Tensor) -> Tensor:
        """z (..., V) of projected logits, differentiable."""
        if self.softcap is not None:
            projected = self.softcap * torch.tanh(projected / self.softcap)
        return projected / self.temperature

    def to_logits_(self, projected: Tensor) -> Tensor:
        """The same in place."""
        if self.softcap is not None:
            projected.div_(self.softcap).tanh_().mul_(self.softcap)
        return projected if self.temperature == 1.0 else projected.div_(self.temperature)

    def slope(self, logits: Tensor) -> Tensor | float:
        """dz / d(projected logits), from z: shaped as z under a softcap, else one number."""
        if self.softcap is None:
            return 1.0 / self.temperature
        return (1.0 - (logits * (self.temperature / self.softcap)).square_()).div_(self.temperature)

    def row_major(self) -> Head:
        """The same head, its tensors with contiguous rows."""
        bias = None if self.bias is None else self.bias.contiguous()
        return Head(row_major(self.weight), bias, self.softcap, self.temperature)


def head_of(
    weight: Tensor | Head, bias: Tensor | None, softcap: float | None, temperature: float, owner: str = ""
) -> Head:
    """The head that an operation's arguments describe: a Head alone, or a weight (V, D) and the other three.

    `owner`, such as "teacher_", stands before the names in the messages. Raises ValueError for an argument beside a
    Head that has it already.
    """
    if not isinstance(weight, Head):
        return Head(weight, bias, softcap, float(temperature))
    given = {
        f"{owner}bias": bias is not None,
        f"{owner}softcap": softcap is not None,
        "temperature": temperature != 1.0,
    }
    for name, is_given in given.items():
        if is_given:
            raise ValueError(f"{owner}{name}: expected none beside a Head as {owner}weight, which has its own")
    return weight


def scale_(gradient: Tensor, slope: Tensor | float) -> Tensor:
    """gradient * slope, in place; no pass over the gradient where the slope is 1."""
    return gradient if isinstance(slope, float) and slope == 1.0 else gradient.mul_(slope)


class Gradients(NamedTuple):
    """Of one head and its hidden states; None, or an empty tensor, for one that is not needed."""

    hidden: Tensor | None  # (N, D)
    weight: Tensor | None  # (V, D)
    bias: Tensor | None  # (V,)


class HeadGradients:
    """dH (N, D), dW (V, D) and db (V,) of one head, accumulated over chunks; a frozen input costs nothing."""

    def __init__(
        self,
        hidden: Tensor,  # (N, D)
        head: Head,
        needs: list[bool],  # of hidden, weight and bias
    ) -> None:
        dtype = accumulation_dtype(hidden.dtype)
        need_hidden, self.needs_weight, need_bias = needs
        self.head = head
        self.hidden = torch.zeros_like(hidden, memory_format=torch.contiguous_format) if need_hidden else None
        self.weight: Tensor | None = None  # allocated by whatever writes it first
        self.bias = torch.zeros(head.vocabulary, dtype=dtype, device=hidden.device) if need_bias else None

    @property
    def wanted(self) -> bool:
        """Whether any gradient is needed at all."""
        return self.needs_weight or not (self.hidden is None and self.bias is None)

    def add(self, rows: Rows, hidden: Tensor, dlogits: Tensor) -> None:
        """Adds the products of hidden[rows], given as `hidden` (n, D), and dlogits (n, V)."""
        if self.bias is not None:
            self.bias.add_(dlogits.sum(0, dtype=self.bias.dtype))
        dlogits = dlogits.to(hidden.dtype)
        if self.hidden is not None:
            self.add_hidden(rows, dlogits @ self.head.weight)
        if self.needs_weight:
            self._add_weight(dlogits, hidden)

    def add_hidden(self, rows: Rows, product: Tensor) -> None:
        """dH[rows] += product (n, D)."""
        assert self.hidden is not None
        if isinstance(rows, slice):
            self.hidden[rows] += product
        else:
            self.hidden.index_add_(0, rows, product)

    def _add_weight(self, dlogits: Tensor, hidden: Tensor) -> None:
        dtype, beta = accumulation_dtype(hidden.dtype), 1
        if self.weight is None:
            self.weight, beta = torch.empty(self.head.weight.shape, dtype=dtype, device=hidden.device), 0
        if dtype == hidden.dtype:
            torch.addmm(self.weight, dlogits.T, hidden, beta=beta, out=self.weight)
        elif hidden.is_cuda:
            # One product that reads half precision and adds in float32: no rounded dW of a chunk in between.
            torch.addmm(self.weight, dlogits.T, hidden, out_dtype=dtype, beta=beta, out=self.weight)
        elif beta == 0:
            self.weight.copy_(dlogits.T @ hidden)
        else:
            self.weight.add_(dlogits.T @ hidden)

    def add_weight_blocks(self, size: int, compute: Callable[[slice, Tensor], None]) -> None:
        """dW += what compute(block, out) writes to out (block, D), `size` vocabulary entries at a time.

        Where nothing has been added before, dW is written once, and straight in its final dtype.
        """
        fresh = self.weight is None
        if self.weight is None:
            self.weight = torch.empty_like(self.head.weight, memory_format=torch.contiguous_format)
        for block in chunks(self.head.vocabulary, size):
            if fresh:
                compute(block, self.weight[block])
            else:
                part = torch.empty_like(self.weight[block])
                compute(block, part)
                self.weight[block] += part

    def results(self, shape: torch.Size) -> tuple[Tensor, ...]:
        """dH as `shape`, dW and db in their inputs' dtype; an empty tensor stands for one that was not needed."""
        if self.needs_weight and self.weight is None:
            self.weight = torch.zeros_like(self.head.weight, memory_format=torch.contiguous_format)
        like = self.head.weight
        hidden = None if self.hidden is None else self.hidden.view(shape)
        sums = (hidden, self.weight, self.bias)
        return tuple(like.new_empty(0) if total is None else total.to(like.dtype) for total in sums)
