"""Adherence and leaks: the built-in rationales against every check, worded examples, and texts that could hang."""

from __future__ import annotations

import dataclasses
import json
import time

import pytest

from mind.curation.adherence import adheres
from mind.curation.leaks import leaks_answer
from mind.perspectives import PAPER_PERSPECTIVES
from mind.records import Question
from mind.word_problems import generate
from tests.mind.test_answers import DATA, needs_data

NUMBER = Question("n", "Ann has 5 pears and buys 7 more. How many pears has she?", "12")
MONEY = Question("m", "How much?", "$1,234.50")
CHOICE = Question("c", "Where is a revolving door?", "B", {"A": "book store", "B": "bank", "C": "store", "D": "mall"})
YES_NO = Question("y", "Is frost common in May?", "no", {"yes": "yes", "no": "no"})
LATEX = Question("l", "Which point?", "\\left( 3, \\frac{\\pi}{2} \\right)")
QUESTIONS = (NUMBER, MONEY, CHOICE, YES_NO, LATEX)

WORDED = {
    "formal-symbolic": (
        "Let $n$ denote the number of pears at the start and $b$ the number bought.\n$n = 5$, $b = 7$\n"
        "$t = n + b$\nSubstituting, $t = 12$.",
        'Define P as "the door revolves all day" and Q as "traffic flows both ways". P → Q, and Q ⇒ B. '
        "From P, B follows by modus ponens.",
    ),
    "intuitive": (
        "Think of a fruit bowl with five pears in it, and then seven more tumble in. That is clearly more than ten, "
        "and a couple over it: a dozen.",
        "Doors that turn keep the warm air in and slow people down, so they suit a place that many enter and that "
        "wants to feel safe. A bank is just that.",
    ),
    "decomposition": (
        "1. Find the pears at the start: there are 5.\n2. Add the new ones: 5 + 7 = 12.\nTogether, 12 pears.",
        "**Sub-problem 1:** Who needs a revolving door? Places with two-way traffic.\n"
        "**Sub-problem 2:** Which of these also need security? Only a bank.\nSo it is a bank.",
    ),
    "planning": (
        "**Plan:** Start from the pears she has, add those she buys, and state the sum.\n\n"
        "**Then:** She has 5, and 5 + 7 = 12.",
        "Plan: list what the door is for; match it with the places. Then: it is for security and traffic, "
        "and a bank needs both.",
    ),
    "analogy": (
        "Imagine 2 coins in a purse and 3 more dropped in: 2 + 3 = 5. The coins correspond to the pears, and dropping "
        "in corresponds to buying. Likewise 5 + 7 = 12.",
        "A turnstile is a simpler case: it lets people through one by one. A revolving door is similar, "
        "and the guard at the turnstile plays the role of the bank's guard.",
    ),
    "socratic": (
        "What do I want? The pears in all. What do I know? She has 5 and buys 7. Does the order matter? It does not, "
        "so 5 + 7 = 12.",
        "Q: What does such a door do?\nA: It slows people down.\nQ: Who wants that?\nA: A place that guards money.",
    ),
    "contrastive": (
        "Two plausible answers are 2 and 12. 2 overlooks that she buys pears instead of giving them away. 12 counts "
        "both: 5 + 7 = 12.",
        "(A) a book store has ordinary doors, and (D) a mall is ruled out, since its doors slide. (B) a bank has the "
        "traffic and the need for security.",
    ),
    "counterfactual": (
        "Suppose she gave 7 away. She could not, and would owe 2 pears. But in the question she buys them, so "
        "5 + 7 = 12.",
        "If the door were an ordinary one, a mall would do as well. In fact it revolves, which undoes that: only "
        "a bank fits.",
    ),
}
PLAIN = (
    "Ann starts with 5 pears. She buys 7 more, so she has 5 + 7 = 12 pears.",
    "A bank has a revolving door, since it needs security and has customers that go both ways.",
)


@pytest.fixture(scope="module")
def rationales():
    """Perspective -> the 100 rationales that the built-in word problems have in it."""
    questions = generate(80, seed=11) + generate(20, seed=11, families="ood")
    return {name: [question.rationales[k].text for question in questions] for k, name in enumerate(PAPER_PERSPECTIVES)}


