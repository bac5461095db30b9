"""`mind data filter`: turns a judged folder into training records, with a report, a card and a list of what was
dropped."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from mind.curation.card import all_tokens, build_card, write_card
from mind.curation.config import FilterOptions
from mind.curation.filter import filter_responses, load_pass_rates
from mind.curation.knowledge import with_knowledge
from mind.curation.outputs import new_data_set
from mind.curation.pool import Pool, load_pool
from mind.curation.report import SHOWN_PER_REASON, ReportInput, write_dataset_report
from mind.curation.result import FilterResult
from mind.data.overlap import leaks as leaks_between
from mind.data.questions import load_questions, save_questions
from mind.errors import MindError, require
from mind.files import check_apart, write_json_rows
from mind.progress import tracked
from mind.records import Key
from mind.typed_json import row_of

BESIDE = (".report.html", ".card.json", ".card.md", ".dropped.jsonl")
"""The endings of the files beside the records."""


def filter_dataset(options: FilterOptions) -> FilterResult:
    """Writes the files that FilterOptions.output describes.

    Raises MindError for faulty input and, after writing the report that shows why, if no question is left.
    """
    folders = [options.folder, *options.also]
    inputs = [file for folder in folders for file in Path(folder).glob("*")]
    inputs += [Path(options.student_grades)] if options.student_grades else []
    inputs += map(Path, options.evaluation)
    output = new_data_set(options.output, BESIDE, overwrite=options.overwrite, inputs=inputs)
    evaluation = {file: load_questions(file) for file in options.evaluation}
    pool = load_pool(options.folder, options.also)
    check_apart(output, [data.config.questions.path for data in pool.folders])
    _check_kept(options, pool)
    rates = None if options.student_grades is None else load_pass_rates(options.student_grades)
    questions = with_knowledge(pool.questions, [response for data in pool.folders for response in data.others])
    result = filter_responses(
        questions,
        tracked(pool.responses, "candidates", "answer"),
        pool.verdicts,
        options.filter,
        pass_rates=rates,
        made=pool.made,
    )
    leaks = {file: leaks_between(result.questions, some) for file, some in evaluation.items()} if evaluation else None
    base = output.with_suffix("")
    summary = result.as_dict()
    card = build_card(
        base.name,
        pool.folders,
        options.filter,
        summary,
        license=options.license,
        source_licenses=options.source_licenses,
        leaks=leaks,
    )
    write_card(base, card)
    write_json_rows((_dropped_row(key, reason, pool) for key, reason in result.dropped), f"{base}.dropped.jsonl")
    page = ReportInput(
        title=base.name,
        summary=summary,
        kept_lengths=result.kept_characters,
        dropped_lengths=result.dropped_characters,
        pass_rates=list(result.pass_rates.values()),
        tokens=all_tokens(card),
        cost=card["cost"],
        kept=result.questions,
        dropped=_examples(result, pool),
    )
    report = write_dataset_report(page, f"{base}.report.html")
    if not result.questions:
        output.unlink(missing_ok=True)  # an earlier file is not the data set that the files beside it now describe
        raise MindError(
            f"no question is left to train on, which takes {options.filter.minimum} rationales: "
            f"{result.described_losses}; {report} shows examples; --overwrite replaces it when you try again"
        )
    save_questions(result.questions, output)
    return result


def _check_kept(options: FilterOptions, pool: Pool) -> None:
    """Raises MindError if a folder has twins of right and wrong rationales, and no wrong ones would be kept."""
    for name, data in zip(options.also, pool.folders[1:], strict=True):
        require(
            data.config.recipe != "dual" or options.filter.keep_wrong > 0,
            f"--also {name} has twins of right and wrong rationales: say how many wrong ones to keep by --keep-wrong",
        )


def _dropped_row(key: Key, reason: str, pool: Pool) -> dict:
    """The key of a dropped rationale, what the judge said of it, why it was dropped and, if there are several folders,
    its folder."""
    folder, own = pool.places[key]
    row = row_of(dataclasses.replace(pool.verdicts[key], key=own))
    row["judge_reason"] = row.pop("reason")
    return row | {"dropped": reason} | ({"folder": folder} if len(pool.folders) > 1 else {})


def _examples(result: FilterResult, pool: Pool) -> dict[str, list]:
    """Reason -> some of the (question, response, verdict) that were dropped for it."""
    questions = {question.id: question for question in pool.questions}
    responses = {response.key: response for response in pool.responses}
    return {
        reason: [(questions[key.question], responses[key], pool.verdicts[key]) for key in keys]
        for reason, keys in result.examples(SHOWN_PER_REASON).items()
    }
