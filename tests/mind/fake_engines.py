"""Stand-ins for what the offline engines use of vLLM and Ray.

They take the arguments that the engines pass and no others, under the names and defaults of the real ones: see
`assert_agrees`. What of the real packages is installed and needs no GPU takes the place of its stand-in.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

from tiny import build_tokenizer

HAS_VLLM, HAS_RAY = (importlib.util.find_spec(name) is not None for name in ("vllm", "ray"))


def assert_agrees(fake: Callable, real: Callable) -> None:
    """Each parameter of `fake` is one of `real`, and has its default."""
    fakes, reals = (inspect.signature(one).parameters for one in (fake, real))
    for name, parameter in fakes.items():
        assert name in reals, f"{real} has no {name}"
        if "factory" not in repr(parameter.default):
            assert parameter.default == reals[name].default, f"{real}: {name}"


@dataclass
class FakeSamplingParams:
    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    max_tokens: int | None = 16


@dataclass
class FakeCompletionOutput:
    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None
    logprobs: None
    finish_reason: str | None = None


@dataclass
class FakeRequestOutput:
    request_id: str
    prompt: str | None
    prompt_token_ids: list[int] | None
    prompt_logprobs: None
    outputs: list[FakeCompletionOutput]
    finished: bool


class FakeVLLM(ModuleType):
    """`vllm` with an engine whose `reply` to a user's turn is a text, a pair (text, finish_reason) or an exception."""

    def __init__(self) -> None:
        super().__init__("vllm")
        self.reply: Callable[[str], Any] = lambda turn: f"about {turn}\n#### 4"
        self.loaded: list[FakeLLM] = []
        self.LLM = lambda *arguments, **options: FakeLLM(self, *arguments, **options)
        self.SamplingParams, self.ClientError = FakeSamplingParams, type("VLLMClientError", (Exception,), {})
        self.CompletionOutput, self.RequestOutput = FakeCompletionOutput, FakeRequestOutput
        if HAS_VLLM:
            self.SamplingParams = importlib.import_module("vllm").SamplingParams
            self.ClientError = importlib.import_module("vllm.exceptions").VLLMClientError
            outputs = importlib.import_module("vllm.outputs")
            self.CompletionOutput, self.RequestOutput = outputs.CompletionOutput, outputs.RequestOutput

    def modules(self) -> dict[str, ModuleType]:
        exceptions = ModuleType("vllm.exceptions")
        exceptions.VLLMClientError = self.ClientError
        return {"vllm": self, "vllm.exceptions": exceptions}


class FakeLLM:
    """Of `vllm.LLM` what the engine uses."""

    def __init__(self, package: FakeVLLM, model: str, **kwargs: Any) -> None:
        if unknown := kwargs.keys() - {"max_model_len", "dtype"}:
            raise TypeError(f"EngineArgs.__init__() got an unexpected keyword argument {min(unknown)!r}")
        self.package, self.model, self.kwargs = package, model, kwargs
        self.calls: list[list[str]] = []
        package.loaded.append(self)

    def chat(
        self, messages, sampling_params=None, use_tqdm=True, *, add_generation_prompt=True, continue_final_message=False
    ):
        assert not use_tqdm and len(messages) == len(sampling_params)
        begun = {turns[-1]["role"] == "assistant" for turns in messages}
        assert begun == {continue_final_message} == {not add_generation_prompt}
        self.calls.append([turns[-1]["content"] for turns in messages])
        self.sampling = sampling_params
        replies = [self.package.reply(turn) for turn in self.calls[-1]]
        for reply in replies:
            if isinstance(reply, Exception):
                raise reply
        return [
            self._output(number, *(reply if isinstance(reply, tuple) else (reply, "stop")))
            for number, reply in enumerate(replies)
        ]

    def generate(self, prompts, sampling_params=None, *, use_tqdm=True):
        """Its `reply` to the token ids of a prompt is token ids, or a pair (token ids, finish_reason)."""
        assert not use_tqdm and len(prompts) == len(sampling_params)
        self.calls.append([prompt["prompt_token_ids"] for prompt in prompts])
        self.sampling = sampling_params
        replies = [self.package.reply(ids) for ids in self.calls[-1]]
        replies = [reply if isinstance(reply, tuple) else (reply, "stop") for reply in replies]
        return [
            self.package.RequestOutput(
                str(number), None, ids, None,
                [self.package.CompletionOutput(0, "", reply, None, None, finish_reason=finish_reason)], True,
            )
            for number, (ids, (reply, finish_reason)) in enumerate(zip(self.calls[-1], replies, strict=True))
        ]  # fmt: skip

    def _output(self, number: int, text: str, finish_reason: str | None):
        """A text that has a token a character, after a prompt of nine tokens."""
        output = self.package.CompletionOutput(0, text, list(range(len(text))), None, None, finish_reason=finish_reason)
        return self.package.RequestOutput(str(number), None, [0] * 9, None, [output], True)


