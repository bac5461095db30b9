"""`mind data filter`: pass rates and how they vary, the shortest rationale per perspective, teachers and scripts."""

from __future__ import annotations

import dataclasses

import pytest
from filtering import QUESTION, UNLIKE, judged, reasons, response, run

from mind.curation.adherence import script_shares
from mind.curation.config import FilterConfig
from mind.curation.filter import filter_responses
from mind.curation.result import FATES
from mind.errors import MindError
from mind.teacher.recipes import MadeFrom


def graded(*grades):
    """Questions with two samples of each of two perspectives, and the verdicts on them: "rrww" is right, right, ..."""
    questions = [dataclasses.replace(QUESTION, id=f"q{n}") for n in range(len(grades))]
    places = [("analogy", 0), ("analogy", 1), ("planning", 0), ("planning", 1)]
    responses, verdicts = [], {}
    for question, letters in zip(questions, grades, strict=True):
        for (name, sample), text, letter in zip(places, UNLIKE, letters, strict=True):
            responses.append(response(name, sample, text, question=question.id))
            verdicts |= judged(responses[-1:], "right" if letter == "r" else "wrong")
    return {"responses": responses, "questions": questions, "verdicts": verdicts}


@pytest.mark.parametrize(
    ("band", "kept"),
    [
        ((0.0, 1.0), [0, 1, 2, 3]),
        ((0.5, 0.75), [1, 2, 3]),
        ((0.6, 1.0), [0, 1]),
        ((0.5, 0.5), [2, 3]),
        ((0.9, 0.9), []),
    ],
)
def test_a_band_of_pass_rates(band, kept):
    result = run(**graded("rrrr", "rrrw", "rwrw", "rwwr", "rwww"), config=FilterConfig(pass_rate=band))
    assert [question.id for question in result.questions] == [f"q{n}" for n in kept]
    assert result.question_counts == dict.fromkeys(FATES, 0) | {
        "kept": len(kept), "too few left": 1, "pass rate outside": 4 - len(kept),
    }  # fmt: skip
    by_student = run(**graded("rrrr"), config=FilterConfig(pass_rate=(0.2, 0.8)), pass_rates={"q0": 0.2})
    assert len(by_student.questions) == 1


@pytest.mark.parametrize(
    ("grades", "variation"),
    [("rrrr", 0.0), ("rwrw", 0.0), ("rrrw", 0.25 / 0.75), ("rrwr", 0.25 / 0.75)],
)
def test_variation_is_that_of_the_perspectives(grades, variation):
    for low, high, kept in ((variation, variation, 1), (variation + 1e-9, 9, 0), (0, variation - 1e-9, 0)):
        if low <= high:
            assert len(run(**graded(grades), config=FilterConfig(variation=(low, high))).questions) == kept


def test_one_answer_a_perspective_varies_as_deepdistill_has_it():
    """Of the pass rate p: sqrt(1 / p - 1), here of 2 in 3."""
    names = ("analogy", "planning", "socratic")
    responses = [response(name, text=text) for name, text in zip(names, UNLIKE, strict=False)]
    for shift, kept in ((0, 1), (1e-9, 0)):
        config = FilterConfig(variation=((1 / (2 / 3) - 1) ** 0.5 + shift, 9))
        assert len(run(responses, config, verdicts=judged(responses[2:], "wrong")).questions) == kept


@pytest.mark.parametrize(("name", "option"), [("pass_rate", "--pass-rate"), ("variation", "--variation")])
def test_what_was_made_from_answers_tells_no_pass_rate(name, option):
    responses = [response("analogy"), response("planning", text=UNLIKE[1])]
    made = {r.key: MadeFrom("rewritten", None) for r in responses}
    config = FilterConfig(**{name: (0.1, 0.9)})
    with pytest.raises(MindError, match=f"^{option}: all answers were made from others"):
        filter_responses([QUESTION], responses, judged(responses), config, made=made)
    assert filter_responses([QUESTION], responses, judged(responses), FilterConfig(), made=made).pass_rates == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pass_rate": (0.5, 0.2)}, r"pass_rate is \(0.5, 0.2\): expected two numbers, 0 <= low <= high <= 1"),
        ({"pass_rate": (0.5, 1.2)}, "pass_rate is"),
        ({"variation": (-0.1, 1.0)}, r"variation is \(-0.1, 1.0\): expected two numbers, 0 <= low <= high"),
        ({"variation": (0.1,)}, "variation is .*: expected a list of 2"),
    ],
)
def test_a_range_that_is_none(change, message):
    with pytest.raises(MindError, match=message):
        FilterConfig(**change)


