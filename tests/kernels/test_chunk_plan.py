"""How many rows a chunk takes on a GPU (HeadGradients.rows_per_chunk), counted without one; that chunks replace one
another."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from mind_kernels import head as head_module
from mind_kernels import linear_divergence, linear_pairwise_jsd
from mind_kernels.head import Head, HeadGradients
from mind_kernels.linear_cross_entropy import backend_torch
from mind_kernels.linear_cross_entropy import rows as cross_entropy_rows
from mind_kernels.linear_cross_entropy.contract import RowSpec
from mind_kernels.linear_divergence import rows as divergence_rows
from mind_kernels.linear_divergence.contract import RowValues
from mind_kernels.linear_divergence.kinds import divergence_of
from mind_kernels.linear_divergence.teachers import HeadTeacher
from mind_kernels.linear_pairwise_jsd import groups
from mind_kernels.row_chunks import rows_per_chunk
from mind_kernels.row_loop import run_rows
from mind_kernels.shards import Shard

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


@pytest.mark.parametrize("few", [0, 1 << 24], ids=["many tiles", "few"])
def test_a_whole_chunk_writes_its_dtype(few, monkeypatch):
    """As on a GPU, with numbers: dW is the product, in the dtype of the input, and no second chunk may follow."""
    monkeypatch.setattr(head_module, "_FEW_TILES", few)
    hidden, dlogits = torch.randn(12, 8).bfloat16(), torch.randn(12, 31).bfloat16()
    found = HeadGradients(hidden, Head(torch.randn(31, 8).bfloat16()), [True, True, False])
    found._is_whole = True
    found.add(slice(0, 12), hidden, dlogits)
    _, d_weight, _ = found.results(hidden.shape)
    assert torch.equal(d_weight, dlogits.T @ hidden) and d_weight.dtype == torch.bfloat16
    with pytest.raises(AssertionError):
        found.add(slice(0, 12), hidden, dlogits)


@pytest.mark.parametrize(("dtype", "softcap", "expected"), [
    (torch.float32, None, 8), (torch.float32, 30.0, 12), (torch.bfloat16, None, 10), (torch.bfloat16, 30.0, 14),
])  # fmt: skip
def test_a_chunk_of_groups_counts_all_that_it_holds(dtype, softcap, expected, monkeypatch):
    """Logits, gradient, slope, and the gradient in bfloat16."""
    counted = []

    def plan(self, rows, bytes_per_row, *, alone):
        counted.append(bytes_per_row)
        return rows

    monkeypatch.setattr(HeadGradients, "rows_per_chunk", plan)
    hidden, weight = torch.randn(3, 4, 8).to(dtype).requires_grad_(), torch.randn(31, 8).to(dtype)
    linear_pairwise_jsd(hidden, weight, torch.ones(3, 4, 4).triu(1), softcap=softcap, backend="torch")
    assert counted == [31 * expected]


@pytest.mark.parametrize("listed", [False, True], ids=["head", "list"])
def test_a_chunk_of_divergences_counts_the_rounded_gradient(listed, monkeypatch):
    """Beside the student's logits in float32: the teacher's, or the gradient in bfloat16, never both."""
    counted = []

    def plan(self, rows, bytes_per_row, *, alone):
        counted.append(bytes_per_row)
        return rows

    monkeypatch.setattr(HeadGradients, "rows_per_chunk", plan)
    hidden, weight = torch.randn(3, 8).bfloat16().requires_grad_(), torch.randn(31, 8).bfloat16()
    teacher: dict[str, Any] = {"teacher_hidden": hidden.detach(), "teacher_weight": weight}
    if listed:
        teacher = {"teacher_ids": torch.tensor([[1], [2], [3]]), "teacher_log_prob": torch.full((3, 1), -0.5)}
    linear_divergence(hidden, weight, **teacher, kind="forward_kl", backend="torch")
    assert counted == [31 * (6 if listed else 8)]


def test_processes_with_shards_of_other_sizes_have_the_same_chunks(monkeypatch):
    """A chunk needs collectives of all processes, so that none may choose its rows by the memory of its own dW."""
    hidden, divergence = torch.randn(20, 8), divergence_of("forward_kl", None, None, None)
    monkeypatch.setattr(HeadGradients, "rows_per_chunk", lambda self, *_, **__: self.head.vocabulary)
    found: list[list[int]] = []

    def of_rows(kernels: Any, logits: torch.Tensor, *_: Any) -> RowValues:
        found[-1].append(len(logits))
        return RowValues(*(torch.zeros(len(logits)) for _ in RowValues._fields))

    monkeypatch.setattr(divergence_rows.shard_rows, "divergence_", of_rows)
    sizes = (9, 3)
    for rank, size in enumerate(sizes):
        found.append([])
        shard = Shard(None, rank, sizes, torch.tensor([0, 9]), torch.tensor([9, 12]))  # pyright: ignore
        head = Head(torch.randn(size, 8))
        divergence_rows.forward(
            None, hidden, head, HeadTeacher(hidden, head), None, divergence, [True, True, False], "mean", shard
        )
    assert found[0] == found[1] == [20]


def test_no_two_chunks_of_rows_exist_at_once():
    hidden, earlier = torch.randn(9, 4), []

    def kernel(chunk, part, weights):
        assert all(reference() is None for reference in earlier)
        dlogits = torch.ones(len(part), 5)
        earlier.append(weakref.ref(dlogits))
        return [torch.zeros(len(part))], dlogits

    gradients = HeadGradients(hidden, Head(torch.randn(5, 4)), [True, True, False])
    run_rows(9, 3, hidden, torch.ones(9), kernel, [torch.zeros(9)], gradients)
    assert len(earlier) == 3


def test_no_two_chunks_of_groups_exist_at_once(monkeypatch):
    made, earlier = groups._chunk, []

    def chunk(*arguments):
        assert all(reference() is None for reference in earlier)
        values, found = made(*arguments)
        earlier.extend([weakref.ref(found.logits), weakref.ref(found.gradient)])
        return values, found

    monkeypatch.setattr(groups, "_chunk", chunk)
    monkeypatch.setattr(HeadGradients, "rows_per_chunk", lambda *_, **__: 8)
    hidden, weight = torch.randn(6, 4, 8, requires_grad=True), torch.randn(31, 8, requires_grad=True)
    linear_pairwise_jsd(hidden, weight, torch.ones(6, 4, 4).triu(1), backend="torch")
    assert len(earlier) == 6


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that any operator returns."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        for tensor in tree_flatten(found)[0]:
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return found


@pytest.mark.parametrize("extra", ["", "mean_logit"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("has_gradient", [False, True])
def test_logits_exist_for_the_rows_of_a_chunk_only(has_gradient, weighted, extra, monkeypatch):
    rows, size, vocabulary = 60, 4, 500
    monkeypatch.setattr(cross_entropy_rows, "rows_per_chunk", lambda *arguments: 8)
    monkeypatch.setattr(head_module, "rows_per_chunk", lambda *arguments: 5)  # of chunks with a gradient
    spec = RowSpec(Head(torch.randn(vocabulary, size)))
    needs = [has_gradient, has_gradient, False]
    with Largest() as largest:
        cross_entropy_rows.forward(
            backend_torch,
            torch.randn(rows, size),
            torch.arange(rows),
            torch.rand(rows) if weighted else None,
            spec,
            needs,
            ignore_index=-100,
            reduction="mean",
            extra=extra,
        )
    assert largest.elements == (5 if has_gradient else 8) * vocabulary
