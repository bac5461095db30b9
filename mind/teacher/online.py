"""Sends requests to an endpoint with OpenAI's chat completions: with bounded concurrency, retries, and a budget."""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import logging
import random
import re
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import openai

from mind.display import one_line
from mind.errors import MindError
from mind.files import parse_object
from mind.provenance import now
from mind.records import Response
from mind.teacher.completion import Problem, read_completion, status_problem, words_of
from mind.teacher.config import ModelConfig, TrafficConfig
from mind.teacher.job import Store
from mind.teacher.keys import endpoint_key, hidden_from, key_variable, without_key
from mind.teacher.requests import MAX_DETAIL_CHARACTERS, Failure, Outcome, Request
from mind.teacher.spending import BUDGET_USED_UP, Spending

logger = logging.getLogger(__name__)

CONTINUE = {"continue_final_message": True, "add_generation_prompt": False}
"""What vLLM and SGLang need in a request to continue the last message; extra_body may override it."""
SHOWN_BYTES = 200
"""Bytes of a body that is not JSON which a message shows."""
SHOWN_CHARACTERS = 200
"""Characters that a message shows of what a server says with an error status."""
MAX_REPLY_BYTES = 16 << 20
"""Longest reply, decompressed, whatever its status; the longest answers, of 100,000 tokens, have about 1 MB."""


