"""The table of what the tests reach: counts add up per folder, and lines that are not reached are listed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from bench.measure import read_results
from build_tools.libraries import VARIANTS
from tests import source_coverage


def test_counts_add_up_per_folder(tmp_path, monkeypatch, capsys):
    def counts(lines, reached, *missing):
        names = ("lines", "lines_reached", "branches", "branches_reached")
        return dict(zip(names, (lines, reached, 2, 1), strict=True)) | {"missing": list(missing)}

    kernels = [(Path("csrc/cpu/a.h"), counts(10, 9, 4)), (Path("csrc/cpu/b.h"), counts(5, 3, 1, 2))]
    monkeypatch.setattr(source_coverage, "BUILD", tmp_path)
    monkeypatch.setattr(source_coverage, "reached", lambda arguments: print("reached by", *arguments))
    monkeypatch.setattr(source_coverage, "of_kernels", lambda: kernels)
    monkeypatch.setattr(source_coverage, "of_python", lambda: [(Path("mind/a.py"), counts(7, 7))])
    monkeypatch.setattr(sys, "argv", ["source_coverage", "--output", str(tmp_path), "tests/kernels"])
    source_coverage.main()
    cpu, mind = read_results(tmp_path / "source_coverage.jsonl")
    assert (cpu["source"], cpu["lines"], cpu["lines_reached"], cpu["branches"]) == ("csrc/cpu", 15, 12, 4)
    assert (mind["source"], mind["lines_reached"], mind["branches_reached"]) == ("mind", 7, 1)
    assert (tmp_path / "missing.txt").read_text() == "csrc/cpu/a.h:4\ncsrc/cpu/b.h:1\ncsrc/cpu/b.h:2\n"
    assert "reached by tests/kernels" in capsys.readouterr().out


def test_files_of_python_are_read_as_coverage_writes_them(tmp_path, monkeypatch):
    summary = {"num_statements": 4, "covered_lines": 3, "num_branches": 2, "covered_branches": 1}
    found = {"files": {"mind/a.py": {"summary": summary, "missing_lines": [7]}}}
    monkeypatch.setattr(source_coverage, "BUILD", tmp_path)
    (tmp_path / "python.json").write_text(json.dumps(found))
    monkeypatch.setattr(source_coverage, "run", lambda *words: 0)
    ((path, counts),) = source_coverage.of_python()
    assert path == Path("mind/a.py") and counts["missing"] == [7]
    assert (counts["lines"], counts["lines_reached"], counts["branches_reached"]) == (4, 3, 1)


def test_a_line_of_several_instances_counts_once(tmp_path, monkeypatch):
    """Reached if one of them was; what gcovr leaves out is left out."""

    def line(number, count, *branches, **more):
        return {"line_number": number, "count": count, "branches": [{"count": one} for one in branches], **more}

    lines = [line(3, 0, 0, 0), line(3, 5, 5, 0), line(4, 0), line(4, 0), line(9, 0, 0, **{"gcovr/excluded": True})]
    (tmp_path / "kernels.json").write_text(json.dumps({"files": [{"file": "csrc/cpu/a.h", "lines": lines}]}))
    monkeypatch.setattr(source_coverage, "BUILD", tmp_path)
    monkeypatch.setattr(source_coverage, "run", lambda *words: 0)
    ((path, counts),) = source_coverage.of_kernels()
    assert path == Path("csrc/cpu/a.h") and counts.pop("missing") == [4]
    assert counts == {"lines": 2, "lines_reached": 1, "branches": 2, "branches_reached": 1}


@pytest.mark.parametrize("of", [source_coverage.of_kernels, source_coverage.of_python])
def test_counts_that_cannot_be_read_end_it(of, monkeypatch):
    monkeypatch.setattr(source_coverage, "run", lambda *words: 1)
    with pytest.raises(SystemExit, match="cannot be read"):
        list(of())


def test_the_build_that_counts_is_known():
    assert "--coverage" in VARIANTS["coverage"]
