"""Questions from elsewhere: every form of file, choices and answer, each refusal, and Parquet as good as JSON lines."""

from __future__ import annotations

import bz2
import csv
import dataclasses
import gzip
import json
import lzma
import sys
from pathlib import Path

import pytest

from mind.data.questions import load_questions, save_questions
from mind.data.sources import SourceConfig, load_source
from mind.errors import MindError
from mind.records import Question, Rationale

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the shared data folder is not next to the repository")

ROW = {"question": "1 + 1?", "answer": "2"}
read_source = load_source
QUESTIONS = [
    Question("a", "Wie viel?\u2028🍎\x00", "1,234", None, (Rationale("planning", 'Add\n"it".'),)),
    Question("b", "Which?", "B", {"B": "x", "A": "y"}),
]


def write_json(path: Path, *rows: object) -> Path:
    path.write_text(json.dumps(rows, indent=1))
    return path


def write_lines(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_parquet(path: Path, *rows: dict) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    pyarrow.parquet = pytest.importorskip("pyarrow.parquet")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


@pytest.fixture
def datasets(tmp_path, monkeypatch):
    """The library, out of reach of any network, with a cache of its own."""
    library = pytest.importorskip("datasets")
    monkeypatch.setattr(library.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(library.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    library.disable_progress_bars()
    return library


def refusal(path: Path | str, **mapping: object) -> str:
    with pytest.raises(MindError) as error:
        read_source(SourceConfig(str(path), **mapping))
    return str(error.value)


def test_our_own_lines_are_read_as_ever(tmp_path):
    path = tmp_path / "own.jsonl"
    save_questions(QUESTIONS, path)
    bare = [dataclasses.replace(question, rationales=()) for question in QUESTIONS]
    assert read_source(SourceConfig(str(path))) == bare
    assert read_source(SourceConfig(str(path), limit=1)) == bare[:1]
    assert load_questions(path) == QUESTIONS


@pytest.mark.parametrize(
    ("write", "name"),
    [
        (write_lines, "rows.jsonl"),
        (write_lines, "rows.json"),
        (write_json, "rows.json"),
        (write_parquet, "rows.parquet"),
    ],
)
def test_columns_are_mapped(tmp_path, write, name):
    rows = [
        {"key": f"k{n}", "problem": f"{n} + 1?", "solution": f"So:\n#### a\n#### 1,00{n} ", "date": "2026-01-01"}
        for n in range(3)
    ]
    path = write(tmp_path / name, *rows)
    mapping = {"question_column": "problem", "answer_column": "solution", "answer_marker": "####", "limit": 2}
    assert read_source(SourceConfig(str(path), id_column="key", **mapping)) == [
        Question("k0", "0 + 1?", "1,000"),
        Question("k1", "1 + 1?", "1,001"),
    ]
    assert [question.id for question in read_source(SourceConfig(str(path), **mapping))] == ["rows-0", "rows-1"]


def test_texts_of_a_file_stay_as_they_are(tmp_path):
    answers = ["2026-01-01", "007", "1.50", "NA", "None", "true", "1,234", "x\ny", "\u2028z"]
    expected = [Question(f"t-{n}", f"q{n}", answer) for n, answer in enumerate(answers)]
    rows = [{"question": f"q{n}", "answer": answer} for n, answer in enumerate(answers)]
    with (tmp_path / "t.csv").open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, ["question", "answer"])
        writer.writeheader()
        writer.writerows(rows)
    (tmp_path / "cr.csv").write_bytes(b"question,answer\r1 + 1?,2\r\r")
    assert read_source(SourceConfig(str(tmp_path / "cr.csv"))) == [Question("cr-0", "1 + 1?", "2")]
    write_json(tmp_path / "t.json", *rows)
    write_parquet(tmp_path / "t.parquet", *rows)
    for name in ("t.csv", "t.json", "t.parquet"):
        assert read_source(SourceConfig(str(tmp_path / name))) == expected
    write_lines(tmp_path / "t.json", *rows)
    assert read_source(SourceConfig(str(tmp_path / "t.json"))) == expected


def test_cells_of_a_table_say_what_json_says(tmp_path):
    rows = [
        ["id", " question ", "answer", "choices"],
        ["a", ' "1 + 1?"', "2", ""],
        ["", "Which?", "B", '"[""Mars"", ""Venus""]"'],
        ["c", "Which?", "venus", '"{""X"": ""Mars"", ""Y"": ""Venus""}"'],
    ]
    path = tmp_path / "t.csv"
    path.write_text("".join(",".join(row) + "\n" for row in rows))
    assert read_source(SourceConfig(str(path))) == [
        Question("a", "1 + 1?", "2"),
        Question("t-1", "Which?", "B", {"A": "Mars", "B": "Venus"}),
        Question("c", "Which?", "Y", {"X": "Mars", "Y": "Venus"}),
    ]
    path.write_text("id,question,answer,choices\na,,,\nb,?,A,[1\nc,?,A,A or B\n")
    assert refusal(path).replace(f"{path}:", "").splitlines()[:4] == [
        '2: "question" is missing',
        '2: "answer" is missing',
        "3: \"choices\": not JSON: Expecting ',' delimiter at column 3",
        '4: "choices" is "A or B": expected choices, such as {"A": "...", "B": "..."}',
    ]


def test_numbers_become_text_and_truth_becomes_yes_and_no(tmp_path):
    answers = [2, -1.5, 10**400, True, False]
    rows = [{"id": n, "question": "?", "answer": answer} for n, answer in enumerate(answers)]
    yes_no = {"yes": "yes", "no": "no"}
    assert read_source(SourceConfig(str(write_json(tmp_path / "n.json", *rows)))) == [
        Question("0", "?", "2"),
        Question("1", "?", "-1.5"),
        Question("2", "?", str(10**400)),
        Question("3", "?", "yes", yes_no),
        Question("4", "?", "no", yes_no),
    ]


@pytest.mark.parametrize(
    ("choices", "answer", "expected"),
    [
        ({"label": ["A", "B"], "text": ["x", "y"]}, "B", ("B", {"A": "x", "B": "y"})),
        ({"label": [1, 2], "text": ["2", "1"]}, 2, ("2", {"1": "2", "2": "1"})),
        ({"label": "x", "text": "y"}, "text", ("text", {"label": "x", "text": "y"})),
        ({"A": "x", "B": 7, "C": None}, "A", ("A", {"A": "x", "B": "7"})),
        ([{"label": "A", "text": "x"}, {"label": "B", "text": "y"}], "B", ("B", {"A": "x", "B": "y"})),
        (["x", "y"], "B", ("B", {"A": "x", "B": "y"})),
        (["x", "y"], 0, ("A", {"A": "x", "B": "y"})),
        (["x", "y"], "y", ("B", {"A": "x", "B": "y"})),
        ([3, 4], 4, ("B", {"A": "3", "B": "4"})),
        (["0", "1"], 1, ("B", {"A": "0", "B": "1"})),
    ],
)
def test_every_form_of_choices(tmp_path, choices, answer, expected):
    path = write_json(
        tmp_path / "c.json",
        {"question": "?", "options": choices, "answer": answer},
        {"question": "open", "options": None, "answer": "free"},
    )
    assert read_source(SourceConfig(str(path), choices_column="options")) == [
        Question("c-0", "?", *expected),
        Question("c-1", "open", "free"),
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "?", "solution": "2"}, '"answer" is missing: the row has solution'),
        ({"Question": "?", "Answer": "2"}, '"question" is missing: the row has Question, Answer; if "Question" is'),
        ({**ROW, "answer": None}, '"answer" is null: expected a string or a number'),
        ({**ROW, "answer": " "}, '"answer" is empty'),
        ({**ROW, "answer": "\u200b\x00"}, '"answer" is empty'),
        ({**ROW, "answer": ["2"]}, '"answer" is ["2"]: expected a string or a number'),
        ({**ROW, "answer": float("nan")}, '"answer" is NaN: expected a string or a number'),
        ({**ROW, "question": True}, '"question" is true: expected a string or a number'),
        ({**ROW, "id": None}, '"id" is null: expected a string or a number'),
        ({**ROW, "choices": "AB"}, '"choices" is "AB": expected choices'),
        ({**ROW, "choices": ["2"]}, '"choices" has 1 choices: expected at least 2'),
        ({**ROW, "choices": []}, '"choices" has 0 choices: expected at least 2'),
        ({**ROW, "choices": [str(n) for n in range(27)]}, '"choices" has 27 texts without labels'),
        ({**ROW, "choices": {"label": ["A", "B"], "text": ["2"]}}, '"choices" does not have one text for each label'),
        ({**ROW, "choices": {"label": ["A", "A"], "text": ["2", "3"]}}, '"choices" has a label twice: A, A'),
        ({**ROW, "choices": {"A": "2", "a": "3"}}, '"choices" has a label twice: A, a'),
        ({**ROW, "choices": {"label": ["A", None], "text": ["2", "3"]}}, '"choices.label" is null: expected a string'),
        ({**ROW, "choices": ["2", " "]}, '"choices.B" is empty'),
        ({**ROW, "choices": {"A": "1", "B": "3"}}, '"answer" 2 is not one of the choices A, B'),
        ({**ROW, "choices": ["2", "2"]}, '"answer" 2 may be any of the choices A, B'),
        ({**ROW, "choices": ["1", "0"], "answer": 0}, '"answer" 0 may be any of the choices A, B'),
        ({**ROW, "choices": ["B", "x"], "answer": "B"}, '"answer" B may be any of the choices A, B'),
        ({**ROW, "choices": ["x", "y"], "answer": 2}, '"answer" 2 is not one of the choices A, B'),
        ({**ROW, "choices": ["x", "y"], "answer": True}, '"answer" is true: expected a string or a number'),
        ([1], "expected a JSON object, not list"),
    ],
)
def test_a_faulty_row_is_named(tmp_path, row, message):
    path = write_json(tmp_path / "r.json", ROW, row)
    assert refusal(path).startswith(f"{path}: row 1: {message}")


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"id_column": "n"}, ":2: id 1 is also on line 1: give each question an id of its own"),
        (
            {"id_column": "key"},
            ':1: "key" is missing: the row has question, answer, n; likewise in 1 other row',
        ),
        ({"choices_column": "options"}, ": no row has the column options: there are question, answer, n"),
        ({"answer_marker": "####"}, ':2: "answer" has no #### before the answer'),
        ({"split": "test"}, ": a file has no subset, and no split other than train"),
    ],
)
def test_a_fault_of_a_mapping_is_named(tmp_path, mapping, message):
    path = write_lines(tmp_path / "r.jsonl", {**ROW, "n": 1, "answer": "#### 3"}, {**ROW, "n": 1})
    assert refusal(path, **mapping) == f"{path}{message.format(path=path)}"


