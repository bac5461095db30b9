"""Simulated experiments: how often the intervals of `mind compare` hold the truth, and how often its claims are false.

    python -m bench.coverage [--experiments 1000] [--draws 500] [--jobs 1] [--output folder] [--overwrite] [--draw]

An answer is right if a sum of normal variables is above 0: its method's level, its question's ease (the same for all
methods), what the question adds for the method, its seed's luck, and what the seed adds for the question. The share of
right answers over all questions and seeds is then known exactly. Beside the analysis of mind/comparison/difference.py
are the same with normal quantiles, and the plain bootstrap. Writes coverage.jsonl.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from bench import command
from bench.measure import print_table, read_results, write_results
from mind.comparison.bootstrap import bootstrap
from mind.comparison.decisions import ALPHA, whole_groups
from mind.comparison.difference import difference
from mind.comparison.marks import Marks
from mind.intervals import Z

NAME = "coverage"
COLUMNS = ("scenario", "experiments", "coverage", "normal coverage", "bootstrap coverage", "width", "bootstrap width",
           "one-sided", "bootstrap one-sided", "seed deviation", "claims")  # fmt: skip
BASELINES = 5


@dataclass(frozen=True)
class Scenario:
    """An experiment that is drawn again and again; deviations are in units of the latent sum."""

    seeds: tuple[int, int] = (5, 5)
    questions: int = 200
    sets: int = 1
    levels: tuple[float, float] = (0.0, 0.0)
    """Of ours and theirs; with the other defaults 0 is half of the answers right, and 0.5 more 11 points more."""
    luck: float = 0.1
    """Of a seed; 0.1 are 2.2 points of accuracy."""
    taste: float = 0.5
    """Of a method for a question."""
    noise: float = 0.7
    """Of a run's answer to a question."""
    ease: float = 1.5
    """Of a question for all methods."""

    def accuracy(self, level: float) -> float:
        """The share of right answers over all questions and seeds."""
        return NormalDist().cdf(level / math.hypot(self.luck, self.taste, self.noise, self.ease))

    def marks(self, levels: Sequence[Sequence[float]], seeds: Sequence[int], rng: np.random.Generator) -> list[Marks]:
        """Those of one experiment, for each method with its levels by set and its number of seeds."""
        eases = [rng.normal(0, self.ease, self.questions) for _ in range(self.sets)]
        return [self._of_method(eases, own, count, rng) for own, count in zip(levels, seeds, strict=True)]

    def _of_method(
        self, eases: Sequence[np.ndarray], levels: Sequence[float], seeds: int, rng: np.random.Generator
    ) -> Marks:
        luck = rng.normal(0, self.luck, (seeds, 1))
        tables = []
        for ease, level in zip(eases, levels, strict=True):
            of_question = ease + rng.normal(0, self.taste, len(ease)) + level
            noise = rng.normal(0, self.noise, (seeds, len(ease)))
            tables.append((of_question + luck + noise > 0).astype(float))
        return Marks(tables)


SCENARIOS = {
    "seeds do not differ": Scenario(luck=0.0),
    "seeds differ": Scenario(),
    "seeds differ much": Scenario(luck=0.5),
    "answers hardly depend on the seed": Scenario(taste=0.2, noise=0.2),
    "one answer in ten is right": Scenario(levels=(-2.0, -2.5)),
    "ours are better": Scenario(levels=(0.3, 0.0)),
    "two seeds": Scenario(seeds=(2, 2)),
    "five seeds and three": Scenario(seeds=(5, 3)),
    "mean of three sets": Scenario(sets=3),
    "1,000 questions": Scenario(questions=1000),
}


