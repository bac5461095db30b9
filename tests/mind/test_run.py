"""Whole runs through the command line: the run folder, kill -9 and resume, and every bad input by name."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import NAMES, build_questions

from mind.cli import main
from mind.data.questions import save_questions

TIMING = ("step_s", "tokens_per_s", "peak_rss_mib")


@pytest.fixture
def arguments(tmp_path, model_folder):
    """A small run: 12 steps, a checkpoint every 3, MetaNet's window of 4 open across checkpoints."""
    save_questions(build_questions(10), tmp_path / "train.jsonl")
    save_questions(build_questions(4), tmp_path / "test.jsonl")
    return [
        "train",
        "--output",
        str(tmp_path / "run"),
        "--student.model",
        str(model_folder),
        "--student.max-length",
        "512",
        "--data.train",
        str(tmp_path / "train.jsonl"),
        "--data.evaluation",
        str(tmp_path / "test.jsonl"),
        "--data.perspectives",
        *NAMES,
        "--train.questions-per-step",
        "2",
        "--train.max-steps",
        "12",
        "--train.save-steps",
        "3",
        "--train.learning-rate",
        "1e-3",
        "--metanet.width",
        "16",
        "--metanet.ema",
        "0.5",
        "--metanet.learning-rate",
        "1e-2",
        "--metanet.warmup-epochs",
        "3",
        "--evaluation.max-new-tokens",
        "8",
    ]


def replaced(arguments, *changes):
    """The arguments with the options of `changes` ("--name", "value", ...) in place of their own."""
    arguments = list(arguments)
    for name, value in zip(changes[::2], changes[1::2], strict=True):
        if name in arguments:
            arguments[arguments.index(name) + 1] = value
        else:
            arguments += [name, value]
    return arguments


def train_rows(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in TIMING} for row in rows if row["phase"] == "train"]


def test_the_run_folder_holds_everything(tmp_path, arguments, capsys):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert main(arguments) == 0
    run = tmp_path / "run"
    for name in (
        "config.json",
        "metrics.jsonl",
        "evaluation.json",
        "status.json",
        "report.html",
        "calibration.pt",
        "metanet.safetensors",
        "student/model.safetensors",
        "checkpoint-12/model.safetensors",
        "checkpoint-12/metanet.safetensors",
        "checkpoint-12/calibration.pt",
        "responses/after/test.jsonl",
    ):
        assert (run / name).is_file(), name
    assert list((run / "tensorboard").glob("events.out.tfevents.*"))
    assert not list(run.rglob("*.partial"))
    AutoModelForCausalLM.from_pretrained(run / "student")
    AutoTokenizer.from_pretrained(run / "student")
    rows = train_rows(run)
    assert [row["step"] for row in rows] == list(range(1, 13)) and set(rows[0]["l_real"]) == set(NAMES)
    evaluation = json.loads((run / "evaluation.json").read_text())
    for when in ("before", "after"):
        assert evaluation[when]["heldout"]["nll"] > 0 and evaluation[when]["files"]["test"]["total"] == 4
    assert "before and after" in capsys.readouterr().out
    assert main(["report", str(run)]) == 0
    assert (
        main(
            [
                "evaluate",
                "--student.model",
                str(run / "student"),
                "--heldout",
                str(tmp_path / "train.jsonl"),
                "--files",
                str(tmp_path / "test.jsonl"),
                "--evaluation.max-new-tokens",
                "4",
                "--output",
                str(tmp_path / "e.json"),
            ]
        )
        == 0
    )
    assert json.loads((tmp_path / "e.json").read_text())["heldout"]["rationales"] == 27


def test_lora_leaves_a_plain_student(tmp_path, arguments):
    from transformers import AutoModelForCausalLM

    arguments = replaced(arguments, "--train.max-steps", "2")
    assert main([*arguments, "--student.lora", "--student.lora-targets", "q_proj", "v_proj"]) == 0
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert 0 < status["trained_parameters"] < 0.2 * status["student_parameters"]
    student = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "student")
    assert not any("lora" in name for name, _ in student.named_parameters())


