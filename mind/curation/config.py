"""The options of a filter: what it keeps, reads and writes."""

from __future__ import annotations

from dataclasses import dataclass, field

from mind.curation.adherence import known_scripts
from mind.display import meant
from mind.errors import require
from mind.provenance import without_folders
from mind.typed_json import check_fields


@dataclass(frozen=True)
class FilterConfig:
    """Which rationales are kept. The paper gives none of these values."""

    keep: int = 8
    """Rationales per question, at most, and at most one per perspective [ours]."""
    minimum: int = 2
    """Drop questions with fewer rationales: MIND needs at least two to choose from [ours]."""
    keep_wrong: int = 0
    """Rationales with a wrong answer to keep per question, at most, for methods that learn from right and wrong ones
    [ours]."""
    shortest: bool = False
    """Use only the shortest right rationale per perspective, for data sets of `mind data generate --rewrite` and
    `--prefix` [ours]."""
    max_characters: int = 4000
    """Longest rationale, in characters, without its answer line [ours]."""
    duplicate_threshold: float = 0.7
    """A rationale is a duplicate if the Jaccard index of its word n-grams with those of an earlier one of the question
    is at least this; 1 drops only rationales with equal n-grams [ours]."""
    ngram: int = 3
    """Words per n-gram; of a script without spaces between words, letters [ours]."""
    drop_leaks: bool = True
    """Drop rationales that admit that the answer was given to them, or that open with it [ours]."""
    scripts: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Script -> smallest and largest share of a rationale's letters; rationales outside this range are dropped. For
    prompts that ask for a language or a mixture: `--scripts HANGUL 0.3 0.9`. Unicode's names: LATIN, CYRILLIC, CJK
    [ours]."""
    source: tuple[str, ...] = ()
    """Teachers whose rationales are kept and whose answers count in the pass rates, by the names that their servers
    gave; for a folder, its last part. Empty: all [ours]."""
    require_adherence: bool = False
    """Drop rationales that lack the marks of their perspective, if it has a check; otherwise the report only counts
    them [ours]."""
    easy_pass_rate: float = 1.0
    """A question is easy if its pass rate is at least this. The pass rate is the share of right responses of the
    teacher, or of the student with --student-grades [ours]."""
    easy_fraction: float = 1.0
    """Share of the easy questions to keep. The draw depends on the question's id, so it is the same in any order, and a
    smaller share is a subset of a larger one [ours]."""
    seed: int = 0
    """Seed of that draw [ours]."""
    pass_rate: tuple[float, float] = (0.0, 1.0)
    """Keep only questions with a pass rate from the first to the second number: the others are too hard for the teacher
    or too easy, as in DeepDistill. Example: `--pass-rate 0.2 0.8`."""
    variation: tuple[float, float] | None = None
    """Keep only questions whose coefficient of variation is between these two numbers: the standard deviation of the
    pass rates of a question's perspectives, divided by their mean; 0 if all are equal. DeepDistill computes it over
    answers, where it is sqrt(1 / p - 1) for the pass rate p; ours is the same if each perspective is asked once."""

    def __post_init__(self) -> None:
        check_fields("", self)
        object.__setattr__(self, "source", tuple(map(without_folders, self.source)))  # the form of names in records
        require(
            2 <= self.minimum <= self.keep <= 32,
            f"minimum {self.minimum} and keep {self.keep}: expected 2 <= minimum <= keep <= 32",
        )
        for name, least in (("max_characters", 1), ("ngram", 1), ("keep_wrong", 0)):
            require(getattr(self, name) >= least, f"{name} is {getattr(self, name)}: expected at least {least}")
        require(
            0 < self.duplicate_threshold <= 1,
            f"duplicate_threshold is {self.duplicate_threshold}: expected a number in (0, 1]",
        )
        for script, shares in self.scripts.items():
            near = meant(script, known_scripts())
            expected = f"expected one such as LATIN, CYRILLIC or HANGUL{near}"
            require(script in known_scripts(), f"scripts: {script}: {expected}")
            _check_range(f"scripts.{script}", shares, most=1)
        _check_range("pass_rate", self.pass_rate, most=1)
        _check_range("variation", self.variation or (0, 0))
        for name in ("easy_pass_rate", "easy_fraction"):
            require(0 <= getattr(self, name) <= 1, f"{name} is {getattr(self, name)}: expected a number in [0, 1]")


def _check_range(name: str, bounds: tuple[float, float], most: float | None = None) -> None:
    low, high = bounds
    limit = "" if most is None else f" <= {most:g}"
    require(
        0 <= low <= high and (most is None or high <= most),
        f"{name} is {bounds}: expected two numbers, 0 <= low <= high{limit}",
    )


@dataclass(frozen=True)
class FilterOptions:
    """Choose the rationales to train on from a judged data set."""

    folder: str
    """The folder that `mind data generate` and `mind data judge` wrote."""
    output: str
    """The file of training records, .jsonl or .parquet; it must not exist. Files named after it are written beside it:
    .report.html, .card.json, .card.md (a dataset card for the Hub) and .dropped.jsonl."""
    also: tuple[str, ...] = ()
    """Further folders of the same questions: from another teacher, or made from the answers of this one by --dual,
    --rewrite or --prefix."""
    filter: FilterConfig = field(default_factory=FilterConfig)
    student_grades: str | None = None
    """The file that `mind grade` wrote about a student's answers to the questions. The student's pass rates then
    replace the teacher's in `easy_pass_rate` and `pass_rate`; `variation` always uses the teacher's."""
    evaluation: tuple[str, ...] = ()
    """Files of test questions. The card counts the training questions that leak one of them: the question or a
    rationale shares 13 words in a row with it. `mind train --data.leaks drop` leaves these out."""
    license: str | None = None
    """License of this data set, for its card."""
    source_licenses: str | None = None
    """Licenses of the questions, for the card."""
    overwrite: bool = False
    """Replace an earlier output."""

    def __post_init__(self) -> None:
        check_fields("", self)
