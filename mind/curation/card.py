"""The data card of a filtered data set: where it comes from, what made it and what was left out, for people and tools.

A card is published. So it takes named fields only, and never a whole configuration, which could name a credential.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

import mind_kernels
from mind.files import replacing
from mind.records import Response
from mind.teacher.requests import now, text_digest
from mind.teacher.spending import cost_of

NOT_GIVEN = "not given"
NAME_CHARACTERS = 200
TEXT_CHARACTERS = 2_000
"""A longer name or text is cut in the Markdown; the JSON holds it whole."""
SOURCE_FIELDS = ("path", "subset", "split", "limit")
SAMPLING_FIELDS = ("engine", "model", "temperature", "top_p", "max_tokens", "seed")
"""Of the teacher in generate.json. Its extra_body and engine_options may hold anything, and stay out."""
LIMITS = (
    "The rationales were written by a language model. A right final answer does not make every step right.",
    "A verdict compares final answers only; rules and models that judge make mistakes.",
    "Facts, bias and personal data in the questions and rationales were not checked.",
)
ANSWER_SHOWN = "The teacher was shown the gold answer, so pass rates say nothing about difficulty."
HUB_LICENCES = frozenset((
    "apache-2.0", "mit", "cc0-1.0", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nc-2.0",
    "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0", "cc-by-nd-4.0", "cc-by-nc-nd-4.0", "pddl",
    "odc-by", "odbl", "cdla-permissive-1.0", "cdla-permissive-2.0", "cdla-sharing-1.0", "gpl-3.0", "lgpl-3.0",
    "agpl-3.0", "bsd-2-clause", "bsd-3-clause", "mpl-2.0", "openrail", "unlicense", "unknown",
))  # fmt: skip
"""Identifiers that the Hub knows; it takes any other licence as "other" with details."""
SIZES = {1_000: "n<1K", 10_000: "1K<n<10K", 100_000: "10K<n<100K", 1_000_000: "100K<n<1M", 10_000_000: "1M<n<10M"}

# Invisible, or able to reorder the text around them: shown by name. Surrogates have no place in UTF-8.
_UNREADABLE = {
    code: "\ufffd" for code in (*range(0x20), *range(0x7F, 0xA0), *range(0xD800, 0xE000)) if chr(code) not in "\t\n"
}
_UNREADABLE |= {
    code: f"[U+{code:04X}]" for code in (0x61C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
}


def readable(text: str, limit: int) -> str:
    """The first `limit` characters, with control characters as U+FFFD and marks of writing direction as their code."""
    return text[:limit].replace("\r\n", "\n").translate(_UNREADABLE)


def source_entry(source: Mapping[str, Any], questions_file: str | os.PathLike[str], number: int) -> dict[str, Any]:
    """What the card says of a source: its SOURCE_FIELDS (of mind.data.sources.SourceConfig), and the file that holds
    its `number` questions as they were read."""
    entry = {name: source.get(name) for name in SOURCE_FIELDS}
    with open(questions_file, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return entry | {"path": _without_folders(source["path"]), "questions": number, "sha256": digest}


def build_card(
    *,
    name: str,
    sources: Sequence[Mapping[str, Any]],
    prompts: Mapping[str, str],
    generate: Mapping[str, Any],
    responses: Iterable[Response],
    verdicts: Mapping[str, Mapping[str, int]],
    filter_summary: Mapping[str, Any],
    filter_config: Mapping[str, Any],
    price: tuple[float, float] | None = None,
    currency: str = "USD",
    licence: str | None = None,
    source_licences: str | None = None,
    limits: Sequence[str] = (),
) -> dict[str, Any]:
    """The card as JSON.

    `sources` are `source_entry`s, `prompts` perspective -> prompt, `generate` the content of generate.json (of its
    teacher the SAMPLING_FIELDS are taken), `responses` all of the teacher's (read once), `verdicts` judge -> verdict ->
    count, `filter_summary` counts {"read", "kept", "dropped": {reason: n}, "questions": {fate: n}, "perspectives":
    {name: {what: n}}}, and `price` that of a million prompt tokens and of a million answer tokens. Licences and further
    `limits` are the user's own words.
    """
    models, tokens, dates = _read_once(responses)
    teacher, shown = generate["teacher"], bool(generate.get("show_answer"))
    sampling = {field: teacher.get(field) for field in SAMPLING_FIELDS}
    sampling |= {"model": _without_folders(teacher["model"]), "samples": generate.get("samples"), "show_answer": shown}
    if teacher.get("engine") == "openai":
        sampling["endpoint"] = urlsplit(teacher["base_url"]).hostname  # a path or a query may hold a key
    return {
        "name": name,
        "created": now(),
        "tool": f"mind-kernels {mind_kernels.__version__}",
        "licence": licence or NOT_GIVEN,
        "source_licences": source_licences or NOT_GIVEN,
        "sources": [dict(source) for source in sources],
        "teacher": {"models": models, "sampling": sampling} | dates,
        "prompts": {perspective: text_digest(prompt) for perspective, prompt in prompts.items()},
        "judges": {judge: dict(counts) for judge, counts in verdicts.items()},
        "counts": {key: filter_summary[key] for key in ("read", "kept", "dropped", "questions", "perspectives")},
        "filter": dict(filter_config),
        "tokens": tokens,
        "cost": None if price is None else _cost(tokens, price, currency),
        "limits": [*LIMITS, *[ANSWER_SHOWN] * shown, *limits],
    }


def write_card(path_base: str | os.PathLike[str], card: Mapping[str, Any]) -> tuple[Path, Path]:
    """Writes <path_base>.card.json and <path_base>.card.md, each whole or not at all, and returns their paths.

    The Markdown is a dataset card for the Hub, where it goes by the name README.md.
    """
    paths = Path(f"{os.fspath(path_base)}.card.json"), Path(f"{os.fspath(path_base)}.card.md")
    for path, text in zip(paths, (json.dumps(card, indent=2) + "\n", card_markdown(card)), strict=True):
        with replacing(path) as file:
            file.write(text)
    return paths


def card_markdown(card: Mapping[str, Any]) -> str:
    """The card in Markdown with YAML front matter; every text that is not ours stands in a code span."""
    front = yaml.safe_dump(_front_matter(card), sort_keys=False)
    return f"---\n{front}---\n\n" + "\n".join(_lines(card)) + "\n"


def _read_once(responses: Iterable[Response]) -> tuple[dict[str, int], dict[str, int], dict[str, str | None]]:
    """Models with their numbers of responses, tokens, and the dates of the first and the last response."""
    models: Counter[str] = Counter()
    tokens = {"prompt": 0, "completion": 0, "uncounted_responses": 0}
    first = last = None
    for response in responses:
        models[_without_folders(response.model)] += 1
        if response.prompt_tokens is None or response.completion_tokens is None:
            tokens["uncounted_responses"] += 1
        else:
            tokens["prompt"] += response.prompt_tokens
            tokens["completion"] += response.completion_tokens
        first = min(first or response.created, response.created)
        last = max(last or response.created, response.created)
    return dict(models.most_common()), tokens, {"first_response": first, "last_response": last}


def _without_folders(name: str) -> str:
    """The last part of an absolute path, whose folders may name people; other names as they are."""
    return Path(name).name if Path(name).is_absolute() else name


def _cost(tokens: Mapping[str, int], price: tuple[float, float], currency: str) -> dict[str, Any]:
    amount = cost_of(tokens["prompt"], tokens["completion"], price)
    return {
        "amount": round(amount, 6),
        "currency": currency,
        "per_million_prompt_tokens": price[0],
        "per_million_completion_tokens": price[1],
    }


def _front_matter(card: Mapping[str, Any]) -> dict[str, Any]:
    """What the Hub reads. The language of the texts is unknown, and so left out."""
    front: dict[str, Any] = {"pretty_name": _line(card["name"], NAME_CHARACTERS)}
    licence = card["licence"]
    if licence.lower() in HUB_LICENCES:
        front["license"] = licence.lower()
    elif licence != NOT_GIVEN:
        front |= {"license": "other", "license_details": _line(licence, TEXT_CHARACTERS)}
    front["tags"] = ["mind", "synthetic", "chain-of-thought", "distillation"]
    questions = card["counts"]["questions"].get("kept", 0)
    front["size_categories"] = [next((size for bound, size in SIZES.items() if questions < bound), "10M<n<100M")]
    return front


def _lines(card: Mapping[str, Any]) -> Iterator[str]:
    counts, teacher, tokens = card["counts"], card["teacher"], card["tokens"]
    yield from (f"# {_code(card['name'])}", "")
    yield f"Questions with rationales from several perspectives, written by {card['tool']} on {card['created']}."
    uncounted = tokens["uncounted_responses"]
    yield from _section(
        "Licence",
        [
            f"of this data set: {_code(card['licence'], TEXT_CHARACTERS)}",
            f"of the sources: {_code(card['source_licences'], TEXT_CHARACTERS)}",
        ],
    )
    yield from _section("Sources", [_fields(source) for source in card["sources"]])
    yield from _section(
        "Teacher",
        [
            *_items(teacher["models"], "responses"),
            f"sampling: {_fields(teacher['sampling'])}",
            f"responses from {_code(teacher['first_response'])} to {_code(teacher['last_response'])}",
            f"tokens: {tokens['prompt']:,} of prompts, {tokens['completion']:,} of answers"
            + (f", and those of {uncounted:,} responses that the server did not count" if uncounted else ""),
            f"cost: {_fields(card['cost'])}" if card["cost"] else "cost: no price was given",
        ],
    )
    yield from _section("Prompts, by their SHA-256", _items(card["prompts"]))
    yield from _section("Judges", _items(card["judges"]))
    yield from _section(
        "Rationales",
        [
            f"read: {counts['read']:,}",
            f"kept: {counts['kept']:,}",
            *(f"dropped, {item}" for item in _items(counts["dropped"])),
        ],
    )
    yield from _section("Questions", _items(counts["questions"]))
    yield from _section("Perspectives", _items(counts["perspectives"]))
    yield from _section("Filter", [_fields(card["filter"])])
    yield from _section(
        "Known limits",
        [limit if limit in (*LIMITS, ANSWER_SHOWN) else _code(limit, TEXT_CHARACTERS) for limit in card["limits"]],
    )


def _section(title: str, items: Sequence[str]) -> list[str]:
    return ["", f"## {title}", "", *(f"- {item}" for item in items or ["none"])]


def _items(values: Mapping[str, Any], unit: str = "") -> list[str]:
    """A line for each name: its number with the `unit`, its fields, or its value."""
    items = []
    for name, value in values.items():
        if isinstance(value, int):
            shown = f"{value:,} {unit}".rstrip()
        else:
            shown = _fields(value) if isinstance(value, Mapping) else _code(value)
        items.append(f"{_code(name)}: {shown}")
    return items


def _fields(values: Mapping[str, Any]) -> str:
    return ", ".join(_code(f"{name}: {value}") for name, value in values.items() if value is not None)


def _code(value: Any, limit: int = NAME_CHARACTERS) -> str:
    """A code span that holds `value` on one line, whatever it is made of."""
    text = _line(str(value), limit) or " "
    fence = "`" * (max((len(run) for run in re.findall("`+", text)), default=0) + 1)
    space = " " if text[0] == "`" or text[-1] == "`" else ""
    return f"{fence}{space}{text}{space}{fence}"


def _line(text: str, limit: int) -> str:
    line = " ".join(readable(text, limit).split())
    return line + " ..." if len(text) > limit else line
