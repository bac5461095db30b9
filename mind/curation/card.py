"""Writes the data card of a filtered data set, for people and tools: its origin, what made it and what was left out.

A card is published. So it holds only named fields, never all of the teacher's configuration, which could name a
credential.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from mind.curation.config import FilterConfig
from mind.data.overlap import WORDS, Leaks
from mind.display import code_span, one_line
from mind.files import replacing
from mind.provenance import now, text_digest, without_folders
from mind.records import Response
from mind.teacher.config import GenerateConfig, ModelConfig
from mind.teacher.judge import verdict_counts
from mind.teacher.judged import JudgedData
from mind.teacher.spending import cost_of

NOT_GIVEN = "not given"
NAME_CHARACTERS = 200
TEXT_CHARACTERS = 2_000
"""Longest name or text in the Markdown, in characters; the JSON holds it whole."""
COUNTS = ("read", "kept", "kept_as_wrong", "twins", "dropped", "questions", "perspectives", "knowledge")
"""The entries of FilterResult.as_dict in a card."""
SAMPLING_FIELDS = ("engine", "model", "temperature", "top_p", "max_tokens", "seed")
"""The teacher's settings in a card. Its extra_body and engine_options may hold anything, and are left out."""
LIMITS = (
    "The rationales were written by a language model. A right final answer does not make every step right.",
    "A verdict compares final answers only; rules and models that judge make mistakes.",
    "Facts, bias and personal data in the questions and rationales were not checked.",
)
ANSWER_SHOWN = "The teacher was shown the gold answer, so pass rates say nothing about difficulty."
KNOWLEDGE_UNJUDGED = "Nothing judged the general rules beside the questions: they may be wrong, or of no use."
TWINS = (
    "Some wrong rationales were written to be wrong, and some right ones with the gold answer and a wrong rationale at "
    "hand, to learn from what tells them apart."
)
OUR_WORDS = frozenset((*LIMITS, ANSWER_SHOWN, KNOWLEDGE_UNJUDGED, TWINS))
"""Characters that need no escape."""
HUB_LICENSES = frozenset((
    "apache-2.0", "mit", "cc0-1.0", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nc-2.0",
    "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0", "cc-by-nd-4.0", "cc-by-nc-nd-4.0", "pddl",
    "odc-by", "odbl", "cdla-permissive-1.0", "cdla-permissive-2.0", "cdla-sharing-1.0", "gpl-3.0", "lgpl-3.0",
    "agpl-3.0", "bsd-2-clause", "bsd-3-clause", "mpl-2.0", "openrail", "unlicense", "unknown",
))  # fmt: skip
"""License identifiers that the Hub knows; it accepts any other license as "other" with details."""
SIZES = {1_000: "n<1K", 10_000: "1K<n<10K", 100_000: "10K<n<100K", 1_000_000: "100K<n<1M", 10_000_000: "1M<n<10M"}


def build_card(
    name: str,
    folders: Sequence[JudgedData],
    config: FilterConfig,
    summary: Mapping[str, Any],
    *,
    license: str | None = None,
    source_licenses: str | None = None,
    leaks: Mapping[str, Leaks] | None = None,
) -> dict[str, Any]:
    """The card, as JSON, of the data set `name`, which a filter with `config` made from `folders`.

    `summary` is FilterResult.as_dict of it. The licenses are in the user's own words. `leaks` maps each compared file
    to what it has in common.
    """
    import mind_kernels  # this loads PyTorch, though only the version is needed

    data = folders[0]
    models, tokens, dates = _count_responses(
        response for folder in folders for response in (*folder.responses, *folder.others)
    )
    verdicts = [verdict for folder in folders for verdict in folder.verdicts.values()]
    configs = [folder.config for folder in folders]
    return {
        "name": name,
        "created": now(),
        "tool": f"mind-kernels {mind_kernels.__version__}",
        "licence": license or NOT_GIVEN,  # the spelling of published cards
        "source_licences": source_licenses or NOT_GIVEN,
        "sources": [_source(folder) for folder in folders if folder is data or folder.config.recipe is None],
        "teacher": {"models": models, "sampling": _sampling(data.config)} | dates,
        "prompts": _prompt_digests(data),
        "also": [_further(folder) for folder in folders[1:]],
        "judges": {judge: dict(counts) for judge, counts in verdict_counts(verdicts).items()},
        "counts": {key: summary[key] for key in COUNTS} | {"teachers": _teachers(summary["teachers"])},
        "filter": dataclasses.asdict(config),
        "tokens": tokens,
        **_without_answer(folders),
        "cost": _cost(folders),
        **({} if leaks is None else {"leaks": {Path(file).name: found.counts() for file, found in leaks.items()}}),
        "limits": [
            *LIMITS,
            *[ANSWER_SHOWN] * any(one.show_answer for one in configs),
            *[KNOWLEDGE_UNJUDGED] * (summary["knowledge"] > 0),
            *[TWINS] * any(one.recipe == "dual" for one in configs),
        ],
    }


