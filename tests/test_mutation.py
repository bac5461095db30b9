"""The driver of mutation testing: it finds a change that tests notice, and one that they do not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def test_changes_of_a_module_are_tried(tmp_path):
    output = tmp_path / "found.jsonl"
    words = ["--modules", "mind.batches.bin_packing", "--sample", "2", "--output", output]
    done = subprocess.run(
        [sys.executable, "-m", "tests.mutation", *words], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert (done.returncode, done.stdout) == (0, "mind.batches.bin_packing: 100 % of 2 noticed\n"), done.stderr
    [found] = map(json.loads, output.read_text().splitlines())
    assert found["tried"] == found["noticed"] + found["too slow"] == 2 and not found["survivors"]


def with_tests(path, output, prepared="pass"):
    """The driver with other tests of mind.batches.bin_packing."""
    code = f"from tests.mutation import modules; modules.MODULES['mind.batches.bin_packing'] = ({path!r},)"
    code += f"; from tests.mutation import __main__ as driver; {prepared}; driver.main()"
    words = ["--modules", "mind.batches.bin_packing", "--sample", "2", "--output", output]
    return subprocess.run([sys.executable, "-c", code, *words], cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_a_change_that_no_test_notices_survives(tmp_path):
    done = with_tests("tests/mind/test_intervals.py", tmp_path / "found.jsonl")
    assert done.returncode == 1 and "mind.batches.bin_packing: 0 % of 2 noticed\n" in done.stdout, done.stderr
    assert "below 90 %: mind.batches.bin_packing" in done.stderr
    [found] = map(json.loads, (tmp_path / "found.jsonl").read_text().splitlines())
    assert len(found["survivors"]) == found["survived"] == 2


def test_processes_that_a_test_starts_have_the_change_too(tmp_path):
    words = [sys.executable, "-m", "pytest", "-q", str(ROOT / "tests/mind/test_bin_packing.py")]
    test = tmp_path / "test_in_a_process.py"
    test.write_text(f"import subprocess\n\ndef test_it():\n    assert subprocess.run({words!r}).returncode == 0\n")
    done = with_tests(str(test), tmp_path / "found.jsonl")
    assert (done.returncode, done.stdout) == (0, "mind.batches.bin_packing: 100 % of 2 noticed\n"), done.stderr


@pytest.mark.parametrize(
    ("path", "prepared", "reason"),
    [
        ("tests/nothing.py", "pass", "mind.batches.bin_packing: its tests cannot be collected"),
        ("tests/mind/test_intervals.py", "driver.swap = lambda *_: False", "the child ended with 71, before its tests"),
        pytest.param(
            "tests/mind/test_intervals.py",
            "driver.swap = lambda *_: 1 / 0",
            "the child ended with 70, before its tests",
            marks=pytest.mark.nightly,
        ),
    ],
)
def test_what_ends_a_module_is_told(tmp_path, path, prepared, reason):
    done = with_tests(path, tmp_path / "found.jsonl", prepared)
    assert done.returncode == 1 and not (tmp_path / "found.jsonl").exists()
    assert f"{reason}\nmind.batches.bin_packing: not tried to the end\n" in done.stderr


def test_the_interpreter_can_still_be_chosen():
    """Triton reads TRITON_INTERPRET when it is imported, which the driver sets for the tests."""
    code = "import sys, tests.mutation.__main__; sys.exit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
