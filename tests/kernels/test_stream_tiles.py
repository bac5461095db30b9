"""Tiles of the streaming kernel: each gives the same, `tune` times them, and a launch takes the one of the table."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from test_triton_stream import DEVICE, DTYPES, EVERYTHING, eager, make

from mind_kernels import tuning
from mind_kernels.__main__ import main
from mind_kernels.commands import tune
from mind_kernels.linear_cross_entropy._triton import stream as triton_stream
from mind_kernels.linear_cross_entropy._triton.stream import stream_values, tiles_of
from mind_kernels.linear_cross_entropy._triton.stream_tiles import chosen_tile, label
from mind_kernels.testing import assert_within_budget

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")
DTYPE = DTYPES[-1]  # of 16 bits, of which several tiles are tried


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty folder of tables."""
    monkeypatch.setenv("MIND_KERNELS_TUNING", str(tmp_path))
    tuning._read.cache_clear()
    yield
    tuning._read.cache_clear()


@pytest.mark.parametrize("options", [{}, EVERYTHING], ids=["plain", "everything"])
def test_every_tile_is_within_the_budget(options):
    inputs = make((150, 24, 1009), DTYPE, **options)
    truth, _ = eager(*inputs, torch.float64)
    peer, _ = eager(*inputs, torch.float32)
    tiles = tiles_of(inputs[0], inputs[2].head)
    assert len(tiles) > 1
    for tile in tiles:
        assert_within_budget(stream_values(*inputs, tile)._asdict(), peer, truth, torch.float32)


def entry(name, dtype=DTYPE, vocabulary=1009, size=24):
    return tuning.Entry(tuning.STREAM_TILE, str(dtype).removeprefix("torch."), vocabulary, size, 150, name, {name: 1.0})


def test_a_launch_takes_the_tile_of_the_table(monkeypatch):
    hidden, target, spec = make((150, 24, 1009), DTYPE)
    default, *_, other = tiles_of(hidden, spec.head)
    launched = []
    order = triton_stream.stream_order
    monkeypatch.setattr(triton_stream, "stream_order", lambda *sizes: launched.append(sizes[2:4]) or order(*sizes))
    stream_values(hidden, target, spec)
    tuning.write(hidden.device, [entry(label(other))])
    stream_values(hidden, target, spec)
    assert launched == [(tile["BLOCK_N"], tile["BLOCK_V"]) for tile in (default, other)]


@pytest.mark.parametrize(
    "there",
    [
        entry("1 x 2 x 3, 4 warps, 5 stages"),
        entry("{other}", dtype=torch.float32),
        entry("{other}", vocabulary=2048),
        entry("{other}", size=32),
    ],
    ids=["no candidate", "dtype", "vocabulary", "size"],
)
def test_other_entries_leave_the_default(there):
    hidden, _, spec = make((150, 24, 1009), DTYPE)
    tiles = tiles_of(hidden, spec.head)
    name = there.backend.format(other=label(tiles[-1]))
    tuning.write(hidden.device, [entry(name, getattr(torch, there.dtype), there.vocabulary, there.hidden_size)])
    assert chosen_tile(tiles, hidden.device, DTYPE, (1009, 24)) is tiles[0]


def test_tune_times_each_tile_that_gives_what_the_default_gives(monkeypatch):
    inputs = tune.inputs_of(16, 24, 300, DTYPE, torch.device(DEVICE))
    calls, faults = tune.tile_calls(inputs)
    names = [label(tile) for tile in tiles_of(inputs["hidden"], triton_stream.Head(inputs["weight"]))]
    assert [*calls] == names and not faults
    values = triton_stream.stream_values

    def faulty(hidden, target, spec, tile=None):
        if tile is not None and label(tile) == names[-1]:
            raise RuntimeError("out of shared memory\nand more")
        wrong = tile is not None and label(tile) == names[1]
        return values(hidden * (1 + wrong), target, spec, tile)

    monkeypatch.setattr(triton_stream, "stream_values", faulty)
    calls, faults = tune.tile_calls(inputs)
    assert [*calls] == [name for name in names if name not in (names[1], names[-1])]
    assert faults == {
        names[1]: "its statistics differ from the default's",
        names[-1]: "RuntimeError: out of shared memory",
    }


def test_the_table_of_what_is_here_has_tiles(capsys):
    tuning.write(torch.device("cpu"), [entry("64 x 128 x 64, 4 warps, 4 stages")])
    assert main([]) == 0
    out = capsys.readouterr().out
    assert "64 x 128 x 64, 4 warps, 4 stages for linear_cross_entropy, stream tile" in out and "not used" not in out
