"""The compiled kernels in the workers of a DataLoader, whichever way they start, after they ran on two threads here."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from cases import usable

PROGRAM = """
import sys
import torch
from torch.utils.data import DataLoader, Dataset
from mind_kernels import linear_cross_entropy

class Losses(Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        draw = torch.Generator().manual_seed(index)
        hidden, head = torch.randn(64, 16, generator=draw), torch.randn(512, 16, generator=draw)
        return linear_cross_entropy(hidden, head, torch.randint(0, 512, (64,), generator=draw), backend="cpp")

if __name__ == "__main__":
    losses = Losses()
    expected = torch.stack([losses[index] for index in range(4)])
    loader = DataLoader(losses, batch_size=2, num_workers=2, multiprocessing_context=sys.argv[1], timeout=100)
    assert torch.equal(torch.cat(list(loader)), expected)
    print("equal")
"""


@pytest.mark.skipif("cpp" not in usable("linear_cross_entropy"), reason="not compiled")
@pytest.mark.parametrize(
    "start", ["fork", *(pytest.param(start, marks=pytest.mark.nightly) for start in ("spawn", "forkserver"))]
)
def test_a_data_loader_computes_losses(tmp_path, start):
    """A worker has one thread, and so no need of those that a fork leaves behind."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    environment = os.environ | {"OMP_NUM_THREADS": "2", "PYTHONPATH": os.getcwd()}
    command = [sys.executable, str(program), start]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert ended.returncode == 0 and ended.stdout == "equal\n", ended.stderr
