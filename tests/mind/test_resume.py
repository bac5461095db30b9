"""What a resumed run is held to: its options, its data, its student, and its record once it is finished."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pkgutil
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_run import content, expect_error, replaced, train_rows
from tiny import NAMES, build_questions

import mind
from mind.cli import main
from mind.data.questions import load_questions, save_questions
from mind.errors import MindError
from mind.methods import load_run_config
from mind.run_folder import RunFolder
from mind.student.fingerprint import fingerprint


def resume(output: Path, *options: str) -> list[str]:
    return ["train", "--output", str(output), "--resume", *options]


@pytest.fixture
def short(tmp_path, arguments) -> list[str]:
    """A run of two steps, with held-out questions of its own."""
    save_questions(build_questions(13)[10:], tmp_path / "heldout.jsonl")
    return replaced(
        arguments,
        *("--method", "sft", "--train.max-steps", "2", "--train.save-steps", "1", "--train.report-to", "none"),
        *("--data.heldout", str(tmp_path / "heldout.jsonl"), "--evaluation.max-new-tokens", "2"),
    )


@pytest.fixture
def unfinished(tmp_path, short) -> Path:
    """That run as a kill after its first checkpoint leaves it."""
    assert main(short) == 0
    run = tmp_path / "run"
    shutil.rmtree(run / "checkpoint-2")
    shutil.rmtree(run / "student")
    (run / "status.json").unlink()
    return run


OTHER_OPTIONS = {
    ("--train.learning-rate", "3e-5"): "train.learning_rate (0.001 there)",  # the default, which the run has not
    ("--train.warmup-ratio", "0.5"): "train.warmup_ratio (0.05 there)",
    ("--train.max-steps", "-1"): "train.max_steps (2 there)",
    ("--train.max-steps", "1"): "train.max_steps (2 there)",
    ("--train.questions-per-step", "None"): "train.questions_per_step (2 there)",
    ("--data.heldout", "None"): "data.heldout (",
    ("--data.perspectives", *NAMES[::-1]): "data.perspectives (",
    ("--method", "mind"): "method (sft there)",
    ("--train.seed", "0", "--student.max-length", "1024"): "student.max_length (512 there)",
}


def test_an_option_counts_because_it_was_given(unfinished, capsys):
    before = content(unfinished)
    for given, message in OTHER_OPTIONS.items():
        expect_error(resume(unfinished, *given), capsys, "--resume keeps the configuration of", message)
    assert content(unfinished) == before


def test_a_configuration_file_counts_by_what_it_names(tmp_path, unfinished, capsys):
    file = tmp_path / "c.json"
    file.write_text('{"train": {"learning_rate": 3e-5}}')  # the default
    expect_error(resume(unfinished, "--config", str(file)), capsys, "train.learning_rate (0.001 there)")
    file.write_text('{"method": "mind"}')
    expect_error(resume(unfinished, "--config", str(file)), capsys, "method (sft there)")
    file.write_text('{"train": {"learning_rate": 1e-3, "seed": 0}, "student": {"max_length": 512}}')
    assert main(resume(unfinished, "--config", str(file), "--train.save-steps", "1")) == 0
    config = load_run_config(unfinished / "config.json")
    assert config.method == "sft" and config.train.learning_rate == 1e-3 and config.train.max_steps == 2


def test_what_is_read_may_lie_elsewhere(unfinished, tmp_path, capsys):
    """Its content counts, as long as it is read."""
    moved, other = tmp_path / "moved.jsonl", tmp_path / "other.jsonl"
    shutil.copy(tmp_path / "heldout.jsonl", moved)
    save_questions(build_questions(13)[11:], other)
    shutil.copytree(load_run_config(unfinished / "config.json").student.model, tmp_path / "student-elsewhere")
    expect_error(resume(unfinished, "--data.heldout", str(other)), capsys, f"{other} (data.heldout) has changed since")
    places = ("--data.heldout", str(moved), "--student.model", str(tmp_path / "student-elsewhere"))
    assert main(resume(unfinished, *places)) == 0
    expect_error(resume(unfinished, "--data.heldout", str(other)), capsys, "data.heldout (")


def test_evaluation_files_may_lie_elsewhere(unfinished, tmp_path, capsys):
    """Their names stay: results are named by them. No file may be left out or added."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    moved, renamed = elsewhere / "test.jsonl", elsewhere / "exam.jsonl"
    (tmp_path / "test.jsonl").rename(moved)
    shutil.copy(moved, renamed)
    for files in ([renamed], [moved, renamed], [renamed, moved]):
        expect_error(resume(unfinished, "--data.evaluation", *map(str, files)), capsys, "data.evaluation (")
    questions = load_questions(moved)
    save_questions(questions[:-1], moved)
    place = ("--data.evaluation", str(moved))
    expect_error(resume(unfinished, *place), capsys, f"{moved} (data.evaluation test) has changed since")
    save_questions(questions, moved)
    assert main(resume(unfinished, *place)) == 0
    assert set(RunFolder(unfinished).read_evaluation()["after"]["files"]) == {"test"}


