"""Whole runs through the command line: the run folder, kill -9 and resume, and every bad input by name."""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_run import expect_error, replaced, train_rows
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import NAMES

from mind.cli import main
from mind.config import flat
from mind.methods import METHODS, PRESETS


def state_of(folder):
    """The method's state at the end of a run; nan stands for what was never computed."""
    return flat(torch.load(folder / "calibration.pt", weights_only=True))


def same(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one.nan_to_num(-1), other.nan_to_num(-1))
    return one == other


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
        "starts.json",
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
    (start,) = json.loads((run / "starts.json").read_text())
    assert torch.__version__.startswith(start["versions"]["torch"]) and start["date"].endswith("Z")
    assert start["threads"] == torch.get_num_threads()
    assert evaluation["after"]["files"]["test"]["interval"][0] >= 0
    assert main(["report", str(run)]) == 0
    files = f"--heldout {tmp_path}/train.jsonl --files {tmp_path}/test.jsonl --output {tmp_path}/e.json"
    options = f"--student.model {run}/student --evaluation.max-new-tokens 4 {files}"
    assert main(["evaluate", *options.split()]) == 0
    assert json.loads((tmp_path / "e.json").read_text())["heldout"]["rationales"] == 27
    *_, place = capsys.readouterr().out.splitlines()  # and nothing to type: the student of a run is trained
    assert place == f"{tmp_path}/e.json: the results; {tmp_path}/e.responses: the responses"
    base = arguments[arguments.index("--student.model") + 1]
    words = ["evaluate", "--student.model", base, "--files", f"{tmp_path}/test.jsonl", "--evaluation.questions", "1"]
    assert main([*words, "--evaluation.max-new-tokens", "4"]) == 0
    *_, following = capsys.readouterr().out.splitlines()
    command = shlex.split(following.partition(": ")[2])
    assert command[:4] == ["mind", "train", "--student.model", base]
    assert main(replaced(command[1:], "--data.train", "none.jsonl")) == 2
    assert capsys.readouterr().err.endswith("none.jsonl: no such file\n")


def test_the_next_command_can_be_typed(tmp_path, arguments, capsys):
    assert main(replaced(arguments, "--train.max-steps", "2")) == 0
    *_, following = capsys.readouterr().out.splitlines()
    command = shlex.split(following.partition(": ")[2])
    assert command[:2] == ["mind", "train"] and main(command[1:]) == 0
    config = json.loads((tmp_path / "run-sft" / "config.json").read_text())
    assert config["method"] == "sft" and config["train"]["max_steps"] == 2
    assert "questions: mind evaluate" in capsys.readouterr().out.splitlines()[-1]


@pytest.mark.parametrize("targets", ["q_proj v_proj", "lm_head q_proj", "embed_tokens v_proj"])
def test_lora_leaves_a_plain_student(targets, tmp_path, arguments):
    """The saved student is the one that was evaluated, though embeddings and head were one matrix before."""
    from transformers import AutoModelForCausalLM

    heldout = str(tmp_path / "train.jsonl")
    changes = {"--train.max-steps": "3", "--train.learning-rate": "0.02", "--data.heldout": heldout}
    arguments = replaced(arguments, *(part for change in changes.items() for part in change))
    assert main([*arguments, "--student.lora", "--student.lora-targets", *targets.split()]) == 0
    run = tmp_path / "run"
    status = json.loads((run / "status.json").read_text())
    assert 0 < status["trained_parameters"] < 0.5 * status["student_parameters"]
    student = AutoModelForCausalLM.from_pretrained(run / "student")
    assert not any("lora" in name for name, _ in student.named_parameters())
    adapters = load_file(run / "checkpoint-3" / "adapter_model.safetensors")
    assert all(tensor.abs().max() > 0 for tensor in adapters.values())  # LoRA's B, or A of an embedding, begins as 0
    options = f"evaluate --student.model {run}/student --heldout {heldout} --output {tmp_path}/e.json"
    assert main(options.split()) == 0
    saved = json.loads((tmp_path / "e.json").read_text())["heldout"]["nll"]
    evaluation = json.loads((run / "evaluation.json").read_text())
    assert saved == pytest.approx(evaluation["after"]["heldout"]["nll"], rel=1e-6)
    assert abs(saved - evaluation["before"]["heldout"]["nll"]) > 0.01


