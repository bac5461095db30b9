"""What a line of metrics.jsonl is of several steps."""

from __future__ import annotations

import json

import pytest
import torch

from mind.methods.step import StepMetrics
from mind.run.metrics import StepMeter

STEPS = [({"loss_part": 1.0, "of_some": 2.0}, 3), ({"loss_part": 5.0}, 1), ({"loss_part": 1.0, "of_some": 4.0}, 1)]


@pytest.mark.parametrize("stopped", [False, True])
def test_a_mean_is_over_the_questions_of_the_steps_that_have_it(stopped):
    meter = StepMeter(("first",))
    for means, questions in STEPS:
        table = torch.full((questions, 1), 7.0)
        metrics = StepMetrics(means, {"l_real": table}, {"rate": len(means)}, {})
        meter.add(metrics, loss=questions, questions=questions, tokens=2, work={"trained": 4}, seconds=1.0)
        if stopped:
            saved, meter = json.loads(json.dumps(meter.state_dict())), StepMeter(("first",))
            meter.load_state_dict(saved)
    row = meter.flush()
    assert row == {
        "loss": 5 / 3,
        "loss_part": (3 + 5 + 1) / 5,
        "of_some": (3 * 2 + 4) / 4,
        "l_real": {"first": 7.0},
        "work": {"trained": 12},
        "tokens": 6,
        "step_s": 3.0,
        "tokens_per_s": 2.0,
        "rate": 2,
    }
