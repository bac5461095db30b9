"""Samples the student's own answers during training: the `sample` of a Step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import nn

from mind import processes
from mind.batches.prompt_sharing import use_attention
from mind.evaluation.generation import generate_ids
from mind.methods.method import MethodContext
from mind.methods.step import random_of
from mind.student.model import attention_of, causal_lm
from mind.student.probe import trunk_of
from mind.student.tokenization import Chat


class Sampler:
    """Samples from the current student, without a graph and with dropout off.

    The random numbers of an answer depend only on the run's seed, the step and the answer's place among those of the
    step: a resumed run, another packing and more processes give the same samples.
    """

    def __init__(self, context: MethodContext) -> None:
        """Must be built before the training attention is set: answers are generated with the attention of the
        evaluation."""
        self._context = context
        self._attention = attention_of(causal_lm(context.model))

    @cached_property
    def _stop_text(self) -> str | None:
        return Chat(self._context.tokenizer).stop_text

    def sample(
        self,
        step: int,
        prompts: Sequence[Sequence[int]],
        *,
        temperature: float,
        max_new_tokens: int,
        progress: Callable[[int], object] | None = None,
    ) -> list[tuple[int, ...]]:
        """As described in `mind.methods.step.Sample`; `step` is the step's number. The processes share the work."""
        config = self._context.config
        draws = torch.rand(
            len(prompts), max_new_tokens, generator=random_of(config.train.seed, step, "sample"), dtype=torch.float64
        )
        model: Any = self._context.model

        def continued(places: Sequence[int]) -> list[list[int]]:
            return generate_ids(
                model,
                self._context.tokenizer,
                [prompts[place] for place in places],
                max_new_tokens=max_new_tokens,
                batch_size=config.evaluation.batch_size,
                stop_text=self._stop_text,
                temperature=temperature,
                draws=draws[list(places)],
                progress=processes.for_all(progress, len(places), len(prompts)),
            )

        with self._as_evaluated(model):
            samples = processes.spread(range(len(prompts)), continued, [len(prompt) for prompt in prompts])
        return [tuple(sample) for sample in samples]

    @contextmanager
    def _as_evaluated(self, model: nn.Module) -> Iterator[None]:
        """Inside the block, the model uses the attention that it was loaded with, and no compiled trunk."""
        trunk = trunk_of(causal_lm(model))
        compiled, trunk._compiled_call_impl = trunk._compiled_call_impl, None
        try:
            with use_attention(model, self._attention):
                yield
        finally:
            trunk._compiled_call_impl = compiled