def test_a_file_without_rows_is_named(tmp_path):
    assert (
        refusal(write_json(tmp_path / "empty.json"))
        == f"{tmp_path}/empty.json: there are no rows: expected a question per row"
    )


FORMATS = [
    (gzip.compress(b"x", mtime=0), "compressed by gzip: unpack it"),
    (bz2.compress(b"x"), "compressed by bzip2: unpack it"),
    (lzma.compress(b"x"), "compressed by xz: unpack it"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd: unpack it"),
    (b"PAR1\x15", "Parquet: give it a name that ends in .parquet"),
    (b"\0\0\0\0", "zero bytes: its content is lost"),
]
"""The first bytes of files, and what they are."""


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("r.json", b'[{"question": "?"', "not JSON: "),
        ("r.json", b"[" * 100_000, "cannot be read: brackets are nested too deep"),
        ("r.json", b'["\xff"]', "not UTF-8 text"),
        ("r.json", b'\xef\xbb\xbf[{"question": 1, "question": 2}]', 'cannot be read: an object has "question" twice'),
        ("r.csv", b"question,\xff\n?,1\n", "not UTF-8 text: save it as UTF-8"),
        ("r.csv", "question,answer\n?,1\n".encode("utf-16"), "not UTF-8 text but UTF-16: save it as UTF-8"),
        (
            "r.csv",
            "question,answer\n?,1\n".encode("utf-16-le"),
            "not UTF-8 text but UTF-16 or UTF-32: save it as UTF-8",
        ),
        ("r.csv", b"PK\x03\x04\x14", "not UTF-8 text but a ZIP archive or a workbook: unpack it, or save it as CSV"),
        *(("r.jsonl", begin + b'{"a":\n1', f"not UTF-8 text but {what}") for begin, what in FORMATS),
        ("r.jsonl", '{"a": 1}\n'.encode("utf-32"), "not UTF-8 text but UTF-32: save it as UTF-8"),
        ("r.jsonl", '{"a": 1}\n'.encode("utf-16"), "not UTF-8 text but UTF-16: save it as UTF-8"),
        ("r.jsonl", '{"a": 1}\n'.encode("utf-16-be"), "not UTF-8 text but UTF-16 or UTF-32: save it as UTF-8"),
        ("r.json", '[{"a": 1}]'.encode("utf-32-le"), "not UTF-8 text but UTF-16 or UTF-32: save it as UTF-8"),
        ("r.csv", b"question;answer\n?;1\n", 'its columns are separated by ";": expected commas'),
        ("r.csv", b"question\tanswer\n?\t1\n", 'its columns are separated by "\\t": expected commas'),
        ("r.csv", b"answer,answer\na,1\n", "two columns have the same name: answer, answer"),
        ("r.parquet", b"PAR1 no", "cannot be read as Parquet: "),
        ("r.txt", b"?", "expected a file whose name ends in .jsonl, .json, .csv, .parquet"),
    ],
)
def test_a_faulty_file_is_named(tmp_path, name, content, message):
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    (tmp_path / name).write_bytes(content)
    assert refusal(tmp_path / name).startswith(f"{tmp_path / name}: {message}")


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
def test_a_missing_file_is_named(tmp_path, suffix):
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    assert refusal(tmp_path / f"no{suffix}") == f"{tmp_path}/no{suffix}: no such file"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"path": " "}, "questions.path is ' ': expected a text that is not blank"),
        ({"answer_marker": ""}, "questions.answer_marker is '': expected a text that is not blank"),
        ({"limit": 0}, "questions.limit is 0: expected at least 1"),
        ({"answer_column": "question"}, "questions: two of the columns question, question are the same"),
    ],
)
def test_a_faulty_configuration_is_refused(fields, message):
    with pytest.raises(MindError) as error:
        SourceConfig(**{"path": "x.jsonl", **fields})
    assert str(error.value) == message


