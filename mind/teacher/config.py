"""The configuration of a teacher's job and of a judge's. It never holds a credential."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import ClassVar, Literal
from urllib.parse import urlsplit

from mind.data.sources import SourceConfig
from mind.errors import MindError, require
from mind.files import parse_object
from mind.perspectives import KNOWLEDGE
from mind.typed_json import check_bounds, check_fields

RECIPES = ("dual", "rewrite", "prefix")
"""Fields of GenerateConfig that name a judged folder; the job then asks about the answers in it."""
MAX_PERSPECTIVES = 32
MAX_CONCURRENCY = 1000
"""Connections that the client opens at the same time; further requests would wait for one, and time out."""
_OPTIONS = frozenset(
    ("model", "messages", "stream", "n", "temperature", "top_p", "seed", "max_tokens", "max_completion_tokens")
)
"""Fields of a request that follow from the options, or that would change the reply in a way that is not read."""
_VARIABLE = re.compile("[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True)
class ModelConfig:
    """A model that teaches or judges, and how its answers are sampled."""

    OPTIONS: ClassVar[str] = "--teacher."
    """How the options begin that set these fields."""

    model: str
    """The name that the endpoint knows; for the offline engines, a folder or a name on the Hub."""
    engine: Literal["openai", "vllm", "ray"] = "openai"
    """"openai": any endpoint with OpenAI's chat completions (vLLM, SGLang, llama.cpp, a hosted API). "vllm": vLLM's
    offline engine in this process. "ray": vLLM on the machines of a Ray cluster."""
    base_url: str = "https://api.openai.com/v1"
    """The endpoint of engine "openai"."""
    api_key_env: str | None = None
    """The environment variable that holds the endpoint's key, which is never logged or written. None: OPENAI_API_KEY
    for OpenAI's own endpoint, and no key for any other."""
    temperature: float | None = 0.7
    """Temperature of the answers. None: the server decides (also for top_p and seed); vLLM's own default is 1."""
    top_p: float | None = None
    """Nucleus sampling: draw only from the most probable tokens whose probabilities add up to this."""
    max_tokens: int = 1024
    """Longest answer, in tokens; an answer that is cut off there counts as truncated."""
    seed: int | None = None
    """Seed of the job, from which each request gets a seed of its own."""
    token_limit_name: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """The endpoint's name for max_tokens: OpenAI's newer models need max_completion_tokens."""
    extra_body: str = "{}"
    """A JSON object whose fields are added to each request of engine "openai", such as {"chat_template_kwargs": {...}}.
    It may not repeat what other options set."""
    engine_options: str = "{}"
    """A JSON object of vLLM's engine arguments for the offline engines, such as {"max_model_len": 4096}."""
    batch_size: int = 256
    """Requests per batch of an offline engine. If the job is killed, one batch is lost with vLLM, up to eight per
    engine with Ray."""
    replicas: int = 1
    """Engines of "ray" that work at the same time, at most."""

    def __post_init__(self) -> None:
        require(
            self.api_key_env is None or _VARIABLE.fullmatch(str(self.api_key_env)) is not None,
            f"{self.option('api_key_env')}: expected the name of an environment variable, of letters, digits and _, "
            "and not the key",
        )
        section = self.OPTIONS.strip("-.")
        check_fields(section, self)  # raises, showing the value, for one that it refuses
        self._check_url()
        bounds = dict.fromkeys(("max_tokens", "batch_size", "replicas"), "at least 1")
        check_bounds(section, self, bounds | {"temperature": "a number >= 0", "top_p": "a number in (0, 1]"})
        for name in ("extra_body", "engine_options"):
            _check_object(self.option(name), getattr(self, name))
        twice = sorted(parse_object("extra_body", self.extra_body.encode()).keys() & _OPTIONS)
        require(
            not twice,
            f"{self.option('extra_body')} has {', '.join(twice)}: expected none of what other options set or what is "
            "not read",
        )

    def option(self, field: str) -> str:
        """The option that sets a field."""
        return self.OPTIONS + field.replace("_", "-")

    def _check_url(self) -> None:
        """Raises a MindError, which does not show the URL, unless the URL may be written to generate.json."""
        try:
            url = urlsplit(self.base_url)
            usable = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
        except ValueError:
            usable = False
        require(
            usable and self.base_url.isprintable() and " " not in self.base_url,
            f"{self.option('base_url')}: expected a URL such as http://127.0.0.1:8000/v1",
        )
        require(
            "@" not in url.netloc and "?" not in self.base_url and "#" not in self.base_url,
            f"{self.option('base_url')} holds credentials, a query or a fragment: give the key in the environment "
            f"variable that {self.option('api_key_env')} names",
        )


