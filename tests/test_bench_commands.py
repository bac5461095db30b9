"""The command lines of all benchmarks: what is wrong is told before anything is measured, and no result is lost."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench import command, packing
from bench.comparison import benchmark as cases
from bench.comparison import command as comparison
from bench.comparison.gate import Gates
from bench.comparison.heads import HEADS, Head
from bench.comparison.provider import Provider
from bench.linear_cross_entropy import inputs as inputs_of
from bench.linear_cross_entropy.__main__ import BENCHMARK
from bench.linear_cross_entropy.inputs import Inputs
from bench.linear_cross_entropy.providers import plain
from bench.measure import RESULTS, Timing, measure_time
from bench.roofline import Rates

ROOT = Path(__file__).resolve().parents[1]
NO_PROGRAMS = {"__init__", "measure", "real_rows", "command", "rehearsal", "roofline", "kernel_resources", "tables"}
NO_PROGRAMS |= {"eight_gpus", "shard_processes", "experiment_results", "make_train"}
NO_PROGRAMS |= {"testbed"}  # makes a student, and measures nothing: tests/test_bench_testbed.py
NAMES = sorted(
    (
        {file.stem for file in (ROOT / "bench").glob("*.py")}
        | {file.parent.name for file in (ROOT / "bench").glob("*/__main__.py")}
    )
    - NO_PROGRAMS
)
NEEDED = {"dataset": ["--data", __file__], "latent": ["--student", "nowhere"]}
"""Options without which a benchmark does not begin."""


def run(name, *arguments):
    """The benchmark as python -m bench.<name> starts it, in this process."""
    if (ROOT / "bench" / name).is_dir():
        comparison.main(importlib.import_module(f"bench.{name}.__main__").BENCHMARK, "Words.", arguments)
    else:
        importlib.import_module(f"bench.{name}").main(list(arguments))


@pytest.fixture
def no_measurement(monkeypatch):
    """Whatever measures fails the test."""

    def fail(*_, **__):
        pytest.fail("measured")

    for module, function in (
        ("comparison.command", "measured_rates"),
        ("comparison.command", "measure_case"),
        ("packing", "measure_time"),
        ("linear_divergence", "measure_time"),
        ("coverage", "measure"),
        ("dataset", "questions_of"),
        ("fsdp_memory", "peaks"),
        ("busy_machine", "Worker"),
        ("row_confidence", "load"),
        ("row_kernels", "load"),
        ("sparse_error", "load"),
        ("generation", "load_student"),
        ("kernel_times", "of_provider"),
        ("latent", "train"),
        ("methods", "measure"),
        ("selection", "load_tables"),
        ("selection_tables", "tables"),
        ("shapes", "inputs"),
        ("sparse_training", "measure"),
        ("train_parts", "measure"),
        ("train_step", "tokenized_step"),
        ("trainer_memory", "peak_extra_mib"),
        ("vocabulary_parallel", "started"),
    ):
        monkeypatch.setattr(importlib.import_module(f"bench.{module}"), function, fail)


def refusal(capsys, name, *arguments):
    with pytest.raises(SystemExit) as end:
        run(name, *NEEDED.get(name, []), *arguments)
    message = capsys.readouterr().err.splitlines()[-1]
    assert end.value.code == 2 and message.startswith(f"python -m bench.{name}: error: ")
    return message


def test_every_benchmark_is_found():
    assert {"packing", "shapes", "linear_cross_entropy", "train_step", "busy_machine"} < set(NAMES) and len(NAMES) == 24


@pytest.mark.parametrize("name", NAMES)
def test_help_measures_nothing(name, no_measurement, capsys):
    for option in ("--help", "-h"):
        with pytest.raises(SystemExit) as end:
            run(name, option)
        shown = capsys.readouterr().out
        assert end.value.code == 0 and "--output" in shown and "--overwrite" in shown


@pytest.mark.parametrize("name", NAMES)
def test_results_are_replaced_only_if_that_is_asked_for(name, no_measurement, tmp_path, capsys):
    (tmp_path / f"{name}.jsonl").write_text("precious\n")
    assert "add --overwrite to replace it" in refusal(capsys, name, "--output", str(tmp_path))
    assert (tmp_path / f"{name}.jsonl").read_text() == "precious\n"
    assert command.OUTPUT != RESULTS and "runs/" in (ROOT / ".gitignore").read_text()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("output", ["file", "file/below"])
def test_an_output_that_cannot_be_a_folder_is_told_first(name, output, no_measurement, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert "is a file: expected a folder" in refusal(capsys, name, "--output", str(tmp_path / output))


WRONG = {
    "--repeats": ["0", "-1", "x", "1.5"],
    "--rows": ["0", "many"],
    "--groups": ["-4"],
    "--minutes": ["0", "-1", "nan", "inf", "soon"],
    "--data": ["/none/of/these.jsonl"],
    "--tokens": ["/none"],
    "--latex": ["/none"],
    "--steps": ["0"],
    "--learning-rate": ["0", "-1e-3"],
    "--threshold": ["nan"],
    "--responses": ["-5"],
    "--items": ["0"],
    "--competitors": ["-1"],
    "--questions": ["0"],
    "--experiments": ["0"],
    "--draws": ["-1"],
    "--jobs": ["0"],
    "--processes": ["0"],
    "--backends": ["tritno"],
    "--work": ["nothing"],
    "--providers": ["egaer", "no_such_module:loss", "math:no_such_function", "bench.packing:"],
    "--device": ["tpu"],
    "--dtype": ["int8"],
}


@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_value_of_any_option_is_told_first(name, no_measurement, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run(name, "--help")
    shown = capsys.readouterr().out
    tried = 0
    for option, values in WRONG.items():
        for value in values if f"  {option} " in shown else ():
            message = refusal(capsys, name, "--output", str(tmp_path / "new"), f"{option}={value}")
            assert option in message, message
            tried += 1
    assert tried >= 1 and not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "name",
    [
        name
        for name in NAMES
        if name
        not in (
            "linear_divergence",
            "packing",
            "dataset",
            "busy_machine",
            "fsdp_memory",
            "generation",
            "kernel_times",
            "latent",
            "methods",
            "selection",
            "selection_tables",
            "train_parts",
            "trainer_memory",
            "vocabulary_parallel",
        )
    ],
)
def test_results_that_are_not_there_cannot_be_drawn(name, no_measurement, tmp_path, capsys):
    assert "is not there; measure first" in refusal(capsys, name, "--draw", "--output", str(tmp_path))


@pytest.mark.parametrize(
    "name", ["linear_cross_entropy", "row_confidence", "train_step", "sparse_error", "sparse_training"]
)
def test_the_results_of_the_repository_are_shown_on_demand(name, no_measurement, tmp_path, capsys):
    for file in RESULTS.glob(f"{name}.*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    run(name, "--draw", "--output", str(tmp_path))
    shown = capsys.readouterr().out
    assert name == "sparse_training" or "|" in shown
    assert max(map(len, shown.splitlines()), default=0) < 200


def test_one_repeat_is_enough(tmp_path, capsys):
    for repeats in ("1", "2"):
        packing.main(["--repeats", repeats, "--items", "2000", "--output", str(tmp_path), "--overwrite"])
    rows = [json.loads(line) for line in (tmp_path / "packing.jsonl").read_text().splitlines()]
    assert [row["repeats"] for row in rows] == [2] * 4 and "compiled" in capsys.readouterr().out
    assert Timing.of([0.25]) == Timing(250.0, 250.0, 250.0, 1)
    assert measure_time({"a": int}, gate=None, repeats=1, warmup=1)["a"].repeats == 1


def test_as_a_program_it_ends_in_a_line(tmp_path):
    """One of them for all, since each takes seconds to load: no traceback, whatever happens."""
    options = ["--items", "100", "--repeats", "1", "--output", str(tmp_path / ("x" * 300))]
    ended = subprocess.run([sys.executable, "-m", "bench.packing", *options], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 2 and ended.stderr.splitlines()[-1].endswith("File name too long")
    assert "Traceback" not in ended.stderr
    reader, writer = os.pipe()
    os.close(reader)
    command_line = [sys.executable, "-m", "bench.packing", "--help"]
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    ended = subprocess.run(command_line, cwd=ROOT, env=buffered, stdout=writer, stderr=subprocess.PIPE, text=True)
    assert (ended.returncode, ended.stderr) == (141, "")


def test_ctrl_c_while_pytorch_is_loaded_ends_in_silence(tmp_path):
    """Which takes seconds, and would end in a traceback through PyTorch's own modules."""
    (tmp_path / "torch.py").write_text("import time\nprint('loading', flush=True)\ntime.sleep(60)\n")
    command_line = [sys.executable, "-m", "bench.packing"]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    with subprocess.Popen(command_line, cwd=ROOT, env=environment, **streams) as process:
        assert process.stdout.readline() == "loading\n"
        process.send_signal(signal.SIGINT)
        assert process.communicate()[1] == "" and process.returncode == -signal.SIGINT


