"""Answers: found in responses, compared with the gold answer, on the real files where they are at hand."""

from __future__ import annotations

import json
import threading
import time
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mind.answer_line import suffix, without_suffix
from mind.grading import ANSWER_TYPES, answer_type, latex_equality
from mind.grading.answers import extract_answer, is_correct, judge_text
from mind.grading.plain_text import LATEX_SIGNS, MAX_ANSWER_CHARACTERS
from mind.grading.quantity import number_value
from mind.records import Question

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the shared data folder is not next to the repository")

NUMBER = Question("n", "Ann has 5 pears and buys 7 more. How many pears has she?", "12")
CHOICE = Question("c", "Where is a revolving door?", "B", {"A": "book store", "B": "bank", "C": "store", "D": "mall"})
YES_NO = Question("y", "Is frost common in May?", "no", {"yes": "yes", "no": "no"})
TIME = Question("t", "A train leaves at 14:05 and takes 25 minutes. When does it arrive?", "2:30 pm")
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
        ("3:4", "latex"),
        ("Yes.", "yes_no"),
        ("\\text{No}", "yes_no"),
        ("TRUE", "yes_no"),
        ("Paris", "words"),
        ("July 4", "words"),
        ("4 July", "words"),
        ("3rd place", "words"),
        ("don't know", "words"),
        ("\\text{(C)}", "words"),
        ("\\text{red and blue}", "words"),
        ("60 km/h", "number"),
        ("5 apples", "number"),
        ("seven", "number"),
        ("1e-05", "number"),
        ("2 1/2", "number"),
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
    [NUMBER, CHOICE, YES_NO, TIME, WORDS, LATEX],
    ids=["number", "choice", "yes_no", "time", "words", "latex"],
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
    ("extracted", "answer"),
    [
        ("1234", "$1,234.00"),
        ("$1,234.00", "1234"),
        ("50%", "50"),
        ("50", "50%"),
        ("12 apples", "12"),
        ("$18 per day", "18"),
        ("$-3", "-3"),
        ("-$3", "-3"),
        ("\u22123", "-3"),
        ("0.5", "1/2"),
        (".50", "0.5"),
        ("x = 12.", "12"),
        ("5 + 7 = 12 pears", "12"),
        ("**12**", "12"),
        ("\\$42.00", "42"),
        ("$42$", "42"),
        ("\\frac{84}{2}", "42"),
        ("42\\text{ dollars}", "42"),
        ("12 = x", "12"),
        ("007", "7"),
        ("twelve", "12"),
        ("1{,}234", "1234"),
        ("10,\\!080", "10,080"),
        ("$\\$12$", "12"),
        ("(12)", "12"),
        ("12^\\circ", "12"),
        ("12\\text{ cm}^2", "12"),
        ("$118 000", "118000"),
    ],
)
def test_equal_numbers_are_correct(extracted, answer):
    assert is_correct(extracted, with_answer(answer))


@pytest.mark.parametrize(
    "extracted",
    [
        "13",
        "-12",
        "12.01",
        "1.2",
        "120",
        "12/0",
        "eleven",
        "",
        None,
        "12 or 13",
        "13 or 12",
        "11,12",
        "(a+2)(b+12)",
        "2 + 12i",
        "12_8",
        "12x",
        "\\frac{12}{2}",
    ],
)
def test_other_numbers_are_wrong(extracted):
    assert not is_correct(extracted, NUMBER)


def test_nothing_equals_a_fraction_without_value():
    assert not is_correct("twelve", with_answer("5/0"))


@pytest.mark.parametrize(
    ("extracted", "correct"),
    [
        ("B", True),
        ("b", True),
        ("(B)", True),
        ("B. bank", True),
        ("Bank", True),
        (" bank. ", True),
        ("(B) bank", True),
        ("A", False),
        ("store", False),
        ("a river bank or a mall", False),
        ("", False),
        (None, False),
    ],
)
def test_choices_compare_by_label_or_text(extracted, correct):
    assert is_correct(extracted, CHOICE) is correct


@pytest.mark.parametrize(
    ("extracted", "correct"),
    [
        ("No", True),
        ("no, it is not", True),
        ("YES", False),
        ("none", False),
        (None, False),
    ],
)
def test_yes_and_no_compare_in_any_case(extracted, correct):
    assert is_correct(extracted, YES_NO) is correct


@pytest.mark.parametrize(
    ("extracted", "correct"),
    [
        ("\\left(3,\\frac{\\pi}{2}\\right)", True),
        ("(3, \\pi/2)", True),
        ("$(3, \\frac{\\pi}{2})$", True),
        ("(3, 2)", False),
        ("((((", False),
        ("\\frac{", False),
        ("", False),
        (None, False),
    ],
)
def test_latex_compares_by_value(extracted, correct):
    assert is_correct(extracted, LATEX) is correct


