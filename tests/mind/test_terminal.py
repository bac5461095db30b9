"""What every command does at a terminal, in a pipe, in a log file and on a full disk, whatever the command."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from mind.cli import main
from mind.cli.boundary import guarded
from mind.cli.terminal import note_loading, print_table, say
from mind.errors import MindError
from mind.files import naming, new_file, replacing_file, replacing_folder, saving
from mind.records import Key, Response
from mind.teacher.journal import Journal

ROOT = Path(__file__).resolve().parents[2]
MARKUP = ("[/b]", "[red]x[/red]", ":smile:", "[link=x]y[/link]", "\\[b]")
HOSTILE = (*MARKUP, "\x1b[31mred", "\x1b]0;title\x07", "\x9b2J", "a\rb", "\ud800", "\u202etxt", "\x08\x7f")


def raising(error):
    def run(*_, **__):
        raise error

    return run


def mind(*words, **options):
    """A process of the command line, whose output is buffered, whatever this one's is."""
    options["env"] = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT} | options
    return subprocess.Popen([sys.executable, "-m", "mind", *words], **options)


def test_output_that_nobody_reads_ends_in_silence():
    reader, writer = os.pipe()
    os.close(reader)
    process = mind("--help", stdout=writer)
    os.close(writer)
    assert (process.communicate()[1], process.returncode) == ("", 141)


@pytest.mark.parametrize(
    "words", ["--version", "data", "report --help", "completion bash", "help train", "data check q.jsonl"]
)
def test_output_of_every_command_that_nobody_reads_ends_in_silence(words, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    Path("q.jsonl").write_text('{"id": "a", "question": "1 + 1?", "answer": "2"}\n')
    reader, writer = os.pipe()
    os.close(reader)
    with monkeypatch.context() as patch, os.fdopen(writer, "w") as unread:
        patch.setattr(sys, "stdout", unread)
        assert main(words.split()) == 141
    assert capfd.readouterr().err == ""


def test_output_on_a_full_disk_is_told():
    with open("/dev/full", "w") as full:
        process = mind("--help", stdout=full)
        assert process.communicate()[1] == "mind: error: standard output: No space left on device\n"
    assert process.returncode == 2


@pytest.mark.parametrize("words", ["report --help", "completion zsh", "data", "data check q.jsonl", "--version"])
def test_output_of_every_command_on_a_full_disk_is_told(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("q.jsonl").write_text('{"id": "a", "question": "1 + 1?", "answer": "2"}\n')
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert main(words.split()) == 2
        monkeypatch.undo()
    assert capsys.readouterr().err == "mind: error: standard output: No space left on device\n"


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_closed_streams_take_nothing(closed, tmp_path):
    """As a daemon may start a process. What is opened later does not take their place."""
    (tmp_path / "r.jsonl").write_text('{"id": "a", "answer": "1", "response": "1"}\n')
    for source, status in (("r.jsonl", 0), ("none.jsonl", 2)):
        words = [sys.executable, "-m", "mind", "grade", source, "--output", "g.jsonl", "--overwrite"]
        command = ["sh", "-c", f'"$@" {closed}', "sh", *words]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert ended.returncode == status and "Traceback" not in ended.stderr
    assert json.loads((tmp_path / "g.jsonl").read_text())["correct"]


@pytest.mark.parametrize("words", ["grade none --output x", "trian", "report none"])
def test_errors_on_a_full_disk_keep_their_exit_status(words, monkeypatch):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stderr", full)
        assert main(words.split()) == 2
        monkeypatch.undo()


def test_another_broken_pipe_is_an_error(capfd):
    def run():
        raise BrokenPipeError(32, "Broken pipe", "worker")

    assert guarded("mind", run) == 2
    assert capfd.readouterr().err == "mind: error: worker: Broken pipe\n"


A_RUN = '{"output": "run", "student": {}, "data": {}, "train": {}}'
"""What config.json of a run says, of all files of that name."""


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has a total capacity of"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
    ids=repr,
)
def test_memory_that_ran_out_is_one_line(error, capsys):
    def run():
        error.add_note("to go on: mind train --resume")
        raise error

    assert guarded("mind", run) == 2
    line = capsys.readouterr().err
    assert line.startswith("mind: error: there is not enough memory") and line.count("\n") == 1
    assert line.endswith("; to go on: mind train --resume\n") and ": ;" not in line


def test_another_error_of_pytorch_is_a_bug():
    def run():
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError):
        guarded("mind", run)


