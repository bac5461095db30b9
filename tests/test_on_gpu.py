"""bench/on_gpu.sh without a GPU: its lines on a stand-in for the device, and what becomes of a command that fails."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from tests import cuda_emulator

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "bench" / "on_gpu.sh"
KERNELS = ROOT / "tests" / "kernels"
# Files that name devices and have nothing to run on a GPU: commands, the launches' settings, the emulator, CPU kernels,
# processes that exchange by gloo.
ELSEWHERE = {
    "benchmark",
    "check_command",
    "cpp_groups",
    "cuda_kernels",
    "exact_divergences",
    "exact_shards",
    "info_command",
    "large_heads",  # minutes, and 14 GiB
    "streamed_rows",
    "tuning",
    "vocabulary_parallel",
    "vocabulary_parallel_divergence",
    "vocabulary_parallel_groups",
}
# Stands for Python: notes how it is called, and fails where it is told to.
STUB = """#!/bin/sh
echo "$*" >>"$CALLS"
case " $* " in *" $FAILS "*) echo broken; exit 3;; esac
echo fine
"""
# A peer: the plain loss under the name of another package.
PEER = """import torch
def linear_cross_entropy(hidden, weight, target, **_):
    return torch.nn.functional.cross_entropy((hidden @ weight.T).float(), target)
