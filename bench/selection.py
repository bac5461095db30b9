"""Tests whether MIND's selection prefers some rationales: MetaNet on real tables of losses, by its options.

    python -m bench.selection [--data svamp.jsonl] [--tables folder] [--output folder] [--overwrite]

L_real are the tables of `bench.selection_tables`, by default those of the repository: SmolLM2-135M-Instruct as it was
released, and after steps on the two easiest rationales of each question, which leave the others far behind. --data is
the file of records that the tables were made of; without it they are of the built-in word problems. For each row of
options MetaNet is warmed up as a run does it, and its scores select:

    selected      |I_dyn| / K
    evenness      entropy of alpha / ln K: 1 is uniform over all, 0 a single rationale
    saturated     share of scores below 0.01 or above 0.99
    order         rank correlation of the scores with -L_real, within questions
    easiest       share of the questions of which the rationale with the lowest L_real is selected
    regret        (sum_k alpha_k L_k - min_k L_k) / (mean_k L_k - min_k L_k): 1 is uniform, 0 the easiest alone
    meta_first    L_meta of the first epoch of the warm-up, meta_last that of the last

Then how fast MetaNet follows a student that changes, by its learning rate: after the warm-up all losses are turned
about the mean of their question, so that the easiest rationale is the hardest.

    turned        steps of four questions until the scores are in the new order rather than in the old one
    order_100     rank correlation with the new order after 100 steps

Writes selection.jsonl, or selection-NAME.jsonl for NAME.jsonl.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench import command
from bench.measure import RESULTS, print_table, read_results, write_results
from bench.selection_tables import questions_of, results_of
from mind.config import MetaNetConfig, StudentConfig
from mind.errors import MindError
from mind.files import cache_folder
from mind.methods.mind.calibration import Calibrator
from mind.methods.mind.features import Features, StudentEncoder, build_features
from mind.methods.mind.metanet import MetaNet
from mind.methods.mind.objective import anchored, select
from mind.methods.mind.scorers import saturated
from mind.student.model import load_student

NAME = "selection"
COLUMNS = ("tau", "spread", "anchor", "beta", "tau_student", "selected", "evenness", "saturated", "order", "easiest",
           "regret", "meta_first", "meta_last")  # fmt: skip
RATES = (3e-6, 3e-5, 1e-4, 3e-4)
STEPS, PER_STEP = 400, 4


@dataclass(frozen=True)
class Target:
    """What MetaNet learns."""

    tau: float
    spread: float | None


@dataclass(frozen=True)
class Selection:
    """What is made of its scores."""

    anchor: str
    beta: float
    tau_student: float


PAPER = Selection("none", 0.8, 1.0)
CANDIDATES: dict[Target, tuple[Selection, ...]] = {
    Target(1.0, None): (PAPER, Selection("max", 0.8, 1.0)),
    Target(0.3, None): (PAPER,),
    Target(0.1, None): (PAPER,),
    Target(1.0, 0.15): (Selection("max", 0.8, 1.0), Selection("max", 0.8, 0.25)),
    Target(1.0, 0.25): (
        PAPER,
        Selection("max", 0.8, 1.0),
        Selection("max", 0.8, 0.25),
        Selection("max", 0.8, 0.1),
        Selection("max", 0.9, 0.25),
        Selection("max", 0.7, 0.25),
    ),
    Target(1.0, 0.35): (Selection("max", 0.8, 1.0), Selection("max", 0.8, 0.25)),
    Target(0.3, 0.25): (Selection("max", 0.8, 0.25),),
}


@dataclass(frozen=True)
class Table:
    """The questions as MetaNet sees them, and the student's losses on their rationales."""

    features: Features
    losses: Tensor  # (Q, K), nan where a rationale is missing

    @property
    def present(self) -> Tensor:  # (Q, K) bool
        return ~self.losses.isnan()

    def turned(self) -> Table:
        """The losses of each question on the other side of their mean."""
        return replace(self, losses=2 * self.losses.nanmean(1, keepdim=True) - self.losses)


def load_tables(data: Path | None, folder: Path) -> Iterator[tuple[int, Table]]:
    """The first and the last table, each with its step."""
    rows = read_results(folder / f"{results_of(data)}.jsonl")
    questions, perspectives = questions_of(data, len(rows[0]["questions"]))
    if [question.id for question in questions] != rows[0]["questions"]:
        raise MindError(
            f"{folder / results_of(data)}.jsonl: its tables are of other questions; "
            "python -m bench.selection_tables makes them anew"
        )
    features = build_features(
        questions, perspectives, StudentEncoder(*load_student(StudentConfig()), 1024), cache_folder()
    )
    for row in (rows[0], rows[-1]):
        losses = [[float("nan") if value is None else value for value in line] for line in row["l_real"]]
        yield row["step"], Table(features, torch.tensor(losses))


