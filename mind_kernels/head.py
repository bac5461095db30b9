"""The LM head: computes the logits of rows, and sums the gradients of hidden states, weight and bias over chunks.

The logits z are computed in two steps: the projected logits, hidden weight^T + bias, and then softcap and temperature.
Everything here is exact: no entry of a gradient is dropped. The gradients of weight and bias are summed in float32
(float64 for float64 input).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from mind_kernels.extension import constant_in_graphs
from mind_kernels.row_chunks import (
    Rows,
    accumulation_dtype,
    chunks,
    gradient_dtype,
    row_major,
    rows_per_block,
    rows_per_chunk,
)

WriteProducts = Callable[[Tensor | None, Tensor | None, bool, Tensor | None], None]
"""write(dH (n, D), dW (V, D), add, db (V,)) computes the products of n rows: writes dH, adds to dW if `add` is true and
else writes it, and adds to db; None: not needed."""


@dataclass(frozen=True, eq=False)  # two heads are equal if they are the same: tensors compare by entry
class Head:
    """An LM head: z = softcap(hidden weight^T + bias) / temperature, with softcap(x) = c tanh(x / c).

    Every operation accepts a Head as its argument `weight`; its own arguments `bias`, `softcap` and `temperature` must
    then keep their defaults.
    """

    weight: Tensor
    """(V, D) float64, float32, bfloat16 or float16: one row per vocabulary entry. Receives a gradient."""
    bias: Tensor | None = None
    """(V,), dtype and device of weight: added to the projected logits; -inf excludes a token. Receives a gradient."""
    softcap: float | None = None
    """c > 0: bounds x = hidden weight^T + bias to c tanh(x / c), before the temperature. None: no bound."""
    temperature: float = 1.0
    """T > 0: the logits are divided by it."""

    @property
    def vocabulary(self) -> int:
        """V, the number of vocabulary entries."""
        return self.weight.shape[0]

    def logits(self, hidden: Tensor) -> Tensor:
        """z (..., V) of hidden (..., D), differentiable, in float32 or better after the product: the definition."""
        return self.to_logits(self.project(hidden).to(accumulation_dtype(hidden.dtype)))

    def project(self, hidden: Tensor) -> Tensor:
        """The projected logits (..., V) of hidden (..., D), differentiable, in the dtype of hidden."""
        return torch.nn.functional.linear(hidden, self.weight, self.bias)

    def project_into(self, hidden: Tensor, out: Tensor) -> Tensor:
        """Writes the projected logits of hidden (n, D) to `out` (n, V); not differentiable."""
        if self.bias is None:
            return torch.mm(hidden, self.weight.T, out=out)
        return torch.addmm(self.bias, hidden, self.weight.T, out=out)

    def project_wide(self, hidden: Tensor, out: Tensor | None = None) -> Tensor:
        """The projected logits (n, V) of hidden (n, D), in float32 or better; on a CPU written to `out`, if it is
        given.

        A GPU multiplies half precision directly and sums in float32; other devices convert a half-precision head to
        float32, one tile of the vocabulary at a time.
        """
        dtype = accumulation_dtype(hidden.dtype)
        if hidden.dtype == dtype:
            return self.project(hidden) if out is None else self.project_into(hidden, out)
        if hidden.is_cuda:
            out = torch.mm(hidden, self.weight.T, out_dtype=dtype)
            return out if self.bias is None else out.add_(self.bias)
        wide = hidden.to(dtype)
        out = wide.new_empty(hidden.shape[0], self.vocabulary) if out is None else out
        tile = rows_per_block(hidden.shape[1], hidden.device)
        for columns in chunks(self.vocabulary, tile):
            torch.mm(wide, self.weight[columns].to(dtype).T, out=out[:, columns])
        return out if self.bias is None else out.add_(self.bias)

    def gradient_products(self, hidden: Tensor, dlogits: Tensor) -> WriteProducts | None:
        """What computes the products of dlogits (n, V) with hidden (n, D) and the weight, if this head has a faster way
        than PyTorch."""
        return None

    def logits_of(self, ids: Tensor, hidden: Tensor) -> Tensor:
        """z (n, K) of the tokens ids (n, K) for hidden (n, D), in float32 or better, by one product per token."""
        wide = accumulation_dtype(hidden.dtype)
        out = hidden.new_empty(ids.shape, dtype=wide)
        for block in chunks(len(ids), rows_per_block(ids.shape[1] * max(1, hidden.shape[1]), hidden.device)):
            weight = self.weight[ids[block]].to(wide)
            torch.bmm(weight, hidden[block, :, None].to(wide), out=out[block].unsqueeze(2))
        return self.to_logits(out if self.bias is None else out + self.bias[ids])

    def to_logits(self, projected: Tensor) -> Tensor:
        """z (..., V) of projected logits, differentiable."""
        if self.softcap is not None:
            projected = self.softcap * torch.tanh(projected / self.softcap)
        return projected / self.temperature

    def to_logits_(self, projected: Tensor) -> Tensor:
        """`to_logits` in place."""
        if self.softcap is not None:
            projected.div_(self.softcap).tanh_().mul_(self.softcap)
        return projected if self.temperature == 1.0 else projected.div_(self.temperature)

    def slope(self, logits: Tensor) -> Tensor | float:
        """dz / d(projected logits), computed from z: of the shape of z if there is a softcap, else one number."""
        if self.softcap is None:
            return 1.0 / self.temperature
        return (1.0 - (logits * (self.temperature / self.softcap)).square_()).div_(self.temperature)

    def row_major(self) -> Head:
        """The same head, with tensors whose rows are contiguous."""
        bias = None if self.bias is None else self.bias.contiguous()
        return type(self)(row_major(self.weight), bias, self.softcap, self.temperature)


def head_of(
    weight: Tensor | Head, bias: Tensor | None, softcap: float | None, temperature: float, owner: str = ""
) -> Head:
    """The head that an operation's arguments describe: a Head alone, or a weight (V, D) and the other three.

    `owner`, such as "teacher_", is the prefix of the names in messages. Raises ValueError if a Head and one of the
    other arguments are both given.
    """
    if not isinstance(weight, Head):
        return Head(weight, bias, softcap, temperature)
    given = {
        f"{owner}bias": bias is not None,
        f"{owner}softcap": softcap is not None,
        "temperature": not (isinstance(temperature, (int, float)) and temperature == 1.0),
    }
    for name, is_given in given.items():
        if is_given:
            raise ValueError(f"{owner}{name}: expected none beside a Head as {owner}weight, which has its own")
    return weight


@constant_in_graphs  # which Dynamo of PyTorch 2.11 cannot trace
def _has_autocast(device: str) -> bool:
    return torch.amp.is_autocast_available(device)


def under_autocast(hidden: Tensor, head: Head) -> tuple[Tensor, Head]:
    """Both in autocast's dtype if autocast is on for their device, as torch.nn.functional.linear casts its inputs."""
    device = hidden.device.type
    if not (_has_autocast(device) and torch.is_autocast_enabled(device)):
        return hidden, head
    dtype = torch.get_autocast_dtype(device)

    def cast(tensor: Tensor) -> Tensor:
        return tensor if tensor.dtype == torch.float64 else tensor.to(dtype)

    bias = None if head.bias is None else cast(head.bias)
    return cast(hidden), Head(cast(head.weight), bias, head.softcap, head.temperature)


