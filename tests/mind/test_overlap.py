"""Training questions that give test questions away: found and not found, dropped, refused, told."""

from __future__ import annotations

import dataclasses
import json

import pytest
from tiny import NAMES

from mind.cli import main
from mind.config import DataConfig, MindConfig
from mind.data.overlap import leaks, words_of
from mind.data.questions import Asked, asked_in, save_questions
from mind.errors import MindError
from mind.records import Question, Rationale, WrongRationale
from mind.run.data import load_data, warn_of_overlap

LONG = "Ann has three red pears, and Bob, who lives next door, has twice as many green apples as she has."
"""Twenty words."""


def asked(name, text, *rationales, wrong=()):
    named = tuple(Rationale(NAMES[k], one) for k, one in enumerate(rationales))
    return Question(name, text, "1", rationales=named, wrong_rationales=wrong)


def test_words_are_compared_without_case_and_punctuation_and_with_signs():
    assert words_of("Well-known: “Ann's” 3.5 – CAFÉ!") == ["well", "known", "ann", "s", "3", "5", "café"]
    assert words_of("3 + 4 = 7") != words_of("3 - 4 = 7") and words_of("x-4") == ["x", "-", "4"]
    assert words_of("ﬁve １") == ["five", "1"]
    assert words_of("ap\u00adple\u200b CAFE\u0301") == ["apple", "café"]


@pytest.mark.parametrize(
    ("training", "test", "found"),
    [
        (LONG, LONG.upper().replace(",", ";"), True),
        ("Once upon a time " + LONG, "He said: " + LONG + " How many?", True),
        (" ".join(LONG.split()[:13]), LONG, True),
        (" ".join(LONG.split()[:12]), LONG, False),
        (" ".join(LONG.split()[7:]), LONG, True),  # the last thirteen
        (" ".join(LONG.split()[8:]), LONG, False),
        (LONG.replace("lives", "dwells"), LONG, False),  # ten before it, nine behind it
        (LONG.replace("apples", "ap\u00adples").replace(" who", "\u200b who"), LONG, True),
        ("What is 3 + 4?", "what is 3 + 4", True),  # a short one as a whole
        ("What is 3 + 4?", "What is 3 - 4?", False),
        ("And what is 3 + 4?", "What is 3 + 4?", False),
    ],
)
def test_thirteen_words_in_a_row_or_all_of_a_short_question(training, test, found):
    result = leaks([asked("other", "Nothing."), asked("t", training)], [asked("no", "Who?"), asked("q", test)])
    assert (result.training, result.test) == ((("t",), ("q",)) if found else ((), ()))
    assert result.counts() == {"training": int(found), "test": int(found)}


@pytest.mark.parametrize(
    ("choices", "same"),
    [
        ({"A": "Ice is hot.", "B": "Fire is cold.", "C": "Lead is light."}, False),
        ({"A": "Ice is cold.", "B": "Fire is hot."}, True),
        ({"1": "fire is  hot.", "2": "Ice is cold."}, True),  # in another order, under other labels
        (None, True),
    ],
)
def test_a_short_question_with_other_choices_is_another_one(choices, same):
    known = Question("k", "Which is true?", "A", {"A": "Ice is cold.", "B": "Fire is hot."})
    other = Question("o", "which is true?", "B" if choices is None else next(iter(choices)), choices)
    for one, two in ((known, other), (other, known)):
        assert bool(leaks([one], [two]).test) == bool(asked_in([two], [one])) == (two in Asked([one])) == same


def test_questions_that_other_choices_tell_apart_are_not_counted_as_repeated(tmp_path, capsys):
    rows = [("?", ["x", "y"]), ("?", ["x", "z"]), ("?", ["y", "x"])]
    lines = [{"question": text, "answer": "x", "choices": choices} for text, choices in rows]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert main(["data", "check", str(tmp_path / "q.jsonl")]) == 0
    assert f"that repeat an earlier one: {tmp_path}/q.jsonl:3\n" in capsys.readouterr().out


def test_rationales_give_away_too():
    right, wrong = asked("r", "Who?", "No.", f"As {LONG}"), WrongRationale("first", f"So {LONG}", "2")
    found = leaks([right, asked("w", "When?", wrong=(wrong,)), asked("n", "Where?", "No.")], [asked("q", LONG)])
    assert found.training == ("r", "w") and found.test == ("q",)
    assert leaks([asked("s", "Who?", "What is 3 + 4?")], [asked("q", "What is 3 + 4?")]).training == ()


@pytest.fixture
def files(tmp_path):
    """Six training questions, of which two give away one of three test questions."""
    texts = [LONG, *(f"What is {n} + {n}?" for n in range(5))]
    train = [asked(f"t{n}", text, "One.", LONG if n == 3 else "Two.") for n, text in enumerate(texts)]
    save_questions(train, tmp_path / "train.jsonl")
    save_questions([asked("a", "Who is he?"), asked("b", f"{LONG} Why?"), asked("c", "Why?")], tmp_path / "test.jsonl")
    save_questions(train[-1:], tmp_path / "heldout.jsonl")
    return tmp_path


def data_of(files, leaks):
    named = {name: str(files / f"{name}.jsonl") for name in ("train", "heldout")}
    return MindConfig(
        data=DataConfig(**named, evaluation=(str(files / "test.jsonl"),), perspectives=NAMES, leaks=leaks)
    )


def test_a_run_keeps_drops_or_refuses_them(files, capsys, recwarn):
    told = "2 training questions share 13 words in a row with 1 of its questions"
    kept = load_data(config := data_of(files, "keep"))
    warn_of_overlap(kept, config.data)
    assert len(kept.train) == 6 and f"evaluation test: {told}" in str(recwarn[-1].message)
    dropped = load_data(config := data_of(files, "drop"))
    assert [question.id for question in dropped.train] == ["t1", "t2", "t4", "t5"]
    assert f"2 of 6 training questions are left out (data.leaks): test: {told}" in capsys.readouterr().err
    assert dropped.leaks["test"].counts() == {"training": 2, "test": 1}
    recwarn.clear()
    warn_of_overlap(dropped, config.data)
    assert not [one for one in recwarn if "13 words" in str(one.message)]
    with pytest.raises(MindError, match=f"data.leaks is error, and training questions give away .*: test: {told}"):
        load_data(data_of(files, "error"))
    save_questions([asked("t", LONG, "One.", "Two.")], files / "train.jsonl")
    with pytest.raises(MindError, match="data.leaks is drop, and none of the 1 training questions is left"):
        load_data(data_of(files, "drop"))
    with pytest.raises(MindError, match="data.leaks is 'some': expected one of keep, drop, error"):
        dataclasses.replace(config.data, leaks="some")


def test_a_check_of_data_counts_them(files, capsys):
    train, test = (str(files / f"{name}.jsonl") for name in ("train", "test"))
    assert main(["data", "check", train, "--evaluation", test]) == 0
    out = capsys.readouterr().out
    assert f"share 13 words in a row with questions of {test}: t0, t3" in out.replace("\n", " ")
    assert main(["data", "check", test, "--evaluation", str(files / "heldout.jsonl")]) == 0
    assert "13 words" not in capsys.readouterr().out
    assert json.loads((files / "test.jsonl").read_text().splitlines()[0])["id"] == "a"
