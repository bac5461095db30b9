"""Evaluates a student: accuracy by generation, and teacher-forced NLL on held-out rationales."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mind import processes
from mind.asking import AskingConfig
from mind.batches.cross_entropy import rationale_losses
from mind.errors import require
from mind.evaluation.config import SamplingConfig
from mind.evaluation.engines import Engine, TransformersEngine
from mind.evaluation.outcomes import counts, outcome, sampled_counts, sampled_outcome
from mind.evaluation.samples import sample_seed
from mind.files import replacing_folder, write_json_rows
from mind.progress import Progress
from mind.records import PackOptions, Question, TokenizedQuestion
from mind.student.model import context_of
from mind.student.tokenization import Chat, embedding_rows, question_text

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Before = str | Callable[[Question], str]
"""The words before a question when a student is asked: the same for all questions, or per question."""
Answered = tuple[list[dict[str, Any]], dict[str, Any]]
"""The rows of a list of questions, and their counts."""


def heldout_nll(
    model: PreTrainedModel,
    questions: Sequence[TokenizedQuestion],
    perspectives: Sequence[str],
    pack_options: PackOptions,
) -> dict[str, Any]:
    """The student's teacher-forced NLL on all rationales of the questions, each with its suffix.

    Args:
        model: the student; it is in evaluation mode afterwards.
        questions: held-out questions, which were not trained on.
        perspectives: the names of the K perspectives, in the order of the questions' rationales.
        pack_options: how the questions become rows of the trunk; the result does not depend on it.

    Returns:
        "questions", "rationales" and "tokens": how many there are; "nll": the mean over all tokens, in nats;
        "nll_by_perspective": the same over the tokens of each perspective that occurs, by name.

    Raises NotFiniteError with the questions whose loss is nan or infinite.
    """
    model.eval()
    with Progress("held-out NLL", len(questions), "question") as bar:
        losses, tokens = rationale_losses(model, questions, len(perspectives), pack_options, bar.reach)
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


def evaluation_prompts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    config: AskingConfig,
    before: Before = "",
) -> list[list[int]]:
    """The token ids of the prompts for the first `config.questions` questions, each with the text `before` in front.

    Raises MindError for a question that cannot be asked, or whose prompt and answer may exceed the model's context.
    """
    return prompts_of(Chat(tokenizer, embedding_rows(model)), context_of(model), questions, config, before)


def prompts_of(
    chat: Chat, context: int | None, questions: Sequence[Question], config: AskingConfig, before: Before = ""
) -> list[list[int]]:
    """As `evaluation_prompts`, for a model whose `chat` and `context` are known."""
    prompts = []
    for question in questions[: config.questions]:
        text = (before if isinstance(before, str) else before(question)) + question_text(question)
        text = "\n".join(filter(None, (text, config.last_line)))
        prompts.append(chat.prompt(replace(question, question=text, choices=None)))
        require(
            context is None or len(prompts[-1]) + config.max_new_tokens <= context,
            f"question {question.id}: its prompt has {len(prompts[-1])} tokens; with evaluation.max_new_tokens "
            f"{config.max_new_tokens} that exceeds the model's context of {context}",
        )
    return prompts


def answer_accuracy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    files: Mapping[str, Sequence[Question]],
    config: AskingConfig,
    responses_folder: Path | None = None,
    before: Before = "",
) -> dict[str, dict[str, Any]]:
    """The accuracy of a loaded student by greedy generation, as `engine_accuracy` computes it."""
    return engine_accuracy(
        TransformersEngine(model, tokenizer, config.batch_size), files, config, responses_folder, before
    )


def engine_accuracy(
    engine: Engine,
    files: Mapping[str, Sequence[Question]],
    config: AskingConfig,
    responses_folder: Path | None = None,
    before: Before = "",
    sampling: SamplingConfig | None = None,
) -> dict[str, dict[str, Any]]:
    """The student's accuracy by generation.

    Args:
        engine: the student.
        files: label (the name of a file) -> its questions.
        config: how many questions of each file, and how to generate.
        responses_folder: where the responses go, as files LABEL.jsonl, replacing existing ones; None: nowhere.
        before: the words before each question when the student is asked (`Method.asks_with`, retrieved rules); the
            responses' rows have the questions without them.
        sampling: options of the samples; None, or no number of samples: greedy answers.

    Returns:
        By label the result of `mind.evaluation.outcomes.counts` or, for samples, of `sampled_counts`. The rows of the
        responses are those of `outcome` or `sampled_outcome`.

    Raises MindError as `evaluation_prompts`, before anything is generated.
    """
    prompts = {label: prompts_of(engine.chat, engine.context, some, config, before) for label, some in files.items()}

    def answered(label: str, questions: Sequence[Question]) -> Answered:
        if sampling is None or sampling.samples is None:
            with Progress(f"generation, {label}", len(questions), "question") as bar:
                replies = engine.replies(prompts[label], config.max_new_tokens, None, (), bar.reach)
            rows = _graded(list(zip(replies, questions, strict=True)), outcome)
            return rows, counts(rows)
        each = range(sampling.samples)
        seeds = [sample_seed(sampling.seed, f"sample {number}", one) for one in questions for number in each]
        asked = [prompt for prompt in prompts[label] for _ in each]
        with Progress(f"generation, {label}", len(asked), "sample") as bar:
            replies = engine.replies(asked, config.max_new_tokens, sampling, seeds, bar.reach)
        of_each = [replies[place * len(each) : (place + 1) * len(each)] for place in range(len(questions))]
        rows = _graded(list(zip(of_each, questions, strict=True)), sampled_outcome)
        return rows, sampled_counts(rows, questions)

    return graded(files, config, answered, responses_folder)


def _graded(
    answered: Sequence[tuple[Any, Question]], outcome_of: Callable[[Any, Question], dict[str, Any]]
) -> list[dict[str, Any]]:
    """The row of each question; several processes share the grading."""
    return processes.spread(answered, lambda some: [outcome_of(*one) for one in some])


def graded(
    files: Mapping[str, Sequence[Question]],
    config: AskingConfig,
    answered: Callable[[str, Sequence[Question]], Answered],
    responses_folder: Path | None,
) -> dict[str, dict[str, Any]]:
    """By label the result of `answered` for it and its questions; the main process writes the rows into the folder, if
    there is one."""
    results, responded = {}, {}
    for label, questions in files.items():
        responded[label], results[label] = answered(label, questions[: config.questions])
    if responses_folder is not None:
        place = responses_folder
        processes.by_main(lambda: _write_responses(responded, place))
    return results


def _write_responses(rows: Mapping[str, Sequence[Mapping[str, Any]]], place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    with replacing_folder(place) as folder:
        for label, some in rows.items():
            write_json_rows(some, folder / f"{label}.jsonl")
