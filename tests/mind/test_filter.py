"""`mind data filter`: every reason, the selection, the easy questions, counts that add up, and hostile texts."""

from __future__ import annotations

import dataclasses
import itertools
import json
import random
import time

import pytest
from filtering import QUESTION, UNLIKE, judged, many, reasons, response, run
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_records import make_verdict

from mind.curation.filter import FilterConfig, filter_responses
from mind.curation.result import FATES, REASONS, perspective_order
from mind.data.questions import load_questions, save_questions
from mind.perspectives import PAPER_PERSPECTIVES
from mind.records import Rationale, WrongRationale
from mind.similarity import ngram_sets, similarities
from mind.word_problems import generate


def test_the_best_case_keeps_everything_in_the_papers_order_without_answer_lines():
    questions = generate(6, seed=3)
    responses = [
        response(r.perspective, text=f" {r.text}\n", question=q.id, answer=q.answer)
        for q in questions
        for r in reversed(q.rationales)
    ]
    result = run(responses, questions=[dataclasses.replace(q, rationales=()) for q in questions])
    named = [tuple(dataclasses.replace(r, source="m") for r in q.rationales) for q in questions]
    assert [(q.id, q.rationales) for q in result.questions] == [
        (q.id, rationales) for q, rationales in zip(questions, named, strict=True)
    ]
    assert result.dropped == []
    assert result.kept == [(q.id, r.perspective, 0) for q in questions for r in q.rationales]
    assert result.as_dict()["questions"] == dict.fromkeys(FATES, 0) | {"kept": 6}


@pytest.mark.parametrize(
    ("changed", "verdict", "reason"),
    [
        ({}, "wrong", "wrong"),
        ({}, "unparsed", "unparsed"),
        ({"finish_reason": "length"}, "right", "truncated"),
        ({"text": " \n"}, "right", "empty"),
        ({"text": "**\x00"}, "right", "empty"),
        ({"text": "a" * 4001}, "right", "too long"),
        ({"text": "The answer is 12. Add."}, "right", "leaks the answer"),
        ({"text": UNLIKE[1]}, "right", "duplicate"),
    ],
)
def test_a_faulty_rationale_is_dropped_for_its_reason(changed, verdict, reason):
    faulty = response("socratic", **changed)
    responses = [response("planning", text=UNLIKE[1]), response("analogy", text=UNLIKE[2]), faulty]
    result = run(responses, verdicts=judged([faulty], verdict))
    assert result.dropped == [(faulty.key, reason)]
    assert [r.perspective for r in result.questions[0].rationales] == ["planning", "analogy"]
    assert result.reasons == {name: int(name == reason) for name in REASONS}


def test_the_first_reason_that_holds_is_given():
    leak = "The answer is 12."
    faults = [
        ("wrong", "length", ""),
        ("right", "length", ""),
        ("right", "stop", ""),
        ("right", "stop", leak * 500),
        ("right", "stop", leak),
        ("right", "stop", UNLIKE[0]),
    ]
    responses = [
        response("socratic", sample, text, finish_reason=finish) for sample, (_, finish, text) in enumerate(faults)
    ]
    verdicts = {r.key: make_verdict(r.key, verdict) for r, (verdict, _, _) in zip(responses, faults, strict=True)}
    result = run(responses, FilterConfig(require_adherence=True), verdicts=verdicts)
    assert [reason for _, reason in result.dropped] == [
        "wrong",
        "truncated",
        "empty",
        "too long",
        "leaks the answer",
        "not in its perspective",
    ]


def test_a_text_at_the_limit_and_a_leak_that_is_allowed_are_kept():
    responses = [response("analogy", text="a" * 30), response("planning", text="The answer is 12.")]
    result = run(responses, FilterConfig(max_characters=30, drop_leaks=False))
    assert len(result.kept) == 2


