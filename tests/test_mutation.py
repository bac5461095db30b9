"""The driver of mutation testing: it finds a change that tests notice, and one that they do not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

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


def test_what_ends_a_module_is_told(tmp_path):
    code = "from tests.mutation import modules; modules.MODULES['mind.intervals'] = ('tests/nothing.py',)"
    code += "; from tests.mutation.__main__ import main; main()"
    words = ["--modules", "mind.intervals", "--output", tmp_path / "found.jsonl"]
    done = subprocess.run([sys.executable, "-c", code, *words], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1 and not (tmp_path / "found.jsonl").exists()
    assert "mind.intervals: its tests cannot be collected\nmind.intervals: not tried to the end\n" in done.stderr


def test_the_interpreter_can_still_be_chosen():
    """Triton reads TRITON_INTERPRET when it is imported, which the driver sets for the tests."""
    code = "import sys, tests.mutation.__main__; sys.exit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
