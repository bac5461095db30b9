"""Streamed statistics and kept pieces against plain PyTorch in float64; Triton's interpreter where there is no GPU."""

from __future__ import annotations

import math
import os
import subprocess
import sys

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from mind_kernels.head import Head
from mind_kernels.linear_cross_entropy._triton import pieces as triton_pieces
from mind_kernels.linear_cross_entropy._triton import stream as triton_stream
from mind_kernels.linear_cross_entropy._triton.stream import TILE, stream_order, stream_tile
from mind_kernels.testing import assert_within_budget, make_inputs

# Lanes that are not stored may overflow in the interpreter.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float32, torch.float16] + [torch.bfloat16] * torch.cuda.is_available()
SHAPES = [(1, 40, 257), (150, 24, 1009), (3, 33, 640), (2, 136, 67)]  # D 33: rows that are not aligned
PLAIN = {}
EVERYTHING = {"biased": True, "softcap": 5.0, "temperature": 0.7, "label_smoothing": 0.1, "z_loss": 1e-3}
OPTIONS = [
    PLAIN,
    {"biased": True},
    {"softcap": 5.0},
    {"temperature": 0.7, "label_smoothing": 0.1},
    {"z_loss": 1e-2},
    EVERYTHING,
]
THRESHOLD = 2.0**-8
NAMES = ("loss", "nll", "lse", "entropy")


def make(shape, dtype, biased=False, softcap=None, temperature=1.0, scale=1.0, **loss):
    """hidden, head and target, the last target at the end of the vocabulary, and the options of the loss."""
    inputs = make_inputs(*shape, ignored=0.0, dtype=torch.float64)
    inputs["target"][-1] = shape[2] - 1
    bias = torch.linspace(-1, 1, shape[2], dtype=torch.float64) if biased else None
    hidden, weight, bias = (
        None if t is None else t.to(DEVICE, dtype) for t in (inputs["hidden"] * scale, inputs["weight"], bias)
    )
    loss = {"label_smoothing": 0.0, "z_loss": 0.0} | loss
    return hidden, Head(weight, bias, softcap, temperature), inputs["target"].to(DEVICE), loss


def in_dtype(head, dtype):
    return Head(
        head.weight.to(dtype), None if head.bias is None else head.bias.to(dtype), head.softcap, head.temperature
    )


def eager(hidden, head, target, dtype, label_smoothing, z_loss):
    z = in_dtype(head, dtype).logits(hidden.to(dtype))
    log_p = torch.log_softmax(z, -1)
    lse = torch.logsumexp(z, -1)
    nll = -log_p.gather(1, target[:, None]).squeeze(1)
    loss = (1 - label_smoothing) * nll - label_smoothing * log_p.mean(1) + z_loss * lse.square()
    return {"loss": loss, "nll": nll, "lse": lse, "entropy": -(log_p.exp() * log_p).sum(1)}, z


def stream(hidden, head, target, loss, tile_maxima=True):
    (*values, correct), normalizer, maxima = triton_stream.stream_statistics(
        hidden, head, target, **loss, tile_maxima=tile_maxima
    )
    return dict(zip(NAMES, values, strict=True)) | {"normalizer": normalizer}, correct, maxima


def maxima_of(z):
    """The largest logit of each tile of (n, V) logits."""
    padded = torch.nn.functional.pad(z, (0, -z.shape[1] % TILE), value=-math.inf)
    return padded.unflatten(1, (-1, TILE)).amax(2)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_statistics_match_float64(dtype, shape, options):
    hidden, head, target, loss = make(shape, dtype, **options)
    truth, true_z = eager(hidden, head, target, torch.float64, **loss)
    peer, peer_z = eager(hidden, head, target, dtype, **loss)
    values, correct, maxima = stream(hidden, head, target, loss)
    assert_within_budget(
        values | {"maxima": maxima},
        peer | {"maxima": maxima_of(peer_z)},
        truth | {"maxima": maxima_of(true_z)},
        torch.float32,
    )
    assert torch.equal(correct, true_z.argmax(1) == target)


