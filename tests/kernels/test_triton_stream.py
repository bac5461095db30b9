"""What only the streaming kernels have: products, tiles and splits of the vocabulary, pieces; in the interpreter if
there is no GPU. What they give by the contract is in the suite of test_row_kernels.py.
"""

from __future__ import annotations

import math

import pytest
import torch
from implementations import in_turn
from kernel_cases import PLAIN as NO_OPTIONS
from kernel_cases import THRESHOLD, statistics
from test_shard_kernels import definition

pytest.importorskip("triton", reason="triton is not installed")

from mind_kernels.head import Head
from mind_kernels.linear_cross_entropy._triton import stream as triton_stream
from mind_kernels.linear_cross_entropy._triton.pieces import (
    kept_pieces,
    piece_entries,
    piece_logits,
    piece_statistics,
)
from mind_kernels.linear_cross_entropy._triton.stream import (
    TILE,
    stream_statistics,
    stream_sums,
    stream_values,
    tiles_of,
)
from mind_kernels.linear_cross_entropy.contract import RowSpec, RowWeights
from mind_kernels.row_chunks import accumulation_dtype
from mind_kernels.sparse_gradient import offsets_of
from mind_kernels.testing import assert_within_budget, make_inputs

# Lanes that are not stored may overflow in the interpreter.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float32, torch.float16] + [torch.bfloat16] * torch.cuda.is_available()
# (rows, size, vocabulary): a single row; parts of row blocks and of several tiles; rows that are not aligned; one tile
SHAPES = [(1, 40, 257), (150, 24, 1009), (3, 33, 640), (2, 136, 67)]
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


def make(shape, dtype, biased=False, softcap=None, temperature=1.0, scale=1.0, label_smoothing=0.0, z_loss=0.0):
    """hidden, target, of which the last is the end of the vocabulary, and the loss with its head."""
    inputs = make_inputs(*shape, ignored=0.0, dtype=torch.float64)
    inputs["target"][-1] = shape[2] - 1
    bias = torch.linspace(-1, 1, shape[2], dtype=torch.float64).to(DEVICE, dtype) if biased else None
    head = Head(inputs["weight"].to(DEVICE, dtype), bias, softcap, temperature)
    spec = RowSpec(head, label_smoothing, z_loss, THRESHOLD)
    return (inputs["hidden"] * scale).to(DEVICE, dtype), inputs["target"].to(DEVICE), spec


def eager(hidden, target, spec, dtype):
    """The rows' values and their logits, by the definition in `dtype`."""
    head = spec.head
    bias = None if head.bias is None else head.bias.to(dtype)
    z = Head(head.weight.to(dtype), bias, head.softcap, head.temperature).logits(hidden.to(dtype))
    return statistics(z, target, spec), z


def maxima_of(z):
    """The largest logit of each tile of (n, V) logits."""
    padded = torch.nn.functional.pad(z, (0, -z.shape[1] % TILE), value=-math.inf)
    return padded.unflatten(1, (-1, TILE)).amax(2)


@pytest.mark.parametrize(("dtype", "options", "shape"), in_turn(DTYPES, OPTIONS, SHAPES), ids=str)
def test_statistics_match_float64(dtype, options, shape):
    inputs = hidden, target, spec = make(shape, dtype, **options)
    truth, true_z = eager(*inputs, torch.float64)
    peer, peer_z = eager(*inputs, dtype)
    streamed = stream_statistics(hidden, target, spec)
    assert_within_budget(
        streamed.values._asdict() | {"maxima": streamed.tile_maxima},
        peer | {"maxima": maxima_of(peer_z)},
        truth | {"maxima": maxima_of(true_z)},
        torch.float32,
    )
    assert torch.equal(streamed.values.correct, true_z.argmax(1) == target)


@pytest.mark.parametrize(("dtype", "options", "shape"), in_turn(DTYPES, [PLAIN, EVERYTHING], SHAPES), ids=str)
def test_sums_of_a_shard_match_float64(dtype, options, shape):
    """Every other row has its target in another shard."""
    hidden, target, spec = make(shape, dtype, **options)
    here = torch.where(torch.arange(shape[0], device=DEVICE) % 2 == 0, target, -1)
    truth, peer = (
        definition(eager(hidden, target, spec, wide)[1].to(accumulation_dtype(wide)), here, NO_OPTIONS)
        for wide in (torch.float64, dtype)
    )
    sums = stream_sums(hidden, here, spec)
    found = sums._asdict() | {"total": sums.others + torch.where(here < 0, 0, (sums.at_target - sums.maximum).exp())}
    if not spec.label_smoothing:
        del truth["sum"]
    assert_within_budget(found, peer, truth, torch.float32)


