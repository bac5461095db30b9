"""What of a response becomes a rationale: nothing behind its answer line, no thoughts, no tokens of a template."""

from __future__ import annotations

import json
import time

import pytest
from sample_records import make_response, make_verdict

from mind.answer_line import rationale_of, split_thoughts
from mind.curation.filter import FilterConfig, filter_responses
from mind.curation.importing import import_rationales
from mind.grading.answers import is_correct
from mind.records import Question
from mind.teacher.judge import verdicts_by_rules

QUESTION = Question("q", "Ann has 5 pears and buys 7. How many pears has she?", "12")
CHOICE = Question("c", "Which is a fruit?", "B", {"A": "stone", "B": "pear"})
SO = "What do we add? 5 + 7 = 12."


def rationale(text: str, question: Question = QUESTION) -> str:
    return rationale_of(text, lambda stated: is_correct(stated, question))


@pytest.mark.parametrize(
    "text",
    [
        f"{SO}\n#### 12",
        f"{SO}\n####12",
        f"{SO} #### 12",
        f"{SO}\r\n#### 12\r\n",
        f"{SO}\n#### 12\n\nHope this helps!",
        f"{SO}\n#### 12\n\nLet me know if anything is unclear!\n\nBye.",
        f"{SO}\n#### 12 pears\nThat is all.",
        f"{SO}\n**#### 12**",
        f"{SO}\n> **#### 12**\n> *Done.*",
        f"{SO}\n`#### 12`\nOK?",
        f"```\n{SO}\n#### 12\n```",
        f"```text\n{SO}\n```\n#### 12\n",
        f"{SO}\n```\n#### 12\n```",
        f"{SO}\n####\n12\n\nCheers",
        f"{SO}\n#### Answer:\n12",
        f"{SO}\n#### Final answer\n12\nHope this helps!",
        f"{SO}\nFinal answer:\n#### 12",
        f"{SO}\n**Answer:**\n#### 12\nBye",
        f"{SO}\n### Final answer\n#### 12\nBye",
        f"{SO}\n- #### 12\nBye",
        f"{SO}\n<p>#### 12</p>",
        f"{SO}\n<p><b> **#### 12**</b></p>\n",
        f"{SO}<br>#### 12",
        f"{SO}\n#### 12\nWait, let me check: 12 - 7 = 5. Yes.\n#### 12",
        f"{SO}\n#### 12<|im_end|>",
        f"{SO}\n#### 12\n<|im_end|>\n<|im_start|>user\nAnother question?",
        f"{SO}<|eot_id|>\n#### 12",
        f"{SO}\n#### 12</s>",
        f"{SO}\n#### 12\n<end_of_turn>\n",
        f"{SO}\n#### 12<｜end▁of▁sentence｜>",
        f"<think>\nMaybe 11?\n#### 11\n</think>\n\n{SO}\n#### 12",
        f"Maybe 11?</think>\n{SO}\n#### 12\n\nHope this helps!",
    ],
)
def test_what_follows_the_answer_line_is_no_part_of_the_rationale(text):
    fenced = text.startswith("```text")
    assert rationale(text) == (f"```text\n{SO}\n```" if fenced else SO)


@pytest.mark.parametrize(
    "text",
    [
        f"#### Step 1\n{SO}\n#### Step 2\nDone.",
        f"#### Step 12\n{SO}\nDone.",
        f"#### Part 12:\n{SO}\nDone.",
        f"#### What is given\n{SO}",
        f"First try:\n#### 11\nNo, that is wrong.\n{SO}",
        f"{SO}\n```python\nprint(5 + 7)\n```\nDone.",
        "Let <s>11</s be 12.",
        "So 11 < 12 and 13 >",
    ],
)
def test_headings_and_code_within_a_rationale_stay(text):
    assert rationale(f"{text}\n#### 12") == text
    assert rationale(f"{text}\n#### 12\n\nHope this helps!") == text