def _teachers(teachers: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The counts by the teachers' published names. Counts of teachers with the same name add up; medians cannot, and
    are left out if more than one of them has kept rationales."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for name, counts in teachers.items():
        groups.setdefault(without_folders(name), []).append(counts)
    published = {}
    for name, group in groups.items():
        kept = [counts for counts in group if counts["kept"]]
        published[name] = {field: sum(counts[field] for counts in group) for field in ("read", "right", "kept")}
        published[name] |= {field: kept[0][field] if len(kept) == 1 else None for field in ("characters", "tokens")}
    return published


def _sampling(config: GenerateConfig) -> dict[str, Any]:
    teacher = config.teacher
    sampling = {field: getattr(teacher, field) for field in SAMPLING_FIELDS}
    sampling |= {"model": without_folders(teacher.model), "samples": config.samples}
    return sampling | {"show_answer": config.show_answer} | _endpoint(teacher)


def _prompt_digests(data: JudgedData) -> dict[str, str]:
    return {name: text_digest(prompt) for name, prompt in data.prompts.items()}


def _further(data: JudgedData) -> dict[str, Any]:
    """Description of a further folder: the recipe that made its answers from those of the first, if any, and what was
    asked how."""
    return {"recipe": data.config.recipe, "sampling": _sampling(data.config), "prompts": _prompt_digests(data)}


def write_card(path_base: str | os.PathLike[str], card: Mapping[str, Any]) -> tuple[Path, Path]:
    """Writes <path_base>.card.json and <path_base>.card.md, each in one step, and returns their paths.

    The Markdown is a dataset card for the Hub, which expects it as README.md.
    """
    paths = Path(f"{os.fspath(path_base)}.card.json"), Path(f"{os.fspath(path_base)}.card.md")
    for path, text in zip(paths, (json.dumps(card, indent=2) + "\n", card_markdown(card)), strict=True):
        with replacing(path) as file:
            file.write(text)
    return paths


def card_markdown(card: Mapping[str, Any]) -> str:
    """The card in Markdown with YAML front matter; every text from outside is in a code span."""
    front = yaml.safe_dump(_front_matter(card), sort_keys=False)
    return f"---\n{front}---\n\n" + "\n".join(_lines(card)) + "\n"


def _source(data: JudgedData) -> dict[str, Any]:
    """The origin of the questions, their number, and the digest of the file that has them as they were read."""
    source = data.config.questions
    return {
        "path": without_folders(source.path),
        "subset": source.subset,
        "split": source.split,
        "limit": source.limit,
        "questions": len(data.questions),
        "sha256": data.questions_digest,
    }


def _endpoint(teacher: ModelConfig) -> dict[str, str | None]:
    """Only the host of an endpoint: a path or a query may hold a key."""
    return {"endpoint": urlsplit(teacher.base_url).hostname} if teacher.engine == "openai" else {}


def _count_responses(responses: Iterable[Response]) -> tuple[dict[str, int], dict[str, int], dict[str, str | None]]:
    """Models with their numbers of responses; tokens; and the dates of the first and the last response."""
    models: Counter[str] = Counter()
    tokens = {"prompt": 0, "completion": 0, "uncounted_responses": 0}
    first = last = None
    for response in responses:
        models[without_folders(response.model)] += 1
        if response.prompt_tokens is None or response.completion_tokens is None:
            tokens["uncounted_responses"] += 1
        else:
            tokens["prompt"] += response.prompt_tokens
            tokens["completion"] += response.completion_tokens
        first = min(first or response.created, response.created)
        last = max(last or response.created, response.created)
    return dict(models.most_common()), tokens, {"first_response": first, "last_response": last}


def _without_answer(folders: Sequence[JudgedData]) -> dict[str, Any]:
    """The attempts that gave no usable answer, with the tokens that the server told; empty if there are none."""
    attempts = [attempt for folder in folders for attempt in folder.wasted]
    counted = [attempt for attempt in attempts if attempt.counted]
    told = {
        "attempts": len(attempts),
        "prompt": sum(attempt.prompt_tokens for attempt in counted),
        "completion": sum(attempt.completion_tokens for attempt in counted),
        "uncounted_attempts": len(attempts) - len(counted),
    }
    return {"without_answer": told} if attempts else {}


def all_tokens(card: Mapping[str, Any]) -> dict[str, int]:
    """The tokens of a card's responses and of its attempts without an answer, together."""
    wasted = card.get("without_answer", {})
    names = {"prompt": "prompt", "completion": "completion", "uncounted_responses": "uncounted_attempts"}
    return {name: card["tokens"][name] + wasted.get(other, 0) for name, other in names.items()}


def _cost(folders: Sequence[JudgedData]) -> dict[str, Any] | None:
    """The cost of the tokens that the servers told, those of attempts without an answer included, each folder by its
    own prices; None if one has no price, or another currency."""
    amount, currencies, prices = 0.0, set(), set()
    for folder in folders:
        if folder.price is None:
            return None
        _, tokens, _ = _count_responses([*folder.responses, *folder.others])
        wasted = _without_answer([folder]).get("without_answer", {"prompt": 0, "completion": 0})
        prompt, completion = (tokens[kind] + wasted[kind] for kind in ("prompt", "completion"))
        amount += cost_of(prompt, completion, folder.price)
        currencies.add(folder.config.currency)
        prices.add(folder.price)
    if len(currencies) > 1:
        return None
    cost = {"amount": round(amount, 6), "currency": currencies.pop()}
    if len(prices) == 1:
        prompt, completion = prices.pop()
        cost |= {"per_million_prompt_tokens": prompt, "per_million_completion_tokens": completion}
    return cost


def _front_matter(card: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata that the Hub reads. The language of the texts is unknown, so it is left out."""
    front: dict[str, Any] = {"pretty_name": one_line(card["name"], NAME_CHARACTERS)}
    license = card["licence"]
    if license.lower() in HUB_LICENSES:
        front["license"] = license.lower()
    elif license != NOT_GIVEN:
        front |= {"license": "other", "license_details": one_line(license, TEXT_CHARACTERS)}
    front["tags"] = ["mind", "synthetic", "chain-of-thought", "distillation"]
    questions = card["counts"]["questions"].get("kept", 0)
    front["size_categories"] = [next((size for bound, size in SIZES.items() if questions < bound), "10M<n<100M")]
    return front


def _lines(card: Mapping[str, Any]) -> Iterator[str]:
    counts, teacher, tokens = card["counts"], card["teacher"], card["tokens"]
    yield from (f"# {code_span(card['name'])}", "")
    yield f"Questions with rationales from several perspectives, written by {card['tool']} on {card['created']}."
    uncounted, wasted = tokens["uncounted_responses"], card.get("without_answer", {})
    unknown = " of the tokens that the server counted" if all_tokens(card)["uncounted_responses"] else ""
    yield from _section(
        "Licence",
        [
            f"of this data set: {code_span(card['licence'], TEXT_CHARACTERS)}",
            f"of the sources: {code_span(card['source_licences'], TEXT_CHARACTERS)}",
        ],
    )
    yield from _section("Sources", [_fields(source) for source in card["sources"]])
    yield from _section(
        "Teacher",
        [
            *_items(teacher["models"], "responses"),
            f"sampling: {_fields(teacher['sampling'])}",
            f"responses from {code_span(teacher['first_response'])} to {code_span(teacher['last_response'])}",
            f"tokens: {tokens['prompt']:,} of prompts, {tokens['completion']:,} of answers"
            + (f", and those of {uncounted:,} responses that the server did not count" if uncounted else ""),
            *([f"attempts without a usable answer: {_fields(wasted)}"] if wasted else []),
            f"cost{unknown}: {_fields(card['cost'])}" if card["cost"] else "cost: no price was given",
        ],
    )
    yield from _section("Prompts, by their SHA-256", _items(card["prompts"]))
    for number, further in enumerate(card["also"], start=1):
        yield from _section(f"Further answers, folder {number}", _further_items(further))
    yield from _section("Judges", _items(card["judges"]))
    yield from _section(
        "Rationales",
        [
            f"read: {counts['read']:,}",
            f"kept: {counts['kept']:,}",
            *([f"kept as wrong: {counts['kept_as_wrong']:,}"] if counts["kept_as_wrong"] else []),
            *([f"of these with a right twin: {counts['twins']:,}"] if counts["twins"] else []),
            *(f"dropped, {item}" for item in _items(counts["dropped"])),
        ],
    )
    rules = {"with knowledge": counts["knowledge"]} if counts["knowledge"] else {}
    yield from _section("Questions", _items(counts["questions"] | rules))
    yield from _section("Perspectives", _items(counts["perspectives"]))
    yield from _section("Rationales by teacher", _items(counts["teachers"]))
    yield from _section("Filter", [_fields(card["filter"])])
    if "leaks" in card:
        given = f"questions here share {WORDS} words in a row with"
        items = [
            f"{code_span(file)}: {one['training']:,} {given} {one['test']:,} there"
            for file, one in card["leaks"].items()
        ]
        yield from _section("Overlap with evaluation files", items)
    yield from _section(
        "Known limits",
        [limit if limit in OUR_WORDS else code_span(limit, TEXT_CHARACTERS) for limit in card["limits"]],
    )


def _further_items(further: Mapping[str, Any]) -> list[str]:
    prompts = (f"prompt, by its SHA-256, {item}" for item in _items(further["prompts"]))
    recipe = [f"recipe: {code_span(further['recipe'])}"] if further["recipe"] is not None else []
    return [*recipe, f"sampling: {_fields(further['sampling'])}", *prompts]


def _section(title: str, items: Sequence[str]) -> list[str]:
    return ["", f"## {title}", "", *(f"- {item}" for item in items or ["none"])]


def _items(values: Mapping[str, Any], unit: str = "") -> list[str]:
    """One line per name: its number with the `unit`, its fields, or its value."""
    items = []
    for name, value in values.items():
        if isinstance(value, int):
            shown = f"{value:,} {unit}".rstrip()
        else:
            shown = _fields(value) if isinstance(value, Mapping) else code_span(value)
        items.append(f"{code_span(name)}: {shown}")
    return items


def _fields(values: Mapping[str, Any]) -> str:
    return ", ".join(code_span(f"{name}: {value}") for name, value in values.items() if value is not None)
