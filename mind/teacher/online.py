"""Requests to an endpoint with OpenAI's chat completions: bounded concurrency, retries, and a budget that stops it."""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import os
import random
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import openai

from mind.display import one_line
from mind.errors import MindError
from mind.files import parse_object
from mind.provenance import now
from mind.records import Response
from mind.teacher.config import ModelConfig, TrafficConfig
from mind.teacher.job import Store
from mind.teacher.requests import MAX_DETAIL_CHARACTERS, Failure, Request
from mind.teacher.spending import Spending

DEFAULT_URL = ModelConfig.base_url


@dataclass(eq=False)
class _Problem(Exception):
    """Why an attempt gave no answer."""

    reason: str
    detail: str
    retry: bool = True
    ends_job: bool = False
    wait: float | None = None
    """Seconds that the server asks for."""


class OnlineEngine:
    """Answers requests through the `openai` client. Its own retries are off: they see neither empty nor broken answers,
    and are not counted."""

    def __init__(self, model: ModelConfig, traffic: TrafficConfig, spending: Spending) -> None:
        """Raises MindError if the endpoint needs a key and the environment has none."""
        self._model, self._traffic, self._spending = model, traffic, spending
        self._key = os.environ.get(model.api_key_env, "")
        if not self._key and model.base_url == DEFAULT_URL:
            raise MindError(f"{model.base_url} needs a key in the environment variable {model.api_key_env}")
        self._extra = parse_object("extra_body", model.extra_body.encode())
        self._jitter = random.Random()
        self.retries: Counter[str] = Counter()
        """Attempts that were repeated, by reason."""
        self.stopped: str | None = None
        """Why requests were left unsent; None if none were."""

    def run(self, requests: Iterable[Request], store: Store) -> None:
        """Answers `requests`, and gives `store` what has come since its last call; it may block to write it."""
        try:
            asyncio.run(self._run(iter(requests), store))
        except ExceptionGroup as group:  # of `store`, such as a full disk: no request fails by an exception
            raise group.exceptions[0] from None

    async def _run(self, requests: Iterator[Request], store: Store) -> None:
        self._resume_at = 0.0
        self._failed_in_a_row = 0
        self._turn, self._changed, self._halt = asyncio.Lock(), asyncio.Event(), asyncio.Event()
        outcomes: asyncio.Queue[Response | Failure | None] = asyncio.Queue()
        client = openai.AsyncOpenAI(
            api_key=self._key or "none",
            base_url=self._model.base_url,
            max_retries=0,
            timeout=self._traffic.timeout_seconds,
        )
        async with client, asyncio.TaskGroup() as group:
            group.create_task(self._store(outcomes, store))
            workers = [
                group.create_task(self._work(client, requests, outcomes)) for _ in range(self._traffic.concurrency)
            ]
            await asyncio.gather(*workers)
            outcomes.put_nowait(None)

    async def _store(self, outcomes: asyncio.Queue[Response | Failure | None], store: Store) -> None:
        """Hands over all that waits in one call, so that one flush to disk serves it; after a cancellation too."""
        waiting: list[Response | Failure | None] = []
        try:
            while None not in waiting:
                waiting = [await outcomes.get()]
                while not outcomes.empty():
                    waiting.append(outcomes.get_nowait())
                store([outcome for outcome in waiting if outcome is not None])
        finally:
            if left := [outcomes.get_nowait() for _ in range(outcomes.qsize())]:
                store([outcome for outcome in left if outcome is not None])

    async def _work(self, client: openai.AsyncOpenAI, requests: Iterator[Request], outcomes: asyncio.Queue) -> None:
        while (request := await self._next(requests)) is not None:
            outcome = await self._answer(client, request)
            self._spending.release(request)
            if outcome is not None:
                outcomes.put_nowait(outcome)
            if isinstance(outcome, Response):
                self._spending.usage.requests += 1
            self._changed.set()

    async def _next(self, requests: Iterator[Request]) -> Request | None:
        """The next request once it fits the budget; None at the end, or if it never will."""
        async with self._turn:
            if self._halt.is_set() or (request := next(requests, None)) is None:
                return None
            while not self._spending.reserve(request):
                if not self._spending.under_way:
                    self._stop("the budget is used up")
                    return None
                self._changed.clear()
                await self._changed.wait()
            return request

    def _stop(self, why: str) -> None:
        """No further request goes out; those under way are answered, those that wait for another attempt are not."""
        self.stopped = self.stopped or why
        self._halt.set()

    async def _answer(self, client: openai.AsyncOpenAI, request: Request) -> Response | Failure | None:
        """The outcome of `request`; None if the job ended before there was one."""
        attempt = 0
        while True:
            attempt += 1
            while (wait := self._resume_at - time.monotonic()) > 0 and not self._halt.is_set():
                await self._pause(wait)
            if self._halt.is_set():
                return None
            try:
                response = await self._ask(client, request, attempt)
                self._failed_in_a_row = 0
                return response
            except _Problem as caught:
                problem = caught
            if problem.ends_job:
                self._stop(f"{problem.reason}: {problem.detail}")
                return None
            if not problem.retry or attempt == self._traffic.attempts:
                return self._failure(request, problem, attempt)
            self.retries[problem.reason] += 1
            await self._wait_for_retry(problem, attempt)

    def _failure(self, request: Request, problem: _Problem, attempts: int) -> Failure:
        """`request` is given up on, and so is the job after too many of its kind in a row."""
        self._failed_in_a_row += 1
        if self._failed_in_a_row >= self._traffic.stop_after_failures:
            self._stop(f"{self._failed_in_a_row} requests in a row had no answer, the last for: {problem.reason}")
        return Failure(request.key, problem.reason, problem.detail, attempts)

    async def _wait_for_retry(self, problem: _Problem, attempt: int) -> None:
        if problem.wait is not None:  # the server is busy for everybody
            self._resume_at = max(self._resume_at, time.monotonic() + problem.wait)
            return
        wait = self._traffic.first_wait_seconds * 2 ** (attempt - 1) * self._jitter.uniform(0.5, 1)
        await self._pause(min(wait, self._traffic.longest_wait_seconds))

    async def _pause(self, seconds: float) -> None:
        """Sleeps, unless the job ends."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._halt.wait(), seconds)

    async def _ask(self, client: openai.AsyncOpenAI, request: Request, attempt: int) -> Response:
        """One attempt; raises _Problem."""
        messages: Any = list(request.messages)
        sampling: dict[str, Any] = {
            "temperature": request.temperature,
            "top_p": request.top_p,
            "seed": request.seed,
            self._model.token_limit_name: request.max_tokens,
        }
        started = time.monotonic()
        try:
            async with asyncio.timeout(self._traffic.timeout_seconds):
                raw = await client.chat.completions.with_raw_response.create(
                    model=self._model.model,
                    messages=messages,
                    extra_body=self._extra or None,
                    **{name: value for name, value in sampling.items() if value is not None},
                )
        except (TimeoutError, openai.APITimeoutError):
            raise _Problem("time-out", f"no answer within {self._traffic.timeout_seconds:g} s") from None
        except openai.APIStatusError as error:
            raise self._status_problem(error) from None
        except openai.APIConnectionError as error:
            raise _Problem("connection lost", self._clean(f"{error.__cause__ or error}")) from None
        return self._response(request, raw.content, attempt, time.monotonic() - started)

    def _response(self, request: Request, body: bytes, attempts: int, seconds: float) -> Response:
        try:
            answer = parse_object("the body", body)
        except MindError as error:
            raise _Problem("malformed answer", self._clean(str(error))) from None
        usage = answer.get("usage")
        usage = usage if isinstance(usage, dict) else {}
        prompt_tokens, completion_tokens = _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens"))
        self._spending.add(request, prompt_tokens, completion_tokens)
        choice, message = _first_choice(answer)
        text, finish = message.get("content"), choice.get("finish_reason")
        if finish == "content_filter":
            raise _Problem("refused by the content filter", "", retry=False)
        if not isinstance(text, str) or not text.strip():
            raise _Problem("empty answer", f"finish_reason is {finish!r:.40}")
        model, reasoning = answer.get("model"), message.get("reasoning_content") or message.get("reasoning")
        return Response(
            request.key,
            request=request.digest,
            model=model if isinstance(model, str) else self._model.model,
            text=text,
            finish_reason=finish if isinstance(finish, str) else "unknown",
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            attempts=attempts,
            seconds=round(seconds, 3),
            created=now(),
            reasoning=reasoning if isinstance(reasoning, str) else None,
        )

    def _status_problem(self, error: openai.APIStatusError) -> _Problem:
        status, detail = error.status_code, self._clean(error.message)
        if error.code == "insufficient_quota":
            return _Problem("quota used up", detail, ends_job=True)
        if status in (401, 403, 404, 405):
            return _Problem(f"status {status}", detail, ends_job=True)
        wait = retry_after(error.response.headers.get("retry-after"))
        if wait is not None and wait > self._traffic.longest_wait_seconds:
            return _Problem(f"status {status}", f"the server asks to wait for {wait:.0f} s", ends_job=True)
        return _Problem(f"status {status}", detail, retry=status in (408, 409, 429) or status >= 500, wait=wait)

    def _clean(self, text: str) -> str:
        """One line without the key, which some servers repeat."""
        text = text.replace(self._key, "[key]") if self._key else text
        return one_line(text, MAX_DETAIL_CHARACTERS)


def _first_choice(answer: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    choices = answer.get("choices")
    if not isinstance(choices, list):
        raise _Problem("malformed answer", 'the body has no list "choices"')
    if not choices:
        raise _Problem("empty answer", '"choices" is empty')
    message = choices[0].get("message") if isinstance(choices[0], dict) else None
    if not isinstance(message, dict):
        raise _Problem("malformed answer", "the first choice has no message")
    return choices[0], message


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def retry_after(header: str | None) -> float | None:
    """The seconds that a Retry-After header asks for, which holds seconds or a date; None without a sensible one."""
    if header is None:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = (email.utils.parsedate_to_datetime(header) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError):
            return None
    return max(seconds, 0.0) if seconds == seconds else None