def test_a_perspective_without_a_check_is_not_checked():
    assert adheres("path-1", "1. This\n2. That") is None


@pytest.mark.parametrize("check", PAPER_PERSPECTIVES)
def test_a_check_accepts_its_own_perspective_and_no_other(rationales, check):
    for written, texts in rationales.items():
        accepted = sum(adheres(check, text) for text in texts) / len(texts)
        assert accepted >= 0.98 if written == check else accepted <= 0.05, written


@pytest.mark.parametrize("perspective", PAPER_PERSPECTIVES)
def test_worded_rationales_adhere(perspective):
    for text in WORDED[perspective]:
        assert adheres(perspective, text), text
    others = [text for name, texts in WORDED.items() if name != perspective for text in texts]
    # Everyday words without notation, which are all that the intuitive manner is known by, are not its alone.
    assert sum(adheres(perspective, text) for text in others) <= (5 if perspective == "intuitive" else 1)


@pytest.mark.parametrize("perspective", [name for name in PAPER_PERSPECTIVES if name != "intuitive"])
def test_plain_rationales_do_not_adhere(perspective):
    assert not any(adheres(perspective, text) for text in PLAIN)


@pytest.mark.parametrize(
    ("perspective", "text"),
    [
        ("formal-symbolic", "Let us add: 5 + 7 = 12 and 12 = 12."),
        ("formal-symbolic", "x = 5 and y = 7."),
        ("intuitive", "About ten, and \\frac{24}{2} to be exact."),
        ("intuitive", "It is 5 + 7, a dozen."),
        ("intuitive", "1. Picture the pears.\n2. Count them."),
        ("intuitive", "5 and 7 are 12 pears."),
        ("decomposition", "1. Add them all: 5 + 7 = 12."),
        ("decomposition", "1.5 and\n2.5 are 4."),
        ("planning", "Then: 5 + 7 = 12.\nPlan: add."),
        ("planning", "Plan: add, and then state the sum."),
        ("analogy", "The bag is similar, and the other bag is similar."),
        ("socratic", "What is it? Why? How? Where? It is 12."),
        ("socratic", "How many? 12."),
        ("contrastive", "The candidates are 2 and 12. It is 12."),
        ("counterfactual", "Actually, she has 12. If she gave 7 away, she would owe 2."),
        ("counterfactual", "If she gave 7 away, she would owe 2."),
    ],
)
def test_a_mark_alone_is_not_enough(perspective, text):
    assert adheres(perspective, text) is False


@pytest.mark.parametrize(
    ("text", "question"),
    [
        ("This leads to the given answer.", NUMBER),
        ("THIS IS THE GIVEN ANSWER.", NUMBER),
        ("5 + 7 is 12, which matches the provided correct answer.", NUMBER),
        ("The answer is given as 12, so we add.", NUMBER),
        ("The answer provided is 12, so we add.", NUMBER),
        ("We are told the answer, so 5 + 7 must be it.", NUMBER),
        ("We’re given the correct answer, 12.", NUMBER),
        ("5 + 7 = 12, as the answer key says.", NUMBER),
        ("We add, since the answer must be 12.", NUMBER),
        ("Knowing that the correct answer is **12**, we add.", NUMBER),
        ("As we already know the answer, we add.", NUMBER),
        ("The question says the answer is bank, so be it.", CHOICE),
        ("Because the answer is (B), a bank fits.", CHOICE),
    ],
)
def test_an_admission_is_a_leak(text, question):
    assert leaks_answer(text, question)