@pytest.mark.parametrize(
    "text",
    [
        "<think>What do we add? 5 + 7 = 12. Let me double-check",
        "<think>\nMaybe 12?\n#### 12 hmm",
        "<think>12</think>",
        "#### 12\n" * 3,
        "<|channel|>analysis<|message|>5 + 7",
        "```\n#### 12\n```",
    ],
)
def test_without_words_before_the_answer_there_is_no_rationale(text):
    assert rationale(text) == ""


def test_a_text_that_opens_with_its_answer_is_left_for_the_filter_for_leaks():
    assert rationale("#### 12\n\nExplanation: 5 + 7 = 12.\n#### 12").startswith("#### 12")


def test_an_option_is_an_answer_and_no_heading():
    assert rationale("A pear grows on a tree.\n#### Option B\n\nGood luck!", CHOICE) == "A pear grows on a tree."


@pytest.mark.parametrize(
    "text", ["####" * 1_000_000, "####\n" * 500_000, "#### 12\n" * 300_000, "*" * 2_000_000 + "\n#### 12",
             "```\n" * 500_000, "<think>" * 300_000, "</s>" * 500_000, "answer" * 300_000, " \n" * 1_000_000 + "####",
             "<b>" * 500_000 + "#### 12"]
)  # fmt: skip
def test_hostile_texts_take_linear_time(text):
    started = time.process_time()
    rationale(text)
    assert time.process_time() - started < 5


def test_thoughts_end_with_the_last_mark():
    assert split_thoughts("no marks") == ("no marks", None)
    assert split_thoughts("<THINK>a</THINK>b") == ("b", "a")
    assert split_thoughts("a <think> b") == ("", "a  b")


PART = f"{SO} Is that all? We should also"


@pytest.mark.parametrize(
    ("text", "finish_reason", "kept"),
    [
        (PART, "stop", PART),
        (PART, "length", None),
        (PART, "error", None),
        (PART, "abort", None),
        (PART, "model_length", None),
        (PART, "insufficient_system_resource", None),
        (PART, "unknown", None),
        (f"{PART} think.\n#### 12", "unknown", f"{PART} think."),
        (f"{SO}\n#### 12\n\nLet me know if anything is unclear!", "stop", SO),
        (f"```\n{SO}\n#### 12\n```", "stop", SO),
        (f"{SO}\n#### 12<|im_end|>\n<|im_start|>user\nAnd 3 + 4?\n#### 7", "stop", SO),
        (f"<think>{SO} Let me double-check", "stop", None),
        (f"<think>#### 11</think>{SO}\n#### 12", "stop", SO),
    ],
)
def test_what_a_folder_of_before_becomes(text, finish_reason, kept):
    """Answers that an earlier version stored: judged, and filtered."""
    good = make_response("q", "intuitive", text="Picture a small pile poured onto a larger one: a dozen.\n#### 12")
    other = make_response("q", "socratic", text=text, finish_reason=finish_reason)
    verdicts = {verdict.key: verdict for verdict in verdicts_by_rules({"q": QUESTION}, [good, other])}
    verdicts[good.key] = make_verdict(good.key)
    result = filter_responses([QUESTION], [good, other], verdicts, FilterConfig())
    texts = [r.text for q in result.questions for r in q.rationales if r.perspective == "socratic"]
    assert texts == ([] if kept is None else [kept])
    if kept is None:
        assert dict(result.dropped)[other.key] in ("truncated", "unparsed", "wrong")
        assert verdicts[other.key].verdict != "right"


def test_an_import_takes_thoughts_and_chatter_away_too(tmp_path):
    source = tmp_path / "u.jsonl"
    texts = [f"<think>11?</think>{SO}\n#### 12\n\nHope this helps!", "```\nCount on: 12.\n#### 12\n```", "<think>12"]
    row = {"id": "q", "question": QUESTION.question, "answer": "12", "rationales": texts}
    source.write_text(json.dumps(row))
    (question,), report = import_rationales(source)
    assert [rationale.text for rationale in question.rationales] == [SO, "Count on: 12."]
    assert report.rationales_empty == 1