def measure(scenario: Scenario, experiments: int, draws: int | None) -> dict[str, float]:
    """Of the experiments the share whose interval holds the truth, its mean width, and the share in which the one-sided
    p-value for ours is below 5 %: 5 % of them if both methods are as good. `draws` None leaves out the bootstrap."""
    rng = np.random.default_rng(0)
    truth = scenario.accuracy(scenario.levels[0]) - scenario.accuracy(scenario.levels[1])
    rows = []
    for number in range(experiments):
        levels = [[level] * scenario.sets for level in scenario.levels]
        ours, theirs = scenario.marks(levels, scenario.seeds, rng)
        found = difference(ours, theirs)
        row = {
            **_of_interval(found.interval, truth, found.p_ours),
            "normal coverage": abs(found.center - truth) <= Z * found.error,
            "seed deviation": ours.by_seed.std(ddof=1),
        }
        if draws is not None:
            drawn = bootstrap(ours, theirs, draws, number)
            assert drawn is not None, "runs that do not differ at all"
            own = _of_interval(drawn.interval, truth, drawn.p_ours)
            row |= {f"bootstrap {name}": value for name, value in own.items()}
        rows.append(row)
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def _of_interval(interval: tuple[float, float], truth: float, p: float) -> dict[str, float]:
    low, high = interval
    return {"coverage": low <= truth <= high, "width": high - low, "one-sided": p < ALPHA}


def false_claims(scenario: Scenario, experiments: int, levels: Sequence[Sequence[float]]) -> float:
    """The share of the experiments that claim "beats all baselines" of a group in which one of them is as good.

    `levels` are those of ours and of each baseline in distribution and out of it, a set each.
    """
    rng = np.random.default_rng(0)
    best, *others = levels
    untrue = {group for group in (0, 1) if any(other[group] >= best[group] for other in others)}
    two_sets = dataclasses.replace(scenario, sets=2)
    false = 0
    for _ in range(experiments):
        ours, *theirs = two_sets.marks(levels, [scenario.seeds[0]] * len(levels), rng)
        values = {
            str(group): [difference(Marks([ours.sets[group]]), Marks([one.sets[group]])).p_ours for one in theirs]
            for group in (0, 1)
        }
        false += any(int(group) in untrue for group in whole_groups(values))
    return false / experiments


def _as_good(lead: float, *alike: tuple[int, ...]) -> list[list[float]]:
    """Levels by group of ours and five baselines, of which each of `alike` is as good in these groups, and all others
    are `lead` worse."""
    baselines = [[lead if group in groups else 0.0 for group in (0, 1)] for groups in alike]
    return [[lead, lead], *[[0.0, 0.0]] * (BASELINES - len(alike)), *baselines]


CLAIMS = {
    "all five are as good": (Scenario(), _as_good(0.0)),
    "one of five is as good, on one of two sets": (Scenario(), _as_good(1.0, (0,))),
    "one of five is as good, seeds do not differ": (Scenario(luck=0.0), _as_good(1.0, (0,))),
    "one of five is as good, seeds differ much": (Scenario(luck=0.5), _as_good(3.0, (0,))),
    "one is as good on one set, another on the other": (Scenario(), _as_good(1.0, (0,), (1,))),
    "one on one set, another on the other, seeds do not differ": (Scenario(luck=0.0), _as_good(1.0, (0,), (1,))),
    "one on one set, another on the other, seeds differ much": (Scenario(luck=0.5), _as_good(3.0, (0,), (1,))),
}


def _row(name: str, experiments: int, draws: int | None) -> dict[str, Any]:
    """The results of one of SCENARIOS or CLAIMS."""
    size = {"scenario": name, "experiments": experiments}
    if name in CLAIMS:
        scenario, levels = CLAIMS[name]
        return {**size, "claims": false_claims(scenario, experiments, levels)}
    return {**size, "draws": draws, **measure(SCENARIOS[name], experiments, draws)}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command.options_of(NAME, __doc__ or "", draw=True)
    parser.add_argument("--experiments", type=command.count, default=1000)
    parser.add_argument("--draws", type=command.count, default=500, help="of the bootstrap (default 500)")
    parser.add_argument("--jobs", type=command.count, default=1, help="processes (default 1)")
    options, file = command.parse(parser, lambda _: NAME, arguments)
    if options.draw:
        print_table(read_results(file), COLUMNS)
        return
    with ProcessPoolExecutor(options.jobs) as processes:
        tasks = [
            *((name, options.experiments, options.draws) for name in SCENARIOS),
            *((name, options.experiments, None) for name in CLAIMS),
        ]
        rows = list(processes.map(_row, *zip(*tasks, strict=True)))
    print_table(rows, COLUMNS)
    write_results(rows, file)


if __name__ == "__main__":
    command.program(NAME, main)
