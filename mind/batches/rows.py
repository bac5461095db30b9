"""Builds the trunk's inputs for a row: plain sequences one after another, branches of shared prompts, or padded
rows."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mind.records import Pack
from mind.student.model import attention_of

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask
    from transformers import PreTrainedModel


def plain_inputs(model: PreTrainedModel, pack: Pack) -> dict[str, Any]:
    """For a pack without branches, with T tokens in a row: input_ids (1, T), and the arguments that separate its
    documents."""
    inputs = _ids_and_positions(model, pack)
    # Position ids that restart, without an attention mask, tell transformers that these are plain sequences: it builds
    # the block-diagonal mask itself, with the layer's own window if it has one.
    if "flash" in attention_of(model):
        lengths, boundaries = pack.boundaries.diff(), pack.boundaries.to(model.device, torch.int32)
        longest = int(lengths.max())
        inputs |= {
            "cu_seq_lens_q": boundaries,
            "cu_seq_lens_k": boundaries,
            "max_length_q": longest,
            "max_length_k": longest,
        }
    return inputs


def shared_inputs(model: PreTrainedModel, pack: Pack) -> dict[str, Any]:
    """For any pack: input_ids (1, T), and the mask that lets branches share a prompt."""
    embeddings: Any = model.get_input_embeddings()
    mask = branch_mask(pack, attention_of(model), embeddings.weight.dtype, model.device)
    return _ids_and_positions(model, pack) | {"attention_mask": mask}


def padded_inputs(model: PreTrainedModel, sequences: Sequence[Tensor]) -> dict[str, Any]:
    """For sequences of token ids: input_ids (B, T), one row per sequence, padded on the right to the longest."""
    ones = [torch.ones_like(sequence) for sequence in sequences]
    padded = {"input_ids": pad_sequence(list(sequences), True), "attention_mask": pad_sequence(ones, True)}
    return {name: tensor.to(model.device) for name, tensor in padded.items()}


def left_padded_inputs(model: PreTrainedModel, sequences: Sequence[Tensor]) -> dict[str, Any]:
    """One row per sequence, padded on the left, as transformers' generation passes it to the trunk."""
    ones = [torch.ones_like(sequence) for sequence in sequences]
    mask = pad_sequence(ones, True, padding_side="left")
    padded = {"input_ids": pad_sequence(list(sequences), True, padding_side="left"), "attention_mask": mask}
    if "position_ids" in inspect.signature(model.forward).parameters:
        padded["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
    return {name: tensor.to(model.device) for name, tensor in padded.items()}


def _ids_and_positions(model: PreTrainedModel, pack: Pack) -> dict[str, Any]:
    return {
        "input_ids": pack.input_ids[None].to(model.device),
        "position_ids": pack.position_ids[None].to(model.device),
    }


def branch_mask(pack: Pack, attention: str, dtype: torch.dtype, device: torch.device) -> Tensor | BlockMask:
    """What each token of a pack sees, in the form that `attention` needs: a bool or additive mask (1, 1, T, T), or a
    BlockMask."""
    length = len(pack.input_ids)
    document = torch.repeat_interleave(pack.boundaries.diff()).to(device)
    branch = pack.branch.to(device)

    def sees(batch: Any, head: Any, q: Tensor, k: Tensor) -> Tensor:
        return (q >= k) & (document[q] == document[k]) & ((branch[k] == 0) | (branch[k] == branch[q]))

    if attention == "flex_attention":
        from torch.nn.attention.flex_attention import create_block_mask

        return create_block_mask(sees, None, None, length, length, device=device)
    token = torch.arange(length, device=device)
    mask = sees(None, None, token[:, None], token[None, :])[None, None]
    if attention == "eager":
        return torch.zeros(mask.shape, dtype=dtype, device=device).masked_fill_(~mask, torch.finfo(dtype).min)
    return mask
