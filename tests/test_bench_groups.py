"""The benchmarks of losses on aligned groups, linear_pairwise_jsd and linear_mind_loss. No time is asserted."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch

from bench import real_rows
from bench.comparison import benchmark as cases
from bench.comparison import heads
from bench.comparison.gate import Gates, relative_error
from bench.comparison.heads import HEADS, Head
from bench.comparison.picture import draw
from bench.comparison.provider import Outputs, Provider, step
from bench.linear_mind_loss import __main__ as linear_mind_loss
from bench.linear_mind_loss.providers import cross_entropy
from bench.linear_pairwise_jsd import __main__ as linear_pairwise_jsd
from bench.linear_pairwise_jsd import inputs as group_inputs
from bench.measure import read_results, write_results
from bench.roofline import Rates
from mind.batches.packing import micro_batches
from mind.records import PackOptions, TokenizedQuestion
from mind.student import model as student_model
from mind_kernels.backend import BACKENDS, backends_of

SIZES = {"linear_pairwise_jsd": {"groups": 12}, "linear_mind_loss": {"rows": 160, "groups": 12}}
BENCHMARKS = {
    name: module.BENCHMARK
    for name, module in (("linear_pairwise_jsd", linear_pairwise_jsd), ("linear_mind_loss", linear_mind_loss))
}
DEFINITIONS = [(name, definition) for name, benchmark in BENCHMARKS.items() for definition in benchmark.definitions]
HERE = [
    (name, provider)
    for name, benchmark in BENCHMARKS.items()
    for provider, of in benchmark.providers.items()
    if "compile" not in provider and of.tensors != "cuda"
]


def load(name, dtype=torch.float32, head=Head(1024, 32)):  # noqa: B008 (a tuple)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(HEADS, "budget", head)
        return BENCHMARKS[name].load(model="budget", dtype=dtype, device="cpu", **SIZES[name])


@pytest.fixture(scope="module")
def gates():
    """By benchmark; a gate is built once and serves all tests."""
    return {name: Gates(benchmark.definitions, load(name)) for name, benchmark in BENCHMARKS.items()}


def test_synthetic_groups_are_deterministic_and_as_far_apart_as_a_students_answers():
    first, second = (group_inputs.synthetic(24, 49152, 64) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert [tuple(tensor.shape) for tensor in first] == [(24, 8, 64), (49152, 64)]
    facts = group_inputs.describe(*first)
    assert facts["K"] == 8 and facts["mean_jsd"] == pytest.approx(0.08, rel=0.4)
    assert 0.2 < facts["mean_entropy"] < 1.2 and facts["jsd_below_1e-6"] < 0.2


def test_weights_are_uneven_and_positive_and_every_pair_counts():
    pairwise, joint = load("linear_pairwise_jsd"), load("linear_mind_loss")
    assert bool((pairwise.pair_weight > 0).all()) and bool((joint.row_weight > 0).all())
    torch.testing.assert_close(pairwise.mixture_weight.sum(), torch.tensor(1.0))
    torch.testing.assert_close(joint.row_weight.sum(), torch.tensor(1.0))
    torch.testing.assert_close(joint.pair_weight, 0.1 * pairwise.pair_weight)
    assert len(pairwise.pair_weight.unique()) > 100


def test_answer_rows_are_spread_over_the_rows_and_belong_to_one_group_each():
    inputs = load("linear_mind_loss")
    rows = inputs.answer_rows.flatten()
    assert len(rows.unique()) == 96 and int(rows.max()) > 140 and inputs.answer_rows.shape == (12, 8)
    assert inputs.segments == 3 and inputs.hidden.shape == (160, 32) and not inputs.answer_rows.is_cuda
    apart = linear_mind_loss.describe(inputs)["mean_jsd"]
    strangers = inputs.hidden.detach()[torch.randperm(160)[:96]].view(12, 8, 32)
    assert 0 < apart < group_inputs.describe(strangers, inputs.weight.detach())["mean_jsd"] / 2


@pytest.mark.parametrize("name, definition", DEFINITIONS)
def test_the_truth_is_autograds(gates, name, definition):
    gate = gates[name][definition]
    inputs = gate.inputs
    double = inputs._replace(
        hidden=inputs.hidden.detach().double().requires_grad_(), weight=inputs.weight.detach().double().requires_grad_()
    )
    expected = step(BENCHMARKS[name].definitions[definition].eager, double)()
    for found, tensor in zip(gate.truth, expected, strict=True):
        assert relative_error(found, tensor) < 1e-10


@pytest.mark.parametrize("name, provider", HERE)
def test_the_gate_lets_in_what_is_right(gates, name, provider):
    verdict = cases.judge([provider], BENCHMARKS[name].providers, gates[name])[provider]
    if verdict.get("note", "").endswith("is not installed"):
        pytest.skip(verdict["note"])
    assert "note" not in verdict
    assert verdict["loss_error"] < (1e-3 if "sparse" in provider else 1e-5)


@pytest.mark.parametrize("tensor", Outputs._fields)
@pytest.mark.parametrize("name, definition", DEFINITIONS)
def test_the_gate_keeps_out_what_is_wrong(gates, name, definition, tensor):
    gate = gates[name][definition]
    wrong = gate.eager._replace(**{tensor: 1.2 * getattr(gate.eager, tensor)})
    for provider in (Provider(None), Provider(None, backend="torch"), Provider(None, backend="torch", sparse=True)):
        gate.check(provider, gate.eager)
        with pytest.raises(AssertionError, match=tensor):
            gate.check(provider, wrong)
    only = Provider(None, loss_only=True)
    if tensor != "loss":
        gate.check(only, wrong)


def test_in_bfloat16_ours_has_to_keep_its_logits_in_float32():
    name = "linear_pairwise_jsd"
    gates = Gates(BENCHMARKS[name].definitions, load(name, torch.bfloat16))
    names = ["eager, vectorised", "mind_kernels", "mind_kernels mixture"]
    verdicts = cases.judge(names, BENCHMARKS[name].providers, gates)
    assert not any("note" in verdict for verdict in verdicts.values())
    rounding = replace(BENCHMARKS[name].providers["eager, vectorised"], backend="torch")
    verdict = cases.judge(["ours"], {"ours": rounding}, gates)["ours"]
    assert verdict["fault"] and re.match("wrong: d_.*_error .* exceeds", verdict["note"])


def test_in_bfloat16_a_joint_loss_without_the_consistency_gradient_is_wrong():
    name = "linear_mind_loss"
    inputs = load(name, torch.bfloat16)
    gates = Gates(BENCHMARKS[name].definitions, inputs._replace(pair_weight=0.01 * inputs.pair_weight))
    forgetful = Provider(
        lambda inputs: cross_entropy(inputs, backend="torch"), backend="torch", judged_by=("loss", "consistency")
    )
    gates["loss"].check(forgetful, step(forgetful, gates.inputs)())  # it hides in the rounding
    verdict = cases.judge(["forgetful"], {"forgetful": forgetful}, gates)["forgetful"]
    assert verdict["fault"] and verdict["note"].startswith("wrong: loss")


@pytest.mark.parametrize("name", BENCHMARKS)
def test_on_a_gpu_the_backends_run_by_name(name):
    benchmark = BENCHMARKS[name]
    assert set(benchmark.defaults("cpu")) <= set(benchmark.providers)
    backends = {benchmark.providers[provider].backend for provider in benchmark.defaults("cuda")}
    assert backends == {None} | {backend for backend in backends_of(name) if BACKENDS[backend].tensors != "cpu"}
    for provider in benchmark.providers.values():
        assert set(provider.judged_by) <= set(benchmark.definitions)
        assert set(provider.times_of.values()) <= set(benchmark.providers)


def test_one_weight_a_pair_is_the_mean_over_positions():
    inputs = load("linear_pairwise_jsd")
    view = linear_pairwise_jsd.one_weight_a_pair(inputs)
    torch.testing.assert_close(view.pair_weight[3], inputs.pair_weight.mean(0))
    assert view.pair_weight.shape == inputs.pair_weight.shape


@pytest.mark.parametrize(
    "name, names, ratios",
    [
        (
            "linear_pairwise_jsd",
            ["eager, loop over pairs", "Liger, 28 calls", "mind_kernels", "mind_kernels mixture"],
            {"time_of_eager"},
        ),
        ("linear_mind_loss", linear_mind_loss.CPU, {"time_of_eager", "time_of_cross_entropy"}),
    ],
)
def test_a_case_from_inputs_to_table_and_picture(monkeypatch, tmp_path, name, names, ratios):
    benchmark = BENCHMARKS[name]
    monkeypatch.setitem(HEADS, "budget", Head(512, 16))
    monkeypatch.setattr(cases, "peak", lambda *_: 1.0)
    case = {"model": "budget", **SIZES[name], "dtype": torch.float32, "device": "cpu"}
    path = tmp_path / "results.jsonl"
    *_, rows = cases.measure_case(benchmark, case, names, repeats=2, rates=Rates(0.1, 10))
    write_results(rows, path)
    stored = {row["provider"]: row for row in read_results(path)}
    assert list(stored) == list(names)
    of_cuda = {"predicted_ms", "times_predicted"}
    assert set(benchmark.columns) <= set().union(*stored.values()) | {"note"} | of_cuda
    ours = [row for provider, row in stored.items() if provider.startswith("mind_kernels")]
    assert len(ours) == 2 and all(ratios <= set(row) for row in ours)
    assert "P 12, K 8, V 512, D 16" in draw(path).read_text()
    if name == "linear_mind_loss":
        assert stored["linear_cross_entropy alone"]["time_of_cross_entropy"] == 1
        assert stored["linear_cross_entropy alone, sparse 2^-12"]["time_of_cross_entropy"] == 1
    else:
        assert stored["mind_kernels mixture"]["note"].startswith("another loss")


def tokenized(number, lengths, suffix):
    """A question with a rationale of each length; every token tells which question and perspective it is of."""
    rationales = {k: tuple([100 * number + 10 * k] * length) for k, length in enumerate(lengths)}
    return TokenizedQuestion(f"q{number}", (1, 2), rationales, tuple(100 * number + 9 for _ in range(suffix)))


@pytest.fixture
def student(monkeypatch, tmp_path):
    """Stands in for the student: a labeled row's hidden state is the token that it predicts, and its place."""

    def labeled(*_):
        place = 0
        for questions in ([tokenized(1, (3, 4, 5), 2), tokenized(2, (2, 6, 3), 3)], [tokenized(3, (4, 4, 4), 2)]):
            (batch,) = micro_batches(questions, 3, PackOptions(200, share_prompts=False))
            rows = torch.arange(place, place + len(batch.target))
            place += len(rows)
            yield torch.stack([batch.target, rows], dim=1).float(), batch

    monkeypatch.setenv("MIND_CACHE", str(tmp_path))
    monkeypatch.setattr(real_rows, "load_student", lambda _: (None, None))
    monkeypatch.setattr(real_rows, "_labeled", labeled)
    monkeypatch.setattr(real_rows, "head_of", lambda _: student_model.Head(torch.ones(5, 2)))