@pytest.mark.parametrize("first", [0, 100, 256, 511])
def test_a_shard_tells_on_which_side_of_the_target_the_largest_is(first):
    weight = torch.zeros(700, 16, device=DEVICE)
    tied = [first, first + 1, 600]
    weight[tied, 0] = 1.0
    hidden = torch.zeros(6, 16, device=DEVICE)
    hidden[:, 0] = 3.0
    target = torch.tensor([*tied, max(0, first - 1), 699, -1], device=DEVICE)
    found = stream_sums(hidden, target, RowSpec(Head(weight))).argmax
    assert ((found >= 0) & (found < 700)).all()
    assert torch.equal((found - target).sign()[:-1], (first - target).sign()[:-1])


def test_a_shard_without_probability():
    """All of its entries are ruled out, a target among them."""
    hidden, target, spec = make((3, 24, 300), torch.float32, biased=True)
    assert spec.head.bias is not None
    spec.head.bias.fill_(-math.inf)
    sums = stream_sums(hidden, torch.where(target == target[0], -1, target), spec)
    assert (sums.maximum == -math.inf).all() and not sums.others.any() and not sums.moment.any()


@pytest.mark.parametrize("options", [PLAIN, {"label_smoothing": 0.1, "z_loss": 1e-3}], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_large_logits(dtype, options):
    inputs = make((5, 32, 521), dtype, scale=2000.0, **options)
    truth, z = eager(*inputs, torch.float64)
    peer, _ = eager(*inputs, dtype)
    assert z.abs().max() > 9e3
    assert_within_budget(stream_values(*inputs)._asdict(), peer, truth, torch.float32)


@pytest.mark.parametrize("size", [1e20, 1e30])
def test_logits_of_any_size_have_a_loss(size):
    hidden, target, spec = make((3, 24, 300), torch.float32, scale=size)
    truth, _ = eager(hidden, target, spec, torch.float64)
    loss = stream_values(hidden, target, spec).loss
    torch.testing.assert_close(loss.double(), truth["loss"], rtol=1e-5, atol=0)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_hidden_that_is_not_finite(dtype, value):
    hidden, target, spec = make((3, 24, 300), dtype, biased=True)
    hidden[1, 3] = value
    streamed = stream_statistics(hidden, target, spec)
    assert not streamed.values.loss[1].isfinite()
    clean = stream_values(hidden[::2], target[::2].contiguous(), spec)
    assert torch.equal(streamed.values.loss[::2], clean.loss)
    pieces = kept_pieces(streamed, target, spec)
    found = piece_statistics(pieces, piece_logits(hidden, spec.head, pieces), target, streamed, spec)
    assert found.kept[1] >= 1


@pytest.mark.parametrize("first", [0, 100, 256, 511])
def test_correct_is_the_first_of_the_largest(first):
    weight = torch.zeros(700, 16, device=DEVICE)
    tied = [first, first + 1, 600]
    weight[tied, 0] = 1.0
    hidden = torch.zeros(5, 16, device=DEVICE)
    hidden[:, 0] = 3.0
    target = torch.tensor([*tied, 0 if first else 5, 699], device=DEVICE)
    spec = RowSpec(Head(weight))
    assert stream_values(hidden, target, spec).correct.tolist() == [True, False, False, False, False]
    assert stream_values(0 * hidden, 0 * target, spec).correct.all()


@pytest.mark.parametrize("length", [1, 2, 8])
def test_splits_agree(monkeypatch, length):
    """Also where the last group has one row block of two."""
    inputs = make((150, 24, 1009), torch.float32, **EVERYTHING)
    truth, _ = eager(*inputs, torch.float64)
    peer, _ = eager(*inputs, torch.float32)
    one_block = tiles_of(inputs[0], inputs[2].head)[0]["BLOCK_V"]
    order = {"group": 2, "splits": -(-8 // length), "split_size": length * one_block}
    monkeypatch.setattr(triton_stream, "stream_order", lambda *_: order)
    streamed = stream_statistics(*inputs)
    assert_within_budget(streamed.values._asdict(), peer, truth, torch.float32)
    monkeypatch.undo()
    assert torch.equal(streamed.tile_maxima, stream_statistics(*inputs).tile_maxima)


@pytest.mark.parametrize("start", [0, 8, 13])  # 13: not aligned
def test_strided_rows_and_repeats(start):
    """Rows of a larger matrix give the same as their copies; a second run gives the same bits."""
    hidden, target, spec = make((20, 64, 300), torch.float16, **EVERYTHING)
    part = torch.full((20, 100), math.nan, dtype=hidden.dtype, device=DEVICE)[:, start : start + 64]
    part.copy_(hidden)
    streamed, plain = stream_statistics(part, target, spec), stream_statistics(hidden, target, spec)
    assert all(map(torch.equal, streamed.values, stream_values(part, target, spec)))
    torch.testing.assert_close(streamed, plain, rtol=1e-5, atol=1e-5)


def stream_pieces(shape, dtype, options):
    """Inputs, what is streamed of them, and the kept pieces with their logits."""
    hidden, target, spec = make(shape, dtype, **options)
    streamed = stream_statistics(hidden, target, spec)
    pieces = kept_pieces(streamed, target, spec)
    return hidden, target, spec, streamed, pieces, piece_logits(hidden, spec.head, pieces)


# 200 rows: a tile of more than one block
PIECES = in_turn(DTYPES, [*SHAPES, (200, 16, 150)], [PLAIN, EVERYTHING])


@pytest.mark.parametrize(("dtype", "shape", "options"), PIECES, ids=str)
def test_pieces(dtype, shape, options):
    hidden, target, spec, streamed, pieces, logits = stream_pieces(shape, dtype, options)
    maxima = streamed.tile_maxima
    expected = maxima > (streamed.normalizer[3] + math.log(THRESHOLD))[:, None]
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
    true_z, peer_z = (
        eager(hidden, target, spec, wide)[1][rows[:, None], column][inside] for wide in (torch.float64, dtype)
    )
    assert_within_budget({"z": logits[inside]}, {"z": peer_z}, {"z": true_z}, torch.float32)
    torch.testing.assert_close(logits.amax(1), maxima[rows, tiles], rtol=1e-6, atol=1e-6)


ENTRIES = in_turn(DTYPES, [PLAIN, EVERYTHING], [(9, 33, 1009), (5, 40, 257)], [True, False])


@pytest.mark.parametrize(("dtype", "options", "shape", "with_entropy"), ENTRIES, ids=str)
def test_entries_match_dense(dtype, options, shape, with_entropy):
    hidden, target, spec, streamed, pieces, logits = stream_pieces(shape, dtype, options)
    scale, entropy_scale = torch.randn(2, shape[0], generator=torch.Generator().manual_seed(1)).to(DEVICE)
    weights = RowWeights(scale, entropy_scale if with_entropy else None)
    kept, dropped_mass = piece_statistics(pieces, logits, target, streamed, spec)
    found = piece_entries(pieces, logits, target, streamed, weights, spec, offsets_of(kept), int(kept.sum()))

    z = torch.full((shape[0], pieces.tile_offsets.numel() - 1, TILE), -math.inf, device=DEVICE)
    z[pieces.rows, pieces.tiles] = logits
    keep = (z.flatten(1) > (streamed.normalizer[3] + math.log(THRESHOLD))[:, None])[:, : shape[2]]
    keep.scatter_(1, target[:, None], True)
    rows, columns = keep.nonzero(as_tuple=True)
    assert torch.equal(kept, keep.sum(1)) and torch.equal(found.columns.long(), columns)

    def dense(dtype):
        statistics, z = eager(hidden, target, spec, dtype)
        if dtype == torch.float64:  # nothing outside the pieces passes the threshold, up to rounding
            others = torch.softmax(z, 1).scatter(1, target[:, None], 0)
            assert (keep | (others < 1.02 * THRESHOLD * others.sum(1, keepdim=True))).all()
        lse, entropy = statistics["lse"], statistics["entropy"]
        log_p = z[keep] - lse[rows]
        a = scale * (1 + 2 * spec.z_loss * lse)
        b = torch.zeros_like(a)
        if with_entropy:
            a, b = a - entropy_scale * entropy, b - entropy_scale
        part = log_p.exp() * (a[rows] + b[rows] * log_p)
        value = part - torch.where(columns == target[rows], (scale * (1 - spec.label_smoothing))[rows], 0)
        zero = torch.zeros_like(lse)
        return {
            "value": value * spec.head.slope(z[keep]),
            "sum": zero.index_add(0, rows, value),
            "mass": zero.index_add(0, rows, log_p.exp()),
        }

    every = {"value": found.values, "sum": found.kept_sum, "mass": 1 - dropped_mass}
    assert_within_budget(every, dense(dtype), dense(torch.float64), torch.float32)


def test_more_pieces_than_a_row_reads_at_once():
    """A flat row keeps every tile: more than one iteration of the row kernels, and entries in order across them."""
    vocabulary = 13 * TILE + 5
    spec = RowSpec(Head(torch.zeros(vocabulary, 16, device=DEVICE)), gradient_threshold=2.0**-12)
    hidden, target = torch.ones(2, 16, device=DEVICE), torch.tensor([0, vocabulary - 1], device=DEVICE)
    streamed = stream_statistics(hidden, target, spec)
    pieces = kept_pieces(streamed, target, spec)
    logits = piece_logits(hidden, spec.head, pieces)
    kept, dropped_mass = piece_statistics(pieces, logits, target, streamed, spec)
    assert kept.tolist() == [vocabulary, vocabulary]
    torch.testing.assert_close(dropped_mass, torch.zeros_like(dropped_mass))
    weights = RowWeights(torch.ones(2, device=DEVICE))
    found = piece_entries(pieces, logits, target, streamed, weights, spec, offsets_of(kept), 2 * vocabulary)
    assert torch.equal(found.columns, torch.arange(vocabulary, dtype=torch.int32, device=DEVICE).repeat(2))
