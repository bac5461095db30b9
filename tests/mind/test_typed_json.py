"""Dataclasses as JSON: what is saved is loaded, rows stay as they were, and each fault is named with its place."""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass, field
from typing import Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mind.config import DataConfig, MindConfig, TrainConfig
from mind.data.sources import SourceConfig
from mind.errors import MindError
from mind.records import Key, Response, Verdict
from mind.teacher.config import GenerateConfig, ModelConfig
from mind.teacher.requests import Failure
from mind.typed_json import load_json, record_of, row_of, save_json

RESPONSE = Response(Key("q1", "socratic", 2), "ab12", "m", "It is.", "stop", 3, None, 1, 0.5, "2026-11-21T10:00:00Z")
RESPONSE_ROW = (
    '{"id": "q1", "perspective": "socratic", "sample": 2, "request": "ab12", "model": "m", "text": "It is.", '
    '"finish_reason": "stop", "prompt_tokens": 3, "completion_tokens": null, "attempts": 1, "seconds": 0.5, '
    '"created": "2026-11-21T10:00:00Z"}'
)


@pytest.mark.parametrize(
    "config",
    [
        MindConfig(data=DataConfig(train="x.jsonl", perspectives=("a", "b")), train=TrainConfig(max_steps=7)),
        GenerateConfig("x", SourceConfig("q.jsonl"), ModelConfig("m", top_p=0.5), prices={"m": (1.0, 2.5)}),
    ],
    ids=["run", "data set"],
)
def test_a_saved_configuration_is_loaded(tmp_path, config):
    save_json(config, tmp_path / "c.json")
    assert load_json(tmp_path / "c.json", type(config)) == config
    assert [path.name for path in tmp_path.iterdir()] == ["c.json"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "c.json: no such file"),
        ("{\n  broken", "c.json:2: not JSON: Expecting property name"),
        ("[" * 100_000, "c.json: cannot be read: brackets are nested too deep"),
        ('{"train": {"seed": ' + "9" * 5000 + "}}", "c.json: cannot be read: a number has 5,000 digits"),
        ('{"train": {"seed": 1, "seed": 2}}', 'c.json: cannot be read: an object has "seed" twice'),
        ("[]", "c.json: expected a JSON object, found []"),
        ('{"student": 3}', "c.json: student: expected a JSON object, found 3"),
        (
            '{"student": {"modell": "x"}}',
            "c.json: student: unknown field modell: the fields are model, dtype,",
        ),
        ('{"student": {"lora": "yes"}}', 'c.json: student: "lora" is "yes": expected true or false'),
        ('{"train": {"seed": 1.5}}', 'c.json: train: "seed" is 1.5: expected an integer'),
        ('{"train": {"epochs": true}}', 'c.json: train: "epochs" is true: expected a number'),
        ('{"data": {"max_questions": "2"}}', 'c.json: data: "max_questions" is "2": expected an integer or null'),
        ('{"data": {"perspectives": "a"}}', 'c.json: data: "perspectives" is "a": expected a list'),
        ('{"data": {"perspectives": ["a", 1]}}', 'c.json: data: "perspectives" holds 1: expected a string'),
        ('{"data": {"evaluation": [null]}}', 'c.json: data: "evaluation" holds null: expected a string'),
        ('{"train": {"learning_rate": 1' + "0" * 400 + "}}", 'c.json: train: "learning_rate" is 1000'),
        ('{"train": {"share_prompts": true}}', 'c.json: train: "share_prompts" is true: expected one of auto, always'),
        ('{"student": {"dtype": "int8"}}', 'c.json: student: "dtype" is "int8": expected one of float32, bfloat16'),
        ('{"train": {"tokens_per_step": 0}}', "c.json: train.tokens_per_step is 0: expected at least 1"),
        ('{"stages": {"a": {"share": 2}}}', "c.json: stages: share is 2: expected a number between 0 and 1"),
        ('{"output": " "}', "c.json: output is ' ': expected a text that is not blank"),
    ],
)
def test_a_faulty_configuration_is_named(tmp_path, text, message):
    if text is not None:
        (tmp_path / "c.json").write_text(text)
    with pytest.raises(MindError) as error:
        load_json(tmp_path / "c.json", MindConfig)
    assert str(error.value).startswith(f"{tmp_path}/{message}")


