"""A teacher on loopback that lies: it has one answer to each request, and tells many attempts something else."""

from __future__ import annotations

import hashlib
import json
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from typing import Any

from fault_proxy import LoopbackServer

KEY = "sk-chaos-4f1d0c2b9a8e7766"
USAGE = (11, 7)
"""Tokens of prompt and reply, as it tells them."""
TIMEOUT_S = 3.0
"""How long the command waits for an answer."""

ENDING = ("redirect", "unauthorized", "long wait")
"""Lies that end a job at once: it goes on when it is started again."""
REFUSED = ("429", "429 with Retry-After", "storm", "500", "503 in HTML", "HTML", "malformed", "half a body", "reset")
REFUSED += ("closed", "half a chunk", "drip without end", "broken gzip", "error in place of an answer", *ENDING)
"""Lies without an answer, for which no tokens are told."""
PAID = ("empty", "broken off", "null content", "no choice")
"""Lies without an answer whose tokens are told, and so are counted."""
ANSWERED = (
    "no usage",
    "wrong usage",
    "two choices",
    "slow drip",
    "wrong type",
    "odd finish",
    "body twice",
    "all twice",
)
"""An answer, with something odd."""
LIES = (*REFUSED, *PAID, *ANSWERED)
STORM = 6
"""Further requests that a storm refuses."""


class Teacher:
    """Listens while it is held. `lies` is the share of attempts that are answered with a lie."""

    def __init__(self, reply: Callable[[dict[str, Any]], str]) -> None:
        self.reply = reply
        self.lies = 0.0
        self._lock = threading.Lock()
        self._server = LoopbackServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        self.begin(0, 0.0)

    def begin(self, seed: int, lies: float) -> None:
        """Forgets what was asked; from now on it lies by the numbers of this seed."""
        with self._lock:
            self.lies, self._seed, self._storm = lies, seed, 0
            self.attempts: Counter[str] = Counter()
            self.answers: Counter[str] = Counter()
            """Usable answers that were sent in full, by request."""
            self.told: dict[str, list[str]] = {}
            """What was told to each request, attempt by attempt."""
            self.paid = 0
            """Tokens that were told of replies without an answer."""

    def __enter__(self) -> Teacher:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _choose(self, body: bytes) -> tuple[str, str | None]:
        """The request's name and the lie that it is told; of an attempt, whoever comes first, always the same."""
        name = hashlib.sha256(body).hexdigest()[:16]
        with self._lock:
            self.attempts[name] += 1
            draw = random.Random(f"{self._seed} {name} {self.attempts[name]}")
            lie = draw.choice(LIES) if draw.random() < self.lies else None
            if self._storm:
                self._storm, lie = self._storm - 1, "429"
            elif lie == "storm":
                self._storm = STORM
            self.told.setdefault(name, []).append(lie or "the truth")
        return name, lie

    def _handler(teacher) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                try:
                    asked = json.loads(body)
                except ValueError:  # of a client that was killed as it asked
                    self.close_connection = True
                    return
                name, lie = teacher._choose(body)
                text = teacher.reply(asked)
                if lie is None or lie in ANSWERED:
                    with teacher._lock:  # before it is sent: whoever reads it may be killed in that very moment
                        teacher.answers[name] += 1
                elif lie in PAID:
                    with teacher._lock:
                        teacher.paid += sum(USAGE)
                try:
                    _tell(self, lie, text)
                except OSError:
                    self.close_connection = True

            def log_message(self, *_: object) -> None:
                pass

        return Handler


def completion(text: str | None, finish: str = "stop", usage: Any = USAGE, choices: int = 1) -> bytes:
    counts = {"prompt_tokens": usage[0], "completion_tokens": usage[1]} if isinstance(usage, tuple) else usage
    message = {"role": "assistant", "content": text}
    one = {"finish_reason": finish, "message": message}
    return json.dumps(
        {"model": "served", "usage": counts, "choices": [{"index": n, **one} for n in range(choices)]}
    ).encode()


def _tell(handler: BaseHTTPRequestHandler, lie: str | None, text: str) -> None:
    def send(status: int, body: bytes, length: int | None = None, **headers: str) -> None:
        handler.send_response(status)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        for name, value in ({"Content-Type": "application/json"} | named).items():
            handler.send_header(name, value)
        if "Transfer-Encoding" not in named:
            handler.send_header("Content-Length", str(len(body) if length is None else length))
        handler.end_headers()
        handler.wfile.write(body)

    key = handler.headers["Authorization"]
    good, html = completion(text), b"<!DOCTYPE html><html><body><h1>502 Bad Gateway</h1></body></html>"
    simple: dict[str | None, Callable[[], None]] = {
        None: lambda: send(200, good),
        "429": lambda: send(429, b'{"error": {"message": "slow down"}}'),
        "storm": lambda: send(429, b'{"error": {"message": "slow down"}}', Retry_After="0"),
        "429 with Retry-After": lambda: send(429, b"{}", Retry_After="0.05"),
        "500": lambda: send(500, json.dumps({"error": {"message": f"{key} failed"}}).encode()),
        "503 in HTML": lambda: send(503, html, Content_Type="text/html"),
        "HTML": lambda: send(200, html, Content_Type="text/html"),
        "malformed": lambda: send(200, good[: len(good) // 2]),
        "error in place of an answer": lambda: send(200, b'{"error": {"message": "overloaded", "code": 503}}'),
        "redirect": lambda: send(307, b"", Location="http://127.0.0.1:9/v1/chat/completions"),
        "unauthorized": lambda: send(401, json.dumps({"error": {"message": f"bad key {key}"}}).encode()),
        "long wait": lambda: send(429, b"{}", Retry_After="86400"),
        "broken gzip": lambda: send(200, b"\x1f\x8b" + good, Content_Encoding="gzip"),
        "empty": lambda: send(200, completion("")),
        "broken off": lambda: send(200, completion(text[: len(text) // 2], "error")),
        "null content": lambda: send(200, completion(None)),
        "no choice": lambda: send(200, completion(text, choices=0)),
        "no usage": lambda: send(200, completion(text, usage=None)),
        "wrong usage": lambda: send(200, completion(text, usage={"prompt_tokens": -3, "completion_tokens": "many"})),
        "two choices": lambda: send(200, completion(text, choices=2)),
        "odd finish": lambda: send(200, completion(text, "FINISH_REASON_STOP")),
        "wrong type": lambda: send(200, good, Content_Type="text/plain"),
    }
    if lie in simple:
        simple[lie]()
        return
    handler.close_connection = not str(lie).endswith("twice")
    if lie == "body twice":
        send(200, good + good, length=len(good))
    elif lie == "all twice":
        head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(good)}\r\n\r\n"
        handler.wfile.write(2 * (head.encode() + good))
    elif lie == "half a body":
        send(200, good[: len(good) // 2], length=len(good))
    elif lie == "half a chunk":
        send(200, b"1000\r\n" + good[: len(good) // 2], Transfer_Encoding="chunked")
    elif lie == "reset":
        handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        handler.connection.close()
    elif lie in ("slow drip", "drip without end"):
        seconds = TIMEOUT_S / 5 if lie == "slow drip" else 1.5 * TIMEOUT_S
        send(200, b"", length=len(good))
        for place in range(0, len(good), 8):
            handler.wfile.write(good[place : place + 8])
            time.sleep(seconds * 8 / len(good))
    else:
        assert lie == "closed", lie
