"""`python -m mind_kernels tune`: what it times, which backend wins, what it writes, and which options it refuses."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from test_tuning import CPU, HIDDEN, ROWS, default

from mind_kernels import linear_cross_entropy, sparse_gradient
from mind_kernels.__main__ import main
from mind_kernels.backend import resolve
from mind_kernels.commands import check, tune

SIZES = ["tune", "--hidden-size", "24", "--vocabulary", "100", "--device", "cpu"]
pytestmark = pytest.mark.usefixtures("tables")


@pytest.fixture
def wins(monkeypatch):
    """Every call takes no time, but a second for each use of the default."""

    def timed(calls, rounds, device):
        for call in calls.values():
            call()
        return {name: [float(name == "cpp")] * rounds for name in calls}

    monkeypatch.setattr(tune, "timed", timed)
    monkeypatch.setattr(tune, "wrong", lambda *_: "")


def test_what_wins_is_written_and_taken(capsys, wins, tables):
    assert main([*SIZES, "--rows", "16", "--dtype", "float32", "bfloat16"]) == 0
    out = capsys.readouterr().out
    assert f"{ROWS:<36}torch, in place of cpp: torch 0 ms, cpp 1000 ms" in out
    assert f"{'linear_top_k':<36}torch alone" in out
    assert f"written to {tables}" in out
    for dtype in (torch.float32, torch.bfloat16):
        assert resolve("auto", HIDDEN.to(dtype), ROWS, 100) == "torch" != default()
    assert main([]) == 0
    assert f"torch for {ROWS}, sparse (float32, V 100, D 24)" in capsys.readouterr().out


def test_a_backend_that_differs_is_left_out(capsys, wins, monkeypatch):
    monkeypatch.setattr(tune, "wrong", lambda case, name, *_: "nll at N 1: error 1" if name == "cpp" else "")
    assert main([*SIZES, "--rows", "16"]) == 1
    out = capsys.readouterr().out
    assert f"{ROWS:<36}without cpp, which differs from the definition: nll at N 1: error 1" in out
    assert "9 backends differ from the definition: python -m mind_kernels check --device cpu" in out
    assert resolve("auto", HIDDEN, ROWS, 100) == "torch" != default()  # a wrong default is not taken any more


def test_the_comparison_is_that_of_check(monkeypatch):
    seen = []
    monkeypatch.setattr(
        tune, "fault", lambda case, name, dtype, device: seen.append(case) or ("", "off" * (len(seen) == 3))
    )
    case = check.CASES["cross-entropy"]
    assert tune.wrong(case, "torch", torch.float32, CPU) == "off"
    assert [c.operation for c in seen] == [ROWS] * 3


def test_times_are_of_calls_in_turn():
    called = []
    found = tune.timed({name: lambda name=name: called.append(name) for name in "abc"}, 3, CPU)
    assert "".join(called) == "abc" + "abc" + "cba" + "abc"
    assert {name: len(times) for name, times in found.items()} == dict.fromkeys("abc", 3)


def test_any_number_of_rounds():
    """Above 1023, 2**rounds is no float; the share of wins by chance falls with the root of the rounds."""
    assert tune.needed(10**4) == pytest.approx(5000 + 1.96 * 50, abs=2)


@pytest.mark.parametrize(("rounds", "expected"), [(6, 6), (8, 8), (9, 8), (12, 10), (20, 15)])
def test_a_win_by_chance_is_one_in_forty(rounds, expected):
    """By the distribution of coin tosses, counted."""
    assert tune.needed(rounds) == expected
    heads = torch.tensor([bin(tosses).count("1") for tosses in range(2**rounds)])
    assert (heads >= expected).double().mean() <= 1 / 40 < (heads >= expected - 1).double().mean()


@pytest.mark.parametrize(
    ("seconds", "backend"),
    [
        ({"a": [2.0] * 9, "b": [1.0] * 9}, "b"),
        ({"a": [2.0] * 9, "b": [1.0] * 8 + [9.0]}, "b"),  # one slow round is no loss
        ({"a": [2.0] * 9, "b": [1.0] * 7 + [9.0] * 2}, "a"),  # within the noise, though the median is half
        ({"a": [2.0] * 9, "b": [2.0] * 9}, "a"),
        ({"a": [3.0] * 9, "b": [2.0] * 9, "c": [1.0] * 9}, "c"),
    ],
)
def test_the_default_stays_within_the_noise(seconds, backend):
    assert tune.chosen(seconds, "a") == backend


@pytest.mark.parametrize(("asked", "expected"), [(None, (256, 2048)), (512, (512, 512)), (13, (8, 8))])
def test_the_sparse_gradient_gets_rows_that_are_not_sampled(asked, expected):
    counts = tune.rows_of(asked, 49152, torch.float32, CPU)
    assert (counts[""], counts["sparse"]) == expected
    of_gpu = tune.rows_of(asked, 49152, torch.bfloat16, torch.device("cuda"))
    assert of_gpu["sparse"] == of_gpu[""]


def test_fewer_rows_are_the_first_ones():
    every = tune.inputs_of(48, 24, 100, torch.float32, CPU)
    assert {len(value) for name, value in tune.first_rows(every, 16).items() if name in tune.PER_ROW} == {16}
    for name, value in tune.first_rows(every, 48).items():
        assert torch.equal(value, every[name]), name


def test_rows_are_as_certain_as_the_sparse_gradient_needs(monkeypatch):
    monkeypatch.setitem(sparse_gradient._DENSITY_LIMIT, "cpu", sparse_gradient._DENSITY_LIMIT["cuda"])
    c = tune.inputs_of(64, 64, 16384, torch.float32, CPU)
    _, stats = linear_cross_entropy(
        c["hidden"], c["weight"], c["target"], gradient_threshold=float(c["threshold"]), return_stats=True
    )
    assert 8 < stats.kept_entries.float().mean() < 16384 / 256


def test_a_model_gives_the_sizes(tmp_path, capsys, wins):
    (tmp_path / "model").mkdir()
    config = {"model_type": "gpt2", "n_embd": 24, "vocab_size": 100}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    assert main(["tune", str(tmp_path / "model"), "--device", "cpu", "--rows", "8"]) == 0
    assert "hidden size 24, vocabulary 100" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "--hidden-size is missing: give a model, or --hidden-size and --vocabulary"),
        (["--hidden-size", "8"], "--vocabulary is missing"),
        (["--hidden-size", "0", "--vocabulary", "9"], "--hidden-size 0: expected at least 1"),
        (["some/model", "--vocabulary", "9"], "model: expected none beside --hidden-size and --vocabulary"),
        ([*SIZES[1:], "--rounds", "5"], "--rounds 5: expected at least 6"),
        ([*SIZES[1:], "--rows", "7"], "--rows 7: expected at least 8"),
        ([*SIZES[1:-1], "meta"], "--device meta: expected a CPU or a CUDA device"),
        ([*SIZES[1:-1], "nonsense"], "--device nonsense"),
        (["/nowhere/at/all"], "model '/nowhere/at/all': no such folder"),
        ([*SIZES[1:], "--rows", str(2**50)], f"{2**50} rows, hidden size 24, vocabulary 100: "),
    ],
)
def test_bad_options_are_told(arguments, told, capsys):
    with pytest.raises(SystemExit) as end:
        main(["tune", *arguments])
    assert end.value.code == 2 and told in capsys.readouterr().err


def test_sizes_by_number_need_torch_alone(tables, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "transformers", None)  # an import of it fails
    monkeypatch.setattr(tune, "wrong", lambda *_: "")
    assert main([*SIZES, "--rows", "8", "--rounds", "6"]) == 0
    table = json.loads(next(tables.iterdir()).read_text())
    assert {e["use"] for e in table["entries"]} == {use for use in tune.first_cases() if use != "linear_top_k"}
    assert all(ms > 0 for e in table["entries"] for ms in e["median_ms"].values())
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["tune", "some/model"])
    remedy = "pip install transformers, or give --hidden-size and --vocabulary"
    assert f"model: transformers is not installed: {remedy}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("none", "MIND_KERNELS_TUNING is 'none', so that no table is written"),
        ("/proc/nowhere", "/proc/nowhere: No such file or directory; MIND_KERNELS_TUNING may name another folder"),
        (__file__, f"{__file__}: File exists; MIND_KERNELS_TUNING may name another folder"),
    ],
)
def test_a_place_that_no_table_can_have_is_told_before_anything_is_timed(setting, told, monkeypatch, capsys):
    monkeypatch.setenv("MIND_KERNELS_TUNING", setting)
    monkeypatch.setattr(tune, "timed", None)
    with pytest.raises(SystemExit) as end:
        main(SIZES)
    assert end.value.code == 2 and told in capsys.readouterr().err
