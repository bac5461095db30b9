"""Generates answers in batches, greedy or sampled."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from mind.evaluation.batches import BatchSize, in_batches
from mind.evaluation.outcomes import Reply
from mind.student.model import causal_lm
from mind.student.tokenization import embedding_rows, text_of


def generate_responses(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    *,
    stop_text: str | None = None,
    **options: Any,
) -> list[Reply]:
    """The continuation of each prompt (token ids) as a text without special tokens, in the order of `prompts`.

    A response ends before the end-of-sequence tokens of the model's generation config and of the tokenizer, before
    `stop_text`, or after `max_new_tokens` tokens. Arguments and errors are those of `generate_ids`.
    """
    ids = generate_ids(model, tokenizer, prompts, stop_text=stop_text, **options)
    return replies_of(model, tokenizer, ids, stop_text)


def replies_of(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    continued: Sequence[Sequence[int]],
    stop_text: str | None = None,
) -> list[Reply]:
    """The texts of the tokens that `generate_ids` returned."""
    end_ids = end_ids_of(model.generation_config, tokenizer)
    return [reply_of(tokenizer, ids, end_ids, stop_text) for ids in continued]


def reply_of(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], end_ids: Sequence[int], stop_text: str | None
) -> Reply:
    """The text of generated tokens, without special tokens and the end; if there is no end, they were cut off."""
    if ended := ids[-1] in end_ids:
        ids = ids[:-1]
    ended = ended or (stop_text is not None and stop_text in tokenizer.decode(list(ids)))
    return Reply(text_of(tokenizer, ids, stop_text), not ended)


def generate_ids(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    batch_size: BatchSize,
    stop_text: str | None = None,
    temperature: float = 1.0,
    top_p: float = 1.0,
    draws: Tensor | None = None,
    progress: Callable[[int], object] | None = None,
) -> list[list[int]]:
    """The tokens that continue each prompt, in the order of `prompts`, at least one each, with their end.

    Args:
        model: in evaluation mode during the call; its mode is restored. Its generation config is ignored, except for
            the end-of-sequence tokens.
        tokenizer: the model's.
        prompts: token ids.
        max_new_tokens: largest number of tokens of a continuation.
        batch_size: how many prompts are continued together; "auto": as many as fit into memory. It changes the result
            only by rounding.
        stop_text: a continuation ends with this text, or with an end-of-sequence token of the model's generation
            config or of the tokenizer.
        temperature: T > 0, for samples: tokens have the probabilities softmax(z / T).
        top_p: in (0, 1], for samples: only the most probable tokens whose probabilities add up to this are drawn.
        draws: (prompts, max_new_tokens) float64 in [0, 1): the random number that decides each token of a sample, so
            that a sample depends only on its own numbers. None: the most probable tokens.
        progress: gets the number of finished continuations, whenever some are finished.

    Raises ValueError for a prompt without tokens, a batch size or a token limit below 1, and a tokenizer and model
    without an end-of-sequence token.
    """
    if (batch_size != "auto" and batch_size < 1) or max_new_tokens < 1:
        raise ValueError(f"batch_size {batch_size} and max_new_tokens {max_new_tokens}: expected at least 1")
    if not all(prompts):
        raise ValueError(f"prompt {next(i for i, prompt in enumerate(prompts) if not prompt)} has no tokens")
    end_ids = end_ids_of(model.generation_config, tokenizer)
    continued: list[list[int]] = [[]] * len(prompts)
    student, was_training = causal_lm(model), model.training
    configured = student.generation_config
    model.eval()
    # A chat model's own asks for sampling, penalties, beams, forced tokens and so on: none of it is greedy.
    student.generation_config = GenerationConfig()

    def answer(batch: list[int]) -> list[list[int]]:
        chosen = [list(prompts[index]) for index in batch]
        sampling = None if draws is None else _Sampling(temperature, draws[batch].to(model.device), top_p)
        return _generate_batch(model, tokenizer, chosen, max_new_tokens, end_ids, stop_text, sampling, tell)

    done = 0

    def tell(count: int) -> None:
        if progress is not None:
            progress(done + count)

    try:
        for batch, answers in in_batches(model, prompts, batch_size, max_new_tokens, answer):
            for index, ids in zip(batch, answers, strict=True):
                continued[index] = ids
            done += len(batch)
    finally:
        student.generation_config = configured
        model.train(was_training)
    return continued


class _Sampling:
    """A logits processor that leaves one token in each row, drawn with the row's own random number."""

    def __init__(
        self,
        temperature: float,
        draws: Tensor,  # (B, tokens) float64 in [0, 1)
        top_p: float,
    ) -> None:
        self._temperature, self._draws, self._top_p = temperature, draws, top_p
        self.rows, self.width = list(range(len(draws))), 0
        """Which rows of `draws` are still in the batch, and the number of tokens before the first drawn one."""

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        """The scores (B, V), minus infinity except for the drawn token."""
        cumulative = self._kept((scores.double() / self._temperature).softmax(-1)).cumsum(-1)
        numbers = self._draws[self.rows, ids.shape[1] - self.width, None] * cumulative[:, -1:]
        tokens = torch.searchsorted(cumulative, numbers, right=True).clamp_(max=scores.shape[1] - 1)
        return torch.full_like(scores, -torch.inf).scatter_(1, tokens, 0.0)

    def _kept(self, probabilities: Tensor) -> Tensor:
        """The probabilities (B, V), 0 for the tokens that are not needed because more probable ones reach top_p."""
        if self._top_p >= 1:
            return probabilities
        ordered, tokens = probabilities.sort(-1, descending=True)
        ordered[ordered.cumsum(-1) - ordered >= self._top_p] = 0
        return torch.zeros_like(probabilities).scatter_(1, tokens, ordered)