class OnlineEngine:
    """Answers requests through the `openai` client, whose own retries are off: they do not notice empty or broken
    answers, and cannot be counted."""

    def __init__(self, model: ModelConfig, traffic: TrafficConfig, spending: Spending) -> None:
        """Raises MindError as `endpoint_key` does, before anything is sent."""
        self._model, self._traffic, self._spending = model, traffic, spending
        self._key = endpoint_key(model)
        self._extra = parse_object("extra_body", model.extra_body.encode())
        self._jitter = random.Random()
        self.retries: Counter[str] = Counter()
        """Attempts that were repeated, by reason."""
        self._heard = False
        """Whether the server has answered anything."""
        self.stopped: str | None = None
        """Why requests were not sent; None if all were."""

    def run(self, requests: Iterable[Request], store: Store) -> None:
        """Answers `requests`, and passes to `store` what has arrived since its last call; `store` may block while it
        writes."""
        try:
            asyncio.run(self._run(iter(requests), store))
        # raised by `store`, for example on a full disk: a failed request raises nothing
        except ExceptionGroup as group:
            raise group.exceptions[0] from None

    async def _run(self, requests: Iterator[Request], store: Store) -> None:
        self._resume_at = 0.0
        self._failed_in_a_row = 0
        self._turn, self._changed, self._halt = asyncio.Lock(), asyncio.Event(), asyncio.Event()
        self._outcomes: asyncio.Queue[Outcome | None] = asyncio.Queue()
        with hidden_from(self._model.base_url):
            client = openai.AsyncOpenAI(
                api_key=self._key or "none",
                base_url=self._model.base_url,
                max_retries=0,
                timeout=self._traffic.timeout_seconds,
                # What a server or proxy sends twice would be read as the answer to the next request on the connection.
                default_headers={"Connection": "close"},
                # A redirect would take the questions where the user did not send them, some without their text.
                http_client=openai.DefaultAsyncHttpxClient(
                    follow_redirects=False, event_hooks={"response": [_limit_size]}
                ),
            )
        async with client, asyncio.TaskGroup() as group:
            group.create_task(self._store(store))
            workers = [group.create_task(self._work(client, requests)) for _ in range(self._traffic.concurrency)]
            await asyncio.gather(*workers)
            self._outcomes.put_nowait(None)

    async def _store(self, store: Store) -> None:
        """Hands over everything that waits in one call, so that one flush to disk serves it; after a cancellation too.

        If `store` fails, no further request is sent, and those under way, which are paid for, are still handed over.
        """
        error: Exception | None = None
        waiting: list[Outcome | None] = []
        try:
            while None not in waiting:
                waiting = [await self._outcomes.get()]
                while not self._outcomes.empty():
                    waiting.append(self._outcomes.get_nowait())
                try:
                    store([outcome for outcome in waiting if outcome is not None])
                except Exception as caught:
                    error = error or caught
                    self._stop("what came cannot be stored")
        finally:
            if left := [self._outcomes.get_nowait() for _ in range(self._outcomes.qsize())]:
                store([outcome for outcome in left if outcome is not None])
        if error is not None:
            raise error

    async def _work(self, client: openai.AsyncOpenAI, requests: Iterator[Request]) -> None:
        while (request := await self._next(requests)) is not None:
            outcome = await self._answer(client, request)
            self._spending.release(request)
            if outcome is not None:
                self._outcomes.put_nowait(outcome)
            if isinstance(outcome, Response):
                self._spending.usage.requests += 1
            self._changed.set()

    async def _next(self, requests: Iterator[Request]) -> Request | None:
        """The next request, once it fits the budget; None at the end, or if it never will."""
        async with self._turn:
            if self._halt.is_set() or (request := next(requests, None)) is None:
                return None
            while not self._spending.reserve(request):
                if not self._spending.under_way:
                    self._stop(BUDGET_USED_UP)
                    return None
                self._changed.clear()
                await self._changed.wait()
            return request

    def _stop(self, why: str) -> None:
        """No further request is sent; those under way are still answered, those that wait for another attempt are
        not."""
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
            except Problem as caught:
                problem = caught
            problem.detail = self._clean(problem.detail)
            if (wasted := self._spending.waste(request, problem)) is not None:
                self._outcomes.put_nowait(wasted)
            if problem.ends_job:
                self._stop(f"{self._model.base_url}: {problem.reason}: {problem.detail}")
                return None
            if not self._spending.fits:  # no other attempt fits, since this one was paid for
                self._stop(BUDGET_USED_UP)
                return None
            if not problem.retry or attempt == self._traffic.attempts:
                return self._failure(request, problem, attempt)
            if problem.reason not in self.retries:
                logger.warning("%s: %s: %s; trying again", self._model.base_url, problem.reason, problem.detail)
            self.retries[problem.reason] += 1
            await self._wait_for_retry(problem, attempt)

    def _failure(self, request: Request, problem: Problem, attempts: int) -> Failure:
        """Gives up `request`, and the whole job after too many failures in a row."""
        self._failed_in_a_row += 1
        if self._failed_in_a_row >= self._traffic.stop_after_failures:
            self._stop(
                f"{self._failed_in_a_row} requests in a row to {self._model.base_url} had no answer, the last for: "
                f"{problem.reason}: {problem.detail}"
            )
        return Failure(request.key, problem.reason, problem.detail, attempts)

    async def _wait_for_retry(self, problem: Problem, attempt: int) -> None:
        if problem.wait is not None:  # the server is busy for all requests
            self._resume_at = max(self._resume_at, time.monotonic() + problem.wait)
            return
        wait = self._traffic.first_wait_seconds * 2 ** (attempt - 1) * self._jitter.uniform(0.5, 1)
        await self._pause(min(wait, self._traffic.longest_wait_seconds))

    async def _pause(self, seconds: float) -> None:
        """Sleeps, unless the job ends."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._halt.wait(), seconds)

    async def _ask(self, client: openai.AsyncOpenAI, request: Request, attempt: int) -> Response:
        """One attempt; raises Problem."""
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
                    extra_body=(CONTINUE | self._extra if request.beginning else self._extra) or None,
                    **{name: value for name, value in sampling.items() if value is not None},
                )
        except (TimeoutError, openai.APITimeoutError):
            raise Problem("time-out", f"no answer within {self._traffic.timeout_seconds:g} s") from None
        except openai.APIStatusError as error:
            self._heard = True
            raise self._status_problem(error) from None
        except openai.APIConnectionError as error:
            first = _innermost(error)
            if isinstance(first, Problem):  # of `_limit_size`
                raise first from None
            raise self._connection_problem(first) from None
        self._heard = True
        answer = read_completion(without_key(_parsed(raw.content, raw.headers), self._key))
        self._spending.add(request, answer.prompt_tokens, answer.completion_tokens)
        return Response(
            request.key,
            request=request.digest,
            model=answer.model or self._model.model,
            text=request.whole(answer.text),
            finish_reason=answer.finish_reason,
            prompt_tokens=answer.prompt_tokens,
            completion_tokens=answer.completion_tokens,
            attempts=attempt,
            seconds=round(time.monotonic() - started, 3),
            created=now(),
            reasoning=answer.reasoning,
        )

    def _connection_problem(self, error: BaseException) -> Problem:
        """A server that never answered is not there yet: repeating would only hide this for a while."""
        detail = str(error) or type(error).__name__
        if not isinstance(error, ConnectionRefusedError | socket.gaierror):
            return Problem("connection lost", detail)
        reason = "connection refused" if isinstance(error, ConnectionRefusedError) else "unknown host"
        if self._heard:
            return Problem(reason, detail)
        option = self._model.option("base_url")
        return Problem(reason, f"{detail}; start the server there, or name another by {option}", ends_job=True)

    def _status_problem(self, error: openai.APIStatusError) -> Problem:
        status, said = error.status_code, error.message if error.body is None else words_of(error.body)
        # It may be a page, and what to do comes after it.
        detail = one_line(without_key(said, self._key), SHOWN_CHARACTERS)
        if 300 <= status < 400 and (target := error.response.headers.get("location")):
            option = self._model.option("base_url")
            where = f"the server redirects to {target}: set {option} to that URL without /chat/completions"
            return Problem(f"status {status}", where, ends_job=True)
        if status in (400, 422) and any(name in said for name in CONTINUE):  # as `transformers serve` does
            where = f"{detail}: this server does not continue an answer; name one that does, or an offline engine"
            return Problem(f"status {status}", where, ends_job=True)
        detail += "; ".join(["", *self._remedies(status)])
        wait = retry_after(error.response.headers)
        if wait is not None and wait > self._traffic.longest_wait_seconds:
            return Problem(f"status {status}", f"the server asks to wait for {wait:.0f} s", ends_job=True)
        return status_problem(status, (error.code, error.type), detail, wait)

    def _remedies(self, status: int) -> Iterator[str]:
        """What to change if the server refuses every request with this status."""
        model = self._model
        if status in (401, 403) and self._key is None:
            yield f"no key was sent: name the environment variable that holds it by {model.option('api_key_env')}"
        elif status in (401, 403):
            yield f"the key came from {key_variable(model)}; {model.option('api_key_env')} names another one"
        elif status in (404, 405) and not re.search("/v[0-9]+$", model.base_url.rstrip("/")):
            yield f"{model.option('base_url')} usually ends in /v1, as in {model.base_url.rstrip('/')}/v1"
        elif status in (404, 405):
            url = f"{model.base_url.rstrip('/')}/models"
            yield f"{model.option('model')} is {model.model}; {url} lists what this server has"

    def _clean(self, text: str) -> str:
        """The text as one line without control characters, and without the key, which some servers repeat."""
        text = without_key(text, self._key)
        return one_line(text, MAX_DETAIL_CHARACTERS)


def _parsed(body: bytes, headers: Mapping[str, str]) -> dict[str, Any]:
    streamed = headers.get("content-type", "").lower().startswith("text/event-stream")
    if streamed or body.lstrip().startswith((b"data:", b"event:", b"id:", b"retry:", b":")):
        detail = "the server streams what was not asked for as a stream"
        raise Problem("streamed answer", detail, retry=False, tokens=(None, None))
    try:
        return parse_object("the body", body)
    except MindError as error:
        begins = body[:SHOWN_BYTES].decode("utf-8", "replace")
        shown = f"; it begins with {begins}" if begins.strip() else ""
        raise Problem("malformed answer", f"{error}{shown}") from None


async def _limit_size(response: Any) -> None:
    """A hook of the client, which comes before the body is read: reading raises Problem once it is too long.

    Without a limit a server could fill the memory until the time-out.
    """
    read = response.aiter_bytes

    async def limited(chunk_size: int | None = None) -> AsyncIterator[bytes]:
        size = 0
        async for part in read(chunk_size):
            size += len(part)
            if size > MAX_REPLY_BYTES:
                detail = f"the body is longer than {MAX_REPLY_BYTES:,} bytes, of which the rest was not read"
                raise Problem("reply too long", detail, retry=False, tokens=(None, None))
            yield part

    response.aiter_bytes = limited


def _innermost(error: BaseException) -> BaseException:
    """The original error: "Connection refused", if the client only says that it could not connect."""
    while (cause := error.__cause__ or error.__context__ or _first(error)) is not None:
        error = cause
    return error


def _first(error: BaseException) -> BaseException | None:
    """The first error of several addresses of a host, such as localhost."""
    return error.exceptions[0] if isinstance(error, BaseExceptionGroup) else None


def retry_after(headers: Mapping[str, str]) -> float | None:
    """The seconds that a server asks the client to wait; None without a sensible number or date.

    The header Retry-After-Ms has milliseconds, Retry-After has seconds or a date, which counts from the date of the
    reply: the clock here may differ from the server's.
    """
    with contextlib.suppress(ValueError):
        return _seconds(float(headers.get("retry-after-ms", "")) / 1000)
    header = headers.get("retry-after", "")
    with contextlib.suppress(ValueError):
        return _seconds(float(header))
    with contextlib.suppress(ValueError, TypeError, OverflowError):
        until = email.utils.parsedate_to_datetime(header)
        return _seconds((until - (_date(headers.get("date", "")) or datetime.now(UTC))).total_seconds())
    return None


def _date(header: str) -> datetime | None:
    with contextlib.suppress(ValueError, TypeError):
        return email.utils.parsedate_to_datetime(header)
    return None


def _seconds(value: float) -> float | None:
    return max(value, 0.0) if value == value else None
