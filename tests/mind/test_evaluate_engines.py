"""`mind evaluate` by transformers and by vLLM, or its stand-in, of one student and of several."""

from __future__ import annotations

import json
import sys

import pytest
from fake_engines import FakeVLLM
from small_run import write_student
from tiny import build_model, build_questions, build_tokenizer

from mind.cli import main
from mind.config import StudentConfig
from mind.data.questions import save_questions
from mind.errors import MindError
from mind.evaluation.engines import TransformersEngine, VLLMEngine
from mind.evaluation.generation import generate_ids
from mind.evaluation.outcomes import Reply
from mind.student.model import load_student

END = 1


@pytest.fixture
def vllm(monkeypatch):
    package = FakeVLLM()
    for name, module in package.modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    return package


@pytest.fixture
def words(tmp_path, model_folder):
    save_questions(build_questions(3), tmp_path / "sums.jsonl")
    words = ["evaluate", "--student.model", str(model_folder), "--files", f"{tmp_path}/sums.jsonl"]
    return [*words, "--evaluation.max-new-tokens", "6", "--output", f"{tmp_path}/out.json"]


def results(tmp_path):
    rows = (tmp_path / "out.responses" / "sums.jsonl").read_text().splitlines()
    return json.loads((tmp_path / "out.json").read_text()), [json.loads(row) for row in rows]


def test_vllm_gets_the_same_prompts_and_ends_and_its_answers_the_same_rows(words, tmp_path, model_folder, vllm, capsys):
    assert main(words) == 0
    told, rows = results(tmp_path)
    model, tokenizer = load_student(StudentConfig(model=str(model_folder)))

    def reply(ids):
        (answer,) = generate_ids(model, tokenizer, [ids], max_new_tokens=6, batch_size=1)
        return answer, "stop" if answer[-1] == END else "length"

    vllm.reply = reply
    more = ["--engine", "vllm", "--engine-options", '{"max_model_len": 400}', "--overwrite"]
    assert main([*words, *more]) == 0
    by_vllm, same = results(tmp_path)
    assert same == rows and by_vllm["files"] == told["files"]
    assert by_vllm["asked"] == told["asked"] | {"engine": "vllm"}
    (engine,) = vllm.loaded
    assert engine.model == str(model_folder) and engine.kwargs == {"dtype": "float32", "max_model_len": 400}
    one = engine.sampling[0]
    assert (one.temperature, one.top_p, one.max_tokens, one.seed, one.stop) == (0.0, 1.0, 6, None, None)
    assert END in one.stop_token_ids
    assert main([*words, *more, "--samples", "2", "--seed", "4", "--temperature", "0.5"]) == 0
    sampling = vllm.loaded[-1].sampling
    assert [(one.temperature, one.top_p) for one in sampling] == [(0.5, 0.95)] * 6
    assert len({one.seed for one in sampling}) == 6
    assert results(tmp_path)[0]["files"]["sums"]["samples"] == 2 and "majority vote" in capsys.readouterr().out


def gone_at_start(*_, **__):
    raise RuntimeError("Engine core initialization failed")


def test_what_vllm_says_of_the_end_counts(model_folder, vllm):
    engine = VLLMEngine(StudentConfig(model=str(model_folder)), {})
    text = build_tokenizer()("So 3.")["input_ids"]
    answers = iter([([*text, END], "stop"), (text, "length"), ([], "stop"), ([*text, END], "abort")])
    vllm.reply = lambda ids: next(answers)
    replies = engine.replies([[5]] * 3, 9, None, (), lambda count: None)
    assert replies == [("So 3.", False), ("So 3.", True), ("", False)]
    with pytest.raises(Exception, match="vLLM ended an answer by 'abort': expected 'stop' or 'length'"):
        engine.replies([[5]], 9, None, (), lambda count: None)

    def gone(ids):
        raise RuntimeError("EngineCore encountered an issue")

    vllm.reply = gone
    with pytest.raises(MindError, match="vLLM ended with RuntimeError: EngineCore encountered an issue"):
        engine.replies([[5]], 9, None, (), lambda count: None)
    vllm.LLM = gone_at_start
    with pytest.raises(MindError, match="vLLM cannot load .*Engine core initialization failed"):
        VLLMEngine(StudentConfig(model=str(model_folder)), {})
    other = TransformersEngine(*load_student(StudentConfig(model=str(model_folder))))
    assert engine.context == other.context and engine.chat.stop_text == other.chat.stop_text


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--engine", "vllm"], "engine vllm needs vllm"),
        (["--engine", "vllm", "--heldout", "x.jsonl"], "--heldout beside --engine vllm: the NLL needs transformers"),
        (["--engine-options", "{}x"], "engine_options"),
        (["--engine-options", '{"a": 1}'], "engine_options are of --engine vllm"),
        (["--temperature", "1.0"], "temperature, top_p and seed belong to samples"),
        (["--evaluation.batch-size", "0"], "evaluation.batch_size is 0: expected at least 1"),
        (["--students", "a", "b"], "--students beside --student.model: expected one of them"),
        (["--samples", "2", "--lorid.knowledge", "a", "--lorid.deep", "b"], "--lorid.knowledge beside --samples"),
    ],
)
def test_what_cannot_be_is_told_in_a_line(words, tmp_path, monkeypatch, capsys, more, message):
    monkeypatch.setitem(sys.modules, "vllm", None)
    assert main([*words, *more]) == 2
    assert message in capsys.readouterr().err.replace("\n", " ") and not (tmp_path / "out.json").exists()