def test_adherence_is_counted_and_drops_only_where_it_is_required():
    fit, unfit, free = (
        response("socratic", text="What is asked? The sum. How many is it? Twelve."),
        response("socratic", 1, UNLIKE[1]),
        response("path-1", text=UNLIKE[2]),
    )
    wrong = response("socratic", 2, "What is asked? The sum. How many is it? Three.")
    verdicts = judged([wrong], "wrong")
    loose = run([fit, unfit, free, wrong], verdicts=verdicts).perspectives
    assert dataclasses.asdict(loose["socratic"]) == {"read": 3, "right": 2, "kept": 1, "checked": 2, "adherent": 1}
    assert dataclasses.asdict(loose["path-1"]) == {"read": 1, "right": 1, "kept": 1, "checked": 0, "adherent": 0}
    strict = run([fit, unfit, free, wrong], FilterConfig(require_adherence=True), verdicts=verdicts)
    assert reasons(strict) == {("socratic", 1): "not in its perspective", ("socratic", 2): "wrong"}
    assert strict.perspectives["socratic"].checked == 2


def test_the_later_of_two_alike_is_the_duplicate_by_sample_first():
    responses = [
        response("analogy", 1, UNLIKE[0]),
        response("socratic", 0, UNLIKE[0]),
        response("analogy", 0, UNLIKE[1]),
        response("planning", 0, UNLIKE[2]),
    ]
    assert reasons(run(responses)) == {("analogy", 1): "duplicate"}
    same_sample = [
        response("analogy", 0, UNLIKE[0]),
        response("planning", 0, UNLIKE[0]),
        response("socratic", 0, UNLIKE[1]),
    ]
    assert reasons(run(same_sample)) == {("analogy", 0): "duplicate"}


def test_the_threshold_itself_is_a_duplicate():
    shared = "one two three four five six seven eight nine"
    one, other = f"{shared} ten", f"{shared} eleven"  # 8 trigrams each, 7 in common
    pair = [response("analogy", text=one), response("planning", text=other)]
    assert run(pair, FilterConfig(duplicate_threshold=7 / 9)).reasons["duplicate"] == 1
    assert run(pair, FilterConfig(duplicate_threshold=0.78)).reasons["duplicate"] == 0
    assert run(pair, FilterConfig(duplicate_threshold=0.78, ngram=1)).reasons["duplicate"] == 1


def test_copies_of_dropped_rationales_are_no_duplicates():
    leak = "The answer is 12. Count onwards."
    wrong = response("planning", text=UNLIKE[0])
    responses = [
        wrong,
        response("analogy", text=UNLIKE[0]),
        response("socratic", text=UNLIKE[1]),
        response("contrastive", 0, leak),
        response("contrastive", 1, leak),
    ]
    result = run(responses, verdicts=judged([wrong], "wrong"))
    assert reasons(result) == {
        ("planning", 0): "wrong",
        ("contrastive", 0): "leaks the answer",
        ("contrastive", 1): "leaks the answer",
    }


def test_one_a_perspective_and_the_most_diverse_ones():
    shared = "she has five pears and buys seven more so that"
    responses = [
        response("analogy", 0, f"{shared} makes twelve"),
        response("analogy", 1, UNLIKE[1]),
        response("planning", 0, f"plan and {shared} gives a dozen"),
        response("socratic", 0, UNLIKE[3]),
    ]
    result = run(responses)
    assert reasons(result) == {("analogy", 0): "not selected"}
    assert result.questions[0].rationales == (
        Rationale("planning", responses[2].text.partition("\n")[0], "m"),
        Rationale("analogy", UNLIKE[1], "m"),
        Rationale("socratic", UNLIKE[3], "m"),
    )
    two = run(responses, FilterConfig(keep=2))
    assert two.kept == [("q", "planning", 0), ("q", "analogy", 1)]
    assert reasons(two) == {("analogy", 0): "not selected", ("socratic", 0): "not selected"}


def test_perspectives_beyond_the_papers_follow_by_name():
    names = ["zeta", "path-2", *reversed(PAPER_PERSPECTIVES), "path-1"]
    assert sorted(names, key=perspective_order) == [*PAPER_PERSPECTIVES, "path-1", "path-2", "zeta"]