def test_the_shortest_right_one_of_each_perspective():
    texts = {("analogy", 0): UNLIKE[0], ("analogy", 1): UNLIKE[2], ("analogy", 2): "12", ("planning", 0): UNLIKE[1],
             ("planning", 1): UNLIKE[3] + " And then some more.", ("socratic", 0): UNLIKE[3]}  # fmt: skip
    responses = [response(*place, text) for place, text in texts.items()]
    result = run(responses, FilterConfig(shortest=True), verdicts=judged(responses[2:3], "wrong"))
    assert [r.text for r in result.questions[0].rationales] == [UNLIKE[1], UNLIKE[2], UNLIKE[3]]
    assert reasons(result) == {
        ("analogy", 0): "not selected", ("analogy", 2): "wrong", ("planning", 1): "not selected",
    }  # fmt: skip


def test_a_longer_original_makes_its_shorter_version_no_duplicate():
    long, short = "one two three four five six seven eight nine ten", "one two three four five six seven eight nine"
    responses = [response("analogy", 0, long), response("analogy", 1, short), response("planning", 0, UNLIKE[0])]
    assert reasons(run(responses)) == {("analogy", 1): "duplicate"}
    assert reasons(run(responses, FilterConfig(shortest=True))) == {("analogy", 0): "not selected"}


# Teachers and scripts


def test_the_rationales_of_some_teachers_alone():
    responses = [
        dataclasses.replace(response(name, sample, text), model=model)
        for name, sample, text, model in (
            ("analogy", 0, UNLIKE[0], "big"), ("analogy", 1, UNLIKE[1], "small"), ("planning", 0, UNLIKE[2], "small"),
            ("socratic", 0, UNLIKE[3], "other"), ("socratic", 1, UNLIKE[0], "small"),
        )
    ]  # fmt: skip
    verdicts = judged(responses[4:], "wrong")
    result = run(responses, FilterConfig(source=("small", "other"), keep_wrong=2), verdicts=verdicts)
    (question,) = result.questions
    assert {r.source for r in question.rationales} == {"small", "other"} and len(question.rationales) == 3
    assert reasons(result) == {("analogy", 0): "of another source", ("socratic", 1): "wrong"}
    lengths = sorted(map(len, UNLIKE[1:3]))
    assert {name: dataclasses.astuple(counts) for name, counts in result.teachers.items()} == {
        "big": (1, 1, 0, None, None),
        "other": (1, 1, 1, len(UNLIKE[3]), 4),
        "small": (3, 2, 2, sum(lengths) / 2, 4),
    }
    only = run(responses, FilterConfig(source=("big", "other"), keep_wrong=2), verdicts=verdicts)
    assert only.questions[0].wrong_rationales == (), "that of another teacher"
    with pytest.raises(MindError, match="^--source: none wrote as huge: those who did are big, other, small"):
        run(responses, FilterConfig(source=("huge", "big")), verdicts=verdicts)


def of_two_teachers(big, small):
    """A question that each answered twice in two perspectives, right ("r") or wrong."""
    given = [graded(letters) for letters in (big, small)]
    responses = [
        dataclasses.replace(one, model=model, key=one.key._replace(sample=one.key.sample + shift))
        for model, shift, data in zip(("big", "small"), (0, 2), given, strict=True)
        for one in data["responses"]
    ]
    verdicts = {}
    for one, letter in zip(responses, big + small, strict=True):
        verdicts |= judged([one], "right" if letter == "r" else "wrong")
    return {"responses": responses, "questions": given[0]["questions"], "verdicts": verdicts}