@pytest.mark.parametrize("engine", ["transformers", "vllm"])
def test_nothing_old_is_beside_something_new(words, tmp_path, model_folder, vllm, monkeypatch, engine):
    """Former results go before the first answer, and not before all is checked."""
    (tmp_path / "out.json").write_text("{}")
    old = tmp_path / "out.responses" / "other" / "sums.jsonl"
    old.parent.mkdir(parents=True)
    old.touch()
    words = [words[0], *words[3:], "--students", f"new={model_folder}", "--engine", engine, "--overwrite"]
    assert main([*words, "--evaluation.max-new-tokens", "100000"]) == 2
    assert old.exists() and (tmp_path / "out.json").read_text() == "{}"

    seen = []

    def replies(self, prompts, *_):
        seen.append(list(tmp_path.glob("out.*")))
        return [Reply("1", False)] * len(prompts)

    monkeypatch.setattr(VLLMEngine if engine == "vllm" else TransformersEngine, "replies", replies)
    assert main(words) == 0 and seen == [[]]
    assert json.loads((tmp_path / "out.json").read_text())["students"].keys() == {"new"}
    assert [folder.name for folder in (tmp_path / "out.responses").iterdir()] == ["new"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("notes.txt", "mine"),
        ("new/notes.txt", "mine"),
        ("questions.jsonl", '{"id": "q", "question": "How many?", "answer": "3"}\n'),
        ("broken.jsonl", "mine"),
        ("link.jsonl", None),
    ],
)
def test_overwrite_removes_nothing_of_yours(words, tmp_path, monkeypatch, capsys, name, text):
    assert main([*words, "--evaluation.questions", "1"]) == 0
    before = (tmp_path / "out.json").read_text()
    mine = tmp_path / "out.responses" / name
    mine.parent.mkdir(exist_ok=True)
    mine.symlink_to(tmp_path / "sums.jsonl") if text is None else mine.write_text(text)
    capsys.readouterr()
    assert main([*words, "--overwrite"]) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert f"{mine}: this command did not write it, and --overwrite would remove it: move it away" in told
    assert mine.exists() and (tmp_path / "out.json").read_text() == before
    mine.unlink()
    assert main([*words, "--evaluation.questions", "1", "--overwrite"]) == 0


def test_several_students_in_one_command(words, tmp_path, model_folder, capsys):
    """The student of a run is called by the name of the run."""
    second = write_student(tmp_path / "longer" / "student", build_model(seed=2))
    more = ["--students", f"base={model_folder}", second, "--evaluation.last-line", "Be brief."]
    assert main([words[0], *words[3:], *more]) == 0
    told = json.loads((tmp_path / "out.json").read_text())
    assert list(told["students"]) == ["base", "longer"] and told["asked"]["last_line"] == "Be brief."
    for label, model in (("base", str(model_folder)), ("longer", second)):
        assert (tmp_path / "out.responses" / label / "sums.jsonl").is_file()
        assert f"{label}: {model}"[:40] in capsys.readouterr().out or label == "longer"
    alone = [words[0], "--student.model", second, *words[3:], "--evaluation.last-line", "Be brief.", "--overwrite"]
    assert main(alone) == 0
    assert json.loads((tmp_path / "out.json").read_text())["files"] == told["students"]["longer"]["files"]
    for names, message in (
        ([second, second], "are both named longer: LABEL=FOLDER gives a name of its own"),
        (["=x"], "--students =x: expected FOLDER or LABEL=FOLDER"),
        ([".."], "--students ..: expected FOLDER or LABEL=FOLDER"),
    ):
        assert main([words[0], *words[3:], "--students", *names, "--overwrite"]) == 2
        assert message in capsys.readouterr().err.replace("\n", " ")


def test_weights_are_digested_only_for_a_file_of_results(words, tmp_path, monkeypatch):
    """Which reads all of them; without a file, or with samples, nobody could look the digests up."""
    calls = []
    monkeypatch.setattr("mind.evaluation.former.evaluation_digests", lambda *_: calls.append(1) or {"student": "known"})
    assert main(words[:-2]) == 0 and main([*words, "--samples", "1"]) == 0
    assert not calls and "digests" not in results(tmp_path)[0]
    assert main([*words, "--overwrite"]) == 0
    assert calls == [1] and results(tmp_path)[0]["digests"] == {"student": "known"}
