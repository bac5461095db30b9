"""Inputs of the joint loss: labeled rows of which some are answer rows, real ones of SmolLM2-135M or synthetic."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from bench.comparison import heads
from bench.comparison.heads import HEADS
from bench.linear_cross_entropy import inputs as row_inputs
from bench.linear_pairwise_jsd import inputs as group_inputs
from bench.linear_pairwise_jsd.inputs import PERSPECTIVES

CONSISTENCY = 0.1  # lambda
SEGMENT = 64  # rows of a synthetic rationale
SEED = 0


class Inputs(NamedTuple):
    """What the providers get, and where it comes from; gradients are wanted for hidden and weight."""

    hidden: Tensor  # (N, D)
    weight: Tensor  # (V, D)
    target: Tensor  # (N,)
    row_weight: Tensor  # (N,)
    answer_rows: Tensor  # (P, K), on the CPU, as the packer leaves them
    pair_weight: Tensor  # (P, K, K)
    segment: Tensor  # (N,)
    segments: int
    label: str

    @property
    def groups(self) -> Tensor:
        """(P, K, D)"""
        return self.hidden[self.answer_rows]


def load(model: str, rows: int, groups: int, dtype: torch.dtype, device: str, data: Path | None = None) -> Inputs:
    """The inputs of a case: the same for the same arguments, in any process. Real rows come from `data` if given."""
    real, label = heads.real_or_label(
        model, data, lambda source: source.load_rows(source.real_groups(groups, data, rows), device, dtype)
    )
    tensors = real or synthetic(rows, groups, *HEADS[model], device, dtype)
    answer_rows = tensors["answer_rows"].cpu()
    alpha = group_inputs.uneven_weights(*answer_rows.shape).to(device)
    uneven = torch.rand(rows, generator=torch.Generator().manual_seed(SEED)) + 0.5
    return Inputs(
        tensors["hidden"],
        tensors["weight"],
        tensors["target"],
        (uneven / uneven.sum()).to(device),
        answer_rows,
        CONSISTENCY * group_inputs.pair_weights(alpha),
        tensors["segment"],
        int(tensors["segment"].max()) + 1,
        label,
    )


def on_meta(model: str, rows: int, groups: int, dtype: torch.dtype) -> Inputs:
    """The inputs of a case by their shapes alone."""
    of_rows, of_groups = row_inputs.on_meta(model, rows, dtype), group_inputs.on_meta(model, groups, dtype)
    answers = torch.empty(groups, PERSPECTIVES, dtype=torch.int64, device="meta")
    row_weight = torch.empty(rows, device="meta")
    return Inputs(*of_rows[:3], row_weight, answers, of_groups.pair_weight, of_rows.target, 1, "")


@torch.no_grad()
def synthetic(rows: int, groups: int, vocabulary: int, size: int, device: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """Rows of the cross-entropy benchmark, some of them, evenly spread, replaced by groups of the pairwise one."""
    generator = torch.Generator(device).manual_seed(SEED)
    hidden, weight, target = row_inputs.synthetic(rows, vocabulary, size, device, SEED)
    count = groups * PERSPECTIVES
    if count > rows:
        raise ValueError(f"{groups} groups of {PERSPECTIVES} rows exceed the {rows} rows")
    answer_rows = (torch.arange(count, device=device) * rows // count).view(groups, PERSPECTIVES)
    hidden[answer_rows] = heads.groups(groups, PERSPECTIVES, size, generator)
    answers = answer_rows.flatten()
    target[answers] = row_inputs.draw_targets(hidden[answers], weight, generator)
    return {
        "hidden": hidden.to(dtype).requires_grad_(),
        "weight": weight.to(dtype).requires_grad_(),
        "target": target,
        "answer_rows": answer_rows,
        "segment": torch.arange(rows, device=device) // SEGMENT,
    }


@torch.no_grad()
def describe(inputs: Inputs) -> dict[str, float]:
    """What makes the rows easy or hard, and of the answer rows how far those of a group are apart."""
    groups = group_inputs.describe(inputs.groups, inputs.weight)
    return {**row_inputs.describe(inputs), **{name: groups[name] for name in ("K", "mean_jsd", "jsd_below_1e-6")}}
