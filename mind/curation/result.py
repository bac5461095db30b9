"""Records what a filter read, kept and dropped, and why: one outcome per rationale, from which every count follows."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from operator import itemgetter
from typing import Any

from mind.display import number_of
from mind.perspectives import PAPER_PERSPECTIVES
from mind.records import Key, Question
from mind.summary import Summary, counted

KEPT = "kept"
NO_RESPONSE, TOO_FEW, EASY = "no response", "too few left", "easy question"
OUTSIDE = "pass rate outside"
OUTDATED = "of a changed answer"
"""The reason for an answer whose origin is gone or has changed."""
FATES = (KEPT, NO_RESPONSE, TOO_FEW, OUTSIDE, EASY)
"""The possible fates of a question."""
REASONS = (
    "of another source",
    OUTDATED,
    "wrong",
    "truncated",
    "unparsed",
    "not corrupted",
    "empty",
    "too long",
    "leaks the answer",
    "in another script",
    "not in its perspective",
    "duplicate",
    "not selected",
    TOO_FEW,
    OUTSIDE,
    EASY,
)
"""The reasons to drop a rationale; if several apply, the first one counts."""

_EXAMPLES = 3
"""Number of keys per reason in the summary."""
_HISTOGRAM_BINS = 10


@dataclass(frozen=True, slots=True)
class RationaleOutcome:
    """What became of one response."""

    key: Key
    reason: str | None
    """One of REASONS; None for a rationale that was kept."""
    right: bool
    adherent: bool | None
    """Whether it has the marks of its perspective; None if that was not checked: the perspective has no check, or an
    earlier reason had dropped the rationale."""
    characters: int
    """Length of the rationale, without its answer line."""
    source: str
    """The name that the server gave its teacher."""
    tokens: int | None
    """Tokens of the whole answer, thoughts included; None if the server did not count them."""


@dataclass(frozen=True)
class PerspectiveCounts:
    """Counts of the rationales of one perspective."""

    read: int
    right: int
    kept: int
    checked: int
    """Rationales checked for adherence; `adherent` is the number of them that passed."""
    adherent: int


@dataclass(frozen=True)
class TeacherCounts:
    """Counts of the rationales of one teacher."""

    read: int
    right: int
    kept: int
    characters: float | None
    """Median length of the kept rationales, and of the tokens of their answers; None if none was kept."""
    tokens: float | None


@dataclass(frozen=True)
class FilterResult(Summary):
    """The training records, in the order of the questions that were read, and what became of all rationales.

    `outcomes` are in the same order and, within a question, in the order of its perspectives and samples.
    """

    questions: tuple[Question, ...]
    outcomes: tuple[RationaleOutcome, ...]
    fates: Mapping[str, str]
    """Question -> one of FATES."""
    pass_rates: Mapping[str, float]
    """Question -> pass rate; a question without one is absent."""

    @property
    def kept(self) -> list[Key]:
        return [outcome.key for outcome in self.outcomes if outcome.reason is None]

    @property
    def dropped(self) -> list[tuple[Key, str]]:
        """Each dropped rationale and its reason."""
        return [(outcome.key, outcome.reason) for outcome in self.outcomes if outcome.reason is not None]

    @property
    def kept_as_wrong(self) -> int:
        """Number of wrong rationales that are kept in addition to the right ones."""
        return sum(len(question.wrong_rationales) for question in self.questions)

    @property
    def twins(self) -> int:
        """Number of those that have a right twin."""
        return sum(wrong.right is not None for question in self.questions for wrong in question.wrong_rationales)

    @property
    def kept_characters(self) -> list[int]:
        """The length of each kept rationale."""
        return [outcome.characters for outcome in self.outcomes if outcome.reason is None]

    @property
    def dropped_characters(self) -> list[int]:
        """The length of each dropped rationale."""
        return [outcome.characters for outcome in self.outcomes if outcome.reason is not None]

    @property
    def reasons(self) -> dict[str, int]:
        """Dropped rationales by reason, in the order of REASONS."""
        counts = Counter(reason for _, reason in self.dropped)
        return {reason: counts[reason] for reason in REASONS}

    @property
    def question_counts(self) -> dict[str, int]:
        """Questions by fate, in the order of FATES."""
        counts = Counter(self.fates.values())
        return {fate: counts[fate] for fate in FATES}

    @property
    def described_losses(self) -> str:
        """How many rationales the questions have left, and the reason that took most, in words."""
        fates = {TOO_FEW, OUTSIDE, EASY}  # of questions: these rationales had passed
        of = Counter(outcome.key.question for outcome in self.outcomes if outcome.reason in {None, *fates})
        left = Counter(of[question] for question in self.fates)
        told = [f"{number_of(left[count], 'question')} with {count} left" for count in sorted(left)]
        enough = {fate: self.question_counts[fate] for fate in (OUTSIDE, EASY)}
        told += [f"{number_of(count, 'question')} dropped as: {fate}" for fate, count in enough.items() if count]
        reasons = {reason: count for reason, count in self.reasons.items() if count and reason not in fates}
        if reasons:
            most = max(reasons, key=reasons.__getitem__)
            told.append(f'"{most}" took most, {reasons[most]:,} of {number_of(len(self.outcomes), "rationale")}')
        return "; ".join(told)

    @property
    def with_knowledge(self) -> int:
        """Number of kept questions that have general rules in addition to rationales."""
        return sum(bool(question.knowledge) for question in self.questions)

    @property
    def perspectives(self) -> dict[str, PerspectiveCounts]:
        """The counts of each perspective, in `perspective_order`."""
        groups: dict[str, list[RationaleOutcome]] = {}
        for outcome in self.outcomes:
            groups.setdefault(outcome.key.perspective, []).append(outcome)
        return {
            name: PerspectiveCounts(
                read=len(groups[name]),
                right=sum(outcome.right for outcome in groups[name]),
                kept=sum(outcome.reason is None for outcome in groups[name]),
                checked=sum(outcome.adherent is not None for outcome in groups[name]),
                adherent=sum(outcome.adherent is True for outcome in groups[name]),
            )
            for name in sorted(groups, key=perspective_order)
        }

    @property
    def teachers(self) -> dict[str, TeacherCounts]:
        """The counts of each teacher, by name."""
        groups: dict[str, list[RationaleOutcome]] = {}
        for outcome in self.outcomes:
            groups.setdefault(outcome.source, []).append(outcome)
        return {name: _teacher_counts(groups[name]) for name in sorted(groups)}

    @property
    def pass_rate_histogram(self) -> list[int]:
        """Questions with a pass rate in [0, 0.1), [0.1, 0.2), ..., [0.9, 1]."""
        bins = Counter(min(int(rate * _HISTOGRAM_BINS), _HISTOGRAM_BINS - 1) for rate in self.pass_rates.values())
        return [bins[index] for index in range(_HISTOGRAM_BINS)]

    def as_rows(self) -> list[dict[str, Any]]:
        dropped = {reason: count for reason, count in self.reasons.items() if count}
        wrong = {"kept as wrong": self.kept_as_wrong, "of these with a right twin": self.twins}
        beside = {name: count for name, count in wrong.items() if count}
        return counted({"read": len(self.outcomes), "kept": len(self.kept)} | dropped | beside)

    def examples(self, count: int = _EXAMPLES) -> dict[str, list[Key]]:
        """At most `count` dropped rationales per reason, from as many different questions as possible.

        Reasons that dropped none are absent.
        """
        before: Counter[tuple[str, str]] = Counter()
        ranked: dict[str, list[tuple[int, Key]]] = {}
        for key, reason in self.dropped:
            ranked.setdefault(reason, []).append((before[reason, key.question], key))
            before[reason, key.question] += 1
        return {
            reason: [key for _, key in sorted(ranked[reason], key=itemgetter(0))[:count]]
            for reason in REASONS
            if reason in ranked
        }

    def as_dict(self) -> dict[str, Any]:
        """The counts as JSON, which add up (read = kept + all of dropped), and a few keys of what was dropped."""
        return {
            "read": len(self.outcomes),
            "kept": len(self.kept),
            "dropped": self.reasons,
            "kept_as_wrong": self.kept_as_wrong,
            "twins": self.twins,
            "questions": self.question_counts,
            "knowledge": self.with_knowledge,
            "perspectives": {name: asdict(counts) for name, counts in self.perspectives.items()},
            "teachers": {name: asdict(counts) for name, counts in self.teachers.items()},
            "characters": {"kept": _summary(self.kept_characters), "dropped": _summary(self.dropped_characters)},
            "pass_rate_histogram": self.pass_rate_histogram,
            "examples": {reason: [list(key) for key in keys] for reason, keys in self.examples().items()},
        }


def perspective_order(name: str) -> tuple[int, str]:
    """Sort key of perspectives: the paper's in its order, then others by name, whatever the order of the responses."""
    return (PAPER_PERSPECTIVES.index(name), "") if name in PAPER_PERSPECTIVES else (len(PAPER_PERSPECTIVES), name)


def _teacher_counts(outcomes: Sequence[RationaleOutcome]) -> TeacherCounts:
    kept = [outcome for outcome in outcomes if outcome.reason is None]
    tokens = [outcome.tokens for outcome in kept if outcome.tokens is not None]
    return TeacherCounts(
        read=len(outcomes),
        right=sum(outcome.right for outcome in outcomes),
        kept=len(kept),
        characters=statistics.median(outcome.characters for outcome in kept) if kept else None,
        tokens=statistics.median(tokens) if tokens else None,
    )


def _summary(lengths: Sequence[int]) -> dict[str, float] | None:
    """Shortest, median and longest; None without lengths."""
    return {"min": min(lengths), "median": statistics.median(lengths), "max": max(lengths)} if lengths else None
