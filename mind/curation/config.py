"""What a filter keeps, and what it reads and writes."""

from __future__ import annotations

from dataclasses import dataclass, field

from mind.curation.adherence import known_scripts
from mind.errors import require
from mind.provenance import without_folders
from mind.typed_json import check_fields


@dataclass(frozen=True)
class FilterConfig:
    """What is kept. The paper gives none of these values."""

    keep: int = 8
    """Rationales per question, at most, and at most one per perspective [ours]."""
    minimum: int = 2
    """Questions with fewer are dropped: MIND needs two to choose from [ours]."""
    keep_wrong: int = 0
    """Rationales with a wrong answer to keep beside the right ones, at most, for methods that learn from both
    [ours]."""
    shortest: bool = False
    """Of the right rationales of a perspective only the shortest counts: what --rewrite and --prefix of `mind data
    generate` are for [ours]."""
    max_characters: int = 4000
    """Longest rationale, without its answer line [ours]."""
    duplicate_threshold: float = 0.7
    """Jaccard index of word n-grams from which on the later of two rationales of a question is a duplicate; 1 drops
    only those with the same n-grams [ours]."""
    ngram: int = 3
    """Words of an n-gram [ours]."""
    drop_leaks: bool = True
    """Drop rationales that admit to having been told the answer, or that open with it [ours]."""
    scripts: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Script -> least and largest share of a rationale's letters; rationales outside are dropped. For prompts that ask
    for a language, or a mixture: `--scripts HANGUL 0.3 0.9`. Names are as in Unicode: LATIN, CYRILLIC, CJK [ours]."""
    source: tuple[str, ...] = ()
    """Teachers whose rationales are kept, and whose answers pass rates count, by the names that their servers gave, of
    a folder its last part; by default all [ours]."""
    require_adherence: bool = False
    """Drop rationales without the marks of their perspective, if it has a check; by default they are only counted
    [ours]."""
    easy_pass_rate: float = 1.0
    """A question is easy from this pass rate on: right responses among all of the teacher's, or the student's rate
    if it is given [ours]."""
    easy_fraction: float = 1.0
    """Fraction of the easy questions that is kept. It is drawn by the question's id, so that it is the same in any
    order and that a smaller fraction is a part of a larger one [ours]."""
    seed: int = 0
    """Of that draw [ours]."""
    pass_rate: tuple[float, float] = (0.0, 1.0)
    """Questions with a pass rate below the first or above the second number are dropped, as DeepDistill does: too hard
    for the teacher or too easy. `--pass-rate 0.2 0.8` keeps what is in between."""
    variation: tuple[float, float] | None = None
    """Questions whose coefficient of variation is outside these two numbers are dropped: the standard deviation of the
    pass rates of a question's perspectives, over their mean; 0 if all are alike. DeepDistill takes it over answers,
    where it follows from the pass rate p as sqrt(1 / p - 1); so does ours if a perspective is asked once."""

    def __post_init__(self) -> None:
        check_fields("", self)
        object.__setattr__(self, "source", tuple(map(without_folders, self.source)))  # as records have them
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
            require(script in known_scripts(), f"scripts: {script}: expected one such as LATIN, CYRILLIC or HANGUL")
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
    """What `mind data generate` and `mind data judge` wrote."""
    output: str
    """The records to train on, .jsonl or .parquet; it must not exist. Beside it and named after it: .report.html,
    .card.json, .card.md (a dataset card for the Hub) and .dropped.jsonl."""
    also: tuple[str, ...] = ()
    """Further folders of the same questions: of another teacher, or made from the answers of this one by --dual,
    --rewrite or --prefix."""
    filter: FilterConfig = field(default_factory=FilterConfig)
    student_grades: str | None = None
    """A file that `mind grade` wrote of a student's answers to the questions: its pass rates replace the teacher's for
    `easy_pass_rate` and `pass_rate`. `variation` stays the teacher's."""
    evaluation: tuple[str, ...] = ()
    """Files to evaluate by: the card says how many of the questions give away one of theirs, by 13 words in a row that
    they or their rationales share with it. `mind train --data.leaks drop` leaves them out."""
    license: str | None = None
    """Of this data set, for its card."""
    source_licenses: str | None = None
    """Of the questions."""
    overwrite: bool = False
    """Replace what is there already."""

    def __post_init__(self) -> None:
        check_fields("", self)