def scale_(gradient: Tensor, slope: Tensor | float) -> Tensor:
    """gradient * slope, in place; does nothing if the slope is 1."""
    return gradient if isinstance(slope, float) and slope == 1.0 else gradient.mul_(slope)


class Gradients(NamedTuple):
    """The gradients of a head and its hidden states; None, or an empty tensor, for one that is not needed."""

    hidden: Tensor | None  # (N, D)
    weight: Tensor | None  # (V, D)
    bias: Tensor | None  # (V,)


class Scalable(Protocol):
    """Weights of rows or groups: a tensor, or an object that holds several."""

    def __mul__(self, factor: Any, /) -> Any: ...


W = TypeVar("W", bound=Scalable)

# `choose_unit` scales the weights so that the largest one, over the temperature, has this size. An entry of the
# gradient of the logits is a weight over the temperature times a factor: at most 1 + 2 z_loss lse for a cross-entropy,
# log V + 1 for an entropy, K for pairs, and the largest log-ratio for a reverse divergence. All of these but that of a
# large z_loss are far below the 65504 / 2^6 = 1023 that float16 has left. At the other end, entries down to 2^-19 of
# the largest weight are normal numbers, and the smallest step is 2^-29 of it.
_LARGEST_WEIGHT = 2.0**6
_MOST_SHRUNK = 2.0**16  # by a large z_loss
_SMALLEST_SCALED = 2.0**-60  # a unit for smaller weights would overflow in products with others


_MOST_ELEMENTS = 2**31 - 1  # of a chunk of logits on a GPU: libraries index larger matrices by 64 bits, and slowly
# Elements of 1024 tiles of 128 x 128. For fewer tiles cuBLAS may divide the sum over the rows, and PyTorch lets it add
# the parts in bfloat16 (torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction).
_FEW_TILES = 2**24