def test_a_question_with_too_few_left_is_dropped():
    questions = [QUESTION, dataclasses.replace(QUESTION, id="silent")]
    responses = [
        response("analogy", 0, UNLIKE[0]),
        response("analogy", 1, UNLIKE[1]),
        response("planning", 0, UNLIKE[2], finish_reason="length"),
    ]
    result = run(responses, questions=questions)
    assert result.questions == ()
    assert result.dropped == [
        (("q", "planning", 0), "truncated"),
        (("q", "analogy", 0), "too few left"),
        (("q", "analogy", 1), "not selected"),
    ]
    assert result.fates == {"q": "too few left", "silent": "no response"}
    assert result.pass_rates == {"q": 1.0}


def test_the_summary_is_json_and_adds_up():
    questions, responses = many(20)
    wrong = [r for r in responses if r.key.question in ("q1", "q2", "q3", "q4")]
    result = run(responses, FilterConfig(easy_fraction=0.5), questions=questions, verdicts=judged(wrong, "wrong"))
    summary = json.loads(json.dumps(result.as_dict()))
    assert summary["read"] == 40 == summary["kept"] + sum(summary["dropped"].values())
    assert summary["dropped"]["wrong"] == 8 and summary["examples"]["wrong"] == [
        ["q1", "planning", 0],
        ["q2", "planning", 0],
        ["q3", "planning", 0],
    ]
    assert list(summary["examples"]) == ["wrong", "easy question"]
    assert sum(summary["questions"].values()) == 20 == sum(summary["pass_rate_histogram"])
    assert summary["perspectives"]["analogy"] == {
        "read": 20,
        "right": 16,
        "kept": summary["kept"] // 2,
        "checked": 16,
        "adherent": 0,
    }
    assert summary["characters"]["kept"] == {"min": 41, "median": 41.5, "max": 42}
    assert sorted(result.kept_characters + result.dropped_characters) == [41] * 20 + [42] * 20
    assert run([]).as_dict()["characters"] == {"kept": None, "dropped": None}


