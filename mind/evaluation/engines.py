"""The engines that answer prompts: transformers, or vLLM with the same prompts and the same ends of an answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from mind import processes
from mind.config import StudentConfig
from mind.errors import MindError
from mind.evaluation.batches import BatchSize
from mind.evaluation.config import SamplingConfig
from mind.evaluation.generation import end_ids_of, generate_responses, reply_of
from mind.evaluation.outcomes import Reply
from mind.evaluation.samples import numbers
from mind.student.model import context_of, load_settings
from mind.student.tokenization import Chat, embedding_rows
from mind.vllm_engine import EngineEndedError, engine_package, load_engine

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Engine(Protocol):
    """A student that can be asked."""

    chat: Chat
    """Makes the prompts, and knows what ends an answer."""
    context: int | None
    """Tokens of a prompt and its answer together, at most; None without a limit."""

    def replies(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        sampling: SamplingConfig | None,
        seeds: Sequence[int],
        progress: Callable[[int], object],
    ) -> list[Reply]:
        """A reply to each prompt (token ids): greedy or, if `sampling` is given, the sample that its seed determines.

        `progress` gets the number of finished replies.
        """
        ...


class TransformersEngine:
    """A student loaded in this process. A sample depends only on its seed and, through rounding, on the batch."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: BatchSize = "auto"
    ) -> None:
        self._model, self._tokenizer, self._batch_size = model, tokenizer, batch_size
        self.chat, self.context = Chat(tokenizer, embedding_rows(model)), context_of(model)

    def replies(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        sampling: SamplingConfig | None,
        seeds: Sequence[int],
        progress: Callable[[int], object],
    ) -> list[Reply]:
        """As in `Engine`. Several processes share the prompts."""

        def answered(places: Sequence[int]) -> list[Reply]:
            options: dict[str, Any] = {}
            if sampling is not None:
                options = {"temperature": sampling.temperature, "top_p": sampling.top_p}
                options["draws"] = numbers([seeds[place] for place in places], max_new_tokens)
            return generate_responses(
                self._model,
                self._tokenizer,
                [prompts[place] for place in places],
                max_new_tokens=max_new_tokens,
                batch_size=self._batch_size,
                stop_text=self.chat.stop_text,
                progress=processes.for_all(progress, len(places), len(prompts)),
                **options,
            )

        return processes.spread(range(len(prompts)), answered, [len(prompt) for prompt in prompts])


class VLLMEngine:
    """A student that vLLM loads, in this process. vLLM makes its own batches, in which numbers round differently:
    greedy answers can differ where two tokens are nearly equally probable, and samples differ from those of
    transformers."""

    def __init__(self, student: StudentConfig, options: Mapping[str, Any]) -> None:
        """`options` are vLLM's engine arguments. Raises MindError if vLLM is missing or cannot load the student."""
        package = engine_package("vllm", "vllm")
        name, self.chat, config, settings = load_settings(student)
        limits = (getattr(config.get_text_config(), "max_position_embeddings", None), options.get("max_model_len"))
        self.context = min((limit for limit in limits if limit is not None), default=None)
        self._ends = end_ids_of(settings, self.chat.tokenizer)
        self._parameters: Any = package.SamplingParams
        self._engine = load_engine(package, name, {"dtype": student.dtype, **options})

    def replies(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        sampling: SamplingConfig | None,
        seeds: Sequence[int],
        progress: Callable[[int], object],
    ) -> list[Reply]:
        """As in `Engine`. Raises MindError for a prompt that vLLM does not answer, and if its engine ends."""
        stop = self.chat.stop_text
        common = {
            "max_tokens": max_new_tokens,
            "stop_token_ids": self._ends,
            "stop": None if stop is None else [stop],
            "temperature": 0.0 if sampling is None else sampling.temperature,
            "top_p": 1.0 if sampling is None else sampling.top_p,
        }
        each = [{} for _ in prompts] if sampling is None else [{"seed": seed} for seed in seeds]
        parameters = [self._parameters(**common, **own) for own in each]
        try:
            outputs = self._engine.generate(
                [{"prompt_token_ids": list(prompt)} for prompt in prompts], parameters, use_tqdm=False
            )
        except Exception as error:
            raise EngineEndedError.of(error) from error
        replies = [self._reply(output.outputs[0], stop) for output in outputs]
        progress(len(replies))
        return replies

    def _reply(self, output: Any, stop: str | None) -> Reply:
        if output.finish_reason not in ("stop", "length"):
            raise MindError(f"vLLM ended an answer by {output.finish_reason!r}: expected 'stop' or 'length'")
        text = reply_of(self.chat.tokenizer, output.token_ids, self._ends, stop).text if output.token_ids else ""
        return Reply(text, output.finish_reason == "length")
