"""The LM head of backend `cpp`: computes float32 logits, and the products of their gradient, by csrc/cpu for sizes
where that is faster."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from mind_kernels import extension
from mind_kernels.head import Head, WriteProducts

# Its time as a share of PyTorch's (MKL), one thread of an AVX-512 processor, V 49152. float32, D 576: 1.9 with 1 row,
# 0.5 with 8, 0.7 with 16, 0.83 with 128, 0.98 with 256; D 2048: 0.95 with 128, 1.04 with 256; D 64, where most of the
# time is spent on writing the logits: 1.4 with 128. bfloat16, which both convert to float32: 0.5 to 1.0 from D 576 on,
# 1.5 at V 1000.
FEWEST_ROWS, MOST_ROWS = 16, 192  # in float32
SMALLEST_SIZE = 256  # D
SMALLEST_VOCABULARY = 8192  # in half precision
PRODUCT_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""Of hidden states and weight, for which csrc/cpu has products."""


class CompiledHead(Head):
    """See `Head`."""

    def project_into(self, hidden: Tensor, out: Tensor) -> Tensor:
        """See `Head.project_into`."""
        if out.dtype != torch.float32 or not self._is_faster(hidden):
            return super().project_into(hidden, out)
        extension.operators("cpp").project(hidden, self.weight, self.bias, out)
        return out

    def project_wide(self, hidden: Tensor, out: Tensor | None = None) -> Tensor:
        """See `Head.project_wide`."""
        if not self._is_faster(hidden):
            return super().project_wide(hidden, out)
        if out is None:
            out = hidden.new_empty(hidden.shape[0], self.vocabulary, dtype=torch.float32)
        return self.project_into(hidden, out)

    def gradient_products(self, hidden: Tensor, dlogits: Tensor) -> WriteProducts | None:
        """See `Head.gradient_products`."""
        rows, size = hidden.shape
        if dlogits.dtype != torch.float32 or hidden.dtype not in PRODUCT_DTYPES or rows < FEWEST_ROWS or size == 0:
            return None
        return partial(extension.operators("cpp").dense_products, dlogits.contiguous(), hidden, self.weight)

    def _is_faster(self, hidden: Tensor) -> bool:
        rows, size = hidden.shape
        if hidden.dtype == torch.float32:
            return size >= SMALLEST_SIZE and FEWEST_ROWS <= rows <= MOST_ROWS
        half = hidden.dtype in (torch.bfloat16, torch.float16)
        return half and size >= SMALLEST_SIZE and self.vocabulary >= SMALLEST_VOCABULARY


def conditions(head: Head) -> tuple[float, float]:
    """The arguments softcap (0 for none) and temperature of the compiled kernels."""
    return head.softcap or 0.0, head.temperature