"""


def run(*arguments, **variables):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run(
        [SCRIPT, *arguments], env=environment | variables, cwd=ROOT, capture_output=True, text=True, timeout=1800
    )


@pytest.fixture
def stubbed(tmp_path):
    """Runs the script with the stub, and returns its end, and the calls."""
    stub = tmp_path / "python"
    stub.write_text(STUB)
    stub.chmod(0o755)

    def call(*arguments, fails="nothing", **variables):
        log = tmp_path / "calls"
        log.write_text("")
        places = {"PYTHON": str(stub), "OUT": str(tmp_path / "out"), "CALLS": str(log), "FAILS": fails}
        return run(*arguments, **places, **variables), log.read_text().splitlines()

    return call


def test_a_call_builds_tests_tunes_and_measures(stubbed):
    ended, calls = stubbed("--repeats", "3")
    assert ended.returncode == 0, ended.stdout
    assert calls[0] == "-m bench.comparison.peers" and calls[1] == "setup.py -q build_ext --inplace"
    files = [line.split()[-1] for line in calls if line.startswith("-m pytest")]
    assert len(files) > 20 and all((ROOT / file).is_file() for file in files)
    assert "-m mind_kernels check --device cuda" in calls
    rest = calls[len(files) + 3 :]
    benches = [
        "kernel_times",
        "row_kernels",
        "linear_pairwise_jsd",
        "linear_mind_loss",
        "train_step",
        "linear_cross_entropy",
    ]
    assert rest[0] == "-m mind_kernels tune --device cuda --hidden-size 3584 --vocabulary 151936"
    assert [line.split()[1] for line in rest[1:]] == [*(f"bench.{name}" for name in benches), "bench.tables"]
    assert all("--device cuda" in line and "--repeats 3" in line for line in rest[1:-1])
    (tokens,) = [word for line in rest for word in line.split() if word.endswith(".json")]
    assert (ROOT / tokens).is_file()


def test_every_test_that_runs_on_a_device_is_in_the_call(stubbed):
    _, calls = stubbed()
    called = {Path(line.split()[-1]).stem.removeprefix("test_") for line in calls if line.startswith("-m pytest")}
    pattern = re.compile(r"device_of|implementations import|import implementations")
    sources = {file.stem.removeprefix("test_"): file.read_text() for file in KERNELS.glob("test_*.py")}
    on_device = {name for name, source in sources.items() if pattern.search(source)}
    assert on_device - ELSEWHERE <= called
    assert not called & ELSEWHERE


@pytest.mark.parametrize(
    "fails",
    [
        "-m mind_kernels check --device cuda",
        "tests/kernels/test_row_kernels.py",
        "-m mind_kernels tune --device cuda",
        "-m bench.linear_pairwise_jsd",
        "-m bench.tables",
    ],
)
def test_what_fails_is_told_at_the_end_and_the_rest_is_run(stubbed, fails):
    ended, calls = stubbed(fails=fails, TESTS="row_kernels", BENCHES="row_kernels linear_pairwise_jsd")
    assert ended.returncode == 1 and "broken" in ended.stdout
    assert len(calls) == 8


@pytest.mark.parametrize("fails", ["setup.py", "-m bench.comparison.peers"])
def test_without_libraries_nothing_is_run(stubbed, fails):
    ended, calls = stubbed(fails=fails)
    assert ended.returncode == 1 and not [line for line in calls if "pytest" in line]


def test_a_folder_without_wheels_is_told_first(stubbed, tmp_path):
    ended, calls = stubbed(WHEELS=str(tmp_path))
    assert ended.returncode == 1 and ended.stdout == f"WHEELS is {tmp_path}: no wheel is in it\n" and not calls


def wheel(folder: Path) -> None:
    """One with the peer."""
    info = "cut_cross_entropy-99.1.dist-info"
    with zipfile.ZipFile(folder / "cut_cross_entropy-99.1-py3-none-any.whl", "w") as file:
        file.writestr("cut_cross_entropy.py", PEER)
        file.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: cut-cross-entropy\nVersion: 99.1\n")
        file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{info}/top_level.txt", "cut_cross_entropy\n")
        file.writestr(f"{info}/RECORD", "")


@pytest.mark.nightly
@pytest.mark.skipif(bool(cuda_emulator.UNAVAILABLE), reason=cuda_emulator.UNAVAILABLE)
@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here: no stand-in")
def test_a_rehearsal_from_tests_to_tables(tmp_path):
    pytest.importorskip("triton")
    pytest.importorskip("transformers")
    pytest.importorskip("pip")
    wheel(tmp_path)
    out = tmp_path / "out"
    places = {"PYTHON": sys.executable, "OUT": str(out), "WHEELS": str(tmp_path), "TORCHDYNAMO_DISABLE": "1"}
    ended = run("--dry", "--repeats", "1", **places, OMP_NUM_THREADS="1")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "cut-cross-entropy 99.1" in ended.stdout and "all agree with the definition" in ended.stdout
    assert re.search(r"^cuda: \d+ passed", ended.stdout, re.MULTILINE)
    rows = {}
    lines = (out / "kernel_times_cuda.jsonl").read_text().splitlines()
    whole = [row for row in map(json.loads, lines) if "wall_ms" in row]
    assert len(whole) > 20 and all("no GPU" in row["device"] for row in whole)
    for name in ("row_kernels", "linear_pairwise_jsd", "linear_mind_loss", "train_step", "linear_cross_entropy"):
        lines = (out / f"{name}_cuda.jsonl").read_text().splitlines()
        rows[name] = {row.get("provider") or row.get("variant") or row["kernel"]: row for row in map(json.loads, lines)}
        assert all("no GPU" in row["device"] for row in rows[name].values())
        measured = [row for row in rows[name].values() if "median_ms" in row]
        assert len(measured) >= 6
        for row in measured:
            if "predicted_ms" in row:
                assert row["times_predicted"] == pytest.approx(row["median_ms"] / row["predicted_ms"], rel=0.5)
        assert f"\n{name}: " in ended.stdout
    for backend in ("torch", "triton", "triton_streaming", "cuda"):
        assert "median_ms" in rows["linear_cross_entropy"][f"mind_kernels {backend} sparse 2^-12"]
    assert rows["linear_cross_entropy"]["CCE"]["package"] == "cut-cross-entropy 99.1"
    assert rows["linear_cross_entropy"]["QuACK"]["note"] == "not run: quack is not installed"
    assert list((out / "tuning").glob("*.json"))
