"""Attention for packed rows on a CPU that skips what the mask hides: transformers' implementation "sdpa_spans".

A token of a packed row sees its prompt and its own branch, a small part of the row, but PyTorch's attention on a CPU
computes all pairs of tokens and then masks them. Here the row is cut into spans, the prompts and the branches: all
tokens of a span see the same whole earlier spans, nothing of other spans, and their own span up to themselves. Each
span is computed by transformers' own "sdpa" on the keys that it sees. Only the mask determines the spans, so the result
equals that of "sdpa" up to rounding, whoever made the mask. Masks without such spans, as with sliding windows, go to
"sdpa" itself.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from mind.student.model import SPAN_ATTENTION


class Span(NamedTuple):
    """Consecutive tokens of a row."""

    tokens: int
    seen: tuple[int, ...]
    """The numbers of the earlier spans that they see."""
    mask: Tensor | None
    """(1, 1, tokens, keys) bool: which keys of `seen` and of its own span each token sees; None: causal."""


def span_attention(
    module: nn.Module,
    query: Tensor,  # (B, H, T, D)
    key: Tensor,  # (B, H / groups, T or more, D)
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, None]:  # (B, T, H, D)
    """Has the signature of transformers' attention functions and the result of its "sdpa"."""
    spans = None
    if attention_mask is not None and query.device.type == "cpu" and options.get("position_bias") is None:
        spans = _known_spans(attention_mask)
    if spans is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    lengths = [span.tokens for span in spans]
    queries, keys, values = (part.split(lengths, 2) for part in (query, key, value))
    outputs = []
    for number, span in enumerate(spans):
        k, v = (torch.cat([parts[i] for i in (*span.seen, number)], 2) if span.seen else parts[number]
                for parts in (keys, values))  # fmt: skip
        outputs.append(sdpa_attention_forward(module, queries[number], k, v, span.mask, **options)[0])
    return torch.cat(outputs, 1), None


AttentionInterface.register(SPAN_ATTENTION, span_attention)
AttentionMaskInterface.register(SPAN_ATTENTION, sdpa_mask)

_known: WeakIdKeyDictionary = WeakIdKeyDictionary()
"""Mask -> its spans: all layers of a forward pass share the mask."""


def _known_spans(mask: Tensor) -> list[Span] | None:
    if torch.compiler.is_compiling() or mask.dtype != torch.bool or mask.shape[:2] != (1, 1):
        return None
    if mask not in _known:
        _known[mask] = spans_of(mask[0, 0])
    return _known[mask]


def spans_of(mask: Tensor) -> list[Span] | None:
    """The spans of a row with this mask (T, T) bool, True if a token (first dimension) sees another; None if there are
    none, or if they leave out less than half of the pairs."""
    total = len(mask)
    if mask.shape != (total, total) or not mask.diagonal().all() or mask.triu(1).any():
        return None
    first = torch.cat([mask.new_ones(1), (mask[1:] != mask[:-1]).tril().any(1)])  # sees other earlier tokens than the
    rows, place = mask[first], torch.arange(total)  # one in front of it
    edges = (rows[:, 1:] != rows[:, :-1]) & (place[1:] < place[first, None])
    first[1:] |= edges.any(0)  # where what such a token sees begins or ends
    starts = first.nonzero().flatten().tolist()
    if len(starts) > total / 2:
        return None
    lengths = [end - start for start, end in pairwise([*starts, total])]
    # (spans, spans): how many tokens of each are seen by the first token of each
    sums = torch.nn.functional.pad(mask[starts].int().cumsum(1), (1, 0))[:, [*starts, total]]
    seen = sums.diff(dim=1).tril(-1)
    if not ((seen == 0) | (seen == torch.tensor(lengths))).all():
        return None
    spans = []
    for tokens, row in zip(lengths, seen.tolist(), strict=True):
        before = sum(row)
        ones = torch.ones(1, 1, tokens, before + tokens, dtype=torch.bool)
        visible = ones.tril(before) if before and tokens > 1 else None
        spans.append(Span(tokens, tuple(i for i, count in enumerate(row) if count), visible))
    pairs = sum(tokens * (sum(row) + tokens) for tokens, row in zip(lengths, seen.tolist(), strict=True))
    return spans if 2 * pairs <= total**2 else None