def test_real_groups_stay_whole_when_the_rows_are_cut(student):
    file = real_rows.real_groups(6, rows=40)
    tensors = real_rows.load_rows(file)
    hidden, answer_rows = tensors["hidden"].detach(), tensors["answer_rows"]
    assert hidden.shape == (40, 2) and answer_rows.shape == (6, 3) and tensors["weight"].shape == (5, 2)
    assert bool((hidden[:, 1].diff() > 0).all())  # in their order, none twice
    assert torch.equal(hidden[:, 0].long(), tensors["target"])
    assert tensors["target"][answer_rows].tolist() == [[109] * 3] * 2 + [[209] * 3] * 3 + [[309] * 3]
    segments = tensors["segment"][answer_rows]
    assert all(len(row.unique()) == 3 for row in segments) and torch.equal(segments[0], segments[1])
    assert int(tensors["segment"].max()) + 1 == len(tensors["segment"].unique()) == 9
    assert real_rows.real_groups(6, rows=40) == file


def test_real_groups_alone_and_too_many_of_them(student):
    tensors = real_rows.load_rows(real_rows.real_groups(4))
    assert torch.equal(tensors["answer_rows"].flatten().sort().values, torch.arange(12))
    with pytest.raises(ValueError, match="give 7 groups and 56 rows: expected at least 8 and 0"):
        real_rows.real_groups(8)
    with pytest.raises(ValueError, match="6 groups of 3 rows exceed the 10 rows"):
        real_rows.real_groups(6, rows=10)


def test_rows_of_a_data_file_are_never_replaced_by_synthetic_ones(tmp_path):
    def unreadable(_):
        raise ImportError("no transformers")

    label = "synthetic, matched (no real rows: no transformers)"
    assert heads.real_or_label(heads.REAL, None, unreadable) == (None, label)
    with pytest.raises(ImportError):
        heads.real_or_label(heads.REAL, tmp_path, unreadable)
    assert heads.real_or_label("budget", tmp_path, unreadable, "answers") == (None, "synthetic, matched to answers")
