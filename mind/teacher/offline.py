"""Offline engines: vLLM in this process, and vLLM replicas on the machines of a Ray cluster.

Both give vLLM the same token ids, made by the model's chat template, and the same sampling parameters: those of the
request, and vLLM's defaults for the rest. The recommendations in generation_config.json are not used.
"""

from __future__ import annotations

import functools
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jinja2

from mind.display import one_line
from mind.errors import MindError
from mind.provenance import now
from mind.records import Key, Response
from mind.teacher.completion import Problem, completed
from mind.teacher.job import Store
from mind.teacher.requests import MAX_DETAIL_CHARACTERS, Failure, Outcome, Request
from mind.teacher.spending import BUDGET_USED_UP, Spending
from mind.typed_json import record_of, row_of
from mind.vllm_engine import EngineEndedError, engine_package, load_engine

INFERENCE_ERROR = "__inference_error__"
"""The column in which Ray Data says why a row has no answer; empty if it has one."""


class _OfflineEngine:
    """The common part of both engines: the budget, and the outcome of a request."""

    def __init__(self, model: str, spending: Spending, batch_size: int, engine_options: Mapping[str, Any]) -> None:
        self._model, self._spending = model, spending
        self._batch_size, self._options = batch_size, dict(engine_options)
        self.retries: Counter[str] = Counter()
        """Empty: a request is sent once."""
        self.stopped: str | None = None
        """Why requests were not sent; None if all were."""

    def _outcomes(
        self,
        request: Request,
        text: str,
        finish_reason: str | None,
        tokens: tuple[int, int],
        seconds: float,
    ) -> list[Outcome]:
        """The outcome of a request that was answered by `text`, given the number of tokens of prompt and answer."""
        try:
            answer = completed(text, finish_reason or "abort", tokens)  # vLLM gives None for an answer that did not end
        except Problem as problem:
            wasted = self._spending.waste(request, problem)
            failure = _failure(request, problem.reason, problem.detail)
            return [failure] if wasted is None else [wasted, failure]
        self._spending.add(request, *tokens)
        self._spending.usage.requests += 1
        response = Response(
            request.key,
            request=request.digest,
            model=self._model,
            text=request.whole(answer.text),
            finish_reason=answer.finish_reason,
            prompt_tokens=tokens[0],
            completion_tokens=tokens[1],
            attempts=1,
            seconds=round(seconds, 3),
            created=now(),
            reasoning=answer.reasoning,
        )
        return [response]


