"""The student's trunk: packs -> last hidden states."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mind.batches.prompt_sharing import branch_mask
from mind.records import MicroBatch, Pack
from mind.student.model import attention_of, causal_lm


def pack_hidden(model: nn.Module, pack: Pack) -> Tensor:
    """Last hidden states (T, D) of a pack, after the final norm; no sequence and no branch sees another."""
    model = causal_lm(model)
    embeddings, attention = model.get_input_embeddings().weight, attention_of(model)
    assert isinstance(embeddings, Tensor)
    device = embeddings.device
    ids, positions = pack.input_ids[None].to(device), pack.position_ids[None].to(device)
    inputs: dict[str, Any] = {"input_ids": ids, "position_ids": positions}
    # Restarting position_ids without an attention mask are transformers' sign of plain sequences: it builds the
    # block-diagonal mask itself, with the layer's own window where it has one.
    if pack.branched:
        inputs["attention_mask"] = branch_mask(pack, attention, embeddings.dtype, device)
    elif "flash" in attention:
        lengths, boundaries = pack.boundaries.diff(), pack.boundaries.to(device, torch.int32)
        longest = int(lengths.max())
        inputs |= {
            "cu_seq_lens_q": boundaries,
            "cu_seq_lens_k": boundaries,
            "max_length_q": longest,
            "max_length_k": longest,
        }
    return model.base_model(**inputs, use_cache=False).last_hidden_state[0]


def labeled_hidden(model: nn.Module, batch: MicroBatch) -> Tensor:
    """Hidden states (N, D) of the labeled rows of a batch, in its order."""
    rows = []
    for pack in batch.packs:
        hidden = pack_hidden(model, pack)
        rows.append(hidden[pack.rows.to(hidden.device)])
    return torch.cat(rows)
