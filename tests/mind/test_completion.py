"""What a reply says: whole, cut-off and broken-off answers, thoughts, parts, and errors that come with status 200."""

from __future__ import annotations

import json

import pytest
from sample_records import make_response

from mind.teacher.completion import Problem, is_finished, read_completion, status_problem

USAGE = {"prompt_tokens": 10, "completion_tokens": 20}
TEXT = "5 + 7 = 12.\n#### 12"


def body(content=TEXT, finish_reason="stop", usage=USAGE, **message):
    choice = {"index": 0, "message": {"role": "assistant", "content": content, **message}}
    return {"model": "m", "choices": [choice | {"finish_reason": finish_reason}], "usage": usage}


def problem_of(reply) -> Problem:
    with pytest.raises(Problem) as caught:
        read_completion(reply)
    return caught.value


@pytest.mark.parametrize(
    "reason",
    ["stop", "STOP", "eos", "eos_token", "stop_sequence", "end_turn", "COMPLETE", "FINISH_REASON_STOP", " stop "],
)
def test_an_answer_that_the_model_ended(reason):
    answer = read_completion(body(finish_reason=reason))
    assert (answer.text, answer.finish_reason, answer.completion_tokens) == (TEXT, "stop", 20)


@pytest.mark.parametrize(
    "reason",
    [
        "length",
        "max_tokens",
        "MAX_TOKENS",
        "model_length",
        "max_output_tokens",
        "max_new_tokens",
        "FINISH_REASON_MAX_TOKENS",
    ],
)
def test_an_answer_that_was_cut_off(reason):
    assert read_completion(body("5 + 7", reason)).finish_reason == "length"


@pytest.mark.parametrize(
    "reason",
    [
        "error",
        "abort",
        "cancelled",
        "insufficient_system_resource",
        "timeout",
        "user_cancel",
        "network_error",
        "PREEMPTED",
    ],
)
def test_an_answer_that_was_broken_off_is_asked_again_and_kept_with_what_was_lost(reason):
    said = "First, 5 + 7 = 12. Then we take 12"
    problem = problem_of(body(f"<think>hm</think>{said}", reason))
    assert problem.reason == f"ended by {reason.lower()}" and problem.retry
    assert (problem.tokens, problem.text, problem.reasoning) == ((10, 20), said, "hm")  # it was paid for


@pytest.mark.parametrize("reason", ["tool_calls", "function_call", "Tired", "repetition", "x" * 10_000])
def test_an_end_by_a_name_that_nobody_knows_discards_no_answer(reason):
    shown = reason.lower()[:40] + " ..." * (len(reason) > 40)
    answer = read_completion(body(finish_reason=reason))
    assert (answer.text, answer.finish_reason, answer.completion_tokens) == (TEXT, shown, 20)
    for text, finished in ((TEXT, True), ("We should also", False)):
        assert is_finished(make_response(text=text, finish_reason=shown)) is finished
    problem = problem_of(body(None, reason, tool_calls=[{"id": "call"}], reasoning="A tool?"))
    assert (problem.reason, problem.retry) == (f"ended by {shown}", False)
    assert (problem.tokens, problem.text, problem.reasoning) == ((10, 20), "", "A tool?")


@pytest.mark.parametrize("reason", ["content_filter", "SAFETY", "recitation", "refusal", "PROHIBITED_CONTENT"])
def test_a_filter_is_not_asked_again(reason):
    problem = problem_of(body("First, ", reason))
    assert problem.reason == "refused by the content filter" and not problem.retry
    assert (problem.tokens, problem.text) == ((10, 20), "First, ")


def test_a_refusal_is_told_and_not_asked_again():
    problem = problem_of(body(None, refusal="I cannot help with that."))
    assert (problem.reason, problem.detail) == ("refused by the model", "I cannot help with that.")
    assert not problem.retry


@pytest.mark.parametrize(
    "refusal",
    [
        [{"type": "refusal", "refusal": "I cannot."}],
        [{"type": "text", "text": ""}, {"type": "refusal", "refusal": "I cannot."}],
    ],
)
def test_a_refusal_in_parts_is_not_asked_again(refusal):
    problem = problem_of(body(refusal))
    assert (problem.reason, problem.detail, problem.retry) == ("refused by the model", "I cannot.", False)


