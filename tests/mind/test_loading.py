"""Students that cannot be loaded: what is wrong with their files is one line that names them, and none runs code."""

from __future__ import annotations

import builtins
import dataclasses
import json
import os
import threading
from pathlib import Path

import pytest
import torch
from tiny import NAMES, build_model, build_questions, build_tokenizer
from tokenizers_of_all_kinds import FAITHFUL

from mind.config import EMBEDDED_STUDENT, StudentConfig
from mind.errors import MindError
from mind.evaluation.generation import generate_responses
from mind.methods.mind import features
from mind.methods.mind.features import StudentEncoder, build_features
from mind.student import model as student_model
from mind.student.model import embedded_student, load_student
from mind.student.templates import plain_template
from mind.student.tokenization import Chat, embedding_rows, tokenize


def refusal(folder, **options) -> str:
    with pytest.raises(MindError) as error:
        load_student(StudentConfig(model=str(folder), **options))
    message = str(error.value)
    assert "\n" not in message and len(message) < 600 + 3 * len(str(folder))
    return message


def write_json(file: Path, **changes) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


class Shout:
    """A pickle that acts when it is loaded."""

    def __reduce__(self):
        return os.mkdir, ("acted",)


def pickled_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"model.norm.weight": Shout()}, folder / "pytorch_model.bin")


def cut(name: str, share: float):
    def change(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(share * len(content))])

    return change


def written(name: str, content: bytes):
    return lambda folder: (folder / name).write_bytes(content)


def tokens_without_a_type(folder: Path) -> None:
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"] = {"type": "Unheard", "vocab": {}}
    (folder / "tokenizer.json").write_text(json.dumps(content))


BROKEN = {
    "weights cut short": cut("model.safetensors", 0.5),
    "weights without a header": cut("model.safetensors", 0),
    "weights of another kind": written("model.safetensors", b"\xff" * 100),
    "weights that are a pickle": pickled_weights,
    "weights of another shape": lambda folder: (
        build_model(hidden_size=16).save_pretrained(folder / "other")
        or os.replace(folder / "other" / "model.safetensors", folder / "model.safetensors")
    ),
    "no weights": lambda folder: (folder / "model.safetensors").unlink(),
    "weights that are a folder": lambda folder: (
        (folder / "model.safetensors").unlink() or (folder / "model.safetensors").mkdir()
    ),
    "a configuration that is no JSON": written("config.json", b"{oops"),
    "a configuration that is a list": written("config.json", b"[]"),
    "a configuration that is not UTF-8": written("config.json", b'{"model_type": "\xff"}'),
    "a configuration that is nested": written("config.json", b"[" * 100_000),
    "no configuration": lambda folder: (folder / "config.json").unlink(),
    "an unknown kind": lambda folder: write_json(folder / "config.json", model_type="unheard"),
    "a width that is a text": lambda folder: write_json(folder / "config.json", hidden_size="wide"),
    "no heads": lambda folder: write_json(folder / "config.json", num_attention_heads=0),
    "an unknown activation": lambda folder: write_json(folder / "config.json", hidden_act="unheard"),
    "a tokenizer cut short": cut("tokenizer.json", 0.5),
    "a tokenizer of an unknown kind": tokens_without_a_type,
    "a tokenizer that is a list": written("tokenizer.json", b"[1]"),
    "a generation that is no JSON": written("generation_config.json", b"{oops"),
    "an end that is a text": lambda folder: write_json(folder / "generation_config.json", eos_token_id="</s>"),
    "ends that are no tokens": lambda folder: write_json(folder / "generation_config.json", eos_token_id=[2, 10**30]),
    "an end that is true": lambda folder: write_json(folder / "generation_config.json", eos_token_id=True),
    "a template that is not UTF-8": written("chat_template.jinja", b"\xff\xfe"),
    "a template that leaves its sandbox": written(
        "chat_template.jinja", b"{{ ().__class__.__base__.__subclasses__() }}"
    ),
    "a template without an end": written("chat_template.jinja", b"{% for m in messages %}"),
}


@pytest.mark.parametrize("change", BROKEN.values(), ids=BROKEN)
def test_a_broken_student_is_one_line_with_its_folder(change, model_folder, monkeypatch):
    monkeypatch.chdir(model_folder.parent)
    change(model_folder)
    assert str(model_folder) in refusal(model_folder)
    assert not Path("acted").exists()


def test_a_panic_is_no_exception_and_becomes_one_line(model_folder, monkeypatch):
    class Panic(BaseException):
        pass

    def panic(*_, **__):
        raise Panic("index out of bounds")

    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", panic)
    assert refusal(model_folder).endswith("cannot be loaded: Panic: index out of bounds")


CODE = """
import os
os.mkdir("acted")
from transformers import LlamaConfig
class Mine(LlamaConfig):
    model_type = "mine"
"""


