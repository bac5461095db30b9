"""The LM head: the logits of rows, and the gradients of hidden states, weight and bias summed over chunks of rows.

Exact: nothing is dropped. The gradients of weight and bias are summed in float32 (float64 for float64 input).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mind_kernels.row_chunks import Rows, accumulation_dtype, chunks, rows_per_block


@dataclass(frozen=True)
class Head:
    """An LM head: z = softcap(hidden weight^T + bias) / temperature, softcap(x) = c tanh(x / c)."""

    weight: Tensor  # (V, D)
    bias: Tensor | None = None  # (V,)
    softcap: float | None = None
    temperature: float = 1.0

    @property
    def vocabulary(self) -> int:
        return self.weight.shape[0]

    def logits(self, hidden: Tensor) -> Tensor:
        """z (..., V) of hidden (..., D), differentiable, float32 or better after the product: the definition."""
        return self.condition(self.projected(hidden))

    def projected(self, hidden: Tensor) -> Tensor:
        """hidden weight^T + bias (..., V), differentiable, float32 or better after the product."""
        return torch.nn.functional.linear(hidden, self.weight, self.bias).to(accumulation_dtype(hidden.dtype))

    def condition(self, logits: Tensor) -> Tensor:
        """Softcap and temperature, differentiable."""
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        return logits / self.temperature

    def project(self, hidden: Tensor) -> Tensor:
        """hidden (n, D) -> weight and bias applied (n, V), in hidden's dtype."""
        if self.bias is None:
            return hidden @ self.weight.T
        return torch.addmm(self.bias, hidden, self.weight.T)

    def project_exactly(self, hidden: Tensor) -> Tensor:
        """The same in float32 or better. A GPU multiplies half precision as it is and sums in float32; elsewhere half
        precision heads are widened a vocabulary tile at a time."""
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

    def condition_(self, logits: Tensor) -> Tensor:
        """Softcap and temperature, in place."""
        if self.softcap is not None:
            logits.div_(self.softcap).tanh_().mul_(self.softcap)
        return logits if self.temperature == 1.0 else logits.div_(self.temperature)

    def slope(self, logits: Tensor) -> Tensor | float:
        """d(conditioned logits) / d(projected logits), from the conditioned ones."""
        if self.softcap is None:
            return 1.0 / self.temperature
        return (1.0 - (logits * (self.temperature / self.softcap)).square_()).div_(self.temperature)


def scale_(gradient: Tensor, slope: Tensor | float) -> Tensor:
    """gradient * slope, in place; no pass over the gradient where the slope is 1."""
    return gradient if isinstance(slope, float) and slope == 1.0 else gradient.mul_(slope)


class HeadGradients:
    """dH (N, D), dW (V, D) and db (V,) of one head, accumulated over chunks; a frozen input costs nothing."""

    def __init__(self, hidden: Tensor, head: Head, needs: list[bool]) -> None:
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
        if fresh:
            self.weight = torch.empty_like(self.head.weight, memory_format=torch.contiguous_format)
        for block in chunks(self.head.vocabulary, size):
            if fresh:
                compute(block, self.weight[block])
            else:
                part = torch.empty_like(self.weight[block])
                compute(block, part)
                self.weight[block] += part

    def results(self) -> tuple[Tensor, Tensor, Tensor]:
        """dH, dW and db in their inputs' dtype; an empty tensor stands for one that was not needed."""
        if self.needs_weight and self.weight is None:
            self.weight = torch.zeros_like(self.head.weight, memory_format=torch.contiguous_format)
        like = self.head.weight
        sums = (self.hidden, self.weight, self.bias)
        return tuple(like.new_empty(0) if total is None else total.to(like.dtype) for total in sums)