def test_folders_are_read_without_a_network(tmp_path, datasets):
    folder = tmp_path / "folder"
    folder.mkdir()
    write_lines(folder / "train.jsonl", ROW, {**ROW, "answer": 3})
    write_lines(folder / "test.jsonl", ROW)
    assert [q.answer for q in read_source(SourceConfig(str(folder)))] == ["2", "3"]
    assert read_source(SourceConfig(str(folder), split="test")) == [Question("folder-0", "1 + 1?", "2")]
    assert refusal(folder, id_column="n") == f"{folder}: no column n: there are question, answer"
    assert "dev" in refusal(folder, split="dev")
    assert "nosuch" in refusal(folder, subset="nosuch")


def test_saved_data_sets_are_read(tmp_path, datasets):
    columns = {**ROW, "choices": {"label": ["A", "B"], "text": ["1", "2"]}, "answer": "B", "id": 7}
    saved = datasets.Dataset.from_list([columns], split="test")
    expected = [Question("7", "1 + 1?", "B", {"A": "1", "B": "2"})]
    one, several = tmp_path / "one", tmp_path / "several"
    saved.save_to_disk(one)
    datasets.DatasetDict(dev=saved, test=saved).save_to_disk(several)
    for folder in (one, several):
        assert read_source(SourceConfig(str(folder), split="test")) == expected
        assert refusal(folder).startswith(f"{folder}: no split train: there are ")
    assert refusal(several, subset="main", split="test") == f"{several}: a saved data set has no subset main"
    datasets.Dataset.from_dict({"question": [], "answer": []}).save_to_disk(tmp_path / "none")
    assert refusal(tmp_path / "none").startswith(f"{tmp_path}/none: cannot be loaded: ")


