"""Rows of files: the line of a fault, files without text, long cells."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from mind.data.sources import SourceConfig, load_source
from mind.errors import MindError
from mind.records import Question


def refusal(path: Path) -> str:
    with pytest.raises(MindError) as error:
        load_source(SourceConfig(str(path)))
    return str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("r.csv", b'question,answer\n?,1\n\n"a,1\nb,2\n', "4: not CSV: unexpected end of data"),
        ("r.csv", b"question,answer\na,1,2\n", "2: 3 values for the 2 columns question, answer"),
        (
            "r.csv",
            b'id,question,answer\n1,"two\nlines",1\n\n1,b,2\n',
            "5: id 1 is also on line 2: give each question an id",
        ),
        ("r.jsonl", b'\xef\xbb\xbf{\n"question": "a"}', "1: an object continues on the next line"),
    ],
)
def test_the_line_of_a_fault_is_told(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    assert refusal(tmp_path / name).startswith(f"{tmp_path / name}:{message}")


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv"])
@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf", b"\xef\xbb\xbf\r\n \n"])
def test_a_file_without_text_has_no_rows(tmp_path, suffix, content):
    path = tmp_path / f"r.{suffix}"
    path.write_bytes(content)
    assert refusal(path) == f"{path}: there are no rows: expected a question per row"


def test_a_file_with_one_line_has_a_header_alone(tmp_path):
    (tmp_path / "r.csv").write_text("How many?,5\n")
    message = "no row follows the first, which names the columns: How many?, 5"
    assert refusal(tmp_path / "r.csv") == f"{tmp_path / 'r.csv'}: {message}"


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ("rationale", '"rationale" is not read; perhaps "rationales" is meant'),
        ("wrong_rationale Knowledge", '"Knowledge" is not read; perhaps "knowledge" is meant'),
        ("options questions source", None),
    ],
)
def test_misspelt_columns_are_told_once(tmp_path, caplog, columns, told):
    rows = [{"id": str(n), "problem": f"{n}?", "answer": "1", **dict.fromkeys(columns.split(), "x")} for n in range(3)]
    path = tmp_path / "r.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert len(load_source(SourceConfig(str(path), question_column="problem"))) == 3
    messages = [record.getMessage() for record in caplog.records]
    assert (f"{path}: {told}" in messages) is (told is not None)
    assert len(messages) == (0 if told is None else len(columns.split()))


def test_what_is_no_file_of_questions_is_told():
    for name, message in {
        "https://there.org/a.jsonl": "no such file; https addresses are not read: download the file first",
        "/dev/null": "expected a file whose name ends in .jsonl, .json, .csv, .parquet",
        f"{'a' * 300}.jsonl": "cannot be read: File name too long",
        "a" * 300: "no such folder",
    }.items():
        with pytest.raises(MindError, match=message):
            load_source(SourceConfig(name))


def test_a_cell_may_be_longer_than_the_csv_module_takes_by_default(tmp_path):
    path, limit = tmp_path / "r.csv", csv.field_size_limit()
    path.write_text(f"question,answer\n{'x' * 2 * limit},1\n")
    assert load_source(SourceConfig(str(path))) == [Question("r-0", "x" * 2 * limit, "1")]
    assert csv.field_size_limit() == limit


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("r.csv", 'id,question,answer\n1,"?,2\n', "not CSV: unexpected end of data: the text lacks its closing quote"),
        (
            "r.csv",
            'id,question,answer\n1,"?"!,2\n',
            """not CSV: ',' expected after '"': write a quote within a text twice: \"\"""",
        ),
        ("r.csv", "id,question,answer\n1,?\0,2\n", "holds the character NUL, which no text has: take it out"),
        (
            "r.jsonl",
            "{}\n}\n",
            "not JSON: Expecting value at column 1: it ends an object that begins above: write each object whole, "
            "on its own line",
        ),
    ],
)
def test_a_faulty_line_is_named_with_a_remedy(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    assert f"{name}:2: {message}" in refusal(tmp_path / name)