LAUNCHER = """
import json, os, signal, sys
import mind.cli, mind.report, mind.run.metrics, mind.run.train, mind.run.trainer
import transformers.models.llama.modeling_llama

def kill():
    os.kill(os.getpid(), signal.SIGKILL)

def kill_at(when):
    if when == "step":
        plain = mind.run.metrics.MetricsCallback.on_step_end
        def on_step_end(self, args, state, control, **rest):
            plain(self, args, state, control, **rest)
            if state.global_step == 8:
                kill()
        mind.run.metrics.MetricsCallback.on_step_end = on_step_end
    elif when == "save":
        plain = mind.run.trainer.save_calibration
        def save_calibration(calibrator, folder):
            kill() if folder.name == "checkpoint-9" else plain(calibrator, folder)
        mind.run.trainer.save_calibration = save_calibration
    elif when == "warm-up":
        mind.methods.mind.calibration.Calibrator.warm_up = lambda *_: kill()

for line in sys.stdin:
    when, arguments = json.loads(line)
    if (child := os.fork()) == 0:
        os.dup2(2, 1)
        kill_at(when)
        status = mind.cli.main(arguments)
        sys.stderr.flush()
        os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture
def launch(tmp_path):
    """Runs a command in a process of its own, killed at the named point, and returns its exit status.

    The processes are forks of one that has imported everything, which takes longer than such a run.
    """
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2]), "OMP_NUM_THREADS": "1"}
    with (
        (tmp_path / "errors").open("w") as errors,
        subprocess.Popen(
            [sys.executable, "-c", LAUNCHER],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        ) as launcher,
    ):

        def run(when, arguments):
            print(json.dumps([when, arguments]), file=launcher.stdin, flush=True)
            answer = launcher.stdout.readline()
            assert answer, (tmp_path / "errors").read_text()
            return int(answer)

        yield run
        launcher.stdin.close()


@pytest.mark.slow
def test_killed_and_resumed_equals_uninterrupted(tmp_path, arguments, launch):
    errors = tmp_path / "errors"
    assert launch("never", replaced(arguments, "--output", str(tmp_path / "straight"))) == 0, errors.read_text()
    expected = train_rows(tmp_path / "straight")
    for when in ("step", "save", "warm-up"):
        output = tmp_path / when
        assert launch(when, replaced(arguments, "--output", str(output))) == -9
        assert not (output / "student").exists()
        assert launch("never", ["train", "--output", str(output), "--resume"]) == 0, errors.read_text()
        assert train_rows(output) == expected, when
        states = [torch.load(tmp_path / name / "calibration.pt", weights_only=True) for name in ("straight", when)]
        for name, value in states[0]["metanet"].items():
            assert torch.equal(value, states[1]["metanet"][name]), name
        for name, value in states[0]["average"].items():
            torch.testing.assert_close(value, states[1]["average"][name], rtol=0, atol=0, equal_nan=True, msg=name)
        shutil.rmtree(output)


def expect_error(arguments, capsys, *parts):
    assert main(arguments) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    for part in ("mind: error:", *parts):
        assert part in message, message


def test_bad_input_is_named_and_leaves_nothing(tmp_path, arguments, model_folder, capsys, monkeypatch):
    good = json.loads((tmp_path / "train.jsonl").read_text().splitlines()[0])
    bad = tmp_path / "bad.jsonl"

    def with_line(line):
        bad.write_text(json.dumps(good) + "\n" + line + "\n")
        return replaced(arguments, "--data.train", str(bad))

    expect_error(replaced(arguments, "--data.train", "nowhere.jsonl"), capsys, "nowhere.jsonl")
    expect_error(with_line('{"id": '), capsys, "bad.jsonl:2")
    expect_error(
        with_line(json.dumps({k: v for k, v in good.items() if k != "answer"} | {"id": "x"})),
        capsys,
        "bad.jsonl:2",
        "answer",
    )
    strange = good | {"id": "x", "rationales": [{"perspective": "odd", "text": "t"}] + good["rationales"]}
    expect_error(with_line(json.dumps(strange)), capsys, "bad.jsonl:2", "odd")
    long = good | {"id": "x", "rationales": [r | {"text": "1" * 600} for r in good["rationales"]]}
    expect_error(with_line(json.dumps(long)), capsys, "question x", "student.max_length is 512")
    expect_error(replaced(arguments, "--student.max-length", "4096"), capsys, "student.max_length is 4096", "512")
    expect_error(replaced(arguments, "--student.model", str(tmp_path / "none")), capsys, "student.model")
    expect_error(replaced(arguments, "--objective.beta", "1.5"), capsys, "objective.beta is 1.5")
    expect_error(replaced(arguments, "--data.perspectives", "one"), capsys, "first")
    expect_error(["train", "--data.perspectives", "one", "--output", str(tmp_path / "run")], capsys, "K = 1")
    expect_error([*arguments, "--train.pack-length", "20"], capsys, "its prompt alone has", "train.pack_length is 20")
    expect_error(
        replaced([*arguments, "--train.tokens-per-step", "20"], "--train.questions-per-step", "None"),
        capsys,
        "its prompt alone has",
        "train.tokens_per_step is 20",
    )
    expect_error([*arguments, "--student.attention", "flash_attention_2"], capsys, "flash_attention_2", "installed")
    expect_error([*arguments, "--student.attention", "flex_attention"], capsys, "no backward pass of it on a CPU")
    with monkeypatch.context() as patch:
        patch.setenv("WORLD_SIZE", "2")
        expect_error(arguments, capsys, "this launch has 2 processes")
    (model_folder / "chat_template.jinja").unlink()
    expect_error(arguments, capsys, "no chat template")
    assert not (tmp_path / "run").exists()


def test_an_occupied_output_is_refused(tmp_path, arguments, capsys):
    run = tmp_path / "run"
    run.mkdir()
    (run / "notes.txt").write_text("mine")
    expect_error(arguments, capsys, str(run), "not an empty folder")
    (run / "config.json").write_text("{}")
    expect_error(arguments, capsys, str(run), "already holds a run", "--resume")
    assert sorted(p.name for p in run.iterdir()) == ["config.json", "notes.txt"]


def test_resume_needs_a_run_and_keeps_its_configuration(tmp_path, arguments, capsys):
    expect_error([*arguments, "--resume"], capsys, "no run to resume")
    from mind.config import MindConfig
    from mind.typed_json import save_json

    (tmp_path / "run").mkdir()
    save_json(MindConfig(output=str(tmp_path / "run")), tmp_path / "run" / "config.json")
    expect_error(
        ["train", "--output", str(tmp_path / "run"), "--resume", "--train.seed", "5"], capsys, "train.seed (0 there)"
    )


def test_unknown_commands_show_the_usage(capsys):
    assert main(["nonsense"]) == 2
    assert "unknown command nonsense" in capsys.readouterr().err
    assert main([]) == 2 and main(["--help"]) == 0