def test_a_folder_without_files_is_named(tmp_path):
    (tmp_path / "data" / "train").mkdir(parents=True)
    with pytest.raises(MindError, match="data: is a folder without files: expected one of questions"):
        load_source(SourceConfig(str(tmp_path / "data")))


def test_a_hub_out_of_reach_is_named(datasets):
    message = refusal("openai/gsm8k", subset="main")
    assert message.startswith("the questions openai/gsm8k: no such folder here, and the Hub does not answer (")


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert refusal("openai/gsm8k").endswith("needs the package datasets: pip install 'mind-kernels[data]'")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(MindError, match=r"q.parquet: Parquet needs the package pyarrow: pip install"):
        save_questions(QUESTIONS, tmp_path / "q.parquet")


@needs_data
def test_the_real_files_come_back_in_their_authors_forms(tmp_path):
    """CommonsenseQA's columns from JSON and Parquet, StrategyQA's truth values, and both in our own Parquet."""
    pytest.importorskip("pyarrow")
    commonsense = load_questions(DATA / "commonsense_qa.test.jsonl")
    rows = [
        {
            "id": q.id,
            "stem": q.question,
            "answerKey": q.answer,
            "choices": {"label": list(q.choices), "text": list(q.choices.values())},
        }
        for q in commonsense
    ]
    for path in (write_json(tmp_path / "c.json", *rows), write_parquet(tmp_path / "c.parquet", *rows)):
        assert read_source(SourceConfig(str(path), question_column="stem", answer_column="answerKey")) == commonsense
    strategy = load_questions(DATA / "strategy_qa.test.jsonl")
    rows = [{"qid": q.id, "question": q.question, "answer": q.answer == "yes"} for q in strategy]
    assert read_source(SourceConfig(str(write_lines(tmp_path / "s.jsonl", *rows)), id_column="qid")) == strategy
    for questions in (commonsense, strategy):
        save_questions(questions, tmp_path / "q.parquet")
        assert load_questions(tmp_path / "q.parquet") == questions


def test_a_folder_that_is_no_data_set_names_its_files(tmp_path):
    pytest.importorskip("datasets")
    for name, text in {"a.jsonl": '{"x": 1}\n', "b.json": '{"y": {"z": "t"}}', "c.txt": "t"}.items():
        (tmp_path / name).write_text(text)
    told = refusal(tmp_path)
    assert told.startswith(f"{tmp_path}: cannot be loaded: ")
    assert told.endswith("; if a file in it is meant, name that: a.jsonl, b.json")