@pytest.mark.parametrize("model_type", ["mine", "llama"])
def test_code_that_comes_with_a_student_is_not_run(model_folder, model_type, monkeypatch):
    """Nobody is asked either: a "y" that is piped in for something else would be taken for an answer."""
    monkeypatch.chdir(model_folder.parent)
    monkeypatch.setattr(builtins, "input", lambda _="": "y")
    (model_folder / "mine.py").write_text(CODE)
    own = {"AutoConfig": "mine.Mine", "AutoModelForCausalLM": "mine.Mine"}
    write_json(model_folder / "config.json", model_type=model_type, auto_map=own)
    write_json(model_folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["mine.Mine", "mine.Mine"]})
    (model_folder / "custom_generate").mkdir()
    (model_folder / "custom_generate" / "generate.py").write_text(CODE)
    if model_type == "mine":
        assert refusal(model_folder).endswith("MIND runs no code that comes with a model")
    else:  # transformers has that one itself
        model, _ = load_student(StudentConfig(model=str(model_folder)))
        assert type(model).__module__ == "transformers.models.llama.modeling_llama"
    assert not Path("acted").exists()


def test_a_file_is_no_student(model_folder):
    file = model_folder / "model.safetensors"
    assert str(file) in refusal(file)


@pytest.mark.parametrize(
    "name", ["st/none/x", "/nowhere/at/all", "./x", "a b", "x/", "ä", "a\0b", "someone/else", "~none/x", "\ud83d"]
)
def test_a_student_that_is_not_there_is_one_line(name):
    assert refusal(name).startswith(f"student.model {name}: ")


def without_template(folder: Path) -> Path:
    (folder / "chat_template.jinja").unlink()
    return folder


def test_a_base_model_learns_by_a_plain_template(model_folder, tmp_path):
    config = StudentConfig(model=str(without_template(model_folder)), chat_template="plain")
    model, tokenizer = load_student(config)
    question = build_questions(1)[0]
    (tokenized,) = tokenize([question], tokenizer, NAMES, 500)
    text = tokenizer.decode([*tokenized.prompt, *tokenized.rationales[0], *tokenized.suffix])
    assert text == "Question: What is 2 plus 1?\nAnswer:\n2 + 1 = 3.\n#### 3<|im_end|>"
    assert Chat(tokenizer).end_id == tokenizer.eos_token_id and Chat(tokenizer).template.notes == ()
    model.save_pretrained(tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "saved")
    again = Chat(load_student(StudentConfig(model=str(tmp_path / "saved")))[1])
    assert again.prompt(question) == list(tokenized.prompt)


@pytest.mark.parametrize("build", FAITHFUL.values(), ids=FAITHFUL)
def test_a_plain_template_suits_tokenizers_of_all_kinds(build):
    tokenizer = build()
    tokenizer.chat_template = plain_template(tokenizer)
    (tokenized,) = tokenize(build_questions(1), tokenizer, NAMES, 500)
    ids = [*tokenized.prompt, *tokenized.rationales[0], *tokenized.suffix]
    text = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    assert text.endswith("nswer:\n2 + 1 = 3.\n#### 3</s>") and ": What is 2 plus 1?\n" in text
    assert Chat(tokenizer).end_id == tokenizer.eos_token_id


@pytest.mark.parametrize("adds", [True, False])
def test_a_plain_template_begins_as_the_tokenizer_begins_a_text(adds):
    tokenizer = build_tokenizer()
    tokenizer.bos_token = "<|im_start|>"
    if adds:
        from tokenizers import processors

        pieces = [("<|im_start|>", 0)]
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing("<|im_start|> $A", None, pieces)
    tokenizer.chat_template = plain_template(tokenizer)
    assert tokenizer.decode(Chat(tokenizer).prompt(build_questions(1)[0])).startswith("<|im_start|>Question: ") is adds


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "mine.jinja: no such file"),
        (b"\xff", "mine.jinja: not UTF-8 text"),
        (b"{% for m in messages %}", "student.chat_template .*mine.jinja: .* cannot be rendered: TemplateSyntaxError"),
        (b"Hello", "student.chat_template .*mine.jinja: .* writes the question not at all"),
        (b"{{ ''.__class__.__mro__ }}", "student.chat_template .*mine.jinja: .* SecurityError"),
    ],
)
def test_a_template_of_the_users_own_is_named_if_it_is_faulty(content, message, model_folder, tmp_path):
    file = tmp_path / "mine.jinja"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(MindError, match=message):
        load_student(StudentConfig(model=str(model_folder), chat_template=str(file)))


def test_a_template_of_the_users_own_takes_the_place_of_the_tokenizers(model_folder, tmp_path):
    file = tmp_path / "mine.jinja"
    file.write_bytes(b"\xef\xbb\xbf" + build_tokenizer().chat_template.replace("<|im_start|>", "* ").encode())
    _, tokenizer = load_student(StudentConfig(model=str(model_folder), chat_template=str(file)))
    assert tokenizer.decode(Chat(tokenizer).prompt(build_questions(1)[0])).startswith("* user\nWhat is")


def added(eos: str, template: str):
    """A tokenizer with a token that the model has no row for."""
    tokenizer = build_tokenizer()
    tokenizer.add_tokens(["<step>"])
    tokenizer.eos_token, tokenizer.chat_template = eos, template
    return tokenizer