def test_what_was_named_by_relative_paths_may_be_named_by_others(unfinished, tmp_path, monkeypatch, capsys):
    """As in another working directory, or after the folders were moved."""
    file = unfinished / "config.json"
    config = json.loads(file.read_text())
    config["data"] |= {"train": "train.jsonl", "heldout": "./heldout.jsonl", "evaluation": ["test.jsonl"]}
    config["student"]["model"] = "./model"
    file.write_text(json.dumps(config))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    before = content(unfinished)
    gone = (
        "data.train train.jsonl: no such file",
        "data.heldout heldout.jsonl: no such file",
        "data.evaluation test.js",
    )
    options = "name their present place by --data.train and --data.heldout and --data.evaluation and --student.model"
    student = "student.model ./model: no such folder (no checkpoint replaces it"
    expect_error(resume(unfinished), capsys, f"{unfinished}: --resume goes on with", *gone, student, options)
    assert content(unfinished) == before
    expect_error(resume(unfinished, "--data.train", "word-problems"), capsys, "data.train (train.jsonl there)")
    places = {"train": str(tmp_path / "train.jsonl"), "heldout": "../heldout.jsonl", "evaluation": "../test.jsonl"}
    named = [word for name, place in places.items() for word in (f"--data.{name}", place)]
    assert main(resume(unfinished, *named, "--student.model", "../model")) == 0


def test_from_python_too(unfinished):
    config = load_run_config(unfinished / "config.json")
    other = dataclasses.replace(config, train=dataclasses.replace(config.train, learning_rate=3e-5))
    with pytest.raises(MindError, match=r"these options differ from it: train.learning_rate \(0.001 there\)"):
        mind.train(other, resume=True)
    data = dataclasses.replace(
        config.data, train=Path(config.data.train), perspectives=list(NAMES), evaluation=list(config.data.evaluation)
    )
    assert mind.train(dataclasses.replace(config, output=unfinished, data=data), resume=True).finished


NEWER = ("objective.normalize", "objective.answer_span", "metanet.spread", "evaluation.before", "stages")
"""Fields that an older version did not have."""


