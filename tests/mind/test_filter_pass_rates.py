"""The filter by pass rates: easy questions, and grades from a file."""

from __future__ import annotations

import json

import pytest
from filtering import QUESTION, judged, many, response, run

from mind.curation.filter import FilterConfig, filter_responses, load_pass_rates
from mind.curation.result import FATES
from mind.errors import MindError


def test_easy_questions_are_thinned_out_by_their_ids():
    questions, responses = many(400)
    kept = {}
    for fraction in (0.0, 0.3, 0.6, 1.0):
        result = run(responses, FilterConfig(easy_fraction=fraction), questions=questions)
        kept[fraction] = {q.id for q in result.questions}
        assert result.reasons["easy question"] == 2 * (400 - len(kept[fraction]))
        assert result.question_counts == dict.fromkeys(FATES, 0) | {
            "kept": len(kept[fraction]),
            "easy question": 400 - len(kept[fraction]),
        }
    assert not kept[0.0] and len(kept[1.0]) == 400
    assert kept[0.3] < kept[0.6] and abs(len(kept[0.3]) - 120) < 40 and abs(len(kept[0.6]) - 240) < 40
    turned = run(responses[::-1], FilterConfig(easy_fraction=0.3), questions=questions[::-1])
    assert {q.id for q in turned.questions} == kept[0.3]
    other = run(responses, FilterConfig(easy_fraction=0.3, seed=1), questions=questions)
    assert {q.id for q in other.questions} != kept[0.3]


def test_hard_questions_are_all_kept():
    questions, responses = many(10, ("analogy", "planning", "socratic"))
    verdicts = judged([r for r in responses if r.key.perspective == "socratic" and r.key.question != "q0"], "wrong")
    verdicts |= judged([r for r in responses if r.key.perspective == "socratic" and r.key.question == "q1"], "unparsed")
    result = run(responses, FilterConfig(easy_fraction=0.0), questions=questions, verdicts=verdicts)
    assert [q.id for q in result.questions] == [f"q{number}" for number in range(1, 10)]
    assert result.pass_rates == {f"q{number}": 2 / 3 if number else 1.0 for number in range(10)}
    assert result.pass_rate_histogram == [0, 0, 0, 0, 0, 0, 9, 0, 0, 1]
    half = run(responses, FilterConfig(easy_fraction=0.0, easy_pass_rate=0.5), questions=questions, verdicts=verdicts)
    assert half.questions == ()


def test_a_students_pass_rate_stands_for_the_teachers():
    questions, responses = many(3)
    with pytest.warns(RuntimeWarning, match="no pass rate for 1 of 3 questions: the teacher's counts for these"):
        result = run(responses, FilterConfig(easy_fraction=0.0), questions=questions, pass_rates={"q0": 0.5, "q2": 0.0})
    assert result.fates == {"q0": "kept", "q1": "easy question", "q2": "kept"}
    assert result.pass_rates == {"q0": 0.5, "q1": 1.0, "q2": 0.0}
    with pytest.raises(MindError, match="^--student-grades: none of its 1 pass rates is of one of the 3 questions"):
        run(responses, questions=questions, pass_rates={"other": 1.0})


@pytest.mark.parametrize(
    ("responses", "verdicts", "message"),
    [
        ([response(question="r")], None, "the response to question r, perspective analogy, sample 0: there is no such"),
        (
            [response(), response("planning"), response()],
            None,
            "question q, perspective analogy, sample 0: it appears twice",
        ),
        (
            [response(sample=3)],
            {},
            "question q, perspective analogy, sample 3: it has no verdict: run `mind data judge`",
        ),
    ],
)
def test_responses_that_do_not_fit_are_errors(responses, verdicts, message):
    with pytest.raises(MindError, match=message):
        filter_responses([QUESTION], responses, judged(responses) if verdicts is None else verdicts, FilterConfig())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"keep": 33}, "minimum 2 and keep 33: expected 2 <= minimum <= keep <= 32"),
        ({"minimum": 1}, "minimum 1 and keep 8"),
        ({"minimum": 5, "keep": 4}, "minimum 5 and keep 4"),
        ({"max_characters": 0}, "max_characters is 0: expected at least 1"),
        ({"ngram": 0}, "ngram is 0: expected at least 1"),
        ({"duplicate_threshold": 0.0}, "duplicate_threshold is 0.0: expected a number in"),
        ({"duplicate_threshold": float("nan")}, "duplicate_threshold is nan"),
        ({"easy_pass_rate": 1.5}, "easy_pass_rate is 1.5: expected a number in"),
        ({"easy_fraction": -0.1}, "easy_fraction is -0.1: expected a number in"),
    ],
)
def test_a_faulty_configuration_is_named(fields, message):
    with pytest.raises(MindError, match=message):
        FilterConfig(**fields)


def test_pass_rates_are_read_from_graded_responses(tmp_path):
    path = tmp_path / "graded.jsonl"
    rows = [
        {"id": "a", "correct": True, "extracted": "1"},
        {"id": "b", "correct": False},
        {"id": "a", "correct": False},
        {"id": "a", "correct": True},
        {"id": "c", "correct": True},
        {"id": 7, "correct": True},  # as `mind grade` copies it from a file with numbers
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert load_pass_rates(path) == {"a": 2 / 3, "b": 0.0, "c": 1.0, "7": 1.0}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"id": "a", "correct": true}\n{"id": "a"}\n', ':2: "correct" is missing'),
        ('{"correct": true}\n', ':1: "id" is missing'),
        ('{"id": "a", "correct": 1}\n', ':1: "correct" is 1: expected true or false'),
        ("\n", "the file is empty"),
    ],
)
def test_a_faulty_file_of_grades_is_named(tmp_path, text, message):
    path = tmp_path / "graded.jsonl"
    path.write_text(text)
    with pytest.raises(MindError, match=message):
        load_pass_rates(path)


def test_all_faulty_grades_are_told_in_one_go(tmp_path):
    path = tmp_path / "graded.jsonl"
    path.write_text('{"id": "a", "correct": true}\n{"id": "b", "correct": "yes"}\n{"correct": false}\n{bad\n')
    with pytest.raises(MindError) as error:
        load_pass_rates(path)
    first, second, third, total = str(error.value).splitlines()
    assert first == f'{path}:2: "correct" is "yes": expected true or false'
    assert second.startswith(f'{path}:3: "id" is missing') and third.startswith(f"{path}:4: not JSON")
    assert total == f"3 problems in {path}; 1 row without one"
