"""The offline engines up to vLLM's and Ray's boundary, and through both where they are installed and can run."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from fake_engines import (
    HAS_RAY,
    HAS_VLLM,
    FakeRay,
    FakeSamplingParams,
    FakeVLLM,
)

from mind.errors import MindError
from mind.records import Key, Response
from mind.teacher.config import BudgetConfig
from mind.teacher.offline import RayEngine, VLLMEngine
from mind.teacher.requests import Failure, Request, Wasted
from mind.teacher.spending import BUDGET_USED_UP, Spending, worst_case

ROOT = Path(__file__).resolve().parents[2]
LONE_SURROGATE = "x\ud800y"
"""JSON can hold it, and no tokenizer takes it."""
CPU = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
"""What vLLM for CPUs reads: GiB for its cache, and no threads bound to cores that others use."""
needs_vllm = pytest.mark.skipif(not HAS_VLLM, reason="vLLM is not installed (mind-kernels[vllm])")
needs_ray = pytest.mark.skipif(not HAS_RAY, reason="Ray is not installed (mind-kernels[ray])")


def request(number: int, text: str | None = None, **sampling) -> Request:
    sampling = {"max_tokens": 20, "temperature": 0.5, "top_p": 0.9, "seed": number} | sampling
    messages = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": text or f"Question {number}?"})
    return Request(Key(f"q{number}", "socratic", 1), f"digest {number}", messages, **sampling)


def run(engine, requests):
    """The outcomes by question, once each."""
    stored = []
    engine.run(iter(requests), stored.extend)
    ended = [outcome for outcome in stored if not isinstance(outcome, Wasted)]
    outcomes = {outcome.key.question: outcome for outcome in ended}
    assert len(outcomes) == len(ended), "an outcome came twice"
    assert not engine.retries
    return outcomes


def spend(**limits) -> Spending:
    return Spending(BudgetConfig(**limits), None)


def installed(package, monkeypatch):
    for name, module in package.modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    return package


@pytest.fixture
def vllm(monkeypatch):
    return installed(FakeVLLM(), monkeypatch)


@pytest.fixture
def ray(monkeypatch):
    return installed(FakeRay(), monkeypatch)


def vllm_engine(spending=None, batch_size=4, **options) -> VLLMEngine:
    return VLLMEngine("a/teacher", spending or spend(), batch_size=batch_size, engine_options=options)


def test_answers_of_vllm_are_kept_whole(vllm):
    vllm.reply = lambda text: ("so\n#### 4", "length")
    spending = spend()
    response = run(vllm_engine(spending), [request(3)])["q3"]
    assert response.key == ("q3", "socratic", 1) and response.request == "digest 3"
    assert (response.text, response.finish_reason, response.model) == ("so\n#### 4", "length", "a/teacher")
    assert (response.prompt_tokens, response.completion_tokens, response.attempts) == (9, 9, 1)
    assert response.created.endswith("Z")
    assert (spending.usage.requests, spending.usage.prompt_tokens, spending.usage.completion_tokens) == (1, 9, 9)


def test_vllm_gets_each_request_with_its_own_sampling(vllm):
    requests = [request(0), request(1, temperature=None, top_p=None, seed=None, max_tokens=7)]
    run(vllm_engine(max_model_len=99), requests)
    (loaded,) = vllm.loaded
    assert loaded.model == "a/teacher" and loaded.kwargs == {"max_model_len": 99}
    params = vllm.SamplingParams
    assert loaded.sampling == [params(temperature=0.5, top_p=0.9, seed=0, max_tokens=20), params(max_tokens=7)]


BEGUN = {"messages": ({"role": "user", "content": "Why?"}, {"role": "assistant", "content": "First, so."})}


@pytest.mark.parametrize("text", ["Then, so.\n#### 4", "\n\nThen, so.\n#### 4", "First, so.\n\nThen, so.\n#### 4"])
def test_an_answer_that_was_begun_is_continued_and_kept_whole(vllm, ray, teacher_folder, text):
    prompts = []
    vllm.reply = lambda turn: text
    ray.engine = lambda prompt, _: prompts.append(prompt) or text
    begun = dataclasses.replace(request(0), beginning="First, so.\n\n", **BEGUN)
    for engine in (vllm_engine(), ray_engine(teacher_folder)):
        assert run(engine, [begun])["q0"].text == "First, so.\n\nThen, so.\n#### 4"
    assert prompts == ["<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\nFirst, so."]


def test_the_requests_of_a_batch_share_its_time(vllm, monkeypatch):
    monkeypatch.setattr("mind.teacher.offline.time", SimpleNamespace(monotonic=iter([5.0, 6.0]).__next__))
    assert [response.seconds for response in run(vllm_engine(), [request(0), request(1)]).values()] == [0.5, 0.5]


def test_a_batch_is_stored_before_the_next_is_asked(vllm):
    seen = []
    vllm_engine(batch_size=2).run(
        [request(n) for n in range(5)], lambda outcomes: seen.append((len(outcomes), len(vllm.loaded[0].calls)))
    )
    assert seen == [(2, 1), (2, 2), (1, 3)]
    assert len(vllm.loaded) == 1


def test_nothing_is_loaded_for_nothing(vllm):
    assert run(vllm_engine(), []) == {} and vllm.loaded == []


def test_a_refused_request_fails_alone(vllm):
    refusals = {
        "Question 2?": vllm.ClientError("the prompt\n is too long"),
        "Question 5?": TypeError("TextEncodeInput must be Union"),
    }
    vllm.reply = lambda text: refusals.get(text, "fine")
    spending = spend()
    outcomes = run(vllm_engine(spending, batch_size=8), [request(n) for n in range(8)])
    assert [name for name, outcome in outcomes.items() if isinstance(outcome, Failure)] == ["q2", "q5"]
    assert list(outcomes) == [f"q{n}" for n in range(8)]
    assert [len(call) for call in vllm.loaded[0].calls] == [8, 4, 2, 2, 1, 1, 4, 2, 1, 1, 2], "asked by halves"
    assert outcomes["q2"] == Failure(
        Key("q2", "socratic", 1), "refused by vLLM", "VLLMClientError: the prompt is too long", 1
    )
    assert outcomes["q5"].detail.startswith("TypeError: TextEncodeInput")
    assert (spending.usage.requests, spending.under_way) == (6, 0)


def test_sampling_that_vllm_refuses_fails_alone(vllm):
    accepted = vllm.SamplingParams

    def sampling_params(**parameters):
        if parameters["temperature"] > 2:
            raise vllm.ClientError("temperature must be in [0, 2]")
        return accepted(**parameters)

    vllm.SamplingParams = sampling_params
    outcomes = run(vllm_engine(), [request(0, temperature=5.0), request(1)])
    assert outcomes["q0"].reason == "refused by vLLM" and isinstance(outcomes["q1"], Response)


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ((" \n", "stop"), "empty answer"),
        (("half an", "abort"), "ended by abort"),
        (("half an", None), "ended by abort"),
    ],
)
def test_no_answer_is_a_failure_that_still_counts_its_tokens(vllm, reply, reason):
    vllm.reply = lambda text: reply
    spending = spend()
    outcome = run(vllm_engine(spending), [request(0)])["q0"]
    assert isinstance(outcome, Failure) and outcome.reason == reason
    assert (spending.usage.requests, spending.usage.prompt_tokens) == (0, 9)


def test_a_dead_engine_ends_the_job_and_keeps_what_came(vllm):
    dead = RuntimeError("EngineCore encountered an issue")
    vllm.reply = lambda text: dead if "3" in text else "fine"
    stored, engine = [], vllm_engine(batch_size=2)
    engine.run([request(n) for n in range(6)], stored.extend)
    assert engine.stopped == "vLLM ended with RuntimeError: EngineCore encountered an issue"
    assert [outcome.key.question for outcome in stored] == ["q0", "q1"]


def test_a_budget_of_requests(vllm):
    engine = vllm_engine(spend(requests=5), batch_size=3)
    assert len(run(engine, [request(n) for n in range(9)])) == 5
    assert engine.stopped == BUDGET_USED_UP
    assert [len(call) for call in vllm.loaded[0].calls] == [3, 2]


def test_answers_free_what_they_did_not_take_of_the_budget(vllm):
    worst = sum(worst_case(request(0)))
    spending = spend(tokens=2 * worst)
    engine = vllm_engine(spending, batch_size=100)
    outcomes = run(engine, [request(n) for n in range(9)])
    spent = spending.usage.prompt_tokens + spending.usage.completion_tokens
    assert worst < spent <= 2 * worst, "as many as fit, and no more"
    assert len(outcomes) > 2 and engine.stopped == BUDGET_USED_UP


@pytest.mark.parametrize("name", ["max_modellen", "model"])
def test_wrong_engine_options_are_told(vllm, name):
    with pytest.raises(MindError, match=rf"vLLM cannot load a/teacher with engine options \({name}\): .*argument"):
        run(vllm_engine(**{name: "hf_secret"}), [request(0)])


@pytest.mark.parametrize(("kind", "name"), [(VLLMEngine, "vllm"), (RayEngine, "ray")])
def test_a_missing_package_is_named(monkeypatch, kind, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MindError, match=rf"engine {name} needs {name} .*pip install 'mind-kernels\[{name}\]'"):
        kind("m", spend(), engine_options={})


def ray_engine(model, spending=None, batch_size=4, **options) -> RayEngine:
    return RayEngine(str(model), spending or spend(), batch_size=batch_size, replicas=3, engine_options=options)


def test_answers_of_ray_are_kept_whole(ray, teacher_folder):
    response = run(ray_engine(teacher_folder), [request(3)])["q3"]
    assert response.key == ("q3", "socratic", 1) and response.request == "digest 3"
    assert (response.text, response.finish_reason, response.model) == ("so\n#### 4", "stop", str(teacher_folder))
    assert (response.completion_tokens, response.attempts, response.seconds) == (3, 1, 0.25)


def test_ray_gets_the_chat_template_once_and_each_request_its_sampling(ray, teacher_folder):
    seen = []
    ray.engine = lambda *arguments: seen.append(arguments) or "fine"
    run(ray_engine(teacher_folder), [request(1), request(2, temperature=None, top_p=None, seed=None)])
    assert seen == [
        (
            f"<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nQuestion {number}?<|im_end|>\n"
            "<|im_start|>assistant\n",
            sampling,
        )
        for number, sampling in [
            (1, FakeSamplingParams(temperature=0.5, top_p=0.9, seed=1, max_tokens=20)),
            (2, FakeSamplingParams(max_tokens=20)),
        ]
    ]


def test_ray_gets_the_options(ray, teacher_folder):
    run(ray_engine(teacher_folder, batch_size=2, tensor_parallel_size=2), [request(0)])
    config = ray.datasets[0].config
    assert (config.model_source, config.batch_size, config.concurrency) == (str(teacher_folder), 2, 3)
    assert config.engine_kwargs["tensor_parallel_size"] == 2
    assert ray.context.enable_progress_bars is False


def test_a_row_that_ray_could_not_answer_fails_alone(ray, teacher_folder):
    ray.engine = lambda prompt, _: ValueError("too\n long") if "Question 0?" in prompt else "fine"
    outcomes = run(ray_engine(teacher_folder), [request(n) for n in range(3)])
    assert outcomes["q0"] == Failure(Key("q0", "socratic", 1), "refused by vLLM", "ValueError: too long", 1)
    assert isinstance(outcomes["q1"], Response) and isinstance(outcomes["q2"], Response)


def test_a_prompt_that_has_no_tokens_fails_alone(ray, teacher_folder):
    outcomes = run(ray_engine(teacher_folder), [request(0, LONE_SURROGATE), request(1)])
    assert outcomes["q0"].reason == "refused by vLLM" and outcomes["q0"].detail.startswith("TypeError: ")
    assert isinstance(outcomes["q1"], Response)


def test_a_chat_template_that_refuses_is_told(ray, teacher_folder):
    (teacher_folder / "chat_template.jinja").write_text("{{ raise_exception('no system role') }}")
    assert run(ray_engine(teacher_folder), [request(0)])["q0"].detail == "TemplateError: no system role"


def test_what_ray_answers_is_stored_as_it_comes(ray, teacher_folder):
    seen = []
    ray_engine(teacher_folder, batch_size=2).run(
        [request(n) for n in range(5)], lambda outcomes: seen.append((len(outcomes), ray.datasets[0].batches))
    )
    assert seen == [(2, 1), (2, 2), (1, 3)]


@pytest.mark.parametrize(
    ("max_tokens", "context", "reason"),
    [(3, None, "length"), (4, None, "stop"), (4, 10_000, "stop"), (4, 3, "length"), (4, -1, "stop")],
)
def test_an_answer_as_long_as_it_may_be_was_cut_off(ray, teacher_folder, max_tokens, context, reason):
    outcomes = run(ray_engine(teacher_folder, max_model_len=context), [request(0, max_tokens=max_tokens)])
    assert outcomes["q0"].finish_reason == reason


def test_ray_gets_what_fits_the_budget_in_the_worst_case(ray, teacher_folder):
    spending = spend(tokens=2 * sum(worst_case(request(0))))
    engine = ray_engine(teacher_folder, spending)
    assert run(engine, [request(n) for n in range(5)]).keys() == {"q0", "q1"}
    assert "does not fit the budget" in engine.stopped and spending.under_way == 0
    assert run(ray_engine(teacher_folder, spend(tokens=1)), [request(0)]) == {} and len(ray.datasets) == 1


@pytest.mark.parametrize(
    "error",
    [ConnectionError("Could not find any running Ray instance"), ValueError("Invalid address format: nonsense")],
)
def test_an_address_without_a_cluster_is_told(ray, teacher_folder, error):
    def init(**_):
        raise error

    ray.init = init
    with pytest.raises(MindError, match=f"RAY_ADDRESS names no Ray cluster: {error}"):
        run(ray_engine(teacher_folder), [request(0)])
