"""What tests of kernels share as fixtures."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture
def threads():
    """Sets how many threads there are, and puts it back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
