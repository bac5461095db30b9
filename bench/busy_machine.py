"""The cost of another busy process, and the effect of passively waiting threads, or of a single thread, on it.

    python -m bench.busy_machine [--repeats 7] [--competitors 0 1] [--alone] [--work products features ...]
        [--output folder] [--overwrite]

OpenMP's threads spin while they wait for one another. Beside another busy process one of them has no core, and the
others spin on the core that it needs. Every setting is a process of its own, since OpenMP reads its variables when
torch is loaded; they take turns at the same work, the others asleep. A competitor is a process that counts. Times are
comparable within a run only. On a machine that has other work the rows without competitors are not quiet: `load` shows
it, the mean number of running processes over the last minute; `--alone` gives each call the cores before ordinary
processes (SCHED_RR by chrt, as root), where there are no competitors. Writes busy_machine.jsonl.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from bench import command
from bench.measure import ROOT, measure_time, print_table, write_results
from mind.cli import SPINS

NAME = "busy_machine"
WORK = ("products", "generation", "features", "training")
SETTINGS = {
    "as it comes": {},
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
    "brief spin": {"GOMP_SPINCOUNT": SPINS},  # what the command line sets
    "one thread": {"OMP_NUM_THREADS": "1"},
}
READ_BY_OPENMP = ("OMP_WAIT_POLICY", "OMP_NUM_THREADS", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
PRODUCTS = 300
TOKENS = 8  # of each generated answer
QUESTIONS = 8
TRAINED = 2  # rationales of one question, about two seconds on two cores


def make_work() -> dict[str, Callable[[], Any]]:
    """The kinds of work, each a call that returns something to compare: numbers or texts."""
    import torch

    from mind import word_problems
    from mind.batches.cross_entropy import cross_entropy
    from mind.batches.packing import micro_batches
    from mind.batches.trunk import labeled_hidden
    from mind.config import StudentConfig
    from mind.evaluation.generation import generate_responses
    from mind.methods.mind.features import StudentEncoder
    from mind.perspectives import PAPER_PERSPECTIVES
    from mind.records import PackOptions
    from mind.student.model import head_of, load_student
    from mind.student.tokenization import Chat, tokenize

    student, tokenizer = load_student(StudentConfig())
    questions = word_problems.generate(QUESTIONS, 0)
    chat = Chat(tokenizer)
    prompts = [chat.prompt(question) for question in questions]
    encoder = StudentEncoder(student, tokenizer, 1024)
    texts = [question.question for question in questions]
    tokenized = tokenize(questions[:1], tokenizer, PAPER_PERSPECTIVES, 1024)
    chosen = torch.arange(len(PAPER_PERSPECTIVES))[None] < TRAINED
    (batch,) = micro_batches(tokenized, len(PAPER_PERSPECTIVES), PackOptions(2048, True), chosen)
    torch.manual_seed(0)
    rows, weight = torch.randn(QUESTIONS, 576), torch.randn(576, 1536)

    def products() -> list[float]:
        for _ in range(PRODUCTS):
            result = rows @ weight
        return result.flatten()[:8].tolist()

    def training() -> list[float]:
        loss, _ = cross_entropy(labeled_hidden(student, batch), head_of(student), batch)
        loss.backward()
        student.zero_grad()
        return [float(loss.detach()) / len(batch.target)]

    return {
        "products": products,
        "generation": lambda: generate_responses(
            student, tokenizer, prompts, max_new_tokens=TOKENS, batch_size=QUESTIONS
        ),
        "features": lambda: encoder.encode(texts, lambda _: None).flatten()[:8].tolist(),
        "training": training,
    }


def serve() -> None:
    """Does the work whose name it reads, line by line, and answers with its result."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    work = make_work()
    for line in sys.stdin:
        print(json.dumps(work[line.strip()]()), file=answers, flush=True)


class Worker:
    """A process with one of the SETTINGS."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        environment = {name: value for name, value in os.environ.items() if name not in READ_BY_OPENMP}
        self._process = subprocess.Popen(
            [sys.executable, "-c", "from bench.busy_machine import serve; serve()"],
            cwd=ROOT,
            env=environment | variables,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self, work: str) -> Any:
        assert self._process.stdin is not None and self._process.stdout is not None
        print(work, file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the process for {work!r} ended: {self._process.wait()}, error above")
        return json.loads(answer)

    @contextlib.contextmanager
    def first(self) -> Iterator[None]:
        """Inside, its threads run before those of ordinary processes."""
        self._schedule("--rr", 10)
        try:
            yield
        finally:
            self._schedule("--other", 0)

    def _schedule(self, policy: str, priority: int) -> None:
        command = ["chrt", "--all-tasks", policy, "--pid", str(priority), str(self._process.pid)]
        subprocess.run(command, check=True)

    def alone(self, work: str) -> Any:
        with self.first():
            return self(work)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


@contextlib.contextmanager
def competitors(count: int) -> Iterator[None]:
    """That many processes are busy inside, without memory traffic."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def check_equal(results: dict[str, Any]) -> None:
    """The settings give the same texts, and the same numbers up to the order of sums."""
    expected, *others = results.values()
    for other in others:
        for one, two in zip(expected, other, strict=True):
            assert one == two if isinstance(one, str) else abs(one - two) <= 1e-4 * max(1.0, abs(one)), results


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command.options_of(NAME, __doc__ or "")
    parser.add_argument(
        "--repeats", type=command.count, default=7, help="calls per setting, work and number of competitors"
    )
    parser.add_argument(
        "--competitors", type=command.count_or_none, nargs="+", default=[0, 1], help="numbers of busy processes"
    )
    parser.add_argument("--work", nargs="+", choices=WORK, default=WORK)
    parser.add_argument(
        "--alone", action="store_true", help="before ordinary processes, where there are no competitors"
    )
    options, file = command.parse(parser, lambda _: NAME, arguments)
    rows = []
    with contextlib.ExitStack() as stack:
        workers = {name: stack.enter_context(contextlib.closing(Worker(own))) for name, own in SETTINGS.items()}
        for work in options.work:
            quiet: dict[str, float] = {}
            for count in options.competitors:
                with competitors(count):
                    alone = options.alone and count == 0
                    providers = {
                        name: functools.partial(worker.alone if alone else worker, work)
                        for name, worker in workers.items()
                    }
                    timings = measure_time(providers, gate=check_equal, repeats=options.repeats, warmup=2)
                load = round(os.getloadavg()[0], 1)
                as_it_comes = timings["as it comes"].median_ms
                for name, timing in timings.items():
                    quiet.setdefault(name, timing.median_ms)
                    row = {"work": work, "competitors": count, "setting": name, **timing.row()}
                    row |= {"of_as_it_comes": round(timing.median_ms / as_it_comes, 3)}
                    rows.append(row | {"of_first": round(timing.median_ms / quiet[name], 2), "load": load})
    columns = ["work", "competitors", "setting", "median_ms", "p20_ms", "p80_ms", "of_as_it_comes", "of_first", "load"]
    print_table(rows, columns)
    write_results(rows, file)


if __name__ == "__main__":
    command.program(NAME, main)
