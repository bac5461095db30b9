"""Applies each rule to a single response: it becomes a candidate, or gets a reason to be dropped."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from mind.answer_line import rationale_of
from mind.curation.adherence import adheres, script_shares
from mind.curation.config import FilterConfig
from mind.curation.leaks import leaks_answer
from mind.curation.result import OUTDATED, RationaleOutcome
from mind.grading.answers import is_correct
from mind.grading.plain_text import plain_text
from mind.provenance import without_folders
from mind.records import Key, Question, Response, Verdict, WrongRationale
from mind.similarity import distinct, ngram_sets, similarities
from mind.teacher.completion import is_finished
from mind.teacher.recipes import Made, MadeFrom

_WORD = re.compile(r"\w")


@dataclass(frozen=True, slots=True)
class Candidate:
    """The parts of a response that the filter needs; `text` is empty if `outcome` already has a reason."""

    outcome: RationaleOutcome
    text: str
    source: str
    wrong: WrongRationale | None = None
    """The wrong rationale, if the response may be kept as one."""

    @property
    def key(self) -> Key:
        return self.outcome.key


def candidate_of(
    response: Response, verdict: Verdict, question: Question, config: FilterConfig, made: Made | None = None
) -> Candidate:
    """`made` says how the response was made from an earlier one; None if it answers the question itself."""
    text = rationale_of(response.text, lambda stated: is_correct(stated, question))
    source = without_folders(response.model)
    reason = adherent = None
    if config.source and source not in config.source:
        reason = "of another source"
    elif made == "outdated":
        reason = OUTDATED
    elif verdict.verdict == "wrong":
        reason = "wrong"
    elif not is_finished(response):
        reason = "truncated"
    elif verdict.verdict == "unparsed":
        reason = "unparsed"
    elif made == "corrupted":
        reason = "not corrupted"
    elif not _WORD.search(text):
        reason = "empty"
    elif len(text) > config.max_characters:
        reason = "too long"
    elif config.drop_leaks and leaks_answer(text, question):
        reason = "leaks the answer"
    elif not _in_its_scripts(text, config):
        reason = "in another script"
    else:
        adherent = adheres(response.key.perspective, text)
        if config.require_adherence and adherent is False:
            reason = "not in its perspective"
    right = verdict.verdict == "right"
    outcome = RationaleOutcome(response.key, reason, right, adherent, len(text), source, response.completion_tokens)
    wrong = _wrong_rationale(response, verdict, question, config) if reason == "wrong" else None
    return Candidate(outcome, text if reason is None else "", source, wrong)


def _wrong_rationale(
    response: Response, verdict: Verdict, question: Question, config: FilterConfig
) -> WrongRationale | None:
    """The wrong rationale in a response with a wrong answer, if the same rules keep it."""
    if config.keep_wrong == 0 or verdict.extracted is None or not is_finished(response):
        return None
    extracted = plain_text(verdict.extracted)
    text = rationale_of(response.text, lambda stated: plain_text(stated) == extracted)
    if not _WORD.search(text) or len(text) > config.max_characters:
        return None
    if (config.drop_leaks and leaks_answer(text, question)) or not _in_its_scripts(text, config):
        return None
    return WrongRationale(response.key.perspective, text, verdict.extracted, without_folders(response.model))


def _in_its_scripts(text: str, config: FilterConfig) -> bool:
    shares = script_shares(text) if config.scripts else {}
    return all(low <= shares.get(script, 0.0) <= high for script, (low, high) in config.scripts.items())


def choose_wrong(
    rationales: Sequence[Candidate], made: Mapping[Key, MadeFrom], config: FilterConfig
) -> tuple[WrongRationale, ...]:
    """The wrong rationales to keep of a question: those with a twin first, then the first of each perspective, then the
    second ones, and so on; no duplicates, and at most `keep_wrong`. A corrupted one is kept only with its twin."""
    twins = _twins(rationales, made)
    corrupted = {key for key, how in made.items() if how.made == "corrupted"}
    wrongs = [
        (one.key.sample, replace(one.wrong, right=twins.get(one.key)))
        for one in rationales
        if one.wrong is not None and (one.key not in corrupted or one.key in twins)
    ]
    candidates = [wrong for _, wrong in sorted(wrongs, key=lambda item: (item[1].right is None, item[0]))]
    similarity = similarities(ngram_sets([wrong.text for wrong in candidates], config.ngram))
    unlike = set(distinct(similarity, config.duplicate_threshold)[: config.keep_wrong])
    return tuple(wrong for index, wrong in enumerate(candidates) if index in unlike)


def _twins(rationales: Sequence[Candidate], made: Mapping[Key, MadeFrom]) -> dict[Key, str]:
    """Key of a wrong rationale -> the right one that it was made from, or the first that was made from it."""
    by_key = {one.key: one for one in rationales}
    twins: dict[Key, str] = {}
    for one in rationales:
        how = made.get(one.key)
        origin = None if how is None or how.origin is None else by_key.get(how.origin)
        if how is None or origin is None:
            continue
        if how.made == "corrupted" and one.wrong is not None and origin.text not in ("", one.wrong.text):
            twins[one.key] = origin.text
        elif how.made == "rectified" and one.text and origin.wrong is not None:
            twins.setdefault(origin.key, one.text)
    return twins