@pytest.mark.parametrize("text", HOSTILE)
def test_text_from_outside_is_shown_and_not_obeyed(text, capsys):
    print_table(text, [{text: text, "count": "1"}])
    say(text)

    def run():
        raise MindError(f"train.jsonl:3: id {text} appears twice")

    assert guarded("mind", run) == 2
    captured = capsys.readouterr()
    for shown in captured:
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\ud800-\udfff]", shown)
        if text in MARKUP:
            assert text in shown
    assert captured.err.startswith("mind: error: train.jsonl:3: id ") and captured.err.count("\n") == 1


def test_a_further_line_does_not_look_like_another_message(capsys):
    def run():
        raise MindError("ids a\nmind: all is well appears twice")

    assert guarded("mind", run) == 2
    assert capsys.readouterr().err == "mind: error: ids a\n  mind: all is well appears twice\n"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_terminal_without_the_characters_gets_their_codes(encoding):
    command = "from mind.cli.terminal import *; set_up_terminal(); say('Zoë 雪'); print_table('雪', [{'é': '…'}])"
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    shown = subprocess.run([sys.executable, "-c", command], cwd=ROOT, env=environment, capture_output=True)
    assert (shown.returncode, shown.stderr) == (0, b"")
    assert "雪".encode(encoding, "backslashreplace") in shown.stdout


def test_everything_that_is_printed_goes_one_way():
    """Where something else prints, nothing keeps orders to the terminal out of it."""
    allowed = {"print(": ["cli/terminal.py", "progress.py", "grading/latex_worker.py"]}
    allowed["print("].append("report/student_card.py")  # in the code of a card
    allowed |= {"from rich": ["cli/terminal.py", "cli/watching.py"], "import tqdm": ["progress.py"]}
    for what, places in allowed.items():
        found = [
            str(file.relative_to(ROOT / "mind"))
            for file in sorted((ROOT / "mind").rglob("*.py"))
            if re.search(rf"(?<![\w.]){re.escape(what)}", file.read_text())
        ]
        assert found == sorted(places), what


LONG = "a" * 300


