"""Predicted times: sums of products and bytes counted by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from bench.comparison.heads import HEADS, Head
from bench.linear_cross_entropy.__main__ import BENCHMARK
from bench.roofline import DEVICES, Logits, Rates, Step, columns, counted, milliseconds, predictions
from bench.training_step.models import QWEN
from bench.training_step.variants import VARIANTS
from bench.training_step.work import Tokens, steps

RATES = Rates(100, 1000)
CASE = {"model": "budget", "rows": 64, "dtype": torch.bfloat16}


def test_a_step_takes_the_longer_of_its_arithmetic_and_its_bytes():
    assert Step(1e12, 1e9).seconds(RATES) == pytest.approx(1e-2) and Step(1e9, 1e12).seconds(RATES) == pytest.approx(1)
    assert milliseconds([Step(1e12, 0), Step(0, 1e9)], RATES) == pytest.approx(11)
    assert columns([Step(0, 1e9)], RATES, 3.0) == {"predicted_ms": 1.0, "times_predicted": 3.0}
    assert columns(None, RATES, 3.0) == {}


def test_plain_cross_entropy_is_three_products_and_twelve_bytes_per_logit(monkeypatch):
    """The log-softmax reads 2 and writes 2, its gradient reads two tensors and writes one; one of them was filled."""
    monkeypatch.setitem(HEADS, "budget", Head(4096, 32))
    product, passes = counted(lambda i: F.cross_entropy(i.hidden @ i.weight.T, i.target), BENCHMARK.on_meta(**CASE))
    assert product.flops == 6 * 64 * 4096 * 32 and passes == Step(0, 12 * 64 * 4096)


@pytest.mark.parametrize(
    ("name", "flops", "moved"),
    [
        ("mind_kernels triton exact", 3, 6),
        ("mind_kernels cuda exact", 3, 6),
        ("mind_kernels torch exact", 3, 92),
        ("mind_kernels triton sparse 2^-12", 1, 6),
        ("CCE", 4, 0),
        ("Liger", 3, 8),
    ],
)
def test_the_work_of_the_cross_entropy(monkeypatch, name, flops, moved):
    monkeypatch.setitem(HEADS, "budget", Head(4096, 32))
    work = BENCHMARK.work(name, CASE, {"kept_mean": 0.0})
    assert work is not None
    assert sum(step.flops for step in work) == flops * 2 * 64 * 4096 * 32
    gathers = (64 + 4096) * 32 * 2 if "sparse" in name else 0
    assert sum(step.bytes for step in work if not step.flops) == moved * 64 * 4096 + gathers


def test_on_a_cpu_nothing_is_predicted_for_its_own_kernels():
    assert BENCHMARK.work("mind_kernels cpp exact", CASE, {}) is None


def test_a_training_step_is_six_operations_per_weight_and_token():
    """Of the trunk, 1.31e9 weights in the shape of Qwen2.5-1.5B; beside its losses, passes and the optimizer."""
    trunk, *_, optimizer = steps(VARIANTS["packed"], QWEN, torch.bfloat16, Tokens(1000, 1000, 500, 500))
    assert trunk.flops == pytest.approx(6 * 1.31e9 * 1000, rel=0.01) and optimizer.flops == 0
    assert optimizer.bytes == pytest.approx(20 * 1.544e9, rel=0.01)


def test_every_line_of_a_call_has_a_prediction():
    rows = list(predictions(DEVICES["NVIDIA H200"]))
    lines = {row["line"]: row for row in rows if row["benchmark"] == "linear_cross_entropy"}
    roof = 1e3 * 6 * 8192 * 151936 * 3584 / 790e12
    assert lines["QuACK"]["predicted_ms"] == pytest.approx(roof, rel=1e-4)
    missing = set(BENCHMARK.defaults("cuda")) - set(lines)
    others = ("F.linear_cross_entropy", "mind_kernels torch sparse")
    assert all(name.startswith(others) or name.endswith("scoring") for name in missing)
    assert {row["benchmark"] for row in rows} == {
        "row_kernels",
        "linear_pairwise_jsd",
        "linear_mind_loss",
        "linear_cross_entropy",
        "train_step",
    }
    assert all(row["predicted_ms"] > 0 for row in rows)


def test_gathers_read_a_row_for_each_entry_twice():
    assert Logits(10, 100, 8, 2).gathers(5.0).bytes == (2 * 5 * 10 + 10 + 100) * 8 * 2
