"""The code of docs/tutorials/several-devices.md, in two processes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import join, start
from torch import distributed

PAGE = Path(__file__).parents[2] / "docs/tutorials/several-devices.md"


def work(rank, port):
    join(rank, port)
    [code] = re.findall(r"test_several_devices.py runs this -->\n```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    try:
        exec(code, names)
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()
    torch.manual_seed(0)
    hidden, target = torch.randn(64, 32, requires_grad=True), torch.randint(0, 500, (64,))
    head = torch.randn(500, 32, requires_grad=True)
    loss = torch.nn.functional.cross_entropy(hidden @ head.T, target)
    loss.backward()
    torch.testing.assert_close(names["loss"], loss)
    torch.testing.assert_close(names["hidden"].grad, hidden.grad)
    torch.testing.assert_close(names["weight"].grad, head.grad.tensor_split(2)[rank])


@pytest.mark.skipif(not distributed.is_gloo_available(), reason="PyTorch without gloo")
def test_the_code_runs():
    start(work)
