"""Evaluation of a student: accuracy by greedy generation, and teacher-forced NLL on held-out rationales."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm import tqdm

from mind.batches.packing import micro_batches
from mind.batches.trunk import labelled_hidden
from mind.config import EvaluationConfig
from mind.evaluation.generation import accuracy, generate_responses
from mind.methods.mind.objective import observe
from mind.records import PackOptions, Question, TokenizedQuestion
from mind.student.model import head_of
from mind.student.tokenization import prompt_ids

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

QUESTIONS_AT_ONCE = 8
"""Questions that are packed together, and by which progress is told."""


def rationale_losses(
    model: PreTrainedModel,
    questions: Sequence[TokenizedQuestion],
    perspectives: int,
    pack_options: PackOptions,
    progress: Callable[[int], None] = lambda _: None,
) -> tuple[Tensor, Tensor]:
    """L_real (Q, K), float32: the student's mean NLL a token on each rationale and its suffix, nan where there is none;
    and the tokens (Q, K) of each. `perspectives` is K; `progress` is told how many questions are done."""
    losses, tokens = [], []
    for start in range(0, len(questions), QUESTIONS_AT_ONCE):
        some = questions[start : start + QUESTIONS_AT_ONCE]
        table = torch.full((len(some), perspectives), torch.nan)
        count = torch.zeros(len(some), perspectives, dtype=torch.int64)
        for batch in micro_batches(some, perspectives, pack_options):
            with torch.no_grad():
                terms = observe(labelled_hidden(model, batch), head_of(model), batch)
            table = torch.where(batch.present, terms.l_real.float().cpu(), table)
            count += batch.tokens
        losses.append(table)
        tokens.append(count)
        progress(len(some))
    return torch.cat(losses), torch.cat(tokens)


def heldout_nll(
    model: PreTrainedModel,
    questions: Sequence[TokenizedQuestion],
    perspectives: Sequence[str],
    pack_options: PackOptions,
) -> dict[str, Any]:
    """Mean NLL in nats a token over all rationales (with suffix) of the questions, and a perspective."""
    model.eval()
    with tqdm(total=len(questions), unit="question", desc="held-out NLL", leave=False) as bar:
        losses, tokens = rationale_losses(model, questions, len(perspectives), pack_options, bar.update)
    nll = (torch.where(tokens > 0, losses.double(), 0) * tokens).sum(0)
    tokens = tokens.sum(0)
    each = {name: float(nll[k] / tokens[k]) for k, name in enumerate(perspectives) if tokens[k] > 0}
    return {
        "questions": len(questions),
        "rationales": sum(len(question.rationales) for question in questions),
        "tokens": int(tokens.sum()),
        "nll": float(nll.sum() / tokens.sum()),
        "nll_by_perspective": each,
    }


def answer_accuracy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    files: Mapping[str, Sequence[Question]],
    config: EvaluationConfig,
    responses_folder: Path | None = None,
) -> dict[str, dict[str, Any]]:
    """Greedy accuracy on each labelled list of questions; the responses go to `responses_folder`, a file a label."""
    results = {}
    for label, questions in files.items():
        questions = questions[: config.questions]
        prompts = [prompt_ids(question, tokenizer) for question in questions]
        with tqdm(total=len(questions), unit="question", desc=f"generation, {label}", leave=False) as bar:
            responses = generate_responses(
                model,
                tokenizer,
                prompts,
                max_new_tokens=config.max_new_tokens,
                batch_size=config.batch_size,
                progress=lambda done, bar=bar: bar.update(done - bar.n),
            )
        result = accuracy(responses, questions)
        results[label] = {
            "total": result.total,
            "correct": result.correct,
            "unparsed": result.unparsed,
            "accuracy": result.accuracy,
        }
        if responses_folder is not None:
            responses_folder.mkdir(parents=True, exist_ok=True)
            (responses_folder / f"{label}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in result.rows))
    return results
