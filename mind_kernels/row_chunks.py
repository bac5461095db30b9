"""The chunk-size rule, the head's logits for a chunk of rows, and the gradient products of a chunk.

Every chunked backend walks over rows like this: logits of a chunk (product 1), a row kernel that turns them into the
gradient of the loss with respect to the logits, then dH (product 2) and dW (product 3). Peak memory: one chunk of
logits beside the gradients themselves. Exact: nothing is dropped; dW and db are accumulated over chunks in float32
(float64 for float64 input).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

# Bytes of one chunk of logits. Every further chunk reads and writes the whole dW once more (8VD bytes in float32), so
# chunks want to be large; on a CPU memory decides: 48 MiB are 256 rows at V 49152, D 576, whose products are 43 GFLOP
# beside 226 MB of that traffic, and the whole stays below a tenth of eager's memory.
_CHUNK_BYTES = {"cpu": 48 << 20, "cuda": 1 << 30}
# The sparse gradient accumulates no dW, so that smaller chunks cost nothing; two of them are in flight on a GPU.
_SPARSE_CHUNK_BYTES = {"cpu": 48 << 20, "cuda": 192 << 20}
# Bytes of the block on which a row kernel's elementwise passes run: on a CPU it is to stay in the cache between passes.
_BLOCK_BYTES = {"cpu": 2 << 20, "cuda": 256 << 20}

Rows = slice | Tensor


def _rows_within(budget: dict[str, int], vocabulary: int, device: torch.device, itemsize: int) -> int:
    available = budget["cpu" if device.type == "cpu" else "cuda"]
    return max(1, available // (vocabulary * itemsize))


def rows_per_chunk(vocabulary: int, device: torch.device, itemsize: int = 4, *, sparse: bool = False) -> int:
    """Rows of one logits chunk: as many as fit the byte budget of the device, at least one.

    From 128 on a multiple of 128, the height of a tile of the products.
    """
    rows = _rows_within(_SPARSE_CHUNK_BYTES if sparse else _CHUNK_BYTES, vocabulary, device, itemsize)
    return rows if rows < 128 else rows - rows % 128


def rows_per_block(vocabulary: int, device: torch.device) -> int:
    """Rows of one block of a row kernel's passes (float32), at least one."""
    return _rows_within(_BLOCK_BYTES, vocabulary, device, 4)


def chunks(rows: Tensor | int, size: int) -> Iterator[Rows]:
    """Chunks of at most `size` rows: slices of range(rows) for a count, index tensors for a list of rows."""
    if isinstance(rows, int):
        yield from (slice(start, min(start + size, rows)) for start in range(0, rows, size))
    elif rows.numel():
        yield from rows.split(size)


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of losses, statistics and sums: float64 for float64 input, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def weighted(losses: Tensor, weight: Tensor) -> Tensor:
    """weight * losses (N,), and 0 where the weight is, whatever the loss."""
    return torch.where(weight == 0, 0, weight * losses)


def reduced(rows: Tensor, weight: Tensor, reduction: str) -> Tensor:
    """The loss of weighted rows (N,): their sum over that of the weights for "mean", their sum, or they themselves."""
    if reduction == "none":
        return rows
    return rows.sum() / weight.sum() if reduction == "mean" else rows.sum()


def row_major(matrix: Tensor) -> Tensor:
    """The matrix with its rows contiguous; itself where they are."""
    return matrix if matrix.stride(1) == 1 else matrix.contiguous()
