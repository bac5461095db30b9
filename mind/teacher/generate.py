"""`mind generate`: the answers of a teacher in a folder, continued where an earlier start stopped."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tqdm import tqdm

from mind.config import save_config
from mind.data.questions import save_questions
from mind.data.sources import load_source
from mind.errors import MindError
from mind.files import replacing
from mind.records import Key, Response
from mind.teacher.config import GenerateConfig, TeacherConfig, TrafficConfig, json_option
from mind.teacher.journal import Journal, load_responses
from mind.teacher.requests import Failure, Request, load_prompts, name_of, teacher_requests
from mind.teacher.spending import Spending, Usage

QUESTIONS, CONFIG, PROMPTS = "questions.jsonl", "generate.json", "prompts.json"
RESPONSES, FAILURES = "responses.jsonl", "failures.jsonl"


class Engine(Protocol):
    """What answers requests."""

    retries: Counter[str]
    stopped: str | None

    def run(self, requests: Iterable[Request], settle: Callable[[list[Response | Failure]], None]) -> None: ...


@dataclass(frozen=True)
class JobReport:
    """What became of the requests of a job: asked = stored + answered + failed + left."""

    asked: int
    stored: int
    """Answered by earlier starts."""
    answered: int
    failed: int
    left: int
    """Not sent, or not answered when the job ended."""
    stopped: str | None
    """Why the job ended early."""
    failures: Mapping[str, int]
    """Requests given up on, by reason."""
    retries: Mapping[str, int]
    """Attempts that were repeated, by reason."""
    usage: Usage
    """Of all starts."""

    @property
    def complete(self) -> bool:
        """Whether every request is answered."""
        return self.failed == self.left == 0


def generate(config: GenerateConfig) -> JobReport:
    """Asks the teacher for what `config.output` does not hold yet.

    The folder holds questions.jsonl, generate.json, prompts.json, responses.jsonl (mind.records.Response) and, of the
    last start, failures.jsonl. Raises MindError for bad input, and for a folder with answers to other requests.
    """
    questions = [dataclasses.replace(question, rationales=()) for question in load_source(config.questions)]
    prompts = load_prompts(config.perspectives, config.prompts)
    folder = Path(config.output)
    folder.mkdir(parents=True, exist_ok=True)
    requests = list(teacher_requests(questions, prompts, config))
    with Journal(folder / RESPONSES) as journal:
        stored = stored_answers(folder / RESPONSES, requests)
        save_questions(questions, folder / QUESTIONS)
        save_config(config, folder / CONFIG)
        with replacing(folder / PROMPTS) as file:
            json.dump(prompts, file, indent=2)
        spending = Spending(config.budget, config.prices.get(config.teacher.model))
        return run_job(
            requests,
            stored,
            make_engine(config.teacher, config.traffic, spending),
            spending,
            journal,
            folder / FAILURES,
        )


def make_engine(teacher: TeacherConfig, traffic: TrafficConfig, spending: Spending) -> Engine:
    """The engine that `teacher` names; raises MindError where its package is missing."""
    if teacher.engine == "openai":
        from mind.teacher.online import OnlineEngine

        return OnlineEngine(teacher, traffic, spending)
    from mind.teacher import offline

    options = json_option("teacher.engine_options", teacher.engine_options)
    if teacher.engine == "vllm":
        return offline.VLLMEngine(teacher.model, spending, batch_size=teacher.batch_size, engine_options=options)
    return offline.RayEngine(
        teacher.model, spending, batch_size=teacher.batch_size, replicas=teacher.replicas, engine_options=options
    )


def stored_answers(path: Path, requests: Iterable[Request]) -> dict[Key, Response]:
    """The answers at `path` by key; raises MindError where one belongs to no request, or to another with its key."""
    digests = {request.key: request.digest for request in requests}
    stored = {}
    for response in load_responses(path):
        if response.key not in digests:
            raise MindError(
                f"{path} has {name_of(response.key)}, which is not asked for: the questions, the "
                "perspectives or the number of samples were others; name a new --output"
            )
        if digests[response.key] != response.request:
            raise MindError(
                f"{path} has {name_of(response.key)} as the answer to another request: the question, a "
                "prompt, the model or a sampling parameter was another; name a new --output"
            )
        stored[response.key] = response
    return stored


def run_job(
    requests: list[Request],
    stored: Mapping[Key, Response],
    engine: Engine,
    spending: Spending,
    journal: Journal,
    failures_file: Path,
) -> JobReport:
    """Answers those of `requests` that are not `stored`, each on disk before it is counted."""
    for request in requests:
        if request.key in stored:
            spending.add_stored(request, stored[request.key])
    open_requests = [request for request in requests if request.key not in stored]
    answered, failures = 0, []
    # Where nobody watches, a line every ten seconds does.
    bar = tqdm(total=len(requests), initial=len(stored), unit="answer", mininterval=0.5 if sys.stderr.isatty() else 10)

    def settle(outcomes: list[Response | Failure]) -> None:
        nonlocal answered
        responses = [outcome for outcome in outcomes if isinstance(outcome, Response)]
        journal.append(responses)
        answered += len(responses)
        failures.extend(outcome for outcome in outcomes if isinstance(outcome, Failure))
        bar.set_postfix_str(_spent(spending.usage, len(failures)), refresh=False)
        bar.update(len(responses))

    try:
        engine.run(iter(open_requests), settle)
    finally:
        bar.close()
        with replacing(failures_file) as file:
            file.writelines(json.dumps(dataclasses.asdict(failure)) + "\n" for failure in failures)
    return JobReport(
        asked=len(requests),
        stored=len(stored),
        answered=answered,
        failed=len(failures),
        left=len(open_requests) - answered - len(failures),
        stopped=engine.stopped,
        failures=Counter(failure.reason for failure in failures),
        retries=engine.retries,
        usage=spending.usage,
    )


def _spent(usage: Usage, failed: int) -> str:
    cost = "" if usage.cost is None else f", {usage.cost:.4f} spent"
    return f"{usage.prompt_tokens + usage.completion_tokens:,} tokens{cost}" + (f", {failed} failed" if failed else "")
