"""Answers: found in responses, compared with the gold answer, on the real files where they are at hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mind.answer_line import suffix, without_suffix
from mind.curation.leaks import leaks_answer
from mind.grading import ANSWER_TYPES, answer_type, latex_equality
from mind.grading.answers import extract_answer, is_correct, judge_text
from mind.grading.plain_text import MAX_ANSWER_CHARACTERS
from mind.grading.quantity import number_value
from mind.grading.type_counts import type_counts
from mind.grading.yes_no import marked_yes
from mind.records import Question

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the shared data folder is not next to the repository")

NUMBER = Question("n", "Ann has 5 pears and buys 7 more. How many pears has she?", "12")
CHOICE = Question("c", "Where is a revolving door?", "B", {"A": "book store", "B": "bank", "C": "store", "D": "mall"})
YES_NO = Question("y", "Is frost common in May?", "no", {"yes": "yes", "no": "no"})
TIME = Question("t", "A train leaves at 14:05 and takes 25 minutes. When does it arrive?", "2:30 pm")
RATIO = Question("r", "What is the ratio of cats to dogs?", "3:5")
GROUPS = Question("d", "How did the match end?", "3-2")
DATE = Question("d", "When is the party?", "July 4")
WORDS = Question("w", "Which day is it?", "\\text{Tuesday}")
LATEX = Question("l", "Which point?", "\\left( 3, \\frac{\\pi}{2} \\right)")


def with_answer(answer: str) -> Question:
    return Question("n", "How much?", answer)


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """A time limit for LaTeX that a busy machine does not reach."""
    monkeypatch.setattr(latex_equality._worker, "timeout_seconds", 60)


@pytest.mark.parametrize(
    ("answer", "name"),
    [
        ("9:15", "time"),
        ("3:20 p.m.", "time"),
        ("10 am", "time"),
        ("3:4", "ratio"),
        ("3 : 4 : 5.5.", "ratio"),
        ("$3{:}4$", "ratio"),
        ("3:40", "time"),
        ("3 to 4", "digit group"),
        ("2:\\sqrt{3}", "latex"),
        ("Yes.", "yes_no"),
        ("\\text{No}", "yes_no"),
        ("TRUE", "yes_no"),
        ("Paris", "words"),
        ("July 4", "date"),
        ("4 July", "date"),
        ("3rd place", "words"),
        ("don't know", "words"),
        ("\\text{(C)}", "words"),
        ("\\text{red and blue}", "words"),
        ("60 km/h", "number"),
        ("5 apples", "number"),
        ("seven", "number"),
        ("1e-05", "number"),
        ("2 1/2", "number"),
        ("2024-01-05", "digit group"),
        ("3-2", "digit group"),
        ("$20-$30", "digit group"),
        ("01/05/2024", "digit group"),
        ("2024-01-05 03:04:00", "digit group"),
        ("2024-01-05T03:04Z", "digit group"),
        ("1.2.3", "digit group"),
        ("0x1F", "digit group"),
        ("3-x", "latex"),
        ("5 - 2 pi", "latex"),
        ("2k", "latex"),
        ("$2k", "number"),
        ("ab", "latex"),
        ("(2, \\infty)", "latex"),
    ],
)
def test_a_gold_answer_without_choices_decides_its_type(answer, name):
    assert answer_type(with_answer(answer)).name == name


@pytest.mark.parametrize("answer", ["12", "-3", "0.5", ".5", "3/4", "50%", "$18", "1,234", "-$1,234.00", "$-3"])
def test_plain_numbers_are_numbers(answer):
    assert answer_type(with_answer(answer)).name == "number"


@pytest.mark.parametrize("answer", ["\\frac{3}{4}", "3\\sqrt{2}", "p - q", "1,-2", "x=5", "1,23", "52_8"])
def test_other_answers_are_latex(answer):
    assert answer_type(with_answer(answer)).name == "latex"


@pytest.mark.parametrize(
    "question",
    [NUMBER, CHOICE, YES_NO, RATIO, TIME, DATE, GROUPS, WORDS, LATEX],
    ids=["number", "choice", "yes_no", "ratio", "time", "date", "digit group", "words", "latex"],
)
def test_what_holds_for_every_answer_type(question, request):
    kind = answer_type(question)
    assert kind.name == request.node.callspec.id
    assert kind.compare(question.answer, question)[0] == "right"
    assert judge_text(f"So it is.{suffix(question.answer)}", question)[:2] == ("right", question.answer)
    assert kind.begins_with_gold(f"{question.answer}.", question)
    assert not kind.begins_with_gold("What is asked?", question)
    assert not kind.mentions_gold("What is asked?", question)
    assert kind.unmarked("", question) is None


def test_each_answer_type_has_a_name_of_its_own():
    assert len({kind.name for kind in ANSWER_TYPES}) == len(ANSWER_TYPES)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("So.\n#### 4", "So."),
        ("So.\n####\n4\n", "So."),
        ("So.\n#### 4\n\n#### 4", "So."),
        ("So. #### 4", "So."),
        ("#### 4", ""),
        (" no marker ", "no marker"),
        ("#### Step 1\nAdd.\nDone.", "#### Step 1\nAdd.\nDone."),
        ("So.\n#### Step 2\nAdd.\nDone.\n#### 4", "So.\n#### Step 2\nAdd.\nDone."),
        ("", ""),
        ("####" * 2_500_000, ""),
    ],
)
def test_the_answer_lines_are_cut_off_and_headings_stay(text, expected):
    assert without_suffix(text) == expected


def test_the_choices_decide_the_type():
    assert answer_type(CHOICE).name == "choice"
    assert answer_type(YES_NO).name == "yes_no"
    assert answer_type(Question("y", "?", "Yes", {"Yes": "yes", "No": "no"})).name == "yes_no"


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("5 + 7 = 11\n#### 11\n#### 12 pears\nAnd 3 more.", "12 pears"),
        ("So\n####\n12", "12"),
        ("It is \\boxed{5}, no, \\boxed{12}. Ann has 99.", "12"),
        ("It is \\boxed{5}.\n#### 12", "12"),
        ("The answer is 5. Wait: the answer is **12**. She is 30 years old.", "12"),
        ("**Final Answer:** $12.50 in 3 days", "$12.50"),
        ("The answer is simple: she has 12.", "12"),
        ("5 + 7 = 12", "12"),
        ("Ann has 12 pears after buying 7.", "12"),
        ("Ann has 12 pears (5 and 7 = twelve).", "12"),
        ("Ann has 5 pears.", "5"),
        ("She ate 2.5 of 1,234.", "1,234"),
        ("It is -3.", "-3"),
        ("Take 20-8 (12).", "Take 20-8  ."),
        ("no digits here", None),
        ("", None),
        ("####", None),
        ("\\boxed{12", "\\boxed{12"),
        ("#### Conclusion\n5 + 7 = 12 pears.", "12"),
        ("#### Step 3\nSo \\boxed{12}.", "12"),
        ("#### The answer is 12 pears.", "12 pears"),
        ("#### twelve", "twelve"),
        ("The answer is $\\frac{24}{2}$, of course.", "24/2"),
        ("The answer is $5 a day and $12 in all.", "$12"),
        ("To get the answer:\n5 + 7 = 12", "12"),
        ("Final answer:\n12", "12"),
        ("99 #### " + "." * 20_000, None),
        ("#### 99\n" + "." * 19_990 + " So 12.", "12"),
    ],
)
def test_numbers_are_extracted(response, expected):
    assert extract_answer(response, NUMBER) == expected


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("(A) is wrong, so it must be (B).", "B"),
        ("(b)", "B"),
        ("B", "B"),
        ("bank", "B"),
        ("The answer is B. bank, as (A) is no place.", "B"),
        ("The answer is a bank.", "B"),
        ("A revolving door is in a bank.", "B"),
        ("People buy in a book store.", "A"),
        ("It could be a mall or a bank.", None),
        ("A door is a door.", None),
        ("So it is\nC. store", "C"),
        ("#### Final choice\nIt is (B).", "B"),
        ("#### E", "E"),
    ],
)
def test_choices_are_extracted(response, expected):
    assert extract_answer(response, CHOICE) == expected


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("Yes, in some places. In most: no.", None),
        ("In some places. In most: no.", "no"),
        ("The answer is Yes. There is no doubt.", "Yes"),
        ("The answer is clear. Nothing grows, so NO!", "NO"),
        ("Nobody knows yesterday.", None),
    ],
)
def test_yes_and_no_are_extracted(response, expected):
    assert extract_answer(response, YES_NO) == expected


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("so $\\boxed{\\frac{\\pi}{2}}$.", "\\frac{\\pi}{2}"),
        ("The answer is $(3, \\pi/2)$. Done.", "$(3, \\pi/2)$"),
        ("It may be 3.", None),
        ("The answer is $x=5.5$ and no other.", "$x=5.5$"),
        ("The answer is\n$$\nx\n$$\nDone.", "$$\nx\n$$"),
        ("The answer is \\(x\\), as \\(y\\) is not.", "\\(x\\)"),
        ("The answer is 11,\\! 111. Done.", "11,\\! 111"),
        ("#### The answer is $\\pi$.", "$\\pi$"),
        ("#### Final answer\n\\boxed{\\pi}", "\\pi"),
        ("#### \\pi\nI hope the answer is helpful.", "\\pi"),
        ("#### Answer\nThe answer is $\\pi$.", "$\\pi$"),
    ],
)
def test_latex_is_extracted_where_it_is_marked(response, expected):
    assert extract_answer(response, LATEX) == expected


@pytest.mark.parametrize(
    ("response", "question", "judgement"),
    [
        ("#### 12 pears", NUMBER, ("right", "12 pears", "equal as numbers")),
        ("#### 13", NUMBER, ("wrong", "13", "different as numbers")),
        ("#### many", NUMBER, ("unparsed", "many", "not a number")),
        ("", NUMBER, ("unparsed", None, "no answer found")),
        ("#### $0.12", Question("n", "What is it in cents?", "12"), ("right", "$0.12", "equal as numbers")),
        ("It is B.", CHOICE, ("right", "B", "choice B")),
        ("It is in the store.", CHOICE, ("wrong", "C", "choice C, not B")),
        ("#### E", CHOICE, ("unparsed", "E", "none of the choices")),
        ("Yes.", YES_NO, ("wrong", "Yes", "yes, not no")),
        ("#### maybe", YES_NO, ("unparsed", "maybe", "neither yes nor no")),
        ("#### (3, \\pi/2)", LATEX, ("right", "(3, \\pi/2)", "equal as LaTeX")),
        ("#### (3, \\pi)", LATEX, ("wrong", "(3, \\pi)", "different as LaTeX")),
        ("#### ((", LATEX, ("unparsed", "((", "not readable as LaTeX")),
    ],
)
def test_a_judgement_has_its_reason(response, question, judgement):
    assert judge_text(response, question) == judgement
    assert is_correct(judgement[1], question) == (judgement[0] == "right")


def test_latex_without_a_result_in_time_is_unparsed(monkeypatch):
    monkeypatch.setattr(latex_equality, "_compared", lambda *_: "timeout")
    assert judge_text("#### (3, \\pi)", LATEX) == ("unparsed", "(3, \\pi)", "no result within 5 s")
    assert not is_correct("(3, \\pi)", LATEX)


def test_an_extracted_answer_is_bounded():
    assert len(extract_answer("#### " + "9" * 10_000, NUMBER)) == MAX_ANSWER_CHARACTERS
    assert number_value("9" * 50_000) is None


@pytest.mark.parametrize(
    ("answer", "final"),
    [
        ("She has 48/2 = <<48/2=24>>24.\n#### 72", "72"),
        ("The sum is $\\boxed{\\frac{5}{6}}$.", "5/6"),
        ("\\boxed{\\text{Tuesday}}", "Tuesday"),
        ("He has 9 + 9 = 18.\nThe answer is 18.", "18"),
        ('{"answer": 18}', "18"),
        ("Answer: Tuesday", "Tuesday"),
        ("#### ", "#### "),
    ],
)
def test_a_gold_answer_may_be_published_with_its_solution(answer, final):
    assert judge_text(f"#### {final}", with_answer(answer)).verdict == ("unparsed" if final == "#### " else "right")
    assert judge_text("#### 9999", with_answer(answer)).verdict != "right"


@pytest.mark.parametrize(
    ("response", "extracted"),
    [
        ("3 * 4 = 12\n#### 12\n\nQuestion: And 2 * 2?\n#### 4", "12"),
        ("She has 12.<|im_end|>\n<|im_start|>user\nAnd 5 more?", "12"),
        ("Question: How many?\nAnswer: 12", "12"),
        ("#### 7\n\nWait, that is wrong. The answer is 12.", "12"),
        ("<think>Is it 7?</think>She has 12.", "12"),
        ("She has 12.\n\nLet me know if you have 2 more!", "12"),
        ("#### Step 1: add 5\n#### Step 2: it is 12.", "12"),
        ("The answer is clear. I hope the answer helps. She has 12", "12"),
        ("Answer: 12\n\nWrong answers: 5, 7", "12"),
    ],
)
def test_only_the_answer_of_the_response_itself_counts(response, extracted):
    assert extract_answer(response, NUMBER) == extracted


def test_an_answer_that_is_published_with_its_solution_has_the_type_of_the_answer():
    question = with_answer("Twice 3 is 6, so it is at \\boxed{6:00}.")
    assert type_counts([question]) == {"time": 1}
    assert leaks_answer("The answer is 6:00. Twice three.", question)
    assert not leaks_answer("Twice three is six.", question)


def read(name):
    with (DATA / name).open() as file:
        for line in file:
            record = json.loads(line)
            yield record, Question(record["id"], record["question"], record["answer"], record.get("choices"))


@needs_data
@pytest.mark.parametrize(
    ("name", "types"),
    [
        ("gsm8k.test.jsonl", {"number"}),
        ("svamp.test.jsonl", {"number"}),
        ("math500.test.jsonl", {"number", "words", "latex"}),
        ("commonsense_qa.test.jsonl", {"choice"}),
        ("strategy_qa.test.jsonl", {"yes_no"}),
    ],
)
def test_every_gold_answer_is_its_own_answer(name, types):
    questions = [question for _, question in read(name)]
    assert {answer_type(question).name for question in questions} == types
    for question in questions:
        assert is_correct(extract_answer(f"So it is.{suffix(question.answer)}", question), question)


def test_words_are_not_looked_for_among_choices_nor_before_the_last_sentence():
    words = next(kind for kind in ANSWER_TYPES if kind.name == "words")
    capital = Question("w", "Which city is the capital?", "Paris")
    assert words.fits(capital) and not words.fits(Question("w", capital.question, "Paris", {"Paris": "a", "Rome": "b"}))
    assert words.unmarked("It is large. The capital is Paris.", capital) == "The capital is Paris."
    assert words.unmarked("The capital is Paris. It is large.", capital) is None
    assert words.unmarked("", capital) is None
    assert words.compare("the The", Question("w", "Which word comes twice?", "The"))[0] == "right", (
        "one article is left out"
    )


def test_yes_and_no_stand_for_choices_that_are_true_and_false():
    question = Question("c", "Is frost common in May?", "A", {"A": "true", "B": "false"})
    for said, correct in (("Yes", True), ("no", False), ("true", True), ("maybe", False)):
        assert is_correct(said, question) == correct
        assert is_correct(extract_answer(f"The answer is {said}.", question), question) == correct
    assert [marked_yes(said) for said in ("Yes.", "no", "perhaps", "")] == [True, False, None, None]
