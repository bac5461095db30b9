"""A server on loopback with OpenAI's chat completions that spoils the attempts that a test names."""

from __future__ import annotations

import hashlib
import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.request import Request, urlopen

STALL_SECONDS = 30
FAULTS = ("429 with Retry-After", "500", "closed connection", "stall", "malformed JSON", "empty choice", "half a body")


class LoopbackServer(ThreadingHTTPServer):
    daemon_threads = True
    # Of the five that are usual, a burst of requests would lose some: their connections are tried again after seconds.
    request_queue_size = 256

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away amid an answer is what many tests are about; its trace would land in another's."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class FaultProxy:
    """Answers by `backend`, save where `fault(body, attempt)`, with attempts from 1, names one of FAULTS.

    `fault` may also give a pair (status, body, headers) to answer with.
    """

    def __init__(
        self, backend: Callable[[bytes], bytes], fault: Callable[[dict[str, Any], int], Any] = lambda *_: None
    ) -> None:
        self.backend, self.fault = backend, fault
        self.attempts: Counter[str] = Counter()
        """Requests by the digest of their body."""
        self.answered: Counter[str] = Counter()
        """Those that were passed on, and so may have cost something."""
        self.faults: Counter[str] = Counter()
        self.keys: set[str | None] = set()
        self.headers: list[tuple[str, str]] = []
        """Of all requests."""
        self.at_once = self.most_at_once = 0
        self.lock, self.ending = threading.Lock(), threading.Event()
        self._server = LoopbackServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    def __enter__(self) -> FaultProxy:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ending.set()
        self._server.shutdown()
        self._server.server_close()

    def _handler(proxy) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                name = hashlib.sha256(body).hexdigest()
                with proxy.lock:
                    proxy.attempts[name] += 1
                    fault = proxy.fault(json.loads(body), proxy.attempts[name])
                    proxy.faults[fault if isinstance(fault, str) else "none" if fault is None else "given"] += 1
                    proxy.keys.add(self.headers["Authorization"])
                    proxy.headers += self.headers.items()
                    proxy.at_once += 1
                    proxy.most_at_once = max(proxy.most_at_once, proxy.at_once)
                try:
                    self._answer(body, name, fault)
                finally:
                    with proxy.lock:
                        proxy.at_once -= 1

            def _answer(self, body: bytes, name: str, fault: Any) -> None:
                if fault is None:
                    answer = proxy.backend(body)
                    with proxy.lock:
                        proxy.answered[name] += 1
                    self._send(200, answer)
                elif not isinstance(fault, str):
                    self._send(*fault)
                elif fault == "429 with Retry-After":
                    self._send(429, b'{"error": {"message": "slow down"}}', {"Retry-After": "1"})
                elif fault == "500":
                    self._send(500, b"<html>no JSON here</html>")
                elif fault == "malformed JSON":
                    self._send(200, b'{"choices": [{"message": {"content": "cut')
                elif fault == "empty choice":
                    self._send(200, chat_answer("", finish_reason="stop"))
                else:
                    if fault == "stall":
                        proxy.ending.wait(STALL_SECONDS)
                    elif fault == "half a body":
                        self._send(200, b'{"choices": [', length=1000)
                    self.close_connection = True

            def _send(
                self, status: int, body: bytes, headers: dict[str, str] | None = None, length: int | None = None
            ) -> None:
                self.send_response(status)
                for name, value in (
                    {"Content-Type": "application/json", "Content-Length": str(length or len(body))} | (headers or {})
                ).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        return Handler


def chat_answer(
    text: str, finish_reason: str = "stop", usage: tuple[int, int] | None = (10, 5), **message: Any
) -> bytes:
    """The body of a chat completion."""
    counts = None if usage is None else {"prompt_tokens": usage[0], "completion_tokens": usage[1]}
    return json.dumps(
        {
            "model": "served-model",
            "usage": counts,
            "choices": [
                {
                    "index": 0,
                    "finish_reason": finish_reason,
                    "message": {"role": "assistant", "content": text, **message},
                }
            ],
        }
    ).encode()


def forward_to(url: str) -> Callable[[bytes], bytes]:
    """A backend that asks the server at `url`."""

    def backend(body: bytes) -> bytes:
        request = Request(f"{url}/chat/completions", body, {"Content-Type": "application/json"})
        with urlopen(request, timeout=300) as answer:
            return answer.read()

    return backend


def http_date(seconds_from_now: float) -> str:
    """A date as Retry-After has it."""
    return formatdate(time.time() + seconds_from_now, usegmt=True)
