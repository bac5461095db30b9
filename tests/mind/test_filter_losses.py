"""A filter that keeps no question says how many rationales the questions had left, and what took most."""

from __future__ import annotations

from filtering import QUESTION, judged, many, response, run

from mind.curation.config import FilterConfig


def test_a_filter_says_how_many_rationales_are_left_and_what_took_most():
    questions, responses = many(3)
    questions.append(type(QUESTION)("asked of nobody", QUESTION.question, QUESTION.answer))
    verdicts = judged(responses) | judged(responses[:1], "wrong") | judged(responses[2:4], "wrong")
    result = run(responses, FilterConfig(minimum=3), questions=questions, verdicts=verdicts)
    told = "2 questions with 0 left; 1 question with 1 left; 1 question with 2 left; "
    assert result.described_losses == told + '"wrong" took most, 3 of 6 rationales'


def test_questions_with_enough_rationales_are_told_with_why_they_go():
    questions, responses = many(2)
    easy = FilterConfig(easy_fraction=0.0)
    result = run(responses, easy, questions=questions)
    assert result.questions == ()
    assert result.described_losses == "2 questions with 2 left; 2 questions dropped as: easy question"
    assert "most" not in run([response()], FilterConfig(minimum=2)).described_losses