@pytest.mark.parametrize(
    ("text", "question"),
    [
        ("The answer is 12. Add 5 and 7.", NUMBER),
        ("So, the correct answer is 12.0 pears: 5 + 7.", NUMBER),
        ("**Answer:**\n\n12\n\n5 and 7 are twelve.", NUMBER),
        ("The answer to the question is 12.", NUMBER),
        ("12 is the answer because 5 + 7 = 12.", NUMBER),
        ("12 pears is the right answer.", NUMBER),
        ("#### 12\n5 + 7 = 12", NUMBER),
        ("$\\boxed{12}$, since 5 + 7 = 12.", NUMBER),
        ("She has 12 pears.\n\nTo get this answer, add 5 and 7.", NUMBER),
        ("The answer is $1234.5. Add.", MONEY),
        ("Answer: B\nA bank has one.", CHOICE),
        ("The answer is a bank. Banks have such doors.", CHOICE),
        ("B. bank is the answer, as banks have such doors.", CHOICE),
        ("A bank is the correct answer.", CHOICE),
        ("A is the answer because books revolve.", dataclasses.replace(CHOICE, answer="A")),
        ("It is in a bank. To find this answer, think of doors.", CHOICE),
        ("The answer is No. It is warm.", YES_NO),
        ("The answer is $\\left(3,\\frac{\\pi}{2}\\right)$.", LATEX),
        ("\\(\\boxed{\\left( 3, \\frac{\\pi}{2} \\right)}\\) is the point.", LATEX),
    ],
)
def test_an_opening_with_the_answer_is_a_leak(text, question):
    assert leaks_answer(text, question)


@pytest.mark.parametrize(
    ("text", "question"),
    [
        ("5 + 7 = 12. The answer is 12.", NUMBER),
        ("5 and 7 are 12, so the answer is 12.", NUMBER),
        ("The answer is 120, some say. It is 12.", NUMBER),
        ("The answer is the sum of 5 and 7, which is 12.", NUMBER),
        ("Is the answer 12? Yes.", NUMBER),
        ("The answer is 12, or is it?", NUMBER),
        ("What is sought? The answer is 12.", NUMBER),
        ("Since the answer must be an integer, it is 12.", NUMBER),
        ("We are told the answer must be in whole pears.", NUMBER),
        ("The candidates are 2 and 12. The given numbers rule out 2, so 12 is the answer.", NUMBER),
        ("5 + 7 = 12. To get this answer, add.", NUMBER),
        ("She has 5 pears. To get this answer, look at the question.", NUMBER),
        ("She has 12 pears. To check it, count.", NUMBER),
        ("#### Step 1\nAdd 5 and 7.", NUMBER),
        ("Of the given answer choices, a bank fits. It is the answer.", CHOICE),
        ("The answer is a book store. No, a bank.", CHOICE),
        ("The answer is A or B.", CHOICE),
        ("A bank is the answer.", dataclasses.replace(CHOICE, answer="A")),
        ("The answer is none of the first.", YES_NO),
        ("The answer is \\left( 4, 0 \\right).", LATEX),
        ("The answer is perhaps hard to see.", dataclasses.replace(LATEX, answer="p")),
        ("", NUMBER),
    ],
)
def test_a_derivation_is_no_leak(text, question):
    assert not leaks_answer(text, question)


@needs_data
@pytest.mark.parametrize(("name", "most"), [("gsm8k.test.jsonl", 0), ("svamp_multi_cot.train.jsonl", 80)])
def test_human_rationales_leak_nothing_and_sampled_ones_little(name, most):
    leaks = 0
    with (DATA / name).open() as file:
        for record in map(json.loads, file):
            question = Question(record["id"], record["question"], record["answer"])
            leaks += sum(leaks_answer(text, question) for text in record.get("rationales") or [record["rationale"]])
    assert leaks <= most


@pytest.mark.parametrize(
    "piece",
    [
        "a",
        " ",
        "\n",
        "\x00",
        "?",
        "? a",
        "1",
        "1.",
        "1.\n",
        "\n1. ",
        "(",
        "(A",
        "= ",
        "x = ",
        "x+",
        "_",
        "*",
        "#",
        "#### ",
        "$",
        "\\",
        "\\(",
        "\\boxed{",
        ".",
        ": ",
        "let ",
        "plan:",
        "then ",
        "if ",
        "would ",
        "like ",
        "in place of ",
        "answer",
        "the answer is ",
        "The answer is 12",
        "since the answer is ",
        "the given ",
        "To get this answer",
        "1/1,",
        "\ud800",
        "structure ",
        "a, ",
    ],
)
def test_no_text_takes_long(piece):
    text = piece * (20_000 // len(piece))
    start = time.process_time()
    for perspective in PAPER_PERSPECTIVES:
        adheres(perspective, text)
    for question in QUESTIONS:
        leaks_answer(text, question)
    adheres("planning", f"Plan: {text}")
    leaks_answer(f"The answer to {text}", NUMBER)
    assert time.process_time() - start < 2