def own_loss(inputs):
    """A provider of one's own."""
    return plain(*inputs[:3])


OWN = f"{__name__}:own_loss"


def test_a_provider_of_ones_own_needs_no_entry(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(HEADS, "budget", Head(512, 16))
    monkeypatch.setattr(cases, "peak", lambda *_: 1.0)
    monkeypatch.setattr(comparison, "measured_rates", lambda *_: Rates(1, 1))
    options = ["--models", "budget", "--rows", "16", "--repeats", "1", "--output", str(tmp_path)]
    comparison.main(BENCHMARK, "", [*options, "--providers", "eager", OWN])
    rows = [json.loads(line) for line in (tmp_path / "linear_cross_entropy.jsonl").read_text().splitlines()]
    assert [row["provider"] for row in rows] == ["eager", OWN] and "note" not in rows[1]
    assert OWN in capsys.readouterr().out and OWN in (tmp_path / "linear_cross_entropy.svg").read_text()
    case = {"model": "budget", "rows": 4, "dtype": torch.float32, "device": "cpu"}
    assert cases.build("linear_cross_entropy", OWN, **case)().loss > 0  # as a fresh process has it


@pytest.fixture(scope="module")
def gates():
    hidden, weight, target = inputs_of.synthetic(64, 2048, 64)
    return Gates(BENCHMARK.definitions, Inputs(hidden.requires_grad_(), weight.requires_grad_(), target, ""))


class Scaled(torch.autograd.Function):
    """A loss that is right and whose gradient is too large."""

    @staticmethod
    def forward(ctx, loss, factor):
        ctx.factor = factor
        return loss.clone()

    @staticmethod
    def backward(ctx, grad):
        return ctx.factor * grad, None


@pytest.mark.parametrize(
    "wrong",
    [
        lambda inputs: 1.001 * own_loss(inputs),
        lambda inputs: Scaled.apply(own_loss(inputs), 1.001),
        lambda inputs: Scaled.apply(own_loss(inputs), 0.9995),
        lambda inputs: plain(inputs.hidden.bfloat16().float(), inputs.weight, inputs.target),
        lambda inputs: plain(inputs.hidden, inputs.weight.bfloat16().float(), inputs.target),
        lambda inputs: own_loss(inputs) + 1e-3 * (inputs.hidden - inputs.hidden.detach()).sum(),
    ],
    ids=["loss and gradient", "gradient", "smaller gradient", "rounded rows", "rounded head", "another term"],
)
def test_a_provider_that_is_a_little_wrong_is_noted(gates, wrong):
    verdicts = cases.judge(["right", "wrong"], {"right": Provider(own_loss), "wrong": Provider(wrong)}, gates)
    assert "remark" not in verdicts["right"] and "note" not in verdicts["right"]
    remark = verdicts["wrong"].get("remark", "") or verdicts["wrong"].get("note", "")
    assert remark.startswith(("not exact: errors of ", "wrong: ")), verdicts


# The others are compiled, or need what is not installed.
@pytest.mark.parametrize("name", [name for name in BENCHMARK.cpu if name.startswith(("eager", "F.", "mind_kernels"))])
def test_the_providers_of_the_repository_need_no_remark(gates, name):
    assert "remark" not in cases.judge([name], BENCHMARK.providers, gates)[name]
