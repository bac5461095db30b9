"""The driver of the long checks: what fails is named with the command that repeats it, and ends none of the others."""

from __future__ import annotations

import json
import signal
import time

import pytest

from tests import nightly


def test_a_job_that_fails_is_told_with_its_seed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(nightly, "JOBS", {"bad": "echo seen {seed}; exit 3", "good": "{python} -c 'print(1)'"})
    with pytest.raises(SystemExit) as ended:
        nightly.main(["--seed", "7", "--output", str(tmp_path)])
    assert ended.value.code == 1
    bad, good = json.loads((tmp_path / "report.json").read_text())
    assert (bad["status"], bad["seed"], good["status"]) == (3, 7, 0)
    assert (tmp_path / "bad.log").read_text() == "seen 7\n" and (tmp_path / "good.log").read_text() == "1\n"
    page = (tmp_path / "report.md").read_text()
    assert "bad failed, see bad.log; again: `echo seen 7; exit 3`" in page and page in capsys.readouterr().out
    assert "| good | passed |" in page


def test_a_job_that_hangs_ends_with_what_it_has_started(tmp_path, monkeypatch):
    late = tmp_path / "late"
    monkeypatch.setattr(nightly, "JOBS", {"hangs": f"(sleep 3; touch {late}) & wait", "good": "true"})
    with pytest.raises(SystemExit):
        nightly.main(["--hours", str(0.5 / 3600), "--output", str(tmp_path)])
    hangs, good = json.loads((tmp_path / "report.json").read_text())
    assert (hangs["status"], good["status"]) == (-signal.SIGKILL, 0)
    time.sleep(3.5)
    assert not late.exists()


def test_all_is_well(tmp_path, monkeypatch):
    monkeypatch.setattr(nightly, "JOBS", {"bad": "exit 3", "good": "true"})
    with pytest.raises(SystemExit) as ended:
        nightly.main(["--only", "good", "--output", str(tmp_path)])
    assert ended.value.code == 0


def test_what_the_jobs_run_is_there(tmp_path):
    for job in nightly.JOBS:
        command = nightly.command_of(job, 0, tmp_path)
        paths = [word for word in command.split() if word.startswith("tests/")]
        assert all((nightly.ROOT / path).exists() for path in paths), command
