"""The launch settings of the Triton kernels, pure functions of the shapes: limits of the hardware, no work twice."""

from __future__ import annotations

import itertools

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from mind_kernels.linear_cross_entropy._triton.entries import entry_launch
from mind_kernels.linear_cross_entropy._triton.stream import TILE, stream_order
from mind_kernels.linear_cross_entropy._triton.stream_tiles import label, stream_tiles
from mind_kernels.linear_divergence._triton.rows import pair_launch as divergence_launch
from mind_kernels.linear_pairwise_jsd._triton import groups
from mind_kernels.linear_pairwise_jsd._triton.mixture import mixture_launch
from mind_kernels.linear_pairwise_jsd._triton.pairs import pair_blocks, pair_launch
from mind_kernels.triton_gather import gather_launch
from mind_kernels.triton_math import row_launch

VOCABULARIES = [2, 16, 67, 1024, 50257, 151936, 262144]


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_rows(dtype, vocabulary):
    launch = row_launch(vocabulary, vocabulary, dtype)
    threads = 32 * launch["num_warps"]
    assert launch["VECTOR"] * dtype.itemsize == 16
    assert launch["LANES"] % threads == 0 and threads <= 1024
    assert launch["num_warps"] == 1 or launch["LANES"] * launch["VECTOR"] < 2 * vocabulary
    without_vectors = row_launch(vocabulary, vocabulary + 1, dtype)
    assert without_vectors["LANES"] == 32 * without_vectors["num_warps"] <= 512


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_entries(vocabulary):
    launch = entry_launch(vocabulary)
    assert launch["BLOCK"] == launch["LIST"] or launch["BLOCK"] < 2 * vocabulary
    assert launch["BLOCK"] <= 32 * launch["num_warps"] * 8


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_divergences(vocabulary):
    launch = divergence_launch(vocabulary)
    assert launch["LANES"] == 32 * launch["num_warps"] <= (512 if vocabulary % 16 == 0 else 256)
    assert launch["num_warps"] == 1 or launch["LANES"] * launch["VECTOR"] < 2 * vocabulary


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("size", [8, 37, 512, 3584])
def test_gathers(size, dtype):
    columns = gather_launch(size, dtype)["COLUMNS"]
    assert columns >= 16 and columns * dtype.itemsize <= 2048
    assert columns == 16 or columns < 2 * size


@pytest.mark.parametrize("count", range(2, 33))
def test_every_pair_is_in_one_launch(count):
    launch, seen = pair_launch(count), []
    for number, blocks in enumerate(pair_blocks(count)):
        left, right = (
            range(blocks[side], blocks[side] + blocks[size]) for side, size in (("left", "LEFT"), ("right", "RIGHT"))
        )
        seen += itertools.product(left, right) if right else itertools.combinations(left, 2)
        assert max(*left, *right) < launch["PLACES"]
        # The first launches write F', each for rows of its own; all others add to it.
        assert (blocks["RIGHT"] == 0) == (number < -(-count // 8))
    assert len(seen) == len(set(seen))
    assert {pair for pair in seen if max(pair) < count} == {(i, j) for j in range(count) for i in range(j)}


@pytest.mark.parametrize("count", range(2, 33))
def test_groups(count):
    for launch in (pair_launch(count), mixture_launch(count)):
        assert launch["COLUMNS"] == 32 * launch["num_warps"] and launch["SPAN"] % launch["COLUMNS"] == 0
    assert mixture_launch(count)["BLOCK"] <= count <= pair_launch(count)["PLACES"]


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_no_tile_of_a_group_is_another_programs_too(vocabulary):
    tile = row_launch(vocabulary, vocabulary, torch.float32)
    assert groups._ROW_SPAN % (tile["LANES"] * tile["VECTOR"]) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize(("capability", "shared_kib"), [(80, 163), (86, 99), (90, 227), (100, 227), (120, 99)])
def test_streamed_tiles_fit(capability, shared_kib, aligned, biased, dtype):
    tiles = stream_tiles(dtype, capability, aligned, biased)
    assert len({label(tile) for tile in tiles}) == len(tiles)
    for tile in tiles:
        stage = (tile["BLOCK_N"] + tile["BLOCK_V"]) * tile["BLOCK_D"] * dtype.itemsize
        assert tile["num_stages"] >= 2 and stage * tile["num_stages"] <= (shared_kib << 10)
        assert tile["BLOCK_V"] % TILE == 0
        assert tile["BLOCK_N"] * tile["BLOCK_V"] <= 128 * 32 * tile["num_warps"]  # 128 registers a thread
        assert tile["TMA"] == (aligned and dtype != torch.float32 and capability in (90, 100))


@pytest.mark.parametrize("rows", [1, 129, 1024, 16384, 100_000])
@pytest.mark.parametrize("vocabulary", [2, 257, 49152, 151936, 262144])
@pytest.mark.parametrize("processors", [1, 108, 132, 148])
def test_streams_cover_the_vocabulary(rows, vocabulary, processors):
    order = stream_order(rows, vocabulary, 128, 256, processors)
    splits, size = order["splits"], order["split_size"]
    assert size % 256 == 0 and (splits - 1) * size < vocabulary <= splits * size
    row_blocks, column_blocks = -(-rows // 128), -(-vocabulary // 256)
    waves = -(-row_blocks * splits // processors)
    assert waves * size // 256 <= 1.1 * row_blocks * column_blocks / processors + 2
    running = processors / splits  # row blocks, where every split of them runs
    assert running <= order["group"] or splits == column_blocks or running >= row_blocks
