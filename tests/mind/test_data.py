"""Question files: what is read, each refusal, what is written, the split and the import."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from mind.config import DataConfig, MindConfig
from mind.curation.check import check_source
from mind.curation.importing import import_perspectives, import_rationales
from mind.data.questions import load_questions, save_questions, split_heldout
from mind.data.sources import SourceConfig
from mind.errors import MindError
from mind.records import Question, Rationale, WrongRationale
from mind.run.data import load_data

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the shared data folder is not next to the repository")

GOOD = {"id": "a", "question": "1 + 1?", "answer": "2"}
NAMED = [{"perspective": "planning", "text": "Add."}, {"perspective": "analogy", "text": "Two shoes."}]


@pytest.fixture
def write(tmp_path):
    def write(*records):
        path = tmp_path / "questions.jsonl"
        path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records))
        return path

    return write


def test_a_record_becomes_a_question(write):
    choices = {"A": "two", "B": "three"}
    path = write(
        {**GOOD, "rationales": NAMED, "difficulty": 2.0},
        "",
        {**GOOD, "id": "b", "answer": 2},
        {**GOOD, "id": "c", "answer": "A", "choices": choices, "rationale": "one", "rationales": None},
    )
    assert load_questions(path) == [
        Question("a", "1 + 1?", "2", None, (Rationale("planning", "Add."), Rationale("analogy", "Two shoes."))),
        Question("b", "1 + 1?", "2"),
        Question("c", "1 + 1?", "A", choices),
    ]


def test_unnamed_rationales_are_ignored_where_none_are_required(write):
    assert load_questions(write({**GOOD, "rationales": ["Add.", "Count."]})) == [Question("a", "1 + 1?", "2")]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ("{", "not JSON: Expecting property name enclosed in double quotes at column 2"),
        ('{"id": ' + "9" * 5000 + "}", "cannot be read: a number has 5,000 digits"),
        ("[" * 100_000, "cannot be read: brackets are nested too deep"),
        ('{"id": "x", "answer": "1", "answer": "2"}', 'cannot be read: an object has "answer" twice'),
        ("[1]", "expected a JSON object, not list"),
        ({"id": "x", "answer": "2"}, '"question" is missing'),
        ({"id": "x", "question": "?"}, '"answer" is missing'),
        ({**GOOD, "id": True}, '"id" is true: expected a string or a number'),
        ({**GOOD, "question": " "}, '"question" is empty'),
        ({**GOOD, "id": "x", "answer": None}, '"answer" is null: expected a string or a number'),
        ('{"id": "x", "question": "?", "answer": NaN}', '"answer" is NaN: expected a string or a number'),
        (GOOD, "id a is also on line 1"),
        ({**GOOD, "id": "x", "choices": ["A"]}, '"choices" has 1 choices: expected at least 2'),
        ({**GOOD, "id": "x", "choices": {"2": "two"}}, '"choices" has 1 choices: expected at least 2'),
        ({**GOOD, "id": "x", "choices": {"2": "two", "3": [3]}}, '"choices.3" is [3]: expected a string or a number'),
        ({**GOOD, "id": "x", "choices": {"2": "two", " ": "three"}}, '"choices.label" is empty'),
        ({**GOOD, "id": "x", "choices": {"A": "1", "B": "3"}}, '"answer" 2 is not one of the choices A, B'),
        ({**GOOD, "id": "x", "rationales": "Add."}, '"rationales" is not a list of {"perspective", "text"}'),
        (
            {**GOOD, "id": "x", "rationales": [NAMED[0], "Add."]},
            'rationales[1] is not an object with "perspective" and "text"',
        ),
        (
            {**GOOD, "id": "x", "rationales": [{"perspective": "planning", "text": " "}]},
            '"rationales[0].text" is empty',
        ),
        (
            {**GOOD, "id": "x", "rationales": [{"perspective": "magic", "text": "Add."}]},
            "unknown perspective magic: expected one of planning, analogy",
        ),
        ({**GOOD, "id": "x", "rationales": [NAMED[0], NAMED[0]]}, "perspective planning appears twice"),
    ],
)
def test_a_faulty_line_is_named(write, record, message):
    path = write(GOOD, record)
    with pytest.raises(MindError) as error:
        load_questions(path, perspectives=["planning", "analogy"])
    assert str(error.value).startswith(f"{path}:2: {message}")


@pytest.mark.parametrize(
    ("rationales", "message"),
    [
        (["Add.", "Count."], "the rationales have no perspectives: run `mind data import` on the file first"),
        (NAMED[:1], "1 rationale: expected at least 2"),
        ([], "no rationales: expected at least 2; `mind data generate` asks a teacher for them"),
    ],
)
def test_missing_rationales_are_named_where_they_are_required(write, rationales, message):
    path = write({**GOOD, "rationales": rationales})
    with pytest.raises(MindError) as error:
        load_questions(path, require_rationales=True)
    assert str(error.value) == f"{path}:1: {message}"


def test_an_answer_line_at_the_end_of_a_rationale_is_no_part_of_it(write):
    texts = {"a": "1 + 1 = 2.\n#### 2", "b": "#### Sum\n1 + 1 = 2.", "c": " So. \n**#### 2**\n#### 2"}
    rationales = [{"perspective": name, "text": text} for name, text in texts.items()]
    (question,) = load_questions(write({**GOOD, "rationales": rationales}))
    assert [rationale.text for rationale in question.rationales] == ["1 + 1 = 2.", "#### Sum\n1 + 1 = 2.", "So."]
    with pytest.raises(MindError, match=r'"rationales\[0\].text" is an answer line alone'):
        load_questions(write({**GOOD, "rationales": [{"perspective": "a", "text": "#### 2"}]}))


def test_the_minimum_of_rationales_can_be_chosen(write):
    path = write({**GOOD, "rationales": NAMED[:1]})
    assert len(load_questions(path, require_rationales=True, minimum_rationales=1)) == 1


def test_missing_empty_and_binary_files_are_named(write, tmp_path):
    with pytest.raises(MindError, match="nowhere.jsonl: no such file"):
        load_questions(tmp_path / "nowhere.jsonl")
    with pytest.raises(MindError, match=r"questions.jsonl: there are no rows: expected a question per row"):
        load_questions(write("", " "))
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\n")
    with pytest.raises(MindError, match=r"binary.jsonl:1: not UTF-8 text"):
        load_questions(tmp_path / "binary.jsonl")


def test_what_is_saved_is_loaded(tmp_path):
    questions = [
        Question("a", "Wie viel?\u2028🍎", "2", None, (Rationale("planning", 'Add\n"it".'),)),
        Question("b", "Which?", "A", {"A": "x", "B": "y"}),
    ]
    save_questions(questions, tmp_path / "q.jsonl")
    assert load_questions(tmp_path / "q.jsonl") == questions


def test_a_failed_save_leaves_the_file_and_no_other(tmp_path):
    path = tmp_path / "q.jsonl"
    path.write_text("old")
    with pytest.raises(TypeError):
        save_questions([Question("a", "?", {1, 2})], path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_split_is_complete_ordered_and_repeatable():
    questions = [Question(str(i), "?", "1") for i in range(20)]
    train, heldout = split_heldout(questions, 0.25, seed=3)
    assert (len(train), len(heldout)) == (15, 5)
    assert sorted(train + heldout, key=questions.index) == questions
    assert train == sorted(train, key=questions.index)
    assert heldout == sorted(heldout, key=questions.index)
    assert split_heldout(questions, 0.25, seed=3) == (train, heldout)
    assert split_heldout(questions, 0.25, seed=4) != (train, heldout)


@pytest.mark.parametrize("fraction", [0.001, 0.999])
def test_the_split_leaves_neither_side_empty(fraction):
    train, heldout = split_heldout([Question(str(i), "?", "1") for i in range(3)], fraction, seed=0)
    assert train
    assert heldout


def test_an_impossible_split_is_refused():
    with pytest.raises(MindError, match="1 question cannot be split: expected at least 2"):
        split_heldout([Question("a", "?", "1")], 0.5, seed=0)
    with pytest.raises(MindError, match=r"the held-out fraction is 1: expected a number in \(0, 1\)"):
        split_heldout([Question(str(i), "?", "1") for i in range(3)], 1, seed=0)


def test_a_file_of_one_question_is_named_with_what_else_is_wrong(write, tmp_path):
    train = write({**GOOD, "rationales": NAMED})
    test = tmp_path / "test.jsonl"
    test.write_text('{"id": "t", "question": "1 + 2?"}\n')
    with pytest.raises(MindError) as refused:
        load_data(MindConfig(data=DataConfig(train=str(train), evaluation=(str(test),))))
    assert str(refused.value).splitlines() == [
        f"{train}: there is one question, and one is held out of training: add more, "
        "or name a file of held-out ones as --data.heldout",
        f'{test}:1: "answer" is missing',
    ]


def test_an_import_keeps_right_rationales_and_counts_the_others(write):
    question = "Ann has 5 pears and buys 7. How many has she?"
    path = write(
        {
            "id": "a",
            "question": question,
            "answer": "12",
            "rationales": [
                "5 + 7 = 12.",
                " 5 + 7\n= 12. ",
                "Ann has 5 + 7 = 13.",
                "Many.",
                " ",
                "#### 12",
                "She has 12 now.\n#### 12",
                "Count on: 12.",
                "A dozen, 12.",
            ],
        },
        {"id": "b", "question": question, "answer": "12", "rationales": ["Ann has 12.", "Ann has 2."]},
    )
    questions, report = import_rationales(path, keep=3)
    assert questions == [
        Question(
            "a",
            question,
            "12",
            None,
            (
                Rationale("path-1", "5 + 7 = 12."),
                Rationale("path-2", "She has 12 now."),
                Rationale("path-3", "Count on: 12."),
            ),
        )
    ]
    assert dataclasses.asdict(report) == {
        "questions_read": 2,
        "questions_kept": 1,
        "questions_dropped_too_few": 1,
        "questions_given_knowledge": 0,
        "rationales_read": 11,
        "rationales_kept": 3,
        "rationales_empty": 2,
        "rationales_duplicate": 1,
        "rationales_no_answer": 1,
        "rationales_wrong_answer": 2,
        "rationales_kept_as_wrong": 0,
        "rationales_over_the_limit": 1,
        "rationales_of_dropped_questions": 1,
    }


def test_an_import_refuses_what_it_cannot_name(write):
    named = '"rationales" have perspectives already, and can be trained on as they are'
    for rationales, message in (
        (NAMED, named),
        (None, '"rationales" is missing'),
        ("a", '"rationales" is "a", and a list of strings is expected'),
        (["a", 1], '"rationales" holds 1, and a list of strings is expected'),
    ):
        path = write({**GOOD, "rationales": rationales})
        with pytest.raises(MindError) as error:
            import_rationales(path)
        assert str(error.value) == f"{path}:1: {message}: there is nothing to import"
    with pytest.raises(MindError, match=r'"rationales\[0\]" holds half of a character'):
        import_rationales(write({**GOOD, "rationales": ["2+2=4 \ud800"]}))
    with pytest.raises(MindError, match="minimum 3 and keep 2: expected 1 <= minimum <= keep"):
        import_rationales(path, keep=2, minimum=3)


def test_import_perspectives_are_numbered_slots():
    assert import_perspectives(3) == ("path-1", "path-2", "path-3")


@needs_data
def test_the_svamp_rationales_are_imported(tmp_path):
    questions, report = import_rationales(DATA / "svamp_multi_cot.train.jsonl")
    counts = dataclasses.asdict(report)
    assert counts["questions_read"] == 700
    assert counts["rationales_read"] == 7_000
    for unit in ("questions", "rationales"):
        of_unit = [count for name, count in counts.items() if name.startswith(unit)]
        assert of_unit[0] == sum(of_unit[1:])
    assert len(questions) == counts["questions_kept"] > 600
    assert sum(len(question.rationales) for question in questions) == counts["rationales_kept"] > 4_000
    save_questions(questions, tmp_path / "imported.jsonl")
    assert (
        load_questions(tmp_path / "imported.jsonl", perspectives=import_perspectives(), require_rationales=True)
        == questions
    )


@needs_data
@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("gsm8k.test.jsonl", 1319),
        ("svamp.test.jsonl", 300),
        ("math500.test.jsonl", 500),
        ("commonsense_qa.test.jsonl", 1221),
        ("strategy_qa.test.jsonl", 687),
        ("svamp_multi_cot.train.jsonl", 700),
    ],
)
def test_the_evaluation_files_load(name, rows):
    assert len(load_questions(DATA / name)) == rows


def test_an_import_keeps_wrong_rationales_if_they_are_wanted(write):
    texts = ["5 + 7 = 12.\n#### 12", "5 + 7 = 13.\n#### 13", "Twelve: 12.\n#### 12", "5 + 6 = 11.\n#### 11"]
    path = write({"id": "a", "question": "5 + 7?", "answer": "12", "rationales": texts})
    for keep_wrong, expected in ((0, 0), (1, 1), (9, 2)):
        (question,), report = import_rationales(path, keep_wrong=keep_wrong)
        wrong = (WrongRationale("path-1", "5 + 7 = 13.", "13"), WrongRationale("path-2", "5 + 6 = 11.", "11"))
        assert question.wrong_rationales == wrong[:expected]
        assert (report.rationales_kept_as_wrong, report.rationales_wrong_answer) == (expected, 2)


@pytest.mark.parametrize("line", ["\u221213", "\u0661\u0663", "**13**", "13\u200b"])
def test_the_answer_line_of_a_wrong_rationale_is_cut_off_in_every_notation(write, line):
    texts = ["5 + 7 = 12.\n#### 12", "Twelve: 12.\n#### 12", f"Subtract.\n#### {line}\n\nHope this helps!"]
    path = write({"id": "a", "question": "5 + 7?", "answer": "12", "rationales": texts})
    (question,), _ = import_rationales(path, keep_wrong=1)
    assert [one.text for one in question.wrong_rationales] == ["Subtract."]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("x", '"wrong_rationales" is not a list of {"perspective", "text", "answer"}'),
        ([{"perspective": "p", "text": "t"}], 'wrong_rationales[0] has no "answer", the wrong one that it states'),
        ([{"text": "t", "answer": "1"}], 'wrong_rationales[0] is not an object with "perspective" and "text"'),
        ([{"perspective": "p", "text": "t", "answer": " "}], '"wrong_rationales[0].answer" is empty'),
        ([{"perspective": "p", "text": "t", "answer": "1", "source": 3}], '"source" is 3: expected a string'),
        (
            [{"perspective": "p", "text": "t", "answer": answer} for answer in (13, 12)],
            "wrong_rationales[1] states 12, which is the right answer",
        ),
    ],
)
def test_wrong_rationales_that_are_none_are_told(write, wrong, message):
    path = write({"id": "a", "question": "5 + 7?", "answer": "12", "wrong_rationales": wrong})
    with pytest.raises(MindError) as error:
        load_questions(path)
    assert message in str(error.value) and message in str(check_source(SourceConfig(str(path))).problems)
