"""Calculates, without a GPU, the time of a loss whose head is split over 8 GPUs of one machine, and of alternatives.

The least that products, bytes of the memory and bytes of the links take, one after the other: what overlaps is not
taken off. `bench/roofline.py` says what a step of one GPU is; a collective takes a latency, and the bytes that a ring
sends at the rate of a GPU's links.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from bench.roofline import DEVICES, Logits, Step, milliseconds
from mind_kernels.linear_cross_entropy.shard_contract import RowSums
from mind_kernels.row_chunks import rows_per_chunk
from mind_kernels.shards import FACTS

GPUS, ROWS, VOCABULARY, SIZE = 8, 8192, 151936, 8192
DEVICE = "NVIDIA H200"
LINK_GB_S = 380.0
"""Each way, of an H100's NVLink, which an H200 has too: measured by p2pBandwidthLatencyTest (github.com/NVIDIA/nccl,
issue 1264); the data sheet says 450."""
LATENCY_US = 20.0
"""Of a collective of a few kilobytes on 8 GPUs: an assumption, of the size that nccl-tests prints; it decides nothing
here as long as there are few collectives."""
KEPT = 67
"""Entries a row that a threshold of 2^-12 keeps, target included: mind_kernels/linear_cross_entropy/README.md."""
CALL_BYTES = 8 * FACTS
"""That a process gives at the start of a call, by which all know the shards: `shards.agree`."""
ROW_BYTES = 4 * len(RowSums._fields)
"""That a process gives of a row: `shard_rows.gather`, in float32."""
SPARSE_ROW_BYTES = 8
"""And beside them for the sparse gradient: kept entries and dropped mass."""
LOSS_PARALLEL_BYTES = 60
"""A logit that PyTorch 2.13's loss_parallel reads and writes of bfloat16: to float32, maximum, difference, exponential,
sum, difference and back, 44; zeros, exponential, sum and product backward, 16."""
TITLE = (
    f"On paper, {GPUS} x {DEVICE}: N {ROWS}, V {VOCABULARY}, D {SIZE}, bfloat16; NVLink {LINK_GB_S:g} GB/s, "
    f"{LATENCY_US:g} us a collective"
)
COLUMNS = ("way", "gpus", "products_ms", "passes_ms", "links_ms", "total_ms", "of_one_gpu", "sent_mib")


class Collectives(NamedTuple):
    """`count` of them; `sent` bytes leave each process."""

    count: int
    sent: float

    @property
    def milliseconds(self) -> float:
        return 1e-3 * LATENCY_US * self.count + 1e-6 * self.sent / LINK_GB_S


def all_gather(part: float, count: int = 1) -> Collectives:
    """Of `part` bytes of each process in all."""
    return Collectives(count, (GPUS - 1) * part)


def all_reduce(whole: float) -> Collectives:
    return Collectives(1, 2 * (GPUS - 1) / GPUS * whole)


def reduce_scatter(whole: float) -> Collectives:
    return Collectives(1, (GPUS - 1) / GPUS * whole)


class Way(NamedTuple):
    name: str
    gpus: int
    products: list[Step]
    passes: Step
    """Over the logits between the products."""
    collectives: list[Collectives]

    def row(self) -> dict[str, Any]:
        rates = DEVICES[DEVICE]
        parts = {
            "products_ms": milliseconds(self.products, rates),
            "passes_ms": milliseconds([self.passes], rates),
            "links_ms": sum(each.milliseconds for each in self.collectives),
        }
        sent = sum(each.sent for each in self.collectives) / 2**20
        return {"way": self.name, "gpus": self.gpus, **parts, "total_ms": sum(parts.values()), "sent_mib": sent}


def chunks(sparse: bool) -> int:
    rows = rows_per_chunk(VOCABULARY // GPUS, torch.device("cuda"), 2, sparse=sparse)
    return -(-ROWS // rows)


def all_ways() -> list[Way]:
    whole, part, share = (
        Logits(ROWS, VOCABULARY, SIZE, 2),
        Logits(ROWS, VOCABULARY // GPUS, SIZE, 2),
        Logits(ROWS // GPUS, VOCABULARY, SIZE, 2),
    )
    hidden, head = 2.0 * ROWS * SIZE, 2.0 * VOCABULARY * SIZE
    rows, start = ROWS * ROW_BYTES, all_gather(CALL_BYTES)
    gathered, of_hidden = all_gather(head / GPUS), all_reduce(hidden)
    # Bytes per logit: read for statistics, and read and written for a gradient, or read for counts and entries.
    passes = 6
    return [
        Way("unsharded, exact", 1, [whole.products(3)], whole.passes(passes), []),
        Way("unsharded, sparse", 1, [whole.products(1), whole.gathers(KEPT)], whole.passes(passes), []),
        Way(
            "sharded, exact",
            GPUS,
            [part.products(3)],
            part.passes(passes),
            [start, all_gather(rows, chunks(False)), of_hidden],
        ),
        Way(
            "sharded, sparse",
            GPUS,
            [part.products(1), part.gathers(KEPT / GPUS)],
            part.passes(passes),
            [start, all_gather(rows + ROWS * SPARSE_ROW_BYTES, 2 * chunks(True)), of_hidden],
        ),
        Way("gathered head, all rows", GPUS, [whole.products(3)], whole.passes(passes), [gathered]),
        Way(
            "gathered head, shared rows",
            GPUS,
            [share.products(3)],
            share.passes(passes),
            [gathered, all_gather(hidden / GPUS), reduce_scatter(head)],
        ),
        Way(
            "loss_parallel on logits",
            GPUS,
            [part.products(3)],
            part.passes(LOSS_PARALLEL_BYTES),
            [all_reduce(4.0 * ROWS), all_reduce(4.0 * ROWS), all_reduce(4.0 * ROWS), of_hidden],
        ),
    ]


def predictions() -> list[dict[str, Any]]:
    """A row for each way."""
    rows = [way.row() for way in all_ways()]
    one = next(row["total_ms"] for row in rows if row["gpus"] == 1)
    return [
        {
            "case": TITLE,
            **{name: round(value, 3) if isinstance(value, float) else value for name, value in row.items()},
            "of_one_gpu": round(row["total_ms"] / one, 3),
        }
        for row in rows
    ]
