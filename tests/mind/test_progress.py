"""Bars and colors on a terminal, and what a log file gets in their place."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from terminal_process import ROOT, on_a_terminal

from mind.data.problems import Problems
from mind.data.rows import file_rows
from mind.progress import Progress, tracked

HELP = "import sys; from mind.cli import main; main({!r})"


def test_no_color_is_no_escape_at_all():
    table = "from mind.cli.terminal import print_table; print_table('title', [{'a': 'b'}])"
    for command in (HELP.format(["grade", "--help-all"]), table):
        assert "\x1b[" in on_a_terminal(command)
        plain = on_a_terminal(command, NO_COLOR="1")
        assert "\x1b" not in plain and len(plain) > 20


def test_a_log_file_of_errors_has_no_colors_while_the_output_is_a_terminal(tmp_path):
    log = tmp_path / "log"
    on_a_terminal(f"import os; os.dup2(os.open({str(log)!r}, os.O_WRONLY | os.O_CREAT), 2)\n" + HELP.format(["grade"]))
    assert "--output are missing" in log.read_text() and "\x1b" not in log.read_text()


STEPS = """
import time
from mind.data.problems import Problems
from mind.data.rows import file_rows
from mind.progress import Progress, tracked
with Progress("training", 40, "step", stay=True) as bar:
    for step in range(40):
        bar.say("loss 1.234, 512 tokens/s, selected " + "+".join(["formal-symbolic", "intuitive", "socratic"]))
        bar.update(1)
        time.sleep(0.005)
"""


@pytest.mark.parametrize("columns", [0, 60, 80, 200])
def test_a_bar_keeps_its_cells_in_any_terminal(columns):
    frames = [frame for frame in re.split(r"[\r\n]+|\x1b\[A", on_a_terminal(STEPS, columns)) if frame.strip()]
    assert len(frames) > 1 and max(map(len, frames)) <= (columns or 80)
    assert all(re.search(r"training: +\d+%\|.{10}\| \d+/40 \[", frame) for frame in frames)
    assert "loss 1.2" in frames[-1] and "100%" in frames[-1]


def test_a_log_file_gets_plain_lines(capsys, monkeypatch):
    monkeypatch.setattr("mind.progress.LINE_EVERY_S", 0)
    with Progress("answers\x1b", 12, "answer", done=2) as bar:
        for _ in range(2):
            bar.say("1 failed")
            bar.update(5)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "answers\ufffd: 7 of 12 answers in 00:00, about 00:00 left, 1 failed"
    assert lines[1:] == ["answers\ufffd: 12 of 12 answers in 00:00, 1 failed"]


def test_a_log_file_gets_few_lines(capsys):
    with Progress("training", 1000, "step") as bar:
        for done in range(1, 701):
            bar.reach(done)
    assert re.fullmatch(r"training: 700 of 1,000 steps in 00:00, about 00:00 left\n", capsys.readouterr().err)
    with Progress("nothing", 5, "step"):
        pass
    assert capsys.readouterr().err == ""


def test_the_first_line_of_a_log_file_comes_soon(capsys, monkeypatch):
    clock = iter(range(0, 1000, 2))  # two seconds pass from look to look
    monkeypatch.setattr("mind.progress.time.monotonic", lambda: next(clock))
    with Progress("features", 40, "text") as bar:
        for done in range(1, 21):
            bar.reach(done)
    told = [int(line.split()[1]) for line in capsys.readouterr().err.splitlines()]
    assert told == [3, 18, 20]  # after 6 seconds, 30 seconds after that line, and at the end


def test_what_is_done_soon_says_nothing(capsys, monkeypatch):
    assert list(tracked([1, 2, 3], "texts", "text")) == [1, 2, 3] and capsys.readouterr().err == ""
    clock = iter(range(0, 1000, 2))
    monkeypatch.setattr("mind.progress.time.monotonic", lambda: next(clock))
    assert len(list(tracked(range(20), "texts", "text"))) == 20
    told = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"texts: 3 of 20 texts in 00:08, about 00:45 left", told[0])
    assert told[-1].startswith("texts: 20 of 20 texts in")


LATE = """
from mind.progress import tracked
for _ in tracked(range(40), "texts", "text"): {}
"""


def test_a_bar_of_what_is_done_soon_is_not_drawn():
    assert on_a_terminal(LATE.format("pass"), 80) == ""
    slow = "import mind.progress, time; mind.progress.FIRST_LINE_S = 0.1" + LATE.format("time.sleep(0.02)")
    assert "texts:" in on_a_terminal(slow, 80)


def test_a_large_file_shows_how_far_it_is_read(tmp_path, capsys, monkeypatch):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"id": "' + 2000 * "a" + '"}\n' + 19 * ('{"id": "' + 1014 * "b" + '"}\n'))
    assert len(list(file_rows(file, Problems(file)))) == 20 and capsys.readouterr().err == ""
    monkeypatch.setattr("mind.progress.FIRST_LINE_S", 0)
    assert next(file_rows(file, Problems(file)))[1]["id"].startswith("aa")
    list(file_rows(file, Problems(file)))
    first = capsys.readouterr().err.splitlines()[0]
    assert re.search(r"rows.jsonl: 2 of 21 kilobytes in 00:00, about 00:00 left$", first)


def test_a_small_file_is_a_kilobyte_and_an_empty_one_has_no_bar(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("mind.progress.FIRST_LINE_S", 0)
    small, empty = tmp_path / "small.jsonl", tmp_path / "empty.jsonl"
    small.write_text('{"id": "a"}\n')
    empty.touch()
    assert len(list(file_rows(small, Problems(small)))) == 1
    assert capsys.readouterr().err == f"rows of {small}: 1 of 1 kilobytes in 00:00\n"
    monkeypatch.setattr("mind.data.rows.Progress", None)
    assert list(file_rows(empty, Problems(empty))) == []


def test_libraries_draw_no_bars_in_log_files():
    command = "import os; from mind.cli import main; main(['--version']); from tqdm import tqdm; list(tqdm(range(9)))"
    shown = subprocess.run([sys.executable, "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert shown.stderr == "" and shown.stdout.startswith("mind ")


def test_a_line_before_anything_is_done(capsys, monkeypatch):
    monkeypatch.setattr("mind.progress.LINE_EVERY_S", 0)
    with Progress("answers", 12, "answer", done=2) as bar:
        bar.update(0)
    assert "answers: 2 of 12 answers in 00:00" in capsys.readouterr().err