def warmed_up(table: Table, target: Target, config: MetaNetConfig | None = None) -> tuple[Calibrator, list[float]]:
    """MetaNet after its warm-up on a table, and L_meta of each epoch."""
    torch.manual_seed(0)
    config = replace(config or MetaNetConfig(), tau=target.tau, spread=target.spread)
    question, rationales = table.features.question, table.features.rationales
    metanet = MetaNet(question.shape[1], table.losses.shape[1], config.width, config.synergy_heads)
    calibrator = Calibrator(metanet, config, config.learning_rate or 0.0)
    return calibrator, calibrator.warm_up(question, rationales, table.present, table.losses, seed=0)


def scores_of(calibrator: Calibrator, table: Table) -> Tensor:  # (Q, K)
    with torch.no_grad():
        return calibrator.metanet(table.features.question, table.features.rationales, table.present)


def measured(table: Table, scores: Tensor, selection: Selection) -> dict[str, float]:
    """What the docstring of this module says of a selection."""
    present = table.present
    placed = anchored(scores, present) if selection.anchor == "max" else scores
    selected, alpha = select(placed, present, selection.beta, selection.tau_student)
    count = present.sum(1)
    easiest = torch.where(present, table.losses, torch.inf).argmin(1, keepdim=True)
    return {
        "selected": float((selected.sum(1) / count).mean()),
        "evenness": float((torch.special.entr(alpha).sum(1) / count.log()).mean()),
        "saturated": saturated(scores, present),
        "order": rank_correlation(scores, -table.losses, present),
        "easiest": float(selected.gather(1, easiest).double().mean()),
        "regret": regret(alpha, table.losses),
    }


def followed(table: Table, target: Target, rate: float) -> dict[str, Any]:
    """How MetaNet, warmed up on the table, follows when it is turned, at this learning rate."""
    calibrator, _ = warmed_up(table, target, MetaNetConfig(learning_rate=rate))
    new = table.turned()
    generator = torch.Generator().manual_seed(1)
    order: list[int] = []
    found: dict[str, Any] = {"turned": None}
    for step in range(1, STEPS + 1):
        if len(order) < PER_STEP:
            order = torch.randperm(len(new.losses), generator=generator).tolist()
        index, order = torch.tensor(order[:PER_STEP]), order[PER_STEP:]
        some = Table(Features(new.features.question[index], new.features.rationales[index]), new.losses[index])
        scores = calibrator.metanet(some.features.question, some.features.rationales, some.present)
        calibrator.add_feedback([str(q) for q in index.tolist()], scores, some.losses)
        calibrator.end_step()
        if step % 10 == 0:
            now = rank_correlation(scores_of(calibrator, new), -new.losses, new.present)
            if now > 0 and found["turned"] is None:
                found["turned"] = step
            if step == 100:
                found["order_100"] = now
    return found


def rank_correlation(first: Tensor, second: Tensor, present: Tensor) -> float:
    """Spearman's, the mean over the questions with at least two rationales."""
    found = []
    for a, b, there in zip(first, second, present, strict=True):
        if int(there.sum()) >= 2:
            ranks = torch.stack([values[there].argsort().argsort().double() for values in (a, b)])
            found.append(float(torch.corrcoef(ranks)[0, 1]))
    return sum(found) / len(found)


def regret(alpha: Tensor, losses: Tensor) -> float:
    """The mean over the questions whose losses differ."""
    least = torch.where(losses.isnan(), torch.inf, losses).amin(1)
    chosen, mean = (alpha * losses.nan_to_num()).sum(1), losses.nanmean(1)
    return float(((chosen - least) / (mean - least))[mean > least].mean())


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command.options_of(NAME, __doc__ or "")
    parser.add_argument("--data", type=command.readable_file, help="training records (default: word problems)")
    parser.add_argument("--tables", type=Path, default=RESULTS, help=f"folder (default {command.shown(RESULTS)})")
    options, file = command.parse(
        parser, lambda options: f"{NAME}-{options.data.stem}" if options.data else NAME, arguments
    )
    tables = options.tables / f"{results_of(options.data)}.jsonl"
    if not tables.is_file():
        parser.error(f"--tables: {command.shown(tables)} is not there: python -m bench.selection_tables makes it")
    source = options.data.name if options.data else "word problems"
    rows = []
    for number, (step, table) in enumerate(load_tables(options.data, options.tables)):
        some = []
        for target, selections in CANDIDATES.items():
            calibrator, history = warmed_up(table, target)
            scores = scores_of(calibrator, table)
            for selection in selections:
                numbers = {**measured(table, scores, selection), "meta_first": history[0], "meta_last": history[-1]}
                rounded = {name: round(value, 5) for name, value in numbers.items()}
                some.append({"data": source, "step": step, **asdict(target), **asdict(selection), **rounded})
        print(f"{source}, student after {step} steps")
        print_table(some, COLUMNS)
        rows += some
        if number == 0:
            following = [
                {"data": source, "step": step, **asdict(target), "learning_rate": rate, **followed(table, target, rate)}
                for target in (Target(1.0, None), Target(1.0, 0.25))
                for rate in RATES
            ]
            print_table(following, ("tau", "spread", "learning_rate", "turned", "order_100"))
            rows += following
    write_results(rows, file)


if __name__ == "__main__":
    command.program(NAME, main)