class VLLMEngine(_OfflineEngine):
    """Answers requests by `vllm.LLM.chat`, one batch at a time; the first batch loads the model."""

    def __init__(
        self, model: str, spending: Spending, *, batch_size: int = 256, engine_options: Mapping[str, Any]
    ) -> None:
        """`engine_options` are vLLM's engine arguments. Raises MindError if vLLM is missing."""
        super().__init__(model, spending, batch_size, engine_options)
        self._vllm = engine_package("vllm", "vllm")
        self._refusals = (engine_package("vllm.exceptions", "vllm").VLLMClientError, ValueError, TypeError)

    def run(self, requests: Iterable[Request], store: Store) -> None:
        """Answers `requests`, and calls `store` after each batch, so a kill loses one batch.

        A request that vLLM refuses, such as a prompt longer than its context, is a Failure. An engine that dies ends
        the job, and `stopped` has vLLM's error. Raises MindError if vLLM cannot load the model.
        """
        for batch in self._batches(requests):
            try:
                outcomes = self._answer(batch)
            except EngineEndedError as error:
                self.stopped = str(error)
                return
            for request in batch:
                self._spending.release(request)
            store(outcomes)

    def _batches(self, requests: Iterable[Request]) -> Iterator[list[Request]]:
        """Batches that fit the budget; near its end they get smaller, since only answers show what is left of it."""
        batch: list[Request] = []
        for request in requests:
            while not self._spending.reserve(request):
                if not batch:
                    self.stopped = BUDGET_USED_UP
                    return
                yield batch
                batch = []
            batch.append(request)
            if len(batch) == self._batch_size:
                yield batch
                batch = []
        if batch:
            yield batch

    def _answer(self, batch: list[Request]) -> list[Outcome]:
        """The outcomes of `batch`, in its order. One refused request fails the whole call, so each half is then asked
        again."""
        engine, started = self._engine, time.monotonic()
        try:
            outputs = engine.chat(
                [list(request.messages) for request in batch],
                [self._vllm.SamplingParams(**_sampling(request)) for request in batch],
                use_tqdm=False,
                **_continuing(bool(batch[0].beginning)),  # a job continues all of its answers, or none
            )
        except self._refusals as error:
            if len(batch) == 1:
                return [_failure(batch[0], "refused by vLLM", f"{type(error).__name__}: {error}")]
            middle = len(batch) // 2
            return self._answer(batch[:middle]) + self._answer(batch[middle:])
        except Exception as error:
            raise EngineEndedError.of(error) from error
        seconds = (time.monotonic() - started) / len(batch)
        outcomes = []
        for request, output in zip(batch, outputs, strict=True):
            answer = output.outputs[0]
            tokens = len(output.prompt_token_ids), len(answer.token_ids)
            outcomes += self._outcomes(request, answer.text, answer.finish_reason, tokens, seconds)
        return outcomes

    @functools.cached_property
    def _engine(self) -> Any:
        return load_engine(self._vllm, self._model, self._options)


class RayEngine(_OfflineEngine):
    """Answers requests by Ray Data's vLLM processor, on the cluster that RAY_ADDRESS names, or else on this machine.

    Each machine needs mind-kernels[ray] and the model under the same name, since a row holds only texts and numbers.
    """

    def __init__(
        self,
        model: str,
        spending: Spending,
        *,
        batch_size: int = 256,
        replicas: int = 1,
        engine_options: Mapping[str, Any],
        processor_factory: Callable[..., Any] | None = None,
    ) -> None:
        """At most `replicas` engines work at the same time, each with `tensor_parallel_size` of `engine_options` GPUs.

        `processor_factory` replaces `ray.data.llm.build_processor` in tests. Raises MindError if Ray is missing.
        """
        super().__init__(model, spending, batch_size, engine_options)
        self._replicas = replicas
        self._ray, self._llm = engine_package("ray", "ray"), engine_package("ray.data.llm", "ray")
        self._build = processor_factory or self._llm.build_processor

    def run(self, requests: Iterable[Request], store: Store) -> None:
        """Answers `requests`, and calls `store` with each block of answers as it comes, in any order.

        A request that an engine refuses is a Failure. An engine that dies is restarted, without limit, and its requests
        are asked again. A kill loses the batches under way, eight per engine. Raises MindError if RAY_ADDRESS names no
        cluster.
        """
        asked = {request.key: request for request in self._affordable(requests)}
        if not asked:
            return
        try:
            self._ray.init(ignore_reinit_error=True)
        except (ConnectionError, ValueError) as error:
            raise MindError(f"RAY_ADDRESS names no Ray cluster: {error}") from error
        self._ray.data.DataContext.get_current().enable_progress_bars = False
        dataset = self._processor()(self._ray.data.from_items([_row(request) for request in asked.values()]))
        for block in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
            store([outcome for row in block.to_pylist() for outcome in self._outcomes_of_row(asked, row)])

    def _affordable(self, requests: Iterable[Request]) -> Iterator[Request]:
        """The requests whose worst cases fit the budget together: the engines load for a single data set."""
        for request in requests:
            if not self._spending.reserve(request):
                self.stopped = "the worst case of the rest does not fit the budget"
                return
            yield request

    def _processor(self) -> Callable[[Any], Any]:
        # Ray's own stages would tokenize the prompt, which already begins with the template's special tokens, with
        # special tokens again: two of them for Llama, Gemma and DeepSeek. vLLM detokenizes as it generates.
        config = self._llm.vLLMEngineProcessorConfig(
            model_source=self._model,
            batch_size=self._batch_size,
            concurrency=self._replicas,
            engine_kwargs=dict(self._options),
            should_continue_on_error=True,
            chat_template_stage=False,
            tokenize_stage=False,
            detokenize_stage=False,
        )
        tokenized = functools.partial(_tokenized, self._model, self._options.get("trust_remote_code", False))
        return self._build(config, preprocess=tokenized, postprocess=_answered)

    def _outcomes_of_row(self, asked: Mapping[Key, Request], row: Mapping[str, Any]) -> list[Outcome]:
        request = asked[record_of(Key, "a row of Ray Data", row)]
        self._spending.release(request)
        if row[INFERENCE_ERROR]:
            return [_failure(request, "refused by vLLM", row[INFERENCE_ERROR])]
        tokens = row["prompt_tokens"], row["completion_tokens"]
        return self._outcomes(request, row["text"], self._finish_reason(request, row), tokens, row["seconds"])

    def _finish_reason(self, request: Request, row: Mapping[str, Any]) -> str:
        """Ray Data drops vLLM's finish reason: an answer that reaches the token limit counts as cut off."""
        context = self._options.get("max_model_len")
        full = isinstance(context, int) and 0 < context <= row["prompt_tokens"] + row["completion_tokens"]
        return "length" if full or row["completion_tokens"] >= request.max_tokens else "stop"