@dataclass(kw_only=True)
class FakeConfig:
    model_source: str
    batch_size: int = 32
    concurrency: int = 1
    should_continue_on_error: bool = False
    chat_template_stage: Any = True
    tokenize_stage: Any = True
    detokenize_stage: Any = True
    engine_kwargs: dict[str, Any] = field(default_factory=dict)


class FakeRay(ModuleType):
    """`ray` whose replicas answer by `engine(prompt, sampling)`: a text, which has a token a word, or an exception."""

    def __init__(self) -> None:
        super().__init__("ray")
        self.engine: Callable[[str, FakeSamplingParams], Any] = lambda prompt, sampling: "so\n#### 4"
        self.datasets: list[FakeDataset] = []
        self.context = SimpleNamespace()
        self.data, self.llm = ModuleType("ray.data"), ModuleType("ray.data.llm")
        self.data.from_items = self.from_items
        self.data.DataContext = SimpleNamespace(get_current=lambda: self.context)
        self.llm.build_processor, self.llm.vLLMEngineProcessorConfig = self.build_processor, FakeConfig
        if HAS_RAY:
            self.llm.vLLMEngineProcessorConfig = importlib.import_module("ray.data.llm").vLLMEngineProcessorConfig

    def modules(self) -> dict[str, ModuleType]:
        return {"ray": self, "ray.data": self.data, "ray.data.llm": self.llm}

    @staticmethod
    def init(*, ignore_reinit_error=False):
        assert ignore_reinit_error

    def from_items(self, items):
        self.datasets.append(FakeDataset(self, items))
        return self.datasets[-1]

    @staticmethod
    def build_processor(config, preprocess=None, postprocess=None):
        assert config.should_continue_on_error

        def processor(dataset: FakeDataset) -> FakeDataset:
            dataset.config, dataset.preprocess, dataset.postprocess = config, preprocess, postprocess
            return dataset

        return processor


class FakeDataset:
    """Rows that are answered a batch at a time, when it is asked for."""

    def __init__(self, package: FakeRay, items: list[dict[str, Any]]) -> None:
        self.package, self.items = package, [json.loads(json.dumps(item)) for item in items]
        self.batches = 0

    def iter_batches(self, *, batch_size=256, batch_format="default"):
        assert batch_size is None and batch_format == "pyarrow"
        for start in range(0, len(self.items), self.config.batch_size):
            self.batches += 1
            rows = [self._answered(row) for row in self.items[start : start + self.config.batch_size]]
            yield SimpleNamespace(to_pylist=lambda rows=rows: rows)

    def _answered(self, row: dict[str, Any]) -> dict[str, Any]:
        """As Ray does: a column of its own for errors, and no further stage for rows that have one."""
        row |= self.preprocess(row)
        if row.get("__inference_error__", "") != "":
            return row
        ids, sampling = row.pop("tokenized_prompt"), FakeSamplingParams(**row.pop("sampling_params"))
        answer = self.package.engine(build_tokenizer().decode(ids), sampling)
        if isinstance(answer, Exception):
            return row | {
                "generated_text": "",
                "num_input_tokens": 0,
                "num_generated_tokens": 0,
                "time_taken_llm": -1,
                "__inference_error__": f"{type(answer).__name__}: {answer}",
            }
        row |= {
            "generated_text": answer,
            "num_input_tokens": len(ids),
            "num_generated_tokens": len(answer.split()),
            "time_taken_llm": 0.25,
        }
        return self.postprocess(row) | {"__inference_error__": ""}
