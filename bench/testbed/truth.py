"""Compares what a run of MIND selects with what is worth learning: the lapses of the word problems
(`Question.generated`).

    python -m bench.testbed.truth RUN [RUN ...]

For each run folder, over its training questions:

    sound         share of the rationales that are sound: what uniform weights give
    alpha_sound   share of alpha, of MetaNet as the run left it, on sound rationales; its excess over `sound` is what
                  the selection knows
    selected_...  share of the sound rationales that are selected, and of the lapsing ones
    before, after share of pairs of a sound and a lapsing rationale of one question of which the sound one has the lower
                  L_real, by the student before and after training: 0.5 says nothing of the truth
    PERSPECTIVE   alpha of each perspective, the mean over the questions

A run without MetaNet (sft, ablations by other scores) has no alpha: only the pairs are told.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from bench import command
from bench.measure import print_table
from mind.batches.cross_entropy import rationale_losses
from mind.config import MindConfig, StudentConfig
from mind.data.questions import load_questions
from mind.errors import require
from mind.files import cache_folder
from mind.methods.mind.features import build_features, encoder_of
from mind.methods.mind.metanet import MetaNet
from mind.methods.mind.objective import anchored, select
from mind.records import PackOptions, Question
from mind.run_folder import RunFolder
from mind.student.model import load_student
from mind.student.tokenization import embedding_rows, tokenize
from mind.typed_json import load_json

NAME = "testbed.truth"
METANET = "metanet.safetensors"


def truth_of(questions: Sequence[Question], perspectives: Sequence[str]) -> tuple[Tensor, Tensor]:
    """(Q, K) bool: which rationales there are, and which of them are sound. Raises MindError if no record says so."""
    present = torch.zeros(len(questions), len(perspectives), dtype=torch.bool)
    sound = present.clone()
    for q, question in enumerate(questions):
        require(
            "sound" in question.generated or "lapse_rate" in question.generated,
            f"{question.id} does not say which rationales are sound (generated.sound or generated.lapse_rate)",
        )
        worthy = question.generated.get("sound", "").split()
        for rationale in question.rationales:
            k = perspectives.index(rationale.perspective)
            present[q, k], sound[q, k] = True, rationale.perspective in worthy
    return present, sound


def told_by_loss(
    losses: Tensor,  # (Q, K)
    present: Tensor,  # (Q, K) bool
    sound: Tensor,  # (Q, K) bool
) -> float:
    """The share of pairs of a question in which the sound rationale has the lower loss; nan without a pair."""
    pairs = sound[:, :, None] & (present & ~sound)[:, None, :]
    lower = losses[:, :, None] < losses[:, None, :]
    return float(lower[pairs].double().mean())


def alpha_of(run: RunFolder, config: MindConfig, questions: Sequence[Question], present: Tensor) -> Tensor:
    """(Q, K): the weights that MetaNet gives at the end of the run."""
    perspectives = config.data.perspectives
    model, tokenizer = load_student(config.student)
    encoder = encoder_of(config.metanet.encoder, model, tokenizer, config.train.pack_length)
    features = build_features(questions, perspectives, encoder, cache_folder())
    width, heads = config.metanet.width, config.metanet.synergy_heads
    metanet = MetaNet(features.question.shape[1], len(perspectives), width, heads, synergy=config.metanet.synergy)
    metanet.load_state_dict(load_file(run.path / METANET))
    with torch.no_grad():
        scores = metanet(features.question, features.rationales, present)
    placed = anchored(scores, present) if config.metanet.anchor == "max" else scores
    return select(placed, present, config.objective.beta, config.objective.tau_student)[1]


def l_real(student: StudentConfig, questions: Sequence[Question], perspectives: Sequence[str]) -> Tensor:
    """(Q, K): the student's losses, nan where a rationale is missing."""
    model, tokenizer = load_student(student)
    tokenized = tokenize(questions, tokenizer, perspectives, student.max_length, embedding_rows(model))
    return rationale_losses(model.eval(), tokenized, len(perspectives), PackOptions(1024, True))[0]


def compared(run: RunFolder) -> Mapping[str, float | str]:
    """The row of a run."""
    config = load_json(run.config, MindConfig)
    perspectives = config.data.perspectives
    questions = load_questions(config.data.train, perspectives=perspectives, require_rationales=True)
    present, sound = truth_of(questions, perspectives)
    trained = StudentConfig(model=str(run.student), max_length=config.student.max_length)
    row: dict[str, float | str] = {"run": run.path.name, "sound": float(sound.sum() / present.sum())}
    if (run.path / METANET).is_file():
        alpha = alpha_of(run, config, questions, present)
        row |= {
            "alpha_sound": float(alpha[sound].sum() / alpha.sum()),
            "selected_sound": float((alpha[sound] > 0).double().mean()),
            "selected_lapsing": float((alpha[present & ~sound] > 0).double().mean()),
        }
    for when, student in (("before", config.student), ("after", trained)):
        row[when] = told_by_loss(l_real(student, questions, perspectives), present, sound)
    if (run.path / METANET).is_file():
        row |= {name: float(weight) for name, weight in zip(perspectives, alpha.mean(0), strict=True)}
    return {name: value if isinstance(value, str) else round(value, 4) for name, value in row.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog=f"python -m bench.{NAME}", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run folder of `mind train`")
    for run in parser.parse_args(arguments).runs:
        row = compared(RunFolder(run))
        print_table([row], tuple(row))


if __name__ == "__main__":
    command.program(NAME, main)