CHATML = build_tokenizer().chat_template
BEYOND = {
    "a word": (added("<|im_end|>", CHATML), "What is <step>?"),
    "a part of the template": (added("<|im_end|>", CHATML.replace("<|im_start|>", "<step>")), "What is 1?"),
    "the end": (added("<step>", "{% for m in messages %}{{ m['role'] + ': ' + m['content'] }}\n{% endfor %}"), "What?"),
}


@pytest.mark.filterwarnings("ignore:student.model .* its chat template:RuntimeWarning")
@pytest.mark.parametrize(("tokenizer", "text"), BEYOND.values(), ids=BEYOND)
def test_a_token_beyond_the_embeddings_is_found_before_training(tokenizer, text, model_folder):
    question = dataclasses.replace(build_questions(1)[0], question=text)
    tokenizer.save_pretrained(model_folder)
    model, tokenizer = load_student(StudentConfig(model=str(model_folder)))
    with pytest.raises(MindError, match=r"question .*'<step>', id 258, and the model has 258 embeddings"):
        tokenize([question], tokenizer, NAMES, 500, embedding_rows(model))


def test_padding_beyond_the_embeddings_is_never_looked_up():
    prompts, responses = [[5, 6, 7, 8, 9], [5, 6]], []
    for pad in ("<|im_end|>", "<pad>"):
        tokenizer = build_tokenizer()
        tokenizer.add_special_tokens({"pad_token": pad})
        responses.append(generate_responses(build_model(), tokenizer, prompts, max_new_tokens=4, batch_size=2))
    assert tokenizer.pad_token_id == 258 and responses[0] == responses[1]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("sdp", "student.attention is 'sdp': expected one of auto, eager, .*sdpa"),
        ("flash", "student.attention is 'flash': expected one of"),
        ("SDPA", "student.attention is 'SDPA': expected one of"),
        ("paged|eager", "student.attention is 'paged|eager': expected one of"),
        ("someone/some-kernel", "student.attention is 'someone/some-kernel': expected one of"),
        ("flash_attention_2", "student.attention flash_attention_2: .*installed"),
    ],
)
def test_an_attention_that_is_not_there_is_named(name, message, model_folder):
    with pytest.raises(MindError, match=message):
        load_student(StudentConfig(model=str(model_folder), attention=name))


def test_of_two_first_runs_one_converts_the_student(monkeypatch, tmp_path):
    """Neither deletes what the other has, and what a kill left of a conversion is no student."""
    both, conversions = threading.Barrier(2), []

    def convert(source, target):
        conversions.append(source)
        (target / "config.json").write_text("{}")
        both.wait(timeout=0.5) if len(conversions) > 1 else threading.Event().wait(0.2)
        (target / "model.safetensors").write_text("whole")

    monkeypatch.setattr(student_model, "_embedded_source", lambda: "package")
    monkeypatch.setattr(student_model, "_convert_gguf", convert)
    left = tmp_path / "cache" / f".{EMBEDDED_STUDENT}.partial"
    left.mkdir(parents=True)
    (left / "model.safetensors").write_text("half")
    found = []
    runs = [threading.Thread(target=lambda: found.append(embedded_student())) for _ in range(2)]
    for run in runs:
        run.start()
    for run in runs:
        run.join()
    assert conversions == ["package"] and found == [tmp_path / "cache" / EMBEDDED_STUDENT] * 2
    assert sorted(file.name for file in found[0].iterdir()) == ["config.json", "model.safetensors"]
    assert (found[0] / "model.safetensors").read_text() == "whole" and not left.exists()


def test_a_cache_is_only_read_if_it_has_the_student(monkeypatch, tmp_path):
    folder = tmp_path / "cache" / EMBEDDED_STUDENT
    folder.mkdir(parents=True)
    (folder / "model.safetensors").touch()
    monkeypatch.setattr(student_model, "make_cache", lambda _: pytest.fail("written to"))
    assert embedded_student() == folder


def test_features_need_a_place_before_they_are_computed(tmp_path):
    (tmp_path / "cache").write_text("a file")
    encoder = StudentEncoder(build_model(), build_tokenizer(), 200)
    encoder.encode = lambda *_: pytest.fail("the place comes first")
    with pytest.raises(MindError, match="cache/features: cannot be made: Not a directory; .*MIND_CACHE"):
        build_features(build_questions(2), NAMES, encoder, tmp_path / "cache")


def test_features_that_cannot_be_read_are_named(tmp_path):
    encoder = StudentEncoder(build_model(), build_tokenizer(), 200)
    build_features(build_questions(2), NAMES, encoder, tmp_path)
    (file,) = (tmp_path / "features").iterdir()
    content = file.read_bytes()
    for broken in (content[: len(content) // 2], b"", features.save({"other": torch.ones(1)})):
        file.write_bytes(broken)
        with pytest.raises(MindError, match=f"{file}: cannot be read: .*; without it the vectors are computed again"):
            build_features(build_questions(2), NAMES, encoder, tmp_path)
