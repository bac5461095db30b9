"""Predicted times: the least that the products and the bytes of a benchmark's line take at a device's two rates.

    python -m bench.roofline [--device "NVIDIA H200"]

prints the prediction of every line of bench/on_gpu.sh, without a GPU. A benchmark writes the same beside what it
measures, at the rates of the machine that it runs on: `predicted_ms`, and `times_predicted`, how many times as much was
measured. A line is a sum of steps, each as long as the slower of its arithmetic and its bytes. What the caches save,
launches, small tiles and special functions are not in it: a prediction is a bound, not a guess.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode


class Rates(NamedTuple):
    """Of a device, for large matrices."""

    tflops: float
    """Of products in the dtype of the benchmark."""
    gb_s: float
    """Of a copy, bytes read and bytes written."""


# Of bfloat16. An H200's are measured: products of random numbers, which are slower than of zeros. An H100 has the same
# processor; its memory is taken to reach the same share of the datasheet's 3.35 TB/s as that of an H200 of its 4.8.
DEVICES = {"NVIDIA H200": Rates(790, 4300), "NVIDIA H100": Rates(790, 3000)}


class Step(NamedTuple):
    """A part of the work, none of which runs beside another."""

    flops: float
    bytes: float

    def seconds(self, rates: Rates) -> float:
        return max(self.flops / (1e12 * rates.tflops), self.bytes / (1e9 * rates.gb_s))


def milliseconds(steps: Iterable[Step], rates: Rates) -> float:
    return 1e3 * sum(step.seconds(rates) for step in steps)


def columns(steps: Sequence[Step] | None, rates: Rates, measured_ms: float | None = None) -> dict[str, float]:
    """Those of a result row; none without steps."""
    if steps is None:
        return {}
    predicted = milliseconds(steps, rates)
    found = {"predicted_ms": round(predicted, 4)}
    return found if measured_ms is None else found | {"times_predicted": round(measured_ms / predicted, 3)}


class Logits(NamedTuple):
    """N rows of V logits, from D columns, in a dtype of so many bytes."""

    rows: int
    vocabulary: int
    size: int
    itemsize: int

    @classmethod
    def of(cls, hidden: Tensor, weight: Tensor) -> Logits:
        vocabulary, size = weight.shape
        return cls(hidden.numel() // size, vocabulary, size, hidden.element_size())

    @property
    def count(self) -> int:
        return self.rows * self.vocabulary

    def products(self, count: float = 1, itemsize: int | None = None) -> Step:
        """Products between them, hidden states and head; logits or their gradient are read or written once in each."""
        operands = (self.rows + self.vocabulary) * self.size * self.itemsize
        return Step(2 * count * self.count * self.size, count * (self.count * (itemsize or self.itemsize) + operands))

    def passes(self, bytes_per_logit: float) -> Step:
        """What reads and writes them between the products."""
        return Step(0, self.count * bytes_per_logit)

    def gathers(self, kept: float) -> Step:
        """dH and dW of `kept` entries per row: a row of the head and one of the hidden states each; both are
        written."""
        rows = 2 * kept * self.rows + self.rows + self.vocabulary
        return Step(0, rows * self.size * self.itemsize)


class Counted(TorchDispatchMode):
    """The bytes that operators move of tensors with at least `large` elements; `products`: those of products too."""

    _UNREAD = ("aten::copy_", "aten::fill_", "aten::zero_")  # of what they write to
    _FEW = ("aten::gather", "aten::scatter_", "aten::nll_loss")  # entries of what they are called on
    _PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm")

    def __init__(self, large: int, products: bool = True) -> None:
        super().__init__()
        self.large, self.products, self.bytes = large, products, 0

    def __torch_dispatch__(self, operator, types, arguments=(), keywords=None):
        result = operator(*arguments, **(keywords or {}))
        name, schema = operator.name(), operator._schema
        if operator.is_view or name.startswith(("aten::empty", "aten::new_empty")):
            return result
        if not self.products and name.partition(".")[0] in self._PRODUCTS:
            return result
        given = dict(zip((a.name for a in schema.arguments), arguments, strict=False)) | (keywords or {})
        unread = ["out"] + ["self"] * name.startswith(self._UNREAD + self._FEW)
        moved = [value for argument, value in given.items() if argument not in unread]
        moved += [] if name.startswith("aten::scatter_") else [result]
        tensors = [leaf for leaf in tree_leaves(moved) if isinstance(leaf, Tensor)]
        self.bytes += sum(t.numel() * t.element_size() for t in tensors if t.numel() >= self.large)
        return result


def counted(loss: Callable[[Any], Tensor], inputs: Any) -> list[Step]:
    """The steps of a loss in plain PyTorch, forward and backward, counted on inputs of the meta device."""
    logits = Logits.of(inputs.hidden, inputs.weight)
    flops = FlopCounterMode(display=False)
    with Counted(logits.count // 16, products=False) as moved, flops:
        torch.autograd.grad(loss(inputs), (inputs.hidden, inputs.weight))
    products = flops.get_total_flops() / logits.products().flops
    return [logits.products(products), Step(0, moved.bytes)]


def predictions(rates: Rates) -> Iterator[dict[str, Any]]:
    """A row for every line of bench/on_gpu.sh, at the shapes of a GPU."""
    from bench import row_kernels, train_step
    from bench.linear_cross_entropy.__main__ import BENCHMARK as cross_entropy
    from bench.linear_mind_loss.__main__ import BENCHMARK as mind_loss
    from bench.linear_pairwise_jsd.__main__ import BENCHMARK as pairwise_jsd

    yield from row_kernels.predictions(rates)
    for benchmark in (pairwise_jsd, mind_loss, cross_entropy):
        yield from benchmark.predictions(rates)
    yield from train_step.predictions(rates)


def main() -> None:
    from bench.measure import print_table

    parser = argparse.ArgumentParser(prog="python -m bench.roofline", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", choices=DEVICES, default="NVIDIA H200")
    rates = DEVICES[parser.parse_args().device]
    print(f"{rates.tflops:g} TFLOP/s in bfloat16, {rates.gb_s:g} GB/s\n")
    print_table(list(predictions(rates)), ("benchmark", "case", "line", "predicted_ms", "times_roof"))


if __name__ == "__main__":
    main()
