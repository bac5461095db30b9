"""Whether MIND's selection selects: MetaNet after its warm-up on real tables of losses, by its options.

    python -m bench.selection [--data svamp.jsonl] [--questions 60] [--spread 1 20] [--output folder] [--overwrite]

L_real are the losses of SmolLM2-135M-Instruct on each rationale of the built-in word problems, or of a file of training
records. The student of a `--spread` of 20 is imagined: the losses of each question are 20 times as far from their mean,
as those of a student that knows some perspectives and not others. For each row of options MetaNet is warmed up as a run
would do it, and its scores select:

    selected      |I_dyn| / K
    evenness      entropy of alpha / ln K: 1 is uniform over all, 0 a single rationale
    saturated     share of scores below 0.01 or above 0.99
    order         rank correlation of the scores with -L_real, within questions
    regret        (sum_k alpha_k L_k - min_k L_k) / (mean_k L_k - min_k L_k): 1 is uniform, 0 the easiest alone
    meta_loss     L_meta of the last epoch

Writes selection.jsonl.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench import command
from bench.measure import print_table, write_results
from bench.real_rows import perspectives_of
from mind import word_problems
from mind.batches.cross_entropy import rationale_losses
from mind.batches.packing import present_rationales
from mind.config import MetaNetConfig, StudentConfig
from mind.data.questions import load_questions
from mind.files import cache_folder
from mind.methods.mind.calibration import Calibrator
from mind.methods.mind.features import Features, StudentEncoder, build_features
from mind.methods.mind.metanet import MetaNet
from mind.methods.mind.objective import anchored, select
from mind.methods.mind.scorers import saturated
from mind.records import PackOptions
from mind.student.model import load_student
from mind.student.tokenization import embedding_rows, tokenize

NAME = "selection"
COLUMNS = ("selected", "evenness", "saturated", "order", "regret", "meta_loss")


@dataclass(frozen=True)
class Options:
    """Of MetaNet and of the selection."""

    tau: float
    spread: float | None
    anchor: str
    beta: float
    tau_student: float


def candidates() -> Iterator[Options]:
    """The paper's form at three temperatures, and with the spread of the losses as their unit."""
    for tau in (1.0, 0.3, 0.1):
        yield Options(tau, None, "none", 0.8, 1.0)
    for tau in (1.0, 0.3, 0.1):
        yield Options(tau, None, "max", 0.8, 0.1)
    for spread in (0.15, 0.25):
        for tau in (1.0, 0.25):
            for tau_student in (1.0, 0.25, 0.1):
                yield Options(tau, spread, "max", 0.8, tau_student)


@dataclass(frozen=True)
class Table:
    """The questions as MetaNet sees them, and the student's losses on their rationales."""

    features: Features
    present: Tensor  # (Q, K) bool
    losses: Tensor  # (Q, K), nan where a rationale is missing


def load_table(data: Path | None, count: int) -> Table:
    """Of the first `count` questions of a file, or of so many word problems."""
    if data is None:
        questions = word_problems.generate(count, 0)
    else:
        questions = load_questions(data, require_rationales=True)[:count]
    perspectives = perspectives_of(questions, data)
    model, tokenizer = load_student(StudentConfig())
    tokenized = tokenize(questions, tokenizer, perspectives, 1024, embedding_rows(model))
    features = build_features(questions, perspectives, StudentEncoder(model, tokenizer, 1024), cache_folder())
    losses, _ = rationale_losses(model, tokenized, len(perspectives), PackOptions(1024, share_prompts=True))
    return Table(features, present_rationales(tokenized, len(perspectives)), losses)


def spread_out(losses: Tensor, factor: float) -> Tensor:
    """The losses of each question `factor` times as far from their mean."""
    mean = losses.nanmean(1, keepdim=True)
    return mean + factor * (losses - mean)


def measured(table: Table, options: Options) -> dict[str, Any]:
    """What the docstring of this module says."""
    torch.manual_seed(0)
    question, rationales = table.features.question, table.features.rationales
    config = MetaNetConfig(tau=options.tau, spread=options.spread)
    metanet = MetaNet(question.shape[1], table.losses.shape[1], config.width, config.synergy_heads)
    calibrator = Calibrator(metanet, config, learning_rate=1e-5)
    history = calibrator.warm_up(question, rationales, table.present, table.losses, seed=0)
    with torch.no_grad():
        scores = metanet(question, rationales, table.present)
    placed = anchored(scores, table.present) if options.anchor == "max" else scores
    selected, alpha = select(placed, table.present, options.beta, options.tau_student)
    count = table.present.sum(1)
    return {
        "selected": float((selected.sum(1) / count).mean()),
        "evenness": float((torch.special.entr(alpha).sum(1) / count.log()).mean()),
        "saturated": saturated(scores, table.present),
        "order": rank_correlation(scores, -table.losses, table.present),
        "regret": regret(alpha, table.losses),
        "meta_loss": history[-1],
    }


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
    parser.add_argument("--questions", type=command.count, default=60)
    parser.add_argument(
        "--spread", type=command.positive, nargs="+", default=[1.0, 20.0], help="factors of the losses' differences"
    )
    options, file = command.parse(parser, lambda _: NAME, arguments)
    table = load_table(options.data, options.questions)
    source = options.data.name if options.data else "word problems"
    rows = []
    for factor in options.spread:
        losses = spread_out(table.losses, factor)
        sigma = math.sqrt(float(((losses - losses.nanmean(1, keepdim=True)) ** 2).nanmean()))
        print(f"{source}, {len(losses)} questions, losses {factor:g} times apart: standard deviation {sigma:.3f} nats")
        some = [
            {"data": source, "factor": factor, "sigma": sigma, **asdict(one),
             **measured(Table(table.features, table.present, losses), one)}
            for one in candidates()
        ]  # fmt: skip
        print_table(some, ("tau", "spread", "anchor", "beta", "tau_student", *COLUMNS))
        rows += some
    write_results(rows, file)


if __name__ == "__main__":
    command.program(NAME, main)