@pytest.mark.parametrize("finish_reason", [None, 7, "", " ", "null", "None", {"type": "stop"}])
def test_a_server_that_gives_no_reason(finish_reason):
    assert read_completion(body(finish_reason=finish_reason)).finish_reason == "unknown"


@pytest.mark.parametrize(
    ("reason", "text", "finished"),
    [
        ("stop", "5 + 7", True),
        ("length", TEXT, False),
        ("error", TEXT, False),
        ("abort", TEXT, False),
        ("content_filter", TEXT, False),
        ("model_length", TEXT, False),
        ("unknown", "We should also", False),
        ("unknown", TEXT, True),
        ("unknown", "#### Step 1\nAdd.", False),
        ("unknown", "So\n####", False),
        ("unknown", "So\n**#### 12** \n", True),
    ],
)
def test_what_counts_as_finished_in_a_folder(reason, text, finished):
    assert is_finished(make_response(text=text, finish_reason=reason)) is finished


THOUGHT = "Let us think. " * 50


@pytest.mark.parametrize(
    "reply",
    [
        body(None, "length", reasoning_content=THOUGHT),
        body("", "length", reasoning=THOUGHT),
        body("  ", "max_tokens", reasoning_content=THOUGHT),
        body(f"<think>\n{THOUGHT}", "length"),
        body([{"type": "thinking", "thinking": THOUGHT}], "length"),
        body(None, "length"),
    ],
)
def test_thoughts_that_took_all_tokens_are_an_answer_that_was_cut_off(reply):
    """Asked again, it would cost the same again."""
    answer = read_completion(reply)
    assert (answer.text, answer.finish_reason, answer.completion_tokens) == ("", "length", 20)


@pytest.mark.parametrize("text", ["<think>5 + 7 = 12</think>", "<think>\nMaybe 12? #### 12 hmm", "[THINK]12[/THINK]\n"])
def test_thoughts_alone_are_no_answer_and_not_bought_again(text):
    problem = problem_of(body(text))
    assert problem.reason == "empty answer" and not problem.retry


