"""Runs a job: an engine answers requests, each answer is on the disk before it counts, and a report says what became of
them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from mind.files import parse_object, write_json_rows
from mind.progress import Progress
from mind.records import Key, Response
from mind.summary import Summary, counted
from mind.teacher.completion import LENGTH, STOP, UNKNOWN
from mind.teacher.config import ModelConfig, TrafficConfig
from mind.teacher.journal import Journal, load_wasted
from mind.teacher.requests import Failure, Outcome, Request, Wasted
from mind.teacher.spending import Spending, Usage
from mind.typed_json import row_of

Store = Callable[[Sequence[Outcome]], None]
"""Stores the outcomes of some requests, and returns when they are safely on the disk.

If it raises, nothing more should be asked, but outcomes of requests under way are still accepted.
"""

_BYTES_PER_TOKEN, _BYTES_PER_ANSWER = 16, 4096
"""Usual size of an answer in a journal, at most, in bytes."""


class Engine(Protocol):
    """What answers requests."""

    @property
    def retries(self) -> Counter[str]:
        """Attempts that were repeated, by reason."""
        ...

    @property
    def stopped(self) -> str | None:
        """Why requests were not sent; None if all were."""
        ...

    def run(self, requests: Iterable[Request], store: Store) -> None:
        """Answers `requests`, and passes what becomes of each to `store`, in any order.

        Each request gets one Response or Failure, unless the job ends before; and a Wasted for each attempt without an
        answer that may have been paid for.
        """
        ...


@dataclass(frozen=True)
class JobReport(Summary):
    """What became of the requests of a job: asked = stored + answered + failed + left."""

    asked: int
    stored: int
    """Requests answered by earlier starts."""
    answered: int
    failed: int
    left: int
    """Not sent, or not answered when the job ended."""
    stopped: str | None
    """Why the job ended early."""
    failures: Mapping[str, int]
    """Requests that were given up, by reason."""
    last_failure: str | None
    """The request that was given up last, and all that is known of the reason."""
    retries: Mapping[str, int]
    """Attempts that were repeated, by reason."""
    ends: Mapping[str, int]
    """Answers of all starts by finish reason, without those that the model ended itself."""
    usage: Usage
    """Tokens and cost of all starts."""

    @property
    def complete(self) -> bool:
        """Whether every request is answered."""
        return self.failed == self.left == 0

    @property
    def is_nothing(self) -> bool:
        """Whether the job stopped before it got, lost or paid for anything, and no earlier start did."""
        events = self.stored + self.answered + self.failed + len(self.retries)
        return self.stopped is not None and events + self.usage.prompt_tokens + self.usage.completion_tokens == 0

    def as_rows(self) -> list[dict[str, Any]]:
        most = ", at most" if self.usage.uncounted else ""  # the worst case of these is counted
        counts: dict[str, Any] = {
            "requests": self.asked,
            "answered before": self.stored,
            "answered now": self.answered,
            "failed": self.failed,
            "left": self.left,
            f"prompt tokens{most}": self.usage.prompt_tokens,
            f"answer tokens{most}": self.usage.completion_tokens,
            "replies without a token count": self.usage.uncounted,
        }
        names = {LENGTH: "cut off at max_tokens", UNKNOWN: "without a finish reason"}
        counts |= {names.get(end, f"ended by: {end}"): count for end, count in sorted(self.ends.items())}
        counts |= {f"repeated for: {reason}": count for reason, count in sorted(self.retries.items())}
        counts |= {f"failed for: {reason}": count for reason, count in sorted(self.failures.items())}
        return counted(counts if self.usage.cost is None else counts | {f"cost{most}": self.usage.cost})


def make_engine(model: ModelConfig, traffic: TrafficConfig, spending: Spending) -> Engine:
    """The engine that `model` names; raises MindError if its package is missing."""
    if model.engine == "openai":
        from mind.teacher.online import OnlineEngine

        return OnlineEngine(model, traffic, spending)
    from mind.teacher import offline

    options = parse_object("engine_options", model.engine_options.encode())
    if model.engine == "vllm":
        return offline.VLLMEngine(model.model, spending, batch_size=model.batch_size, engine_options=options)
    return offline.RayEngine(
        model.model, spending, batch_size=model.batch_size, replicas=model.replicas, engine_options=options
    )


def reserve_bytes(model: ModelConfig, traffic: TrafficConfig) -> int:
    """Bytes on the disk that the answers under way at one time may need."""
    batches = {"openai": traffic.concurrency, "vllm": model.batch_size, "ray": 8 * model.replicas * model.batch_size}
    return batches[model.engine] * (model.max_tokens * _BYTES_PER_TOKEN + _BYTES_PER_ANSWER)


def run_job(
    requests: Sequence[Request],
    stored: Mapping[Key, Response],
    engine: Engine,
    spending: Spending,
    journal: Journal,
    wasted: Journal,
    failures_file: Path,
) -> JobReport:
    """Answers those of `requests` that are not in `stored`.

    Answers go to `journal`, attempts without one to `wasted`, and requests that were given up to
    `failures_file`.
    """
    for request in requests:
        if request.key in stored:
            spending.add_stored(request, stored[request.key])
    for attempt in load_wasted(wasted.path):
        spending.add_wasted(attempt)
    unanswered = [request for request in requests if request.key not in stored]
    answered = 0
    ends = Counter(response.finish_reason for response in stored.values())
    failures: list[Failure] = []
    bar = Progress("answers", len(requests), "answer", done=len(stored), stay=True)

    def store(outcomes: Sequence[Outcome]) -> None:
        nonlocal answered
        responses = [outcome for outcome in outcomes if isinstance(outcome, Response)]
        attempts = [outcome for outcome in outcomes if isinstance(outcome, Wasted)]
        failures.extend(outcome for outcome in outcomes if isinstance(outcome, Failure))
        journal.append(responses)
        answered += len(responses)
        ends.update(response.finish_reason for response in responses)
        if attempts:  # a rare thing, and each call waits for the disk
            wasted.append(attempts)
        bar.say(_spent(spending.usage, len(failures)))
        bar.update(len(responses))

    try:
        engine.run(iter(unanswered), store)
    finally:
        bar.close()
        if failures_file.parent.is_dir():  # else the journal's error says that the folder is gone
            write_json_rows(map(row_of, failures), failures_file)
    return JobReport(
        asked=len(requests),
        stored=len(stored),
        answered=answered,
        failed=len(failures),
        left=len(unanswered) - answered - len(failures),
        stopped=engine.stopped,
        failures=Counter(failure.reason for failure in failures),
        last_failure=str(failures[-1]) if failures else None,
        retries=engine.retries,
        ends={end: count for end, count in ends.items() if end != STOP},
        usage=spending.usage,
    )


def _spent(usage: Usage, failed: int) -> str:
    most = "at most " if usage.uncounted else ""
    cost = "" if usage.cost is None else f", {usage.cost:.4f} spent"
    tokens = f"{most}{usage.prompt_tokens + usage.completion_tokens:,} tokens"
    return f"{tokens}{cost}" + (f", {failed} failed" if failed else "")
