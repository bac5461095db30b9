"""The offline engines as they are installed: whether our stand-ins agree with them, and jobs of Ray and vLLM."""

from __future__ import annotations

import inspect
from types import SimpleNamespace

import pytest
from fake_engines import (
    FakeCompletionOutput,
    FakeConfig,
    FakeDataset,
    FakeLLM,
    FakeRay,
    FakeRequestOutput,
    FakeSamplingParams,
    assert_agrees,
)
from test_offline import CPU, LONE_SURROGATE, ROOT, needs_ray, needs_vllm, request, run, spend

from mind.records import Response
from mind.teacher.offline import RayEngine, VLLMEngine
from mind.teacher.requests import Failure


@needs_vllm
def test_the_stand_ins_agree_with_vllm():
    import vllm
    from vllm.outputs import CompletionOutput, RequestOutput

    for fake, real in [
        (FakeSamplingParams, vllm.SamplingParams),
        (FakeCompletionOutput, CompletionOutput),
        (FakeRequestOutput, RequestOutput),
        (FakeLLM.chat, vllm.LLM.chat),
    ]:
        assert_agrees(fake, real)


@needs_ray
def test_the_stand_ins_agree_with_ray():
    import ray
    from ray.data import llm

    for fake, real in [
        (FakeConfig, llm.vLLMEngineProcessorConfig),
        (FakeRay.build_processor, llm.build_processor),
        (FakeRay().data.from_items, ray.data.from_items),
        (FakeDataset.iter_batches, ray.data.Dataset.iter_batches),
    ]:
        assert_agrees(fake, real)
    assert "ignore_reinit_error" in inspect.signature(ray.init).parameters
    assert hasattr(ray.data.DataContext.get_current(), "enable_progress_bars")


@pytest.fixture
def cluster(monkeypatch):
    """Ray on this machine, with a GPU in name where there is none: vLLM for CPUs takes no notice."""
    ray = pytest.importorskip("ray", reason="Ray is not installed (mind-kernels[ray])")
    for name, value in {"PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0", **CPU}.items():
        monkeypatch.setenv(name, value)
    ray.init("local", num_cpus=2, num_gpus=1, object_store_memory=200 * 2**20, include_dashboard=False)
    yield
    ray.shutdown()


def without_vllm(config, **functions):
    """Ray's processor for vLLM with the call of vLLM replaced in its own stage: a prompt is refused or has an answer
    as many tokens long as its seed says."""
    from ray.data.llm import build_processor
    from ray.llm._internal.batch.stages.base import StatefulStageUDF
    from ray.llm._internal.batch.stages.vllm_engine_stage import vLLMEngineStageUDF, vLLMOutputData

    class Stage(vLLMEngineStageUDF):
        def __init__(self, data_column, expected_input_keys, should_continue_on_error, **_):
            StatefulStageUDF.__init__(self, data_column, expected_input_keys)
            self.should_continue_on_error, self.engine_kwargs = should_continue_on_error, {"disable_log_stats": True}
            self.llm = SimpleNamespace(generate_async=self.generate_async, shutdown=lambda: None)

        async def generate_async(self, row):
            ids, sampling = list(row.pop("tokenized_prompt")), row.pop("sampling_params")
            if len(ids) > 400:
                raise ValueError("the prompt is too long")
            output = vLLMOutputData(
                prompt="",
                prompt_token_ids=ids,
                num_input_tokens=len(ids),
                generated_text="so\n#### 4",
                generated_tokens=[7] * sampling["seed"],
                num_generated_tokens=sampling["seed"],
            )
            asked = SimpleNamespace(request_id=0, idx_in_batch=row[self.IDX_IN_BATCH_COLUMN], params=sampling)
            return asked, output.model_dump(), 0.5

    processor = build_processor(config, **functions)
    stage = processor.get_stage_by_name("vLLMEngineStage")
    stage.fn = Stage
    return processor


@needs_ray
@pytest.mark.slow
def test_a_job_of_ray(cluster, teacher_folder):
    engine = RayEngine(str(teacher_folder), spend(), batch_size=8, engine_options={}, processor_factory=without_vllm)
    texts = {0: LONE_SURROGATE} | dict.fromkeys(range(7, 40, 7), "long " * 100)
    outcomes = run(engine, [request(n, texts.get(n)) for n in range(40)])
    assert {name for name, outcome in outcomes.items() if isinstance(outcome, Failure)} == {f"q{n}" for n in texts}
    assert outcomes["q0"].detail.startswith("TypeError: ")
    assert outcomes["q7"].detail == "ValueError: the prompt is too long"
    for n, response in ((n, outcomes[f"q{n}"]) for n in range(40) if n not in texts):
        assert (response.request, response.text, response.seconds) == (f"digest {n}", "so\n#### 4", 0.5)
        assert (response.completion_tokens, response.finish_reason) == (n, "length" if n >= 20 else "stop")


@needs_vllm
@needs_ray
@pytest.mark.slow
def test_both_engines_give_the_answers_of_a_real_model(cluster, teacher_folder):
    from vllm.platforms import current_platform

    if current_platform.device_type not in ("cpu", "cuda"):
        pytest.skip("vLLM has no device here")
    options = {
        "max_model_len": 256,
        "max_num_batched_tokens": 4096,
        "enforce_eager": True,
        "dtype": "float32",
        "gpu_memory_utilization": 0.3,
    }
    texts = {3: "long " * 100, 4: LONE_SURROGATE}
    # The model finds all tokens about as likely, and so ends some answers itself.
    requests = [request(n, texts.get(n), max_tokens=100, temperature=1.0) for n in range(20)]
    engines = [
        kind(str(teacher_folder), spend(), batch_size=8, engine_options=options) for kind in (VLLMEngine, RayEngine)
    ]
    one, other = (run(engine, requests) for engine in engines)
    assert one.keys() == other.keys() and len(one) == 20
    answered = one.keys() - {f"q{n}" for n in texts}
    assert all(isinstance(outcomes[name], Response) == (name in answered) for outcomes in (one, other) for name in one)
    assert {one[name].finish_reason for name in answered} == {"stop", "length"}
    for name in answered:
        facts = [
            (response.text, response.finish_reason, response.prompt_tokens, response.completion_tokens)
            for response in (one[name], other[name])
        ]
        assert facts[0] == facts[1]
