"""Evaluation of a student: accuracy by greedy generation, and teacher-forced NLL on held-out rationales."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from mind.config import EvaluationConfig
from mind.generation import accuracy, generate_responses
from mind.packing import pack, prompt_ids
from mind.records import PackedBatch, Question, TokenizedQuestion
from mind.student import head_tensors, labelled_hidden
from mind_kernels import linear_cross_entropy

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def batches(
    questions: Sequence[TokenizedQuestion], perspectives: int, questions_per_batch: int, pack_length: int
) -> Iterable[PackedBatch]:
    """The questions in order, packed a few at a time."""
    for start in range(0, len(questions), questions_per_batch):
        yield pack(questions[start:start + questions_per_batch], perspectives, pack_length)


@torch.no_grad()
def rationale_losses(model: PreTrainedModel, batch: PackedBatch) -> torch.Tensor:
    """L_real (Q, K): the student's mean NLL a token on each rationale and its suffix; nan where there is none."""
    head = head_tensors(model)
    _, stats = linear_cross_entropy(
        labelled_hidden(model, batch), head.weight, batch.target, bias=head.bias, softcap=head.softcap,
        temperature=head.temperature, segment=batch.segment, num_segments=batch.tokens.numel(), return_stats=True)
    return stats.segment_nll.view(batch.tokens.shape).cpu()


def heldout_nll(
    model: PreTrainedModel,
    questions: Sequence[TokenizedQuestion],
    perspectives: Sequence[str],
    *,
    questions_per_batch: int = 4,
    pack_length: int = 1024,
) -> dict[str, Any]:
    """Mean NLL in nats a token over all rationales (with suffix) of the questions, and a perspective."""
    model.eval()
    nll = torch.zeros(len(perspectives), dtype=torch.float64)
    tokens = torch.zeros(len(perspectives), dtype=torch.int64)
    with tqdm(total=len(questions), unit="question", desc="held-out NLL", leave=False) as bar:
        for batch in batches(questions, len(perspectives), questions_per_batch, pack_length):
            losses = torch.where(batch.present, rationale_losses(model, batch).double(), 0)
            nll += (losses * batch.tokens).sum(0)
            tokens += batch.tokens.sum(0)
            bar.update(len(batch.ids))
    each = {name: float(nll[k] / tokens[k]) for k, name in enumerate(perspectives) if tokens[k] > 0}
    return {"questions": len(questions), "rationales": sum(len(question.rationales) for question in questions),
            "tokens": int(tokens.sum()), "nll": float(nll.sum() / tokens.sum()), "nll_by_perspective": each}


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
        questions = questions[:config.questions]
        prompts = [prompt_ids(question, tokenizer) for question in questions]
        with tqdm(total=len(questions), unit="question", desc=f"generation, {label}", leave=False) as bar:
            responses = generate_responses(model, tokenizer, prompts, max_new_tokens=config.max_new_tokens,
                                           batch_size=config.batch_size,
                                           progress=lambda done, bar=bar: bar.update(done - bar.n))
        result = accuracy(responses, questions)
        results[label] = {"total": result.total, "correct": result.correct, "unparsed": result.unparsed,
                          "accuracy": result.accuracy}
        if responses_folder is not None:
            responses_folder.mkdir(parents=True, exist_ok=True)
            (responses_folder / f"{label}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in result.rows))
    return results