def _row(request: Request) -> dict[str, Any]:
    return {
        **row_of(request.key),
        "messages": list(request.messages),
        "sampling_params": _sampling(request),
    }


def _tokenized(model: str, trust_remote_code: bool, row: Mapping[str, Any]) -> dict[str, Any]:
    """The prompt of a row of Ray Data, made on the machine that has the row; Ray drops rows with an error."""
    tokenizer = _tokenizer(model, trust_remote_code)
    try:
        messages = list(row["messages"])
        begun = messages[-1]["role"] == "assistant"
        text = tokenizer.apply_chat_template(messages, tokenize=False, **_continuing(begun))
        return {"tokenized_prompt": tokenizer(text, add_special_tokens=False)["input_ids"], INFERENCE_ERROR: ""}
    except (jinja2.TemplateError, TypeError, ValueError) as error:
        return {"tokenized_prompt": [], INFERENCE_ERROR: f"{type(error).__name__}: {error}"}


@functools.cache
def _tokenizer(model: str, trust_remote_code: bool) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model, trust_remote_code=trust_remote_code)


def _continuing(begun: bool) -> dict[str, bool]:
    """The arguments that tell a chat template whether the last message is the beginning of an answer."""
    return {"add_generation_prompt": not begun, "continue_final_message": begun}


def _answered(row: Mapping[str, Any]) -> dict[str, Any]:
    """The needed fields of an answered row; Ray Data passes the others on as they are."""
    return {
        **{name: row[name] for name in ("id", "perspective", "sample")},
        "text": row["generated_text"],
        "prompt_tokens": row["num_input_tokens"],
        "completion_tokens": row["num_generated_tokens"],
        "seconds": row["time_taken_llm"],
    }


def _sampling(request: Request) -> dict[str, Any]:
    """Keyword arguments of vLLM's SamplingParams, always all of them: a column of Ray Data has one set of keys."""
    vllm_default = 1.0
    return {
        "max_tokens": request.max_tokens,
        "seed": request.seed,
        "temperature": vllm_default if request.temperature is None else request.temperature,
        "top_p": vllm_default if request.top_p is None else request.top_p,
    }


def _failure(request: Request, reason: str, detail: str) -> Failure:
    return Failure(request.key, reason, one_line(detail, MAX_DETAIL_CHARACTERS), attempts=1)