@pytest.mark.parametrize("options", [PLAIN, {"label_smoothing": 0.1, "z_loss": 1e-3}], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_large_logits(dtype, options):
    hidden, head, target, loss = make((5, 32, 521), dtype, scale=2000.0, **options)
    truth, z = eager(hidden, head, target, torch.float64, **loss)
    peer, _ = eager(hidden, head, target, dtype, **loss)
    assert z.abs().max() > 9e3
    values, _, _ = stream(hidden, head, target, loss)
    assert_within_budget(values, peer, truth, torch.float32)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_hidden_that_is_not_finite(dtype, value):
    hidden, head, target, loss = make((3, 24, 300), dtype, **EVERYTHING)
    head = Head(head.weight, head.bias)
    hidden[1, 3] = value
    values, _, maxima = stream(hidden, head, target, loss)
    assert not values["loss"][1].isfinite()
    clean, _, _ = stream(hidden[::2], head, target[::2].contiguous(), loss)
    assert torch.equal(values["loss"][::2], clean["loss"])
    pieces = triton_pieces.kept_pieces(maxima, values["lse"], target, THRESHOLD)
    logits = triton_pieces.piece_logits(hidden, head, pieces)
    kept, _ = triton_pieces.piece_statistics(pieces, logits, values["normalizer"], target, THRESHOLD)
    assert kept[1] >= 1


@pytest.mark.parametrize("first", [0, 100, 256, 511])
def test_correct_is_the_first_of_the_largest(first):
    weight = torch.zeros(700, 16, device=DEVICE)
    tied = [first, first + 1, 600]
    weight[tied, 0] = 1.0
    hidden = torch.zeros(5, 16, device=DEVICE)
    hidden[:, 0] = 3.0
    target = torch.tensor([*tied, 0 if first else 5, 699], device=DEVICE)
    _, correct, _ = stream(hidden, Head(weight), target, {"label_smoothing": 0.0, "z_loss": 0.0})
    assert correct.tolist() == [True, False, False, False, False]
    _, correct, _ = stream(0 * hidden, Head(weight), 0 * target, {"label_smoothing": 0.0, "z_loss": 0.0})
    assert correct.all()


@pytest.mark.parametrize("length", [1, 2, 8])
def test_splits_agree(monkeypatch, length):
    """Also where the last group has one row block of two."""
    hidden, head, target, loss = make((150, 24, 1009), torch.float32, **EVERYTHING)
    truth, _ = eager(hidden, head, target, torch.float64, **loss)
    peer, _ = eager(hidden, head, target, torch.float32, **loss)
    one_block = stream_tile(torch.float32, 90, True, False)["BLOCK_V"]
    order = {"group": 2, "splits": -(-8 // length), "split_size": length * one_block}
    monkeypatch.setattr(triton_stream, "stream_order", lambda *_: order)
    values, _, maxima = stream(hidden, head, target, loss)
    assert_within_budget(values, peer, truth, torch.float32)
    monkeypatch.undo()
    assert torch.equal(maxima, stream(hidden, head, target, loss)[2])


def test_strided_rows_and_repeats():
    """Rows of a larger matrix give the same as their copies; a second run gives the same bits."""
    hidden, head, target, loss = make((20, 64, 300), torch.float16, **EVERYTHING)
    wide = torch.full((20, 100), math.nan, dtype=hidden.dtype, device=DEVICE)
    for start in (0, 8, 13):  # 13: not aligned
        part = wide[:, start : start + 64]
        part.copy_(hidden)
        values, _, maxima = stream(part, head, target, loss)
        again, _, _ = stream(part, head, target, loss)
        assert all(torch.equal(values[name], again[name]) for name in NAMES)
        plain, _, plain_maxima = stream(hidden, head, target, loss)
        torch.testing.assert_close(maxima, plain_maxima, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(values, plain, rtol=1e-5, atol=1e-5)
    assert stream(hidden, head, target, loss, tile_maxima=False)[2] is None


def keep_all(shape, dtype, options):
    """Inputs, their statistics in float32, and the kept pieces with their logits."""
    hidden, head, target, loss = make(shape, dtype, **options)
    values, _, maxima = stream(hidden, head, target, loss)
    pieces = triton_pieces.kept_pieces(maxima, values["lse"], target, THRESHOLD)
    return hidden, head, target, loss, values, maxima, pieces, triton_pieces.piece_logits(hidden, head, pieces)


@pytest.mark.parametrize("options", [PLAIN, EVERYTHING], ids=str)
@pytest.mark.parametrize("shape", [*SHAPES, (200, 16, 150)], ids=str)  # 200 rows: a tile of more than one block
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_pieces(dtype, shape, options):
    hidden, head, target, _, values, maxima, pieces, logits = keep_all(shape, dtype, options)
    expected = maxima > (values["lse"] + math.log(THRESHOLD))[:, None]
    expected[torch.arange(shape[0]), target // TILE] = True
    rows, tiles = expected.nonzero(as_tuple=True)
    assert torch.equal(pieces.rows, rows) and torch.equal(pieces.tiles, tiles)
    for row in range(shape[0]):
        assert (pieces.rows[pieces.offsets[row] : pieces.offsets[row + 1]] == row).all()
    for tile in range(maxima.shape[1]):
        of_tile = pieces.by_tile[pieces.tile_offsets[tile] : pieces.tile_offsets[tile + 1]]
        assert (pieces.tiles[of_tile] == tile).all() and (of_tile.diff() > 0).all()
    assert pieces.offsets[-1] == pieces.tile_offsets[-1] == len(rows)

    column = tiles[:, None] * TILE + torch.arange(TILE, device=DEVICE)
    inside = column < shape[2]
    assert (logits[~inside] == -math.inf).all()
    column = column.clamp(max=shape[2] - 1)
    _, true_z = eager(hidden, head, target, torch.float64, 0.0, 0.0)
    _, peer_z = eager(hidden, head, target, dtype, 0.0, 0.0)
    true_z, peer_z = (z[rows[:, None], column][inside] for z in (true_z, peer_z))
    assert_within_budget({"z": logits[inside]}, {"z": peer_z}, {"z": true_z}, torch.float32)
    torch.testing.assert_close(logits.amax(1), maxima[rows, tiles], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("with_entropy", [False, True])
@pytest.mark.parametrize("options", [PLAIN, EVERYTHING], ids=str)
@pytest.mark.parametrize("shape", [(1, 40, 257), (9, 33, 1009)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_entries_match_dense(dtype, shape, options, with_entropy):
    hidden, head, target, loss, values, _, pieces, logits = keep_all(shape, dtype, options)
    lse, entropy = values["lse"], values["entropy"]
    scale, entropy_scale = torch.randn(2, shape[0], generator=torch.Generator().manual_seed(1)).to(DEVICE)
    kept, kept_mass = triton_pieces.piece_statistics(pieces, logits, values["normalizer"], target, THRESHOLD)
    offsets = torch.cat([kept.new_zeros(1, dtype=torch.int64), kept.cumsum(0)])
    arguments = (
        pieces,
        logits,
        target,
        values["normalizer"],
        entropy,
        scale,
        entropy_scale if with_entropy else None,
        head,
        *loss.values(),
        THRESHOLD,
        offsets,
        int(offsets[-1]),
    )
    columns, found, kept_sum = triton_pieces.piece_entries(*arguments)

    z = torch.full((shape[0], pieces.tile_offsets.numel() - 1, TILE), -math.inf, device=DEVICE)
    z[pieces.rows, pieces.tiles] = logits
    keep = (z.flatten(1) > (lse + math.log(THRESHOLD))[:, None])[:, : shape[2]]
    keep.scatter_(1, target[:, None], True)
    rows, expected_columns = keep.nonzero(as_tuple=True)
    assert torch.equal(kept.long(), keep.sum(1)) and torch.equal(columns.long(), expected_columns)

    def dense(dtype):
        statistics, z = eager(hidden, head, target, dtype, **loss)
        if dtype == torch.float64:  # nothing outside the pieces passes the threshold, up to rounding
            assert (keep | (torch.softmax(z, 1) < 1.02 * THRESHOLD)).all()
        lse, entropy = statistics["lse"], statistics["entropy"]
        log_p = z[keep] - lse[rows]
        a = scale * (1 + 2 * loss["z_loss"] * lse)
        b = torch.zeros_like(a)
        if with_entropy:
            a, b = a - entropy_scale * entropy, b - entropy_scale
        part = log_p.exp() * (a[rows] + b[rows] * log_p)
        value = part - torch.where(expected_columns == target[rows], (scale * (1 - loss["label_smoothing"]))[rows], 0)
        zero = torch.zeros_like(lse)
        return {
            "value": value * head.slope(z[keep]),
            "sum": zero.index_add(0, rows, part),
            "mass": zero.index_add(0, rows, log_p.exp()),
        }

    assert_within_budget(
        {"value": found, "sum": kept_sum, "mass": kept_mass}, dense(dtype), dense(torch.float64), torch.float32
    )
    for first, second in zip(triton_pieces.piece_entries(*arguments), (columns, found, kept_sum), strict=True):
        assert torch.equal(first, second)


def test_more_pieces_than_a_row_reads_at_once():
    """A flat row keeps every tile: more than one iteration of the row kernels, and entries in order across them."""
    vocabulary = 13 * TILE + 5
    head = Head(torch.zeros(vocabulary, 16, device=DEVICE))
    hidden, target = torch.ones(2, 16, device=DEVICE), torch.tensor([0, vocabulary - 1], device=DEVICE)
    values, _, maxima = stream(hidden, head, target, {"label_smoothing": 0.0, "z_loss": 0.0})
    pieces = triton_pieces.kept_pieces(maxima, values["lse"], target, 2.0**-12)
    logits = triton_pieces.piece_logits(hidden, head, pieces)
    kept, mass = triton_pieces.piece_statistics(pieces, logits, values["normalizer"], target, 2.0**-12)
    assert kept.tolist() == [vocabulary, vocabulary]
    torch.testing.assert_close(mass, torch.ones_like(mass))
    offsets = torch.tensor([0, vocabulary, 2 * vocabulary], device=DEVICE)
    scale = torch.ones(2, device=DEVICE)
    columns, _, _ = triton_pieces.piece_entries(
        pieces,
        logits,
        target,
        values["normalizer"],
        values["entropy"],
        scale,
        None,
        head,
        0.0,
        0.0,
        2.0**-12,
        offsets,
        2 * vocabulary,
    )
    assert torch.equal(columns, torch.arange(vocabulary, dtype=torch.int32, device=DEVICE).repeat(2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize(("capability", "shared_kib"), [(80, 163), (86, 99), (90, 227), (100, 227), (120, 99)])
def test_tiles_fit(capability, shared_kib, aligned, biased, dtype):
    tile = stream_tile(dtype, capability, aligned, biased)
    stage = (tile["BLOCK_N"] + tile["BLOCK_V"]) * tile["BLOCK_D"] * dtype.itemsize
    assert tile["num_stages"] >= 2 and stage * tile["num_stages"] <= (shared_kib << 10)
    assert tile["BLOCK_V"] % TILE == 0
    assert tile["BLOCK_N"] * tile["BLOCK_V"] <= 128 * 32 * tile["num_warps"]  # 128 registers a thread
    assert tile["TMA"] == (aligned and dtype != torch.float32 and capability in (90, 100))


@pytest.mark.parametrize("rows", [1, 129, 1024, 16384, 100_000])
@pytest.mark.parametrize("vocabulary", [2, 257, 49152, 151936, 262144])
@pytest.mark.parametrize("processors", [1, 108, 132, 148])
def test_order_covers_the_vocabulary(rows, vocabulary, processors):
    order = stream_order(rows, vocabulary, 128, 256, processors)
    splits, size = order["splits"], order["split_size"]
    assert size % 256 == 0 and (splits - 1) * size < vocabulary <= splits * size
    row_blocks, column_blocks = -(-rows // 128), -(-vocabulary // 256)
    waves = -(-row_blocks * splits // processors)
    assert waves * size // 256 <= 1.1 * row_blocks * column_blocks / processors + 2
    running = processors / splits  # row blocks, where every split of them runs
    assert running <= order["group"] or splits == column_blocks or running >= row_blocks


def test_order_at_a_usual_size():
    """Sixteen row blocks x splits on an H200; 32 full waves of programs."""
    assert stream_order(16384, 151936, 128, 256, 132) == {"group": 16, "splits": 33, "split_size": 18 * 256}


# Triton makes a constant of an integer argument of 1, which then has no dtype. Run in a process of its own, since the
# kernels of this one may be the interpreter's.
ARGUMENTS_OF_ONE = """
from dataclasses import replace
from mind_kernels.linear_cross_entropy._triton import pieces as triton_pieces, stream as triton_stream
from mind_kernels.triton_ahead import compile_variant

for variant, names in (
    (triton_stream.variants()[1], ("rows", "vocabulary", "group", "splits", "hidden_stride", "weight_stride", "size")),
    (triton_stream.variants()[3], ("rows", "vocabulary", "group", "splits")),
    (triton_pieces.variants()[0], ("rows", "vocabulary", "tiles", "hidden_stride", "weight_stride", "size")),
):
    ones = replace(variant, keywords=variant.keywords | dict.fromkeys(names, 1))
    assert not compile_variant(ones, (*variant.capabilities, 90)[0]).narrow, variant.name
"""


@pytest.mark.slow
def test_arguments_of_one_compile():
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    result = subprocess.run([sys.executable, "-c", ARGUMENTS_OF_ONE], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