LAUNCHER = """
import json, os, signal, sys
import mind.cli.commands, mind.run.metrics, mind.run.train, mind.run_folder
import mind.methods.mind.calibration
import transformers.models.llama.modeling_llama

def kill(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

def kill_at(when):
    if when == "step":
        plain = mind.run.metrics.ProgressBar.on_step_end
        def on_step_end(self, args, state, control, **rest):
            plain(self, args, state, control, **rest)
            if state.global_step == 8:
                kill()
        mind.run.metrics.ProgressBar.on_step_end = on_step_end
    elif when == "save":
        plain = mind.run_folder.RunFolder.save_method
        def save_method(self, state, networks, checkpoint=None):
            kill() if checkpoint and checkpoint.name == "checkpoint-9" else plain(self, state, networks, checkpoint)
        mind.run_folder.RunFolder.save_method = save_method
    elif when == "warm-up":
        mind.methods.mind.calibration.Calibrator.warm_up = kill

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


@pytest.fixture(scope="module")
def launch(tmp_path_factory):
    """Runs a command in a process of its own, killed at the named point, and returns its exit status.

    The processes are forks of one that has imported everything, which takes longer than such a run.
    """
    folder = tmp_path_factory.mktemp("launcher")
    environment = os.environ | {
        "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
        "OMP_NUM_THREADS": "1",
        "MIND_CACHE": str(folder / "cache"),
    }
    with (
        (folder / "errors").open("w") as errors,
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
            assert answer in ("0\n", "-9\n"), (folder / "errors").read_text()
            return int(answer)

        yield run
        launcher.stdin.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "kills"),
    [
        pytest.param("mind", ("step", "save", "warm-up"), id="mind"),
        pytest.param("sft", ("step", "save"), id="sft", marks=pytest.mark.nightly),
    ],
)
def test_killed_and_resumed_equals_uninterrupted(method, kills, tmp_path, arguments, launch):
    straight = tmp_path / method
    given = [*arguments, "--method", method, "--train.log-steps", "5"]  # the checkpoints lie between two lines
    assert launch("never", replaced(given, "--output", str(straight))) == 0
    for when in kills:
        output = tmp_path / f"{method}-{when}"
        assert launch(when, replaced(given, "--output", str(output))) == -9
        assert not (output / "student").exists()
        assert launch("never", ["train", "--output", str(output), "--resume"]) == 0
        assert train_rows(output) == train_rows(straight), (method, when)
        assert [row["step"] for row in train_rows(output)] == [5, 10, 12]
        assert not [path for path in output.rglob("*") if path.suffix in (".partial", ".former")]
        events = EventAccumulator(str(output / "tensorboard")).Reload().Scalars("train/loss")
        assert [event.step for event in events] == [5, 10, 12]
        evaluations = [(folder / "evaluation.json").read_text() for folder in (straight, output)]
        assert evaluations[0] == evaluations[1], (method, when)
        weights = [load_file(folder / "student" / "model.safetensors") for folder in (straight, output)]
        for name, value in weights[0].items():
            assert torch.equal(value, weights[1][name]), name
        states = [state_of(folder) for folder in (straight, output)]
        assert states[0].keys() == states[1].keys() and bool(states[0]) == (method == "mind")
        for name, value in states[0].items():
            assert same(value, states[1][name]), name
        shutil.rmtree(output)


def test_runs_in_one_process_do_not_disturb_one_another(tmp_path, arguments, launch, monkeypatch):
    """Each has what it has in a process of its own: metrics, weights, generated answers, and events of TensorBoard."""
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "elsewhere"))
    runs = {
        "sft": replaced(arguments, "--method", "sft", "--train.max-steps", "3", "--train.seed", "5"),
        "mind": replaced(arguments, "--train.max-steps", "3"),
    }
    environment = dict(os.environ)
    for name, given in runs.items():
        assert launch("never", replaced(given, "--output", str(tmp_path / "alone" / name))) == 0
        assert main(replaced(given, "--output", str(tmp_path / "together" / name))) == 0
    assert dict(os.environ) == environment
    for name in runs:
        alone, together = (tmp_path / where / name for where in ("alone", "together"))
        assert train_rows(alone) == train_rows(together) and len(train_rows(together)) == 3
        assert (alone / "evaluation.json").read_text() == (together / "evaluation.json").read_text()
        weights = [load_file(folder / "student" / "model.safetensors") for folder in (alone, together)]
        assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())
        (events,) = (together / "tensorboard").iterdir()
        scalars = EventAccumulator(str(events)).Reload().Scalars("train/loss")
        expected = [(row["step"], pytest.approx(row["loss"])) for row in train_rows(together)]
        assert [(scalar.step, scalar.value) for scalar in scalars] == expected
    assert not (tmp_path / "elsewhere").exists()


def test_the_metrics_go_where_they_are_wanted(tmp_path, arguments, capsys, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "wandb" else real(name, *rest))
    given = replaced(arguments, "--train.max-steps", "1")
    expect_error([*given, "--train.report-to", "wandb"], capsys, "train.report_to is wandb", "pip install wandb")
    assert not (tmp_path / "run").exists()
    assert main([*given, "--train.report-to", "none"]) == 0
    assert not (tmp_path / "run" / "tensorboard").exists() and len(train_rows(tmp_path / "run")) == 1


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
    expect_error([*arguments, "--student.attention", "flex_attention"], capsys, "cannot train with it on a CPU")
    expect_error(
        [*arguments, "--method", "magic"],
        capsys,
        "method is 'magic': expected one of " + ", ".join(sorted([*METHODS, *PRESETS])),
    )
    with monkeypatch.context() as patch:
        patch.setenv("WORLD_SIZE", "2")
        patch.setattr(signal, "signal", lambda *_: None)  # else SIGTERM stays ignored
        expect_error(arguments, capsys, "WORLD_SIZE is 2 and RANK and LOCAL_RANK and MASTER_ADDR")
    (model_folder / "chat_template.jinja").unlink()
    expect_error(arguments, capsys, "no chat template")
    assert not (tmp_path / "run").exists()


def test_an_occupied_output_is_refused(tmp_path, arguments, capsys):
    run = tmp_path / "run"
    run.mkdir()
    (run / "notes.txt").write_text("mine")
    expect_error(arguments, capsys, str(run), "not an empty folder")
    (run / "config.json").write_text('{"output": "run", "student": {}, "data": {}, "train": {}}')
    expect_error(arguments, capsys, str(run), "already holds a run", "--resume")
    assert sorted(p.name for p in run.iterdir()) == ["config.json", "notes.txt"]


def test_resume_needs_a_run_and_keeps_its_configuration(tmp_path, arguments, capsys):
    expect_error([*arguments, "--resume"], capsys, "no run to resume")
    from mind.config import MindConfig
    from mind.typed_json import save_json

    (tmp_path / "run").mkdir()
    save_json(MindConfig(output=str(tmp_path / "run")), tmp_path / "run" / "config.json")
    resume = ["train", "--output", str(tmp_path / "run"), "--resume"]
    expect_error([*resume, "--train.seed", "5"], capsys, "train.seed (0 there)")
    expect_error([*resume, "--method", "sft"], capsys, "method (mind there)")


def test_unknown_commands_show_the_usage(capsys):
    assert main(["nonsense"]) == 2
    assert "unknown command nonsense" in capsys.readouterr().err
    assert main([]) == 2 and main(["--help"]) == 0