@torch.inference_mode()
def _generate_batch(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[list[int]],
    max_new_tokens: int,
    end_ids: list[int],
    stop_text: str | None,
    sampling: _Sampling | None,
    tell: Callable[[int], None],
) -> list[list[int]]:
    width = max(map(len, prompts))
    # Padding is masked, but its embedding is looked up: some tokenizers use a token that their model does not have.
    own = cast(int | None, tokenizer.pad_token_id)
    pad_id = end_ids[0] if own is None or own >= embedding_rows(model) else own
    # On the left, so that every prompt ends where its continuation begins.
    ids = torch.tensor([[pad_id] * (width - len(prompt)) + prompt for prompt in prompts], device=model.device)
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=model.device)
    ends = torch.tensor(end_ids, device=model.device)

    def said(ids: Tensor, scores: Any = None, **_: Any) -> Tensor:
        """Which rows (B,) are finished."""
        ended = torch.isin(ids[:, width:], ends).any(1)
        if stop_text is None:
            return ended
        texts = tokenizer.batch_decode(ids[:, width:])
        return ended | torch.tensor([stop_text in text for text in texts], device=ids.device)

    answers = _continue(cast(Any, model), ids, mask, max_new_tokens, pad_id, said, sampling, tell)
    return [_ended(answer, tokenizer, end_ids, stop_text) for answer in answers]


def _ended(ids: list[int], tokenizer: PreTrainedTokenizerBase, end_ids: list[int], stop_text: str | None) -> list[int]:
    """The tokens up to the first one that ends them, or that completes the stop text."""
    ids = ids[: next((length for length, token in enumerate(ids, 1) if token in end_ids), None)]
    if stop_text is None:
        return ids
    lengths = range(len(ids))
    return ids[: bisect_left(lengths, True, key=lambda length: stop_text in tokenizer.decode(ids[:length]))]


def _continue(
    model: Any,
    ids: Tensor,
    mask: Tensor,
    max_new_tokens: int,
    pad_id: int,
    said: Callable[..., Tensor],
    sampling: _Sampling | None,
    tell: Callable[[int], None],
) -> list[list[int]]:
    """The new tokens of each row of `ids` (B, T), at least until `said` marks the row as finished.

    Finished rows leave the batch, an eighth of it at a time, if the model's cache consists of keys and values.
    """
    width, end = ids.shape[1], ids.shape[1] + max_new_tokens
    options = {"do_sample": False, "pad_token_id": pad_id, "use_cache": True, "return_dict_in_generate": True}
    options["synced_gpus"] = False  # each process has its own texts, and all weights
    if sampling is not None:
        sampling.width = width
        options["logits_processor"] = [sampling]
    first = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=1, **options)
    name = "cache" if "cache" in first else "past_key_values"  # the latter in older versions of transformers
    cache = first[name]
    if not _keeps_rows(cache):
        options |= {"max_new_tokens": max_new_tokens, "stopping_criteria": [said]}
        ids = model.generate(input_ids=ids, attention_mask=mask, **options).sequences
        tell(len(ids))
        return ids[:, width:].tolist()
    ids, mask = first.sequences, torch.cat([mask, mask.new_ones(len(mask), max_new_tokens)], 1)
    answers, places = [[0]] * len(ids), list(range(len(ids)))

    def enough(ids: Tensor, scores: Any, **_: Any) -> Tensor:
        done = said(ids)
        return (8 * done.sum() >= len(done)).expand(len(done))

    while True:
        done = said(ids) if ids.shape[1] < end else ids.new_ones(len(ids), dtype=torch.bool)
        for place, row, finished in zip(places, ids[:, width:].tolist(), done.tolist(), strict=True):
            if finished:
                answers[place] = row
        if done.any():
            places = [place for place, finished in zip(places, done.tolist(), strict=True) if not finished]
            tell(len(answers) - len(places))
            if sampling is not None:
                sampling.rows = places
            ids, mask = ids[~done], mask[~done]
            if not places:
                return answers
            cache.batch_select_indices((~done).nonzero().flatten())
        ids = model.generate(
            input_ids=ids,
            attention_mask=mask[:, : ids.shape[1]],
            max_new_tokens=end - ids.shape[1],
            stopping_criteria=[enough],
            **{name: cache},
            **options,
        ).sequences


def _keeps_rows(cache: Any) -> bool:
    """Whether rows can be removed from a cache: it holds keys and values per row and nothing else."""
    return type(cache) is DynamicCache and all(
        type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in cache.layers
    )


def end_ids_of(settings: GenerationConfig, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that end a generation: those in its settings, and the tokenizer's end-of-sequence token."""
    configured = settings.eos_token_id
    ids = configured if isinstance(configured, list) else [configured]
    known = dict.fromkeys(end for end in [*ids, tokenizer.eos_token_id] if end is not None)
    if not known:
        raise ValueError("neither the model's generation config nor the tokenizer has an end-of-sequence token")
    return list(known)
