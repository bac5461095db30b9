"""LaTeX answers: the child process, what it survives, and the answers of MATH-500 in many ways of writing them."""

from __future__ import annotations

import json
import os
import random
import re
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


def test_a_worker_that_was_killed_is_replaced_and_the_pair_compared_again(monkeypatch, caplog):
    worker, calls, plain = LatexWorker(timeout_seconds=60), [], module._ask

    def kills_of(count):
        def ask(process, *pair):
            calls.append(pair)
            if len(calls) <= count:
                process.kill()
                process.wait()
            return plain(process, *pair)

        calls.clear()
        monkeypatch.setattr(module, "_ask", ask)

    kills_of(1)
    assert worker.compare("\\pi", "\\pi") == "equal" and len(calls) == 2 and not caplog.text
    kills_of(2)  # as the system does with what takes all memory
    assert worker.compare("\\pi", "\\pi") == "unparsed" and len(calls) == 2
    assert "ended with status -9" in caplog.text
    kills_of(0)
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


def test_forked_processes_compare_by_themselves():
    """After a comparison here: each child gets a worker of its own, judges rightly, and ends."""
    program = textwrap.dedent("""
        import multiprocessing, os, sys
        from mind.grading import latex_equality as module
        module._worker.timeout_seconds = 60
        assert module.latex_equality("\\\\sqrt{4}", "2") == "equal"
        parent = module._worker._process.pid

        def compare(start):
            numbers = range(start, start + 9)
            outcomes = [module._worker.compare("\\\\sqrt{2}", f"\\\\sqrt{{{number}}}") for number in numbers]
            assert module._worker._process.pid != parent
            return [outcome == "equal" for outcome in outcomes] == [number == 2 for number in numbers]

        with multiprocessing.get_context("fork").Pool(3) as pool:
            assert pool.map(compare, range(6)) == [True] * 6
            pool.close()
            pool.join()
        assert module._worker._process.pid == parent  # and it is alive
        assert module._worker.compare("\\\\sqrt{2}", "\\\\sqrt{2}") == "equal"
        if os.fork() == 0:
            sys.exit(0)  # as a child of a fork may end: with the functions of atexit
        assert os.wait()[1] == 0
        assert module._worker.compare("\\\\sqrt{3}", "\\\\sqrt{3}") == "equal" and module._worker._process.pid == parent
    """)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=ENVIRONMENT, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")


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
        ("\\frac{1}{3}", "0.3333333333333"),  # thirteen digits
        ("100000\\pi", "314159.2653589793"),
        ("10^{-20}", "\\frac{1}{10^{20}}"),
        ("2x+4y-3=0", "y = -\\frac{1}{2}x + \\frac{3}{4}"),
        ("y = 2x + 3", "2x - y + 3 = 0"),
        ("[3,\\infty)", "x \\ge 3"),
        ("m \\in [\\sqrt{2}, +\\infty)", "m \\geq \\sqrt{2}"),
        ("(3,5)", "3<x<5"),
        ("x \\in [2, 7)", "x \\geq 2 \\text{ and } x < 7"),
        ("(-\\infty,7)", "x < 7"),
        ("0.1\\overline{6}", "\\frac16"),
        ("\\frac{3}{11}", "0.\\bar{27}"),
        ("\\frac{\\pi}{2}", "pi/2"),
        ("2\\sqrt{3}", "2\u221a3"),
        ("x^2+1", "x\u00b2 + 1"),
        ("x \\le 4", "x \u2264 4"),
        ("\\sqrt{5}", "\\sqrt{5}\\text{ m}/\\text{s}"),
        ("2\\pi", "2\u03c0 square units"),
        ("\\sqrt{2}+\\sqrt{3}", "\\sqrt{5+2\\sqrt{6}}"),
        ("\\frac{1}{2}", "**\\frac{1}{2}**"),
    ],
)
def test_equal_answers_in_other_notations_are_equal(gold, extracted):
    assert latex_equality(gold, extracted) == "equal"


def test_short_words_are_no_products_of_their_letters():
    assert latex_equality("xy", "yx") == "unparsed"  # a product or a word
    assert latex_equality("tea", "Tea") == "equal"
    assert latex_equality("\\text{east}", "seat") == "different"


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
        ("\\frac{1}{3}", "0.33333333333"),  # eleven digits
        ("100000\\pi", "314159.26535"),
        ("e^{-50}", "e^{-60}"),
        ("\\frac{1}{10^{20}}", "0"),
        ("\\left(10^{-20}, 1\\right)", "(10^{-21}, 1)"),
        ("10^{-20}x", "10^{-21}x"),
        ("x + 10^{-20}", "x"),
        ("1.6 \\times 10^{-19}", "9.1 \\times 10^{-31}"),
        ("\\begin{pmatrix} 10^{-20} \\\\ 1 \\end{pmatrix}", "\\begin{pmatrix} 0 \\\\ 1 \\end{pmatrix}"),
        ("2^{100}+1", "2^{100}"),
        ("3x-y+13=0", "3x+4y+14=0"),
        ("2t", "2"),
        ("5m", "5"),
        ("\\text{No}", "on"),
        ("[2,7)", "2 \\le x \\le 7"),
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
