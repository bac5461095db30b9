"""`mind data filter`: from a judged folder to the records to train on, with a report, a card and what was dropped."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mind.curation.card import build_card, write_card
from mind.curation.filter import FilterOptions, filter_responses, load_pass_rates
from mind.curation.judged import JudgedData, load_judged
from mind.curation.knowledge import with_knowledge
from mind.curation.outputs import new_data_set
from mind.curation.report import SHOWN_PER_REASON, ReportInput, write_dataset_report
from mind.curation.result import FilterResult
from mind.data.questions import save_questions
from mind.errors import MindError
from mind.files import check_apart, write_json_rows
from mind.records import Key, Verdict
from mind.typed_json import row_of

BESIDE = (".report.html", ".card.json", ".card.md", ".dropped.jsonl")
"""The endings of the files beside the records."""


def filter_dataset(options: FilterOptions) -> FilterResult:
    """Writes what FilterOptions.output says.

    Raises MindError for faulty input and, once the report says why, if no question is left.
    """
    inputs = [*Path(options.folder).glob("*"), *([options.student_grades] if options.student_grades else [])]
    output = new_data_set(options.output, BESIDE, overwrite=options.overwrite, inputs=inputs)
    data = load_judged(Path(options.folder))
    check_apart(output, [data.config.questions.path])
    rates = None if options.student_grades is None else load_pass_rates(options.student_grades)
    questions = with_knowledge(data.questions, data.others)
    result = filter_responses(questions, data.responses, data.verdicts, options.filter, pass_rates=rates)
    base = output.with_suffix("")
    summary = result.as_dict()
    card = build_card(
        base.name,
        data,
        options.filter,
        summary,
        license=options.license,
        source_licenses=options.source_licenses,
    )
    write_card(base, card)
    write_json_rows(
        (_dropped_row(key, reason, data.verdicts) for key, reason in result.dropped), f"{base}.dropped.jsonl"
    )
    page = ReportInput(
        title=base.name,
        summary=summary,
        kept_lengths=result.kept_characters,
        dropped_lengths=result.dropped_characters,
        pass_rates=list(result.pass_rates.values()),
        tokens=card["tokens"],
        cost=card["cost"],
        kept=result.questions,
        dropped=_examples(result, data),
    )
    report = write_dataset_report(page, f"{base}.report.html")
    if not result.questions:
        output.unlink(missing_ok=True)  # a former one is not the set that the files beside it describe
        raise MindError(
            f"no question has {options.filter.minimum} rationales left; {report} says why; "
            "--overwrite replaces it when you try again"
        )
    save_questions(result.questions, output)
    return result


def _dropped_row(key: Key, reason: str, verdicts: Mapping[Key, Verdict]) -> dict:
    """The key of a dropped rationale, what the judge said of it, and why it was dropped."""
    row = row_of(verdicts[key])
    row["judge_reason"] = row.pop("reason")
    return row | {"dropped": reason}


def _examples(result: FilterResult, data: JudgedData) -> dict[str, list]:
    """Reason -> (question, response, verdict) of some that were dropped for it."""
    questions = {question.id: question for question in data.questions}
    responses = {response.key: response for response in data.responses}
    return {
        reason: [(questions[key.question], responses[key], data.verdicts[key]) for key in keys]
        for reason, keys in result.examples(SHOWN_PER_REASON).items()
    }
