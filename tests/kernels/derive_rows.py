"""How tests/kernels/data/smollm2_rows.safetensors was made: a small head whose softmax is like a trained model's.

    python tests/kernels/derive_rows.py rows.safetensors

`rows.safetensors` is what bench/real_rows.py writes: hidden states, head and targets of SmolLM2-135M-Instruct
(Apache-2.0), here on SVAMP rationales. Of them, 128 rows and 2048 vocabulary entries are kept (the targets, the most
probable ones, and others at random), and the 64 principal directions of their logits stand for the hidden size. The
softmax keeps its shape: nll 1.23, entropy 0.97, 32 entries a row above 2^-12.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

ROWS, VOCABULARY, SIZE = 128, 2048, 64
FILE = Path(__file__).parent / "data" / "smollm2_rows.safetensors"


def derive(hidden: torch.Tensor, weight: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
    """hidden (ROWS, SIZE) and weight (VOCABULARY, SIZE) in float16, target (ROWS,)."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randperm(len(target), generator=generator)[:ROWS]
    hidden, target = hidden[rows], target[rows]
    probable = torch.softmax(hidden @ weight.T, -1).mean(0).argsort(descending=True)[: VOCABULARY // 2]
    chosen = torch.unique(torch.cat([target, probable]))
    others = torch.randperm(len(weight), generator=generator)
    others = others[~torch.isin(others, chosen)][: VOCABULARY - len(chosen)]
    vocabulary = torch.cat([chosen, others]).sort().values
    left, scale, right = torch.linalg.svd(hidden @ weight[vocabulary].T, full_matrices=False)
    root = scale[:SIZE].sqrt()
    return {
        "hidden": (left[:, :SIZE] * root).half().contiguous(),
        "target": torch.searchsorted(vocabulary, target),
        "weight": (right[:SIZE].T * root).half().contiguous(),
    }


if __name__ == "__main__":
    FILE.parent.mkdir(exist_ok=True)
    save_file(derive(**load_file(sys.argv[1])), FILE)
