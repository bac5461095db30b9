"""Handles the keys of endpoints: where a key is read, to whom it is sent, and how it stays out of everything
written."""

from __future__ import annotations

import contextlib
import html
import ipaddress
import json
import os
import re
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote, urlsplit

from mind.errors import MindError, require
from mind.teacher.config import ModelConfig

OPENAI_VARIABLE = "OPENAI_API_KEY"

_ESCAPES: tuple[Callable[[str], str], ...] = (
    lambda text: json.dumps(text)[1:-1],
    lambda text: repr(text)[1:-1],
    quote,
    lambda text: quote(text, safe=""),
    html.escape,
)


def endpoint_key(model: ModelConfig) -> str | None:
    """The key to send to `model.base_url`; None if none is sent.

    Without `api_key_env`, OpenAI's own endpoint gets the key in OPENAI_API_KEY, and no other endpoint gets a key. White
    space around a key, such as the line break at the end of a file, is removed. Raises a MindError, which does not show
    the key, for a variable that is not set, for a key that no HTTP header can hold, and if the key would go over plain
    HTTP to another machine.
    """
    openai = is_openai(model.base_url)
    if model.api_key_env is None and not openai:
        return None
    shown, option = key_variable(model), model.option("api_key_env")
    key = os.environ.get(model.api_key_env or OPENAI_VARIABLE, "").strip()
    need = "OpenAI needs a key" if openai else f"leave {option} out if no key is needed"
    require(bool(key), f"{model.base_url}: {shown} is not set or empty; {need}")
    for character in key:
        if not "!" <= character <= "~":
            what = "is not ASCII" if ord(character) > 0x7F else "is white space or a control character"
            raise MindError(
                f"{shown} holds U+{ord(character):04X}, which {what}: expected a key of printable ASCII; "
                "set the variable to the key alone"
            )
    url = urlsplit(model.base_url)
    if url.scheme == "http" and not _is_this_machine(url.hostname or ""):
        raise MindError(
            f"{model.option('base_url')} is {model.base_url}: the key of {shown} would be readable on the way; use "
            f"https, or a tunnel to a port of this machine, or leave {option} out if no key is needed"
        )
    return key


def key_variable(model: ModelConfig) -> str:
    """The environment variable of the key, in words. A name that is not in capitals may be the key itself, so it is not
    shown."""
    variable = model.api_key_env or OPENAI_VARIABLE
    named = f"the variable that {model.option('api_key_env')} names"
    return f"the environment variable {variable}" if variable.isupper() else named


def is_openai(base_url: str) -> bool:
    """Whether the endpoint is OpenAI's own."""
    url = urlsplit(base_url)
    return url.scheme == "https" and f".{url.hostname}".endswith(".api.openai.com")


def without_key(value: Any, key: str | None) -> Any:
    """The JSON value with "[key]" in place of the key in its texts, also if programs have escaped the key, even
    repeatedly."""
    if not key:
        return value
    once = {key, *(escape(key) for escape in _ESCAPES)}
    forms = once | {escape(form) for escape in _ESCAPES for form in once}
    return _replaced(value, re.compile("|".join(map(re.escape, sorted(forms, key=len, reverse=True)))))


@contextlib.contextmanager
def hidden_from(base_url: str) -> Iterator[None]:
    """Inside the block, variables OPENAI_* are not set unless `base_url` is OpenAI's.

    The client would send the organization, project and headers in them to any endpoint.
    """
    own = {} if is_openai(base_url) else {name: os.environ[name] for name in os.environ if name.startswith("OPENAI_")}
    for name in own:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(own)


def _is_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _replaced(value: Any, pattern: re.Pattern[str]) -> Any:
    if isinstance(value, str):
        return pattern.sub("[key]", value)
    if isinstance(value, dict):
        return {pattern.sub("[key]", name): _replaced(item, pattern) for name, item in value.items()}
    return [_replaced(item, pattern) for item in value] if isinstance(value, list) else value