class JudgeModel(ModelConfig):
    """A model that judges."""

    OPTIONS = "--"


def _check_object(name: str, text: str) -> None:
    """Raises MindError unless `text` is a JSON object that can be sent."""
    try:
        json.dumps(
            parse_object(name, text.encode("utf-8", "surrogatepass")), allow_nan=False, ensure_ascii=False
        ).encode()
    except ValueError as error:  # nan and infinite numbers, and lone surrogates
        raise MindError(f"{name}: cannot be sent as JSON: {error}") from None


@dataclass(frozen=True)
class TrafficConfig:
    """How engine "openai" sends requests to the server."""

    concurrency: int = 32
    """Requests that wait for an answer at the same time."""
    timeout_seconds: float = 300
    """Seconds for a whole answer."""
    attempts: int = 6
    """Attempts per request; then it counts as failed."""
    first_wait_seconds: float = 1
    """Seconds before the second attempt. They double with each attempt, and a random part of up to a half is
    subtracted. If the server sends Retry-After, all requests wait for that long instead."""
    longest_wait_seconds: float = 600
    """The job ends if the server asks for a longer wait. When it is started again, it continues where it stopped."""
    stop_after_failures: int = 20
    """The job ends after this many failed requests in a row."""

    def __post_init__(self) -> None:
        check_fields("traffic", self)
        for name in ("concurrency", "attempts", "stop_after_failures"):
            require(getattr(self, name) >= 1, f"traffic.{name} is {getattr(self, name)}: expected at least 1")
        require(
            self.concurrency <= MAX_CONCURRENCY,
            f"traffic.concurrency is {self.concurrency}: expected at most {MAX_CONCURRENCY}",
        )
        for name in ("timeout_seconds", "first_wait_seconds", "longest_wait_seconds"):
            require(getattr(self, name) > 0, f"traffic.{name} is {getattr(self, name)}: expected a positive number")


@dataclass(frozen=True)
class BudgetConfig:
    """What a data set may cost in total, including earlier starts. A request is sent only if its worst case fits."""

    cost: float | None = None
    """Largest cost, in the currency of the prices."""
    tokens: int | None = None
    """Largest number of tokens of prompts and answers together."""
    requests: int | None = None
    """Largest number of answered requests."""

    def __post_init__(self) -> None:
        check_fields("budget", self)
        for name in ("cost", "tokens", "requests"):
            value = getattr(self, name)
            require(value is None or value > 0, f"budget.{name} is {value}: expected a positive number")