def test_latex_compares_in_any_thread():
    outcomes = []
    threads = [threading.Thread(target=lambda: outcomes.append(is_correct("(3, \\pi/2)", LATEX))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes == [True] * 3


@pytest.mark.parametrize(
    ("response", "question", "judgement"),
    [
        ("#### 12 pears", NUMBER, ("right", "12 pears", "equal as numbers")),
        ("#### 13", NUMBER, ("wrong", "13", "different as numbers")),
        ("#### many", NUMBER, ("unparsed", "many", "not a number")),
        ("", NUMBER, ("unparsed", None, "no answer found")),
        ("#### $0.12", Question("n", "What is it in cents?", "12"), ("right", "$0.12", "equal in cents")),
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


@given(
    st.integers(-(10**12), 10**12),
    st.integers(0, 6),
    st.sampled_from(["", "$", "€"]),
    st.sampled_from(["", "%", " apples", " per day", "."]),
    st.booleans(),
)
def test_decimals_round_trip(mantissa, places, currency, unit, commas):
    value = Fraction(mantissa, 10**places)
    digits = f"{abs(mantissa) // 10**places:{',' if commas else ''}}"
    if places:
        digits += f".{abs(mantissa) % 10**places:0{places}}"
    written = f"{'-' if mantissa < 0 else ''}{currency}{digits}{unit}"
    question = with_answer(digits if mantissa >= 0 else f"-{digits}")
    assert number_value(written) == value
    assert is_correct(written, question)
    assert extract_answer(f"Some text.{suffix(written)}", question) == written.strip()
    assert is_correct(extract_answer(f"So it is {written}", question), question)


@given(st.text(max_size=200))
def test_any_text_is_handled(text):
    for question in (NUMBER, CHOICE, YES_NO, TIME, WORDS):
        extracted = extract_answer(text, question)
        if not LATEX_SIGNS.search(extracted or ""):
            is_correct(extracted, question)
    extract_answer(text, LATEX)


PIECES = [
    "(",
    ")",
    "1",
    "1,111",
    ",",
    "1/",
    "1, ",
    ".5",
    "-",
    "$",
    "$1 000 ",
    "answer ",
    "answer is ",
    "answer: * ",
    "=",
    "#",
    "{",
    "}",
    "\\boxed{",
    "\\boxed{1}",
    "####",
    "#### 5\n",
    "yes ",
    "A",
    "(B",
    "(B) ",
    " ",
    "\n",
    "\r",
    "\t",
    "\0",
    "\x1b",
    "\ud800",
    ". ",
    "5 and 7. ",
    "\\frac{",
    "$x$",
    "\\(",
    "$$",
    "because 1 ",
    "since 1, ",
    "so 2 ",
    "1 pear ",
    "book ",
    "rounded to ",
    "to check ",
    "1{,}",
    "1,\\!111",
    "bank ",
    "two ",
    "\u0661",
    "\u2028",
    "1e9",
    "0/0",
    "\\",
    "3 or 4 ",
    "1 km a ",
    "2 hours and 30 minutes ",
    "2 to the power of ",
    "0.333",
    "1) x\n",
    "x = 5 or ",
]


@pytest.mark.parametrize("piece", PIECES)
def test_no_text_takes_the_extraction_long(piece):
    """Every pattern is linear: ten million characters take what the last MAX_RESPONSE_CHARACTERS do, some 0.1 s."""
    text = piece * (10_000_000 // len(piece))
    for question in (NUMBER, Question("n", "", "12"), CHOICE, YES_NO, TIME, WORDS, LATEX):
        for response in (text, f"12 {text[-30_000:]} 12", f"{text[-10_000:]}\\boxed{{{text[-9_000:]}}}"):
            start = time.process_time()
            extract_answer(response, question)
            assert time.process_time() - start < 2


@pytest.mark.parametrize("piece", PIECES)
def test_no_text_takes_the_comparison_of_numbers_and_choices_long(piece, monkeypatch):
    monkeypatch.setattr(latex_equality, "_compared", lambda *_: "different")
    for question in (NUMBER, CHOICE, YES_NO, TIME, WORDS, LATEX):
        start = time.process_time()
        is_correct(piece * 10_000, question)
        assert time.process_time() - start < 2


@pytest.mark.parametrize("choice", ["a" * 1_500, "(" * 999, "\\", ".*", "[", "\0", "a|b", "\u017f", "(?i)", "$", "1"])
def test_hostile_choices_are_compared_as_text(choice):
    question = Question("c", "?", "A", {"A": choice, "\u0130": "other", "s": "third"})
    for response in (choice, f"It is {choice}.", choice * 20, "(\u017f)", "(i)", "(\u212a)"):
        start = time.process_time()
        judge_text(response, question)
        assert time.process_time() - start < 2
    assert judge_text(f"#### {choice}", question).verdict == "right" or not choice.strip(" \t\n*`.:()[]")


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
