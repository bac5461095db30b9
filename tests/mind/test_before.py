"""What cannot work is said before it begins: no folder is made, nothing that is there is touched, no result is lost."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import shutil
import threading
from pathlib import Path

import pytest
import torch
from small_run import content, expect_error, replaced, train_rows, write_student
from tiny import build_model, build_questions

import mind
from mind.cli import main
from mind.data.questions import save_questions
from mind.errors import MindError
from mind.evaluation.labels import evaluation_labels
from mind.methods import load_run_config
from mind.records import Rationale
from mind.run_folder import RunFolder

OPTIONS = {
    ("--student.attention", "sdp"): "student.attention is 'sdp': expected one of auto, eager",
    ("--student.attention", "flash_attention"): "student.attention is 'flash_attention': expected one of",
    ("--student.attention", "paged|eager"): "student.attention is 'paged|eager': expected one of",
    ("--train.lr-scheduler", "reduce_lr_on_plateau"): "train.lr_scheduler is 'reduce_lr_on_plateau': expected one of",
    ("--train.lr-scheduler", "Cosine"): "train.lr_scheduler is 'Cosine': expected one of",
    ("--objective.backend", ""): "--objective.backend is empty: expected a value",
    ("--objective.backend", "CPP"): "objective.backend CPP: backend is 'CPP': expected",
    ("--student.lora-alpha", "0"): "student.lora_alpha is 0: expected at least 1",
    ("--train.max-steps", "100000000000"): "train.max_steps is 100000000000: expected -1 or 1 to 10,000,000",
    ("--train.weight-decay", "nan"): "train.weight_decay is nan: expected a finite number",
    ("--metanet.encoder", ""): "--metanet.encoder is empty: expected a value",
    ("--data.train", ""): "--data.train is empty: expected a value",
    ("--output", ""): "--output is empty: expected a value",
    ("--method", ""): "--method is empty: expected a value",
}


@pytest.mark.parametrize(("given", "message"), OPTIONS.items(), ids=" ".join)
def test_an_option_that_cannot_work_is_named_before_data_are_read(
    tmp_path, two_steps, capsys, monkeypatch, given, message
):
    monkeypatch.setattr("mind.run.data.load_data", lambda config: pytest.fail("options come first"))
    expect_error(replaced(two_steps, *given), capsys, message)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("service", ["tensorboard", "wandb"])
def test_a_service_that_is_not_installed_is_named(tmp_path, two_steps, capsys, monkeypatch, service):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == service else real(name, *rest))
    expect_error(replaced(two_steps, "--train.report-to", service), capsys, f"pip install {service}")
    assert not (tmp_path / "run").exists()


def test_a_machine_that_cannot_compile_is_named(tmp_path, two_steps, capsys, monkeypatch):
    def compile(function):
        raise RuntimeError("Failed to find C++ compiler.\nPlease specify one")

    monkeypatch.setattr(torch, "compile", compile)
    expect_error(
        [*two_steps, "--train.compile"], capsys, "train.compile: torch cannot compile here: RuntimeError: Fail"
    )
    assert not (tmp_path / "run").exists()


def test_what_transformers_refuses_is_named(tmp_path, two_steps, capsys, monkeypatch):
    def refuse(**_):
        raise ValueError("Your setup doesn't support bf16/gpu.")

    monkeypatch.setattr("mind.run.arguments.TrainingArguments", refuse)
    expect_error(two_steps, capsys, "train: transformers refuses its options: Your setup doesn't support bf16/gpu.")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("file", "file: is a file: expected a folder"),
        ("file/run", "file: is a file: expected a folder"),
        ("x" * 300, "File name too long"),
        ("new/" + "x" * 300, "File name too long"),
        ("loop/run", "Too many levels of symbolic links"),
        ("/dev/null", "/dev/null: is a device: expected a folder"),
        ("run\udcff", "'run\\udcff': cannot be written by every library: expected a name in UTF-8"),
        ("new\udcff/run", "'new\\udcff/run': cannot be written by every library"),
    ],
)
def test_a_place_that_cannot_be_a_folder_is_named(tmp_path, two_steps, capsys, monkeypatch, place, message):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("mine")
    Path("loop").symlink_to("loop")
    monkeypatch.setattr("mind.run.data.load_data", lambda config: pytest.fail("the place comes first"))
    before = content(tmp_path)
    expect_error(replaced(two_steps, "--output", place), capsys, message)
    assert content(tmp_path) == before


def test_a_student_that_cannot_follow_an_option_is_named(tmp_path, two_steps, capsys):
    small = write_student(tmp_path / "small", build_model(max_position_embeddings=128))
    given = replaced(two_steps, "--student.model", small)
    expect_error(given, capsys, "student.max_length is 512: the context of", "is 128 tokens")
    given = replaced(given, "--student.max-length", "128", "--evaluation.max-new-tokens", "100")
    expect_error(given, capsys, "with evaluation.max_new_tokens 100 that exceeds the model's context of 128")
    assert not (tmp_path / "run").exists()


def test_a_student_that_cannot_be_saved_is_named(tmp_path, two_steps, model_folder, capsys):
    """transformers loads such a configuration, and refuses to write it."""
    file = model_folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"output_attentions": True}))
    message = f"student.model {model_folder}: transformers could not save it: "
    expect_error(two_steps, capsys, message, "`output_attentions` attribute is not supported")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("options", [[], ["--student.lora"]])
def test_a_quantized_student_is_named(tmp_path, two_steps, model_folder, capsys, monkeypatch, options):
    monkeypatch.setattr("transformers.LlamaForCausalLM.is_quantized", True, raising=False)
    monkeypatch.setattr("transformers.LlamaForCausalLM.quantization_method", "bitsandbytes", raising=False)
    message = f"student.model {model_folder}: its weights are quantized (bitsandbytes), so they cannot be trained"
    expect_error([*two_steps, *options], capsys, message)
    assert not (tmp_path / "run").exists()


def test_a_student_that_cannot_recompute_is_named(tmp_path, two_steps, capsys, monkeypatch):
    monkeypatch.setattr("transformers.LlamaForCausalLM.supports_gradient_checkpointing", False)
    expect_error(
        [*two_steps, "--train.gradient-checkpointing"], capsys, "gradient_checkpointing: LlamaForCausalLM cannot"
    )
    assert not (tmp_path / "run").exists()


CONFIGURATIONS = {
    "a folder": (lambda file: file.mkdir(), "c.json: is a folder: expected a file"),
    "not there": (lambda file: None, "c.json: no such file"),
    "not UTF-8": (lambda file: file.write_bytes(b'{"output": "\xff"}'), "c.json: not UTF-8 text"),
    "UTF-16": (lambda file: file.write_text("{}", "utf-16"), "c.json: not UTF-8 text but UTF-16"),
    "nested": (lambda file: file.write_text("[" * 100_000), "c.json: cannot be read: brackets are nested too deep"),
    "digits": (
        lambda file: file.write_text('{"train": {"seed": ' + "7" * 5000 + "}}"),
        "c.json: cannot be read: a number has 5,000 digits",
    ),
    "twice": (lambda file: file.write_text('{"output": "a", "output": "b"}'), 'an object has "output" twice'),
    "a list": (lambda file: file.write_text("[]"), "c.json: expected a JSON object, found []"),
    "empty": (lambda file: file.write_text(""), "c.json: is empty: expected JSON"),
    "a loop": (lambda file: file.symlink_to(file), "Too many levels of symbolic links"),
}


@pytest.mark.parametrize(("write", "message"), CONFIGURATIONS.values(), ids=CONFIGURATIONS)
def test_a_configuration_that_cannot_be_read_is_named(tmp_path, two_steps, capsys, write, message):
    write(tmp_path / "c.json")
    expect_error([*two_steps, "--config", str(tmp_path / "c.json")], capsys, message)
    expect_error(["data", "generate", "--config", str(tmp_path / "c.json")], capsys, message)
    assert not (tmp_path / "run").exists()


def test_results_need_different_names(tmp_path):
    assert evaluation_labels(["a/t.jsonl", "b/u.jsonl"]) == {"t": "a/t.jsonl", "u": "b/u.jsonl"}
    assert evaluation_labels(()) == {} and evaluation_labels(["t.jsonl"], taken=["word-problems"]) == {"t": "t.jsonl"}
    for files, other in {
        ("a/t.jsonl", "b/t.jsonl"): "b/t.jsonl and a/t.jsonl are both named t",
        ("t.jsonl", "t.jsonl"): "t.jsonl and t.jsonl are both named t",
        ("t.parquet", "u.jsonl", "t.jsonl"): "t.jsonl and t.parquet are both named t",
        ("x/word-problems.jsonl",): "x/word-problems.jsonl and the built-in questions are both named word-problems",
    }.items():
        with pytest.raises(MindError, match=other):
            evaluation_labels(files, taken=["word-problems"])
    for name in ("x" * 241, "\u00e9" * 121):  # the responses are written beside, by a longer name
        with pytest.raises(MindError, match="File name too long"):
            evaluation_labels([f"a/{name}.jsonl"])


@pytest.fixture
def evaluate(tmp_path, model_folder):
    save_questions(build_questions(2), tmp_path / "test.jsonl")
    options = "--evaluation.max-new-tokens 2 --student.max-length 512"
    return ["evaluate", "--student.model", str(model_folder), "--files", str(tmp_path / "test.jsonl"), *options.split()]


def test_an_evaluation_has_a_place_for_its_results(tmp_path, evaluate, capsys, monkeypatch):
    (tmp_path / "there.json").write_text("mine")
    (tmp_path / "taken.responses").mkdir()
    (tmp_path / "odd.responses").write_text("a file")
    (tmp_path / "again").mkdir()
    shutil.copy(tmp_path / "test.jsonl", tmp_path / "again")
    before = content(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("mind.student.model.load_student", lambda config: pytest.fail("the places come first"))
        for given, message in {
            ("--output", f"{tmp_path}/none/e.json"): "none: no such folder",
            ("--output", f"{tmp_path}/there.json/e.json"): "there.json: is a file: expected a folder",
            ("--output", f"{tmp_path}/there.json"): "there.json: exists already; name another --output, or add --overw",
            ("--output", f"{tmp_path}/taken.json"): "taken.responses: exists already; add --overwrite",
            ("--output", f"{tmp_path}/odd.json", "--overwrite"): "odd.responses: is a file: expected a folder",
            ("--output", f"{tmp_path}/e.responses"): "the ending .responses is that of the folder",
            ("--output", f"{tmp_path}/e.csv"): f"JSON will be written, and no .csv file: name it {tmp_path}/e.json",
            ("--output", f"{tmp_path}", "--overwrite"): "is a folder: expected a file",
            ("--output", f"{tmp_path}/{'x' * 300}"): "File name too long",
            ("--pack-length", "0"): "pack_length is 0: expected at least 1",
            ("--files", f"{tmp_path}/test.jsonl", f"{tmp_path}/again/test.jsonl"): "are both named test",
            ("--heldout", f"{tmp_path}/none.jsonl"): "none.jsonl: no such file",
        }.items():
            expect_error([*evaluate, *given], capsys, message)
    assert content(tmp_path) == before
    for _ in range(2):
        (tmp_path / "taken.responses" / "former.jsonl").write_text("")
        assert main([*evaluate, "--output", f"{tmp_path}/taken.json", "--overwrite"]) == 0
        assert [file.name for file in (tmp_path / "taken.responses").iterdir()] == ["test.jsonl"]
    assert json.loads((tmp_path / "taken.json").read_text())["files"]["test"]["total"] == 2


@pytest.mark.parametrize(
    ("text", "message"), [("What \ud83d is it?", 'last.jsonl:1: "question"'), ("long " * 200, "question odd")]
)
def test_a_question_that_cannot_be_asked_is_named_before_the_first_answer(
    tmp_path, evaluate, capsys, monkeypatch, text, message
):
    """It is in the last file; the first would have been answered, and its answers lost."""
    (tmp_path / "last.jsonl").write_text(json.dumps({"id": "odd", "question": text, "answer": "1"}) + "\n")
    monkeypatch.setattr("mind.evaluation.engines.generate_responses", lambda *_, **__: pytest.fail("too early"))
    monkeypatch.setattr("mind.evaluation.evaluate.rationale_losses", lambda *_, **__: pytest.fail("too early"))
    save_questions(build_questions(2), tmp_path / "heldout.jsonl")
    more = ["--files", f"{tmp_path}/test.jsonl", f"{tmp_path}/last.jsonl", "--heldout", f"{tmp_path}/heldout.jsonl"]
    expect_error([*evaluate, *more, "--output", f"{tmp_path}/e.json"], capsys, message)
    assert not list(tmp_path.glob("e.*"))


def test_a_heldout_rationale_beyond_the_context_is_named(tmp_path, evaluate, capsys):
    """The longest sequence counts, not what might be: a student of a short context needs no option."""
    small = write_student(tmp_path / "small", build_model(max_position_embeddings=128))
    questions = build_questions(2)
    given = ["evaluate", "--student.model", small, "--heldout", str(tmp_path / "heldout.jsonl")]
    save_questions(questions, tmp_path / "heldout.jsonl")
    assert main(given) == 0
    long = dataclasses.replace(questions[1], rationales=(Rationale("first", "one more, " * 20),))
    save_questions([questions[0], long], tmp_path / "heldout.jsonl")
    expect_error(given, capsys, "the longest sequence has", "the context of LlamaForCausalLM is 128")


def test_a_run_is_written_over_only_if_that_is_said(tmp_path, two_steps, finished, capsys):
    before = content(finished)
    remedy = "name another --output, continue it with --resume, or write over it with --overwrite"
    expect_error(two_steps, capsys, f"{finished}: already holds a run; {remedy}")
    expect_error([*two_steps, "--overwrite", "--resume"], capsys, "a run is resumed or written over, not both")
    expect_error(replaced([*two_steps, "--overwrite"], "--data.train", "none"), capsys, "none: no such file")
    assert content(finished) == before
    (finished / "notes.txt").write_text("mine")
    (finished / "responses" / "former").mkdir()
    assert main(replaced([*two_steps, "--overwrite"], "--train.max-steps", "3", "--train.save-steps", "3")) == 0
    assert len(RunFolder(tmp_path / "run").read_starts()) == 1
    assert (finished / "notes.txt").read_text() == "mine" and not (finished / "responses" / "former").exists()
    assert [folder.name for folder in finished.glob("checkpoint-*")] == ["checkpoint-3"]
    assert len(train_rows(finished)) == 3 and load_run_config(finished / "config.json").train.max_steps == 3


def test_what_a_run_reads_is_not_removed_for_it(tmp_path, two_steps, finished, capsys):
    """A student goes on where it came from: in another folder."""
    given, before = [*two_steps, "--overwrite"], content(finished)
    (tmp_path / "link").symlink_to(finished / "student")
    answers = finished / "responses" / "before" / "test.jsonl"
    for option, place, message in (
        ("--student.model", finished / "student", "run/student: this command also reads it, and would overwrite it"),
        ("--student.model", finished / "checkpoint-2", "run/checkpoint-2: this command also reads it"),
        ("--student.model", tmp_path / "link", "run/student: this command also reads it, and would overwrite it"),
        ("--data.evaluation", answers, f"run/responses: holds {answers}, which this command also reads"),
    ):
        expect_error(replaced(given, option, str(place)), capsys, message, "name another --output")
        assert content(finished) == before
    shutil.copy(tmp_path / "test.jsonl", finished / "mine.jsonl")  # which no run writes
    assert main(replaced(given, "--data.evaluation", str(finished / "mine.jsonl"))) == 0


def test_an_evaluation_does_not_replace_what_it_reads(tmp_path, evaluate, model_folder, capsys):
    output = tmp_path / "e.json"
    assert main([*evaluate, "--output", str(output)]) == 0
    before = content(tmp_path)
    answers = tmp_path / "e.responses" / "test.jsonl"
    again = [*evaluate, "--output", str(output), "--overwrite"]
    expect_error(
        replaced(again, "--files", str(answers)), capsys, f"e.responses: holds {answers}, which this command also reads"
    )
    (tmp_path / "e.json").rename(tmp_path / "model.json")
    shutil.copytree(model_folder, tmp_path / "model.responses")
    expect_error(
        replaced(again, "--student.model", f"{tmp_path}/model.responses", "--output", f"{tmp_path}/model.json"),
        capsys,
        "model.responses: this command also reads it",
    )
    (tmp_path / "model.json").rename(output)
    shutil.rmtree(tmp_path / "model.responses")
    assert content(tmp_path) == before and main(again) == 0


def test_what_is_no_run_is_not_written_over(tmp_path, two_steps, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("mine")
    expect_error([*two_steps, "--overwrite"], capsys, "exists and is not an empty folder")
    assert content(tmp_path / "run") == {"thesis.txt": b"mine"}


def test_what_a_kill_left_at_the_start_is_no_obstacle(tmp_path):
    folder = RunFolder(tmp_path)
    for name in ("inputs.json", ".config.json.partial"):
        (tmp_path / name).write_text("half")
    folder.check_free()


def test_a_run_that_is_half_removed_is_still_one(finished, monkeypatch):
    """A kill in the middle of the removal leaves a folder that is still a run, and can be written over."""
    folder, removed = RunFolder(finished), []
    monkeypatch.setattr(Path, "unlink", lambda path, missing_ok=False: removed.append(path.name))
    monkeypatch.setattr(shutil, "rmtree", lambda path: removed.append(path.name))
    folder._remove_run()
    assert removed[-1] == "config.json" and {"student", "checkpoint-2", "status.json", "inputs.json"} <= set(removed)


def test_of_two_that_resume_at_once_one_goes_on(two_steps, finished, capsys):
    shutil.rmtree(finished / "checkpoint-2")
    (finished / "status.json").unlink()
    before = content(finished)
    with RunFolder(finished).held():
        for given in (["train", "--output", str(finished), "--resume"], [*two_steps, "--overwrite"]):
            expect_error(given, capsys, f"{finished}: another process trains there now")
        assert content(finished) == before
    config = load_run_config(finished / "config.json")
    assert mind.train(config, resume=True).finished


def test_two_first_runs_in_one_folder(tmp_path, two_steps):
    """Both have checked that the folder is free; one begins, the other is told."""
    config = load_run_config_of(two_steps)
    gate, outcomes = threading.Barrier(2), []
    real = RunFolder.held

    def run():
        try:
            outcomes.append(mind.train(config).finished)
        except MindError as error:
            outcomes.append(str(error))

    def held(self):
        gate.wait()
        return real(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunFolder, "held", held)
        runs = [threading.Thread(target=run) for _ in range(2)]
        for thread in runs:
            thread.start()
        for thread in runs:
            thread.join()
    assert outcomes.count(True) == 1 and len(outcomes) == 2
    (told,) = [outcome for outcome in outcomes if outcome is not True]
    assert "another process trains there now" in told or "already holds a run" in told


def load_run_config_of(arguments: list[str]):
    import tyro

    from mind.config import MindConfig
    from mind.methods import with_options

    return with_options(tyro.cli(MindConfig, args=arguments[1:]))


def test_options_that_cannot_work_are_refused_before_the_folder(tmp_path, arguments, capsys, monkeypatch):
    monkeypatch.setattr("mind.run.train.load_data", lambda config: pytest.fail("the options come first"))
    for given, message in {
        ("--train.lr-scheduler", "cosin"): "train.lr_scheduler is 'cosin': expected one of",
        ("--objective.backend", "cudaa"): "objective.backend cudaa: backend is 'cudaa': expected 'auto' or one of",
        ("--objective.backend", "cuda"): "objective.backend cuda: backend 'cuda' is not available on cpu",
        ("--train.warmup-ratio", "2"): "train.warmup_ratio is 2.0: expected a share in [0, 1]",
        ("--train.max-steps", "-5"): "train.max_steps is -5: expected -1 or 1 to 10,000,000",
        ("--train.max-steps", "0"): "train.max_steps is 0",
        ("--train.learning-rate", "inf"): "train.learning_rate is inf: expected a finite number",
        ("--train.epochs", "nan"): "train.epochs is nan",
        ("--train.seed", "-1"): "train.seed is -1",
        ("--metanet.tau", "inf"): "metanet.tau is inf",
    }.items():
        expect_error(replaced(arguments, *given), capsys, message)
    assert not (tmp_path / "run").exists()


def test_an_encoder_that_is_not_there_leaves_no_folder(tmp_path, arguments, capsys):
    expect_error(replaced(arguments, "--metanet.encoder", str(tmp_path / "none")), capsys, "metanet.encoder")
    assert not (tmp_path / "run").exists()
