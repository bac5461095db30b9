"""The data card: what it counts, what it must not tell, and that no text in it can break Markdown or YAML."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from markdown_it import MarkdownIt
from sample_records import make_response, make_verdict

import mind_kernels
from mind.curation.card import (
    ANSWER_SHOWN,
    KNOWLEDGE_UNJUDGED,
    LIMITS,
    all_tokens,
    build_card,
    card_markdown,
    write_card,
)
from mind.curation.filter import FilterConfig
from mind.data.overlap import Leaks
from mind.data.questions import save_questions
from mind.data.sources import SourceConfig
from mind.display import one_line, readable
from mind.errors import MindError
from mind.records import Key, Question, Response
from mind.teacher.config import GenerateConfig, ModelConfig
from mind.teacher.folder import DatasetFolder
from mind.teacher.journal import Journal
from mind.teacher.judged import JudgedData, load_judged
from mind.teacher.requests import Wasted
from mind.typed_json import row_of, save_json

HOSTILE = [
    "<script>alert(1)</script>", "</pre><img src=x onerror=alert(1)>", "[x](javascript:alert(1))", "![x](http://e.com)",
    "`code` ``two``", "`", "````", "\\`", "a | b", "---\nlicense: mit\n---", "\n\n# Heading\n- item", "{{7*7}}",
    "\x00\x1b[31m", "\u202eevil\u202c", "\ud800", "<!--", "&lt;b&gt;", "*bold* _it_ ~~no~~", ": {yaml: [1",
    "!!python/none x", "x" * 1_000_000, "`" * 10_000, " ", "",
]  # fmt: skip
TEACHER = ModelConfig(
    "big-1",
    base_url="https://api.example.com:8/v1/SECRET",
    api_key_env="SECRET_KEY",
    seed=123456,
    extra_body='{"token": "SECRET"}',
    engine_options='{"hf_token": "SECRET"}',
)
CONFIG = GenerateConfig("/home/ann/out", SourceConfig("q.jsonl"), TEACHER, samples=2, currency="EUR")
SUMMARY = {
    "read": 5, "kept": 2, "kept_as_wrong": 2, "twins": 1,
    "dropped": {"wrong": 2, "duplicate": 1}, "questions": {"kept": 1, "too few left": 1},
    "perspectives": {"planning": {"read": 5, "right": 3, "kept": 2}}, "lengths": ["never shown"],
    "teachers": {"big-1-0612": {"read": 5, "right": 3, "kept": 2, "characters": 40, "tokens": None}},
    "knowledge": 0,
}  # fmt: skip


def response(model: str = "big-1-0612", tokens: int | None = 100, created: str = "2026-11-21T19:00:00Z") -> Response:
    return make_response(model=model, prompt_tokens=tokens, completion_tokens=50, created=created)


def judged(**changes: Any) -> JudgedData:
    keys = [Key("q", "planning", sample) for sample in range(5)]
    values = {
        "questions": [Question("q", "?", "4")],
        "responses": [response()],
        "verdicts": {key: make_verdict(key, "right" if key.sample < 3 else "wrong") for key in keys},
        "config": CONFIG,
        "prompts": {"planning": "Plan."},
        "questions_digest": "ab",
    }
    return JudgedData(**values | changes)


def card(data: JudgedData | None = None, summary: dict[str, Any] = SUMMARY, **licenses: Any) -> dict[str, Any]:
    return build_card("mine", [data or judged()], FilterConfig(), summary, **licenses)


def parts(markdown: str) -> tuple[dict, str]:
    """The front matter, and the HTML that the rest becomes."""
    start, front, body = markdown.split("---\n", 2)
    assert start == ""
    markdown = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    return yaml.safe_load(front), markdown.render(body)


def test_the_cost_is_that_of_attempts_without_an_answer_too():
    priced = dataclasses.replace(CONFIG, prices={"big-1": (10_000.0, 100_000.0)})
    attempts = [Wasted(Key("q", "planning", 0), "empty answer", 40, 7, counted, "t") for counted in (True, True, False)]
    made = card(judged(config=priced, wasted=attempts))
    assert made["tokens"] == {"prompt": 100, "completion": 50, "uncounted_responses": 0}
    assert made["without_answer"] == {"attempts": 3, "prompt": 80, "completion": 14, "uncounted_attempts": 1}
    assert all_tokens(made) == {"prompt": 180, "completion": 64, "uncounted_responses": 1}
    assert made["cost"]["amount"] == pytest.approx((180 * 10_000 + 64 * 100_000) / 1e6)
    text = card_markdown(made)
    assert "attempts without a usable answer: `attempts: 3`, `prompt: 80`, `completion: 14`, `uncounted" in text
    assert "cost of the tokens that the server counted: `amount: 8.2`" in text
    whole = card(judged(config=priced))
    assert "without_answer" not in whole and "- cost: `amount: 6.0`" in card_markdown(whole)


def test_a_card_counts_what_was_made():
    dates = ["2026-11-21T19:00:00Z", "2026-11-20T08:00:00Z", "2026-11-22T00:00:00Z"]
    responses = [
        response(model, tokens, created)
        for model, tokens, created in zip(["m1", "/models/m2", "m1"], [1_000_000, None, 500_000], dates, strict=True)
    ]
    priced = dataclasses.replace(CONFIG, prices={"big-1": (2.0, 10_000.0)})
    made = card(judged(responses=responses, config=priced))
    assert made["teacher"] == {
        "models": {"m1": 2, "m2": 1},
        "sampling": {
            "engine": "openai",
            "model": "big-1",
            "temperature": 0.7,
            "top_p": None,
            "max_tokens": 1024,
            "seed": 123456,
            "samples": 2,
            "show_answer": False,
            "endpoint": "api.example.com",
        },
        "first_response": dates[1],
        "last_response": dates[2],
    }
    assert made["tokens"] == {"prompt": 1_500_000, "completion": 100, "uncounted_responses": 1}
    assert made["cost"] == {
        "amount": 4.0,
        "currency": "EUR",
        "per_million_prompt_tokens": 2.0,
        "per_million_completion_tokens": 10_000.0,
    }
    assert made["prompts"] == {"planning": hashlib.sha256(b"Plan.").hexdigest()}
    assert made["judges"] == {"rules": {"right": 3, "wrong": 2}}
    assert made["filter"] == dataclasses.asdict(FilterConfig())
    assert made["counts"] == {name: count for name, count in SUMMARY.items() if name != "lengths"}
    assert made["tool"] == f"mind-kernels {mind_kernels.__version__}"
    assert made["limits"] == list(LIMITS)
    created = datetime.strptime(made["created"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    assert abs((datetime.now(UTC) - created).total_seconds()) < 60


def test_teachers_of_one_published_name_add_up():
    counts = [{"read": 5, "right": 3, "kept": 2, "characters": 40, "tokens": 9.5},
              {"read": 7, "right": 4, "kept": 0, "characters": None, "tokens": None},
              {"read": 1, "right": 1, "kept": 1, "characters": 30, "tokens": 8}]  # fmt: skip
    two = dict(zip(("/home/ann/m", "/home/bob/m"), counts, strict=False))
    made = [
        card(summary=SUMMARY | {"teachers": given})["counts"]["teachers"] for given in (two, two | {"m": counts[2]})
    ]
    assert made[0] == {"m": {"read": 12, "right": 7, "kept": 2, "characters": 40, "tokens": 9.5}}
    assert made[1] == {"m": {"read": 13, "right": 8, "kept": 3, "characters": None, "tokens": None}}


def test_further_answers_are_told_line_by_line():
    prompts = {f"perspective-{n}": "Be so." * n for n in range(8)}
    config = dataclasses.replace(CONFIG, rewrite="/home/ann/SECRET")
    folders = [judged(), judged(prompts=prompts), judged(config=config, prompts={"rewrite": "Short."})]
    markdown = card_markdown(build_card("mine", folders, FilterConfig(), SUMMARY))
    for name, prompt in (prompts | {"rewrite": "Short."}).items():
        digest = hashlib.sha256(prompt.encode()).hexdigest()
        assert f"- prompt, by its SHA-256, `{name}`: `{digest}`\n" in markdown
    assert "## Further answers, folder 2\n\n- recipe: `rewrite`\n- sampling: `engine: openai`, " in markdown
    assert markdown.count("recipe") == 1 and "SECRET" not in markdown


def test_what_gives_evaluation_questions_away_is_counted_by_file():
    made = card(leaks={"/home/ann/SECRET/test.jsonl": Leaks(("a", "b"), ("t",)), "clean.jsonl": Leaks((), ())})
    assert made["leaks"] == {"test.jsonl": {"training": 2, "test": 1}, "clean.jsonl": {"training": 0, "test": 0}}
    told = "`test.jsonl`: 2 questions here share 13 words in a row with 1 there"
    assert told in card_markdown(made) and "SECRET" not in card_markdown(made)
    assert "leaks" not in card() and "Overlap" not in card_markdown(card())


def test_unjudged_rules_are_told_if_there_are_any():
    answered = judged(others=[response()])
    assert KNOWLEDGE_UNJUDGED not in card(answered)["limits"], "no question that is kept has any"
    assert card(summary=SUMMARY | {"knowledge": 1})["limits"] == [*LIMITS, KNOWLEDGE_UNJUDGED]


def test_what_is_not_known_is_said():
    made = card()
    assert (made["licence"], made["source_licences"], made["cost"]) == ("not given", "not given", None)
    markdown = card_markdown(made)
    assert "of this data set: `not given`" in markdown
    assert "cost: no price was given" in markdown
    assert "## Sources\n\n- none\n" in card_markdown(made | {"sources": []})
    assert set(parts(markdown)[0]) == {"pretty_name", "tags", "size_categories"}
    shown = card(judged(config=dataclasses.replace(CONFIG, show_answer=True)))
    assert ANSWER_SHOWN in card_markdown(shown)
    assert ANSWER_SHOWN not in markdown


def write_folder(path: Path, config: GenerateConfig) -> bytes:
    """A judged data set of one question; what its file of questions holds."""
    folder = DatasetFolder(path)
    save_questions([Question("q", "?", "4")], folder.questions)
    save_json(config, folder.config)
    folder.prompts.write_text('{"planning": "Plan."}')
    with Journal(folder.responses) as journal:
        journal.append([make_response()])
    folder.verdicts.write_text(json.dumps(row_of(make_verdict(make_response().key))))
    return folder.questions.read_bytes()


def test_no_credential_and_no_folder_of_a_person_is_told(tmp_path):
    source = SourceConfig("/home/ann/SECRET/gsm.jsonl", id_column="SECRET")
    questions = write_folder(tmp_path, dataclasses.replace(CONFIG, questions=source))
    named = FilterConfig(source=("/home/ann/SECRET/m1", "openai/m2", "../SECRET/m3", "~/SECRET/m4"))
    made = build_card("mine", [load_judged(tmp_path)], named, SUMMARY | {"x": "SECRET"})
    assert made["filter"] == dataclasses.asdict(FilterConfig(source=("m1", "openai/m2", "m3", "m4")))
    assert made["sources"] == [
        {
            "path": "gsm.jsonl",
            "subset": None,
            "split": "train",
            "limit": None,
            "questions": 1,
            "sha256": hashlib.sha256(questions).hexdigest(),
        }
    ]
    for text in (json.dumps(made), card_markdown(made)):
        assert "SECRET" not in text
        assert "home" not in text


@pytest.mark.parametrize("value", ["5", "null", "[]", "{}", "true"])
def test_a_prompt_that_is_no_text_is_told(tmp_path, value):
    write_folder(tmp_path, CONFIG)
    (tmp_path / "prompts.json").write_text(f'{{"planning": {value}}}')
    with pytest.raises(MindError, match=r"prompts.json: the prompt of planning is .*: expected a string"):
        load_judged(tmp_path)


def test_the_name_on_a_hub_is_told_whole():
    config = dataclasses.replace(CONFIG, questions=SourceConfig("openai/gsm8k", subset="main"))
    (source,) = card(judged(config=config))["sources"]
    assert (source["path"], source["subset"]) == ("openai/gsm8k", "main")


@pytest.mark.parametrize(
    ("license", "front"),
    [
        ("Apache-2.0", {"license": "apache-2.0"}),
        ("CC-BY-4.0", {"license": "cc-by-4.0"}),
        ("Ours:\n ask first", {"license": "other", "license_details": "Ours: ask first"}),
        (None, {}),
    ],
)
def test_the_hub_gets_a_license_that_it_knows(license, front):
    given, page = parts(card_markdown(card(license=license)))
    assert {name: value for name, value in given.items() if name.startswith("license")} == front
    assert f"<code>{' '.join((license or 'not given').split())}</code>" in page


@pytest.mark.parametrize(
    ("kept", "size"),
    [
        (0, "n<1K"),
        (999, "n<1K"),
        (1_000, "1K<n<10K"),
        (99_999, "10K<n<100K"),
        (10**6, "1M<n<10M"),
        (10**7, "10M<n<100M"),
    ],
)
def test_the_hub_gets_a_size(kept, size):
    summary = SUMMARY | {"questions": {"kept": kept}}
    assert parts(card_markdown(card(summary=summary)))[0]["size_categories"] == [size]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_no_text_breaks_the_card(tmp_path, text):
    """The page has the elements of a harmless card, and each text stands whole, or cut, in its code spans."""

    def filled(name: str) -> dict[str, Any]:
        made = card(license=name or None, source_licenses=name or None)
        made["teacher"] |= {"models": {name: 1}, "sampling": made["teacher"]["sampling"] | {"model": name}}
        made["counts"] = {
            "read": 1, "kept": 1, "kept_as_wrong": 1, "twins": 1,
            "dropped": {name: 1}, "questions": {name: 1}, "perspectives": {name: {name: 1}},
            "teachers": {name: {name: 1}}, "knowledge": 1,
        }  # fmt: skip
        return made | {
            "name": name, "sources": [{"path": name, "subset": name}], "prompts": {name: name},
            "judges": {name: {name: 1}}, "filter": {name: name}, "limits": [name],
            "also": [{"recipe": name, "sampling": {name: name}, "prompts": {name: name}}],
        }  # fmt: skip

    def tags(page: str) -> list[str]:
        return [piece.partition(">")[0] for piece in page.split("<")[1:]]

    json_path, markdown_path = write_card(tmp_path / "mine", filled(text))
    assert json.loads(json_path.read_text())["name"] == text
    markdown = markdown_path.read_text(encoding="utf-8")
    assert len(markdown) < 200_000
    front, page = parts(markdown)
    harmless = parts(card_markdown(filled("harmless")))
    assert tags(page) == tags(harmless[1])
    assert set(front) == set(harmless[0]) - (set() if text else {"license", "license_details"})
    line = " ".join(text.split())
    cut = readable(line[:200]) + (" ..." if len(line) > 200 else "")
    assert front["pretty_name"] == cut
    escaped = cut.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;")
    assert page.count(f"<code>{escaped or ' '}</code>") >= 8
    assert {c for c in markdown if not c.isprintable()} <= {"\n"}


def test_hostile_characters_are_made_readable():
    assert readable("a\r\nb\tc\rd\x00\u202e\u2066\ud800é🍎", 20) == "a\nb\tc\ufffdd\ufffd[U+202E][U+2066]\ufffdé🍎"
    assert readable("a\nb", 3) == "a\nb" and one_line(" a\n\tb ", 3) == "a b"
    assert readable("abc", 2) == one_line("ab c", 2) == "ab ..."
