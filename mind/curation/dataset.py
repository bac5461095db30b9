"""`mind filter`: from a judged folder to the records to train on, with a report, a data card and what was dropped."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from mind.config import load_config
from mind.curation.card import build_card, source_entry, write_card
from mind.curation.filter import filter_responses, load_pass_rates
from mind.curation.options import FilterOptions
from mind.curation.report import SHOWN_OF_A_REASON, ReportInput, write_dataset_report
from mind.curation.result import FilterResult
from mind.data.questions import load_questions, save_questions
from mind.errors import MindError, require
from mind.files import new_file, parse_object, replacing
from mind.records import Key, Question, Response, Verdict
from mind.teacher.config import GenerateConfig
from mind.teacher.generate import CONFIG, PROMPTS, QUESTIONS, RESPONSES
from mind.teacher.journal import load_responses
from mind.teacher.judge import JUDGED, load_verdicts, verdict_counts


def filter_dataset(options: FilterOptions) -> FilterResult:
    """Writes what FilterOptions.output says.

    Raises MindError for faulty input and, once the report says why, where no question is left.
    """
    folder, output = Path(options.folder), new_file(options.output)
    questions = load_questions(folder / QUESTIONS)
    responses = list(load_responses(folder / RESPONSES))
    require((folder / JUDGED).is_file(), f"{folder / JUDGED}: no such file: run `mind judge {folder}` first")
    verdicts = load_verdicts(folder / JUDGED)
    rates = None if options.student_grades is None else load_pass_rates(options.student_grades)
    result = filter_responses(questions, responses, verdicts, options.filter, pass_rates=rates)
    base = output.with_suffix("")
    card = _card(options, base.name, questions, responses, verdicts, result)
    write_card(base, card)
    _write_dropped(base, result, verdicts)
    report = write_dataset_report(
        _report_input(base.name, card, result, questions, responses, verdicts), Path(f"{base}.report.html")
    )
    if not result.questions:
        raise MindError(f"no question has {options.filter.minimum} rationales left; {report} says why")
    save_questions(result.questions, output)
    return result


def _card(
    options: FilterOptions,
    name: str,
    questions: Sequence[Question],
    responses: Sequence[Response],
    verdicts: Mapping[Key, Verdict],
    result: FilterResult,
) -> dict:
    folder = Path(options.folder)
    config = load_config(folder / CONFIG, GenerateConfig)
    return build_card(
        name=name,
        sources=[source_entry(dataclasses.asdict(config.questions), folder / QUESTIONS, len(questions))],
        prompts=parse_object(str(folder / PROMPTS), (folder / PROMPTS).read_bytes()),
        generate=dataclasses.asdict(config),
        responses=responses,
        verdicts=verdict_counts(verdicts.values()),
        filter_summary=result.as_dict(),
        filter_config=dataclasses.asdict(options.filter),
        price=config.prices.get(config.teacher.model),
        currency=config.currency,
        licence=options.license,
        source_licences=options.source_licenses,
    )


def _write_dropped(base: Path, result: FilterResult, verdicts: Mapping[Key, Verdict]) -> None:
    """A line for each dropped rationale: its key, the reason, and what the judge said."""
    with replacing(f"{base}.dropped.jsonl") as file:
        for key, reason in result.dropped:
            row = dataclasses.asdict(verdicts[key])
            row["judge_reason"] = row.pop("reason")
            file.write(json.dumps(row | {"dropped": reason}) + "\n")


def _report_input(
    title: str,
    card: Mapping,
    result: FilterResult,
    questions: Sequence[Question],
    responses: Sequence[Response],
    verdicts: Mapping[Key, Verdict],
) -> ReportInput:
    by_id = {question.id: question for question in questions}
    by_key = {response.key: response for response in responses}
    dropped = {
        reason: [(by_id[key[0]], by_key[key], verdicts[key]) for key in keys]
        for reason, keys in result.examples(SHOWN_OF_A_REASON).items()
    }
    return ReportInput(
        title=title,
        summary=result.as_dict(),
        kept_lengths=result.kept_characters,
        dropped_lengths=result.dropped_characters,
        length_unit="characters",
        pass_rates=list(result.pass_rates.values()),
        tokens=card["tokens"],
        cost=card["cost"],
        kept=result.questions,
        dropped=dropped,
    )
