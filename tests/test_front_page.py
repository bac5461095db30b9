"""README.md: its tables and figures are those of the results, its example runs, it is short."""

from __future__ import annotations

import copy
import functools
import json
import os
import re
import subprocess
import sys

import pytest
import torch
from trainers import Rows, arguments, distance, make, padded, train, weights
from transformers import Trainer

from bench import make_train
from docs.generated import written
from mind.errors import MindError
from mind.run_folder import RunFolder
from mind_kernels.backend import BACKENDS
from tests import front_page, ran
from tests.docs_pages import commands, parse
from tests.guide import ROOT, block

PAGE = front_page.README.read_text()


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU other implementations are tested than on a CPU")
@pytest.mark.skipif("MIND_KERNELS_TEST_WITHOUT" in os.environ, reason="backends may be missing here")
def test_the_table_of_backends_is_what_is_tested_and_measured():
    assert written(PAGE, front_page.begin("status")) == front_page.TABLES["status"](), (
        "python -m tests.front_page writes it"
    )


def test_the_table_of_results_has_the_figures_of_the_results():
    assert written(PAGE, front_page.begin("results")) == front_page.results_table(), (
        "python -m tests.front_page writes it"
    )


@pytest.mark.parametrize("name", front_page.figures())
def test_the_prose_has_the_figures_of_the_results(name):
    assert front_page.figures()[name] in " ".join(PAGE.split())


def test_what_is_tested_or_measured_on_a_gpu_is_told():
    lines = [
        {"backend": "triton", "device": "NVIDIA H200", "passed": 5, "failed": 0},
        {"backend": "cuda", "device": "NVIDIA H200", "passed": 5, "failed": 0},
        {"backend": "cuda", "device": "NVIDIA H200", "passed": 4, "failed": 1},
        {"backend": "torch", "device": "cpu", "passed": 5, "failed": 0},
    ]
    assert front_page.tested_on_gpu(lines) == {("triton", "cuda")}
    rows = [
        {"provider": "mind_kernels triton exact", "median_ms": 1.0, "device": "NVIDIA H200"},
        {"provider": "mind_kernels cuda exact", "error": "it spills", "device": "NVIDIA H200"},
        {"provider": "torch.compile", "median_ms": 1.0, "device": "cpu"},
        {"kernel": "cpp gradient", "median_ms": 1.0, "device": "cpu"},
        {"provider": "mind_kernels torch exact", "kernel": "all", "wall_ms": 1.0, "device": "NVIDIA H200"},
    ]
    assert front_page.measured(rows) == {("triton", "cuda"), ("cpp", "cpu"), ("torch", "cuda")}
    assert front_page.failures(lines) == {"cuda": "1 of 10 tests failed"}
    failed = {"cuda": "1 of 10 tests failed"}
    table = front_page.status_table({("triton", "cuda"), ("triton", "interpreter")}, {("triton", "cuda")}, failed)
    cells = {line.split(" | ")[0].strip("|` "): line.strip("| \n").split(" | ")[2:] for line in table.splitlines()}
    assert cells["triton"] == ["–", "tested, measured", "tested in Triton's interpreter"]
    assert cells["cuda"] == ["–", "1 of 10 tests failed", "–"]
    assert cells["cpp"] == ["neither", "–", "–"] and cells.keys() >= BACKENDS.keys()


TESTS = """
import pytest

@pytest.mark.parametrize("name, value", [("cpp", 1), ("cpp", 2), ("torch", 3), ("elsewhere", [])])
def test_it(name, value):
    assert value != 2
"""


def test_what_tests_ran_is_noted_by_backend_and_device(tmp_path):
    tests, file = tmp_path / "test_it.py", tmp_path / "ran.jsonl"
    tests.write_text(TESTS)
    environment = os.environ | {ran.FILE: str(file), "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "pytest", "-p", "tests.ran", "-p", "no:cacheprovider", "-c", os.devnull, tests]
    ended = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert "1 failed, 3 passed" in ended.stdout, ended.stdout + ended.stderr
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    told = [{name: line[name] for name in ("backend", "device", "passed", "failed")} for line in lines]
    assert told == [
        {"backend": "cpp", "device": "cpu", "passed": 1, "failed": 1},
        {"backend": "torch", "device": "cpu", "passed": 1, "failed": 0},
    ]
    assert all(line["torch"] == torch.__version__ for line in lines)


def test_a_finished_run_becomes_a_line_of_results(tmp_path):
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    run.config.write_text('{"train": {"seed": 4}}')
    with pytest.raises(MindError, match="expected a finished run"):
        make_train.outcome(run.path)
    for when, right in (("before", (0, 0, 1)), ("after", (1, 1, 0))):
        run.responses(when).mkdir(parents=True)
        rows = [f'{{"id": "{i}", "correct": {str(bool(each)).lower()}}}\n' for i, each in enumerate(right)]
        (run.responses(when) / "test.jsonl").write_text("".join(rows))
    of = {"before": (2.0, 2), "after": (1.5, 0)}
    run.write_evaluation({w: {"heldout": {"nll": n}, "files": {"test": {"cut_off": c}}} for w, (n, c) in of.items()})
    run.write_status({"steps": 8, "wall_s": 90.0, "tokens_per_s": 5.0, "work_of_naive": 0.5})
    expected = {"seed": 4, "questions": 3, "correct_before": 1, "correct_after": 2, "gained": 2, "lost": 1}
    expected |= {
        "cut_off_before": 2,
        "cut_off_after": 0,
        "nll_before": 2.0,
        "nll_after": 1.5,
        "steps": 8,
        "minutes": 1.5,
    }
    assert make_train.outcome(run.path).items() >= expected.items()


def test_the_two_lines_in_the_trainer_take_the_steps_of_its_own_loss(tmp_path):
    model = make()
    plain, before = copy.deepcopy(model), weights(model)
    names = {"model": model, "arguments": arguments(tmp_path), "dataset": Rows()}
    names["Trainer"] = functools.partial(Trainer, data_collator=padded)
    exec(block(front_page.README, "tests/test_front_page.py"), names)
    names["trainer"].train()
    found = [line["loss"] for line in names["trainer"].state.log_history if "loss" in line]
    assert found and model.last_row_stats is not None  # it was the fused loss
    _, expected = train(plain, tmp_path)
    assert distance(weights(model), expected) <= 1e-6 < 1e-3 < distance(before, expected)


def test_the_four_commands_can_be_typed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    section = PAGE.partition("## Distil in four commands\n")[2].partition("\n## ")[0]
    (lines,) = re.findall(r"^```\n(.*?)```", section, re.DOTALL | re.MULTILINE)
    shown = [words[2] if words[1] == "data" else words[1] for words in commands(lines)]
    assert shown == ["generate", "judge", "filter", "train"]
    asked = dict(zip(shown, (parse(words, monkeypatch) for words in commands(lines)), strict=True))
    assert (asked["generate"].job.output, asked["generate"].job.questions.path) == ("data/mine", "questions.jsonl")
    assert asked["filter"].output == asked["train"].job.data.train == "mine.jsonl"


def test_the_page_is_short():
    lines = PAGE.splitlines()
    assert len(lines) < 150 and lines[0] == "# MIND Kernels"
    shown = re.search(r"```\n(.*?)```", PAGE, re.DOTALL)
    assert shown and [line.split("#")[0].strip() for line in shown[1].splitlines()] == ["make train", "make test"]
