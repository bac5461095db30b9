"""Files as people write them: all problems in one go, each with a remedy, and what can be read in one way is read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mind.cli import main
from mind.data.problems import MOST_SHOWN, FaultyRowsError
from mind.data.questions import load_questions, save_questions
from mind.data.sources import SourceConfig, load_source
from mind.errors import MindError
from mind.grading import answer_type
from mind.records import Question, Rationale

YES_NO = {"yes": "yes", "no": "no"}
BY_HAND = r"""
{"id": "q1", "question": "Anna has 3 apples and buys 4. How many has she?", "answer": "7"}
{"question": "What is the speed?", "answer": 60}

{"id": 12, "question": "What is 7 times 8?", "answer": "56"}
{"id": "q4", "question": "Which is largest?", "answer": "B", "choices": ["Mars", "Jupiter", "Venus"]}
{"id": "q5", "question": "Solve it.", "answer": "\sqrt{2}"}
{"id": "q6", "question": "How many minutes?", "answer": "210"},
{"id": "q7", "question": "Is every square a rectangle?", "answer": true}
{'id': 'q8', 'question': 'How?', 'answer': '1'}
{"id": "q9", "question": "Is zero positive?", "answer": "No."}
{"id": "q1", "question": "Again?", "answer": "1"}
{"id": "q10", "question": "Half?", "answer": "\frac{1}{2}"}
{"id": "q11", "question": "Which is a mammal?", "answer": "whale", "choices": ["shark", "whale"]}
{"id": "q12", "question": "Nothing?"}
{"id": "q13", "question": "Prime?", "answer": "yes" "rationale": "x"}
"""


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_every_problem_is_told_in_one_go_with_line_and_remedy(tmp_path):
    path = write(tmp_path / "hand.jsonl", BY_HAND)
    with pytest.raises(FaultyRowsError) as error:
        load_questions(path)
    *lines, last = str(error.value).splitlines()
    assert last == f"7 problems in {path}; 7 rows without one"
    told = {int(line.split(":")[1]): line for line in lines}
    remedies = {
        7: r"write each backslash within a text twice, as in \\sqrt{2}",
        8: "take out the comma at the end",
        10: 'write straight double quotes: "',
        12: "id q1 is also on line 2: give each question an id of its own",
        13: r'"answer" has \frac with one backslash, a control character in JSON: write \\frac',
        15: '"answer" is missing',
        16: r"a comma is missing, or a quote within a text is not written as \"",
    }
    assert told.keys() == remedies.keys()
    for line, remedy in remedies.items():
        assert told[line].startswith(f"{path}:{line}: ") and remedy in told[line]
    assert [(q.id, q.answer, q.choices) for q in error.value.questions] == [
        ("q1", "7", None),
        ("hand-1", "60", None),
        ("12", "56", None),
        ("q4", "B", {"A": "Mars", "B": "Jupiter", "C": "Venus"}),
        ("q7", "yes", YES_NO),
        ("q9", "no", YES_NO),
        ("q11", "B", {"A": "shark", "B": "whale"}),
    ]


def test_every_problem_of_a_row_is_told(tmp_path):
    rows = [{"id": "a", "question": "?", "answer": "1"}, {"id": "a", "question": " ", "answer": None},
            {"id": [], "frage": "?", "answer": "C", "choices": ["x", "y"]}]  # fmt: skip
    path = write(tmp_path / "q.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(FaultyRowsError) as error:
        load_questions(path)
    assert [line.strip().removeprefix(f"{path}:")[:30] for line in str(error.value).splitlines()[:-1]] == [
        '2: "question" is empty',
        '2: "answer" is null: expected ',
        "2: id a is also on line 1: giv",
        '3: "id" is []: expected a stri',
        '3: "question" is missing: the ',
        '3: "answer" C is not one of th',
    ]


@pytest.mark.parametrize("command", ["check", "generate", "import"])
def test_every_command_tells_all_problems_and_writes_nothing(tmp_path, capsys, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "hand.jsonl", BY_HAND)
    more = {
        "check": ["hand.jsonl"],
        "generate": ["--output", "set", "--questions.path", "hand.jsonl", "--teacher.model", "m",
                     "--teacher.base-url", "http://127.0.0.1:1/v1"],
        "import": ["hand.jsonl", "--output", "named.jsonl"],
    }  # fmt: skip
    assert main(["data", command, *more[command]]) == 2
    error = capsys.readouterr().err
    assert all(f"hand.jsonl:{line}: " in error for line in (7, 8, 10, 12, 13, 15, 16)) and "Traceback" not in error
    assert [path.name for path in tmp_path.iterdir()] == ["hand.jsonl"]


@pytest.mark.parametrize(
    ("line", "remedy"),
    [
        (r'{"id": "a", "question": "?", "answer": "\pi"}', r"twice, as in \\pi"),
        (r'{"id": "a", "question": "C:\dir", "answer": "1"}', "write each backslash within a text twice"),
        ('{"id": "a", "question": "\\         x", "answer": "1"}', "write each backslash within a text twice"),
        ('{"id": "a", "question": "?", "answer": "1",}', "take out the comma before the }"),
        ('{"id": "a", "question": "?", "answer": "1", "choices": ["x", "y",]}', "take out the comma before the ]"),
        ('{"id": "a", "question": "?", "answer": True}', "write true for True"),
        ('{"id": "a", "question": "?", "answer": None}', "write null for None"),
        ("{'id': 'a'}", "straight double quotes"),
        ('{“id”: "a"}', "straight double quotes"),
        ('{"id": "a", "question": “What?”, "answer": "1"}', "straight double quotes"),
        ('{"id": "a", "question": "He said "hi".", "answer": "1"}', r"a quote within a text is not written as \""),
        ('{"id": "a" "question": "?"}', "a comma is missing"),
        ('{"id": "a", "question": "?', "lacks its closing quote, or has a line break"),
        ('{"id": "a", "question": "a\tb", "answer": "1"}', r"write a tab within a text as \t"),
        ('{"id": "a", "question": "?", "answer": 1,000}', None),
        ('{"id": "a", "question": "?", "answer": .5}', "write a number as 0.5"),
        ('{"id": "a", "question": "?", "answer": 007}', "write a number as"),
        ('{"id": "a", "question": "?", "answer": "1"} {"id": "b"}', "one object per line"),
        ("// a comment", "JSON has no comments"),
        ('{"id": "a",', "write each object whole, on its own line"),
    ],
)
def test_a_remedy_for_what_is_no_json(tmp_path, line, remedy):
    good = json.dumps({"id": "g", "question": "?", "answer": "1"})
    path = write(tmp_path / "q.jsonl", f"{good}\n{line}\n")
    with pytest.raises(MindError) as error:
        load_questions(path)
    assert str(error.value).startswith(f"{path}:2: not JSON: ")
    assert remedy is None or remedy in str(error.value)


def test_an_object_over_several_lines_is_one_problem(tmp_path):
    path = write(tmp_path / "q.jsonl", json.dumps({"id": "a", "question": "?", "answer": "1"}, indent=2))
    with pytest.raises(
        MindError, match=r"q.jsonl:1: an object continues on the next line: write each object on a line"
    ):
        load_questions(path)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\\frac{1}{2}", r"\frac"), ("3 \\times 4", r"\times"), ("\\theta", r"\theta"), ("\\beta", r"\beta"),
        ("\\neq 2", r"\neq"), ("\\nabla f", r"\nabla"), ("\\rho", r"\rho"), ("\\text{cm}", r"\text"),
        ("\\binom{5}{2}", r"\binom"), ("\\boxed{12}", r"\boxed"), ("\\tan x", r"\tan"), ("a \\to b", r"\to"),
        ("\\right)", r"\right"), ("\\forall x", r"\forall"),
    ],
)  # fmt: skip
def test_a_backslash_that_json_took_away_is_found(tmp_path, text, shown):
    """ "\\frac" in JSON is a form feed and "rac": it would be trained on, and no answer would ever be equal to it."""
    for name in ("question", "answer"):
        row = {"id": '"a"', "question": '"?"', "answer": '"1"', name: f'"{text}"'}
        path = write(tmp_path / "q.jsonl", "{" + ", ".join(f'"{key}": {value}' for key, value in row.items()) + "}")
        with pytest.raises(MindError) as error:
            load_questions(path)
        assert f'"{name}" has {shown} with one backslash' in str(error.value) and str(error.value).isprintable()


@pytest.mark.parametrize(
    "text",
    ["a\nb", "a\tb", "a\tan answer", "Name:\texternal", "1\r\n2", "Column:\tto\n", "new\nequals", "x\x0cy", "\nnu"],
)
def test_line_breaks_and_tabs_of_their_own_stay(tmp_path, text):
    save_questions([Question("a", text, "1")], tmp_path / "q.jsonl")
    assert load_questions(tmp_path / "q.jsonl")[0].question == text


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("yes", ("yes", YES_NO)), ("No.", ("no", YES_NO)), (" YES! ", ("yes", YES_NO)), ("no", ("no", YES_NO)),
        (True, ("yes", YES_NO)), (False, ("no", YES_NO)),
        ("Yes, it is", ("Yes, it is", None)), ("not", ("not", None)), ("none", ("none", None)),
        ("1 + 1 = <<1+1=2>>2\n#### 2", ("2", None)), ("#### 1,234", ("1,234", None)), ("so\n#### yes", ("yes", YES_NO)),
        (2.0, ("2", None)), (0.00002, ("0.00002", None)), (1e6, ("1000000", None)), (-1.5, ("-1.5", None)),
        (6.02e23, ("602" + 21 * "0", None)), (10**400, (str(10**400), None)), (0.1, ("0.1", None)),
    ],
)  # fmt: skip
def test_answers_are_read_alike_from_every_kind_of_file(tmp_path, answer, expected):
    row = {"id": "a", "question": "?", "answer": answer}
    lines, listed = tmp_path / "q.jsonl", tmp_path / "q.json"
    lines.write_text(json.dumps(row))
    listed.write_text(json.dumps([row], indent=1))
    other = tmp_path / "lines.json"
    other.write_text(json.dumps(row))
    for path in (lines, listed, other):
        for (question,) in (load_questions(path), load_source(SourceConfig(str(path)))):
            assert (question.answer, question.choices) == expected
    if expected[1] is not None:
        assert answer_type(question).name == "yes_no"


@pytest.mark.parametrize(
    ("choices", "answer", "label"),
    [
        (["Mars", "Jupiter"], "B", "B"),
        (["Mars", "Jupiter"], "Jupiter", "B"),
        (["Mars", "Jupiter"], "jupiter", "B"),
        (["Mars", "Jupiter"], "(b)", "B"),
        (["Mars", "Jupiter"], "B.", "B"),
        (["Mars", "Jupiter"], 1, "B"),
        (["A", "B", "C", "D", "E"], "E", "E"),
        ([1, 2.5], 2.5, "B"),
        ([True, False], False, "B"),
        ({"A": "Oxygen", "B": "Helium"}, "Helium", "B"),
        ({"A": "Oxygen", "B": "Helium"}, "b", "B"),
        ({"A": "Oxygen", "B": 2}, "B", "B"),
        ({"yes": "yes", "no": "no"}, True, "yes"),
        ({"yes": "it is", "no": "it is not"}, "No.", "no"),
        ({"true": "so", "false": "not so"}, False, "false"),
        ({"label": ["A", "B"], "text": ["x", "y"]}, "B", "B"),
        ([{"label": "A", "text": "x"}, {"label": "B", "text": "y"}], "y", "B"),
    ],
)
def test_choices_are_read_alike_from_every_kind_of_file(tmp_path, choices, answer, label):
    row = {"question": "?", "answer": answer, "choices": choices}
    for name, text in (("q.jsonl", json.dumps(row)), ("q.json", json.dumps([row]))):
        path = write(tmp_path / name, text)
        for (question,) in (load_questions(path), load_source(SourceConfig(str(path)))):
            assert question.answer == label and label in question.choices


def test_a_marker_counts_with_choices_too(tmp_path):
    row = {"question": "?", "answer": "It grows.\n=> B", "choices": ["x", "y"]}
    path = write(tmp_path / "q.jsonl", json.dumps(row))
    assert load_source(SourceConfig(str(path), answer_marker="=>"))[0].answer == "B"
    path = write(tmp_path / "q.jsonl", json.dumps(row | {"answer": "It grows.\n#### B"}))
    assert load_questions(path)[0].answer == "B"


def test_a_row_may_lack_the_column_of_choices(tmp_path):
    rows = [{"question": "a?", "answer": "B", "options": ["x", "y"]}, {"question": "b?", "answer": "2"}]
    path = write(tmp_path / "q.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    first, second = load_source(SourceConfig(str(path), choices_column="options"))
    assert first.choices == {"A": "x", "B": "y"} and second.choices is None


def test_many_problems_of_one_kind_are_one_line_and_of_many_kinds_are_cut(tmp_path):
    same = write(
        tmp_path / "same.jsonl",
        "".join(json.dumps({"id": f"{n}", "frage": "?", "answer": 1}) + "\n" for n in range(50)),
    )
    with pytest.raises(MindError) as error:
        load_questions(same)
    assert str(error.value) == f'{same}:1: "question" is missing: the row has frage; likewise in 49 other rows'
    rows = "".join(json.dumps({"id": f"{n}", "question": "?", "answer": [n]}) + "\n" for n in range(50))
    with pytest.raises(MindError) as error:
        load_questions(write(tmp_path / "other.jsonl", rows))
    lines = str(error.value).splitlines()
    assert len(lines) == MOST_SHOWN + 2 and lines[-2] == "and 30 others"


# The command


def check(capsys, *arguments) -> tuple[int, str, str]:
    status = main(["data", "check", *map(str, arguments)])
    printed = capsys.readouterr()
    return status, " ".join(printed.out.replace("│", " ").split()), printed.err


def test_check_counts_what_there_is_and_says_what_comes_next(tmp_path, capsys):
    rows = [
        {"question": "1 + 1?", "answer": 2},
        {"question": "Is it?", "answer": "Yes."},
        {"question": "1  +  1?", "answer": "2"},
        {"question": "Which?", "answer": "A", "choices": ["x", "y"]},
    ]
    path = write(tmp_path / "q.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    other = tmp_path / "test.jsonl"
    save_questions([Question("t1", "IS IT?", "yes", YES_NO), Question("t2", "No", "1")], other)
    status, out, error = check(capsys, path, "--evaluation", other)
    assert (status, error) == (0, "")
    for words in (
        "questions 4",
        "answers: number 2",
        "answers: yes/no 1",
        "answers: choice 1",
        "questions that an earlier one asks 1",
        f"questions that repeat an earlier one: {path}:3",
        f"also in {other}: t1;",
        f"next: mind data generate --output data/q --questions.path {path} --teacher.model NAME",
    ):
        assert words in out, words


def test_check_takes_the_columns_that_generate_takes_and_names_them_in_the_next_command(tmp_path, capsys):
    path = write(tmp_path / "q.csv", "frage,antwort\n1 + 1?,so = 2\n")
    status, out, _ = check(
        capsys, path, "--question-column", "frage", "--answer-column", "antwort", "--answer-marker", "="
    )
    assert status == 0 and "answers: number 1" in out
    assert "--questions.question-column frage --questions.answer-column antwort --questions.answer-marker =" in out


def test_check_knows_training_records(tmp_path, capsys):
    named = (Rationale("socratic", "Why?"), Rationale("mine", "So."))
    save_questions([Question("a", "?", "1", None, named)], tmp_path / "named.jsonl")
    status, out, _ = check(capsys, tmp_path / "named.jsonl")
    assert status == 0 and "rationales: socratic 1" in out
    assert f"--data.train {tmp_path / 'named.jsonl'} --data.perspectives socratic mine" in out
    assert "with fewer than the two" not in out
    save_questions([Question("b", "Is it?", "yes", YES_NO)], tmp_path / "test.jsonl")
    _, out, _ = check(capsys, tmp_path / "named.jsonl", "--evaluation", tmp_path / "test.jsonl")
    assert f"--data.perspectives socratic mine --data.evaluation {tmp_path / 'test.jsonl'}" in out
    few = [Question("a", "?", "1", None, named), Question("b", "Which?", "2", None, named[:1])]
    save_questions(few, tmp_path / "few.jsonl")
    status, out, _ = check(capsys, tmp_path / "few.jsonl")
    assert (
        status == 0
        and f"questions with fewer than the two rationales that training needs: {tmp_path / 'few.jsonl'}:2 next:" in out
    )
    for name, meant in (("Socratic", "socratic"), ("planing", "planning"), ("terse", None), ("planning", None)):
        save_questions([Question("a", "?", "1", None, (Rationale(name, "Why?"), named[1]))], tmp_path / "m.jsonl")
        _, out, _ = check(capsys, tmp_path / "m.jsonl")
        told = f"perspective {name} is not one of the paper's; perhaps you meant {meant} next:"
        assert (told in out) == (meant is not None)
        assert out.count("perhaps") == (meant is not None)
    row = {"id": "a", "question": "?", "answer": "1", "rationales": ["Why?", "So."]}
    status, out, _ = check(capsys, write(tmp_path / "unnamed.jsonl", json.dumps(row)))
    assert status == 0 and "rationales without a perspective 2" in out
    assert f"next: mind data import {tmp_path / 'unnamed.jsonl'} --output unnamed.named.jsonl" in out


@pytest.mark.parametrize(
    ("options", "rationales", "following"),
    [
        (["--limit", "1"], [{"perspective": "socratic", "text": "Why?"}, {"perspective": "planning", "text": "So."}],
         "data generate --output data/q --questions.path {path} --questions.limit 1 "),
        (["--question-column", "problem"], ["Why?", "So."],
         "data generate --output data/q --questions.path {path} --questions.question-column problem "),
        ([], ["Why?", {"perspective": "planning", "text": "So."}], None),
    ],
)  # fmt: skip
def test_check_suggests_no_command_that_would_read_other_questions(tmp_path, capsys, options, rationales, following):
    row = {"id": "a", "problem": "?", "question": "!", "answer": "1", "rationales": rationales}
    path = write(tmp_path / "q.jsonl", json.dumps(row))
    status, out, error = check(capsys, path, *options)
    if following is None:
        assert status == 2 and 'rationales[0] is not an object with "perspective" and "text"' in error
    else:
        assert status == 0 and f"next: mind {following.format(path=path)}" in out


def test_check_sends_a_file_with_both_kinds_of_rationales_to_a_teacher(tmp_path, capsys):
    named = [{"perspective": "socratic", "text": "Why?"}, {"perspective": "planning", "text": "So."}]
    rows = [{"id": str(n), "question": f"{n}?", "answer": "1", "rationales": r} for n, r in enumerate((named, ["So."]))]
    path = write(tmp_path / "q.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    assert f"next: mind data generate --output data/q --questions.path {path}" in check(capsys, path)[1]


def test_check_tells_what_is_wrong_with_the_other_files_too(tmp_path, capsys):
    path = write(tmp_path / "q.jsonl", '{"question": "1 + 1?", "answer": 2}\n{"question": "?"}\n')
    other = write(tmp_path / "other.jsonl", "{bad\n")
    status, out, error = check(capsys, path, "--evaluation", other, tmp_path / "none.jsonl")
    assert status == 2 and "questions 1" in out and "other.jsonl" not in out
    assert f'{path}:2: "answer" is missing' in error
    assert f"{other}:1: not JSON" in error and "none.jsonl: no such file" in error


def test_check_tells_what_can_be_read_beside_the_problems(tmp_path, capsys):
    status, out, error = check(capsys, write(tmp_path / "hand.jsonl", BY_HAND))
    assert status == 2 and "questions 7" in out and "7 problems" in error and "next:" not in out