@dataclass(frozen=True)
class GenerateConfig:
    """All settings that determine a data set before it is judged."""

    output: str
    """The folder of the data set. A job that was stopped continues when it is started again with the same folder."""
    questions: SourceConfig
    teacher: ModelConfig
    perspectives: tuple[str, ...] | None = None
    """Names of the perspectives to ask for. None: those in the file `prompts` or, without it, the paper's eight."""
    prompts: str | None = None
    """A JSON file of {perspective: prompt}: your own perspectives, or your wording of the paper's. With --dual the
    names are "rectify" and "corrupt"; with --rewrite, "rewrite"."""
    samples: int = 1
    """Answers per question and perspective; per answer of --dual and --rewrite, and per beginning of --prefix."""
    knowledge: bool = False
    """Also ask once per question for general rules that solve questions of its kind. The rules are not judged; `mind
    data filter` keeps them with the question. Methods lorid and nesycd learn from them."""
    show_answer: bool = False
    """Show the gold answer to the teacher: more rationales are right, but then pass rates do not show which questions
    are easy."""
    dual: str | None = None
    """A folder of generated and judged answers: ask for a right version of each wrong answer in it, and for a wrong
    version of each right one, with few changes, as EDIT does: `--dual data/mine --output data/dual`. Options default to
    those of that folder, the temperature to 0.2."""
    rewrite: str | None = None
    """A folder of generated and judged answers: ask for a shorter version of each right answer in it, as LiteCoT does:
    `--rewrite data/mine --output data/short`. Options default to those of that folder."""
    prefix: str | None = None
    """A folder of generated and judged answers: let the teacher continue the beginning of each right answer in it:
    `--prefix data/mine --cuts 3 --output data/again`. Options default to those of that folder. Engine "openai" needs a
    server that continues the last message, such as vLLM or SGLang."""
    cuts: int = 1
    """Beginnings per answer of --prefix. 1: the first paragraph (or line, or sentence); more are spread evenly over the
    answer, as in Retro-Search, which looks for a shorter way from each."""
    traffic: TrafficConfig = field(default_factory=TrafficConfig)
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    prices: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Model -> price per million prompt tokens and price per million answer tokens."""
    currency: str = "USD"
    """Currency of the prices."""

    def __post_init__(self) -> None:
        check_fields("", self)
        if self.perspectives is not None:
            count = len(self.perspectives)
            require(1 <= count <= MAX_PERSPECTIVES, f"{count} perspectives: expected 1 to {MAX_PERSPECTIVES}")
            doubled = sorted({name for name in self.perspectives if self.perspectives.count(name) > 1})
            require(not doubled, f"perspectives: {', '.join(doubled)} named more than once")
            require(
                KNOWLEDGE not in self.perspectives,
                f"perspectives: {KNOWLEDGE} is what --knowledge asks for, and no perspective",
            )
        check_bounds("", self, {"samples": "1 to 10,000"})
        for model, price in self.prices.items():
            require(
                min(price) >= 0,
                f"prices: {model} has {price}: expected two numbers >= 0, per million prompt and answer tokens",
            )
        require(
            self.budget.cost is None or self.teacher.model in self.prices,
            f"budget.cost needs the price of {self.teacher.model}: --prices {self.teacher.model} INPUT OUTPUT, "
            "per million tokens",
        )
        named = [f"--{name}" for name in RECIPES if getattr(self, name) is not None]
        require(len(named) <= 1, f"{' and '.join(named)}: expected one of them")
        require(self.cuts >= 1, f"cuts is {self.cuts}: expected at least 1")
        require(self.cuts == 1 or self.prefix is not None, f"cuts is {self.cuts}: expected it with --prefix alone")
        for name in ("show_answer", "knowledge"):
            require(not (named and getattr(self, name)), f"{''.join(named)} and {name}: expected one of them")

    @property
    def recipe(self) -> str | None:
        """The name in RECIPES of what is asked about the answers of another folder; None if plain questions are
        asked."""
        return next((name for name in RECIPES if getattr(self, name) is not None), None)

    @property
    def origin(self) -> str | None:
        """The folder with those answers; None if plain questions are asked."""
        return None if self.recipe is None else getattr(self, self.recipe)


@dataclass(frozen=True)
class JudgeConfig:
    """Rules judge every answer; if a model is named, it judges the answers in which the rules find nothing to
    compare."""

    folder: str
    """The folder that `mind data generate` wrote; judged.jsonl is written into it."""
    model: str | None = None
    """A model that judges the answers in which the rules find none."""
    base_url: str = ModelConfig.base_url
    """The judge's endpoint, with OpenAI's chat completions."""
    api_key_env: str | None = None
    """The environment variable that holds the endpoint's key. None: OPENAI_API_KEY for OpenAI's own endpoint, and no
    key for any other."""
    max_tokens: int = 512
    """Longest reply, in tokens."""
    traffic: TrafficConfig = field(default_factory=TrafficConfig)
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    price: tuple[float, float] | None = None
    """Price per million prompt tokens and per million reply tokens."""

    def __post_init__(self) -> None:
        check_fields("", self)
        require(
            self.budget.cost is None or self.price is not None,
            "budget.cost needs --price INPUT OUTPUT, per million tokens",
        )
        require(self.price is None or min(self.price) >= 0, f"price is {self.price}: expected two numbers >= 0")
        _ = self.judge  # raises for a faulty model before the folder is read

    @property
    def judge(self) -> ModelConfig | None:
        """The configuration of the model that judges, at temperature 0; None if none is named."""
        if self.model is None:
            return None
        return JudgeModel(
            self.model,
            base_url=self.base_url,
            api_key_env=self.api_key_env,
            temperature=0.0,
            max_tokens=self.max_tokens,
        )
