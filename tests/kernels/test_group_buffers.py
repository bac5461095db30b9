"""The memory of the pairwise divergences in plain PyTorch: blocks that fit a cache, and what they are filled with."""

from __future__ import annotations

import pytest
import torch

from mind_kernels.linear_pairwise_jsd.backend_torch import Buffers
from mind_kernels.row_chunks import rows_per_block

CPU = torch.device("cpu")


class OnCPU(torch.Tensor):
    """A tensor of shapes alone that says that it lies on a CPU."""

    device = property(lambda _: CPU)


@pytest.mark.parametrize(
    ("groups", "count", "vocabulary", "pairs"),
    [(100, 4, 1000, 6), (10, 4, 1000, 6), (0, 4, 1000, 6), (3, 8, 10**6, 28), (3, 2, 400_000, 0), (40, 4, 9000, 6)],
)
def test_a_block_fits_a_cache(groups, count, vocabulary, pairs):
    logits = torch.empty(groups, count, vocabulary, device="meta").as_subclass(OnCPU)
    made = Buffers(logits, pairs)
    rows = rows_per_block(vocabulary, CPU)
    at_once = made.groups * count
    assert 1 <= made.groups <= max(1, groups)
    assert made.groups == 1 or 2 * at_once <= rows
    assert made.groups == max(1, groups) or 2 * (at_once + count) > rows
    assert made.columns == min(vocabulary, rows_per_block(2 * made.groups * max(1, pairs), CPU))
    assert made.p.shape == made.log_p.shape == made.derivative.shape == (made.groups, count, vocabulary)
    assert made.sums.shape == made.log_sums.shape == (made.groups, pairs, made.columns)


def test_a_block_takes_the_softmax_of_the_whole_row_or_its_own():
    logits = torch.randn(2, 3, 40)
    maximum = logits.double().amax(-1, keepdim=True)
    total = (logits.double() - maximum).exp().sum(-1, keepdim=True)
    for softmax, factor in ((None, 1.0), ((maximum, total), 1.0), ((maximum, 2 * total), 0.5)):
        log_p, p, derivative = Buffers(logits, 3).fill(logits, -700.0, softmax)
        torch.testing.assert_close(p, factor * torch.softmax(logits.double(), -1))
        torch.testing.assert_close(log_p, p.log())
        assert derivative.shape == p.shape


def test_logits_are_not_far_below_the_largest():
    log_p, p, _ = Buffers(torch.zeros(1, 1, 2), 0).fill(torch.tensor([[[5.0, -1e4]]]), -700.0)
    assert log_p.tolist() == [[[0, -700]]] and p[0, 0, 0] == 1