@pytest.mark.parametrize(
    ("prices", "message"),
    [
        ('{"m": [1]}', '"prices" holds [1]: expected a list of 2'),
        ('{"m": [1, "2"]}', '"prices" holds "2": expected a number'),
        ('{"m": 3}', '"prices" holds 3: expected a list'),
    ],
)
def test_an_item_of_another_type_is_named(tmp_path, prices, message):
    text = f'{{"output": "x", "questions": {{"path": "q"}}, "teacher": {{"model": "m"}}, "prices": {prices}}}'
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(MindError, match=re.escape(f"c.json: {message}")):
        load_json(tmp_path / "c.json", GenerateConfig)


def test_a_field_without_a_default_must_be_there(tmp_path):
    (tmp_path / "c.json").write_text('{"output": "x", "questions": {"path": "q.jsonl"}, "teacher": {}}')
    with pytest.raises(MindError, match='c.json: teacher: "model" is missing'):
        load_json(tmp_path / "c.json", GenerateConfig)


@pytest.mark.parametrize(
    ("record", "row"),
    [
        (RESPONSE, RESPONSE_ROW),
        (dataclasses.replace(RESPONSE, reasoning="hm"), RESPONSE_ROW.replace("}", ', "reasoning": "hm"}')),
        (
            Verdict(Key("q", "planning", 0), "wrong", None, "no answer found", "rules"),
            '{"id": "q", "perspective": "planning", "sample": 0, "verdict": "wrong", "extracted": null, '
            '"reason": "no answer found", "judge": "rules"}',
        ),
        (
            Failure(Key("q", "planning", 0), "time-out", "", 6),
            '{"id": "q", "perspective": "planning", "sample": 0, "reason": "time-out", "detail": "", "attempts": 6}',
        ),
    ],
)
def test_a_record_is_a_flat_row(record, row):
    """These rows are files' formats: journals of earlier versions are read, and theirs go on in the same form."""
    assert json.dumps(row_of(record)) == row
    assert record_of(type(record), "f:1", json.loads(row)) == record


def test_other_names_in_a_row_are_ignored():
    assert record_of(Key, "f:1", {"id": "q", "perspective": "p", "sample": 1, "note": {}}) == Key("q", "p", 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": None}, '"id" is null: expected a string'),
        ({"sample": "0"}, '"sample" is "0": expected an integer'),
        ({"sample": True}, '"sample" is true: expected an integer'),
        ({"seconds": "1"}, '"seconds" is "1": expected a number'),
        ({"prompt_tokens": 1.0}, '"prompt_tokens" is 1.0: expected an integer or null'),
        (
            {"text": ["a" * 1_000]},
            '"text" is ["aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa: expected a string',
        ),
    ],
)
def test_a_faulty_field_of_a_row_is_named(change, message):
    with pytest.raises(MindError) as error:
        record_of(Response, "r.jsonl:7", json.loads(RESPONSE_ROW) | change)
    assert str(error.value) == f"r.jsonl:7: {message}"


@pytest.mark.parametrize("name", ["id", "perspective", "sample", "text", "completion_tokens"])
def test_a_missing_field_of_a_row_is_named(name):
    row = {key: value for key, value in json.loads(RESPONSE_ROW).items() if key != name}
    with pytest.raises(MindError, match=f'^r.jsonl:7: "{name}" is missing$'):
        record_of(Response, "r.jsonl:7", row)


def test_a_value_that_a_literal_lacks_is_named():
    row = row_of(Verdict(Key("q", "p", 0), "right", "4", "equal as numbers", "rules"))
    with pytest.raises(MindError, match='"verdict" is "maybe": expected one of right, wrong, unparsed'):
        record_of(Verdict, "f:1", row | {"verdict": "maybe"})


@dataclass(frozen=True)
class Part:
    number: float
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Whole:
    part: Part
    mode: Literal["a", "b"] = "a"
    table: dict[str, tuple[int, ...]] = field(default_factory=dict)
    note: str | None = None


parts = st.builds(Part, st.floats(allow_nan=False), st.lists(st.text()).map(tuple))
tables = st.dictionaries(st.text(), st.lists(st.integers()).map(tuple))
wholes = st.builds(Whole, parts, st.sampled_from(["a", "b"]), tables, st.none() | st.text())


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # each example waits for the disk
@given(wholes)
def test_every_dataclass_comes_back(tmp_path_factory, whole):
    path = tmp_path_factory.getbasetemp() / "whole.json"
    save_json(whole, path)
    assert load_json(path, Whole) == whole


def test_a_whole_number_may_be_written_without_a_point(tmp_path):
    (tmp_path / "p.json").write_text('{"number": 1}')
    assert load_json(tmp_path / "p.json", Part) == Part(1.0)
