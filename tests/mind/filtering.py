"""Responses to one question, and what a filter makes of them."""

from __future__ import annotations

import dataclasses

from sample_records import make_response, make_verdict

from mind.answer_line import suffix
from mind.curation.filter import FilterConfig, filter_responses
from mind.records import Question

QUESTION = Question("q", "Ann has 5 pears and buys 7 more. How many pears has she?", "12")
UNLIKE = (
    "Five pears lie there and seven join them.",
    "Count onwards from seven: eight to twelve.",
    "Ten and two more make a dozen.",
    "Take two hands and two fingers.",
)


def response(perspective="analogy", sample=0, text=UNLIKE[0], *, question="q", finish_reason="stop", answer="12"):
    return make_response(question, perspective, sample, text=text + suffix(answer), finish_reason=finish_reason)


def judged(responses, verdict="right"):
    return {r.key: make_verdict(r.key, verdict) for r in responses}


def run(responses, config=None, *, questions=(QUESTION,), verdicts=None, pass_rates=None):
    verdicts = judged(responses) | (verdicts or {})
    return filter_responses(questions, iter(responses), verdicts, config or FilterConfig(), pass_rates=pass_rates)


def reasons(result):
    return {key[1:]: reason for key, reason in result.dropped}


def many(count, perspectives=("analogy", "planning")):
    questions = [dataclasses.replace(QUESTION, id=f"q{number}") for number in range(count)]
    return questions, [
        response(name, text=UNLIKE[k], question=q.id) for q in questions for k, name in enumerate(perspectives)
    ]
