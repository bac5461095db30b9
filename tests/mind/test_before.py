"""What cannot work is said before it begins: no folder is made, nothing that is there is touched, no result is lost."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import logging
import shutil
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_run import expect_error, replaced, train_rows
from tiny import build_family, build_model, build_questions, build_tokenizer

import mind
from mind.cli import main
from mind.data.questions import save_questions
from mind.errors import MindError
from mind.evaluation.labels import evaluation_labels
from mind.methods import load_run_config
from mind.records import Rationale
from mind.run.checkpoints import check_loaded
from mind.run_folder import RunFolder


def content(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture
def short(tmp_path, arguments) -> list[str]:
    """A run of two steps."""
    return replaced(
        arguments,
        *("--method", "sft", "--train.max-steps", "2", "--train.save-steps", "1", "--train.report-to", "none"),
        *("--evaluation.max-new-tokens", "2"),
    )


@pytest.fixture
def finished(tmp_path, short) -> Path:
    assert main(short) == 0
    return tmp_path / "run"


OPTIONS = {
    ("--student.attention", "sdp"): "student.attention is 'sdp': expected one of auto, eager",
    ("--student.attention", "flash_attention"): "student.attention is 'flash_attention': expected one of",
    ("--student.attention", "paged|eager"): "student.attention is 'paged|eager': expected one of",
    ("--train.lr-scheduler", "reduce_lr_on_plateau"): "train.lr_scheduler is 'reduce_lr_on_plateau': expected one of",
    ("--train.lr-scheduler", "Cosine"): "train.lr_scheduler is 'Cosine': expected one of",
    ("--objective.backend", ""): "objective.backend is '': expected a text that is not blank",
    ("--objective.backend", "CPP"): "objective.backend CPP: backend is 'CPP': expected",
    ("--student.lora-alpha", "0"): "student.lora_alpha is 0: expected at least 1",
    ("--train.max-steps", "100000000000"): "train.max_steps is 100000000000: expected -1 or 1 to 10,000,000",
    ("--train.weight-decay", "nan"): "train.weight_decay is nan: expected a finite number",
    ("--metanet.encoder", ""): "metanet.encoder is '': expected a text",
    ("--data.train", ""): "data.train is '': expected a text",
    ("--output", ""): "output is '': expected a text",
    ("--method", ""): "method is '': expected a text",
}


@pytest.mark.parametrize(("given", "message"), OPTIONS.items(), ids=" ".join)
def test_an_option_that_cannot_work_is_named_before_data_are_read(tmp_path, short, capsys, monkeypatch, given, message):
    monkeypatch.setattr("mind.run.train.load_data", lambda config: pytest.fail("the options come first"))
    expect_error(replaced(short, *given), capsys, message)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("service", ["tensorboard", "wandb"])
def test_a_service_that_is_not_installed_is_named(tmp_path, short, capsys, monkeypatch, service):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == service else real(name, *rest))
    expect_error(replaced(short, "--train.report-to", service), capsys, f"pip install {service}")
    assert not (tmp_path / "run").exists()


def test_a_machine_that_cannot_compile_is_named(tmp_path, short, capsys, monkeypatch):
    def compile(function):
        raise RuntimeError("Failed to find C++ compiler.\nPlease specify one")

    monkeypatch.setattr(torch, "compile", compile)
    expect_error([*short, "--train.compile"], capsys, "train.compile: torch cannot compile here: RuntimeError: Fail")
    assert not (tmp_path / "run").exists()


def test_what_transformers_refuses_is_named(tmp_path, short, capsys, monkeypatch):
    def refuse(**_):
        raise ValueError("Your setup doesn't support bf16/gpu.")

    monkeypatch.setattr("mind.run.trainer.TrainingArguments", refuse)
    expect_error(short, capsys, "train: transformers refuses its options: Your setup doesn't support bf16/gpu.")
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
    ],
)
def test_a_place_that_cannot_be_a_folder_is_named(tmp_path, short, capsys, monkeypatch, place, message):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("mine")
    Path("loop").symlink_to("loop")
    monkeypatch.setattr("mind.run.train.load_data", lambda config: pytest.fail("the place comes first"))
    before = content(tmp_path)
    expect_error(replaced(short, "--output", place), capsys, message)
    assert content(tmp_path) == before


def write_student(folder: Path, model) -> str:
    model.save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return str(folder)


def test_a_student_that_cannot_follow_an_option_is_named(tmp_path, short, capsys):
    small = write_student(tmp_path / "small", build_model(max_position_embeddings=128))
    given = replaced(short, "--student.model", small)
    expect_error(given, capsys, "student.max_length is 512: the context of", "is 128 tokens")
    given = replaced(given, "--student.max-length", "128", "--evaluation.max-new-tokens", "100")
    expect_error(given, capsys, "with evaluation.max_new_tokens 100 that exceeds the model's context of 128")
    assert not (tmp_path / "run").exists()


def test_a_student_that_cannot_recompute_is_named(tmp_path, short, capsys, monkeypatch):
    monkeypatch.setattr("transformers.LlamaForCausalLM.supports_gradient_checkpointing", False)
    expect_error([*short, "--train.gradient-checkpointing"], capsys, "gradient_checkpointing: LlamaForCausalLM cannot")
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
    "a list": (lambda file: file.write_text("[]"), "c.json: expected an object"),
    "empty": (lambda file: file.write_text(""), "c.json: not JSON"),
    "a loop": (lambda file: file.symlink_to(file), "Too many levels of symbolic links"),
}


@pytest.mark.parametrize(("write", "message"), CONFIGURATIONS.values(), ids=CONFIGURATIONS)
def test_a_configuration_that_cannot_be_read_is_named(tmp_path, short, capsys, write, message):
    write(tmp_path / "c.json")
    expect_error([*short, "--config", str(tmp_path / "c.json")], capsys, message)
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
            ("--output", f"{tmp_path}", "--overwrite"): "is a folder: expected a file to write over",
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


@pytest.mark.parametrize("text", ["What \ud83d is it?", "long " * 200])
def test_a_question_that_cannot_be_asked_is_named_before_the_first_answer(
    tmp_path, evaluate, capsys, monkeypatch, text
):
    """It is in the last file; the first would have been answered, and its answers lost."""
    (tmp_path / "last.jsonl").write_text(json.dumps({"id": "odd", "question": text, "answer": "1"}) + "\n")
    monkeypatch.setattr("mind.evaluation.evaluate.generate_responses", lambda *_, **__: pytest.fail("too early"))
    monkeypatch.setattr("mind.evaluation.evaluate.rationale_losses", lambda *_, **__: pytest.fail("too early"))
    save_questions(build_questions(2), tmp_path / "heldout.jsonl")
    more = ["--files", f"{tmp_path}/test.jsonl", f"{tmp_path}/last.jsonl", "--heldout", f"{tmp_path}/heldout.jsonl"]
    expect_error([*evaluate, *more, "--output", f"{tmp_path}/e.json"], capsys, "question odd")
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


def test_a_run_is_written_over_only_if_that_is_said(tmp_path, short, finished, capsys):
    before = content(finished)
    remedy = "name another --output, continue it with --resume, or write over it with --overwrite"
    expect_error(short, capsys, f"{finished}: already holds a run; {remedy}")
    expect_error([*short, "--overwrite", "--resume"], capsys, "a run is resumed or written over, not both")
    expect_error(replaced([*short, "--overwrite"], "--data.train", "none"), capsys, "none: no such file")
    assert content(finished) == before
    (finished / "notes.txt").write_text("mine")
    (finished / "responses" / "former").mkdir()
    assert main(replaced([*short, "--overwrite"], "--train.max-steps", "3", "--train.save-steps", "3")) == 0
    assert (finished / "notes.txt").read_text() == "mine" and not (finished / "responses" / "former").exists()
    assert [folder.name for folder in finished.glob("checkpoint-*")] == ["checkpoint-3"]
    assert len(train_rows(finished)) == 3 and load_run_config(finished / "config.json").train.max_steps == 3


def test_what_is_no_run_is_not_written_over(tmp_path, short, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("mine")
    expect_error([*short, "--overwrite"], capsys, "exists and is not an empty folder")
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


def test_of_two_that_resume_at_once_one_goes_on(short, finished, capsys):
    shutil.rmtree(finished / "checkpoint-2")
    (finished / "status.json").unlink()
    before = content(finished)
    with RunFolder(finished).held():
        for given in (["train", "--output", str(finished), "--resume"], [*short, "--overwrite"]):
            expect_error(given, capsys, f"{finished}: another process trains there now")
        assert content(finished) == before
    config = load_run_config(finished / "config.json")
    assert mind.train(config, resume=True).finished


DAMAGES = {
    "model.safetensors": "cannot be read: SafetensorError",
    "optimizer.pt": "cannot be read: ",
    "scheduler.pt": "cannot be read: ",
    "rng_state.pth": "cannot be read: ",
    "trainer_state.json": "cannot be read: JSONDecodeError",
    "calibration.pt": "cannot be read: ",
    "progress.json": "not JSON",
}


@pytest.mark.parametrize("cut", [0.0, 0.6])
@pytest.mark.parametrize(("name", "message"), DAMAGES.items(), ids=DAMAGES)
def test_a_checkpoint_that_is_damaged_is_named(unfinished, capsys, name, message, cut):
    file = unfinished / "checkpoint-1" / name
    whole = file.read_bytes()
    file.write_bytes(whole[: int(cut * len(whole))])
    expect_error(
        ["train", "--output", str(unfinished), "--resume"],
        capsys,
        f"{unfinished / 'checkpoint-1'}: ",
        message,
        "without this folder --resume goes on from the checkpoint before it",
    )
    file.write_bytes(whole)
    assert RunFolder(unfinished).checkpoints().keys() == {1}


@pytest.fixture(scope="module")
def killed(tmp_path_factory) -> Path:
    """A run, with what it reads, that was killed after its first checkpoint."""
    place = tmp_path_factory.mktemp("killed")
    write_student(place / "model", build_model())
    for name, count in {"train": 9, "test": 2}.items():
        save_questions(build_questions(count), place / f"{name}.jsonl")
    options = (
        f"--output {place}/run --student.model {place}/model --data.train {place}/train.jsonl --method sft "
        f"--data.evaluation {place}/test.jsonl --data.perspectives first second third --train.max-steps 2 "
        "--train.questions-per-step 2 --train.save-steps 1 --train.report-to none --evaluation.max-new-tokens 2 "
        "--student.max-length 512"
    )
    assert main(["train", *options.split()]) == 0
    for name in ("checkpoint-2", "student"):
        shutil.rmtree(place / "run" / name)
    (place / "run" / "status.json").unlink()
    return place / "run"


@pytest.fixture
def unfinished(killed, tmp_path) -> Path:
    return shutil.copytree(killed, tmp_path / "unfinished")


def test_weights_that_are_one_are_not_missed(unfinished, caplog):
    """The head is the embeddings, which a checkpoint has once."""
    with caplog.at_level(logging.WARNING, "transformers"):
        assert main(["train", "--output", str(unfinished), "--resume"]) == 0
    assert not [record for record in caplog.records if "missing keys" in record.getMessage()]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop("model.norm.weight"), "lacks weights: model.norm.weight"),
        (lambda weights: weights.pop("model.embed_tokens.weight"), "lacks weights: "),
        (lambda weights: weights.update(more=torch.ones(1)), "has weights that the student has not: more"),
    ],
)
def test_weights_that_are_not_the_students_are_named(unfinished, capsys, change, message):
    file = unfinished / "checkpoint-1" / "model.safetensors"
    weights = load_file(file)
    change(weights)
    save_file(weights, file, metadata={"format": "pt"})
    expect_error(["train", "--output", str(unfinished), "--resume"], capsys, "checkpoint-1", message)


def test_weights_of_an_untied_head_are_missed():
    model = build_family("qwen2", tie_word_embeddings=False)
    weights = {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    with pytest.raises(MindError, match=r"lacks weights: lm_head.weight$"):
        check_loaded(model, model.load_state_dict(weights, strict=False))


def test_a_finished_run_says_how_to_go_on(tmp_path, finished, capsys):
    capsys.readouterr()
    assert main(["train", "--output", str(finished), "--resume"]) == 0
    said = capsys.readouterr().out
    assert f"--train.max-steps N with --resume, or a new run with --student.model {finished}/student" in said


@pytest.mark.parametrize(
    ("options", "more", "steps"),
    [
        (("--train.epochs", "1"), ("--train.epochs", "2"), 10),
        (("--train.max-steps", "2"), ("--train.max-steps", "7"), 7),
    ],
)
def test_a_finished_run_is_extended_by_epochs_too(tmp_path, short, options, more, steps):
    constant = ("--train.lr-scheduler", "constant", "--train.max-steps", "-1")
    short = replaced(replaced(short, *constant), *options)
    assert main(replaced(replaced(short, *more), "--output", str(tmp_path / "straight"))) == 0
    assert main(short) == 0
    assert main(["train", "--output", str(tmp_path / "run"), "--resume", *more]) == 0
    assert train_rows(tmp_path / "run") == train_rows(tmp_path / "straight")
    assert len(train_rows(tmp_path / "run")) == steps


@pytest.mark.parametrize(
    ("options", "more", "message"),
    [
        (("--train.epochs", "0.3"), ("--train.epochs", "2"), "the 10 steps of the one do not begin with the 2 of the"),
        (("--train.epochs", "1"), ("--train.max-steps", "4"), "the 4 steps of the one do not begin with the 5 of the"),
        (("--train.epochs", "1"), ("--train.epochs", "0.5"), "train.epochs (1.0 there)"),
    ],
)
def test_an_extension_that_is_another_run_is_refused(tmp_path, short, capsys, options, more, message):
    constant = ("--train.lr-scheduler", "constant", "--train.max-steps", "-1")
    assert main(replaced(replaced(short, *constant), *options)) == 0
    before = content(tmp_path / "run")
    expect_error(["train", "--output", str(tmp_path / "run"), "--resume", *more], capsys, message)
    assert content(tmp_path / "run") == before


def test_two_first_runs_in_one_folder(tmp_path, short):
    """Both have checked that the folder is free; one begins, the other is told."""
    config = load_run_config_of(short)
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
