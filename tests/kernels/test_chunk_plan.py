"""How many rows a chunk takes on a GPU (HeadGradients.rows_per_chunk), counted without one."""

from __future__ import annotations

import pytest
import torch

from mind_kernels.head import Head, HeadGradients
from mind_kernels.row_chunks import rows_per_chunk

GIB = 1 << 30
V, D = 151936, 3584
ROUNDED = 2 * V * D  # bytes of dW in bfloat16


class OnGPU(torch.Tensor):
    """A tensor of shapes alone that says that it lies on a GPU."""

    is_cuda = property(lambda _: True)
    device = property(lambda _: torch.device("cuda", 0))


def gradients(dtype=torch.bfloat16, *, needs_weight=True, vocabulary=V, size=D):
    weight = torch.empty(vocabulary, size, dtype=dtype, device="meta").as_subclass(OnGPU)
    return HeadGradients(torch.empty(1, size, dtype=dtype), Head(weight), [True, needs_weight, False])


def test_all_rows_at_once_if_no_float32_sum_is_needed():
    most = (GIB + 2 * ROUNDED) // (2 * V) // 128 * 128
    found = gradients()
    assert found.rows_per_chunk(most, 2 * V, alone=True) == most and found._is_whole
    for found, rows, alone in ((gradients(), most + 1, True), (gradients(), most, False)):
        assert found.rows_per_chunk(rows, 2 * V, alone=alone) == (GIB + ROUNDED) // (2 * V) // 128 * 128
        assert not found._is_whole


@pytest.mark.parametrize(
    "options", [{"dtype": torch.float32}, {"dtype": torch.float16}, {"needs_weight": False}], ids=str
)
def test_no_more_where_nothing_is_rounded(options):
    found = gradients(**options)
    assert found.rows_per_chunk(8192, 2 * V, alone=True) == rows_per_chunk(V, torch.device("cuda"), 2)
    assert not found._is_whole


def test_no_chunk_has_more_elements_than_32_bits_count():
    found = gradients(size=16384)
    assert found.rows_per_chunk(20000, 2 * V, alone=True) == (2**31 - 1) // V and not found._is_whole


def test_a_cpu_keeps_its_budget():
    head = Head(torch.empty(V, D, dtype=torch.bfloat16, device="meta"))
    found = HeadGradients(torch.empty(1, D, dtype=torch.bfloat16), head, [True, True, False])
    assert found.rows_per_chunk(8192, 2 * V, alone=True) == rows_per_chunk(2 * V, head.weight.device, 1)


def test_a_whole_chunk_writes_its_dtype():
    """As on a GPU, with numbers: dW is the product, in the dtype of the input, and no second chunk may follow."""
    hidden, dlogits = torch.randn(12, 8).bfloat16(), torch.randn(12, 31).bfloat16()
    found = HeadGradients(hidden, Head(torch.randn(31, 8).bfloat16()), [True, True, False])
    found._is_whole = True
    found.add(slice(0, 12), hidden, dlogits)
    _, d_weight, _ = found.results(hidden.shape)
    assert torch.equal(d_weight, dlogits.T @ hidden) and d_weight.dtype == torch.bfloat16
    with pytest.raises(AssertionError):
        found.add(slice(0, 12), hidden, dlogits)