@pytest.mark.parametrize(
    "words",
    [
        f"grade r.jsonl --output {LONG}.jsonl",
        f"data word-problems --output {LONG}.jsonl",
        f"data import r.jsonl --output {LONG}.jsonl",
        f"filter folder --output {LONG}.jsonl",
        f"generate --output {LONG} --questions.path q.jsonl --teacher.model m --teacher.base-url http://127.0.0.1:9/v1",
        f"judge {LONG}",
        f"train --output {LONG}",
        f"train --data.train {LONG}",
        f"report {LONG}",
        f"evaluate --files {LONG}",
        "grade r.jsonl --output r.jsonl/graded.jsonl",
        "train --config .",
        "report .",
    ],
    ids=lambda words: words.replace(LONG, "LONG")[:40],
)
def test_what_the_system_refuses_is_one_line(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("r.jsonl").write_text('{"id": "a", "answer": "1", "response": "1"}\n')
    Path("q.jsonl").write_text('{"id": "a", "question": "1 + 1?", "answer": "2"}\n')
    assert main(words.split()) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("mind: error: ") and "Traceback" not in message


def test_a_write_that_fails_names_its_file(tmp_path):
    """The system names none: the file was opened long before, or is another one that takes its place."""
    file = tmp_path / "x.json"
    for context in (naming(file), replacing_file(file), saving(file)):
        full = open("/dev/full", "w")  # noqa: SIM115
        full.write("x")
        with pytest.raises(OSError, match=r"No space left on device: '.*/x.json'"), context:
            full.close()
    for context in (replacing_file(tmp_path / LONG), replacing_folder(tmp_path / LONG)):
        with pytest.raises(OSError, match=rf"File name too long: '.*/{LONG}'"), context as path:
            path.touch()
    with pytest.raises(OSError, match="cannot be written .*: '.*/x.json'"), saving(file):
        torch.save({"a": torch.zeros(9999)}, "/dev/full")
    with pytest.raises(FileNotFoundError, match="cannot be written .*: '.*/x.json'"), saving(file):
        save_file({"a": torch.zeros(1)}, tmp_path / "none" / "x")


def test_a_full_disk_does_not_hide_which_journal(tmp_path, monkeypatch):
    response = Response(Key("q", "p", 0), "d", "m", "text", "stop", 1, 1, 1, 0.0, "2026-01-01T00:00:00Z")
    with Journal(tmp_path / "responses.jsonl") as journal:
        monkeypatch.setattr("os.fsync", raising(OSError(28, "No space left on device")))
        with pytest.raises(OSError, match=r"No space left on device: '.*responses.jsonl'"):
            journal.append([response])


@pytest.mark.parametrize("name", ["a\0b", "a\ud800b"])
def test_a_name_that_no_file_can_have_is_told_first(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    config = {"output": name, "questions": {"path": "q.jsonl"}, "teacher": {"model": "m", "base_url": "http://x/v1"}}
    Path("generate.json").write_text(json.dumps(config))
    Path("train.json").write_text(json.dumps({"output": name}))
    Path("q.jsonl").write_text('{"id": "a", "question": "1 + 1?", "answer": "2"}\n')
    for words in (["train", "--config", "train.json"], ["generate", "--config", "generate.json"]):
        assert main(words) == 2
        assert "cannot be written" in capsys.readouterr().err.splitlines()[-1]
    with pytest.raises(MindError, match="cannot be written"):
        new_file(name)


DESTRUCTOR = """
import signal, sys, time
from mind.cli.boundary import guarded
from mind.cli.launch import end_when_told

signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
end_when_told()

class Slow:
    def __del__(self):
        print("ready", flush=True)
        time.sleep(60)

def run():
    slow = Slow()
    del slow
    time.sleep(60)

sys.exit(guarded("mind", run))
"""


@pytest.mark.parametrize(
    ("sent", "status", "message"),
    [
        (signal.SIGINT, 130, "mind: interrupted\n"),
        (signal.SIGTERM, 2, "mind: error: the launcher ends this process: somebody stopped the launch, or "),
    ],
)
def test_a_signal_in_a_destructor_is_not_lost(sent, status, message) -> None:
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", DESTRUCTOR], stdout=pipe, stderr=pipe, text=True, cwd=ROOT) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        process.send_signal(sent)
        _, told = process.communicate(timeout=50)
    assert process.returncode == status and told.startswith(message) and told.count("\n") == 1


def test_what_is_loaded_is_not_announced_again(monkeypatch, capsys):
    told = {
        (): "mind: loading PyTorch, transformers and json ...\n",
        ("torch",): "mind: loading transformers and json ...\n",
        ("torch", "transformers", "json"): "mind: loading json ...\n",  # a model of this name
    }
    for loaded, line in told.items():
        here = SimpleNamespace(modules=dict.fromkeys(loaded), stderr=sys.stderr)
        monkeypatch.setattr("mind.cli.terminal.sys", here)
        note_loading("PyTorch", "transformers", "json")
        assert capsys.readouterr().err == line
    note_loading("PyTorch", "transformers")
    assert capsys.readouterr().err == ""
