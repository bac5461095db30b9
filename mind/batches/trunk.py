"""Computes the last hidden states of packs by the student's trunk."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mind.batches.isolation import branch_fault, keeps_sequences_apart
from mind.batches.rows import padded_inputs, plain_inputs, shared_inputs
from mind.errors import require
from mind.records import MicroBatch, Pack
from mind.student.model import causal_lm
from mind.student.probe import trunk_states

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def pack_hidden(model: nn.Module, pack: Pack) -> Tensor:
    """Last hidden states (T, D) of a pack, after the final norm; no sequence and no branch sees another.

    If the model mixes the sequences of a row, each gets a row of its own, and a warning says so once. Raises MindError
    for a model that computes neither layout like single sequences, and for branches that it does not separate.
    """
    model = causal_lm(model)
    if pack.branched:
        reason = branch_fault(model, int(pack.position_ids.max()) + 1, len(pack.input_ids))
        require(reason is None, f"prompts cannot be shared: {reason}")
        return trunk_states(model, shared_inputs(model, pack))[0]
    if keeps_sequences_apart(model, len(pack.input_ids)):
        return trunk_states(model, plain_inputs(model, pack))[0]
    return _padded_hidden(model, pack)


def labeled_hidden(model: nn.Module, batch: MicroBatch) -> Tensor:
    """Hidden states (N, D) of the labeled rows of a batch, in its order."""
    rows = []
    for pack in batch.packs:
        hidden = pack_hidden(model, pack)
        rows.append(hidden[pack.rows.to(hidden.device)])
    return torch.cat(rows)


def _padded_hidden(model: PreTrainedModel, pack: Pack) -> Tensor:
    """The same from one row per sequence, the longest first; each pass has about as many tokens as the pack."""
    lengths = pack.boundaries.diff().tolist()
    sequences = pack.input_ids.split(lengths)
    states: list[Tensor] = [torch.empty(0)] * len(lengths)
    left = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    while left:
        rows = max(1, len(pack.input_ids) // max(1, lengths[left[0]]))
        group, left = left[:rows], left[rows:]
        for i, row in zip(group, trunk_states(model, padded_inputs(model, [sequences[i] for i in group])), strict=True):
            states[i] = row[: lengths[i]]
    return torch.cat(states)
