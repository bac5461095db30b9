"""What the loss benchmarks share, on the one of linear_cross_entropy: inputs, gate, tables and pictures.

No time is asserted.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from bench import linear_divergence, row_confidence, row_kernels, shapes, sparse_error
from bench.comparison import benchmark as cases
from bench.comparison import command
from bench.comparison.gate import Gates, Precision, relative_error
from bench.comparison.heads import HEADS, SYNTHETIC, Head
from bench.comparison.picture import draw
from bench.comparison.provider import Outputs, Provider, step
from bench.linear_cross_entropy import inputs as inputs_of
from bench.linear_cross_entropy.__main__ import BENCHMARK
from bench.linear_cross_entropy.definition import dense
from bench.linear_cross_entropy.inputs import Inputs
from bench.linear_cross_entropy.providers import CPU, PROVIDERS
from bench.measure import add_results, measure_time, peak_extra_mib_here, print_table, read_results, write_results
from bench.roofline import Rates
from mind_kernels.linear_cross_entropy.contract import RowValues

# The others are compiled, or need what is not installed.
QUICK = [name for name in CPU if name.startswith(("eager", "F.", "mind_kernels"))]


@pytest.fixture(scope="module")
def inputs():
    hidden, weight, target = inputs_of.synthetic(64, 2048, 64)
    return Inputs(hidden.requires_grad_(), weight.requires_grad_(), target, "synthetic")


@pytest.fixture(scope="module")
def gates(inputs):
    return Gates(BENCHMARK.definitions, inputs)


@pytest.fixture(scope="module")
def gate(gates):
    return gates["loss"]


def measured(inputs, name):
    return step(PROVIDERS[name], inputs)()


def test_synthetic_inputs_are_deterministic_and_as_peaked_as_a_trained_model():
    first, second = (inputs_of.synthetic(128, 49152, 64) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert [tuple(tensor.shape) for tensor in first] == [(128, 64), (49152, 64), (128,)]
    facts = inputs_of.describe(Inputs(*first, label=""))
    assert facts["kept_mean"] == pytest.approx(34, rel=0.25)
    assert facts["kept_mean_2^-9"] == pytest.approx(11, rel=0.25)


def test_describe_counts_what_a_plain_softmax_shows(inputs):
    logits = (inputs.hidden @ inputs.weight.T).detach()
    probability = logits.softmax(1)
    facts = inputs_of.describe(inputs)
    assert facts["kept_mean"] == pytest.approx(float((probability > 2**-12).sum(1).float().mean()), abs=0.1)
    assert facts["kept_mean_2^-9"] == pytest.approx(float((probability > 2**-9).sum(1).float().mean()), abs=0.1)
    assert facts["mean_nll"] == pytest.approx(float(torch.nn.functional.cross_entropy(logits, inputs.target)), abs=2e-3)


def test_load_casts_and_labels(monkeypatch):
    monkeypatch.setitem(HEADS, "Gemma-3-270m", Head(512, 16))
    loaded = inputs_of.load("Gemma-3-270m", 8, torch.bfloat16, "cpu")
    assert loaded.hidden.dtype == loaded.weight.dtype == torch.bfloat16
    assert loaded.hidden.requires_grad and loaded.weight.requires_grad
    assert loaded.label == SYNTHETIC


def test_the_truth_is_autograds(inputs, gate):
    double = Inputs(*(t.detach().double().requires_grad_() for t in inputs[:2]), inputs.target, "")
    expected = measured(double, "eager")
    for found, tensor in zip(gate.truth, expected, strict=True):
        assert relative_error(found, tensor) < 1e-12
    rounded = dense(inputs, Precision(torch.float32, bf16=True, bf16_logits=True))
    assert 1e-3 < relative_error(rounded.d_weight, gate.truth.d_weight) < 0.2


@pytest.mark.parametrize("name", QUICK)
def test_the_gate_lets_in_what_is_right(inputs, gate, name):
    gate.check(PROVIDERS[name], measured(inputs, name))


@pytest.mark.parametrize("tensor", Outputs._fields)
@pytest.mark.parametrize("name", ["eager", "mind_kernels exact", "mind_kernels sparse 2^-12"])
def test_the_gate_keeps_out_what_is_wrong(inputs, gate, name, tensor):
    eager = measured(inputs, "eager")
    wrong = eager._replace(**{tensor: 1.2 * getattr(eager, tensor)})
    with pytest.raises(AssertionError, match=tensor):
        gate.check(PROVIDERS[name], wrong)


def test_without_room_for_eager_ours_is_judged_by_the_yardstick(inputs, gate, monkeypatch):
    monkeypatch.setattr(gate, "eager", None)
    eager = measured(inputs, "eager")
    gate.check(PROVIDERS["mind_kernels exact"], eager)
    with pytest.raises(AssertionError, match="d_hidden_error"):
        gate.check(PROVIDERS["mind_kernels exact"], eager._replace(d_hidden=1.2 * eager.d_hidden))


def test_absent_broken_and_wrong_peers_are_noted_and_ours_is_a_fault(gates):
    def broken(_):
        raise RuntimeError("no such kernel\nand a long tail")

    def halved(inputs):
        return 0.5 * PROVIDERS["eager"].loss(inputs)

    providers = {
        "absent": Provider(broken, "no_such_package:loss"),
        "gpu": Provider(broken, cuda=True),
        "broken": Provider(broken),
        "wrong": Provider(halved),
        "huge": Provider(broken, logits=10**9),
        "eager": PROVIDERS["eager"],
    }
    verdicts = cases.judge(list(providers), providers, gates)
    assert verdicts["absent"]["note"] == "not run: no_such_package is not installed"
    assert verdicts["gpu"]["note"] == "not run: needs a CUDA device"
    assert verdicts["broken"]["note"] == "not run: RuntimeError: no such kernel"
    assert verdicts["wrong"]["note"].startswith("wrong: loss error")
    assert verdicts["huge"]["note"].startswith("not run: its logits take")
    assert "note" not in verdicts["eager"]
    assert not [name for name, verdict in verdicts.items() if "fault" in verdict]
    for loss, note in ((halved, "wrong: loss"), (broken, "not run: RuntimeError: no such kernel")):
        verdict = cases.judge(["ours"], {"ours": Provider(loss, backend="torch")}, gates)["ours"]
        assert verdict["fault"] and verdict["note"].startswith(note)
    unavailable = cases.judge(["ours"], {"ours": BENCHMARK.providers["mind_kernels triton exact"]}, gates)
    assert unavailable["ours"]["note"].startswith("not run: needs a CUDA device")


def test_results_are_added_in_place_of_those_with_the_same_keys(tmp_path):
    path = tmp_path / "new" / "results.jsonl"

    def kept():
        return [(row["name"], row["seed"], row["n"]) for row in read_results(path)]

    add_results([{"name": "a", "seed": 0, "n": 1}, {"name": "b", "seed": 0, "n": 2}], path, "name", "seed")
    add_results([{"name": "a", "seed": 1, "n": 3}, {"name": "b", "seed": 0, "n": 4}], path, "name", "seed")
    assert kept() == [("a", 0, 1), ("a", 1, 3), ("b", 0, 4)]
    add_results([{"name": "a", "seed": 1, "n": 5}], path)
    assert kept() == [("a", 0, 1), ("a", 1, 3), ("b", 0, 4), ("a", 1, 5)]
    assert all("commit" in row for row in read_results(path))


def test_a_case_from_inputs_to_table_and_picture(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(HEADS, "budget", Head(512, 16))
    monkeypatch.setattr(cases, "peak", lambda _, name, *__: 2.0 if name == "eager" else 1.0)
    case = {"model": "budget", "rows": 32, "dtype": torch.float32, "device": "cpu"}
    judged, rows = cases.measure_case(BENCHMARK, case, [*QUICK, "QuACK"], repeats=2, rates=Rates(0.1, 10))
    path = tmp_path / "results.jsonl"
    assert all("median_ms" not in row for row in judged) and "d_hidden_error" in judged[0]
    write_results(rows, path)
    stored = read_results(path)
    assert [row["provider"] for row in stored] == [*QUICK, "QuACK"]
    of = {row["provider"]: row for row in stored}
    assert of["eager"]["time_of_eager"] == 1 and of["mind_kernels exact"]["memory_of_eager"] == 0.5
    peers = [row for row in stored if row["provider"].startswith(("eager", "F.")) and "time_of_peer" in row]
    assert min(row["time_of_peer"] for row in peers) == 1
    assert of["mind_kernels sparse 2^-12"]["dropped_mass"] >= 0
    assert of["mind_kernels scoring"].keys() & {"d_hidden_error", "time_of_peer"} == set()
    assert of["eager scoring"]["time_of_eager"] == 1 and of["QuACK"]["note"] == "not run: needs a CUDA device"
    assert set(BENCHMARK.columns) - {"predicted_ms", "times_predicted"} <= set().union(*stored)  # on CUDA alone
    assert all(json.loads(line)["inputs"] == "synthetic, matched" for line in path.read_text().splitlines())
    print_table(stored, BENCHMARK.columns)
    assert "not run: needs a CUDA device" in capsys.readouterr().out
    picture = draw(path)
    text = picture.read_text()
    assert "mind_kernels exact" in text and "QuACK" not in text and "N 32, V 512, D 16" in text
    assert draw(path).read_text() == text  # the same file from the same numbers


def test_the_command_measures_the_cases_in_order_until_the_minutes_are_over(monkeypatch, tmp_path, capsys):
    measured_cases = []

    def measure_case(benchmark, case, names, repeats, rates):
        measured_cases.append(case)
        row = {"provider": names[0], "median_ms": 1.0, "inputs": "none", "peak_extra_mib": 1}
        yield [{**benchmark.labels(case), **row}]

    monkeypatch.setattr(command, "measure_case", measure_case)
    monkeypatch.setattr(command, "measured_rates", lambda *_: Rates(1, 1))
    options = ["--models", "budget", "Qwen2.5-7B", "--rows", "8", "4", "--output", str(tmp_path)]
    command.main(BENCHMARK, "", options)
    assert [(case["rows"], case["model"]) for case in measured_cases] == [
        (8, "budget"),
        (8, "Qwen2.5-7B"),
        (4, "budget"),
        (4, "Qwen2.5-7B"),
    ]
    monkeypatch.setattr(command, "measure_case", lambda *_: [[{"provider": "ours", "note": "wrong", "fault": True}]])
    with pytest.raises(AssertionError, match="ours: wrong"):
        command.main(BENCHMARK, "", ["--models", "budget", "--rows", "4", "--output", str(tmp_path / "fault")])
    assert read_results(tmp_path / "fault" / "linear_cross_entropy.jsonl")[0]["fault"]
    command.main(BENCHMARK, "", ["--minutes", "1e-9", "--output", str(tmp_path / "late")])
    note = read_results(tmp_path / "late" / "linear_cross_entropy.jsonl")[0]["note"]
    assert note == "not run: 1e-09 minutes are over"
    assert "no picture: " in capsys.readouterr().out
    command.main(BENCHMARK, "", ["--models", "budget", "--draw", "--output", str(tmp_path)])
    table = capsys.readouterr().out
    assert "budget" in table and "Qwen2.5-7B" not in table


def test_a_fresh_process_gets_the_providers_call():
    case = {"model": "SmolLM2-135M", "rows": 4, "dtype": torch.float32, "device": "cpu", "data": Path("none")}
    with pytest.raises(FileNotFoundError):  # given a data file, real rows are not made up
        cases.build("linear_cross_entropy", "eager", **case)


def test_measuring_without_a_gate_counts_the_callers_call_as_the_first():
    calls = []
    timing = measure_time({"a": lambda: calls.append(1)}, gate=None, repeats=2, warmup=2)
    assert timing["a"].repeats == 2 and len(calls) == 3


def test_peak_memory_sees_what_a_call_allocates():
    """64 MiB: what is larger than 32 MiB malloc always maps anew, and never takes from what the process once freed."""
    peak = peak_extra_mib_here(lambda: torch.ones(64 << 18), device="cpu")
    assert 60 < peak < 72


def test_row_confidence(tmp_path, monkeypatch, capsys):
    """On the rows of the kernels' tests; and an error above bfloat16's is seen."""
    rows = load_file(Path(__file__).parent / "kernels" / "data" / "smollm2_rows.safetensors")
    inputs = Inputs(rows["hidden"].float(), rows["weight"].float(), rows["target"], "test rows")
    monkeypatch.setattr(row_confidence, "load", lambda *_: inputs)
    monkeypatch.setattr(row_confidence, "LOSSES", (1.0, 1e-6))
    row_confidence.main(["--backends", "torch", "--output", str(tmp_path)])
    found = read_results(tmp_path / "row_confidence.jsonl")
    assert [row["nll"] for row in found] == [1.0] * 4 + [1e-6] * 4
    assert "torch sparse 2^-12" in capsys.readouterr().out
    found[-1]["d_weight_error"] = 1.0
    with pytest.raises(AssertionError, match="sparse"):
        row_confidence.check(found)


def test_sparse_error(tmp_path, monkeypatch, capsys):
    """On the rows of the kernels' tests; and an error above what `threshold_for_error` promises, or above
    `gradient_error`, is seen."""
    rows = load_file(Path(__file__).parent / "kernels" / "data" / "smollm2_rows.safetensors")
    leaves = (rows[name].float().requires_grad_() for name in ("hidden", "weight"))
    monkeypatch.setattr(sparse_error, "load", lambda *_: Inputs(*leaves, rows["target"], "test rows"))
    monkeypatch.setattr(sparse_error, "EXPONENTS", (9, 12))
    monkeypatch.setattr(sparse_error, "ERRORS", (1e-3,))
    sparse_error.main(["--repeats", "1", "--output", str(tmp_path)])
    found = read_results(tmp_path / "sparse_error.jsonl")
    assert [row["gradient"] for row in found] == ["eager", "exact", "2^-9", "2^-12", "error 0.001"]
    assert all(row["d_hidden_error"] < 1e-5 for row in found[:2]) and found[3]["d_hidden_error"] > 1e-4
    assert "sparse_rows" in capsys.readouterr().out and "<svg" in (tmp_path / "sparse_error.svg").read_text()
    for row, error, name in ((found[-1], 1.1e-3, "error 0.001"), (found[-2], 3e-2, "2\\^-12")):
        row["d_weight_error"] = error
        with pytest.raises(AssertionError, match=name):
            sparse_error.check(found)


def test_shapes(tmp_path, monkeypatch, capsys):
    """Every shape that is not too large, each with a time per N V D; the same picture from the same numbers."""
    monkeypatch.setattr(shapes, "LARGEST", 64 * 512 * 16)
    monkeypatch.setattr(shapes, "FEW", 1)
    options = ["--rows", "32", "64", "--vocabularies", "512", "100", "--sizes", "16", "8", "--few-rows", "1"]
    shapes.main([*options, "--repeats", "1", "--output", str(tmp_path)])
    rows = read_results(tmp_path / "shapes.jsonl")
    many = {(row["N"], row["V"], row["D"]) for row in rows if "times_best" in row}
    assert many == {(n, v, d) for n in (32, 64) for v in (512, 100) for d in (16, 8)} and len(rows) == 3 * 8 + 5 * 2
    for row in rows:
        assert row["ps_per_nvd"] == pytest.approx(1e9 * row["median_ms"] / (row["N"] * row["V"] * row["D"]), rel=0.01)
    assert {
        min(row["times_best"] for row in rows if row.get("gradient") == name and "times_best" in row)
        for name in ("exact", "sparse", "scoring")
    } == {1}
    assert {row["time_of_eager"] for row in rows if row["gradient"].startswith("eager")} == {1}
    text = (tmp_path / "shapes.svg").read_text()
    assert "V 512, D 16" in text and shapes.draw(tmp_path / "shapes.jsonl").read_text() == text
    monkeypatch.setattr(shapes, "LARGEST", 64 * 512 * 16 - 1)
    shapes.main([*options, "--repeats", "1", "--output", str(tmp_path), "--overwrite"])
    assert not any((row["N"], row["V"], row["D"]) == (64, 512, 16) for row in read_results(tmp_path / "shapes.jsonl"))
    assert "times_best" in capsys.readouterr().out


def test_row_kernels_beside_a_copy(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(HEADS, "budget", Head(512, 16))
    monkeypatch.setattr(row_kernels, "MODEL", "budget")
    row_kernels.main(["--rows", "8", "--repeats", "1", "--output", str(tmp_path)])
    rows = read_results(tmp_path / "row_kernels.jsonl")
    kernels = [row["kernel"] for row in rows]
    assert kernels[0] == "copy" and {"torch statistics", "torch gradient"} < set(kernels)
    assert rows[0]["share_of_copy"] == 1 and all(row["median_ms"] > 0 for row in rows)
    assert "torch statistics and entries" in capsys.readouterr().out
    wrong = {"torch statistics": RowValues._make(torch.zeros(len(RowValues._fields), 8))}
    with pytest.raises(AssertionError, match="torch statistics"):
        row_kernels.check(wrong, torch.randn(8, 16), torch.zeros(8, dtype=torch.int64))


def test_divergences_beside_eager(tmp_path, monkeypatch, capsys):
    options = ["--rows", "8", "--vocabulary", "64", "--size", "16", "--listed", "4", "--repeats", "1"]
    linear_divergence.main([*options, "--output", str(tmp_path)])
    rows = read_results(tmp_path / "linear_divergence.jsonl")
    assert len(rows) == 2 * (3 + 2) and {row["of_torch"] for row in rows if row["way"] == "torch"} == {1}
    assert {row["case"] for row in rows} == {"forward_kl, dense", "forward_kl, top 4", "jsd, dense", "jsd, top 4"}
    assert "of_torch" in capsys.readouterr().out
    monkeypatch.setattr(linear_divergence, "eager_of", lambda *_: lambda hidden, weight: (hidden @ weight.T).mean())
    with pytest.raises(AssertionError, match="eager differs from backend torch"):
        linear_divergence.main([*options, "--output", str(tmp_path), "--overwrite"])