@pytest.mark.parametrize(
    "thoughts",
    [
        {"thinking": "hm"},
        {"reasoning": {"content": "hm"}},
        {"reasoning_content": [{"type": "text", "text": "hm"}]},
        {"reasoning_details": [{"type": "reasoning.text", "text": "hm"}]},
        {"content": [{"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]}]},
    ],
)
def test_thoughts_of_every_form_are_not_bought_again(thoughts):
    problem = problem_of(body(**{"content": None, **thoughts}))
    assert (problem.detail, problem.retry) == ("thoughts alone, finish_reason is stop", False)
    if "content" not in thoughts:
        assert read_completion(body(**thoughts)).reasoning == "hm"


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        ({"prompt_tokens": 10.0, "completion_tokens": 20}, (10, 20)),
        ({"prompt_tokens": 10.5, "completion_tokens": float("inf")}, (None, None)),
        ({"prompt_tokens": "10", "completion_tokens": True}, (None, None)),
        ({"prompt_tokens": 10**400, "completion_tokens": -1}, (None, None)),
        ({"input_tokens": 10, "output_tokens": 20}, (10, 20)),
        ({"input_tokens": 11, "prompt_tokens": 10, "completion_tokens": 20, "output_tokens": 21}, (10, 20)),
        ([10, 20], (None, None)),
    ],
)
def test_only_a_count_counts(usage, tokens):
    answer = read_completion(body(usage=usage))
    assert (answer.prompt_tokens, answer.completion_tokens) == tokens


@pytest.mark.parametrize("text", ["", " \n", None])
def test_an_empty_answer_is_asked_again(text):
    problem = problem_of(body(text))
    assert problem.reason == "empty answer" and problem.retry and problem.tokens == (10, 20)
    assert problem_of(body(text, usage=None)).tokens == (None, None)  # the worst case


@pytest.mark.parametrize(
    ("text", "thoughts"),
    [
        (f"<think>\nMaybe 11? #### 11\n</think>\n\n{TEXT}", "Maybe 11? #### 11"),
        (f"Maybe 11?\n</think>{TEXT}", "Maybe 11?"),  # the template has written the first mark
        (f"<thinking>hm</thinking>{TEXT}", "hm"),
        (f"[THINK]hm[/THINK]{TEXT}", "hm"),
        (f"◁think▷hm◁/think▷{TEXT}", "hm"),
        (f"<think>a</think> no <think>b</think>\n{TEXT}", "a no b"),
        (TEXT, None),
    ],
)
def test_thoughts_are_told_from_the_answer(text, thoughts):
    answer = read_completion(body(text))
    assert (answer.text, answer.reasoning) == (TEXT, thoughts)


@pytest.mark.parametrize(
    ("content", "reasoning"),
    [
        ([{"type": "text", "text": TEXT}], None),
        ([{"type": "text", "text": "5 + 7 = 12."}, {"type": "text", "text": "\n#### 12"}], None),
        ([{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, {"type": "text", "text": TEXT}], "hm"),
        ([{"type": "reasoning", "text": "hm"}, {"type": "output_text", "text": TEXT}], "hm"),
        ([{"type": "thought", "text": "hm"}, {"type": "text", "text": TEXT}], "hm"),
        ([{"text": "hm", "thought": True}, {"text": TEXT}], "hm"),
        ([{"type": "redacted_thinking", "data": "x"}, {"type": "text", "text": TEXT}], None),
        ([{"type": "text", "text": {"value": TEXT, "annotations": []}}], None),
        ([TEXT], None),
        ({"type": "text", "text": TEXT}, None),
        ([{"type": "image_url", "image_url": {"url": "x"}}, {"type": "text", "text": {"content": TEXT}}], None),
    ],
)
def test_content_in_parts(content, reasoning):
    answer = read_completion(body(content))
    assert (answer.text, answer.reasoning) == (TEXT, reasoning)


def test_parts_within_parts_have_an_end():
    content = {"text": TEXT}
    for _ in range(500):
        content = [content]
    assert problem_of(body(content)).reason == "empty answer"


def test_half_a_character_is_replaced():
    reply = json.loads(
        b'{"choices":[{"message":{"content":"We see \\ud83d and \\ud83c\\udf4e"},"finish_reason":"stop"}]}'
    )
    assert read_completion(reply).text == "We see \ufffd and 🍎"


@pytest.mark.parametrize(
    ("reply", "reason", "words", "ends_job", "retry"),
    [
        ({"error": {"code": 402, "message": "Insufficient credits"}}, "status 402", "Insufficient credits", True, True),
        ({"error": {"code": "429", "message": "slow down"}}, "status 429", "slow down", False, True),
        ({"error": {"code": 503, "message": "overloaded"}, "choices": []}, "status 503", "overloaded", False, True),
        ({"error": {"code": 400, "message": "too long"}}, "status 400", "too long", False, False),
        ({"error": {"type": "insufficient_quota", "message": "pay"}}, "quota used up", "pay", True, True),
        ({"error": "model is loading"}, "error in place of an answer", "model is loading", False, True),
        ({"error": {"detail": "who knows"}}, "error in place of an answer", "who knows", False, True),
        ({"object": "error", "message": "no such model", "code": 404}, "status 404", "no such model", True, True),
        ({"detail": "Not Found"}, "malformed answer", "Not Found", False, True),
        ({"message": "Unauthorized"}, "malformed answer", "Unauthorized", False, True),
        ({"choices": "none"}, "malformed answer", "none", False, True),
    ],
)
def test_an_error_with_status_200_keeps_its_words_and_costs_nothing(reply, reason, words, ends_job, retry):
    problem = problem_of(reply)
    assert problem.reason == reason and words in problem.detail
    assert (problem.ends_job, problem.retry) == (ends_job, retry)
    assert problem.tokens is None
    assert problem_of(reply | {"usage": USAGE}).tokens == (10, 20)


def test_an_error_within_the_choice():
    choice = {
        "message": {"content": "First"},
        "finish_reason": "error",
        "error": {"code": 502, "message": "Upstream died"},
    }
    problem = problem_of({"choices": [choice], "usage": USAGE})
    assert problem_of(body(None, error="Upstream died")).detail == "Upstream died"
    assert (problem.reason, problem.detail, problem.tokens) == ("ended by error", "Upstream died", (10, 20))
    assert problem.text == "First"


@pytest.mark.parametrize("code", ["insufficient_quota", "billing_hard_limit_reached"])
def test_a_used_up_quota_ends_the_job_whatever_the_status(code):
    for status in (400, 403, 429):
        problem = status_problem(status, (code, None), "pay")
        assert problem.ends_job and problem.reason == "quota used up"