def test_hostile_texts_are_filtered_in_bounded_time():
    size = 10_000_000
    texts = [
        "a" * size,
        "\x00" * size,
        "#" * size,
        "#### 1 " * (size // 7),
        "1. \n" * (size // 4),
        "? " * (size // 2),
        "\ud800" * 1000,
        "\x1b[31m\x00\r" * 300,
        "=" * 4000,
        "the answer is " * 280,
        "\u202e" * 4000,
    ]
    responses = [response("socratic", sample, text) for sample, text in enumerate(texts)]
    start = time.process_time()
    result = run([*responses, response("analogy", text=UNLIKE[0])], FilterConfig(easy_fraction=0.5))
    assert time.process_time() - start < 15
    found = reasons(result)
    assert [found["socratic", sample] for sample in (0, 1, 2, 3, 4, 5)] == [
        "too long",
        "empty",
        "empty",
        "empty",
        "too long",
        "empty",
    ]
    hostile = "id\ud800\x00\n"
    question = dataclasses.replace(QUESTION, id=hostile)
    two = [response(name, text=text, question=hostile) for name, text in zip(("a\x00", "\ud800"), UNLIKE, strict=False)]
    assert len(run(two, FilterConfig(easy_fraction=0.5, easy_pass_rate=0.0), questions=[question]).outcomes) == 2


@st.composite
def judged_responses(draw):
    """Questions, responses in the order of arrival and verdicts; the texts are of few words, so that many are alike."""
    words = st.lists(st.sampled_from(["add", "the", "five", "pears", "to", "seven", "others", "12", "?"]), max_size=12)
    keys = draw(
        st.lists(
            st.tuples(
                st.sampled_from(["q0", "q1"]),
                st.sampled_from(["planning", "analogy", "path-1", "path-2"]),
                st.integers(0, 2),
            ),
            unique=True,
            max_size=16,
        )
    )
    responses = [
        response(
            name,
            sample,
            " ".join(draw(words)),
            question=question,
            finish_reason=draw(st.sampled_from(["stop", "stop", "length"])),
        )
        for question, name, sample in keys
    ]
    verdicts = {
        r.key: make_verdict(r.key, draw(st.sampled_from(["right", "right", "right", "wrong", "unparsed"])))
        for r in responses
    }
    questions = [dataclasses.replace(QUESTION, id=name) for name in ("q0", "q1", "q2")]
    return questions, responses, verdicts


@given(
    judged_responses(),
    st.integers(2, 4),
    st.integers(2, 3),
    st.sampled_from([0.3, 0.5, 0.7, 1.0]),
    st.booleans(),
    st.sampled_from([0.0, 0.5, 1.0]),
    st.randoms(use_true_random=False),
)
@settings(max_examples=150, deadline=None)
def test_what_always_holds(data, keep, minimum, threshold, require_adherence, fraction, rng):
    questions, responses, verdicts = data
    config = FilterConfig(
        keep=keep,
        minimum=min(minimum, keep),
        duplicate_threshold=threshold,
        max_characters=60,
        require_adherence=require_adherence,
        easy_fraction=fraction,
        easy_pass_rate=0.8,
    )
    result = filter_responses(questions, responses, verdicts, config)
    assert sorted(outcome.key for outcome in result.outcomes) == sorted(r.key for r in responses)
    assert len(result.kept) == sum(len(q.rationales) for q in result.questions)
    assert len(responses) == len(result.kept) + sum(result.reasons.values())
    assert all(verdicts[key].verdict == "right" for key in result.kept)
    assert set(result.fates) == {"q0", "q1", "q2"} and result.fates["q2"] == "no response"
    for question in result.questions:
        names = [r.perspective for r in question.rationales]
        assert names == sorted(set(names), key=perspective_order)
        assert config.minimum <= len(names) <= keep
        table = similarities(ngram_sets([r.text for r in question.rationales], config.ngram))
        assert all(table[i][j] < threshold for i, j in itertools.combinations(range(len(names)), 2))
    shuffled = rng.sample(responses, len(responses))
    assert filter_responses(questions, shuffled, verdicts, config) == result


def test_records_are_what_the_trainer_reads(tmp_path):
    questions, responses = many(3)
    random.Random(0).shuffle(responses)
    result = run(responses, questions=questions)
    save_questions(result.questions, tmp_path / "mine.jsonl")
    read = load_questions(tmp_path / "mine.jsonl", perspectives=PAPER_PERSPECTIVES, require_rationales=True)
    assert tuple(read) == result.questions


def test_wrong_rationales_are_kept_if_they_are_wanted():
    responses = [response(), response("planning", 0, UNLIKE[1])]
    wrong = [
        response("socratic", 0, UNLIKE[2], answer="13"),
        response("socratic", 1, UNLIKE[2], answer="13"),  # a duplicate
        response("analogy", 1, UNLIKE[3], answer="13", finish_reason="length"),  # cut off
        response("planning", 1, "The answer is 12. " + UNLIKE[3], answer="13"),  # says that it knows the answer
        response("contrastive", 0, UNLIKE[3], answer="11"),
    ]
    verdicts = {
        r.key: dataclasses.replace(make_verdict(r.key, "wrong"), extracted=r.text.rpartition(" ")[2]) for r in wrong
    }
    found = run(responses + wrong, FilterConfig(keep_wrong=8), verdicts=verdicts)
    assert found.questions[0].wrong_rationales == (
        WrongRationale("socratic", UNLIKE[2], "13", "m"),
        WrongRationale("contrastive", UNLIKE[3], "11", "m"),
    )
    one = run(responses + wrong, FilterConfig(keep_wrong=1), verdicts=verdicts)
    assert one.questions[0].wrong_rationales == found.questions[0].wrong_rationales[:1]
    none = run(responses + wrong, verdicts=verdicts)
    assert none.questions[0].wrong_rationales == () and none.outcomes == found.outcomes