def older(folder):
    """The run as a version without these fields wrote it, with its own digest of the options."""
    config = json.loads((folder / "config.json").read_text())
    for name in NEWER:
        section, _, field = name.rpartition(".")
        del (config[section] if section else config)[field]
    (folder / "config.json").write_text(json.dumps(config))
    places = {"student.model", "data.train", "data.heldout", "data.evaluation", "metanet.encoder", "evaluation.before"}
    rows = [
        [f"{section}.{field}", value]
        for section, fields in config.items()
        if isinstance(fields, dict)
        for field, value in fields.items()
        if f"{section}.{field}" not in places
    ]
    text = "".join(json.dumps(row) + "\n" for row in sorted([*rows, ["method", config["method"]]]))
    inputs = json.loads((folder / "inputs.json").read_text())
    inputs["options"]["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    (folder / "inputs.json").write_text(json.dumps(inputs))
    return config


def test_a_run_of_a_version_with_fewer_fields_goes_on(unfinished, capsys):
    config = older(unfinished)
    for section, name, value in (("objective", "normalize", "token"), ("train", "learning_rate", 3e-5)):
        changed = json.dumps(config | {section: config[section] | {name: value}})
        (unfinished / "config.json").write_text(changed)
        expect_error(resume(unfinished), capsys, f"config.json has changed since {unfinished} began")
    (unfinished / "config.json").write_text(json.dumps(config))
    assert main(resume(unfinished)) == 0


def test_a_field_that_was_taken_out_means_its_default(unfinished):
    config = json.loads((unfinished / "config.json").read_text())
    del config["objective"]["normalize"]
    (unfinished / "config.json").write_text(json.dumps(config))
    assert main(resume(unfinished)) == 0


def test_a_run_in_its_own_folder_is_alone(unfinished, capsys):
    before = content(unfinished)
    with RunFolder(unfinished).held():
        expect_error(resume(unfinished), capsys, f"{unfinished}: another process trains there now")
    assert content(unfinished) == before


def test_the_options_that_it_began_with_count(unfinished, capsys):
    file = unfinished / "config.json"
    plain = json.loads(file.read_text())
    for section, name, value in (("train", "learning_rate", 3e-5), ("train", "max_steps", 9), ("metanet", "ema", 0.1)):
        file.write_text(json.dumps(plain | {section: plain[section] | {name: value}}))
        expect_error(resume(unfinished), capsys, f"{file} has changed since {unfinished} began")


def test_a_fingerprint_is_of_every_byte():
    weight = torch.randn(300, 210, generator=torch.Generator().manual_seed(0))
    known = fingerprint({"a": weight})
    others = [weight.flip(0), weight.flip(1), weight.view(210, 300), weight.bfloat16(), weight.roll(1)]
    assert len({known, *(fingerprint({"a": other}) for other in others), fingerprint({"b": weight})}) == 7
    assert fingerprint({"a": weight.T.contiguous().T}) == known
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            assert fingerprint({"a": weight}) == known  # sums would differ in their last digits
    finally:
        torch.set_num_threads(threads)


def reworded(questions):
    first, *rest = questions
    return [dataclasses.replace(first, question=first.question + " "), *rest]


def reordered(questions):
    return questions[::-1]


def shortened(questions):
    return questions[:-1]


def lengthened(questions):
    return [*questions, *build_questions(20)[15:16]]


def test_data_that_changed_are_refused(tmp_path, unfinished, capsys):
    before = content(unfinished)
    roles = {"train": "data.train", "heldout": "data.heldout", "test": "data.evaluation test"}
    for name, role in roles.items():
        file = tmp_path / f"{name}.jsonl"
        questions = load_questions(file)
        for edit in (reworded, reordered, shortened, lengthened):
            save_questions(edit(questions), file)
            expect_error(resume(unfinished), capsys, f"{file} ({role}) has changed since {unfinished} began")
        save_questions(questions, file)
    assert content(unfinished) == before


def test_data_are_the_same_by_content_alone(tmp_path, unfinished):
    file = tmp_path / "train.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    file.write_text("\n\n".join(json.dumps(row | {"note": "mine"}, ensure_ascii=False) for row in rows))
    os.utime(file, (0, 0))
    assert main(resume(unfinished)) == 0


def test_other_versions_of_packages_are_told(unfinished, tmp_path, capsys):
    """They may change numbers, and what transformers makes of a student's settings."""
    file = unfinished / "starts.json"
    (start,) = json.loads(file.read_text())
    now = start["versions"]["transformers"]
    told = f"at its latest start transformers was 5.0.0 and is {now} now"
    file.write_text(json.dumps([start | {"versions": start["versions"] | {"transformers": "5.0.0", "gone": "1"}}]))
    questions = load_questions(tmp_path / "train.jsonl")
    save_questions(questions[1:], tmp_path / "train.jsonl")
    expect_error(resume(unfinished), capsys, "(data.train) has changed since", f"or name another --output; {told}")
    save_questions(questions, tmp_path / "train.jsonl")
    with pytest.warns(RuntimeWarning, match=re.escape(f"{unfinished}: {told}: its numbers may be others than")):
        assert main(resume(unfinished)) == 0
    assert [one["versions"]["transformers"] for one in json.loads(file.read_text())] == ["5.0.0", now]


def test_a_student_that_changed_is_refused(tmp_path, unfinished, model_folder, capsys):
    plain = load_file(model_folder / "model.safetensors")
    changed = {name: value.clone() for name, value in plain.items()}
    rows = changed["model.layers.0.mlp.up_proj.weight"]
    rows[:2] = rows[:2].flip(0)
    save_file(changed, model_folder / "model.safetensors", metadata={"format": "pt"})
    expect_error(resume(unfinished), capsys, f"{model_folder} (weights) has changed since")
    save_file(plain, model_folder / "model.safetensors", metadata={"format": "pt"})
    for name, option, value in (
        ("config.json", "rms_norm_eps", 1e-2),
        ("config.json", "hidden_act", "gelu"),
        ("generation_config.json", "no_repeat_ngram_size", 2),
    ):
        text = (model_folder / name).read_text()
        (model_folder / name).write_text(json.dumps(json.loads(text) | {option: value}))
        expect_error(resume(unfinished), capsys, f"{model_folder} (settings) has changed since")
        (model_folder / name).write_text(text)
    template = model_folder / "chat_template.jinja"
    template.write_text(template.read_text().replace("assistant", "tutor"))
    expect_error(resume(unfinished), capsys, f"{model_folder} (tokens) has changed since")


def test_a_run_of_an_older_version_goes_on_with_a_word(tmp_path, unfinished, capsys):
    (unfinished / "inputs.json").unlink()
    (unfinished / "checkpoint-1" / "progress.json").unlink()
    with pytest.warns(RuntimeWarning, match="an older version began this run and kept no digests of its data"):
        assert main(resume(unfinished)) == 0
    assert set(json.loads((unfinished / "inputs.json").read_text())) >= {"data.train", "data.heldout", "tokens"}


def test_a_finished_run_is_left_as_it_is(tmp_path, short, capsys):
    assert main(short) == 0
    run = tmp_path / "run"
    before = content(run)
    capsys.readouterr()
    (tmp_path / "train.jsonl").unlink()  # nothing is read for it
    (tmp_path / "model").rename(tmp_path / "moved")
    assert main(resume(run)) == 0
    assert f"{run}: the run is finished, after 2 steps; nothing was changed" in capsys.readouterr().out
    assert content(run) == before
    expect_error(resume(run, "--train.seed", "3"), capsys, "train.seed (0 there)")
    assert content(run) == before


def test_the_time_of_all_starts_counts(tmp_path, unfinished):
    progress = unfinished / "checkpoint-1" / "progress.json"
    saved = json.loads(progress.read_text())
    assert 0 < saved["seconds"]["train_s"] < saved["seconds"]["wall_s"]
    progress.write_text(json.dumps(saved | {"seconds": {"wall_s": 5000.05, "train_s": 3000.05}}))
    assert main(resume(unfinished)) == 0
    status = json.loads((unfinished / "status.json").read_text())
    assert status["wall_s"] > 5000 and 3000 < status["train_s"] < 4000


@pytest.mark.parametrize("last", ["write_status", "save_method", "write_report"])
def test_the_student_is_saved_before_what_says_that_the_run_is_finished(tmp_path, short, monkeypatch, last):
    """Whatever fails at the end, the student of a finished run is there, and an unfinished one gets it."""
    run, writes = RunFolder(tmp_path / "run"), []
    place = "mind.run.finish.write_run_report" if last == "write_report" else f"mind.run_folder.RunFolder.{last}"
    real = pkgutil.resolve_name(place)

    def fail(*given):
        if last != "save_method" or len(given) == 3:  # a checkpoint comes as the fourth
            writes.append((run.student / "model.safetensors").is_file() and (run.student / "tokenizer.json").is_file())
            raise OSError(28, "No space left on device", str(run.path))
        return real(*given)

    with monkeypatch.context() as patch:
        patch.setattr(place, fail)
        assert main(short) == 2
    assert writes == [True] and run.finished == (last == "write_report")
    assert main(resume(run.path)) == 0 and run.finished and run.report.is_file()


@pytest.mark.parametrize("log_steps", ["3", "5", "100"])
def test_the_last_step_is_always_logged(tmp_path, short, log_steps):
    assert main(replaced(short, "--train.max-steps", "4", "--train.log-steps", log_steps)) == 0
    run = tmp_path / "run"
    assert [row["step"] for row in train_rows(run)] == ([3, 4] if log_steps == "3" else [4])
    assert (run / "student" / "model.safetensors").is_file() and (run / "report.html").is_file()


@pytest.mark.parametrize("schedule", ["constant", pytest.param("inverse_sqrt", marks=pytest.mark.nightly)])
def test_a_finished_run_is_extended_if_its_steps_stay(tmp_path, short, schedule):
    ratio = "0.0" if schedule == "inverse_sqrt" else "0.3"
    short = replaced(short, "--train.lr-scheduler", schedule, "--train.warmup-ratio", ratio)
    short = replaced(short, "--data.max-questions", "3")  # an epoch ends in a smaller step
    straight = tmp_path / "straight"
    assert main(replaced(short, "--output", str(straight), "--train.max-steps", "5", "--train.save-steps", "5")) == 0
    assert main(replaced(short, "--train.save-steps", "5")) == 0
    run = tmp_path / "run"
    moved = (tmp_path / "train.jsonl").rename(tmp_path / "moved.jsonl")
    assert main(resume(run, "--train.max-steps", "5", "--data.train", str(moved))) == 0
    assert train_rows(run) == train_rows(straight) and len(train_rows(run)) == 5
    assert json.loads((run / "status.json").read_text())["steps"] == 5
    extended = load_run_config(run / "config.json")
    assert (extended.train.max_steps, extended.data.train) == (5, str(moved))
    students = [load_file(folder / "student" / "model.safetensors") for folder in (straight, run)]
    assert all(torch.equal(value, students[1][name]) for name, value in students[0].items())
    evaluations = [json.loads((folder / "evaluation.json").read_text()) for folder in (straight, run)]
    assert evaluations[0] == evaluations[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "with train.lr_scheduler cosine and train.warmup_ratio 0.05 the learning rates"),
        (["--train.lr-scheduler", "constant_with_warmup", "--train.warmup-ratio", "0.4"], "the learning rates"),
        (
            ["--train.lr-scheduler", "constant", "--train.log-steps", "3"],
            "log_steps 3 does not divide the 2 steps",
        ),
    ],
)
def test_a_longer_run_that_is_another_is_refused(tmp_path, short, capsys, options, message):
    assert main(replaced(short, *options)) == 0
    run = tmp_path / "run"
    before = content(run)
    expect_error(resume(run, "--train.max-steps", "5"), capsys, "train.max_steps is 5 and 2 in", message, "run/student")
    assert content(run) == before
