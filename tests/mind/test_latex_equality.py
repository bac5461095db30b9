"""LaTeX answers: the child process, what it survives, and the answers of MATH-500 in many ways of writing them."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mind.grading import latex_equality as module
from mind.grading.answers import is_correct, judge_text
from mind.grading.latex_equality import LatexWorker, latex_equality
from mind.grading.latex_notation import normal_latex
from mind.records import Question
from tests.mind.latex_forms import RULES, forms

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the shared data folder is not next to the repository")

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
HANGS = "9^{9^{9^{9}}}"


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A time limit that a busy machine does not reach."""
    monkeypatch.setattr(module._worker, "timeout_seconds", 60)


@pytest.fixture(scope="module")
def worker() -> Iterator[LatexWorker]:
    worker = LatexWorker(timeout_seconds=60)
    yield worker
    worker.close()


@pytest.mark.parametrize(
    ("gold", "extracted", "outcome"),
    [
        ("\\frac{1}{2}", "1/2", "equal"),
        ("\\frac{1}{2}", "1/3", "different"),
        ("\\frac{1}{2}", "((", "unparsed"),
        ("\\frac{1}{2}", "", "unparsed"),
        ("\\frac{1}{3}", "0.333333", "different"),
        ("x", "\ud800\0\n", "unparsed"),
    ],
)
def test_a_worker_compares(worker, gold, extracted, outcome):
    assert worker.compare(gold, extracted) == outcome


def test_a_hang_within_c_code_is_killed_and_the_next_pair_is_compared(caplog):
    worker = LatexWorker(timeout_seconds=1)
    start = time.perf_counter()
    assert worker.compare("1", HANGS) == "timeout"
    assert time.perf_counter() - start < 1 + 30  # the start is not within the limit
    assert "no result within 1 s for the LaTeX answer '9^{9^{9^{9}}}'" in caplog.text
    worker.timeout_seconds = 60
    assert worker.compare("\\pi", "\\pi") == "equal"
    worker.close()


def test_a_worker_that_died_is_reported_and_replaced(caplog):
    worker = LatexWorker(timeout_seconds=60)
    assert worker.compare("\\pi", "\\pi") == "equal"
    os.kill(worker._process.pid, signal.SIGKILL)
    worker._process.wait()
    assert worker.compare("\\pi", "\\pi") == "unparsed"
    assert "ended with status -9" in caplog.text
    assert worker.compare("\\pi", "\\pi") == "equal"
    worker.close()


def test_a_worker_that_does_not_start_is_an_error(monkeypatch):
    monkeypatch.setattr(module, "_COMMAND", (sys.executable, "-c", "raise SystemExit(3)"))
    with pytest.raises(RuntimeError, match=r"does not start \(status 3\)"):
        LatexWorker().compare("1", "1")


def test_a_worker_has_little_memory_and_no_terminal(worker):
    worker.compare("1", "2")
    process = Path(f"/proc/{worker._process.pid}")
    assert re.search(rf"Max address space +{2 * 1024**3} ", (process / "limits").read_text())
    assert [os.readlink(process / "fd" / number) for number in "12"] == ["/dev/null"] * 2


def test_the_worker_ends_with_the_interpreter():
    program = textwrap.dedent("""
        from mind.grading import latex_equality
        latex_equality._worker.timeout_seconds = 60
        assert latex_equality.latex_equality("\\\\sqrt{4}", "2") == "equal"
        print(latex_equality._worker._process.pid)
    """)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=True, env=ENVIRONMENT
    )
    assert not is_running(int(done.stdout))
    assert done.stderr == ""


@pytest.mark.parametrize("extracted", ["\\pi", HANGS])
def test_workers_end_with_a_parent_that_was_killed(extracted):
    """The second one is busy then, and cannot see that its input has ended."""
    program = textwrap.dedent(f"""
        import os, signal, threading
        from mind.grading.latex_equality import LatexWorker
        worker = LatexWorker(timeout_seconds=1)
        worker.compare("1", "2")
        threading.Thread(target=worker.compare, args=("1", {extracted!r}), daemon=True).start()
        print(worker._process.pid, flush=True)
        signal.pause()
    """)
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, env=ENVIRONMENT) as parent:
        child = int(parent.stdout.readline())
        parent.kill()
    deadline = time.monotonic() + 30
    while is_running(child):
        assert time.monotonic() < deadline, "the worker outlives its parent"
        time.sleep(0.02)


