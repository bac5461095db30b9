"""Questions in Parquet files: what JSON lines hold, and what is wrong with a table."""

from __future__ import annotations

import dataclasses
import datetime
import json
from decimal import Decimal

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_sources import QUESTIONS, ROW, read_source, write_parquet

from mind.data.parquet import parquet_rows
from mind.data.questions import load_questions, save_questions
from mind.data.sources import SourceConfig
from mind.errors import MindError
from mind.grading.grade import grade_file
from mind.records import Question, Rationale

visible = st.characters(exclude_categories=["C", "Z"])
texts = st.builds("{}{}{}".format, st.text(max_size=4), visible, st.text(max_size=4))
labels = st.dictionaries(texts, texts, min_size=2, max_size=4)
choices = st.none() | labels.filter(lambda found: len({name.strip().lower() for name in found}) == len(found))
rationales = st.dictionaries(texts, texts, max_size=3)


def arrow():
    pytest.importorskip("pyarrow.parquet")
    return pytest.importorskip("pyarrow")


@st.composite
def question_lists(draw):
    found = []
    for identifier in draw(st.lists(texts, unique=True, min_size=1, max_size=4)):
        labeled = draw(choices)
        answer = draw(texts) if labeled is None else draw(st.sampled_from(sorted(labeled)))
        given = tuple(Rationale(name, text) for name, text in draw(rationales).items())
        found.append(Question(identifier, draw(texts), answer, labeled, given))
    return found


@settings(max_examples=60, deadline=None)
@given(question_lists())
def test_parquet_holds_what_json_lines_hold(tmp_path_factory, questions):
    pytest.importorskip("pyarrow")
    folder = tmp_path_factory.getbasetemp()
    for name in ("q.jsonl", "q.parquet"):
        save_questions(questions, folder / name)
        loaded = load_questions(folder / name)
        assert loaded == questions
        assert [list(q.choices or ()) for q in loaded] == [list(q.choices or ()) for q in questions]
    bare = [dataclasses.replace(question, rationales=()) for question in questions]
    assert read_source(SourceConfig(str(folder / "q.parquet"))) == bare


@pytest.mark.parametrize(
    "question",
    [
        Question("s\ud800", "?", "2"),
        Question("s", "\udfff", "2"),
        Question("s", "?", "A", {"A": "\ud800", "B": "y"}),
        Question("s", "?", "2", None, (Rationale("p", "\ud800"),)),
    ],
)
def test_a_lone_surrogate_is_refused(tmp_path, question):
    """No tokenizer takes one, so that it is better told when it is read than in the middle of a job."""
    pytest.importorskip("pyarrow")
    save_questions([question], tmp_path / "q.jsonl")
    with pytest.raises(MindError, match=r'q.jsonl:1: "[^"]*" holds half of a character, \\ud[f8]') as error:
        load_questions(tmp_path / "q.jsonl")
    assert str(error.value).isprintable()
    with pytest.raises(MindError, match=r"^question 's(\\ud800)?' has a lone surrogate, which Parquet cannot hold"):
        save_questions([*QUESTIONS, question], tmp_path / "q.parquet")
    assert [path.name for path in tmp_path.iterdir()] == ["q.jsonl"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"id": b"x"}, """: row 1: "id" is "bytes b'x'": expected a string or a number"""),
        ({"answer": None}, ': row 1: "answer" is null: expected a string or a number'),
        ({"id": "a"}, ": row 1: id a is also on row 0"),
        ({"choices": [{"label": "A", "text": "x"}] * 2}, ': row 1: "choices" has a label twice'),
        ({"choices": [{"label": "A", "text": "x"}]}, ': row 1: "choices" has 1 choices: expected at least 2'),
        ({"rationales": [{"perspective": "p", "text": " "}]}, ': row 1: "rationales[0].text" is empty'),
    ],
)
def test_a_faulty_row_of_parquet_is_named(tmp_path, row, message):
    first = {"id": "a", **ROW}
    second = {"id": "b", **ROW, **row}
    if type(second["id"]) is not str:
        first["id"] = second["id"]
        message = message.replace("row 1", "row 0")
    path = write_parquet(tmp_path / "q.parquet", *({"choices": None, "rationales": None} | r for r in (first, second)))
    with pytest.raises(MindError) as error:
        load_questions(path)
    assert str(error.value).startswith(f"{path}{message}")