@pytest.mark.parametrize(
    ("source", "rate", "variation"),
    [(("big",), 0.75, 0.25 / 0.75), (("small",), 0.5, 0.0), (("big", "small"), 0.625, 0.125 / 0.625), ((), 0.625, 0.2)],
)
def test_pass_rates_are_those_of_the_teachers_that_are_asked_for(source, rate, variation):
    data = of_two_teachers("rrrw", "rwrw")
    assert run(**data, config=FilterConfig(source=source)).pass_rates == {"q0": rate}
    for change, fate in ((0, "kept"), (1e-9, "pass rate outside")):
        for band in ({"pass_rate": (rate + change, 1.0)}, {"variation": (variation + change, 9.0)}):
            assert run(**data, config=FilterConfig(source=source, **band)).fates == {"q0": fate}, band


def test_a_students_rates_leave_the_variation_as_it_is():
    data, variation = graded("rrrw"), 0.25 / 0.75
    for shift, kept in ((0, 1), (1e-9, 0)):
        config = FilterConfig(pass_rate=(0.1, 0.3), variation=(variation + shift, 9))
        assert len(run(**data, config=config, pass_rates={"q0": 0.2}).questions) == kept


@pytest.mark.parametrize(("name", "option"), [("pass_rate", "--pass-rate"), ("variation", "--variation")])
def test_teachers_who_answered_no_question_tell_no_pass_rate(name, option):
    data = of_two_teachers("rrrr", "rrrr")
    made = {one.key: MadeFrom("rewritten", None) for one in data["responses"] if one.model == "small"}
    config = FilterConfig(source=("small",), **{name: (0.1, 0.9)})
    with pytest.raises(MindError, match=f"^{option}: all answers of small were made from others"):
        filter_responses(*(data[key] for key in ("questions", "responses", "verdicts")), config, made=made)


@pytest.mark.parametrize(
    ("text", "shares"),
    [
        ("", {}),
        ("12 + 5 = 17!", {}),
        ("Add, x.", {"LATIN": 1.0}),
        ("사과 ab", {"HANGUL": 0.5, "LATIN": 0.5}),
        ("дом αβ 中", {"CYRILLIC": 0.5, "GREEK": 2 / 6, "CJK": 1 / 6}),
        ("\U000e0041\ud800\x00a", {"LATIN": 1.0}),
    ],
)
def test_the_scripts_of_a_text(text, shares):
    assert script_shares(text) == pytest.approx(shares)


def test_rationales_in_another_language_are_dropped():
    mixed = "사과 다섯 개와 seven make 열두개"  # 9 of 18 letters are Hangul
    responses = [
        response("analogy", 0, mixed), response("analogy", 1, UNLIKE[0]), response("planning", 0, "사과 열두 개이다"),
        response("socratic", 0, "세다가 넷 다섯 여섯 count on"), response("socratic", 1, "여덟 개와 four make 다섯"),
    ]  # fmt: skip
    assert script_shares(mixed) == {"HANGUL": 0.5, "LATIN": 0.5}
    wrong = judged(responses[4:], "wrong")
    config = FilterConfig(scripts={"HANGUL": (0.5, 0.6), "LATIN": (0.1, 0.5)}, keep_wrong=2)
    result = run(responses, config, verdicts=wrong)
    assert reasons(result) == {
        ("analogy", 1): "in another script", ("planning", 0): "in another script", ("socratic", 1): "wrong",
    }  # fmt: skip
    assert result.questions[0].wrong_rationales == ()
    assert len(run(responses, FilterConfig(keep_wrong=2), verdicts=wrong).questions[0].wrong_rationales) == 1


@pytest.mark.parametrize(
    ("scripts", "message"),
    [
        ({"Hangul": (0.1, 0.2)}, "expected one such as LATIN, CYRILLIC or HANGUL; perhaps you meant HANGUL"),
        ({"LATIN": (0.3, 0.2)}, r"scripts.LATIN is \(0.3, 0.2\): expected two numbers, 0 <= low <= high <= 1"),
        ({"LATIN": (0.3,)}, "scripts holds"),
    ],
)
def test_scripts_that_are_none(scripts, message):
    with pytest.raises(MindError, match=message):
        FilterConfig(scripts=scripts)