def is_running(process: int) -> bool:
    """False for a zombie too: the machine's init may be slow to collect it."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_threads_compare_at_the_same_time():
    pairs = [("\\sqrt{2}", f"\\sqrt{{{n}}}") for n in range(20)]
    with ThreadPoolExecutor(4) as pool:
        outcomes = list(pool.map(lambda pair: latex_equality(*pair), pairs))
    assert [n for n, outcome in enumerate(outcomes) if outcome == "equal"] == [2]


def test_results_are_kept(monkeypatch):
    assert latex_equality("\\sqrt{8}", "2\\sqrt{2}") == "equal"
    monkeypatch.setattr(LatexWorker, "compare", lambda *_: pytest.fail("compared again"))
    assert latex_equality("$\\sqrt{8}$", "\\boxed{2\\sqrt{2}}.") == "equal"
    assert latex_equality("3\\sqrt{8}", "3 \\sqrt{8}") == "equal"


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("$\\left( 3, \\dfrac{\\pi}{2} \\right)$", "( 3, \\frac{\\pi}{2} )"),
        ("\\text{(B)}", "B"),
        ("(B).", "B"),
        ("\\boxed{{\\tfrac12}}", "\\frac{1}{2}"),
        ("\\frac\\pi{2}", "\\frac{\\pi}{2}"),
        ("\\frac{\\sqrt2}3", "\\frac{\\sqrt2}{3}"),
        ("15\\mbox{ cm}^2", "15"),
        ("90^{\\circ}", "90"),
        ("90 degrees", "90"),
        ("\\[x^{2}\\]", "x^2"),
        ("10,\\!080", "10080"),
        ("\\leftarrow", "\\leftarrow"),
        ("{1}{2}", "{1}{2}"),
        ("{{1}{2}}", "{1}{2}"),
        ("{\\{1\\}}", "\\{1\\}"),
        ("{", "{"),
        ("}{", "}{"),
        ("{}}{", "{}}{"),
        ("2*3", "2*3"),
        ("\u22125", "-5"),
        ("{" * 1000 + "}" * 1000, ""),
        ("1" * 5000, "1" * 2000),
    ],
)
def test_what_makes_no_difference_is_removed(text, normal):
    assert normal_latex(text) == normal


@pytest.mark.parametrize(
    ("gold", "extracted"),
    [
        ("52_8", "52_9"),
        ("52_8", "53"),
        ("52", "52_8"),
        ("\\text{east}", "seat"),
        ("\\text{(B)}", "C"),
        ("(2,4)", "(4,2)"),
        ("[0,1)", "(0,1)"),
        ("1,2", "12"),
        ("x=5", "x=6"),
        ("2k", "2n"),
        ("\\frac{2}{3}", "0.667"),
        ("3 5", "35"),
        ("\\pi", "3.14159265"),
        ("1,2", "1"),
        ("2\\cdot3", "23"),
    ],
)
def test_other_answers_are_different(gold, extracted):
    assert latex_equality(gold, extracted) == "different"


HOSTILE = [
    HANGS,
    "(" * 500,
    "\\frac{" * 80,
    "{" * 250 + "}" * 250,
    "x^{" * 100 + "}" * 100,
    "1e999999999",
    "9" * 490,
    "0/0",
    "\\frac{0}{0}",
    "\\binom{10^9}{5*10^8}",
    "(10^9)!",
    "\\0",
    "\0",
    "\x1b[31m",
    "\ud800",
    "\\",
    "$$$",
    "^",
    "__import__('os').system('echo broken')",
    "\\input{/etc/passwd}",
    "\r\n" * 200 + "1",
    "a" * 10_000_000,
]


@pytest.mark.parametrize("extracted", HOSTILE)
def test_hostile_answers_are_judged_in_time_and_in_silence(extracted, capfd, worker, monkeypatch):
    monkeypatch.setattr(worker, "timeout_seconds", 1)
    monkeypatch.setattr(module, "_worker", worker)
    worker.compare("1", "2")  # so that it has started
    start = time.perf_counter()
    assert latex_equality("\\frac{\\pi}{2}", extracted) != "equal"
    assert time.perf_counter() - start < 1 + 5
    assert capfd.readouterr() == ("", "")


def math_answers() -> list[str]:
    """The 301 different answers of MATH-500."""
    with (DATA / "math500.test.jsonl").open() as file:
        return list(dict.fromkeys(json.loads(line)["answer"] for line in file))


@needs_data
def test_answers_of_math_are_right_however_they_stand_in_a_response():
    for answer in math_answers():
        question = Question("m", "Which?", answer)
        for response in (
            f"So.\n#### {answer}",
            f"So.\n#### ${answer}$",
            f"It is $\\boxed{{{answer}}}$, as I said.",
            f"The answer is {answer}.",
            f"The answer is ${answer}$.",
            f"The answer is \\({answer}\\)",
        ):
            assert judge_text(response, question).verdict == "right", response


@needs_data
@pytest.mark.slow
def test_answers_of_math_are_right_however_they_are_written():
    """All 301 in all of their forms, 9 to 21 each and 4,615 in sum, of which 508 need the parser."""
    for answer in math_answers():
        question = Question("m", "", answer)
        written = forms(answer)
        assert len(written) >= 9
        wrong = {name: form for name, form in written.items() if not is_correct(form, question)}
        assert not wrong, answer


@needs_data
@pytest.mark.slow
def test_other_answers_of_math_are_wrong():
    """Each with two others, drawn; some of them are equal but for braces, spaces and signs."""
    answers = math_answers()
    draw = random.Random(0)
    for answer in answers:
        for other in draw.sample(answers, 2):
            same = bare(answer) == bare(other)
            assert is_correct(other, Question("m", "", answer)) is same, (answer, other)


def bare(answer: str) -> str:
    return re.sub(r"[{}\s]|\^\\circ|\\\$", "", answer)


@needs_data
def test_every_rule_applies_to_an_answer_of_math():
    assert {name for answer in math_answers() for name in forms(answer)} == set(RULES)