def test_numbers_of_parquet_are_those_that_were_written(tmp_path):
    pyarrow = arrow()
    answers = pyarrow.array([0.1, 1e-5, 2.0], pyarrow.float32())
    table = {"question": ["a?", "b?", "c?"], "answer": answers}
    pyarrow.parquet.write_table(pyarrow.table(table), tmp_path / "q.parquet")
    assert [question.answer for question in load_questions(tmp_path / "q.parquet")] == ["0.1", "0.00001", "2"]
    choices = pyarrow.array([["x", "y"]] * 3)
    table = {"question": ["a?", "b?", "c?"], "answer": pyarrow.array([0.0, 1.0, 2.0]), "choices": choices}
    pyarrow.parquet.write_table(pyarrow.table(table), tmp_path / "q.parquet")
    with pytest.raises(MindError, match='row 2: "answer" 2 is not one of the choices A, B') as error:
        load_questions(tmp_path / "q.parquet")
    assert [question.answer for question in error.value.questions] == ["A", "B"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (datetime.date(2024, 1, 5), "2024-01-05"),
        (datetime.datetime(2024, 1, 5, 3, 4), "2024-01-05 03:04:00"),
        (datetime.time(9, 15), "09:15:00"),
        (datetime.timedelta(hours=2), "7200 seconds"),
        (Decimal("1.50"), "1.50"),
    ],
)
def test_values_that_json_does_not_have_are_texts(tmp_path, value, text):
    pyarrow = arrow()
    row = {"id": "a", "question": "?", "answer": value, "response": f"#### {text}", "more": [{"x": value}]}
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "q.parquet")
    assert [question.answer for question in load_questions(tmp_path / "q.parquet")] == [text]
    assert grade_file(tmp_path / "q.parquet", tmp_path / "out.jsonl").total == 1
    graded = json.loads((tmp_path / "out.jsonl").read_text())
    assert graded | {"correct": None, "extracted": None} == row | {
        "answer": text,
        "more": [{"x": text}],
        "correct": None,
        "extracted": None,
    }


@pytest.mark.parametrize("bits", [16, 32])
def test_short_numbers_are_those_that_were_written(tmp_path, bits):
    pyarrow = arrow()
    number = pyarrow.float16() if bits == 16 else pyarrow.float32()
    columns = {
        "id": pyarrow.array(["a", "b"]),
        "question": pyarrow.array(["?", "?!"]),
        "answer": pyarrow.array(numpy.array([0.1, 32768.0], f"float{bits}")),
        "choices": pyarrow.array([numpy.array([0.1, 0.7], f"float{bits}"), None], pyarrow.list_(number)),
    }
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "q.parquet")
    first, second = load_questions(tmp_path / "q.parquet")
    assert (first.answer, first.choices) == ("A", {"A": "0.1", "B": "0.7"})
    assert (second.answer, second.choices) == ("32768", None)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ([{"x": Decimal("1.50"), "y": 2}, None], [{"x": "1.50", "y": 2}, None]),
        ({"x": [datetime.date(2024, 1, 5), None]}, {"x": ["2024-01-05", None]}),
        (datetime.timedelta(milliseconds=1500), "1.5 seconds"),
        (datetime.timedelta(microseconds=100_000_000_100_000), "100000000.1 seconds"),
        (Decimal("0.0000001"), "0.0000001"),
    ],
)
def test_values_within_others_are_texts_too(tmp_path, value, text):
    pyarrow = arrow()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"more": value}]), tmp_path / "q.parquet")
    assert [row for _, row in parquet_rows(tmp_path / "q.parquet")] == [{"more": text}]


def test_keys_of_maps_and_views_of_lists_are_those_that_were_written(tmp_path):
    pyarrow = arrow()
    pairs = pyarrow.array([[(0.1, "x"), (0.2, "y")]], pyarrow.map_(pyarrow.float32(), pyarrow.string()))
    pyarrow.parquet.write_table(pyarrow.table({"more": pairs}), tmp_path / "q.parquet")
    assert [row for _, row in parquet_rows(tmp_path / "q.parquet")] == [{"more": {0.1: "x", 0.2: "y"}}]


@pytest.mark.parametrize("value", [b"x", [b"x"], [{"bytes": b"x", "path": None}]])
def test_bytes_are_named_before_anything_is_graded(tmp_path, value):
    pyarrow = arrow()
    row = {"id": "a", "question": "?", "answer": "1", "response": "#### 1", "image": value}
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "q.parquet")
    with pytest.raises(MindError, match='row 0: "image" holds bytes, which JSON does not have'):
        grade_file(tmp_path / "q.parquet", tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()
    assert [question.answer for question in load_questions(tmp_path / "q.parquet")] == ["1"]


@pytest.mark.parametrize("fault", ["two columns", "a date beyond all dates"])
def test_a_table_that_cannot_be_read_is_named(tmp_path, fault):
    pyarrow = arrow()
    text, date = pyarrow.array(["?"]), pyarrow.array([2**62], pyarrow.timestamp("us"))
    third = ("answer", text) if fault == "two columns" else ("date", date)
    table = pyarrow.table([text, text, third[1]], names=["question", "answer", third[0]])
    pyarrow.parquet.write_table(table, tmp_path / "q.parquet")
    message = "two columns have the same name" if fault == "two columns" else "cannot be read as Parquet: date value"
    with pytest.raises(MindError, match=message):
        load_questions(tmp_path / "q.parquet")


def test_an_empty_parquet_file_is_named(tmp_path):
    pytest.importorskip("pyarrow")
    save_questions([], tmp_path / "q.parquet")
    with pytest.raises(MindError, match=r"q.parquet: there are no rows: expected a question per row"):
        load_questions(tmp_path / "q.parquet")