class HeadGradients:
    """Sums dH (N, D), dW (V, D) and db (V,) of a head over chunks; a frozen input costs nothing.

    float16 holds numbers from 6e-8 to 65504, and a row's share of a mean over many tokens may be smaller. So for
    float16 input the gradient of the logits is computed in a unit of its own, a power of two that depends on the
    weights (`choose_unit`). The products are summed in float32 and returned in float32 (`gradient_dtype`).
    """

    def __init__(
        self,
        hidden: Tensor,  # (N, D)
        head: Head,
        needs: list[bool],  # of hidden, weight and bias
    ) -> None:
        dtype = accumulation_dtype(hidden.dtype)
        need_hidden, self.needs_weight, need_bias = needs
        self.head = head
        self.hidden: Tensor | None = None
        if need_hidden:
            kept = gradient_dtype(hidden.dtype)
            self.hidden = torch.zeros_like(hidden, dtype=kept, memory_format=torch.contiguous_format)
        self.weight: Tensor | None = None  # allocated by the first method that writes it
        self.bias = torch.zeros(head.vocabulary, dtype=dtype, device=hidden.device) if need_bias else None
        self._unit: Tensor | None = None  # () float32, only for float16
        self._is_whole = False  # the next chunk has all rows that have a gradient

    @property
    def wanted(self) -> bool:
        """Whether any gradient is needed at all."""
        return self.needs_weight or not (self.hidden is None and self.bias is None)

    def rows_per_chunk(self, rows: int, bytes_per_row: int, *, alone: bool) -> int:
        """Rows per chunk of a pass over `rows` rows; `alone`: no other pass adds to the gradients.

        dW of bfloat16 input is summed in float32, and each chunk adds to it: at V 151936, D 3584 an H200 takes 1 ms for
        the 4.4 GB that this moves, and 0.8 ms to round the sum. If all rows fit into one chunk, dW is written once, in
        bfloat16. So on a GPU a chunk takes more than the bytes of `row_chunks.rows_per_chunk`: those of the rounded dW,
        which does not exist before the last chunk has ended; and a single chunk those of the float32 sum.
        """
        weight, cap = self.head.weight, max(1, _MOST_ELEMENTS // max(1, self.head.vocabulary))
        is_rounded = gradient_dtype(weight.dtype) != accumulation_dtype(weight.dtype)
        if not (weight.is_cuda and self.needs_weight and is_rounded):
            return rows_per_chunk(bytes_per_row, weight.device, 1)
        if alone and rows <= min(cap, rows_per_chunk(bytes_per_row, weight.device, 1, spare=2 * weight.nbytes)):
            self._is_whole = True
            return max(1, rows)
        return min(cap, rows_per_chunk(bytes_per_row, weight.device, 1, spare=weight.nbytes))

    def choose_unit(self, *weights: Tensor | None, z_loss: float = 0.0) -> None:
        """Chooses the unit from all weights of the sum; called once, before the first `add`."""
        if self.head.weight.dtype != torch.float16 or not self.wanted:
            return
        given = [weight.flatten() for weight in weights if weight is not None]
        every = torch.cat([*given, given[0].new_zeros(1)]).abs()
        # Of the finite weights: an infinite one spoils its own row alone.
        largest = torch.where(every.isfinite(), every, 0).amax() / self.head.temperature
        mantissa, _ = torch.frexp(largest.clamp_(_SMALLEST_SCALED, torch.finfo(largest.dtype).max))
        # Exact: largest is the mantissa times a power of two.
        self._unit = _LARGEST_WEIGHT * self._room_for(z_loss) * (mantissa / largest)

    def _room_for(self, z_loss: float) -> float:
        """The power of two that keeps the factor of a z_loss within float16, whatever the logits are."""
        largest = torch.finfo(torch.float16).max
        logit = min(self.head.softcap or largest, largest) / self.head.temperature
        factor = (1 + 2 * abs(z_loss) * logit) * _LARGEST_WEIGHT / largest
        return 2.0 ** -math.ceil(math.log2(min(max(factor, 1), _MOST_SHRUNK)))

    def in_unit(self, weights: W) -> W:
        """The weights in the chosen unit, which kernels and `add` have to use."""
        return weights if self._unit is None else weights * self._unit

    def add(self, rows: Rows, hidden: Tensor, dlogits: Tensor) -> None:
        """Adds the gradients that dlogits (n, V) cause, for the hidden states hidden[rows], passed as `hidden` (n,
        D)."""
        write = self.head.gradient_products(hidden, dlogits)
        if write is not None:
            self.write_products(rows, len(hidden), write)
            return
        if self.bias is not None:
            self.bias.add_(dlogits.sum(0, dtype=self.bias.dtype))
        if hidden.dtype == torch.float16 and not hidden.is_cuda:
            self._add_wide(rows, hidden, dlogits)
            return
        dlogits = dlogits.to(hidden.dtype)
        if self.hidden is not None:
            self.add_hidden(rows, self._product(dlogits))
        if self.needs_weight:
            self._add_weight(dlogits, hidden)

    def write_products(self, rows: Rows, count: int, write: WriteProducts) -> None:
        """Adds the products of `count` rows that `write` computes."""
        weight, dtype = self.head.weight, accumulation_dtype(self.head.weight.dtype)
        add = self.weight is not None
        if self.needs_weight and self.weight is None:
            self.weight = torch.empty(weight.shape, dtype=dtype, device=weight.device)
        product = None if self.hidden is None else weight.new_empty(count, weight.shape[1], dtype=dtype)
        write(product, self.weight, add, self.bias)
        if product is not None:
            self.add_hidden(rows, product)

    def _add_wide(self, rows: Rows, hidden: Tensor, dlogits: Tensor) -> None:
        """`add` in float32, a vocabulary tile at a time: on a CPU a float16 product overflows beyond float16's
        range."""
        wide = hidden.float()
        product = None if self.hidden is None else torch.zeros_like(wide)
        if self.needs_weight and self.weight is None:
            self.weight = wide.new_zeros(self.head.weight.shape)
        for tile in chunks(self.head.vocabulary, rows_per_block(max(1, hidden.shape[1]), hidden.device)):
            part = dlogits[:, tile].float()
            if product is not None:
                product.addmm_(part, self.head.weight[tile].float())
            if self.weight is not None:
                self.weight[tile].addmm_(part.T, wide)
        if product is not None:
            self.add_hidden(rows, product)

    def _product(self, dlogits: Tensor) -> Tensor:
        """dlogits weight (n, D), in the dtype of `hidden`."""
        if dlogits.dtype == torch.float16:
            return torch.mm(dlogits, self.head.weight, out_dtype=torch.float32)
        return dlogits @ self.head.weight

    def add_hidden(self, rows: Rows, product: Tensor) -> None:
        """dH[rows] += product (n, D)."""
        assert self.hidden is not None
        if isinstance(rows, slice):
            self.hidden[rows] += product
        else:
            self.hidden.index_add_(0, rows, product.to(self.hidden.dtype))

    def _add_weight(self, dlogits: Tensor, hidden: Tensor) -> None:
        dtype, beta = accumulation_dtype(hidden.dtype), 1
        if self._is_whole:
            assert self.weight is None
            if self.head.weight.numel() >= _FEW_TILES:
                self.weight = dlogits.T @ hidden
                return
        if self.weight is None:
            self.weight, beta = torch.empty(self.head.weight.shape, dtype=dtype, device=hidden.device), 0
        if dtype == hidden.dtype:
            torch.addmm(self.weight, dlogits.T, hidden, beta=beta, out=self.weight)
        elif hidden.is_cuda:
            # One product that reads half precision and adds in float32, so that no chunk's dW is rounded.
            torch.addmm(self.weight, dlogits.T, hidden, out_dtype=dtype, beta=beta, out=self.weight)
        elif beta == 0:
            self.weight.copy_(dlogits.T @ hidden)
        else:
            self.weight.add_(dlogits.T @ hidden)

    def add_weight_blocks(self, size: int, compute: Callable[[slice, Tensor], None], *, last: bool) -> None:
        """Adds to dW what compute(block, out) writes to out (block, D), for `size` vocabulary entries at a time.

        If nothing has been added to dW before and nothing will be (`last`), dW is written once, in its final dtype.
        """
        fresh = self.weight is None
        if self.weight is None:
            dtype = gradient_dtype if last else accumulation_dtype
            self.weight = self._like_weight(torch.empty_like, dtype(self.head.weight.dtype))
        for block in chunks(self.head.vocabulary, size):
            if fresh:
                compute(block, self.weight[block])
            else:
                part = torch.empty_like(self.weight[block])
                compute(block, part)
                self.weight[block] += part

    def results(self, shape: torch.Size) -> tuple[Tensor, ...]:
        """dH in the shape `shape`, dW and db, all in the `gradient_dtype`; an empty tensor for one that is not
        needed."""
        like, dtype = self.head.weight, gradient_dtype(self.head.weight.dtype)
        if self.needs_weight and self.weight is None:
            self.weight = self._like_weight(torch.zeros_like, dtype)
        hidden = None if self.hidden is None else self.hidden.view(shape)
        sums = (hidden, self.weight, self.bias)
        if self._unit is not None:
            sums = tuple(None if total is None else total.div_(self._unit) for total in sums)
        return tuple(like.new_empty(0, dtype=dtype) if total is None else total.to(dtype) for total in sums)

    def _like_weight(self, make: Callable[..., Tensor], dtype: torch.dtype) -> Tensor:
        return make(self.head.weight, dtype=dtype, memory_format=torch.contiguous_format)
